"""What stands in for an engine: it records the batches it gets, and can be held or made to fail."""

import threading
from collections.abc import Callable, Sequence

from infer_svc.backends.batch import NO_TIMES, join
from mesh.tensor import Tensors

PATIENCE_S = 20.0
"""A test that holds the engine longer than this is stuck."""


class FakeContext:
    """Answers y = x + 1. Lanes that share one show how many batches run at a time."""

    def __init__(self) -> None:
        self.batches: list[Tensors] = []
        """Those that began to run, in order."""
        self.running: list[int] = []
        """Rows of those that run now."""
        self.most: list[list[int]] = []
        """`running` whenever a batch began."""
        self.fail: Callable[[Tensors], Exception | None] = lambda inputs: None
        self.wrong = False
        """Answers are wrong, and nothing says so."""
        self.fail_rebuild: Callable[[], Exception | None] = lambda: None
        self.opened = self.rebuilt = self.reloaded = 0
        self.times = NO_TIMES
        self.inputs = self.outputs = ()
        self._gate = threading.Event()
        self._lock = threading.Lock()
        self._gate.set()

    @property
    def rows(self) -> list[int]:
        """Rows of each batch that began to run."""
        return [len(batch["x"]) for batch in list(self.batches)]

    def hold(self) -> None:
        """Keep batches running until `release`."""
        self._gate.clear()

    def release(self) -> None:
        self._gate.set()

    def open(self) -> "FakeContext":  # a lane's engine: all lanes share it
        """Be the engine too."""
        self.opened += 1
        return self

    def settle(self) -> None:
        """Do nothing."""

    def rebuild(self) -> None:
        self.rebuilt += 1
        if (error := self.fail_rebuild()) is not None:
            raise error

    def reload(self) -> None:
        self.reloaded += 1

    def close(self) -> None:
        """Do nothing."""

    def run(self, parts: Sequence[Tensors]) -> Tensors:
        inputs = join(parts)
        rows = len(inputs["x"])
        with self._lock:
            self.batches.append(inputs)
            self.running.append(rows)
            self.most.append(list(self.running))
        try:
            if not self._gate.wait(PATIENCE_S):
                raise TimeoutError("the test did not release the engine")
            if (error := self.fail(inputs)) is not None:
                raise error
            return {"y": inputs["x"] + (100 if self.wrong else 1)}
        finally:
            with self._lock:
                self.running.remove(rows)


class FakeEngine:
    """Opens a context of its own for each lane."""

    def __init__(self) -> None:
        self.inputs = self.outputs = ()
        self.contexts: list[FakeContext] = []
        """All that were opened."""
        self.prepare: Callable[[FakeContext], None] = lambda context: None
        """Done with each context that is opened."""
        self.reloaded = 0

    def open(self) -> FakeContext:
        self.contexts.append(FakeContext())
        self.prepare(self.contexts[-1])
        return self.contexts[-1]

    def reload(self) -> None:
        self.reloaded += 1

    def settle(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
