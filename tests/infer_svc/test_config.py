from pathlib import Path

import pytest

from infer_svc.config import (
    Batching,
    Instances,
    ModelConfig,
    QueuePolicy,
    Step,
    Warmup,
    WarmupInput,
    read_config,
)
from mesh.errors import SettingsError
from mesh.tensor import TensorSpec

EVERYTHING = """
name: "m"
platform: "onnxruntime_onnx"
max_batch_size: 16
default_model_filename: "net.onnx"
input [
  { name: "pixels" data_type: TYPE_UINT8 dims: [ 32, 32, 3 ] },
  { name: "text" data_type: TYPE_STRING dims: [ -1 ] }
]
output [ { name: "logits" data_type: TYPE_FP16 dims: [ 10 ] } ]
instance_group [ { count: 2 kind: KIND_CPU }, { kind: KIND_CPU } ]
dynamic_batching {
  preferred_batch_size: [ 16, 4 ]
  max_queue_delay_microseconds: 500
  priority_levels: 3
  default_priority_level: 2
  default_queue_policy {
    timeout_action: DELAY
    default_timeout_microseconds: 2000
    allow_timeout_override: true
    max_queue_size: 7
  }
  priority_queue_policy { key: 1 value { default_timeout_microseconds: 1000000 } }
}
model_warmup [
  {
    name: "full"
    batch_size: 16
    count: 3
    inputs { key: "pixels" value { data_type: TYPE_UINT8 dims: [ 32, 32, 3 ] random_data: true } }
  },
  { inputs { key: "pixels" value { data_type: TYPE_UINT8 dims: [ 1, 1, 3 ] zero_data: true } } },
  { inputs { key: "text" value { data_type: TYPE_STRING dims: [ 5 ] input_data_file: "a.bin" } } }
]
"""


def read(tmp_path: Path, text: str, name: str = "m") -> ModelConfig:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "config.pbtxt").write_text(text, encoding="utf-8")
    return read_config(folder)


def test_every_field_that_is_used_is_read(tmp_path: Path) -> None:
    default = QueuePolicy(timeout_s=0.002, allow_override=True, reject=False, max_size=7)
    urgent = QueuePolicy(timeout_s=1.0)
    assert read(tmp_path, EVERYTHING) == ModelConfig(
        name="m",
        backend="onnxruntime",
        filename="net.onnx",
        max_rows=16,
        inputs=(
            TensorSpec("pixels", "UINT8", (-1, 32, 32, 3)),
            TensorSpec("text", "BYTES", (-1, -1)),
        ),
        outputs=(TensorSpec("logits", "FP16", (-1, 10)),),
        instances=(Instances(2), Instances(1)),
        batching=Batching(
            preferred=(4, 16),
            delay_s=0.0005,
            levels=3,
            default_level=2,
            default_policy=default,
            policies=((1, urgent),),
        ),
        warmups=(
            Warmup("full", 16, (WarmupInput("pixels", "UINT8", (32, 32, 3), random=True),), 3),
            Warmup("", 1, (WarmupInput("pixels", "UINT8", (1, 1, 3), random=False),), 1),
            Warmup("", 1, (WarmupInput("text", "BYTES", (5,), random=False, file="a.bin"),), 1),
        ),
    )


@pytest.mark.parametrize("text", [None, ""], ids=["no-file", "empty-file"])
def test_defaults_need_only_the_model_file(tmp_path: Path, text: str | None) -> None:
    (tmp_path / "m").mkdir()
    if text is not None:
        (tmp_path / "m" / "config.pbtxt").write_text(text)
    assert read_config(tmp_path / "m") == ModelConfig(
        name="m",
        backend="onnxruntime",
        filename="model.onnx",
        max_rows=0,
        inputs=(),
        outputs=(),
        instances=(Instances(),),
        batching=None,
        warmups=(),
    )


def test_bare_dynamic_batching_means_no_delay_and_no_limits(tmp_path: Path) -> None:
    config = read(tmp_path, "max_batch_size: 8 dynamic_batching { }")
    assert config.batching == Batching()
    assert config.batching.policy(0) == QueuePolicy()
    assert config.batching.default_policy.reject


