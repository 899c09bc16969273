"""One generation's way: the text's ids to a model, its tokens to text, bit by bit."""

import asyncio
import json
import secrets
import time
from typing import Any

import numpy as np
from opentelemetry.trace import Tracer

from gateway.detokenizer import Detokenizer, Text
from gateway.metrics import RESUMED
from gateway.pipeline import Pipeline, Stages
from gateway.stage_call import call_stage
from mesh.client import StageClient
from mesh.errors import InvalidInput, MeshError
from mesh.item import Reply, Request, version_of
from mesh.lease import Lease
from mesh.telemetry import child_of, is_sampled, write_span
from mesh.tensor import bytes_tensor, pack, unpack
from protos.mesh.v1.stage_pb2 import Target

MOST_STOPS = 16
MOST_STOP_CHARACTERS = 256
STOP = "stop"


class Generations:
    """Runs the pipelines whose task is `generate`.

    A request has one text, and as parameters what `GenerateRequest` has. Replies before the last
    one have `text` BYTES[1], what is new; the last one has `text`, the whole, `finish_reason`
    BYTES[1], `prompt_tokens` and `completion_tokens` INT64[1].

    Args:
        stages: clients of the stages.
        tracer: of the process.
    """

    def __init__(self, stages: Stages, tracer: Tracer) -> None:
        self._stages = stages
        self._tracer = tracer
        self._detokenizers: dict[tuple[str, bytes], Detokenizer] = {}

    async def run(self, pipeline: Pipeline, request: Request) -> Reply:
        """Generate; a handler but for the pipeline.

        A generation whose replica goes away goes on at another one, after the tokens that came.

        Raises:
            MeshError: as a stage answered, or a parameter cannot be used.
        """
        stop, parameters = read_options(request.parameters)
        assert pipeline.before is not None and pipeline.after is not None
        infer = self._stages.infer
        lease = await infer.reserve(pipeline.model_bytes, request.deadline, request.client)
        try:
            reply = await call_stage(
                self._stages.preprocess, request, pipeline.before, request.payload
            )
            read = int(unpack(reply.context)["token_count"][0])
            name = f"{pipeline.config.model}{version_of(request.target)}"
            model = Target(name=name, parameters=parameters)
            generation = _Generation(request, self._detokenizer(pipeline.after), stop)
            began = time.monotonic()
            try:
                reason = await generation.run(infer, model, reply.payload, lease)
            finally:
                self._trace(request, generation.text, began)
            last = generation.last(reason, read)
            last.version = generation.version
            return last
        finally:
            lease.release()

    def _trace(self, request: Request, text: Text, began: float) -> None:
        """Make one span of all items that carried a generation's tokens among those of others."""
        if is_sampled(request.trace):
            write_span(
                self._tracer, "detokenize", child_of(request.trace), request.trace,
                started=began, ended=time.monotonic(),
                attributes={
                    "mesh.generation.items": text.items,
                    "mesh.generation.waited_s": round(text.waited_s, 6),
                },
            )  # fmt: skip

    def _detokenizer(self, target: Target) -> Detokenizer:
        key = target.name, target.parameters
        if key not in self._detokenizers:
            self._detokenizers[key] = Detokenizer(self._stages.postprocess, target)
        return self._detokenizers[key]


class _Generation:
    """One generation under way.

    Args:
        request: as it came to the gateway.
        detokenizer: of its pipeline.
        stop: texts that end it.
    """

    def __init__(self, request: Request, detokenizer: Detokenizer, stop: list[str]) -> None:
        self._request = request
        self._detokenizer = detokenizer
        self.text = Text(stop, self._tell, request.deadline)
        self._pieces: list[str] = []
        self._tokens: list[int] = []
        self.version = ""
        """Of the model; empty: its end was not awaited."""

    async def run(self, infer: StageClient, model: Target, payload: bytes, lease: Lease) -> str:
        """Generate to the end, and return why it is the end."""
        asked = asyncio.create_task(
            call_stage(
                infer, self._request, model, payload, lease=lease, more=self._take,
                resume=self._resume, caller=self._request.client,
            )
        )  # fmt: skip
        asked.add_done_callback(self._end)
        try:
            if await self.text.done:
                return STOP
            last = asked.result()
            self.version = last.version
            return bytes(unpack(last.payload)["finish_reason"][0]).decode()
        finally:
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)

    def last(self, reason: str, read: int) -> Reply:
        """Return the last reply.

        Args:
            reason: of the end.
            read: ids of the text that was given.
        """
        made = len(self._tokens)
        whole = "".join(self._pieces).encode()
        reply = Reply(pack({
            "text": bytes_tensor(whole), "finish_reason": bytes_tensor(reason.encode()),
            "prompt_tokens": np.array([read], np.int64),
            "completion_tokens": np.array([made], np.int64),
        }))  # fmt: skip
        reply.attributes = {
            "gen_ai.operation.name": "text_completion",
            "gen_ai.request.model": self._request.target,
            "gen_ai.response.finish_reasons": (reason,),
            "gen_ai.usage.input_tokens": read, "gen_ai.usage.output_tokens": made,
        }  # fmt: skip
        return reply

    def _resume(self) -> bytes:
        """Return what another replica has to know: the tokens that came."""
        RESUMED.inc()
        return pack({"token_ids": np.array(self._tokens, np.int64)})

    def _take(self, reply: Reply) -> None:
        token = int(unpack(reply.payload)["token_ids"][0])
        self._tokens.append(token)
        self.text.add(token)
        self._detokenizer.push(self.text)

    def _tell(self, piece: str) -> None:
        self._pieces.append(piece)
        if self._request.emit is not None:
            self._request.emit(Reply(pack({"text": bytes_tensor(piece.encode())}), more=True))

    def _end(self, asked: "asyncio.Task[Reply]") -> None:
        if asked.cancelled():
            return
        if (error := asked.exception()) is not None:
            self.text.fail(error if isinstance(error, MeshError) else RuntimeError(repr(error)))
            return
        self.text.end()
        self._detokenizer.push(self.text)


def read_options(text: bytes) -> tuple[list[str], bytes]:
    """Return the stop strings of a request's parameters, and the parameters for the model.

    A seed is chosen where there is none, so that a generation that goes on at another replica has
    the same one.

    Raises:
        InvalidInput: they are no JSON object, or no stop strings; the text says what is wrong.
    """
    try:
        options = json.loads(text or b"{}")
    except (ValueError, RecursionError) as err:
        raise InvalidInput(f"parameters are no JSON: {err}") from err
    if not isinstance(options, dict):
        raise InvalidInput(f"parameters {options!r:.80} came, wanted a JSON object")
    stop = options.pop("stop", [])
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list) or len(stop) > MOST_STOPS or not all(map(_is_stop, stop)):
        raise InvalidInput(
            f"stop {stop!r:.200} came, wanted up to {MOST_STOPS} texts of 1 to "
            f"{MOST_STOP_CHARACTERS} characters"
        )
    options.setdefault("seed", secrets.randbits(63))
    return stop, json.dumps(options, sort_keys=True, separators=(",", ":")).encode()


def _is_stop(word: Any) -> bool:
    if not isinstance(word, str) or not 1 <= len(word) <= MOST_STOP_CHARACTERS:
        return False
    return not any("\ud800" <= character <= "\udfff" for character in word)  # none has UTF-8
