from dataclasses import replace
from pathlib import Path

import pytest

from infer_svc.config import Instances, ModelConfig, Step
from infer_svc.repository import Model
from infer_svc.steps import check_steps, follow_parts, load_order
from mesh.errors import NotFound, Refused, SettingsError, StageUnavailable
from mesh.tensor import TensorSpec
from tests.infer_svc.graphs import write_model

X = TensorSpec("x", "FP32", (-1, 4))
H = TensorSpec("h", "FP32", (-1, 8))
Y = TensorSpec("y", "FP32", (-1, 2))
FIRST = Step("first", -1, (("x", "in"),), (("h", "middle"),))
SECOND = Step("second", -1, (("h", "middle"),), (("y", "out"),))
IN = TensorSpec("in", "FP32", (-1, 4))
OUT = TensorSpec("out", "FP32", (-1, 2))


def config(
    name: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    *steps: Step,
    rows: int = 8,
) -> ModelConfig:
    return ModelConfig(
        name, "none", "", rows, inputs, outputs, (Instances(),), None, (), ensemble=steps
    )


def model(given: ModelConfig, version: int = 1, root: Path = Path("none")) -> Model:
    return Model(given, version, (), root / given.name)


def ensemble(
    *steps: Step,
    inputs: tuple[TensorSpec, ...] = (IN,),
    outputs: tuple[TensorSpec, ...] = (OUT,),
    rows: int = 8,
) -> Model:
    return model(config("e", inputs, outputs, *(steps or (FIRST, SECOND)), rows=rows))


PARTS = {
    "first": model(config("first", (X,), (H,)), version=3),
    "second": model(config("second", (H,), (Y,))),
    "pair": model(config("pair", (X, replace(X, name="z")), (H, Y))),
    "small": model(config("small", (X,), (H,), rows=4)),
    "single": model(config("single", (replace(X, shape=(4,)),), (H,), rows=0)),
    "half": model(config("half", (replace(H, dtype="FP16"),), (Y,))),
    "wide": model(config("wide", (replace(H, shape=(-1, 9)),), (Y,))),
    "deep": model(config("deep", (replace(H, shape=(-1, 8, 1)),), (Y,))),
    "writer": model(replace(config("writer", (X,), (H,)), decoupled=True)),
    "open": model(config("open", (replace(H, shape=(-1, -1)),), (replace(Y, shape=(-1, -1)),))),
}


def find(name: str) -> Model:
    if name == "bad":
        raise Refused("its file is broken")
    if name == "late":
        raise StageUnavailable("it is being loaded")
    name, _, version = name.partition("/")
    if version and int(version) != PARTS[name].version:
        raise NotFound(f"model {name!r} has no version {version!r}; there are [3]")
    if name not in PARTS:
        raise NotFound(f"model {name!r} is not in the repository; there are {sorted(PARTS)}")
    return PARTS[name]


def test_steps_that_fit_pass_in_any_order() -> None:
    for steps in ((FIRST, SECOND), (SECOND, FIRST)):
        given = ensemble(*steps)
        assert check_steps(given, find) == given.config


def test_version_that_is_served_may_be_named() -> None:
    given = ensemble(replace(FIRST, version=3), SECOND)
    assert check_steps(given, find) == given.config


def test_model_may_be_in_two_steps_and_outputs_may_be_left_out() -> None:
    twice = [
        Step("pair", -1, (("x", "in"), ("z", "in")), (("h", name),)) for name in ("middle", "spare")
    ]
    check_steps(ensemble(*twice, SECOND), find)


def test_size_that_only_a_part_fixes_is_the_ensembles() -> None:
    given = ensemble(inputs=(replace(IN, shape=(-1, -1)),), outputs=(replace(OUT, shape=(-1, -1)),))
    checked = check_steps(given, find)
    assert (checked.inputs, checked.outputs) == ((IN,), (OUT,))


def test_size_that_only_the_ensemble_fixes_stays() -> None:
    steps = FIRST, replace(SECOND, model="open")
    checked = check_steps(ensemble(*steps), find)
    assert checked.outputs == (OUT,)


