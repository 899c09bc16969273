"""Progress of a build, told by TensorRT on threads of its own."""

from collections.abc import Callable
from typing import Any

Progress = Callable[[str, int, int], None]
"""Is told the name of a phase, how many of its steps are done, and how many there are."""


class Monitor:
    """Passes progress on; what that raises ends the build, and is kept.

    Args:
        progress: may be called by several threads; the build waits for it.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._steps: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self.error: BaseException | None = None
        """What `progress` raised."""

    def start(self, phase: str, steps: int) -> None:
        """Begin a phase."""
        self._steps[phase] = steps
        self._tell(phase, 0)

    def done(self, phase: str, step: int) -> bool:
        """Tell of a step, counted from 0; False: the build is to end."""
        self._tell(phase, step + 1)
        return self.error is None

    def finish(self, phase: str) -> None:
        """End a phase; TensorRT leaves out some last steps, so that they are told here."""
        steps = self._steps.get(phase, 0)
        if self._done.pop(phase, steps) != steps:
            self._tell(phase, steps)

    def _tell(self, phase: str, done: int) -> None:
        if self.error is not None:
            return
        self._done[phase] = done
        try:
            self._progress(phase, done, self._steps.get(phase, 0))
        except BaseException as err:  # noqa: BLE001  C++ calls this; the builder raises it later
            self.error = err


def attach(trt: Any, config: Any, monitor: Monitor) -> Any:
    """Let a builder's config report to a monitor.

    Args:
        trt: TensorRT's module.
        config: of the builder.
        monitor: that is told.

    Returns:
        An object that must live longer than the config.
    """

    class ProgressMonitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            monitor.start(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return monitor.done(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            monitor.finish(phase_name)

    given = ProgressMonitor()
    config.progress_monitor = given
    return given
