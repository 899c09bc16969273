"""A comparison decides as the SDK's sampler would, and other samplers are asked themselves."""

from collections.abc import Sequence

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Tracer as SdkTracer
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    ParentBasedTraceIdRatio,
    Sampler,
    SamplingResult,
    StaticSampler,
    TraceIdRatioBased,
)
from opentelemetry.trace import Link, SpanKind, TraceState, get_current_span
from opentelemetry.util.types import Attributes

from mesh.sampling import Sampling, follows, root_bound
from mesh.telemetry import is_sampled, start_span, trace_of
from tests.mesh.spans import SAMPLED, UNSAMPLED, Spans

METHOD = "mesh.v1.Infer/Run"
ALL = 1 << 64
QUARTER = 1 << 62


def sampling(sampler: Sampler) -> Sampling:
    tracer = Spans(sampler).tracer
    assert isinstance(tracer, SdkTracer)
    return Sampling(tracer, METHOD)


def sampler_of(monkeypatch: pytest.MonkeyPatch, name: str, argument: str = "") -> Sampler:
    """Return what the SDK makes of `OTEL_TRACES_SAMPLER`."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", name)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", argument)
    return TracerProvider().sampler


@pytest.mark.parametrize(
    ("name", "argument", "bound", "goes_on"),
    [
        ("always_off", "", 0, False),
        ("parentbased_always_off", "", 0, True),
        ("traceidratio", "0.25", QUARTER, False),
        ("parentbased_traceidratio", "0.25", QUARTER, True),
        ("traceidratio", "0", 0, False),
        ("always_on", "", ALL, True),
        ("parentbased_always_on", "", ALL, True),
    ],
)
def test_each_sampler_of_the_variable_is_known(
    name: str, argument: str, bound: int, goes_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = sampler_of(monkeypatch, name, argument)
    assert (root_bound(sampler), follows(sampler)) == (bound, goes_on)


class Odd(Sampler):
    """Samples targets by their names, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, str, object, object, bool]] = []

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        parent = get_current_span(parent_context).get_span_context()
        found = dict(attributes or {})
        self.asked.append((trace_id, name, kind, found["mesh.target"], parent.is_valid))
        wanted = found["mesh.target"] == "wanted"
        return SamplingResult(Decision.RECORD_AND_SAMPLE if wanted else Decision.DROP)

    def get_description(self) -> str:
        return "AlwaysOnSampler"  # is not to be believed


class OddRatio(TraceIdRatioBased):
    """No sampler of the SDK's, whatever it is made from."""


@pytest.mark.parametrize(
    "sampler",
    [
        Odd(), OddRatio(0.5), ParentBased(OddRatio(0.5), OddRatio(0.5)),
        StaticSampler(Decision.RECORD_ONLY), ParentBased(ALWAYS_ON, ALWAYS_OFF),
    ],
    ids=["other", "subclass", "delegates", "record_only", "parent_off"],
)  # fmt: skip
def test_sampler_that_is_not_the_sdk_s_is_no_comparison(sampler: Sampler) -> None:
    assert (root_bound(sampler) in (None, ALL), follows(sampler)) == (True, False)


def test_sampler_that_is_not_the_sdk_s_is_asked_for_each_request_that_may_be_sampled() -> None:
    odd = Odd()
    asking = sampling(odd)
    for target in ("wanted", "other"):
        for came in (b"", SAMPLED):
            assert is_sampled(asking.decide(came, target)) is (target == "wanted")
    assert asking.decide(UNSAMPLED, "wanted") == UNSAMPLED
    assert [asked[1:] for asked in odd.asked] == [
        (METHOD, SpanKind.SERVER, target, parent)
        for target in ("wanted", "other")
        for parent in (False, True)
    ]
    assert odd.asked[1][0] == int.from_bytes(SAMPLED[:16], "big")


def test_span_that_would_record_and_not_leave_is_not_sampled() -> None:
    asking = sampling(StaticSampler(Decision.RECORD_ONLY))
    assert not is_sampled(asking.decide(b"", "t"))
    assert not is_sampled(asking.decide(SAMPLED, "t"))


@pytest.mark.parametrize(
    "sampler",
    [TraceIdRatioBased(0.25), ParentBasedTraceIdRatio(0.25), OddRatio(0.25)],
    ids=["ratio", "parent", "asked"],
)
def test_root_is_sampled_as_the_sampler_decides_on_its_trace_id(sampler: Sampler) -> None:
    deciding = sampling(sampler)
    traces = [deciding.decide(b"", "t") for _ in range(2000)]
    for trace in traces:
        decision = sampler.should_sample(None, int.from_bytes(trace[:16], "big"), METHOD).decision
        assert is_sampled(trace) is (decision is Decision.RECORD_AND_SAMPLE)
    assert 350 < sum(map(is_sampled, traces)) < 650  # 500 are expected, with a deviation of 19
    assert len({trace[:16] for trace in traces}) == 2000


@pytest.mark.parametrize("sampler", [ALWAYS_ON, ALWAYS_OFF], ids=["on", "off"])
@pytest.mark.parametrize("came", [b"", SAMPLED], ids=["root", "child"])
def test_context_is_as_that_of_the_sdk_s_span(sampler: Sampler, came: bytes) -> None:
    ours = sampling(sampler).decide(came, "t")
    sdks = trace_of(start_span(Spans(sampler).tracer, METHOD, came))
    assert len(ours) == len(sdks) == 25
    assert ours[24] == sdks[24]
    assert any(ours[:16])
    assert any(ours[16:24])
    assert (ours[:16] == sdks[:16]) is bool(came)


def test_sampled_caller_has_a_child_with_an_id_of_its_own() -> None:
    children = {sampling(ALWAYS_ON).decide(SAMPLED, "t") for _ in range(10)}
    assert {child[:16] + child[24:] for child in children} == {SAMPLED[:16] + SAMPLED[24:]}
    assert len({child[16:24] for child in children} | {SAMPLED[16:24]}) == 11


@pytest.mark.parametrize("came", [UNSAMPLED, b"x", SAMPLED + b"\1", bytes(25)], ids=repr)
def test_context_that_asks_for_nothing_stays_as_it_is(came: bytes) -> None:
    assert sampling(ALWAYS_ON).decide(came, "t") == came
