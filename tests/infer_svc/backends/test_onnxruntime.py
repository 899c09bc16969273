import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from infer_svc.backends import BACKENDS
from infer_svc.backends.batch import NO_TIMES
from infer_svc.backends.onnxruntime import OnnxRuntimeEngine, load_onnxruntime
from infer_svc.faults import Fault, Faults
from mesh.errors import EngineError, SettingsError
from mesh.tensor import NUMPY_DTYPES, TensorSpec, bytes_tensor
from tests.infer_svc import graphs


def load(tmp_path: Path, serialized: bytes, threads: int = 1) -> OnnxRuntimeEngine:
    path = tmp_path / "model.onnx"
    path.write_bytes(serialized)
    return load_onnxruntime(path, threads)


def test_backend_is_in_the_table_by_its_triton_name() -> None:
    assert set(BACKENDS) == {"onnxruntime", "tensorrt"}


def test_specs_are_those_of_the_file(tmp_path: Path) -> None:
    engine = load(tmp_path, graphs.addition())
    assert engine.inputs == (
        TensorSpec("left", "FP32", (-1, 4)),
        TensorSpec("right", "FP32", (-1, 4)),
    )
    assert engine.outputs == (TensorSpec("sum", "FP32", (-1, 4)),)


def test_each_free_size_is_any_size(tmp_path: Path) -> None:
    engine = load(tmp_path, graphs.identity(dims=("n", 3, "width", 1)))
    assert engine.inputs[0].shape == (-1, 3, -1, 1)


def test_outputs_come_by_name(tmp_path: Path) -> None:
    context = load(tmp_path, graphs.addition()).open()
    rows = np.arange(8, dtype=np.float32).reshape(2, 4)
    outputs = context.run([{"right": rows, "left": rows * 10}])
    assert outputs.keys() == {"sum"}
    np.testing.assert_array_equal(outputs["sum"], rows * 11)


@pytest.mark.parametrize("dtype", sorted(NUMPY_DTYPES.keys() - {"BYTES"}))
def test_numbers_of_each_dtype_pass_unchanged(tmp_path: Path, dtype: str) -> None:
    engine = load(tmp_path, graphs.identity(dtype))
    assert engine.inputs == (TensorSpec("x", dtype, (-1, 4)),)
    given = np.arange(8).reshape(2, 4).astype(NUMPY_DTYPES[dtype])
    given.flags.writeable = False  # as those that come from the wire
    outputs = engine.open().run([{"x": given}])
    assert outputs["y"].dtype == NUMPY_DTYPES[dtype]
    np.testing.assert_array_equal(outputs["y"], given)


@pytest.mark.parametrize(
    "elements",
    [
        (b"plain", b"", "größer ≥ 𝄞".encode(), b"b'quoted'"),
        (b"inner\x00zero", b"last\x00", b"\n", b"\\x00"),
    ],
    ids=["text", "zeros"],
)
def test_strings_pass_as_bytes_unchanged(tmp_path: Path, elements: tuple[bytes, ...]) -> None:
    engine = load(tmp_path, graphs.identity("BYTES"))
    assert engine.inputs == (TensorSpec("x", "BYTES", (-1, 4)),)
    outputs = engine.open().run([{"x": bytes_tensor(*elements).reshape(1, 4)}])
    assert outputs["y"].shape == (1, 4)
    assert outputs["y"].ravel().tolist() == list(elements)


def test_strings_that_are_no_utf8_are_an_engine_error(tmp_path: Path) -> None:
    engine = load(tmp_path, graphs.identity("BYTES", ("n",)))
    with pytest.raises(EngineError, match="utf-8"):
        engine.open().run([{"x": bytes_tensor(b"\xff")}])


def test_empty_batch_of_strings_stays_empty(tmp_path: Path) -> None:
    engine = load(tmp_path, graphs.identity("BYTES"))
    assert engine.open().run([{"x": np.empty((0, 4), object)}])["y"].shape == (0, 4)


def test_failure_at_run_time_is_an_engine_error_and_the_next_run_works(tmp_path: Path) -> None:
    context = load(tmp_path, graphs.lookup()).open()
    with pytest.raises(EngineError, match=r"failed the batch: .*out of data bounds"):
        context.run([{"x": np.array([[9]])}])
    np.testing.assert_array_equal(context.run([{"x": np.array([[3]])}])["y"], [[30.0]])


@pytest.mark.parametrize(
    "inputs",
    [
        {"left": np.zeros((1, 4), np.float32)},
        {"left": np.zeros((1, 4), np.float32), "right": np.zeros((1, 4), np.float64)},
        {"left": np.zeros((1, 4), np.float32), "right": np.zeros((1, 5), np.float32)},
        {"left": np.zeros((1, 4), np.float32), "right": np.zeros(4, np.float32)},
    ],
    ids=["missing", "dtype", "size", "rank"],
)
def test_inputs_that_do_not_fit_are_an_engine_error(
    tmp_path: Path, inputs: dict[str, np.ndarray]
) -> None:
    with pytest.raises(EngineError):
        load(tmp_path, graphs.addition()).open().run([dict(inputs)])


