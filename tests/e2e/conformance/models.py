"""The models that both servers have, with one config.pbtxt each."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.infer_svc import graphs

SOURCE = Path(__file__).parent / "twin.py"
ROOT = Path(__file__).parent.parent.parent.parent
DTYPES = (
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16",
    "FP32", "FP64", "BYTES", "BF16",
)  # fmt: skip
SIDE = 448
"""Of a product of matrices that takes about a millisecond on one core."""
LABELS = "labels.txt"
BATCHES = "dynamic_batching { }"
ONE_LANE = "instance_group [ { count: 1 kind: KIND_CPU } ]"
QUEUE = """dynamic_batching {
  priority_levels: 2 default_priority_level: 2
  default_queue_policy {
    allow_timeout_override: true default_timeout_microseconds: 60000000 max_queue_size: 1
  }
  priority_queue_policy { key: 1 value { allow_timeout_override: true max_queue_size: 1 } }
}"""
DATES = """max_batch_size: 0
input [ { name: "text" data_type: TYPE_STRING dims: [ 1 ] } ]
output [
  { name: "text" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "finish_reason" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "prompt_tokens" data_type: TYPE_INT64 dims: [ 1 ] },
  { name: "completion_tokens" data_type: TYPE_INT64 dims: [ 1 ] }
]
model_transaction_policy { decoupled: true }"""
"""The twin of a pipeline that generates."""


@dataclass(frozen=True)
class Model:
    """A model of both servers."""

    name: str
    config: str
    """Without a backend."""
    serialized: bytes
    """ONNX, of version 1."""
    versions: tuple[tuple[str, bytes], ...] = ()
    """Others."""
    labels: tuple[str, ...] = ()
    """Of its classes."""


def models() -> list[Model]:
    """Return those that run by themselves."""
    floats = _config(["x FP32 4"], ["y FP32 4"])
    kinds = ("half FP16 2", "number INT64 2", "flag BOOL 2", "text BYTES 2")
    labelled = _config(["x FP32 4"], ["y FP32 4 label_filename"])
    return [
        Model("add", _config(["left FP32 4", "right FP32 4"], ["sum FP32 4"]), graphs.addition()),
        *(
            Model(
                f"same_{dtype.lower()}",
                _config([f"x {dtype} -1"], [f"y {dtype} -1"]),
                graphs.identity(dtype, ("n", "m")),
            )
            for dtype in DTYPES
        ),
        Model(
            "kinds",
            _config(kinds, [kind.replace(" ", "_out ", 1) for kind in kinds]),
            graphs.many_kinds(),
        ),
        Model("single", _config(["x FP32 3"], ["y FP32 3"], rows=0), graphs.identity(dims=(3,))),
        Model(
            "loose", _config(["x FP32 -1,2"], ["y FP32 -1,2"], rows=0),
            graphs.identity(dims=("n", 2)),
        ),
        Model(
            "versions", f"{floats}\nversion_policy {{ all {{ }} }}", shift(1), (("3", shift(3)),)
        ),
        Model("lookup", _config(["x INT64 1"], ["y FP32 1"]), graphs.lookup()),
        Model("labelled", labelled, graphs.identity(), labels=("north", "east", "south", "west")),
        Model("slow", _config(["x INT64 1"], ["y INT64 1"], 1, QUEUE), slow()),
        Model("spare", floats, graphs.identity()),
    ]  # fmt: skip


ENSEMBLES = {
    "chain": (("add", "left", "right", "sum"), ("same_fp32", "x", "y")),
    "piped": (("add", "left", "right", "sum"),),
}
"""Steps of each: its model, inputs and output. `piped` is a pipeline of the mesh."""


def shift(by: int) -> bytes:
    """x → x + by."""
    constant = helper.make_tensor("by", TensorProto.FLOAT, [], [float(by)])
    node = helper.make_node("Add", ["x", "by"], ["y"])
    return graphs.model([node], [graphs.value("x")], [graphs.value("y")], [constant])


def slow() -> bytes:
    """x → x, after about as many milliseconds, or a few times as many."""
    state = helper.make_tensor_value_info("state", TensorProto.FLOAT, [SIDE, SIDE])
    after = helper.make_tensor_value_info("after", TensorProto.FLOAT, [SIDE, SIDE])
    go = helper.make_tensor_value_info("go", TensorProto.BOOL, [])
    going = helper.make_tensor_value_info("going", TensorProto.BOOL, [])
    turn = helper.make_tensor_value_info("turn", TensorProto.INT64, [])
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "unit"], ["after"]),
            helper.make_node("Identity", ["go"], ["going"]),
        ],
        "body", [turn, go, state], [going, after],
    )  # fmt: skip
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["turns"], keepdims=0),
        helper.make_node("Loop", ["turns", "", "unit"], ["last"], body=body),
        helper.make_node("ReduceMax", ["last"], ["one"], keepdims=0),
        helper.make_node("Cast", ["one"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Mul", ["x", "whole"], ["y"]),
    ]
    unit = numpy_helper.from_array(np.eye(SIDE, dtype=np.float32), "unit")
    dims = ("n", 1)
    made = graphs.model(
        nodes, [graphs.value("x", "INT64", dims)], [graphs.value("y", "INT64", dims)], [unit]
    )
    onnx.checker.check_model(made)
    return made


def write_mesh(root: Path) -> None:
    """Write the mesh's repository."""
    for model in models():
        config = f'backend: "onnxruntime"\n{model.config}\n'
        folder = graphs.write_model(root, model.name, model.serialized, config)
        for version, serialized in model.versions:
            (folder / version).mkdir()
            (folder / version / "model.onnx").write_bytes(serialized)
        _write_labels(model, folder)
    (root / "chain/1").mkdir(parents=True)
    (root / "chain/config.pbtxt").write_text(_ensemble("chain"))
    (root / "piped").mkdir()
    (root / "piped/pipeline.yaml").write_text("model: add\n")
    shutil.copytree(ROOT / "models/dates", root / "dates")


