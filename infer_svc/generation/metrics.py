"""What generations of a model count and time, and the Prometheus families of that.

Names of times are those of OpenTelemetry's GenAI semantic conventions, as Prometheus writes them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from infer_svc.generation.running import Finish
from infer_svc.tally import Tally, histogram

FIRST_BOUNDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
"""Seconds; those that the conventions advise, as for the others."""
TOKEN_BOUNDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
)  # fmt: skip
"""With three smaller ones: a small model's token takes less than the 10 ms that they begin with."""
REQUEST_BOUNDS = (
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
)  # fmt: skip

HISTOGRAMS = {
    "gen_ai_server_time_to_first_token_seconds": ("From a request to its first token", "first"),
    "gen_ai_server_time_per_output_token_seconds": ("Between a request's tokens", "token"),
    "gen_ai_server_request_duration_seconds": ("From a request to its last token", "request"),
    "mesh_generation_queue_seconds": ("Waiting for a slot", "queue"),
}
GAUGES = {
    "mesh_generation_slots": ("Generations that may be under way", "slots"),
    "mesh_generation_slots_busy": ("Generations under way", "busy"),
    "mesh_generation_waiting": ("Generations that wait for a slot", "waiting"),
    "mesh_generation_cache_bytes": ("Caches of all slots", "cache_bytes"),
}


@dataclass
class GenerationMetrics:
    """The numbers of one version of a model; added to in the event loop."""

    labels: tuple[str, str]
    """Model and version."""
    gauges: dict[str, Callable[[], float]]
    """Functions by the names in `GAUGES`; called at each scrape."""
    tokens: Counter[str] = field(default_factory=Counter)
    """By `input` and `output`."""
    finishes: Counter[str] = field(default_factory=Counter)
    """By reason: `stop`, `length`, `cancelled`, `deadline`, `error`."""
    first: Tally = field(default_factory=lambda: Tally(FIRST_BOUNDS))
    token: Tally = field(default_factory=lambda: Tally(TOKEN_BOUNDS))
    request: Tally = field(default_factory=lambda: Tally(REQUEST_BOUNDS))
    queue: Tally = field(default_factory=lambda: Tally(FIRST_BOUNDS))

    def finished(self, finish: Finish, read: int, made: int) -> None:
        """Count a generation.

        Args:
            finish: how it ended.
            read: ids of its text.
            made: tokens that it gave.
        """
        self.finishes[finish.reason] += 1
        self.tokens["input"] += read
        self.tokens["output"] += made
        self.queue.add(finish.admitted - finish.asked)
        self.first.add(finish.first - finish.asked)
        self.request.add(finish.ended - finish.asked)
        if made > 1:
            self.token.add((finish.ended - finish.first) / (made - 1))


def families(models: Iterable[GenerationMetrics], names: tuple[str, ...]) -> Iterator[Metric]:
    """Return every family with the samples of all models; none where no model generates.

    Args:
        models: that generate.
        names: of the labels.
    """
    models = list(models)
    if not models:
        return
    for name, (text, attribute) in HISTOGRAMS.items():
        tallies = {model.labels: getattr(model, attribute) for model in models}
        yield histogram(name, text, names, tallies)
    for name, (text, key) in GAUGES.items():
        gauge = GaugeMetricFamily(name, text, labels=names)
        for model in models:
            gauge.add_metric(model.labels, model.gauges[key]())
        yield gauge
    tokens = CounterMetricFamily(
        "mesh_generation_tokens", "Read and made", labels=(*names, "gen_ai_token_type")
    )
    finishes = CounterMetricFamily(
        "mesh_generation_finishes", "Generations that ended, and why", labels=(*names, "reason")
    )
    for model in models:
        for kind, count in dict(model.tokens).items():
            tokens.add_metric((*model.labels, kind), count)
        for reason, count in dict(model.finishes).items():
            finishes.add_metric((*model.labels, reason), count)
    yield tokens
    yield finishes