def test_threads_share_an_engine(tmp_path: Path) -> None:
    engine = load(tmp_path, graphs.identity())

    def run(number: int) -> bool:
        given = np.full((3, 4), number, np.float32)
        return bool((engine.open().run([{"x": given}])["y"] == number).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(run, range(400)))


@pytest.mark.parametrize(
    "content", [None, b"", b"garbage", b"\x00" * 4096], ids=["none", "empty", "text", "zeros"]
)
def test_file_that_is_no_model_is_refused_with_its_path(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=f"ONNX Runtime cannot load {path}"):
        load_onnxruntime(path, 1)


def test_operator_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("NoSuchOperator", ["x"], ["y"])
    with pytest.raises(SettingsError, match="NoSuchOperator"):
        load(tmp_path, graphs.model([node], [graphs.value("x")], [graphs.value("y")]))


def sequence_model() -> bytes:
    node = helper.make_node("SplitToSequence", ["x"], ["parts"])
    parts = helper.make_tensor_sequence_value_info("parts", TensorProto.FLOAT, None)
    return graphs.model([node], [graphs.value("x")], [parts])


def cast(dtype: int) -> bytes:
    """x FP32 → y."""
    node = helper.make_node("Cast", ["x"], ["y"], to=dtype)
    y = helper.make_tensor_value_info("y", dtype, ["n", 4])
    return graphs.model([node], [graphs.value("x")], [y], opset=19)


@pytest.mark.parametrize(
    ("serialized", "name"),
    [(sequence_model(), "parts"), (cast(TensorProto.FLOAT8E5M2), "y")],
    ids=["sequence", "float8"],
)
def test_tensor_that_the_wire_cannot_carry_is_refused_by_name(
    tmp_path: Path, serialized: bytes, name: str
) -> None:
    onnx.checker.check_model(serialized)
    with pytest.raises(SettingsError, match=f"tensor '{name}' is .*, which the wire cannot carry"):
        load(tmp_path, serialized)


def test_bfloat16_comes_of_other_numbers(tmp_path: Path) -> None:
    engine = load(tmp_path, cast(TensorProto.BFLOAT16))
    assert engine.outputs == (TensorSpec("y", "BF16", (-1, 4)),)
    given = np.array([[1.0, -2.5, 3.14159, np.inf]], np.float32)
    outputs = engine.open().run([{"x": given}])
    np.testing.assert_array_equal(outputs["y"], given.astype(NUMPY_DTYPES["BF16"]))
    assert engine.open().run([{"x": given[:0]}])["y"].shape == (0, 4)


def test_loading_writes_no_log_lines(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    load(tmp_path, graphs.addition(), threads=2)
    assert (capfd.readouterr().err, caplog.text) == ("", "")


@pytest.mark.parametrize("seam", ["h2d", "enqueue", "sync", "memory", "device"])
def test_fault_fails_a_run(tmp_path: Path, seam: str) -> None:
    (tmp_path / "model.onnx").write_bytes(graphs.identity())
    faults = Faults({seam: Fault(1.0)})
    context = load_onnxruntime(tmp_path / "model.onnx", 1, faults).open()
    with pytest.raises(EngineError, match=f"an injected fault at '{seam}'"):
        context.run([{"x": np.zeros((1, 4), np.float32)}])
    assert faults.injected == {seam: 1}


def test_fault_at_the_making_of_a_context_fails_opening_and_rebuilding(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(graphs.identity())
    faults = Faults()
    engine = load_onnxruntime(tmp_path / "model.onnx", 1, faults)
    context = engine.open()
    faults._faults["context"] = Fault(1.0)
    for make in (engine.open, context.rebuild):
        with pytest.raises(EngineError, match="at 'context'"):
            make()


def test_file_is_loaded_anew(tmp_path: Path) -> None:
    engine = load(tmp_path, graphs.identity())
    engine.reload()
    assert engine.open().run([{"x": np.ones((1, 4), np.float32)}])["y"].sum() == 4
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(EngineError, match="ONNX Runtime cannot load"):
        engine.reload()


def test_times_and_elements_of_a_run_are_told(tmp_path: Path) -> None:
    context = load(tmp_path, graphs.identity()).open()
    assert context.times == NO_TIMES
    context.run([{"x": np.ones((3, 4), np.float32)}])
    assert context.times.run_s > 0
    assert (context.times.elements, context.times.run_elements) == (12, 12)
