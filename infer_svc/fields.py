"""What each field of Triton's ModelConfig means; `python -m infer_svc.fields` writes the table.

A field that would change answers and is not known is refused, one that only makes a model faster or
its surroundings different is left out with a warning.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from google.protobuf.message import Message
from tritonclient.grpc import model_config_pb2 as triton

Fate = Literal["honoured", "ignored", "refused"]
HONOURED: Fate = "honoured"
IGNORED: Fate = "ignored"
REFUSED: Fate = "refused"

FIELDS: dict[str, tuple[Fate, str]] = {
    "name": (HONOURED, "must be that of the folder; may be left out"),
    "platform": (HONOURED, "`onnxruntime_onnx`, `tensorrt_plan` or `ensemble`"),
    "backend": (HONOURED, "`onnxruntime` or `tensorrt`; left out, it is told by the platform"),
    "runtime": (IGNORED, "there is one runtime of each backend"),
    "version_policy": (HONOURED, "without it the newest version is served"),
    "max_batch_size": (HONOURED, "0: the model has no batch dimension"),
    "input": (HONOURED, "left out, inputs are those of the model file"),
    "input.format": (IGNORED, "tensors are as they come"),
    "input.reshape": (REFUSED, "give the model file the shape that clients send"),
    "input.is_shape_tensor": (REFUSED, "shape tensors are not taken"),
    "input.allow_ragged_batch": (REFUSED, "open sizes are padded to `length_buckets`"),
    "input.optional": (REFUSED, "every input must come"),
    "input.is_non_linear_format_io": (REFUSED, "tensors are row-major"),
    "output": (HONOURED, "left out, outputs are those of the model file"),
    "output.label_filename": (HONOURED, "labels of `classification`, one in a line"),
    "output.reshape": (REFUSED, "give the model file the shape that clients want"),
    "output.is_shape_tensor": (REFUSED, "shape tensors are not made"),
    "output.is_non_linear_format_io": (REFUSED, "tensors are row-major"),
    "batch_input": (REFUSED, "it belongs to ragged batches"),
    "batch_output": (REFUSED, "it belongs to ragged batches"),
    "optimization": (HONOURED, ""),
    "optimization.graph": (IGNORED, "graphs are optimized as far as the runtime can"),
    "optimization.priority": (IGNORED, "priority is that of requests"),
    "optimization.cuda": (IGNORED, "`INFER_CUDA_GRAPHS`: each shape has a graph where it can be"),
    "optimization.execution_accelerators": (HONOURED, "`tensorrt` for the GPU, see Engines"),
    "optimization.input_pinned_memory": (IGNORED, "copies are from pinned memory"),
    "optimization.output_pinned_memory": (IGNORED, "copies are to pinned memory"),
    "optimization.gather_kernel_buffer_threshold": (IGNORED, "rows are gathered by the copies"),
    "optimization.eager_batching": (IGNORED, "a batch is formed when a lane is free"),
    "dynamic_batching": (HONOURED, "without it each request runs alone"),
    "dynamic_batching.preserve_ordering": (IGNORED, "answers of a stream come in its order"),
    "sequence_batching": (REFUSED, "requests of a sequence are not kept together"),
    "ensemble_scheduling": (HONOURED, "steps of models of the same repository"),
    "instance_group": (HONOURED, "how many batches run at a time, and on which GPUs"),
    "instance_group.name": (IGNORED, "lanes are named after the model"),
    "instance_group.rate_limiter": (IGNORED, "lanes of all models run side by side"),
    "instance_group.secondary_devices": (IGNORED, "a lane has one device"),
    "instance_group.profile": (IGNORED, "the profile is chosen by the batch's shape"),
    "instance_group.passive": (REFUSED, "every instance takes requests"),
    "instance_group.host_policy": (IGNORED, "who starts the process pins it to cores"),
    "default_model_filename": (HONOURED, ""),
    "cc_model_filenames": (HONOURED, "plans by compute capability, as `9.0`"),
    "metric_tags": (IGNORED, "metrics have the labels model and version"),
    "parameters": (HONOURED, "`length_buckets`, `plugins`, `slots`; others are not looked at"),
    "model_warmup": (HONOURED, "a model serves after it"),
    "model_operations": (IGNORED, "TensorRT's plugins are named by the parameter `plugins`"),
    "model_transaction_policy": (HONOURED, "`decoupled`: the model generates text"),
    "model_repository_agents": (REFUSED, "a checksum is a file `SHA256SUMS` beside the model"),
    "response_cache": (IGNORED, "`cache_mbytes` in a `pipeline.yaml` keeps answers"),
    "model_metrics": (IGNORED, "buckets of histograms are fixed"),
}  # fmt: skip
"""By path; of a field that is not here the nearest one around it holds."""
TABLE = Path(__file__).parent / "CONFIG.md"


def fate_of(path: str) -> tuple[Fate, str]:
    """Return what becomes of a field, and why."""
    while path not in FIELDS:
        path = path.rpartition(".")[0]
    return FIELDS[path]


def demand_known(message: triton.ModelConfig) -> None:
    """Compare a config with what can be done.

    Raises:
        ValueError: it has a field that would change answers; the text names it.
    """
    for path in _set(message):
        fate, why = fate_of(path)
        if fate == REFUSED:
            raise ValueError(f"{path} came, which cannot be done: {why}; leave it out")


def ignored(message: triton.ModelConfig) -> dict[str, str]:
    """Return the fields of a config that are not looked at, and why."""
    found = {path: fate_of(path) for path in _set(message)}
    return {path: why for path, (fate, why) in found.items() if fate == IGNORED}


def table() -> str:
    """Return the table of all fields, in Markdown."""
    lines = [
        "# config.pbtxt, field by field", "",
        "What a field of Triton's `ModelConfig` means; what is not in the table is as the field",
        "around it. *Ignored* fields are left out with a warning in the log, *refused* ones are an",
        "error, as answers would be others.", "",
        "| field | | |", "|---|---|---|",
        *(f"| `{path}` | {fate} | {why} |" for path, (fate, why) in FIELDS.items()), "",
    ]  # fmt: skip
    return "\n".join(lines)


def _set(message: Message, prefix: str = "") -> Iterator[str]:
    """Yield the paths of all fields that are set, each before those in it."""
    for field, value in message.ListFields():
        path = f"{prefix}{field.name}"
        yield path
        kind = field.message_type
        if kind is None or kind.GetOptions().map_entry or path == "ensemble_scheduling":
            continue
        inner: list[Any] = list(value) if field.is_repeated else [value]
        for one in inner:
            yield from _set(one, f"{path}.")


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
    sys.stdout.write(f"{TABLE}\n")
