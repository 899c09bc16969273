"""A context for each shape; one that failed is made anew, and all are ended."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infer_svc.backends.contexts import Contexts
from infer_svc.backends.cuda import Stream
from infer_svc.backends.machine import Machine
from mesh.errors import EngineError
from tests.infer_svc import graphs
from tests.infer_svc.backends.fake_gpu import FakeApi, fake_device
from tests.infer_svc.test_served import Failing


class Open:
    """Contexts of an engine that gives back what it gets, for one and for two rows."""

    def __init__(
        self, folder: Path, machine: Machine = Machine(), *, captures_graphs: bool = True
    ) -> None:
        (folder / "m.onnx").write_bytes(graphs.identity(dims=("n", 4)))
        self.api = FakeApi(2, (4,), captures_graphs=captures_graphs)
        self.gpu, self.driver, self.library = fake_device()
        engine = self.api.load(str(folder / "m.onnx").encode())
        names = [tensor.name for tensor in engine.tensors]
        with self.gpu.current():
            self.stream = Stream(self.gpu.driver)
            api: Any = self.api
            self.contexts = Contexts(
                api, self.gpu, engine, [], threading.Lock(), self.stream, machine
            )
            self.arrays = {name: np.zeros((2, 4), np.float32) for name in names}
            addresses = {name: array.ctypes.data for name, array in self.arrays.items()}
            for rows in (1, 2):
                self.contexts.make(rows, 0, {names[0]: (rows, 4)}, addresses)
        self.given, self.made = (self.arrays[name] for name in names)

    def run(self, rows: int) -> list[float]:
        with self.gpu.current():
            self.contexts.run(rows)
            self.stream.wait()
        return [float(value) for value in self.made[:, 0]]


def test_each_shape_runs_its_rows(tmp_path: Path) -> None:
    opened = Open(tmp_path)
    opened.given[:] = 1
    assert opened.run(1) == [1, 0]
    opened.given[:] = 2
    assert opened.run(2) == [2, 2]
    assert opened.gpu.usage.contexts == 2


def test_tensors_may_lie_elsewhere_for_one_run(tmp_path: Path) -> None:
    opened = Open(tmp_path)
    other = np.full((1, 4), 7, np.float32)
    names = list(opened.arrays)
    with opened.gpu.current():
        opened.contexts.run(1, {names[0]: other.ctypes.data, names[1]: opened.made.ctypes.data})
        opened.stream.wait()
    assert opened.made[0, 0] == 7


def test_graphs_are_captured_where_the_flavour_makes_none(tmp_path: Path) -> None:
    opened = Open(tmp_path, captures_graphs=False)
    with opened.gpu.current():
        opened.contexts.capture()
    opened.given[:] = 3
    assert opened.run(2) == [3, 3]
    assert opened.library.calls["launch"] == 1
    opened.library.fail_capture = True
    with opened.gpu.current():
        opened.contexts.rebuild()
        opened.contexts.capture()
    opened.given[:] = 4
    assert opened.run(2) == [4, 4]
    assert opened.library.calls["launch"] == 1


def test_context_that_ran_last_is_made_anew(tmp_path: Path) -> None:
    opened = Open(tmp_path)
    with opened.gpu.current():
        opened.contexts.rebuild()
        assert opened.api.made == 2
        opened.contexts.run(1)
        opened.contexts.rebuild()
    assert opened.api.made == 3
    assert opened.gpu.usage.contexts == 2
    opened.given[:] = 5
    assert opened.run(1)[0] == 5


def test_refusals_are_errors(tmp_path: Path) -> None:
    opened = Open(tmp_path, Machine(faults=Failing(1)))
    opened.api.loaded[0].refuse = lambda: True
    with pytest.raises(EngineError, match="refused a run"):
        opened.run(1)
    with opened.gpu.current(), pytest.raises(EngineError, match="context"):
        opened.contexts.rebuild()
    name = next(iter(opened.arrays))
    with opened.gpu.current(), pytest.raises(EngineError, match="cannot have the shape"):
        opened.contexts.make(9, 0, {name: (9, 4)}, {})


def test_lengths_are_those_of_the_profiles(tmp_path: Path) -> None:
    opened = Open(tmp_path)
    assert opened.contexts.lengths(next(iter(opened.arrays))) == [4]


def test_nothing_is_left_when_they_are_freed(tmp_path: Path) -> None:
    opened = Open(tmp_path)
    with opened.gpu.current():
        opened.contexts.free()
        opened.contexts.free()
    assert (opened.gpu.usage.contexts, opened.gpu.usage.device_bytes) == (0, 0)
