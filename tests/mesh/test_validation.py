"""Faults of a model's fields in one line."""

import pytest
from pydantic import BaseModel, ValidationError

from mesh.validation import faults


class Box(BaseModel):
    width: int
    names: list[str] = []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"width": "x", "names": ["a", 3]},
         "width: Input should be a valid integer, unable to parse string as an integer (came 'x'); "
         "names.1: Input should be a valid string (came 3)"),
        ([], "box: Input should be a valid dictionary or instance of Box (came [])"),
    ],
)  # fmt: skip
def test_every_fault_has_its_place_and_what_came(value: object, text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Box.model_validate(value)
    assert faults(caught.value, "box") == text


def test_what_came_is_cut_where_it_is_long() -> None:
    with pytest.raises(ValidationError) as caught:
        Box.model_validate({"width": "x" * 1000})
    assert len(faults(caught.value, "box")) < 200
