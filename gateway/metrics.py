"""Prometheus metrics of the gateway."""

import time
from collections.abc import Mapping
from functools import partial

from prometheus_client import Counter, Gauge, Histogram

from gateway.admission import Admission
from gateway.pipeline import Stages
from mesh.client import StageClient
from mesh.item import Handler, Layer, Reply, Request, name_of
from mesh.status import code_from_number

REQUESTS = Counter(
    "mesh_gateway_requests", "Requests answered, by pipeline and status", ["pipeline", "code"]
)
DURATION = Histogram(
    "mesh_gateway_request_duration_seconds",
    "From the request's arrival to its answer",
    ["pipeline"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 10),
)
LIMIT = Gauge(
    "mesh_gateway_admission_limit", "Requests of a pipeline that may be under way", ["pipeline"]
)
INFLIGHT = Gauge("mesh_gateway_inflight", "Requests not answered yet")
RESUMED = Counter("mesh_gateway_generations_resumed", "Generations that went on at another replica")
LATE_TRACES = Counter(
    "mesh_gateway_late_traces",
    "Slow or failed requests whose trace was written afterwards, or dropped for their number",
    ["result"],
)
REPLICAS = Gauge("mesh_stage_replicas", "Replicas of a stage that take items", ["stage"])
WAITING = Gauge("mesh_stage_waiting", "Requests that wait for a replica's credit", ["stage"])
RETRIES = Gauge("mesh_stage_retries", "Items sent a second time, since the start", ["stage"])


def metering() -> Layer:
    """Count and time every pipeline request; unknown names share one label."""

    def layer(handler: Handler) -> Handler:
        async def metered(request: Request) -> Reply:
            started = time.monotonic()
            INFLIGHT.inc()
            code, known = "CANCELLED", True
            try:
                reply = await handler(request)
                code = code_from_number(reply.status.code if reply.status else 0).name
                known = code != "NOT_FOUND"
                return reply
            finally:
                pipeline = name_of(request.target) if known else "unknown"
                INFLIGHT.dec()
                REQUESTS.labels(pipeline, code).inc()
                DURATION.labels(pipeline).observe(time.monotonic() - started)

        return metered

    return layer


def watch_admissions(admissions: Mapping[str, Admission]) -> None:
    """Export the bounds of pipelines, read at each scrape; infinity: nothing is refused."""
    for pipeline, admission in admissions.items():
        LIMIT.labels(pipeline).set_function(partial(getattr, admission, "limit"))


def watch_stages(stages: Stages) -> None:
    """Export the state of the stages' clients, read at each scrape."""
    for client in stages.all():
        _watch(client)


def _watch(client: StageClient) -> None:
    REPLICAS.labels(client.stage).set_function(lambda: len(client.replicas))
    WAITING.labels(client.stage).set_function(lambda: client.waiting)
    RETRIES.labels(client.stage).set_function(lambda: client.retries)
