"""Answers that are given again: the same request, the same version of the model.

Each data worker has a cache of its own for each pipeline that asks for one (`cache_mbytes` in its
`pipeline.yaml`).
"""

import hashlib
from collections import OrderedDict
from functools import partial

from prometheus_client import Counter, Gauge

from mesh.item import Reply, Request

ENTRY_BYTES = 300
"""Of an entry beside its answer."""

HITS = Counter("mesh_gateway_cache_hits", "Requests answered from the cache", ["pipeline"])
MISSES = Counter("mesh_gateway_cache_misses", "Requests that were run, with a cache", ["pipeline"])
BYTES = Gauge("mesh_gateway_cache_bytes", "Of the answers that are kept", ["pipeline"])

Key = tuple[str, bytes]
"""Version of the model, and a hash of the request."""


class ResponseCache:
    """The answers of one pipeline; those that were not asked for longest go first.

    Args:
        pipeline: its name, for the metrics.
        most_bytes: that all answers may take.
    """

    def __init__(self, pipeline: str, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        self._answers: OrderedDict[Key, Reply] = OrderedDict()
        self._hits, self._misses = HITS.labels(pipeline), MISSES.labels(pipeline)
        BYTES.labels(pipeline).set_function(partial(getattr, self, "bytes"))

    def get(self, key: Key) -> Reply | None:
        """Return the answer to a request; None: it has to be run."""
        found = self._answers.get(key)
        if found is None:
            self._misses.inc()
            return None
        self._answers.move_to_end(key)
        self._hits.inc()
        return Reply(found.payload, version=found.version)

    def put(self, key: Key, reply: Reply) -> None:
        """Keep an answer; one that another version made than the request was for is not kept."""
        size = len(reply.payload) + ENTRY_BYTES
        if reply.status is not None or reply.version != key[0] or size > self.most_bytes:
            return
        if key not in self._answers:
            self.bytes += size
        self._answers[key] = Reply(reply.payload, version=reply.version)
        while self.bytes > self.most_bytes:
            self.bytes -= len(self._answers.popitem(last=False)[1].payload) + ENTRY_BYTES

    def clear(self) -> None:
        """Forget all answers."""
        self._answers.clear()
        self.bytes = 0


def key_of(request: Request, version: str) -> Key:
    """Return the key of a request: its content, its parameters, and the version it is for."""
    digest = hashlib.sha256(len(request.parameters).to_bytes(8, "little"))
    digest.update(request.parameters)
    digest.update(request.payload)
    return version, digest.digest()
