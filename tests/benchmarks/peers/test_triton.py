"""Triton's ensembles: configs that its own message parses, steps that fit each other."""

import ast
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from benchmarks.peers.triton import (
    DOCUMENTED_DELAY_US,
    MAX_BATCH,
    MODELS,
    Step,
    documented_steps,
    own_steps,
    server_command,
    text_steps,
    write_ensemble,
)  # fmt: skip

STEPS = {
    "documented": documented_steps(Path("/m/floats.onnx")),
    "two": documented_steps(Path("/m/floats.onnx"), decoders=2),
    "own": own_steps(Path("/m/model.onnx")),
    "text": text_steps(Path("/m/language.onnx"), Path("/m/tokenizer")),
}
EACH = pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS.keys())


def parsed(path: Path) -> model_config_pb2.ModelConfig:
    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


def written(root: Path, steps: tuple[Step, ...], delay_us: int | None = None) -> Path:
    return write_ensemble(root, "bench", steps, delay_us, [Path("/here"), Path("/packages")])


@EACH
def test_every_config_is_one_that_triton_parses(steps: tuple[Step, ...], tmp_path: Path) -> None:
    root = written(tmp_path, steps)
    for step in steps:
        config = parsed(root / step.source / "config.pbtxt")
        assert (config.name, config.backend) == (step.source, "python")
        assert config.max_batch_size == MAX_BATCH
        assert [tensor.name for tensor in config.input] == [t.name for t in step.inputs]
        assert [tuple(tensor.dims) for tensor in config.output] == [t.dims for t in step.outputs]
        assert config.instance_group[0].count == step.instances
        assert config.HasField("dynamic_batching")
        assert {k: v.string_value for k, v in config.parameters.items()} == dict(step.parameters)


@EACH
def test_every_step_takes_what_came_before_it(steps: tuple[Step, ...], tmp_path: Path) -> None:
    config = parsed(written(tmp_path, steps) / "bench/config.pbtxt")
    assert config.platform == "ensemble"
    known = {tensor.name for tensor in config.input}
    for chained, step in zip(config.ensemble_scheduling.step, steps, strict=True):
        assert chained.model_name == step.source
        assert set(chained.input_map) == {tensor.name for tensor in step.inputs}
        assert set(chained.input_map.values()) <= known
        assert set(chained.output_map) == {tensor.name for tensor in step.outputs}
        known |= set(chained.output_map.values())
    assert {"classes", "scores"} == {tensor.name for tensor in config.output} <= known


@pytest.mark.parametrize("delay_us", [None, DOCUMENTED_DELAY_US], ids=str)
def test_queue_delay_is_in_every_step_or_in_none(delay_us: int | None, tmp_path: Path) -> None:
    root = written(tmp_path, STEPS["documented"], delay_us)
    for step in STEPS["documented"]:
        batching = parsed(root / step.source / "config.pbtxt").dynamic_batching
        assert batching.max_queue_delay_microseconds == (delay_us or 0)


def test_step_finds_its_imports_where_it_was_told(tmp_path: Path) -> None:
    source = (written(tmp_path, STEPS["own"]) / "run/1/model.py").read_text()
    assert source.startswith("import sys\n\nsys.path[:0] = ['/here', '/packages']\n")


@pytest.mark.parametrize("path", sorted(MODELS.glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_every_model_has_the_class_that_the_backend_looks_for(path: Path) -> None:
    tree = ast.parse(path.read_text())
    (found,) = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    methods = {node.name for node in found.body if isinstance(node, ast.FunctionDef)}
    assert found.name == "TritonPythonModel"
    assert {"initialize", "execute"} <= methods
    assert any(step.source == path.stem for steps in STEPS.values() for step in steps)


def test_server_is_that_of_the_wheel_and_stays_on_this_machine(tmp_path: Path) -> None:
    command = server_command(Path("/site"), tmp_path, 123)
    assert command[0] == "/site/pytriton/tritonserver/bin/tritonserver"
    assert {"--grpc-address=127.0.0.1", "--grpc-port=123", "--allow-http=false"} < set(command)
