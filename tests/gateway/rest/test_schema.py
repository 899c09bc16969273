"""What comes as JSON."""

import pytest
from pydantic import ValidationError

from gateway.rest.schema import Completion, Generation, Inference


def test_fields_that_clients_add_are_not_looked_at() -> None:
    given = Inference.model_validate_json('{"inputs": [], "more": 1}')
    assert given.inputs == []


def test_generation_keeps_what_stands_beside_the_text() -> None:
    given = Generation.model_validate_json('{"text_input": "x", "max_tokens": 3}')
    assert given.model_extra == {"max_tokens": 3}


@pytest.mark.parametrize("more", ['"n": 2', '"logprobs": 1', '"presence_penalty": 1', '"x": 1'])
def test_completion_refuses_what_it_cannot_do(more: str) -> None:
    with pytest.raises(ValidationError):
        Completion.model_validate_json(f'{{"model": "m", "prompt": "x", {more}}}')
