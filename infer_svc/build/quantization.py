"""INT8: explicit Q/DQ nodes, with ranges from entropy calibration.

The settings are those that TensorRT builds: symmetric, signed, weights per channel, biases left
alone. Only inputs of an operator are quantized: behind an output, a pair of Q/DQ would stand
between a convolution and the activation that TensorRT fuses with it.
"""

import contextlib
import io
import logging
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from infer_svc.build import graph
from mesh.errors import SettingsError
from mesh.tensor import Tensors

FLAVOURS: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("MatMul", "Gemm", "Conv"),
    "tensorrt": ("MatMul", "Gemm", "Conv"),
    "tensorrt_rtx": ("MatMul", "Gemm"),
}
"""Operators that each flavour runs in INT8."""
OPSET = 21
"""Below 19, Q/DQ among FP16 is no valid model."""


def quantizable(model: Any, flavour: str, keep: Collection[str]) -> list[str]:
    """Return the names of the nodes that will be quantized.

    Args:
        model: in FP32.
        flavour: one of `FLAVOURS`.
        keep: names of nodes that stay in FP32.

    Raises:
        SettingsError: the flavour is unknown or cannot run this model in INT8, or there is nothing
            to quantize.
    """
    if flavour not in FLAVOURS:
        raise SettingsError(f"flavour {flavour!r} came, wanted one of {sorted(FLAVOURS)}")
    nodes = [node for node in model.graph.node if node.name not in keep]
    wanted = [node for node in nodes if node.op_type in FLAVOURS["tensorrt"]]
    refused = [node for node in wanted if node.op_type not in FLAVOURS[flavour]]
    if refused:
        raise SettingsError(
            f"{flavour} cannot run the operator {refused[0].op_type} in INT8, and the model has "
            f"{len(refused)} such nodes ({', '.join(node.name for node in refused[:3])}, …); build "
            f"it with precision fp16, or keep those nodes in FP32 "
            f"(keep '{refused[0].op_type}') and quantize {' and '.join(FLAVOURS[flavour])} only"
        )
    if not wanted:
        raise SettingsError(
            f"the model has no {', '.join(FLAVOURS[flavour])} to quantize; build it with precision "
            "fp16"
        )
    return [node.name for node in wanted]


def prepared(model: Any) -> Any:
    """Return a model ready to be quantized: of opset 21, constants as weights, shapes inferred.

    Raises:
        EngineError: an operator cannot be brought to that opset.
    """
    onnx = graph.package()
    made = graph.upgraded(model, OPSET)
    _lift_constants(made.graph)
    with graph.foreign("shape inference"):
        made = onnx.shape_inference.infer_shapes(made)
    graph.package("onnxruntime.quantization.quant_utils").add_pre_process_metadata(made)
    return made


def calibrate(source: Path, target: Path, batches: Iterable[Tensors], nodes: Sequence[str]) -> None:
    """Write the range of every tensor around the nodes to be quantized.

    Args:
        source: a model as `prepared` makes it.
        target: JSON in ONNX Runtime's form, which `quantize` reads.
        batches: representative data; a few dozen rows at least.
        nodes: names of those to be quantized.

    Raises:
        EngineError: the model does not run on the data.
    """
    kinds = {node.op_type for node in graph.load(source).graph.node if node.name in set(nodes)}
    calibration = graph.package("onnxruntime.quantization.calibrate")
    with tempfile.TemporaryDirectory() as folder, _quiet(), graph.foreign("calibration"):
        calibrator = calibration.create_calibrator(
            source,
            sorted(kinds),
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=calibration.CalibrationMethod.Entropy,
        )
        for batch in batches:  # one by one: their shapes may differ, and not all need fit in memory
            calibrator.collect_data(_Once(batch))
        calibration.save_tensors_data(calibrator.compute_data(), target)


def quantize(source: Path, target: Path, ranges: Path, nodes: Sequence[str]) -> None:
    """Write a model with Q/DQ nodes before the named ones.

    Args:
        source: a model as `prepared` makes it.
        target: the new one, its other nodes in FP32.
        ranges: as `calibrate` wrote them.
        nodes: names of those to be quantized.

    Raises:
        EngineError: the model cannot be quantized.
    """
    ort = graph.package("onnxruntime.quantization")
    kinds = sorted(
        {node.op_type for node in graph.load(source).graph.node if node.name in set(nodes)}
    )
    with _quiet(), graph.foreign("quantization"):
        ort.quantize_static(
            str(source),
            str(target),
            None,
            quant_format=ort.QuantFormat.QDQ,
            calibrate_method=ort.CalibrationMethod.Entropy,
            activation_type=ort.QuantType.QInt8,
            weight_type=ort.QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=kinds,
            nodes_to_quantize=list(nodes),
            calibration_cache_path=ranges,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "OpTypesToExcludeOutputQuantization": kinds,
            },
        )


def _lift_constants(inside: Any) -> None:
    """Make weights of the constants of a graph: only weights are quantized ahead."""
    lifted = [
        node
        for node in inside.node
        if node.op_type == "Constant" and [one.name for one in node.attribute] == ["value"]
    ]
    names = {node.output[0] for node in lifted}
    for node in lifted:
        inside.initializer.append(node.attribute[0].t)
        inside.initializer[-1].name = node.output[0]
        inside.node.remove(node)
    # Of a weight, the type here would be believed rather than its own.
    for value in [value for value in inside.value_info if value.name in names]:
        inside.value_info.remove(value)


class _Once:
    """A reader of one batch, as ONNX Runtime's calibrators want it."""

    def __init__(self, batch: Tensors) -> None:
        self._batch: Tensors | None = batch

    def get_next(self) -> Tensors | None:
        batch, self._batch = self._batch, None
        return batch


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what ONNX Runtime prints and logs on the way."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
