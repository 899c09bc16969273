"""Lanes of a model: opened, warmed up, closed again when something fails."""

import asyncio
import threading
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infer_svc.backends.errors import DeviceLost
from infer_svc.backends.machine import Machine
from infer_svc.faults import Fault, Faults, parse_faults
from infer_svc.lane import Lane
from infer_svc.repository import Model, load_model
from infer_svc.served import TRIES, open_lanes, rows_of
from mesh.errors import EngineError, InvalidInput
from tests.infer_svc import graphs
from tests.infer_svc.graphs import write_model

CONFIG = "max_batch_size: 4 instance_group [ { count: 2 } ]"


class Failing(Faults):
    """Fails the first times that a seam is passed, or the first after some."""

    def __init__(self, times: int, seam: str = "context", after: int = 0) -> None:
        super().__init__({seam: Fault(1.0)})
        self.left = times
        self.seam = seam
        self.after = after

    def at(self, seam: str) -> None:
        if seam == self.seam:
            self.after -= 1
            if self.after >= 0:
                return
            self.left -= 1
            if self.left < 0:
                return
        super().at(seam)


def model(tmp_path: Path, failures: int = 0, text: str = CONFIG) -> Model:
    folder = write_model(tmp_path, "m", graphs.identity(dims=("n", 4)), text)
    return load_model(folder, Machine(1, Failing(failures)))


def threads() -> list[str]:
    return sorted(t.name for t in threading.enumerate() if t.name.startswith("m-"))


def close(lanes: list[Lane]) -> None:
    for lane in lanes:
        lane.close()


async def test_lanes_and_a_spare_are_opened_and_a_warm_up_is_the_known_batch(
    tmp_path: Path,
) -> None:
    lanes, spares, golden = open_lanes(model(tmp_path), asyncio.get_running_loop())
    assert [lane.name for lane in (*lanes, *spares)] == ["m-0", "m-1", "m-spare-0"]
    assert golden is not None
    np.testing.assert_array_equal(golden.outputs["y"], golden.inputs["x"])
    for lane in (*lanes, *spares):
        assert await lane.check(golden) == ""
    close([*lanes, *spares])


async def test_model_without_a_warm_up_has_no_known_batch(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "m", graphs.identity(dims=("n", "k")), "max_batch_size: 4")
    lanes, spares, golden = open_lanes(load_model(folder, Machine()), asyncio.get_running_loop())
    assert golden is None
    assert await lanes[0].check(golden) == ""
    close([*lanes, *spares])


async def test_context_that_cannot_be_made_at_first_is_made_the_next_time(tmp_path: Path) -> None:
    made = model(tmp_path, TRIES - 1)
    lanes, spares, _ = open_lanes(made, asyncio.get_running_loop())
    assert len(lanes) == 2
    close([*lanes, *spares])


@pytest.mark.parametrize("after", [0, 1], ids=["a warm-up", "the known batch"])
async def test_warm_up_that_fails_at_first_may_pass_the_next_time(
    after: int, tmp_path: Path
) -> None:
    folder = write_model(tmp_path, "m", graphs.identity(dims=("n", 4)), CONFIG)
    made = load_model(folder, Machine(1, Failing(TRIES - 1, "enqueue", after)))
    lanes, spares, golden = open_lanes(made, asyncio.get_running_loop())
    assert golden is not None
    close([*lanes, *spares])


async def test_warm_up_that_does_not_fit_is_refused_as_one(tmp_path: Path) -> None:
    text = (
        'max_batch_size: 4 model_warmup [ { name: "w" inputs { key: "x" '
        "value { data_type: TYPE_FP32 dims: [ 5 ] } } } ]"
    )
    with pytest.raises(InvalidInput, match=r"a warm-up of model 'm' does not fit it: tensor 'x'"):
        open_lanes(model(tmp_path, text=text), asyncio.get_running_loop())
    assert threads() == []


async def test_context_that_cannot_be_made_at_all_leaves_no_lane_behind(tmp_path: Path) -> None:
    made = model(tmp_path, 100)
    made.placements[0].engine._faults.left = 0  # type: ignore[attr-defined]
    lane = Lane("m-other", made.placements[0].engine, asyncio.get_running_loop())
    made.placements[0].engine._faults.left = 100  # type: ignore[attr-defined]
    with pytest.raises(EngineError, match="at 'context'"):
        open_lanes(made, asyncio.get_running_loop())
    assert threads() == ["m-other"]
    lane.close()


@pytest.mark.parametrize(
    ("rows", "max_rows", "wanted"), [((3, 3), 4, 3), ((4,), 4, 4), ((7, 2), 0, 1)]
)
def test_rows_are_those_of_every_tensor(rows: tuple[int, ...], max_rows: int, wanted: int) -> None:
    tensors = {str(index): np.zeros((count, 2)) for index, count in enumerate(rows)}
    assert rows_of(dict(tensors), max_rows, "m") == wanted


@pytest.mark.parametrize(("rows", "max_rows"), [((3, 2), 4), ((5,), 4), ((0,), 4)])
def test_rows_that_do_not_fit_are_refused(rows: tuple[int, ...], max_rows: int) -> None:
    tensors = {str(index): np.zeros((count, 2)) for index, count in enumerate(rows)}
    with pytest.raises(InvalidInput, match="wanted the same number for each tensor, 1 to 4"):
        rows_of(dict(tensors), max_rows, "m")


async def test_lost_gpu_is_told_at_once_and_its_lanes_are_left_as_they_are(tmp_path: Path) -> None:
    made = model(tmp_path)
    engine: Any = made.placements[0].engine
    engine._faults = parse_faults("device=1")
    with pytest.raises(DeviceLost, match="'device'") as caught:
        open_lanes(made, asyncio.get_running_loop())
    assert threads() == ["m-0", "m-1", "m-spare-0"]
    close(lanes_of(caught.value))


async def test_lost_gpu_is_not_tried_again_while_a_lane_is_opened(tmp_path: Path) -> None:
    made = model(tmp_path)
    engine: Any = made.placements[0].engine
    tries: list[str] = []

    def open_context() -> None:
        tries.append("one")
        raise DeviceLost("700")

    engine.open = open_context
    with pytest.raises(DeviceLost, match="700"):
        open_lanes(made, asyncio.get_running_loop())
    assert tries == ["one"]


async def test_engine_of_a_model_that_cannot_be_opened_is_closed(tmp_path: Path) -> None:
    made = model(tmp_path, TRIES)
    engine: Any = made.placements[0].engine
    closed: list[bool] = []
    engine.close = lambda: closed.append(True)
    with pytest.raises(EngineError):
        open_lanes(made, asyncio.get_running_loop())
    assert closed == [True]


def lanes_of(error: BaseException) -> list[Lane]:
    """Return the lanes that an error's traceback still holds."""
    frames = traceback.walk_tb(error.__traceback__)
    frame = next(frame for frame, _ in frames if frame.f_code.co_name == "open_lanes")
    return [*frame.f_locals["lanes"], *frame.f_locals["spares"]]
