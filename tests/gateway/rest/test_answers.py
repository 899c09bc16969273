"""Calls and their errors as HTTP has them."""

import json

import pytest

from gateway.rest.answers import failure, status_of
from gateway.rest.bodies import TooLarge
from mesh.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineError,
    InvalidInput,
    MeshError,
    NotFound,
    Overloaded,
    Refused,
    StageUnavailable,
)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidInput(""), 400), (Refused(""), 400), (Cancelled(""), 400), (NotFound(""), 404),
        (TooLarge(""), 413), (EngineError(""), 500), (StageUnavailable(""), 503),
        (Overloaded(""), 503), (DeadlineExceeded(""), 504),
    ],
)  # fmt: skip
def test_each_error_has_its_status(error: MeshError, status: int) -> None:
    assert status_of(error) == status


def test_error_is_told_as_triton_does_and_when_to_come_back() -> None:
    answer = failure(Overloaded("full", retry_s=1.2))
    assert json.loads(bytes(answer.body)) == {"error": "full"}
    assert answer.headers["retry-after"] == "2"
    assert "retry-after" not in failure(NotFound("no")).headers
