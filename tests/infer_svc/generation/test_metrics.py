"""Generations counted and timed, as a scrape sees them."""

from functools import partial

from prometheus_client.metrics_core import Metric

from infer_svc.generation.metrics import GAUGES, HISTOGRAMS, GenerationMetrics, families
from infer_svc.generation.running import LENGTH, STOP, Finish

LABELS = ("model", "version")


def numbers(name: str = "dates") -> GenerationMetrics:
    gauges = {"slots": 8, "busy": 3, "waiting": 2, "cache_bytes": 1 << 20}
    return GenerationMetrics(
        (name, "1"), {key: partial(float, value) for key, value in gauges.items()}
    )


def samples(*models: GenerationMetrics) -> dict[str, float]:
    found: list[Metric] = list(families(models, LABELS))
    return {
        sample.name + "".join(f" {value}" for value in sample.labels.values()): sample.value
        for family in found
        for sample in family.samples
    }


def test_without_a_model_that_generates_there_is_nothing() -> None:
    assert list(families([], LABELS)) == []


def test_times_are_those_of_the_conventions() -> None:
    metrics = numbers()
    metrics.finished(Finish(STOP, 10.0, 10.5, 11.0, 12.0), read=7, made=5)
    metrics.finished(Finish(LENGTH, 10.0, 10.0, 10.25, 10.25), read=3, made=1)
    found = samples(metrics)
    assert found["gen_ai_server_time_to_first_token_seconds_sum dates 1"] == 1.25
    assert found["gen_ai_server_time_per_output_token_seconds_sum dates 1"] == 0.25
    assert found["gen_ai_server_time_per_output_token_seconds_count dates 1"] == 1
    assert found["gen_ai_server_request_duration_seconds_sum dates 1"] == 2.25
    assert found["mesh_generation_queue_seconds_sum dates 1"] == 0.5
    assert found["mesh_generation_tokens_total dates 1 input"] == 10
    assert found["mesh_generation_tokens_total dates 1 output"] == 6
    assert found["mesh_generation_finishes_total dates 1 stop"] == 1
    assert found["mesh_generation_finishes_total dates 1 length"] == 1


def test_gauges_are_read_at_the_scrape() -> None:
    found = samples(numbers("a"), numbers("b"))
    assert {name: found[f"{name} b 1"] for name in GAUGES} == {
        "mesh_generation_slots": 8, "mesh_generation_slots_busy": 3,
        "mesh_generation_waiting": 2, "mesh_generation_cache_bytes": 1 << 20,
    }  # fmt: skip
    assert all(f"{name}_count a 1" in found for name in HISTOGRAMS)
