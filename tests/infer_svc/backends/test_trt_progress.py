"""Progress reaches a callback, and what that raises ends a build without reaching C++."""

from types import SimpleNamespace

from infer_svc.backends.trt_progress import Monitor, attach


class Base:
    def __init__(self) -> None:
        self.made = True


def test_steps_are_told_with_their_phase_and_its_length() -> None:
    told: list[tuple[str, int, int]] = []
    config = SimpleNamespace()
    reporter = attach(
        SimpleNamespace(IProgressMonitor=Base), config, Monitor(lambda *step: told.append(step))
    )
    assert config.progress_monitor is reporter
    reporter.phase_start("all", None, 3)
    reporter.phase_start("part", "all", 1)
    assert reporter.step_complete("part", 0)
    reporter.phase_finish("part")
    assert reporter.step_complete("all", 0)
    assert reporter.step_complete("all", 1)
    reporter.phase_finish("all")
    assert told == [
        ("all", 0, 3), ("part", 0, 1), ("part", 1, 1), ("all", 1, 3), ("all", 2, 3), ("all", 3, 3),
    ]  # fmt: skip


def test_error_of_the_callback_is_kept_ends_the_build_and_silences_the_rest() -> None:
    told: list[str] = []

    def fail(phase: str, step: int, steps: int) -> None:
        told.append(phase)
        raise KeyboardInterrupt("stop")

    monitor = Monitor(fail)
    monitor.start("all", 2)
    assert str(monitor.error) == "stop"
    assert not monitor.done("all", 0)
    monitor.start("next", 1)
    monitor.finish("all")
    assert told == ["all"]


def test_step_of_a_phase_that_never_began_is_told_without_a_length() -> None:
    told: list[tuple[str, int, int]] = []
    monitor = Monitor(lambda *step: told.append(step))
    assert monitor.done("late", 4)
    assert told == [("late", 5, 0)]
