"""Counts of all replicas, added up."""

from collections import Counter

from prometheus_client.core import UnknownMetricFamily

from gateway.oip.statistics import model_statistics, statistics
from tests.gateway.stages import running_mesh


async def test_other_metrics_and_other_models_are_kept_apart() -> None:
    async with running_mesh() as mesh:
        for name in ("nv_inference_count", "process_open_fds"):
            family = UnknownMetricFamily(name, "", labels=["model", "version"])
            family.add_metric(["a", "1"], 3)
            family.add_metric(["a", "2"], 4)
            mesh.infer.families.append(family)
        found = await statistics(mesh.stages.infer)
        assert found == {
            ("a", "1"): {"nv_inference_count": 3},
            ("a", "2"): {"nv_inference_count": 4},
        }


async def test_replica_that_does_not_answer_is_left_out() -> None:
    async with running_mesh() as mesh:
        await mesh.infer.kill()
        assert await statistics(mesh.stages.infer) == {}


def test_model_that_nobody_asked_has_zeros() -> None:
    found = model_statistics("m", "1", Counter())
    assert (found.inference_count, found.inference_stats.success.ns) == (0, 0)