@pytest.mark.parametrize(
    ("text", "backend", "filename"),
    [
        ('backend: "tensorrt"', "tensorrt", "model.plan"),
        ('platform: "tensorrt_plan"', "tensorrt", "model.plan"),
        ('platform: "onnxruntime_onnx"', "onnxruntime", "model.onnx"),
        ('platform: "pytorch_libtorch"', "pytorch_libtorch", "model.onnx"),
        ('backend: "onnxruntime" platform: "tensorrt_plan"', "onnxruntime", "model.onnx"),
        ('backend: "tensorrt" default_model_filename: "a.plan"', "tensorrt", "a.plan"),
    ],
    ids=["backend", "plan", "onnx", "unknown-platform", "backend-wins", "filename"],
)
def test_backend_and_file_follow_backend_or_platform(
    tmp_path: Path, text: str, backend: str, filename: str
) -> None:
    config = read(tmp_path, text)
    assert (config.backend, config.filename) == (backend, filename)


def test_tensors_of_a_model_without_batch_dimension_have_their_dims_alone(tmp_path: Path) -> None:
    config = read(tmp_path, 'input [ { name: "x" data_type: TYPE_FP32 dims: [ 1, -1 ] } ]')
    assert config.inputs == (TensorSpec("x", "FP32", (1, -1)),)


@pytest.mark.parametrize(
    ("triton", "name"),
    [
        ("TYPE_BOOL", "BOOL"), ("TYPE_UINT8", "UINT8"), ("TYPE_UINT16", "UINT16"),
        ("TYPE_UINT32", "UINT32"), ("TYPE_UINT64", "UINT64"), ("TYPE_INT8", "INT8"),
        ("TYPE_INT16", "INT16"), ("TYPE_INT32", "INT32"), ("TYPE_INT64", "INT64"),
        ("TYPE_FP16", "FP16"), ("TYPE_FP32", "FP32"), ("TYPE_FP64", "FP64"),
        ("TYPE_STRING", "BYTES"),
    ],
    ids=str,
)  # fmt: skip
def test_each_data_type_has_its_open_inference_name(tmp_path: Path, triton: str, name: str) -> None:
    config = read(tmp_path, f'input [ {{ name: "x" data_type: {triton} dims: [ 1 ] }} ]')
    assert config.inputs[0].dtype == name


@pytest.mark.parametrize(
    ("groups", "lanes"),
    [
        ("", 1),
        ("instance_group [ { } ]", 1),
        ("instance_group [ { count: 4 } ]", 4),
        ("instance_group [ { count: 2 }, { count: 3 } ]", 5),
    ],
    ids=["none", "no-count", "one-group", "two-groups"],
)
def test_lanes_are_the_sum_of_instance_counts(tmp_path: Path, groups: str, lanes: int) -> None:
    assert sum(group.count for group in read(tmp_path, groups).instances) == lanes


