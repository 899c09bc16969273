"""A small CNN with seeded random weights: about 0.2 ms on one CPU core, for speed only."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CONFIG = """
max_batch_size: 32
dynamic_batching { }
"""
PIPELINE = """
task: classify
preprocess: {op: center_crop, parameters: {size: [224, 224], resize: 256}}
model: bench
postprocess: {op: top_k, parameters: {k: 5}}
"""


def write_repository(root: Path, *, heavy: bool = False) -> Path:
    """Write a repository with the pipeline `bench`; return the path of its model file.

    Args:
        root: its folder.
        heavy: as for `bench_model`.
    """
    folder = root / "bench"
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(CONFIG)
    (folder / "pipeline.yaml").write_text(PIPELINE)
    path = folder / "1/model.onnx"
    onnx.save(bench_model(heavy=heavy), path)
    return path


def bench_model(*, normalizes: bool = True, heavy: bool = False) -> onnx.ModelProto:
    """Return the model, with logits FP32[-1,1000].

    Args:
        normalizes: whether the graph takes pixels UINT8[-1,224,224,3] and scales them itself;
            False: it takes x0 FP32[-1,3,224,224], as exported models mostly do.
        heavy: whether it takes about 10 ms instead, so that the work is the model's.
    """
    random = np.random.default_rng(0)
    width, stride = (512, 2) if heavy else (8, 8)
    weights = {
        "w1": random.normal(0, 0.1, (width, 3, 7, 7)),
        "w2": random.normal(0, 0.1, (16, width, 3, 3)),
        "w3": random.normal(0, 0.1, (1000, 16)), "scale": np.array(1 / 255),
    }  # fmt: skip
    nodes = [
        helper.make_node("Transpose", ["pixels"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["nchw"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["x0"]),
        helper.make_node("Conv", ["x0", "w1"], ["x1"], strides=[stride, stride]),
        helper.make_node("Relu", ["x1"], ["x2"]),
        helper.make_node("Conv", ["x2", "w2"], ["x3"], strides=[2, 2]),
        helper.make_node("Relu", ["x3"], ["x4"]),
        helper.make_node("GlobalAveragePool", ["x4"], ["x5"]),
        helper.make_node("Flatten", ["x5"], ["x6"]),
        helper.make_node("Gemm", ["x6", "w3"], ["logits"], transB=1),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", 224, 224, 3])
    floats = helper.make_tensor_value_info("x0", TensorProto.FLOAT, ["n", 3, 224, 224])
    if not normalizes:
        nodes = nodes[3:]
        del weights["scale"]
    graph = helper.make_graph(
        nodes, "bench", [pixels if normalizes else floats],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 1000])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
