import json
import logging
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infer_svc.backends.trt_api import load_api
from infer_svc.build.builds import Builds
from infer_svc.build.cache import CachedEngine, EngineCache
from infer_svc.build.child import Child
from infer_svc.build.manifest import Target
from infer_svc.build.order import Order, order_for
from infer_svc.build.recipe import Recipe
from infer_svc.config import ModelConfig, read_config
from mesh.errors import EngineError, SettingsError
from tests.infer_svc.build.orders import RTX, builder, key, manifest, model_folder, unbuildable

FAIL = """
import json, sys
json.load(sys.stdin)
print(json.dumps({"phase": "building", "step": 1, "steps": 3}))
print(json.dumps({"result": "failed", "error": "too hot; its log is there"}))
"""
HANG = "import sys, time; sys.stdin.read(); time.sleep(60)"
DIE_AT_WORK = """
import json, os, sys
from infer_svc.build import worker
from infer_svc.build.order import Order
def build(*_, **__):
    print("half way", file=sys.stderr, flush=True)
    os.kill(os.getpid(), 9)
worker.convert = build
worker.build(Order.from_json(sys.stdin.read()), lambda *_: None)
"""


class Children:
    """Starts builders and counts them."""

    def __init__(self, source: str | None = None) -> None:
        self.started = 0
        self._source = source

    def __call__(self, order: Order, limit_s: float) -> Child:
        self.started += 1
        return builder(self._source)(order, limit_s) if self._source else Child(order, limit_s)


def engine(builds: Builds, folder: Path, **changes: Any) -> CachedEngine:
    config: ModelConfig = replace(read_config(folder), **changes)
    return builds.engine_for(folder / "1/model.onnx", config, 0)


def full() -> Any:
    """The installed TensorRT-RTX, made to say that it is the full one."""
    api = load_api()
    api.is_rtx = False
    return api


def test_engine_is_built_once_and_then_found_without_a_child(tmp_path: Path) -> None:
    folder, children = model_folder(tmp_path / "models"), Children()
    builds = Builds(tmp_path / "engines", child=children)
    told: list[tuple[str, int, str]] = []
    builds.on_built = lambda config, version, result, _: told.append((config.name, version, result))
    first = engine(builds, folder)
    assert told == [("m", 1, "ok")]
    assert first.plan.stat().st_size > 0
    assert first.manifest is not None
    assert first.manifest.model == "m"
    assert engine(builds, folder) == first
    again = Builds(tmp_path / "engines", child=children)
    again.on_built = lambda *_: pytest.fail("nothing was built")
    assert engine(again, folder) == first
    assert children.started == 1
    assert (builds.counts.done, builds.counts.found, builds.counts.failed) == (1, 1, 0)
    assert (again.counts.done, again.counts.found) == (0, 1)
    assert builds.counts.seconds > 0
    assert builds.counts.model == builds.counts.phase == ""


def test_another_recipe_or_other_sizes_are_another_engine(tmp_path: Path) -> None:
    folder, children = model_folder(tmp_path / "models"), Children()
    builds = Builds(tmp_path / "engines", child=children)
    plans = {
        engine(builds, folder).plan,
        engine(builds, folder, recipe=Recipe(tf32=False)).plan,
        engine(builds, folder, max_rows=8).plan,
    }
    assert len(plans) == children.started == 3


def test_broken_entry_is_built_anew(tmp_path: Path) -> None:
    folder, children = model_folder(tmp_path / "models"), Children()
    builds = Builds(tmp_path / "engines", child=children)
    plan = engine(builds, folder).plan
    whole = plan.read_bytes()
    plan.write_bytes(whole[:100])
    assert engine(builds, folder).plan.read_bytes() == whole
    assert children.started == 2


def test_failed_build_tells_why_and_is_not_tried_again_at_once(tmp_path: Path) -> None:
    folder, children = model_folder(tmp_path / "models"), Children(FAIL)
    builds = Builds(tmp_path / "engines", child=children)
    told: list[str] = []
    builds.on_built = lambda _, __, result, ___: told.append(result)
    for _ in range(2):
        with pytest.raises(EngineError, match="no engine could be built: too hot; its log is"):
            engine(builds, folder)
    assert children.started == 1
    assert told == ["failed"]
    assert (builds.counts.failed, builds.counts.done) == (1, 0)
    with pytest.raises(EngineError):
        engine(builds, folder, max_rows=8)
    assert children.started == 2


def test_real_failure_names_its_log(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "models", content=unbuildable())
    with pytest.raises(EngineError, match=r"cannot build .*; its log is .*\.log$") as caught:
        engine(Builds(tmp_path / "engines"), folder)
    log = Path(str(caught.value).rpartition("its log is ")[2])
    assert "has no runners" in log.read_text()


def test_log_of_a_builder_that_is_killed_is_kept(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "models")
    builds = Builds(tmp_path / "engines", child=Children(DIE_AT_WORK))
    with pytest.raises(EngineError, match=r"killed by signal 9.*; its log is .*\.log$") as caught:
        engine(builds, folder)
    log = Path(str(caught.value).rpartition("its log is ")[2])
    assert "half way" in log.read_text()
    assert list((tmp_path / "engines/work").iterdir()) == []
    # The next process is not held up by what is left of it.
    assert engine(Builds(tmp_path / "engines"), folder).plan.exists()


def test_builder_that_hangs_is_an_error_at_the_limit(tmp_path: Path) -> None:
    builds = Builds(tmp_path / "engines", limit_s=0.5, child=Children(HANG))
    with pytest.raises(EngineError, match=r"longer than 0\.5 s.*; it left no log"):
        engine(builds, model_folder(tmp_path / "models"))


