"""Recipes refuse what cannot be, and name the same build the same."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infer_svc.build.recipe import TOLERANCES, Recipe
from mesh.errors import SettingsError

FULL = Recipe("int8", ("/a", "/b/*"), True, Path("data.npz"), 512, True, False, 0.05)


@pytest.mark.parametrize("recipe", [Recipe(), Recipe("fp16", tolerance=0), FULL], ids=str)
def test_recipe_survives_json(recipe: Recipe) -> None:
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_json_keeps_the_order_of_its_keys() -> None:
    assert list(json.loads(FULL.to_json())) == sorted(json.loads(FULL.to_json()))
    turned = json.dumps(dict(reversed(json.loads(FULL.to_json()).items())))
    assert Recipe.from_json(turned).to_json() == FULL.to_json()


@pytest.mark.parametrize(
    ("field", "given"),
    [
        pytest.param("precision", "fp8", id="precision"),
        pytest.param("keep", "/a", id="keep_is_one_text"),
        pytest.param("keep", ["", "a"], id="keep_has_an_empty_name"),
        pytest.param("auto", "yes", id="auto"),
        pytest.param("sparsity", 1, id="sparsity"),
        pytest.param("tf32", None, id="tf32"),
        pytest.param("calibration", 3, id="calibration"),
        pytest.param("workspace_mbytes", 0, id="workspace_of_nothing"),
        pytest.param("workspace_mbytes", True, id="workspace_of_true"),
        pytest.param("workspace_mbytes", 2**24 + 1, id="workspace_of_too_much"),
        pytest.param("workspace_mbytes", 1.5, id="workspace_of_a_half"),
        pytest.param("tolerance", -0.1, id="tolerance_below_0"),
        pytest.param("tolerance", "0.1", id="tolerance_of_text"),
        pytest.param("tolerance", float("nan"), id="tolerance_of_nan"),
    ],
)
def test_value_that_cannot_be_is_refused_with_field_value_and_wish(field: str, given: Any) -> None:
    with pytest.raises(SettingsError, match=rf"recipe field '{field}' is .*, wanted ") as caught:
        Recipe.from_json(json.dumps({field: given}))
    assert repr(tuple(given) if isinstance(given, list) else given) in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", '"fp16"', "{"], ids=str)
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="wanted a JSON object"):
        Recipe.from_json(text)


def test_unknown_field_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"unknown fields \['presicion'\].*'precision'"):
        Recipe.from_json('{"presicion": "fp16"}')


def test_tolerance_is_that_of_the_precision_unless_given() -> None:
    assert Recipe("fp16").largest_error == TOLERANCES["fp16"]
    assert Recipe("fp16", tolerance=0.5).largest_error == 0.5
    assert Recipe("fp16", tolerance=0).largest_error == 0


def test_digest_differs_with_each_field() -> None:
    others = [
        Recipe("fp16"), Recipe("int8"), Recipe(keep=("a",)), Recipe(auto=True),
        Recipe(workspace_mbytes=1), Recipe(sparsity=True), Recipe(tf32=False),
        Recipe(tolerance=0.3),
    ]  # fmt: skip
    assert len({one.digest() for one in [Recipe(), *others]}) == len(others) + 1
    assert Recipe("fp16").digest() == Recipe("fp16", tolerance=TOLERANCES["fp16"]).digest()


def test_digest_follows_the_content_of_the_data_not_its_path(tmp_path: Path) -> None:
    for name, last in (("a.npz", 3), ("b.npz", 3), ("c.npz", 4)):
        np.savez(tmp_path / name, x=np.array([[1, 2, last]]))
    a, b, c = (Recipe("int8", calibration=tmp_path / f"{name}.npz").digest() for name in "abc")
    assert a == b != c


def test_digest_of_data_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"is no \.npz file and no folder"):
        Recipe("int8", calibration=tmp_path / "none.npz").digest()
