"""A model's config as it is told."""

from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from infer_svc.backends.machine import Machine
from infer_svc.completed import completed
from infer_svc.repository import load_model
from tests.infer_svc import graphs
from tests.infer_svc.graphs import write_model


def test_what_the_file_lacks_is_filled_in(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "m", graphs.addition(), "max_batch_size: 8")
    config = completed(load_model(folder, Machine()))
    assert (config.name, config.backend, config.platform) == (
        "m", "onnxruntime", "onnxruntime_onnx",
    )  # fmt: skip
    assert config.default_model_filename == "model.onnx"
    assert config.version_policy.latest.num_versions == 1
    assert [(one.name, one.data_type, list(one.dims)) for one in config.input] == [
        ("left", triton.TYPE_FP32, [4]), ("right", triton.TYPE_FP32, [4]),
    ]  # fmt: skip
    (group,) = config.instance_group
    assert (group.name, group.count, group.kind) == ("m_0", 1, triton.ModelInstanceGroup.KIND_CPU)


def test_what_the_file_has_stays(tmp_path: Path) -> None:
    text = """
        max_batch_size: 8 version_policy { all { } } instance_group [ { count: 2 } ]
        dynamic_batching { max_queue_delay_microseconds: 7 }
        input [ { name: "left" data_type: TYPE_FP32 dims: [ -1 ] } ]
    """
    folder = write_model(tmp_path, "m", graphs.addition(), "")
    model = load_model(folder, Machine())
    (folder / "config.pbtxt").write_text(text)
    config = completed(model)
    given = text_format.Parse(text, triton.ModelConfig())
    assert config.version_policy == given.version_policy
    assert config.instance_group == given.instance_group
    assert config.dynamic_batching == given.dynamic_batching
    assert list(config.input[0].dims) == [-1]


def test_text_is_a_string_and_file_that_broke_meanwhile_hides_nothing(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "m", graphs.many_kinds(), "max_batch_size: 8")
    model = load_model(folder, Machine())
    (folder / "config.pbtxt").write_text("max_batch_size: x")
    kinds = {one.name: one.data_type for one in completed(model).input}
    assert kinds["text"] == triton.TYPE_STRING
