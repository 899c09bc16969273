"""A pipeline is read strictly, and served only when its stages fit each other."""

from pathlib import Path

import pytest
import yaml

from gateway.pipeline import (
    UNKNOWN_BYTES,
    Pipeline,
    PipelineConfig,
    check_pipeline,
    read_pipelines,
)
from mesh.errors import MeshError, Refused, SettingsError, StageUnavailable
from mesh.status import to_status
from mesh.tensor import TensorSpec
from protos.mesh.v1.stage_pb2 import Target, TargetSpec
from tests.gateway.stages import (
    CLASSES,
    DIGITS,
    IMAGE,
    PIPELINE,
    PIXELS,
    PIXELS_BATCH,
    SCORES_BATCH,
    FakeMesh,
    described,
    repository,
    running_mesh,
)


def read(folder: Path, text: str) -> PipelineConfig | MeshError:
    return read_pipelines(repository(folder, one=text))["one"]


def good(text: str = PIPELINE) -> PipelineConfig:
    return PipelineConfig.model_validate(yaml.safe_load(text))


async def checked(mesh: FakeMesh, text: str = PIPELINE) -> Pipeline:
    return await check_pipeline("one", good(text), mesh.stages)


async def refusal(mesh: FakeMesh, text: str = PIPELINE) -> str:
    with pytest.raises(Refused) as caught:
        await checked(mesh, text)
    return str(caught.value)


def test_file_is_read(tmp_path: Path) -> None:
    config = read(tmp_path, PIPELINE + "deadline_s: 2.5")
    assert isinstance(config, PipelineConfig)
    assert (config.task, config.model, config.deadline_s) == ("classify", "digits", 2.5)
    assert config.preprocess is not None
    assert config.postprocess is not None
    assert (config.preprocess.op, config.preprocess.parameters) == ("center_crop", {"size": 2})
    assert (config.postprocess.op, config.postprocess.parameters) == ("top_k", {})


def test_model_alone_is_a_pipeline(tmp_path: Path) -> None:
    config = read(tmp_path, "model: digits")
    assert isinstance(config, PipelineConfig)
    assert (config.task, config.preprocess, config.postprocess) == ("custom", None, None)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        pytest.param(PIPELINE + "modle: x", r"modle: Extra inputs", id="unknown_key"),
        pytest.param("model: m\npreprocess: {op: a, size: 3}", "preprocess.size: ", id="op_key"),
        pytest.param("task: detect", "model: Field required", id="no_model"),
        pytest.param("model: [a]", r"model: .*string.*\(came \['a'\]\)", id="model_no_name"),
        pytest.param("model: m\npreprocess: {parameters: {}}", "preprocess.op: ", id="no_op"),
        pytest.param("model: m\ntask: detekt", r"task: .*\(came 'detekt'\)", id="task"),
        pytest.param("model: m\ndeadline_s: 0", "deadline_s: .*greater than 0", id="deadline"),
        pytest.param("model: {", "is no pipeline: ", id="bad_yaml"),
        pytest.param("model: !!python/object:os.system m", "is no pipeline: ", id="yaml_object"),
        pytest.param("[a, b]", "file: ", id="list"),
        pytest.param("just text", "file: ", id="text"),
        pytest.param("", "file: ", id="empty"),
        pytest.param(
            "model: m\npreprocess: {op: a, parameters: {since: 2024-01-01}}",
            "preprocess.parameters.since",
            id="parameter_that_json_does_not_have",
        ),
        pytest.param(
            "model: m\npreprocess: {op: a, parameters: {1: 2}}", "parameters", id="parameter_name"
        ),
    ],
)
def test_file_that_is_wrong_is_refused_with_what_is_wrong(
    text: str, match: str, tmp_path: Path
) -> None:
    error = read(tmp_path, text)
    assert isinstance(error, Refused)
    assert str(error).startswith(f"{tmp_path}/one/pipeline.yaml is no pipeline: ")
    with pytest.raises(Refused, match=match):
        raise error


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    repository(tmp_path, one="")
    (tmp_path / "one/pipeline.yaml").write_bytes(b"model: \xff")
    assert isinstance(read_pipelines(tmp_path)["one"], Refused)


def test_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one/pipeline.yaml").mkdir(parents=True)
    assert isinstance(read_pipelines(tmp_path)["one"], Refused)


def test_one_broken_file_leaves_the_others(tmp_path: Path) -> None:
    found = read_pipelines(repository(tmp_path, good=PIPELINE, bad="model: {"))
    assert isinstance(found["good"], PipelineConfig)
    assert isinstance(found["bad"], Refused)


@pytest.mark.parametrize("folder", [".", "no/such"])
def test_repository_without_a_pipeline_is_a_setting_that_is_wrong(
    folder: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=r"no pipeline\.yaml in the folders of"):
        read_pipelines(tmp_path / folder)


async def test_pipeline_that_fits_tells_what_it_takes_makes_and_needs() -> None:
    async with running_mesh() as mesh:
        pipeline = await checked(mesh)
        assert (pipeline.inputs, pipeline.outputs) == ((IMAGE,), (CLASSES,))
        assert pipeline.model_version == "3"
        assert pipeline.model_bytes == 4  # UINT8[1,4]
        assert pipeline.before == Target(name="center_crop", parameters=b'{"size":2}')
        assert pipeline.after == Target(name="top_k")
        assert mesh.preprocess.described == [pipeline.before]


