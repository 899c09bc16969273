"""ONNX graphs: read, named, sorted, upgraded, and what is wrong with a file."""

import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from infer_svc.build import graph
from mesh.errors import EngineError, SettingsError
from tests.infer_svc.build.nets import perceptron
from tests.infer_svc.graphs import model, value


def two(path: Path) -> Path:
    """Write x → Relu → Abs → y, whose nodes have no names."""
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Abs", ["a"], ["y"])]
    path.write_bytes(model(nodes, [value("x")], [value("y")]))
    return path


def test_node_without_a_name_is_given_one(tmp_path: Path) -> None:
    loaded = graph.load(two(tmp_path / "m.onnx"))
    assert [node.name for node in loaded.graph.node] == ["Relu_0", "Abs_1"]
    loaded.graph.node[1].name = "Relu_0"
    loaded.graph.node[0].name = ""
    onnx.save(loaded, str(tmp_path / "m.onnx"))
    names = [node.name for node in graph.load(tmp_path / "m.onnx").graph.node]
    assert names == ["Relu_0_1", "Relu_0"]


@pytest.mark.parametrize("content", [None, b"", b"no model at all"], ids=["none", "empty", "text"])
def test_file_that_is_no_model_is_refused(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(SettingsError, match=r"m\.onnx is no ONNX model"):
        graph.load(tmp_path / "m.onnx")


def test_missing_package_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(SettingsError, match=r"pip install 'onnx>=1\.18'"):
        graph.load(Path("m.onnx"))


def test_serving_and_recipes_need_no_package_onnx() -> None:
    modules = "infer_svc.service, infer_svc.build.recipe, infer_svc.build.compare"
    program = f"import sys; sys.modules['onnx'] = None; import {modules}"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_what_another_package_raises_is_told_with_the_step() -> None:
    with pytest.raises(EngineError, match=r"^folding failed: KeyError: 'x'$"):
        with graph.foreign("folding"):
            raise KeyError("x")
    with pytest.raises(SettingsError, match=r"^ours$"):
        with graph.foreign("folding"):
            raise SettingsError("ours")


def test_sorting_brings_each_node_behind_what_it_reads(tmp_path: Path) -> None:
    loaded = graph.load(perceptron(tmp_path / "m.onnx"))
    nodes = list(loaded.graph.node)[::-1]
    del loaded.graph.node[:]
    loaded.graph.node.extend(nodes)
    graph.sort(loaded)
    assert [node.name for node in loaded.graph.node] == ["wide", "fold", "narrow"]


def test_sorting_minds_what_an_inner_graph_reads(tmp_path: Path) -> None:
    inner = [
        helper.make_graph([helper.make_node(kind, ["a"], ["z"])], kind, [], [value("z")])
        for kind in ("Relu", "Abs")
    ]
    choice = helper.make_node("If", ["yes"], ["y"], then_branch=inner[0], else_branch=inner[1])
    nodes = [choice, helper.make_node("Neg", ["x"], ["a"])]
    inputs = [value("x"), value("yes", "BOOL", ())]
    (tmp_path / "m.onnx").write_bytes(model(nodes, inputs, [value("y")]))
    loaded = graph.load(tmp_path / "m.onnx")
    graph.sort(loaded)
    assert [node.op_type for node in loaded.graph.node] == ["Neg", "If"]


def test_model_that_is_not_valid_is_not_written(tmp_path: Path) -> None:
    loaded = graph.load(two(tmp_path / "m.onnx"))
    loaded.graph.node[1].input[0] = "nowhere"
    with pytest.raises(EngineError, match=r"new\.onnx is not valid"):
        graph.save(loaded, tmp_path / "new.onnx")
    assert not (tmp_path / "new.onnx").exists()


def test_types_are_told_inside_and_outside(tmp_path: Path) -> None:
    found = graph.types(graph.load(perceptron(tmp_path / "m.onnx")))
    assert found == dict.fromkeys("xwabvy", TensorProto.FLOAT)


def test_opset_is_raised_and_never_lowered(tmp_path: Path) -> None:
    loaded = graph.load(perceptron(tmp_path / "m.onnx"))
    raised = graph.upgraded(loaded, 21)
    assert (graph.opset(loaded), graph.opset(raised), raised.ir_version) == (17, 21, 10)
    assert [node.name for node in raised.graph.node] == ["wide", "fold", "narrow"]
    assert graph.upgraded(raised, 17) is raised


def test_operator_that_cannot_be_raised_is_told(tmp_path: Path) -> None:
    loaded = graph.load(two(tmp_path / "m.onnx"))
    loaded.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(EngineError, match="raising opset 17 to 21 failed"):
        graph.upgraded(loaded, 21)


def test_patterns_find_names_once_each(tmp_path: Path) -> None:
    loaded = graph.load(perceptron(tmp_path / "m.onnx"))
    assert graph.matching(loaded, ["fold", "*o*", "wide"]) == ["fold", "narrow", "wide"]
    assert graph.matching(loaded, ["MatMul"]) == ["wide", "narrow"]
    loaded.graph.node[0].name = "a[0]"
    assert graph.matching(loaded, ["a[0]"]) == ["a[0]"]


def test_unknown_node_is_refused_with_the_nearest(tmp_path: Path) -> None:
    loaded = graph.load(perceptron(tmp_path / "m.onnx"))
    with pytest.raises(SettingsError, match=r"no node 'wid'.*\['wide'\] and 0 more"):
        graph.matching(loaded, ["wid"])
    with pytest.raises(SettingsError, match=r"no node 'other'.*\['wide', 'fold', 'narrow'\]"):
        graph.matching(loaded, ["other"])
