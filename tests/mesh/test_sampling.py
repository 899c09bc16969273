"""A comparison decides as the SDK's sampler would, and the span has the id that was compared."""

import threading

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    ParentBasedTraceIdRatio,
    Sampler,
    StaticSampler,
    TraceIdRatioBased,
)
from opentelemetry.trace import NoOpTracer

from mesh.sampling import Roots, give_id, root_bound
from mesh.telemetry import start_span, trace_of
from tests.mesh.spans import SAMPLED, TRACE_ID, Spans

QUARTER = 1 << 62


def sampler_of(monkeypatch: pytest.MonkeyPatch, name: str, argument: str = "") -> Sampler:
    """Return what the SDK makes of `OTEL_TRACES_SAMPLER`."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", name)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", argument)
    return TracerProvider().sampler


@pytest.mark.parametrize(
    ("name", "argument", "bound"),
    [
        ("always_off", "", 0),
        ("parentbased_always_off", "", 0),
        ("traceidratio", "0.25", QUARTER),
        ("parentbased_traceidratio", "0.25", QUARTER),
        ("traceidratio", "0", 0),
        ("always_on", "", None),
        ("parentbased_always_on", "", None),
    ],
)
def test_each_sampler_of_the_variable_is_known(
    name: str, argument: str, bound: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert root_bound(sampler_of(monkeypatch, name, argument)) == bound


class Odd(TraceIdRatioBased):
    """Decides otherwise than its name says."""


class OddParent(ParentBased):
    """The same for requests with a parent."""


@pytest.mark.parametrize(
    "sampler",
    [
        Odd(0.5), OddParent(ALWAYS_OFF), ParentBased(Odd(0.5)),
        StaticSampler(Decision.RECORD_ONLY),
    ],
    ids=["subclass", "parent_based_subclass", "subclass_as_root", "record_only"],
)  # fmt: skip
def test_sampler_that_is_not_the_sdk_s_is_asked_itself(sampler: Sampler) -> None:
    assert root_bound(sampler) is None
    assert Roots(Spans(sampler).tracer).begin() == b""


@pytest.mark.parametrize(
    "sampler", [TraceIdRatioBased(0.25), ParentBasedTraceIdRatio(0.25)], ids=["ratio", "parent"]
)
def test_root_is_sampled_as_the_sampler_decides_on_its_trace_id(sampler: Sampler) -> None:
    spans = Spans(sampler)
    roots = Roots(spans.tracer)
    sampled = 0
    for _ in range(2000):
        trace = roots.begin()
        if not trace:
            sampled += 1
            span = start_span(spans.tracer, "root")
            assert span.is_recording()
            trace = trace_of(span)
            span.end()
        decision = sampler.should_sample(None, int.from_bytes(trace[:16], "big"), "root").decision
        assert (decision is Decision.RECORD_AND_SAMPLE) is (trace[24] & 1 == 1)
    assert 350 < sampled < 650  # 500 are expected, with a deviation of 19
    assert len(spans.all) == sampled == spans.ids.spans


def test_context_of_a_root_is_as_the_sdk_s() -> None:
    begun = Roots(Spans(ALWAYS_OFF).tracer).begin()
    made = trace_of(start_span(Spans(ALWAYS_OFF).tracer, "root"))
    assert len(begun) == len(made) == 25
    assert begun[24] == made[24] == 2  # random, not sampled
    assert any(begun[:16])
    assert any(begun[16:24])


def test_roots_have_ids_of_their_own() -> None:
    roots = Roots(Spans(ALWAYS_OFF).tracer)
    assert len({roots.begin()[:16] for _ in range(100)}) == 100


def test_where_everything_is_sampled_a_span_is_made() -> None:
    assert Roots(Spans(ALWAYS_ON).tracer).begin() == b""


@pytest.mark.parametrize(("rate", "spans"), [(0.5, True), (0, False)], ids=["half", "none"])
def test_ids_of_another_generator_leave_the_decision_to_the_span(rate: float, spans: bool) -> None:
    """Else a ratio would be applied twice, to two ids."""
    tracer = TracerProvider(TraceIdRatioBased(rate)).get_tracer("other")
    begun = [Roots(tracer).begin() for _ in range(20)]
    assert all((trace == b"") is spans for trace in begun)


def test_tracer_that_is_not_the_sdk_s_is_asked_itself() -> None:
    assert Roots(NoOpTracer()).begin() == b""
    give_id(NoOpTracer(), SAMPLED)  # and takes no id


def test_given_id_is_that_of_one_root() -> None:
    spans = Spans()
    give_id(spans.tracer, SAMPLED)
    first, second = (trace_of(start_span(spans.tracer, "root")) for _ in range(2))
    assert first[:16] == TRACE_ID
    assert second[:16] != TRACE_ID


def test_given_id_is_not_taken_by_another_thread() -> None:
    spans = Spans()
    give_id(spans.tracer, SAMPLED)
    found: list[bytes] = []
    thread = threading.Thread(
        target=lambda: found.append(trace_of(start_span(spans.tracer, "root")))
    )
    thread.start()
    thread.join()
    assert found[0][:16] != TRACE_ID
    assert trace_of(start_span(spans.tracer, "root"))[:16] == TRACE_ID


def test_given_id_is_not_taken_by_a_child() -> None:
    spans = Spans()
    give_id(spans.tracer, bytes(15) + b"\7" + bytes(9))
    assert trace_of(start_span(spans.tracer, "child", SAMPLED))[:16] == TRACE_ID
    assert trace_of(start_span(spans.tracer, "root"))[:16] == bytes(15) + b"\7"