def test_ensemble_without_batch_dimension_may_have_parts_with_one() -> None:
    given = ensemble(
        inputs=(replace(IN, shape=(2, 4)),), outputs=(replace(OUT, shape=(-1, 2)),), rows=0
    )
    assert check_steps(given, find) == given.config


FAULTS: dict[str, tuple[Model, str]] = {
    "unknown-model": (
        ensemble(FIRST, replace(SECOND, model="none")),
        r"'e': its model 'none' is not in the repository; there are \['deep', 'first'",
    ),
    "refused-model": (
        ensemble(FIRST, replace(SECOND, model="bad")),
        "its model 'bad' is refused: its file is broken",
    ),
    "version": (
        ensemble(replace(FIRST, version=2), SECOND),
        r"its model 'first' has no version '2'; there are \[3\]",
    ),
    "cycle": (
        ensemble(
            FIRST,
            Step("pair", -1, (("x", "in"), ("z", "b")), (("h", "a"),)),
            Step("second", -1, (("h", "a"),), (("y", "b"),)),
            SECOND,
        ),
        r"wait for each other in a circle, .*: {'pair': \['b'\], 'second': \['a'\]}",
    ),
    "own-output": (
        ensemble(FIRST, replace(SECOND, inputs=(("h", "out"),))),
        r"in a circle, .*: {'second': \['out'\]}",
    ),
    "nobody-makes": (
        ensemble(FIRST, replace(SECOND, inputs=(("h", "mid"),))),
        r"input 'h' of model 'second' takes the tensor 'mid', which nobody makes; "
        r"there are \['in', 'middle', 'out'\]",
    ),
    "made-twice": (
        ensemble(FIRST, replace(FIRST, model="small"), SECOND),
        "tensor 'middle' is made by model 'first' and by model 'small'",
    ),
    "made-twice-by-one-step": (
        ensemble(replace(FIRST, outputs=(("h", "middle"), ("y", "middle"))), SECOND),
        "tensor 'middle' is made by model 'first' and by model 'first'",
    ),
    "made-over-an-input": (
        ensemble(FIRST, replace(SECOND, outputs=(("y", "in"),))),
        "tensor 'in' is made by the caller and by model 'second'",
    ),
    "output-not-made": (
        ensemble(outputs=(OUT, replace(OUT, name="more"))),
        r"no step makes the outputs \['more'\]; the steps make \['middle', 'out'\]",
    ),
    "output-is-an-input": (
        ensemble(outputs=(OUT, IN)),
        r"no step makes the outputs \['in'\]",
    ),
    "input-not-taken": (
        ensemble(inputs=(IN, replace(IN, name="more"))),
        r"no step takes the inputs \['more'\]",
    ),
    "input-map-lacks-one": (
        ensemble(Step("pair", -1, (("x", "in"),), (("h", "middle"),)), SECOND),
        r"input_map of model 'pair' has the keys \['x'\], the inputs of the model are "
        r"\['x', 'z'\]; map each of them",
    ),
    "input-map-misnames-one": (
        ensemble(replace(FIRST, inputs=(("X", "in"),)), SECOND),
        r"input_map of model 'first' has the keys \['X'\], the inputs .* \['x'\]",
    ),
    "output-map-misnames-one": (
        ensemble(replace(FIRST, outputs=(("g", "middle"),)), SECOND),
        r"output_map of model 'first' has the keys \['g'\], the outputs .* \['h'\]",
    ),
    "dtype": (
        ensemble(FIRST, replace(SECOND, model="half")),
        r"tensor 'middle' is FP32\[-1,8\] as output 'h' of model 'first', but FP16\[-1,8\] as "
        "input 'h' of model 'half'; both must have the same dtype and shape",
    ),
    "size": (ensemble(FIRST, replace(SECOND, model="wide")), r"but FP32\[-1,9\] as input 'h'"),
    "rank": (ensemble(FIRST, replace(SECOND, model="deep")), r"but FP32\[-1,8,1\] as input 'h'"),
    "size-of-input": (
        ensemble(inputs=(replace(IN, shape=(-1, 5)),)),
        r"'in' is FP32\[-1,5\] as input of the ensemble, but FP32\[-1,4\] as input 'x' of model",
    ),
    "dtype-of-output": (
        ensemble(outputs=(replace(OUT, dtype="FP64"),)),
        r"'out' is FP32\[-1,2\] as output 'y' of .*, but FP64\[-1,2\] as output of the ensemble",
    ),
    "two-takers-that-differ": (
        ensemble(
            Step("open", -1, (("h", "in"),), (("y", "a"),)),
            Step("second", -1, (("h", "a"),), (("y", "out"),)),
            Step("wide", -1, (("h", "a"),), (("y", "b"),)),
        ),
        r"tensor 'a' is FP32\[-1,8\] as output 'y' of model 'open', but FP32\[-1,9\]",
    ),
    "larger-batches": (
        ensemble(replace(FIRST, model="small"), SECOND),
        "its max_batch_size is 8, that of its model 'small' 4; it must not be the larger one",
    ),
    "part-that-generates": (
        ensemble(replace(FIRST, model="writer"), SECOND),
        "its model 'writer' generates; an ensemble has one answer",
    ),
    "part-without-batches": (
        ensemble(replace(FIRST, model="single"), SECOND),
        "its max_batch_size is 8, that of its model 'single' 0",
    ),
}


