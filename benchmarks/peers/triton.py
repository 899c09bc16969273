"""Triton's ensembles of three Python models: their repositories, and the server's command.

The server is the one inside the wheel of nvidia-pytriton. That wheel has the Python backend and no
ONNX Runtime backend, so the model step is a Python model too, which runs batches in ONNX Runtime
with one thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MODELS = Path(__file__).parent / "triton_models"
MAX_BATCH = 32
DOCUMENTED_DELAY_US = 100
"""The figure of Triton's user guide, "Delayed Batching" of docs/user_guide/batcher.md."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of a config, without its batch dimension."""

    name: str
    dtype: str
    dims: tuple[int, ...]

    def text(self) -> str:
        """Return it as a field of config.pbtxt."""
        dims = ", ".join(map(str, self.dims))
        return f'{{ name: "{self.name}" data_type: TYPE_{self.dtype} dims: [ {dims} ] }}'


@dataclass(frozen=True)
class Step:
    """One Python model of an ensemble."""

    source: str
    """Its file in `triton_models/`."""
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    parameters: tuple[tuple[str, str], ...] = ()
    instances: int = 1


INPUT = Tensor("input", "STRING", (1,))
LOGITS = Tensor("logits", "FP32", (-1,))
RANKED = (Tensor("classes", "INT32", (-1,)), Tensor("scores", "FP32", (-1,)))
FLOATS = Tensor("x0", "FP32", (3, 224, 224))
PIXELS = Tensor("pixels", "UINT8", (224, 224, 3))
TOKENS = (Tensor("input_ids", "INT64", (-1,)), Tensor("attention_mask", "INT64", (-1,)))


def documented_steps(model: Path, decoders: int = 1) -> tuple[Step, ...]:
    """Return the steps JPEG to top-5 as documentation writes them; the model takes floats.

    Args:
        decoders: instances that preprocess; the documentation's configs have one.
    """
    return (
        Step("prepare", (INPUT,), (FLOATS,), instances=decoders),
        Step("run", (FLOATS,), (LOGITS,), (("path", str(model)),)),
        Step("rank", (LOGITS,), RANKED, (("k", "5"),)),
    )


def own_steps(model: Path) -> tuple[Step, ...]:
    """Return them with the mesh's own ops; as many instances decode as the mesh has replicas."""
    return (
        Step("prepare_own", (INPUT,), (PIXELS,), instances=2),
        Step("run", (PIXELS,), (LOGITS,), (("path", str(model)),)),
        Step("rank_own", (LOGITS,), RANKED),
    )


def text_steps(model: Path, tokenizer: Path) -> tuple[Step, ...]:
    """Return the steps text to language as documentation writes them."""
    return (
        Step("tokenize", (INPUT,), TOKENS, (("tokenizer", str(tokenizer)),)),
        Step("run", TOKENS, (LOGITS,), (("path", str(model)),)),
        Step("rank", (LOGITS,), RANKED, (("k", "3"),)),
    )


def write_ensemble(
    root: Path, name: str, steps: Sequence[Step], delay_us: int | None, paths: Sequence[Path]
) -> Path:
    """Write a repository with the ensemble and its steps; return it.

    Args:
        delay_us: how long each step waits for a larger batch; None: not at all.
        paths: where the steps find what they import: Triton's stub ignores PYTHONPATH.
    """
    head = f"import sys\n\nsys.path[:0] = {[str(path) for path in paths]}\n\n"
    for step in steps:
        folder = root / step.source
        (folder / "1").mkdir(parents=True)
        source = (MODELS / f"{step.source}.py").read_text()
        (folder / "1/model.py").write_text(head + source)
        (folder / "config.pbtxt").write_text(step_config(step, delay_us))
    (root / name / "1").mkdir(parents=True)
    (root / name / "config.pbtxt").write_text(ensemble_config(name, steps))
    return root


def step_config(step: Step, delay_us: int | None) -> str:
    """Return the config.pbtxt of a step."""
    delay = "" if delay_us is None else f"max_queue_delay_microseconds: {delay_us}"
    lines = [
        f'name: "{step.source}"',
        'backend: "python"',
        *_tensors(step.inputs, step.outputs),
        f"dynamic_batching {{ {delay} }}",
        f"instance_group [ {{ count: {step.instances} kind: KIND_CPU }} ]",
    ]
    lines += [
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
        for key, value in step.parameters
    ]
    return "\n".join(lines) + "\n"


def ensemble_config(name: str, steps: Sequence[Step]) -> str:
    """Return the config.pbtxt of the ensemble: each tensor goes on under its own name."""
    chain = [
        f'{{ model_name: "{step.source}" model_version: -1 '
        + " ".join(_map("input_map", tensor) for tensor in step.inputs)
        + " "
        + " ".join(_map("output_map", tensor) for tensor in step.outputs)
        + " }"
        for step in steps
    ]
    lines = [
        f'name: "{name}"',
        'platform: "ensemble"',
        *_tensors(steps[0].inputs, steps[-1].outputs),
        f"ensemble_scheduling {{ step [ {', '.join(chain)} ] }}",
    ]
    return "\n".join(lines) + "\n"


def server_command(site_packages: Path, repository: Path, port: int) -> list[str]:
    """Return the command of the server inside the wheel that is installed there."""
    server = site_packages / "pytriton/tritonserver"
    return [
        str(server / "bin/tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={server / 'backends'}",
        "--grpc-address=127.0.0.1", f"--grpc-port={port}", "--allow-http=false",
        "--allow-metrics=false", "--exit-timeout-secs=5",
    ]  # fmt: skip


def _tensors(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> list[str]:
    return [
        f"max_batch_size: {MAX_BATCH}",
        f"input [ {', '.join(tensor.text() for tensor in inputs)} ]",
        f"output [ {', '.join(tensor.text() for tensor in outputs)} ]",
    ]


def _map(field: str, tensor: Tensor) -> str:
    return f'{field} {{ key: "{tensor.name}" value: "{tensor.name}" }}'
