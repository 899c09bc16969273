"""Runs a model that is made of others: each step as soon as its tensors are there."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable

from opentelemetry.trace import Tracer, use_span

from infer_svc.config import MICRO, ModelConfig, Step
from infer_svc.metrics import ModelMetrics, reason_of
from infer_svc.queue import ShapeKey, read_wishes
from mesh.errors import MeshError, NotFound, StageUnavailable
from mesh.item import Reply, Request, Timings
from mesh.layers import span_timings
from mesh.telemetry import TARGET, is_sampled, start_span, trace_of
from mesh.tensor import Tensors, pack, unpack

Run = Callable[[Request, Tensors], Awaitable[Reply]]
"""Runs one request on the model that is its target."""


class Ensemble:
    """The steps of one model. Lives in the event loop.

    A step is a request to its model like any other: it waits in the model's own queue, shares
    batches there, and runs on the model's lanes, on whatever GPU they are. So the parts of a model
    work on different requests at the same time.

    Args:
        config: of the ensemble, checked.
        run: runs one request on another model of this process.
        metrics: of the ensemble itself.
        tracer: for spans of steps; samples everything.
    """

    def __init__(
        self, config: ModelConfig, run: Run, tracer: Tracer, metrics: ModelMetrics
    ) -> None:
        self._metrics = metrics
        self.config = config
        self.run_model = run
        self.tracer = tracer

    async def run(self, request: Request, tensors: Tensors, key: ShapeKey, rows: int) -> Reply:
        """Run a request through all steps and return its outputs.

        Args:
            request: with its deadline, which holds for all steps together.
            tensors: its inputs, already compared with the ensemble's.
            key: not used; as in `Batcher.run`.
            rows: of it.

        Raises:
            StageUnavailable: a step's model is not loaded now.
            MeshError: what a step failed with; the text names the step's model. The other steps
                are cancelled.
        """
        began = time.monotonic()
        flow = Flow(self, request, tensors)
        try:
            async with asyncio.TaskGroup() as group:
                flow.start_ready(group, Timings())
        except ExceptionGroup as failed:
            first = failed.exceptions[0]
            self._metrics.failed(1, reason_of(first))
            raise first from first.__cause__
        except BaseException as err:
            self._metrics.failed(1, reason_of(err))
            raise
        sums = flow.timings
        self._metrics.batch(requests=1, rows=rows, queue_s=sums.queue, run_s=sums.run)
        self._metrics.answered(1, time.monotonic() - began)
        return Reply(flow.payload(), timings=sums)


class Flow:
    """One request on its way through the steps."""

    def __init__(self, ensemble: Ensemble, request: Request, tensors: Tensors) -> None:
        self._ensemble = ensemble
        self._request = request
        self._waiting = list(ensemble.config.ensemble)
        self._wishes = read_wishes(request.parameters)
        self._outputs = [spec.name for spec in ensemble.config.outputs]
        self._payload: bytes | None = None
        self.tensors = dict(tensors)
        """Those that are there, by their names in the ensemble."""
        self.timings = Timings()
        """Sums of the steps that the newest tensor had to wait for, one after the other."""

    def start_ready(self, group: asyncio.TaskGroup, before: Timings) -> None:
        """Start the steps whose tensors are all there; `before` are sums until now."""
        for step in list(self._waiting):
            if all(tensor in self.tensors for _, tensor in step.inputs):
                self._waiting.remove(step)
                group.create_task(self._finish(step, group, before))

    def payload(self) -> bytes:
        """Return the serialized outputs; as a step made them, where they are exactly its own."""
        if self._payload is not None:
            return self._payload
        return pack({name: self.tensors[name] for name in self._outputs})

    async def _finish(self, step: Step, group: asyncio.TaskGroup, before: Timings) -> None:
        reply = await self._run(step)
        outputs = unpack(reply.payload)
        self.tensors |= {tensor: outputs[name] for name, tensor in step.outputs}
        if outputs.keys() == set(self._outputs) == {n for n, t in step.outputs if n == t}:
            self._payload = reply.payload
        own = reply.timings or Timings()
        self.timings = Timings(
            before.queue + own.queue, before.batch + own.batch, before.run + own.run,
            own.batch_rows, traced=is_sampled(self._request.trace),
        )  # fmt: skip
        self.start_ready(group, self.timings)

    async def _run(self, step: Step) -> Reply:
        """Run a step, in a span of its own when the request is sampled."""
        inputs = {name: self.tensors[tensor] for name, tensor in step.inputs}
        request = Request(
            step.target, b"", self._parameters(), deadline=self._request.deadline,
            trace=self._request.trace, client=self._request.client,
        )  # fmt: skip
        if not is_sampled(request.trace):
            return await self._ask(request, inputs)
        tracer = self._ensemble.tracer
        span = start_span(
            tracer, f"step {step.model}", request.trace, attributes={TARGET: step.model},
            started=request.received,
        )  # fmt: skip
        request.trace = trace_of(span)
        with use_span(span, end_on_exit=True):
            reply = await self._ask(request, inputs)
            if reply.timings is not None:
                span_timings(tracer, request, reply.timings)
            return reply

    async def _ask(self, request: Request, inputs: Tensors) -> Reply:
        name = f"step {request.target!r} of ensemble {self._ensemble.config.name!r}"
        try:
            return await self._ensemble.run_model(request, inputs)
        except NotFound as err:  # it was there when the ensemble was loaded
            raise StageUnavailable(f"{name} is not loaded now; try again in a moment") from err
        except MeshError as err:
            raise type(err)(f"{name}: {err}") from err

    def _parameters(self) -> bytes:
        """Return the request's parameters with what is left of its timeout."""
        priority, timeout_us = self._wishes
        if timeout_us <= 0:
            return self._request.parameters
        gone_us = int((time.monotonic() - self._request.received) / MICRO)
        # 0 would mean no timeout; what is to be done with a late one, the model's policy says.
        left_us = max(1, timeout_us - gone_us)
        return json.dumps({"priority": priority, "timeout": left_us}).encode()
