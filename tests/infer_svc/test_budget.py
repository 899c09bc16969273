"""Models that nobody asks for go when another has no room."""

from dataclasses import replace
from pathlib import Path

import pytest

from infer_svc.budget import MEBIBYTE, Budget, evictable, gpus_of
from infer_svc.served import Served
from mesh.errors import Refused, StageUnavailable
from tests.infer_svc.graphs import write_model
from tests.infer_svc.test_models import DYNAMIC, Open, opened, put, times


def on_gpu(served: Served, gpu: int = 0) -> Served:
    """Say of a model that it runs on a GPU."""
    places = [replace(place, gpu=gpu) for place in served.model.placements]
    served.model = replace(served.model, placements=tuple(places))
    return served


def budget(one: Open, monkeypatch: pytest.MonkeyPatch, most: int = 2) -> None:
    """Let each model take 10 MiB of a GPU that is none, and so many have room."""
    opener = one.models._opener
    whole = opener.open
    monkeypatch.setattr(opener, "open", lambda *args: on_gpu(whole(*args)))
    for served in one.models.served():
        on_gpu(served)
    one.models.budget = Budget(
        10 * most * MEBIBYTE, lambda gpu: 10 * MEBIBYTE * (1 + len(one.models.served()))
    )


async def test_model_that_was_not_asked_for_longest_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        write_model(tmp_path, name, times(1), DYNAMIC)
    async with opened(tmp_path) as one:
        budget(one, monkeypatch)
        await one.ask("b")
        await one.ask("a")
        write_model(tmp_path, "c", times(1), DYNAMIC)
        await one.models.load("c")
        assert one.models.names(ready=True) == ["a", "c"]
        with pytest.raises(StageUnavailable, match="'b' is unloaded, as another model needed"):
            await one.ask("b")
        await one.ask("c")
        await one.models.load("b")
        assert one.models.names(ready=True) == ["b", "c"]


async def test_model_for_which_nothing_can_go_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path, "a", times(1), DYNAMIC)
    async with opened(tmp_path) as one:
        budget(one, monkeypatch, most=1)
        write_model(tmp_path, "c", times(1), DYNAMIC)
        with (
            one.models.find("a").busy(),
            pytest.raises(
                Refused,
                match=r"'c' has no room: .*INFER_GPU_MBYTES \(10\): GPU 0 by 10 MiB; unload",
            ),
        ):
            await one.models.load("c")
        assert await one.says("a") == (1, 1)
        with pytest.raises(Refused, match="no room"):
            await one.ask("c")
        put(tmp_path, 2, name="a")
        with pytest.raises(Refused, match="no room"):
            await one.models.load("a")  # both versions are there for a moment
        assert await one.says("a") == (1, 1)


async def test_models_on_the_cpu_or_another_gpu_stay(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_model(tmp_path, name, times(1), DYNAMIC)
    async with opened(tmp_path) as one:
        a, b, c = (one.models.find(name) for name in "abc")
        on_gpu(b, 1)
        on_gpu(c, 0)
        assert gpus_of(a) == set()
        assert evictable([a, b, c], {0}) == [c]
        with c.busy():
            assert evictable([a, b, c], {0, 1}) == [b]
        b.used_at = c.used_at + 1
        assert evictable([a, b, c], {0, 1}) == [c, b]
        assert Budget(5, lambda gpu: 9).excess(a) == {}
        assert Budget(5, lambda gpu: 9).excess(b) == {1: 4}
        assert Budget(0, lambda gpu: 9).excess(b) == {}
