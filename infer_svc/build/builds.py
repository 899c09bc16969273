"""Engines for the models of a process: from the repository, the cache, or a child that builds."""

import functools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from infer_svc.backends.cuda import device
from infer_svc.backends.tensorrt import tensorrt_api
from infer_svc.backends.trt_api import Api, Kernels, Profile
from infer_svc.build.cache import CachedEngine, EngineCache
from infer_svc.build.child import Child
from infer_svc.build.kernels import Compiling
from infer_svc.build.manifest import PORTABLE, TF32_OVERRIDE, Key, target_of
from infer_svc.build.order import Order, order_for, plugin_paths
from infer_svc.build.selection import plan_of, source_of
from infer_svc.config import ModelConfig
from mesh.errors import EngineError

log = logging.getLogger(__name__)

LOG_EVERY_S = 10.0
"""Between two lines about the steps of one phase."""
AGAIN_S = 300.0
"""A build that failed is not tried again before; its error is told at once."""
STOPPING = "this process is stopping"


@dataclass
class Counts:
    """What the builds of this process came to, and what one does now."""

    found: int = 0
    """Engines that were in the cache."""
    done: int = 0
    failed: int = 0
    seconds: float = 0.0
    """In children, for those that are done or failed."""
    model: str = ""
    """That is built now; empty: none."""
    phase: str = ""
    step: int = 0
    steps: int = 0
    """Of the phase; 0: not known."""


