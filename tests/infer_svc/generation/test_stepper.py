"""Slots of a stepper are independent, movable, and written where they are."""

import numpy as np
import pytest

from infer_svc.generation.stepper import OrtStepper
from mesh.errors import EngineError, SettingsError
from tests.infer_svc.generation.networks import (
    BART,
    GPT2,
    GPT2_LENGTH,
    bart_graphs,
    bart_stepper,
    gpt2_stepper,
)


def assert_next(made: OrtStepper, slot: int, row: int, at: int) -> None:
    """Run one id of a row in a slot, and compare with the logits of transformers."""
    logits = made.step(slot, [GPT2.forced_ids[row, at : at + 1].tolist()], [at]).all_logits
    np.testing.assert_allclose(logits[0], GPT2.forced_logits[row, at], rtol=0, atol=2e-4)


def test_sizes_are_those_of_the_graphs() -> None:
    assert (gpt2_stepper(5).slots, gpt2_stepper(5).length, gpt2_stepper(5).source_length) == (
        5,
        GPT2_LENGTH,
        0,
    )
    both = bart_stepper(2)
    assert (both.slots, both.length, both.source_length) == (2, 32, 12)


def test_slots_in_the_middle_run_without_the_others() -> None:
    made, ids = gpt2_stepper(5), GPT2.forced_ids.tolist()
    made.step(0, [[1]] * 5, [0] * 5)
    made.step(2, [ids[0][:4], ids[1][:6]], [0, 0])
    made.step(0, [[3]] * 2, [1] * 2)
    assert_next(made, 3, 1, 6)
    assert_next(made, 2, 0, 4)


def test_slot_that_is_moved_goes_on_and_the_other_may_begin_anew() -> None:
    made, ids = gpt2_stepper(4), GPT2.forced_ids.tolist()
    made.step(3, [ids[2][:9]], [0])
    made.move(3, 1)
    made.step(3, [ids[0][:5]], [0])
    assert_next(made, 1, 2, 9)
    assert_next(made, 3, 0, 5)


def test_source_goes_with_its_slot() -> None:
    made = bart_stepper(3)
    made.begin(2, BART.given[1])
    made.move(2, 0)
    made.begin(2, BART.given[0])
    ids = [BART.forced_ids[row].tolist() for row in (1, 0)]
    for slot, row, text in ((0, 1, ids[0]), (2, 0, ids[1])):
        logits = made.step(slot, [text], [0]).all_logits
        np.testing.assert_allclose(logits[0], BART.forced_logits[row, -1], rtol=0, atol=2e-4)


def test_cache_is_written_where_it_is() -> None:
    made = gpt2_stepper(4)
    made.step(1, [[5], [6]], [0, 3])
    written = made._state["k_0"].any(axis=(1, 3))
    wanted = np.zeros((4, GPT2_LENGTH), bool)
    wanted[1, 0] = wanted[2, 3] = True
    np.testing.assert_array_equal(written, wanted)


def test_step_of_a_decoder_wants_its_encoder() -> None:
    with pytest.raises(SettingsError, match=r"encoder\.onnx is missing"):
        OrtStepper(bart_graphs()[1], 1, None)


def test_id_that_the_vocabulary_has_not_is_an_engine_error_and_the_next_step_works() -> None:
    made = gpt2_stepper(1)
    with pytest.raises(EngineError, match="ONNX Runtime failed"):
        made.step(0, [[10**6]], [0])
    assert_next(made, 0, 0, 0)
