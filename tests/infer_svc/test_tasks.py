"""Errors of background work end the process; nothing else does."""

import asyncio

import pytest

from infer_svc.backends.errors import DeviceLost
from infer_svc.tasks import Tasks
from tests.conftest import eventually


async def fail(error: Exception) -> None:
    raise error


async def test_work_that_goes_well_is_counted_until_it_ends() -> None:
    lost: list[str] = []
    tasks, gate = Tasks(lost.append), asyncio.Event()

    async def work() -> None:
        await gate.wait()

    tasks.begin(work())
    tasks.begin(work())
    assert len(tasks) == 2
    gate.set()
    await eventually(lambda: not tasks)
    assert lost == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [(DeviceLost("700"), "700"), (ZeroDivisionError("no"), "ZeroDivisionError: no")],
    ids=["lost", "unexpected"],
)
async def test_error_is_told_as_the_end_of_the_process(error: Exception, reason: str) -> None:
    lost: list[str] = []
    tasks = Tasks(lost.append)
    tasks.begin(fail(error))
    await eventually(lambda: not tasks)
    assert lost == [reason]


async def test_unexpected_error_has_a_traceback_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tasks = Tasks(lambda reason: None)
    tasks.begin(fail(ZeroDivisionError("no")))
    await eventually(lambda: not tasks)
    assert "Traceback" in caplog.text
