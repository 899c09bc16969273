"""Slots of a stepper are independent, movable, and written where they are."""

import numpy as np
import pytest

from infer_svc.generation.bart import Bart
from infer_svc.generation.gpt2 import gpt2_step
from infer_svc.generation.stepper import OrtStepper
from mesh.errors import EngineError
from tests.infer_svc.generation.networks import Network

GPT2, BART = Network("gpt2"), Network("bart")
LENGTH = 48


def stepper(slots: int) -> OrtStepper:
    model = gpt2_step(GPT2.config, GPT2.weights, LENGTH, np.float32)
    return OrtStepper(model.SerializeToString(), slots)


def assert_next(made: OrtStepper, slot: int, row: int, at: int) -> None:
    """Run one id of a row in a slot, and compare with the logits of transformers."""
    logits = made.step(slot, [GPT2.forced_ids[row, at : at + 1].tolist()], [at])
    np.testing.assert_allclose(logits[0], GPT2.forced_logits[row, at], rtol=0, atol=2e-4)


def test_sizes_are_those_of_the_graphs() -> None:
    assert (stepper(5).slots, stepper(5).length, stepper(5).source_length) == (5, LENGTH, 0)
    bart = Bart(BART.config, BART.weights, np.float32)
    both = OrtStepper(bart.step(32, 12).SerializeToString(), 2, bart.encoder().SerializeToString())
    assert (both.slots, both.length, both.source_length) == (2, 32, 12)


def test_slots_in_the_middle_run_without_the_others() -> None:
    made, ids = stepper(5), GPT2.forced_ids.tolist()
    made.step(0, [[1]] * 5, [0] * 5)
    made.step(2, [ids[0][:4], ids[1][:6]], [0, 0])
    made.step(0, [[3]] * 2, [1] * 2)
    assert_next(made, 3, 1, 6)
    assert_next(made, 2, 0, 4)


def test_slot_that_is_moved_goes_on_and_the_other_may_begin_anew() -> None:
    made, ids = stepper(4), GPT2.forced_ids.tolist()
    made.step(3, [ids[2][:9]], [0])
    made.move(3, 1)
    made.step(3, [ids[0][:5]], [0])
    assert_next(made, 1, 2, 9)
    assert_next(made, 3, 0, 5)


def test_source_goes_with_its_slot() -> None:
    bart = Bart(BART.config, BART.weights, np.float32)
    made = OrtStepper(bart.step(32, 12).SerializeToString(), 3, bart.encoder().SerializeToString())
    made.begin(2, BART.given[1])
    made.move(2, 0)
    made.begin(2, BART.given[0])
    ids = [BART.forced_ids[row].tolist() for row in (1, 0)]
    for slot, row, text in ((0, 1, ids[0]), (2, 0, ids[1])):
        logits = made.step(slot, [text], [0])
        np.testing.assert_allclose(logits[0], BART.forced_logits[row, -1], rtol=0, atol=2e-4)


def test_cache_is_written_where_it_is() -> None:
    made = stepper(4)
    made.step(1, [[5], [6]], [0, 3])
    written = made._state["k_0"].any(axis=(1, 3))
    wanted = np.zeros((4, LENGTH), bool)
    wanted[1, 0] = wanted[2, 3] = True
    np.testing.assert_array_equal(written, wanted)


def test_id_that_the_vocabulary_has_not_is_an_engine_error_and_the_next_step_works() -> None:
    made = stepper(1)
    with pytest.raises(EngineError, match="ONNX Runtime failed"):
        made.step(0, [[10**6]], [0])
    assert_next(made, 0, 0, 0)
