"""One build, in a process of its own: conversion, accuracy, plan, entry of the cache."""

import ctypes
import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mesh
from infer_svc.backends.cuda import device
from infer_svc.backends.tensorrt import tensorrt_api
from infer_svc.backends.trt_api import Api
from infer_svc.build import graph
from infer_svc.build.cache import LOG, RANGES, REPORT, CachedEngine, EngineCache
from infer_svc.build.copied import copied
from infer_svc.build.manifest import Key, Manifest, plan_hash, target_of
from infer_svc.build.order import Order
from infer_svc.build.precision import convert
from mesh.errors import MeshError, SettingsError

log = logging.getLogger(__name__)

NICE = 10
"""A build must not take the CPU from what serves."""
MEBIBYTE = 1024**2
_PR_SET_PDEATHSIG = 1

Tell = Callable[[str, int, int], None]
"""Is told a phase, how many of its steps are done, and how many there are; 0: not known."""


@dataclass(frozen=True)
class Built:
    """What came of an order."""

    engine: CachedEngine
    key: Key
    found: bool
    """The engine was in the cache already."""


def prepare(parent: int | None) -> None:
    """Make this process a builder: it waits for others, and ends with its parent.

    Args:
        parent: its process id; None: it may outlive it.
    """
    os.nice(NICE)
    os.umask(0o077)
    if parent is None:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise SystemExit("the process that wanted this build is gone")


def build(order: Order, tell: Tell) -> Built:
    """Return the engine of an order, from the cache or built now; only for a process of its own.

    Raises:
        SettingsError: the model, its data or a plugin cannot be used, or the cache cannot.
        Refused: the engine would lose more than the recipe allows.
        EngineError: the model cannot be converted or built.
    """
    try:
        return _obtain(order, tell)
    except OSError as err:  # of a full disk, in whatever step
        raise SettingsError(f"engine cache {order.cache} cannot be used: {err}") from err


def _obtain(order: Order, tell: Tell) -> Built:
    cache = EngineCache(order.cache)
    cache.open()
    cache.sweep()
    api = tensorrt_api()
    _show_gpu(api, order.gpu)
    api.load_plugins(order.plugins)
    key = order.key(target_of(api, lambda: device(0).compute_capability))
    with cache.locked(key, lambda: tell("waiting for another builder", 0, 0)):
        engine = cache.find(key)
        if engine is not None:
            return Built(engine, key, found=True)
        folder = cache.begin(key)
        try:
            with logged(folder / LOG):
                return Built(_build(order, api, key, cache, tell), key, found=False)
        except MeshError as err:
            cache.abandon(key)
            raise type(err)(f"{err}; its log is {cache.failed_log(key)}") from err
        except BaseException:
            cache.abandon(key)
            raise


def visible(variable: str | None, gpu: int) -> str:
    """Return the `CUDA_VISIBLE_DEVICES` that shows only one of the GPUs that are visible now.

    Args:
        variable: its value now; None: not set.
        gpu: number among the visible ones.

    Raises:
        SettingsError: there are not so many.
    """
    if gpu < 0:
        raise SettingsError(f"GPU {gpu} came, wanted a number from 0")
    if variable is None:
        return str(gpu)
    names = [name.strip() for name in variable.split(",") if name.strip()]
    if gpu >= len(names):
        raise SettingsError(f"GPU {gpu} came, CUDA_VISIBLE_DEVICES shows {len(names)} from 0")
    return names[gpu]


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Send all that this process writes to its standard outputs to a file; errors as well."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        for number in (1, 2):
            os.dup2(file, number)
        yield
    except MeshError as err:
        log.error("%s", err)
        raise
    except Exception:
        log.exception("the build failed")
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, old in zip((1, 2), kept, strict=True):
            os.dup2(old, number)
            os.close(old)
        os.close(file)


def _build(order: Order, api: Api, key: Key, cache: EngineCache, tell: Tell) -> CachedEngine:
    started = time.monotonic()
    recipe, folder = order.recipe, cache.work(key)
    scratch = folder / "scratch"
    scratch.mkdir()
    log.info("%s for %s, as %s", order.onnx, key.target, recipe.to_json())
    if recipe.precision != "fp32":
        tell(f"converting to {recipe.precision} and checking its accuracy", 0, 0)
    source = order.onnx
    if not recipe.in_place:
        source = scratch / "copied.onnx"
        graph.save(copied(graph.load(order.onnx)), source)
    made = convert(source, scratch / "model.onnx", recipe, api.flavour)
    if made.report is not None:
        (folder / REPORT).write_text(made.report.to_json(), encoding="utf-8")
        log.info("%s", made.report.text())
    if made.ranges is not None:
        os.replace(made.ranges, folder / RANGES)
    tell("building", 0, 0)
    plan = api.build(
        made.path, order.profiles, recipe.workspace_mbytes * MEBIBYTE,
        tf32=recipe.tf32, sparsity=recipe.sparsity, progress=tell,
    )  # fmt: skip
    shutil.rmtree(scratch)
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    manifest = Manifest(
        key=key, model=order.model, recipe=json.loads(recipe.to_json()),
        plan_sha256=plan_hash(plan), plan_bytes=len(plan), created=created,
        build_s=round(time.monotonic() - started, 3), trtmesh=mesh.__version__,
        gpu="" if api.is_rtx else device(0).name,
    )  # fmt: skip
    log.info("a plan of %d bytes after %.1f s", len(plan), manifest.build_s)
    return cache.commit(key, manifest, plan)


def _show_gpu(api: Api, gpu: int) -> None:
    """Leave CUDA the GPU that is built on: TensorRT-RTX needs none, and would take memory of it."""
    environment = os.environ  # noqa: TID251  CUDA reads it when it starts
    now = environment.get("CUDA_VISIBLE_DEVICES")
    environment["CUDA_VISIBLE_DEVICES"] = "" if api.is_rtx else visible(now, gpu)