def test_level_without_policy_of_its_own_has_the_default(tmp_path: Path) -> None:
    batching = read(tmp_path, EVERYTHING).batching
    assert batching is not None
    assert batching.policy(1).timeout_s == 1.0
    assert batching.policy(2) == batching.policy(3) == batching.default_policy


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('name: "m"\nmax_batch_size: eight\n', "2:17"),
        ('name: "m"\n\nmax_batch: 8\n', "3:1"),
        ("dynamic_batching {\n  preferred_batch_size: [ 4 ]\n", "2:29"),
        ("input [ { data_type: TYPE_FP99 } ]", "1:22"),
    ],
    ids=["wrong-type", "unknown-field", "open-brace", "unknown-data-type"],
)
def test_broken_text_is_refused_with_file_and_line(tmp_path: Path, text: str, place: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read(tmp_path, text)
    assert str(tmp_path / "m" / "config.pbtxt") in str(caught.value)
    assert f"{place} :" in str(caught.value)


def test_text_that_is_not_utf8_is_refused_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.pbtxt").write_bytes(b'name: "\xff"')
    with pytest.raises(SettingsError, match=r"config\.pbtxt is no ModelConfig"):
        read_config(tmp_path / "m")


def test_config_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m" / "config.pbtxt").mkdir(parents=True)
    with pytest.raises(SettingsError, match=r"config\.pbtxt is no ModelConfig"):
        read_config(tmp_path / "m")


def test_name_that_differs_from_the_folder_is_refused_with_both(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="names the model 'other', its folder 'm'"):
        read(tmp_path, 'name: "other"')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch_size: -1", "max_batch_size -1 came, wanted 0 or more"),
        (
            "max_batch_size: 8 dynamic_batching { preferred_batch_size: [ 4, 9 ] }",
            r"preferred_batch_size \[4, 9\] came, wanted 1 to max_batch_size 8",
        ),
        (
            "max_batch_size: 8 dynamic_batching { preferred_batch_size: [ 0 ] }",
            r"preferred_batch_size \[0\] came",
        ),
        (
            "dynamic_batching { preferred_batch_size: [ 1 ] }",
            "wanted 1 to max_batch_size 0",
        ),
        (
            'input [ { name: "x" data_type: TYPE_INVALID dims: [ 1 ] } ]',
            "data_type TYPE_INVALID came, wanted one of",
        ),
        ('output [ { name: "x" dims: [ 1 ] } ]', "data_type TYPE_INVALID came"),
        ('input [ { name: "x" data_type: 77 dims: [ 1 ] } ]', "77"),
        (
            "dynamic_batching { priority_levels: 2 }",
            "default_priority_level 0 came, wanted 1 to 2",
        ),
        (
            "dynamic_batching { priority_levels: 2 default_priority_level: 3 }",
            "default_priority_level 3 came, wanted 1 to 2",
        ),
        ("instance_group [ { count: -1 } ]", "instance_group has count -1 .* wanted none below 0"),
        ("instance_group [ { gpus: [ -2 ] } ]", r"gpus \[-2\], wanted none below 0"),
        ("instance_group [ { kind: KIND_GPU }, { kind: KIND_CPU } ]", "KIND_CPU came for a model"),
        (
            'model_warmup [ { name: "w" inputs { key: "x" '
            "value { data_type: TYPE_FP32 dims: [ -1 ] } } } ]",
            r"model_warmup 'w' has dims \[-1\] for the input 'x'",
        ),
    ],
    ids=[
        "negative-max-batch-size", "preferred-over-max", "preferred-zero", "preferred-unbatched",
        "invalid-data-type", "no-data-type", "data-type-number", "no-default-level",
        "default-level-over",
        "negative-count", "negative-gpu", "cpu-beside-gpu", "open-warmup-dims",
    ],
)  # fmt: skip
def test_impossible_value_is_refused_with_file_and_field(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        read(tmp_path, text)
    assert "config.pbtxt" in str(caught.value)


@pytest.mark.parametrize(
    ("group", "backend", "gpus"),
    [
        ("kind: KIND_GPU", "tensorrt", ()),
        ("gpus: [ 0, 2 ]", "tensorrt", (0, 2)),
        ("kind: KIND_CPU", "onnxruntime", None),
        ("kind: KIND_AUTO", "onnxruntime", None),
    ],
    ids=["gpu", "gpus", "cpu", "auto"],
)
def test_onnx_model_with_an_instance_on_a_gpu_runs_on_tensorrt(
    tmp_path: Path, group: str, backend: str, gpus: tuple[int, ...] | None
) -> None:
    config = read(tmp_path, f"instance_group [ {{ count: 2 {group} }} ]")
    assert (config.backend, config.filename) == (backend, "model.onnx")
    assert config.instances == (Instances(2, gpus),)


def test_model_of_tensorrt_without_a_group_has_a_lane_on_every_gpu(tmp_path: Path) -> None:
    assert read(tmp_path, 'backend: "tensorrt"').instances == (Instances(1, ()),)


BUCKETS = 'parameters {{ key: "length_buckets" value {{ string_value: "{}" }} }}'


@pytest.mark.parametrize(
    ("text", "wanted"), [("", (32, 64, 128, 256, 512)), (BUCKETS.format("64, 16,16"), (16, 64))]
)
def test_length_buckets(tmp_path: Path, text: str, wanted: tuple[int, ...]) -> None:
    assert read(tmp_path, text).lengths == wanted


@pytest.mark.parametrize("broken", ["16;32", "0", "-1", "1.5", "16,,2"])
def test_length_buckets_that_are_no_sizes_are_refused(tmp_path: Path, broken: str) -> None:
    with pytest.raises(SettingsError, match=r"length_buckets .* came, wanted sizes as"):
        read(tmp_path, BUCKETS.format(broken))


def test_plan_files_by_compute_capability(tmp_path: Path) -> None:
    text = (
        'cc_model_filenames { key: "9.0" value: "h100.plan" } '
        'cc_model_filenames { key: "8.6" value: "a10.plan" }'
    )
    assert read(tmp_path, text).plans == (("8.6", "a10.plan"), ("9.0", "h100.plan"))


@pytest.mark.parametrize("pair", ['key: "sm_90" value: "a.plan"', 'key: "9.0" value: ""'])
def test_plan_files_that_are_none_are_refused(tmp_path: Path, pair: str) -> None:
    with pytest.raises(SettingsError, match=r"wanted a file for a compute capability as '9\.0'"):
        read(tmp_path, f"cc_model_filenames {{ {pair} }}")


def test_plugins_are_paths_with_commas_between(tmp_path: Path) -> None:
    text = 'parameters { key: "plugins" value { string_value: "lib/a.so, b.so," } }'
    assert read(tmp_path, text).plugins == ("lib/a.so", "b.so")


ENSEMBLE = """
platform: "ensemble"
max_batch_size: 8
input [ { name: "in" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "out" data_type: TYPE_FP32 dims: [ 2 ] } ]
"""
STEP = """
{ model_name: "m%d" input_map { key: "x" value: "in" } output_map { key: "y" value: "out" } }
"""
SCHEDULING = f"ensemble_scheduling {{ step [ {STEP % 1} ] }}"


def test_steps_of_an_ensemble_are_read(tmp_path: Path) -> None:
    steps = """
    ensemble_scheduling {
      step [
        {
          model_name: "first" model_version: -1
          input_map { key: "z" value: "in" } input_map { key: "a" value: "in" }
          output_map { key: "h" value: "middle" }
        },
        {
          model_name: "second" model_version: 3
          input_map { key: "h" value: "middle" } output_map { key: "y" value: "out" }
        }
      ]
    }
    """
    config = read(tmp_path, ENSEMBLE + steps)
    assert config.ensemble == (
        Step("first", -1, (("a", "in"), ("z", "in")), (("h", "middle"),)),
        Step("second", 3, (("h", "middle"),), (("y", "out"),)),
    )
    assert (config.backend, config.max_rows) == ("ensemble", 8)
    assert config.inputs == (TensorSpec("in", "FP32", (-1, 4)),)


def test_version_that_is_left_out_is_the_newest(tmp_path: Path) -> None:
    assert read(tmp_path, ENSEMBLE + SCHEDULING).ensemble[0].version == -1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ENSEMBLE, r"an ensemble has no steps; list them in ensemble_scheduling"),
        (SCHEDULING, "ensemble_scheduling came for the platform or backend 'onnxruntime'; write"),
        ('platform: "tensorrt_plan"' + SCHEDULING, "came for the platform or backend 'tensorrt'"),
        ('platform: "ensemble"' + SCHEDULING, "declares 0 inputs and 0 outputs, wanted at least"),
        (ENSEMBLE.partition("output")[0] + SCHEDULING, "declares 1 inputs and 0 outputs"),
        (ENSEMBLE + SCHEDULING + "instance_group [ { } ]", "has an instance_group or a model_warm"),
        (ENSEMBLE + SCHEDULING + 'model_warmup [ { name: "w" } ]', "nothing of its own to run"),
        (ENSEMBLE + SCHEDULING + "dynamic_batching { }", '"dynamic_batching" .*oneof'),
        (ENSEMBLE + SCHEDULING.replace("model_name", "model_namespace"), "step 1 .* no model_name"),
        (
            ENSEMBLE + SCHEDULING.replace('input_map { key: "x" value: "in" }', ""),
            "step 1 of the ensemble has no input_map",
        ),
        (
            ENSEMBLE + SCHEDULING.replace('output_map { key: "y" value: "out" }', ""),
            "step 1 of the ensemble has no output_map",
        ),
    ],
    ids=[
        "no-steps", "no-platform", "other-platform", "no-tensors", "no-outputs", "instances",
        "warmup", "batching", "no-model", "no-input-map", "no-output-map",
    ],
)  # fmt: skip
def test_impossible_ensemble_is_refused_with_file_and_field(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        read(tmp_path, text)
    assert "config.pbtxt" in str(caught.value)


def test_model_that_generates_is_decoupled_and_has_slots(tmp_path: Path) -> None:
    text = "model_transaction_policy { decoupled: true }"
    config = read(tmp_path, text)
    assert (config.decoupled, config.slots) == (True, 32)
    text += ' parameters { key: "slots" value { string_value: "5" } }'
    assert read(tmp_path, text, "other").slots == 5
    assert not read(tmp_path, "", "plain").decoupled


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("max_batch_size: 4", "max_batch_size 4 or dynamic_batching"),
        ("dynamic_batching { }", "leave them out"),
        ('parameters { key: "slots" value { string_value: "0" } }', "slots '0' came, wanted 1 to"),
        ('parameters { key: "slots" value { string_value: "many" } }', "slots 'many' came"),
    ],
)
def test_config_that_no_generation_can_have_is_refused(
    tmp_path: Path, text: str, match: str
) -> None:
    with pytest.raises(SettingsError, match=match):
        read(tmp_path, f"model_transaction_policy {{ decoupled: true }} {text}")