async def test_parameters_in_another_order_are_the_same_bytes() -> None:
    async with running_mesh() as mesh:
        text = "model: digits\npreprocess: {op: center_crop, parameters: {%s}}"
        one, two = [
            await checked(mesh, text % p)
            for p in ("a: 1, b: {c: 2, d: 3}", "b: {d: 3, c: 2}, a: 1")
        ]
        assert one.before == two.before


async def test_pipeline_of_a_model_alone_has_the_tensors_of_the_model() -> None:
    async with running_mesh() as mesh:
        pipeline = await checked(mesh, "model: digits")
        assert (pipeline.inputs, pipeline.outputs) == ((PIXELS_BATCH,), (SCORES_BATCH,))
        assert pipeline.model_bytes == UNKNOWN_BYTES
        assert (pipeline.before, pipeline.after) == (None, None)
        assert not mesh.preprocess.described


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(TensorSpec("pixels", "UINT8", (1, 5)), id="shape"),
        pytest.param(TensorSpec("pixels", "UINT8", (1, 4, 1)), id="axes"),
        pytest.param(TensorSpec("pixels", "FP32", (1, 4)), id="dtype"),
        pytest.param(TensorSpec("image", "UINT8", (1, 4)), id="name"),
    ],
)
async def test_op_that_does_not_fit_the_model_is_refused_naming_both(spec: TensorSpec) -> None:
    async with running_mesh() as mesh:
        mesh.preprocess.targets["center_crop"] = described("center_crop", [IMAGE], [spec])
        assert await refusal(mesh) == (
            f"pipeline 'one': model 'digits' wants {PIXELS_BATCH}, op 'center_crop' gives {spec}"
        )


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(TensorSpec("scores", "FP32", (-1, 3)), id="shape"),
        pytest.param(TensorSpec("scores", "FP16", (-1, 2)), id="dtype"),
        pytest.param(TensorSpec("logits", "FP32", (-1, 2)), id="name"),
    ],
)
async def test_op_that_the_model_does_not_fit_is_refused_naming_both(spec: TensorSpec) -> None:
    async with running_mesh() as mesh:
        mesh.postprocess.targets["top_k"] = described("top_k", [spec], [CLASSES])
        assert await refusal(mesh) == (
            f"pipeline 'one': op 'top_k' wants {spec}, model 'digits' gives {SCORES_BATCH}"
        )


async def test_tensor_that_the_model_does_not_take_is_refused() -> None:
    """The infer stage would refuse every request."""
    async with running_mesh() as mesh:
        extra = TensorSpec("mask", "BOOL", (1, 4))
        mesh.preprocess.targets["center_crop"] = described("center_crop", [IMAGE], [PIXELS, extra])
        text = await refusal(mesh)
        assert text == (
            f"pipeline 'one': model 'digits' wants {PIXELS_BATCH} and no more, "
            f"op 'center_crop' gives {PIXELS}, {extra}"
        )


async def test_output_that_the_op_does_not_take_is_left_out() -> None:
    async with running_mesh() as mesh:
        more = [SCORES_BATCH, TensorSpec("features", "FP32", (-1, 512))]
        mesh.infer.targets["digits"] = described("digits", [PIXELS_BATCH], more)
        assert (await checked(mesh)).outputs == (CLASSES,)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        pytest.param(
            PIPELINE.replace("digits", "nope"), "mesh.v1.Infer: there is no 'nope'", id="m"
        ),
        pytest.param(
            PIPELINE.replace("center_crop", "nope"), "mesh.v1.Preprocess: there", id="pre"
        ),
        pytest.param(PIPELINE.replace("top_k", "nope"), "mesh.v1.Postprocess: there", id="post"),
    ],
)
async def test_target_that_a_stage_does_not_have_is_refused(text: str, match: str) -> None:
    async with running_mesh() as mesh:
        assert match in await refusal(mesh, text)


@pytest.mark.parametrize("index", range(3), ids=["preprocess", "infer", "postprocess"])
async def test_stage_of_another_release_is_refused(index: int) -> None:
    async with running_mesh() as mesh:
        mesh.fakes[index].wire_version = 2
        text = await refusal(mesh)
        assert text == (
            f"{mesh.fakes[index].service} speaks wire version 2, this gateway 1; run one release"
        )


async def test_stage_that_tells_nothing_of_a_target_is_refused() -> None:
    async with running_mesh() as mesh:
        mesh.infer.silent = True
        assert await refusal(mesh) == "mesh.v1.Infer told nothing of 'digits'"


async def test_stage_that_cannot_answer_now_is_not_a_pipeline_that_does_not_fit() -> None:
    async with running_mesh() as mesh:
        mesh.infer.failure = StageUnavailable("going away")
        with pytest.raises(StageUnavailable, match="going away"):
            await checked(mesh)


async def test_model_that_is_being_loaded_is_not_a_pipeline_that_does_not_fit() -> None:
    async with running_mesh() as mesh:
        status = to_status(StageUnavailable("model 'digits' is being loaded"))
        mesh.infer.targets["digits"] = TargetSpec(name="digits", status=status)
        with pytest.raises(StageUnavailable, match="Infer: model 'digits' is being loaded"):
            await checked(mesh)
        mesh.infer.targets["digits"] = DIGITS
        assert (await checked(mesh)).model_version == "3"
