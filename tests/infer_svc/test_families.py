"""Triton's names come exactly, ours as Prometheus wants them, by model and version."""

from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest, parser
from prometheus_client.openmetrics import exposition
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.samples import Sample

from infer_svc.families import (
    COUNTERS,
    GAUGES,
    GPU_GAUGES,
    HISTOGRAMS,
    LABELLED,
    TRITON,
    GpuFigures,
    InferMetrics,
)
from infer_svc.metrics import ModelMetrics

REASONS = {"REJECTED", "CANCELED", "BACKEND", "OTHER"}


class Rig:
    """Metrics in a registry of their own, read as Prometheus reads them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self.metrics = InferMetrics(self.registry)

    def samples(self, *, is_open: bool = False) -> list[Sample]:
        write: Any = exposition.generate_latest if is_open else generate_latest
        parse: Any = openmetrics if is_open else parser
        text = write(self.registry, **({"version": "1.0.0"} if is_open else {})).decode()
        families = parse.text_string_to_metric_families(text)
        return [sample for family in families for sample in family.samples]

    def names(self) -> set[str]:
        return {sample.name for sample in self.samples()}

    def value(self, name: str, **labels: str) -> float | None:
        labels = {"model": "m", "version": "3", **labels}
        found = {
            sample.value
            for is_open in (False, True)
            for sample in self.samples(is_open=is_open)
            if sample.name == name and sample.labels == labels
        }
        assert len(found) <= 1
        return found.pop() if found else None


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def model(rig: Rig) -> Iterator[ModelMetrics]:
    yield rig.metrics.add("m", 3, 4)


def test_tritons_names_are_exactly_tritons(rig: Rig, model: ModelMetrics) -> None:
    model.batch(
        requests=2, rows=3, queue_s=0.5, run_s=0.02, h2d_s=0.001, d2h_s=0.002, around_s=0.001
    )
    model.answered(2, 0.6)
    model.failed(1, "BACKEND")
    model.watch_queue(lambda: 4, lambda: 1.5)
    assert rig.value("nv_inference_request_success") == 2
    assert rig.value("nv_inference_count") == 3
    assert rig.value("nv_inference_exec_count") == 1
    assert rig.value("nv_inference_request_duration_us") == 600_000
    assert rig.value("nv_inference_queue_duration_us") == 500_000
    assert rig.value("nv_inference_compute_input_duration_us") == 2_000
    assert rig.value("nv_inference_compute_infer_duration_us") == 40_000
    assert rig.value("nv_inference_compute_output_duration_us") == 6_000
    assert rig.value("nv_inference_pending_request_count") == 4
    failed = {
        reason: rig.value("nv_inference_request_failure", reason=reason) for reason in REASONS
    }
    assert failed == {"REJECTED": 0, "CANCELED": 0, "BACKEND": 1, "OTHER": 0}


def test_own_counters_end_with_one_total(rig: Rig, model: ModelMetrics) -> None:
    model.batch(requests=1, rows=1, queue_s=0, run_s=0.1, elements=80, padded=30)
    model.climbed("retry")
    model.reloaded()
    model.rebuilt("hang")
    model.batch_failed("EngineError")
    model.built("ok", 20.0)
    assert rig.value("mesh_infer_elements_total") == 80
    assert rig.value("mesh_infer_padded_elements_total") == 30
    assert rig.value("mesh_infer_recovery_steps_total", step="retry") == 1
    assert rig.value("mesh_infer_engine_reloads_total") == 1
    assert rig.value("mesh_infer_context_rebuilds_total", reason="hang") == 1
    assert rig.value("mesh_infer_batch_failures_total", kind="EngineError") == 1
    assert rig.value("mesh_infer_engine_builds_total", result="ok") == 1
    assert rig.value("mesh_infer_engine_build_seconds_bucket", le="15.0") == 0
    assert rig.value("mesh_infer_engine_build_seconds_bucket", le="60.0") == 1
    assert not [name for name in rig.names() if "total_total" in name]


def test_histograms_add_up_to_their_count(rig: Rig, model: ModelMetrics) -> None:
    for rows, run_s in ((1, 40e-6), (3, 60e-6), (4, 3.0)):
        model.batch(requests=1, rows=rows, queue_s=0, run_s=run_s, h2d_s=1e-4, d2h_s=1e-4)
    rows_of = {le: rig.value("mesh_infer_batch_rows_bucket", le=le) for le in ("1.0", "2.0", "4.0")}
    assert rows_of == {"1.0": 1, "2.0": 1, "4.0": 3}
    assert rig.value("mesh_infer_batch_rows_sum") == 8
    assert rig.value("mesh_infer_run_seconds_bucket", le="5e-05") == 1
    assert rig.value("mesh_infer_run_seconds_bucket", le="0.0001") == 2
    assert rig.value("mesh_infer_run_seconds_bucket", le="2.5") == 2
    assert rig.value("mesh_infer_run_seconds_bucket", le="+Inf") == 3
    for name in ("run", "h2d", "d2h", "around"):
        assert rig.value(f"mesh_infer_{name}_seconds_count") == 3


def test_gauges_are_read_at_each_scrape(rig: Rig, model: ModelMetrics) -> None:
    waiting: list[int] = []
    model.watch_queue(lambda: len(waiting), lambda: 2.5 if waiting else 0.0)
    model.watch_lanes(lambda: 2, lambda: len(waiting))
    assert [rig.value("mesh_infer_queue_depth"), rig.value("mesh_infer_queue_age_seconds")] == [
        0,
        0,
    ]
    waiting.append(1)
    assert rig.value("mesh_infer_queue_depth") == 1
    assert rig.value("mesh_infer_queue_age_seconds") == 2.5
    assert [rig.value("mesh_infer_lanes"), rig.value("mesh_infer_lanes_busy")] == [2, 1]


def test_gauge_that_cannot_be_read_hides_no_other(
    rig: Rig, model: ModelMetrics, caplog: pytest.LogCaptureFixture
) -> None:
    model.watch_queue(lambda: 1 // 0, lambda: 1.0)
    assert rig.value("mesh_infer_queue_depth") is None
    assert rig.value("mesh_infer_queue_age_seconds") == 1
    assert "metric cannot be read" in caplog.text


def test_figures_of_gpus_are_there_where_there_are_some(rig: Rig) -> None:
    assert not set(GPU_GAUGES) & set(rig.names())
    rig.metrics.watch_gpus(
        lambda: [GpuFigures("0", 10, 80, 3, 1024, 4096), GpuFigures("1", 20, 80, 0, 0, 0)]
    )
    found = {(sample.name, sample.labels["gpu"]): sample.value for sample in rig.samples()}
    assert found == {
        (name, gpu): value
        for gpu, values in (("0", (10, 80, 3, 1024, 4096)), ("1", (20, 80, 0, 0, 0)))
        for name, value in zip(GPU_GAUGES, values, strict=True)
    }


def test_driver_that_fails_hides_no_other_metric(
    rig: Rig, model: ModelMetrics, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> list[GpuFigures]:
        raise RuntimeError("the driver is gone")

    rig.metrics.watch_gpus(fail)
    model.answered(1, 0.1)
    assert rig.value("nv_inference_request_success") == 1
    assert "the driver is gone" in [getattr(record, "error", "") for record in caplog.records]


def test_versions_and_models_have_samples_of_their_own(rig: Rig) -> None:
    rig.metrics.add("m", 3, 4).answered(1, 0.1)
    rig.metrics.add("m", 4, 4).answered(2, 0.1)
    rig.metrics.add("n", 3, 4).answered(3, 0.1)
    found = [
        rig.value("nv_inference_request_success", model=name, version=version)
        for name, version in (("m", "3"), ("m", "4"), ("n", "3"))
    ]
    assert found == [1, 2, 3]
    heads = [line for line in generate_latest(rig.registry).decode().splitlines() if "# " in line]
    assert len(heads) == len(set(heads))


def test_version_that_is_added_again_goes_on_until_it_is_removed(rig: Rig) -> None:
    first = rig.metrics.add("m", 3, 4)
    first.answered(1, 0.1)
    assert rig.metrics.add("m", 3, 4) is first
    rig.metrics.remove(first)
    assert rig.value("nv_inference_request_success") is None
    second = rig.metrics.add("m", 3, 4)
    rig.metrics.remove(first)  # an old owner that is late
    assert rig.value("nv_inference_request_success") == 0
    assert second is not first


def test_closed_metrics_leave_the_registry_to_others(rig: Rig) -> None:
    with pytest.raises(ValueError, match="Duplicated"):
        InferMetrics(rig.registry)
    rig.metrics.close()
    assert rig.samples() == []
    InferMetrics(rig.registry)


def test_tables_name_what_a_model_has() -> None:
    model = ModelMetrics("m", 3, 4)
    for table in (TRITON, COUNTERS, HISTOGRAMS):
        assert all(hasattr(model, attribute) for _, attribute in table.values())
    assert all(hasattr(model, attribute) for _, attribute, _ in LABELLED.values())
    model.watch_queue(lambda: 0, lambda: 0)
    model.watch_lanes(lambda: 0, lambda: 0)
    assert model.gauges.keys() == GAUGES.keys()
