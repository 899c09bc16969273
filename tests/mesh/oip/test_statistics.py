"""Counts of all processes, added up."""

from collections import Counter

from prometheus_client.core import UnknownMetricFamily

from mesh.oip.statistics import Sums, add_samples, model_statistics


def test_other_metrics_and_other_models_are_kept_apart() -> None:
    sums = Sums()
    for _ in range(2):  # two processes
        for name in ("nv_inference_count", "process_open_fds"):
            family = UnknownMetricFamily(name, "", labels=["model", "version"])
            family.add_metric(["a", "1"], 3)
            family.add_metric(["a", "2"], 4)
            add_samples(sums, [family])
    assert sums == {
        ("a", "1"): {"nv_inference_count": 6},
        ("a", "2"): {"nv_inference_count": 8},
    }


def test_durations_are_in_nanoseconds() -> None:
    sums = Counter({
        "nv_inference_count": 7, "nv_inference_exec_count": 3, "nv_inference_request_success": 5,
        "nv_inference_request_duration_us": 1500, "nv_inference_request_failure": 2,
    })  # fmt: skip
    found = model_statistics("m", "1", sums)
    assert (found.inference_count, found.execution_count) == (7, 3)
    stats = found.inference_stats
    assert (stats.success.count, stats.success.ns, stats.fail.count) == (5, 1_500_000, 2)


def test_model_that_nobody_asked_has_zeros() -> None:
    found = model_statistics("m", "1", Counter())
    assert (found.inference_count, found.inference_stats.success.ns) == (0, 0)