@pytest.mark.parametrize(("given", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_steps_that_do_not_fit_are_refused_by_name(given: Model, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        check_steps(given, find)
    assert str(caught.value).startswith("ensemble 'e': ")


def test_ensemble_may_be_a_part_of_another() -> None:
    inner = replace(ensemble(), folder=Path("inner"))
    outer = ensemble(Step("inner", -1, (("in", "in"),), (("out", "out"),)))
    check_steps(outer, {"inner": inner}.__getitem__)


@pytest.mark.parametrize("other", ["e", "f"], ids=["itself", "each-other"])
def test_ensemble_that_would_run_itself_is_refused(tmp_path: Path, other: str) -> None:
    write_ensemble(tmp_path, "e", other)
    if other != "e":
        write_ensemble(tmp_path, other, "e")
    given = ensemble(Step(other, -1, (("in", "in"),), (("out", "out"),)))
    with pytest.raises(SettingsError, match=f"its model '{other}' is this ensemble or has"):
        check_steps(replace(given, folder=tmp_path / "e"), find)
    assert len(load_order(sorted(tmp_path.iterdir()))) == len(list(tmp_path.iterdir()))


def test_part_that_is_not_there_yet_is_told_as_it_is() -> None:
    with pytest.raises(StageUnavailable, match="being loaded"):
        check_steps(ensemble(FIRST, replace(SECOND, model="late")), find)


def write_ensemble(root: Path, name: str, *parts: str) -> None:
    steps = ", ".join(
        f'{{ model_name: "{part}" input_map {{ key: "i" value: "i" }} '
        'output_map { key: "o" value: "o" } }'
        for part in parts
    )
    write_model(
        root, name, None,
        'platform: "ensemble" input [ { name: "i" data_type: TYPE_FP32 dims: [ 1 ] } ] '
        'output [ { name: "o" data_type: TYPE_FP32 dims: [ 1 ] } ] '
        f"ensemble_scheduling {{ step [ {steps} ] }}",
    )  # fmt: skip


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    write_ensemble(tmp_path, "a", "c", "missing")
    write_model(tmp_path, "b", None, "max_batch_size: broken")
    write_ensemble(tmp_path, "c", "e", "d")
    for name in ("d", "e", "f"):
        write_model(tmp_path, name, None)
    return {folder.name: folder for folder in sorted(tmp_path.iterdir())}


def test_parts_are_loaded_before_their_ensemble_and_others_stay_in_order(
    folders: dict[str, Path],
) -> None:
    ordered = load_order(list(folders.values()))
    assert [folder.name for folder in ordered] == ["e", "d", "c", "a", "b", "f"]


@pytest.mark.parametrize(
    ("later", "wanted"),
    [("", ""), ("f", "f"), ("d", "dca"), ("fd", "fdca"), ("a", "a"), ("afd", "dcaf")],
    ids=["none", "no-part", "part", "order", "ensemble", "ensemble-before-its-part"],
)
def test_ensembles_wait_for_parts_that_are_loaded_later(
    folders: dict[str, Path], later: str, wanted: str
) -> None:
    found = follow_parts(list(folders.values()), [folders[name] for name in later])
    assert "".join(folder.name for folder in found) == wanted
