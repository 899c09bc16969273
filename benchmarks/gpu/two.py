"""Texts in, labels out, with two GPUs that have a process of infer each, against one."""

from pathlib import Path
from typing import Any

from benchmarks.gpu.through import CLIENTS, GATEWAYS, TEXT, TOKENIZERS, Work
from benchmarks.inputs import texts
from infer_svc.backends.cuda import device


async def measure(root: Path) -> dict[str, Any]:
    """Return the figures; the processes around infer are the same in both runs."""
    words = Work(root, TEXT, "text", texts())
    bare = words.bare()
    rates = {
        count: await words.through(
            "mesh-stream-text", count * bare, clients=2 * CLIENTS, infer=count,
            preprocess=2 * TOKENIZERS, gateway=2 * GATEWAYS, postprocess=4,
        )
        for count in (1, 2)
    }  # fmt: skip
    return {
        "gpu": device(0).name, "bare_per_s": bare, "one": rates[1], "two": rates[2],
        "two_to_one": round(rates[2]["per_s"] / rates[1]["per_s"], 3),
    }  # fmt: skip