class Builds:
    """Finds engines, and builds them one at a time.

    Args:
        root: of the engine cache; made when it is first needed.
        limit_s: longest time for one build.
        on_serving_gpu: full TensorRT measures kernels while it builds, and disturbs what serves on
            that GPU: False refuses it, once something serves there.
        api: returns TensorRT; not called before an engine is wanted.
        capability: returns the compute capability of a GPU.
        child: starts a build.
        compiling: starts compilers of kernels.
    """

    def __init__(
        self,
        root: Path,
        *,
        limit_s: float = 3600.0,
        on_serving_gpu: bool = False,
        api: Callable[[], Api] = tensorrt_api,
        capability: Callable[[int], tuple[int, int]] = lambda gpu: device(gpu).compute_capability,
        child: Callable[[Order, float], Child] = Child,
        compiling: Compiling | None = None,
    ) -> None:
        self._start = child
        self._compiling = compiling or Compiling(limit_s)
        self.counts = Counts()
        self.on_built: Callable[[ModelConfig, int, str, float], None] = lambda *_: None
        """Called after each build with the config and version of its model, `ok` or `failed`, and
        the seconds it took."""
        self._cache = EngineCache(root)
        self._limit_s = limit_s
        self._on_serving_gpu = on_serving_gpu
        self._api = api
        self._capability = capability
        self._lock = threading.Lock()
        self._serving: set[int] = set()
        self._failed: dict[str, tuple[float, str]] = {}
        self._plugins: set[Path] = set()
        self._knows_plugins = False
        self._child: Child | None = None
        self.closed = False
        """Nothing is built any more."""

    def serves(self, gpus: Iterable[int]) -> None:
        """Tell that models answer requests on these GPUs from now on."""
        self._serving.update(gpus)

    def close(self) -> None:
        """End what is being built; nothing is built after it."""
        self.closed = True
        if (child := self._child) is not None:
            child.kill(STOPPING)
        self._compiling.close()

    def engine_for(
        self,
        path: Path,
        config: ModelConfig,
        gpu: int,
        profiles: Sequence[Profile] | None = None,
    ) -> CachedEngine:
        """Return the engine of a model for a GPU; blocks while it is built.

        A plan of the repository is taken as it is, if it is for this machine. What is in the
        cache is from the ONNX file beside it.

        Args:
            path: a file of the model, in the folder of its version.
            config: of the model.
            gpu: number among the visible ones.
            profiles: that it is built for; None: those of the config.

        Raises:
            SettingsError: a file or setting cannot be used.
            EngineError: the plan is foreign, or the build failed; the text says where its log is.
        """
        api = self._api()
        self._load_plugins(api, plugin_paths(path.parent.parent, config))
        target = target_of(api, lambda: self._capability(gpu))
        if api.is_rtx and not config.recipe.tf32 and target.tf32 != "0":
            fix = f"set {TF32_OVERRIDE}=0 for this process"
            log.warning("TensorRT-RTX may use TF32", extra={"model": config.name, "fix": fix})
        plan = plan_of(path.parent, config, target, lambda: self._capability(gpu))
        if plan is not None:
            return plan
        self._cache.open()
        source = source_of(path.parent, config)
        order = order_for(source, config, gpu, self._cache.root, profiles)
        tell = functools.partial(self.on_built, config, int(path.parent.name))
        return self._obtain(order, order.key(target), tell)

    def kernels_for(
        self, engine: CachedEngine, gpu: int, when: Kernels, graphs: bool
    ) -> Path | None:
        """Return the file of an engine's compiled kernels; blocks while they are compiled.

        Args:
            engine: as `engine_for` returned it.
            gpu: number among the visible ones.
            when: as `Machine.kernels`; what is compiled in the background is not waited for.
            graphs: as `Machine.graphs`.

        Returns:
            The file, which may be missing; None: kernels are kept nowhere.
        """
        kernels = self.kernels_file(engine, gpu)
        if kernels is None or engine.manifest is None:
            return None
        if self._api().is_rtx and when != "lazy" and not kernels.exists():
            with self._cache.locked(engine.manifest.key):
                if not kernels.exists():
                    self._compiling.compile(engine.plan, kernels, gpu, when, graphs)
        return kernels

    def kernels_file(self, engine: CachedEngine, gpu: int) -> Path | None:
        """Return where an engine's compiled kernels are kept; None: nowhere.

        Args:
            engine: as `engine_for` returned it.
            gpu: number among the visible ones.
        """
        if engine.runtime_cache is None or engine.manifest is None:
            return None
        # One plan may serve several kinds of GPUs, its kernels do not.
        major, minor = self._capability(gpu)
        kept = engine.runtime_cache
        return kept.with_name(f"{kept.stem}-sm_{major}{minor}{kept.suffix}")

    def _obtain(self, order: Order, key: Key, tell: Callable[[str, float], None]) -> CachedEngine:
        with self._lock:
            engine = self._cache.find(key)
            if engine is not None:
                self.counts.found += 1
                return engine
            self._refuse(order, key)
            return self._build(order, key, tell)

    def _load_plugins(self, api: Api, paths: tuple[Path, ...]) -> None:
        with self._lock:
            new = [path for path in dict.fromkeys(paths) if path not in self._plugins]
            if new or not self._knows_plugins:
                api.load_plugins(new)  # and TensorRT's own
                self._knows_plugins = True
                self._plugins.update(new)

    def _refuse(self, order: Order, key: Key) -> None:
        """Raise why this must not be built now, if so."""
        if self.closed:
            raise EngineError(STOPPING)
        failed_at, error = self._failed.get(key.digest, (0.0, ""))
        if error and time.monotonic() - failed_at < AGAIN_S:
            raise EngineError(error)
        serves = key.target.gpus != PORTABLE and order.gpu in self._serving
        if serves and not self._on_serving_gpu:
            raise EngineError(
                f"there is no engine for {key.target} in {self._cache.root}, and building one "
                f"would disturb the models that serve on GPU {order.gpu}; build it before with "
                f"`trtmesh engine build {order.model}`, or set INFER_BUILD_ON_SERVING_GPU=true"
            )

    def _build(self, order: Order, key: Key, tell: Callable[[str, float], None]) -> CachedEngine:
        counts = self.counts
        started = time.monotonic()
        counts.model, counts.phase, counts.step, counts.steps = order.model, "starting", 0, 0
        log.info("engine wanted", extra={"model": order.model, "key": key.digest[:12]})
        try:
            self._run(order, key)
            engine = self._cache.find(key)
            if engine is None:
                raise EngineError(f"the builder left no engine {key.digest} in {self._cache.root}")
        except EngineError as err:
            counts.failed += 1
            tell("failed", time.monotonic() - started)
            self._failed[key.digest] = time.monotonic(), str(err)
            raise
        finally:
            counts.model = counts.phase = ""
            took = time.monotonic() - started
            counts.seconds += took
        counts.done += 1
        tell("ok", took)
        log.info("engine built", extra={"model": order.model, "s": round(took, 1)})
        return engine

    def _run(self, order: Order, key: Key) -> None:
        """Let a child build.

        Raises:
            EngineError: it did not; the text has the reason, and where the log is.
        """
        try:
            child = self._child = self._start(order, self._limit_s)
        except OSError as err:
            raise EngineError(f"no process for a build can be started: {err}") from err
        if self.closed:
            child.kill(STOPPING)
        outcome = child.follow(Follower(self.counts))
        self._child = None
        if outcome.result in ("built", "found"):
            return
        if outcome.result:
            raise EngineError(f"no engine could be built: {outcome.error}")
        self._cache.salvage(key)
        where = self._cache.failed_log(key)
        place = f"its log is {where}" if where.exists() else "it left no log"
        raise EngineError(f"no engine could be built: {outcome.error}; {place}")


class Follower:
    """Keeps the counts up to date, and logs the steps now and then.

    Args:
        counts: of the builds.
    """

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._logged = -LOG_EVERY_S

    def __call__(self, phase: str, step: int, steps: int) -> None:
        """Take the state of a build."""
        counts = self._counts
        counts.phase, counts.step, counts.steps = phase, step, steps
        if time.monotonic() - self._logged < LOG_EVERY_S:
            return
        self._logged = time.monotonic()
        fields = {"model": counts.model, "phase": phase, "step": step, "steps": steps}
        log.info("engine is being built", extra=fields)
