"""The two load generators: a closed loop and an open loop."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence

from benchmarks.load.report import Report, Sample, summarize

Ask = Callable[[bytes], Awaitable[list[int]]]
"""Send one payload; return the classes of the answer, best first.

Raises:
    AskError: no answer, or not one of the kind that was asked for.
"""


class AskError(Exception):
    """A request failed; its text is the kind of failure, one of few."""


async def closed_loop(
    ask: Ask, payloads: Sequence[bytes], concurrency: int, seconds: float
) -> Report:
    """Keep so many requests under way for so long: each answer sends the next request."""
    samples: list[Sample] = []
    cpu, began = time.process_time(), time.perf_counter()

    async def caller(index: int) -> None:
        while (started := time.perf_counter()) < began + seconds:
            samples.append(await _one(ask, payloads[index % len(payloads)], started))
            index += concurrency

    await asyncio.gather(*(caller(index) for index in range(concurrency)))
    return summarize(samples, began, time.process_time() - cpu)


async def open_loop(ask: Ask, payloads: Sequence[bytes], due: Sequence[float]) -> Report:
    """Send each request when it is due, whether or not others are answered.

    A wait counts from the due time. If it counted from the sending, a server that stops for a
    second would seem to be late for one request only, not for all that were due in that second.

    Args:
        due: seconds after the start, rising; one or more.
    """
    loop = asyncio.get_running_loop()
    tasks: list[asyncio.Task[Sample]] = []
    everything_sent = asyncio.Event()
    cpu, began = time.process_time(), time.perf_counter()

    def send(index: int) -> None:
        payload = payloads[index % len(payloads)]
        tasks.append(loop.create_task(_one(ask, payload, began + due[index])))
        if index + 1 == len(due):
            everything_sent.set()

    def pace() -> None:
        # The loop's own timers are as coarse as a millisecond.
        for index, at in enumerate(due):
            time.sleep(max(0.0, began + at - time.perf_counter()))
            loop.call_soon_threadsafe(send, index)

    threading.Thread(target=pace, daemon=True).start()
    await everything_sent.wait()
    samples = await asyncio.gather(*tasks)
    return summarize(samples, began, time.process_time() - cpu)


async def _one(ask: Ask, payload: bytes, due: float) -> Sample:
    sent = time.perf_counter()
    try:
        await ask(payload)
    except AskError as err:
        return Sample(due, sent, time.perf_counter(), str(err))
    return Sample(due, sent, time.perf_counter())
