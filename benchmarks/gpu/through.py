"""Text and pictures in, classes out, through all services on one machine, against bare engines."""

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.bare import Bare
from benchmarks.gpu.networks import BERT, LENGTH, ROWS, Network, make_resnet, write
from benchmarks.inputs import pictures, texts, write_inputs
from benchmarks.peers.server import ROOT
from benchmarks.peers.systems import Place
from benchmarks.scaling import load
from infer_svc.backends.cuda import device
from infer_svc.backends.tensorrt import tensorrt_api
from infer_svc.build.builds import Builds
from infer_svc.config import read_config

SECONDS = 5.0
CONTEXTS = 4
LANES = 6
DECODERS = 10
"""Workers of preprocess for pictures."""
TOKENIZERS = 5
GATEWAYS = 6
CLIENTS = 8
"""Processes that ask; each has one connection, which stays with one of the gateway's workers."""
PIPELINES = {
    "language": f"""
task: classify_text
preprocess:
  op: tokenize
  parameters: {{folder: language/tokenizer, max_length: {LENGTH}, padding: [{LENGTH}]}}
model: language
postprocess: {{op: top_k, parameters: {{k: 1, input: y, dtype: FP16}}}}
""",
    "bench": """
task: classify
preprocess: {op: center_crop, parameters: {size: [224, 224], resize: 256}}
model: bench
postprocess: {op: top_k, parameters: {k: 5, input: y, dtype: FP16}}
""",
}


class Pixels(torch.nn.Module):  # type: ignore[misc]
    """ResNet-50 that takes pixels UINT8[-1,224,224,3]."""

    def __init__(self) -> None:
        super().__init__()
        self._network = make_resnet()

    def forward(self, pixels: Any) -> Any:
        wide = pixels.to(self._network.fc.weight.dtype)  # TensorRT does nothing else with UINT8
        return self._network(wide.permute(0, 3, 1, 2) / 255)


TEXT = replace(BERT, name="language")
PICTURES = Network(
    "bench", lambda: Pixels().eval(), {"pixels": np.uint8}, {"pixels": (224, 224, 3)}
)


async def measure(root: Path) -> dict[str, Any]:
    """Return the figures of texts and of pictures."""
    words = Work(root, TEXT, "text", texts())
    found: dict[str, Any] = {"gpu": device(0).name}
    bare = words.bare()
    found["text"] = {"bare_per_s": bare} | {
        name: await words.through(
            name, bare, preprocess=TOKENIZERS, gateway=GATEWAYS, postprocess=2
        )
        for name in ("mesh-text", "mesh-stream-text")
    }
    files = Work(root, PICTURES, "jpeg", pictures())
    bare = files.bare()
    found["pictures"] = {"bare_per_s": bare}
    for name in ("mesh", "mesh-stream"):
        one = await files.through(name, bare, preprocess=1)
        limit = min(bare, DECODERS * one["per_s"])
        found["pictures"] |= {
            f"{name}, one decoder": one,
            name: await files.through(name, limit, preprocess=DECODERS, postprocess=2),
        }
    return found


class Work:
    """One network as a pipeline."""

    def __init__(self, root: Path, network: Network, kind: str, payloads: list[bytes]) -> None:
        self._root = root
        self._network = network
        self._place = Place(root / f"through-{network.name}")
        folder = write(network, self._place.models, LANES)
        (folder / "pipeline.yaml").write_text(PIPELINES[network.name])
        if network is TEXT:
            shutil.copytree(ROOT / "models/language/tokenizer", folder / "tokenizer")
        write_inputs(self._place.inputs(kind), payloads)
        self._folder = folder

    def bare(self) -> float:
        """Return what the engine alone does; its kernels are compiled then, too."""
        builds = Builds(self._root / "engines")
        config = read_config(self._folder)
        engine = builds.engine_for(self._folder / "1/model.onnx", config, 0)
        builds.kernels_for(engine, 0, "eager", graphs=True)
        alone = Bare(tensorrt_api(), device(0), engine.plan, self._network.rows(ROWS), CONTEXTS)
        rate = alone.rate(CONTEXTS, SECONDS)
        alone.close()
        return round(rate)

    async def through(
        self, system: str, limit: float, clients: int = CLIENTS, **processes: int
    ) -> dict[str, Any]:
        """Return the rate through all services, to a limit, and the CPU time of each."""
        cache = {"INFER_ENGINE_CACHE": str(self._root / "engines")}
        run = await asyncio.to_thread(
            load, self._place, system, "shared", SECONDS, cache, clients, ["--gpu-each"],
            **processes,
        )  # fmt: skip
        made = {
            "processes": run.processes, "per_s": round(run.per_s),
            "to_limit": round(run.per_s / limit, 3),
            "cpu_ms": {name: round(1e3 * s, 3) for name, s in run.costs.services.items()},
            "client_cpu_ms": round(1e3 * run.costs.client, 3),
        }  # fmt: skip
        print(system, made, flush=True)
        return made