def test_close_ends_what_is_built_and_nothing_is_built_after_it(tmp_path: Path) -> None:
    folder, children = model_folder(tmp_path / "models"), Children(HANG)
    builds = Builds(tmp_path / "engines", child=children)
    errors: list[str] = []

    def build() -> None:
        try:
            engine(builds, folder)
        except EngineError as err:
            errors.append(str(err))

    thread = threading.Thread(target=build)
    thread.start()
    end = time.monotonic() + 20
    while not children.started:
        assert time.monotonic() < end
    builds.close()
    thread.join(20)
    assert not thread.is_alive()
    assert "this process is stopping" in errors[0]
    with pytest.raises(EngineError, match="this process is stopping"):
        engine(builds, folder, max_rows=8)
    assert children.started == 1


def test_progress_can_be_read_and_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [json.dumps({"phase": "building", "step": n, "steps": 99}) for n in range(100)]
    source = f"import sys; sys.stdin.read(); print({chr(10).join(lines)!r})"
    seen = []

    def child(order: Order, limit_s: float) -> Child:
        seen.append((builds.counts.model, builds.counts.phase))
        return builder(source)(order, limit_s)

    builds = Builds(tmp_path / "engines", child=child)
    with caplog.at_level(logging.INFO), pytest.raises(EngineError, match="ended with status 0"):
        engine(builds, model_folder(tmp_path / "models"))
    assert seen == [("m", "starting")]
    assert (builds.counts.step, builds.counts.steps) == (99, 99)
    events = [record.getMessage() for record in caplog.records]
    assert events.count("engine is being built") == 1


def test_full_tensorrt_does_not_build_on_a_gpu_that_serves_unless_told_so(tmp_path: Path) -> None:
    folder, children = model_folder(tmp_path / "models"), Children(FAIL)

    def builds(allowed: bool) -> Builds:
        return Builds(
            tmp_path / "engines", on_serving_gpu=allowed, api=full,
            capability=lambda gpu: (9, gpu), child=children,
        )  # fmt: skip

    starting = builds(False)
    starting.serves([1])  # another one
    with pytest.raises(EngineError, match="too hot"):
        engine(starting, folder)
    serving = builds(False)
    serving.serves([0, 1])
    with pytest.raises(EngineError, match=r"on sm_90 .*serve on GPU 0; .*trtmesh engine build m"):
        engine(serving, folder)
    allowed = builds(True)
    allowed.serves([0, 1])
    with pytest.raises(EngineError, match="too hot"):
        engine(allowed, folder)
    assert children.started == 2


def test_rtx_builds_beside_what_serves(tmp_path: Path) -> None:
    builds = Builds(tmp_path / "engines", child=Children(FAIL))
    builds.serves([0])
    with pytest.raises(EngineError, match="too hot"):
        engine(builds, model_folder(tmp_path / "models"))


def test_engine_of_full_tensorrt_in_the_cache_is_used_while_the_gpu_serves(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "models")
    cache = EngineCache(tmp_path / "engines")
    cache.open()
    order = order_for(folder / "1/model.onnx", read_config(folder), 0, cache.root)
    made = order.key(Target("tensorrt", load_api().version, "sm_90"))
    cache.begin(made)
    stored = cache.commit(made, manifest(made, b"plan"), b"plan")
    builds = Builds(tmp_path / "engines", api=full, capability=lambda _: (9, 0))
    builds.serves([0])
    assert engine(builds, folder) == stored


def test_plan_of_the_repository_needs_no_cache(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "models")
    (folder / "1/model.plan").write_bytes(b"plan")
    builds = Builds(tmp_path / "engines", child=Children(FAIL))
    found = engine(builds, folder, backend="tensorrt", filename="model.plan")
    assert found == CachedEngine(folder / "1/model.plan", None, None)
    assert not (tmp_path / "engines").exists()


def test_foreign_plan_of_the_repository_is_refused(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "models")
    (folder / "1/model.plan").write_bytes(b"plan")
    (folder / "1/manifest.json").write_text(
        manifest(key(target=replace(RTX, version="0.9")), b"plan").to_json()
    )
    with pytest.raises(EngineError, match=r"built for tensorrt_rtx 0\.9 on any GPU; here runs"):
        engine(Builds(tmp_path / "engines"), folder, backend="tensorrt", filename="model.plan")


class Plugins:
    """Of an API: records what is loaded."""

    is_rtx, flavour, version = True, "tensorrt_rtx", "1.5.0"

    def __init__(self) -> None:
        self.loaded: list[list[str]] = []

    def load_plugins(self, paths: list[Path]) -> None:
        self.loaded.append([path.name for path in paths])


def test_each_plugin_library_is_loaded_once_and_tensorrts_own_always(tmp_path: Path) -> None:
    folder, plugins = model_folder(tmp_path / "models"), Plugins()
    for name in ("a.so", "b.so"):
        (folder / name).write_text(name)
    api: Any = lambda: plugins  # noqa: E731
    builds = Builds(tmp_path / "engines", api=api, child=Children(FAIL))
    for names in ((), ("a.so",), ("a.so", "b.so", "b.so"), ()):
        with pytest.raises(EngineError):
            engine(builds, folder, plugins=names)
    assert plugins.loaded == [[], ["a.so"], ["b.so"]]


def test_plugin_for_a_flavour_without_plugins_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"plugins .*a\.so.* came, but tensorrt_rtx"):
        engine(Builds(tmp_path / "engines"), model_folder(tmp_path / "models"), plugins=("a.so",))