def write_triton(root: Path, site_packages: Path) -> None:
    """Write Triton's repository; its stub looks for packages only where a model says."""
    head = f"import sys\n\nsys.path.insert(0, {str(site_packages)!r})\n"
    source = head + SOURCE.read_text()
    dates = Model("dates", DATES, b"")
    for model in (*models(), dates):
        folder = root / model.name
        for version in ("1", *(number for number, _ in model.versions)):
            (folder / version).mkdir(parents=True)
            (folder / version / "model.py").write_text(source)
        (folder / "config.pbtxt").write_text(f'backend: "python"\n{model.config}\n')
        _write_labels(model, folder)
    for name in ENSEMBLES:
        (root / name / "1").mkdir(parents=True)
        (root / name / "config.pbtxt").write_text(_ensemble(name))


def write_late(repository: Path) -> None:
    """Copy a model of a repository to the name `late`."""
    shutil.copytree(repository / "spare", repository / "late")


def _write_labels(model: Model, folder: Path) -> None:
    if model.labels:
        (folder / LABELS).write_text("\n".join(model.labels) + "\n")


def _config(
    inputs: Sequence[str], outputs: Sequence[str], rows: int = 8, batching: str = BATCHES
) -> str:
    lines = [f"max_batch_size: {rows}", f"input [ {', '.join(map(_tensor, inputs))} ]"]
    lines.append(f"output [ {', '.join(map(_tensor, outputs))} ]")
    return "\n".join([*lines, *([batching] if rows else []), ONE_LANE])


def _tensor(text: str) -> str:
    name, dtype, dims, *more = text.split()
    kind = dtype.replace("BYTES", "STRING")
    labels = f' {more[0]}: "{LABELS}"' if more else ""
    return f'{{ name: "{name}" data_type: TYPE_{kind} dims: [ {dims} ]{labels} }}'


def _ensemble(name: str) -> str:
    steps, last = [], ""
    for model, *inputs, output in ENSEMBLES[name]:
        maps = [f'input_map {{ key: "{one}" value: "{last or one}" }}' for one in inputs]
        last = output if (model, *inputs, output) == ENSEMBLES[name][-1] else f"{name}_{output}"
        maps.append(f'output_map {{ key: "{output}" value: "{last}" }}')
        steps.append(f'{{ model_name: "{model}" model_version: -1 {" ".join(maps)} }}')
    lines = [
        'platform: "ensemble"',
        "max_batch_size: 8",
        f"input [ {_tensor('left FP32 4')}, {_tensor('right FP32 4')} ]",
        f"output [ {_tensor(f'{last} FP32 4')} ]",
        f"ensemble_scheduling {{ step [ {', '.join(steps)} ] }}",
    ]
    return "\n".join(lines) + "\n"
