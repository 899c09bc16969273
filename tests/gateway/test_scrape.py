"""A scrape of the gateway shows the whole mesh, and whoever does not answer spoils nothing."""

import asyncio
import socket
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import pytest
from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    PlatformCollector,
    start_http_server,
)
from prometheus_client.core import CounterMetricFamily, UnknownMetricFamily
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from gateway.scrape import WORKER, Scrape
from mesh.client import StageClient
from mesh.families import metrics_method
from mesh.host import Host
from mesh.item import Handler, Reply, Request
from mesh.server import Limits
from mesh.settings import ServiceSettings, TelemetrySettings
from mesh.stage import Stage
from mesh.telemetry import configure
from mesh.unary import unary_method
from tests.conftest import STAGE, echo

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
SHORT_S = 0.3


class Replicas:
    """Replicas of one stage at sockets of their own; not one of them is SERVING yet."""

    def __init__(self, folder: str, stack: AsyncExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self.addresses: list[str] = []

    def address(self) -> str:
        """Return the address of one more replica, where nobody listens."""
        self.addresses.append(f"unix:{self._folder}/{len(self.addresses)}")
        return self.addresses[-1]

    async def add(self, registry: CollectorRegistry) -> None:
        settings = ServiceSettings(bind=self.address(), metrics_port=0, drain_s=1)
        tracing = configure("fake", TelemetrySettings())
        stage = Stage(STAGE, settings, echo, lambda _: (), tracing, Limits(), registry=registry)
        await self._start(stage.host)

    async def add_odd(self, metrics: Handler | None) -> None:
        """Add one that answers `Metrics` in its own way; None: it has no such method."""
        host = Host(self.address())
        method = unary_method(metrics or echo, "t")
        host.add(STAGE, {"Metrics" if metrics else "Describe": method})
        await self._start(host)

    async def _start(self, host: Host) -> None:
        await host.start()
        self._stack.push_async_callback(host.server.stop, None)

    async def scrape(self, own: CollectorRegistry, answer_s: float = 5.0) -> Scrape:
        client = StageClient(STAGE, ",".join(self.addresses))
        await self._stack.enter_async_context(client)
        return Scrape(own, [client], asyncio.get_running_loop(), answer_s)


@pytest.fixture
async def replicas() -> AsyncIterator[Replicas]:
    with tempfile.TemporaryDirectory(prefix="mesh-") as folder:
        async with AsyncExitStack() as stack:
            yield Replicas(folder, stack)


def busy(requests: int) -> CollectorRegistry:
    """Return the registry of a replica that counted so many requests."""
    registry = CollectorRegistry()
    Counter("done", "Requests done", ["model"], registry=registry).labels("m").inc(requests)
    took = Histogram("took_seconds", "Time", buckets=(0.1, 1), registry=registry)
    for _ in range(requests):
        took.observe(0.5)
    return registry


@dataclass
class Page:
    """What an HTTP scrape got."""

    text: str
    kind: str
    families: dict[str, Metric]

    def value(self, name: str, **labels: str) -> float | None:
        found = [
            sample.value
            for family in self.families.values()
            for sample in family.samples
            if sample.name == name and sample.labels == labels
        ]
        assert len(found) <= 1, f"{name} {labels} is there {len(found)} times"
        return found[0] if found else None

    def of(self, name: str, replica: str, **labels: str) -> float | None:
        return self.value(name, stage=STAGE, replica=replica, **labels)


@asynccontextmanager
async def http(scrape: Scrape) -> AsyncIterator[str]:
    server, thread = start_http_server(0, "127.0.0.1", scrape)
    try:
        yield f"http://127.0.0.1:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def get(url: str, accept: str) -> Page:
    request = urllib.request.Request(url, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=20) as answer:
        text, kind = answer.read().decode(), answer.headers["Content-Type"]
    is_open = kind.startswith("application/openmetrics-text")
    parse = (
        openmetrics.text_string_to_metric_families if is_open else text_string_to_metric_families
    )
    return Page(text, kind, {family.name: family for family in parse(text)})


async def page(scrape: Scrape, query: str = "", accept: str = "text/plain") -> Page:
    async with http(scrape) as url:
        return await asyncio.to_thread(get, url + query, accept)


@pytest.mark.parametrize("accept", ["text/plain", OPENMETRICS], ids=["text", "openmetrics"])
async def test_samples_of_every_replica_come_in_one_family(replicas: Replicas, accept: str) -> None:
    own = busy(1)
    Gauge("own", "Of the gateway alone", registry=own).set(7)
    await replicas.add(busy(2))
    await replicas.add(busy(3))
    one, two = replicas.addresses
    found = await page(await replicas.scrape(own), accept=accept)
    assert found.kind.startswith(accept.partition(";")[0])
    assert found.value("own") == 7
    assert found.value("done_total", model="m") == 1
    assert found.of("done_total", one, model="m") == 2
    assert found.of("done_total", two, model="m") == 3
    assert found.of("took_seconds_bucket", two, le="0.1") == 0
    assert found.of("took_seconds_bucket", two, le="1.0") == 3
    assert found.of("took_seconds_bucket", two, le="+Inf") == 3
    assert found.of("took_seconds_sum", two) == 1.5
    assert [found.of("mesh_replica_up", at) for at in (one, two)] == [1, 1]
    heads = [line for line in found.text.splitlines() if line.startswith("# ")]
    assert len(heads) == len(set(heads))


async def test_replica_tells_of_its_process_as_the_gateway_does(replicas: Replicas) -> None:
    await replicas.add(REGISTRY)
    found = await page(await replicas.scrape(REGISTRY))
    for name in ("process_resident_memory_bytes", "process_open_fds"):
        assert (found.value(name) or 0) > 0
        assert (found.of(name, replicas.addresses[0]) or 0) > 0
    assert found.of("python_gc_collections_total", replicas.addresses[0], generation="0")


async def test_names_without_total_stay_as_they_are(replicas: Replicas) -> None:
    registry = CollectorRegistry()
    registry.register(Given(UnknownMetricFamily("nv_inference_count", "Rows", value=5)))
    await replicas.add(registry)
    scrape = await replicas.scrape(CollectorRegistry())
    for accept in ("text/plain", OPENMETRICS):
        found = await page(scrape, accept=accept)
        assert found.of("nv_inference_count", replicas.addresses[0]) == 5


async def test_second_scrape_has_no_samples_of_the_first(replicas: Replicas) -> None:
    """Some collectors hand out the families that they keep."""
    own, theirs = CollectorRegistry(), CollectorRegistry()
    for registry in (own, theirs):
        PlatformCollector(registry)
    await replicas.add(theirs)
    scrape = await replicas.scrape(own)
    first, second = await page(scrape), await page(scrape)
    assert len(first.families["python_info"].samples) == 2
    assert second.text == first.text


async def hang(request: Request) -> Reply:
    await asyncio.Event().wait()
    return Reply()


async def garbage(request: Request) -> Reply:
    return Reply(b"\xff\xff\xff")


@pytest.mark.parametrize(
    "metrics", [hang, garbage, None], ids=["hangs", "garbage", "knows-no-metrics"]
)
async def test_replica_that_gives_no_answer_is_missing_and_told(
    replicas: Replicas, metrics: Handler | None
) -> None:
    await replicas.add_odd(metrics)
    await replicas.add(busy(3))
    odd, good = replicas.addresses
    started = time.monotonic()
    found = await page(await replicas.scrape(busy(1), SHORT_S))
    assert time.monotonic() - started < 5
    assert found.of("mesh_replica_up", odd) == 0
    assert found.of("mesh_replica_up", good) == 1
    assert found.of("done_total", good, model="m") == 3
    assert found.of("done_total", odd, model="m") is None


async def test_replica_that_is_away_is_missing_and_told(replicas: Replicas) -> None:
    gone = replicas.address()
    await replicas.add(busy(3))
    found = await page(await replicas.scrape(busy(1)))
    assert found.of("mesh_replica_up", gone) == 0
    assert found.of("done_total", replicas.addresses[1], model="m") == 3


async def test_replica_whose_process_is_stopped_is_missing_and_told(replicas: Replicas) -> None:
    """The kernel accepts for it, and nobody ever speaks."""
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(replicas.address().removeprefix("unix:"))
        silent.listen()
        await replicas.add(busy(3))
        started = time.monotonic()
        found = await page(await replicas.scrape(busy(1), SHORT_S))
        assert time.monotonic() - started < 5
    assert found.of("mesh_replica_up", replicas.addresses[0]) == 0
    assert found.of("done_total", replicas.addresses[1], model="m") == 3


async def test_replicas_that_hang_are_waited_for_side_by_side(replicas: Replicas) -> None:
    for _ in range(5):
        await replicas.add_odd(hang)
    scrape = await replicas.scrape(busy(1), SHORT_S)
    started = time.monotonic()
    found = await page(scrape)
    assert time.monotonic() - started < 4 * SHORT_S
    assert [found.of("mesh_replica_up", at) for at in replicas.addresses] == [0] * 5


async def test_event_loop_goes_on_while_a_scrape_waits(replicas: Replicas) -> None:
    began, release = asyncio.Event(), asyncio.Event()

    async def hold(request: Request) -> Reply:
        began.set()
        await release.wait()
        return Reply()

    await replicas.add_odd(hold)
    scraping = asyncio.create_task(page(await replicas.scrape(busy(1))))
    await asyncio.wait_for(began.wait(), 5)
    assert not scraping.done()
    release.set()
    assert (await scraping).of("mesh_replica_up", replicas.addresses[0]) == 1


async def test_family_of_another_type_is_left_out(
    replicas: Replicas, caplog: pytest.LogCaptureFixture
) -> None:
    registry = CollectorRegistry()
    Gauge("done", "Of another release", registry=registry).set(9)
    Gauge("other", "Not in conflict", registry=registry).set(1)
    await replicas.add(registry)
    found = await page(await replicas.scrape(busy(1)))
    assert found.of("done", replicas.addresses[0]) is None
    assert found.of("other", replicas.addresses[0]) == 1
    assert found.value("done_total", model="m") == 1
    assert "metrics of another type left out" in caplog.text


async def test_names_in_the_query_leave_out_the_others(replicas: Replicas) -> None:
    await replicas.add(busy(3))
    scrape = await replicas.scrape(busy(1))
    found = await page(scrape, "?name[]=done_total&name[]=mesh_replica_up")
    assert found.families.keys() == {"done", "mesh_replica_up"}
    assert len(found.families["done"].samples) == 2


async def test_stage_without_addresses_has_nobody_to_ask(replicas: Replicas) -> None:
    found = await page(Scrape(busy(1), [StageClient(STAGE, "")], asyncio.get_running_loop()))
    assert found.families["mesh_replica_up"].samples == []


async def test_data_workers_are_told_by_their_number_whatever_labels_a_sample_has(
    replicas: Replicas,
) -> None:
    registry = busy(2)
    Gauge("replicas", "Of a stage", ["stage"], registry=registry).labels("mesh.v1.Infer").set(3)
    host = Host(replicas.address())
    host.add(WORKER, {"Metrics": metrics_method(WORKER, registry)})
    await replicas._start(host)
    at, dead = replicas.addresses[0], replicas.address()
    loop = asyncio.get_running_loop()
    found = await page(Scrape(busy(1), [], loop, workers={"0": at, "1": dead}))
    assert found.value("done_total", model="m") == 1
    assert found.value("done_total", model="m", worker="0") == 2
    assert found.value("replicas", stage="mesh.v1.Infer", worker="0") == 3
    assert found.value("mesh_gateway_worker_up", worker="0") == 1
    assert found.value("mesh_gateway_worker_up", worker="1") == 0
    assert found.families["mesh_replica_up"].samples == []


class Given(Collector):
    """Families as they are."""

    def __init__(self, *families: Metric) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


class Known(StageClient):
    """A client that knows an address and never connects."""

    @property
    def addresses(self) -> list[str]:
        return ["127.0.0.1:1"]


def test_event_loop_that_is_stuck_or_closed_leaves_the_gateways_own() -> None:
    own, loop = CollectorRegistry(), asyncio.new_event_loop()
    own.register(Given(CounterMetricFamily("done", "", value=2)))
    scrape = Scrape(own, [Known(STAGE, "")], loop, answer_s=0.01)
    for closed in (False, True):
        if closed:
            loop.run_until_complete(end_tasks())
            loop.close()
        families = {family.name: family for family in scrape.collect()}
        assert families["done"].samples[0].value == 2
        assert [sample.value for sample in families["mesh_replica_up"].samples] == [0]


async def end_tasks() -> None:
    """Let the tasks end that were cancelled before they began."""
    await asyncio.sleep(0)
    await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)
