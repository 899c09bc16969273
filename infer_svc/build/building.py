"""`engine build`, and the order that a serving process gives: one engine, told of as it grows.

What both write is one JSON object per line: `phase`, `step` and `steps` while they work, `result`
at the end.
"""

import argparse
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from infer_svc.build import worker
from infer_svc.build.order import Order, order_for
from infer_svc.build.recipe import PRECISIONS
from infer_svc.build.selection import source_of
from infer_svc.config import ModelConfig, read_config
from infer_svc.repository import version_folder
from infer_svc.settings import InferSettings
from mesh.errors import EngineError, MeshError, NotFound, SettingsError
from mesh.settings import load

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands = object

STATUS = {"built": 0, "found": 0, "failed": 1, "refused": 3}
"""Exit status for each result; 2 is argparse's."""
WISHES = (
    "precision", "calibration", "keep", "auto", "tolerance", "workspace_mbytes", "sparsity",
)  # fmt: skip
NOTE = "config.pbtxt wants another engine; a server takes this one where its config says the same"
TOLD_EVERY_S = 0.1
LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s %(folder)s%(line)s %(error)s"


def add_build(commands: Commands) -> None:
    """Add `build` to a command line."""
    parser = commands.add_parser("build", help="build a model's engine into the cache")
    add_model(parser)
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)  # `trtmesh` ends with it
    parser.set_defaults(run=build_command)


def add_order(commands: Commands) -> None:
    """Add `order` to a command line; serving processes use it."""
    parser = commands.add_parser("order", help="build the engine of an order on standard input")
    parser.add_argument("--parent", type=int, metavar="PID", help="end with this process")
    parser.set_defaults(run=lambda arguments: _run(arguments, lambda: (_received(sys.stdin), "")))


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add what says which engine is meant: the model, and wishes that its config does not have."""
    parser.add_argument("model", metavar="MODEL", help="name of a model in the repository")
    parser.add_argument("--models", type=Path, default=Path("models"), metavar="DIR")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="default: INFER_ENGINE_CACHE")
    parser.add_argument("--gpu", type=int, default=0, metavar="N", help="number of a visible GPU")
    wishes = parser.add_argument_group("instead of what config.pbtxt says")
    wishes.add_argument("--precision", choices=PRECISIONS, type=str.lower)
    wishes.add_argument(
        "--calibration", type=Path, metavar="DATA", help="an .npz file, or a folder of .npz or .npy"
    )
    sensitive = wishes.add_mutually_exclusive_group()
    sensitive.add_argument("--keep", nargs="+", metavar="NODE", help="nodes that stay in FP32")
    sensitive.add_argument(
        "--auto", action="store_true", default=None, help="find nodes to keep in FP32"
    )
    wishes.add_argument("--tolerance", type=float, metavar="X", help="largest error of an output")
    wishes.add_argument(
        "--workspace", type=int, metavar="MIB", dest="workspace_mbytes",
        help="memory of the GPU that a layer may use",
    )  # fmt: skip
    wishes.add_argument(
        "--sparsity", action="store_true", default=None,
        help="use kernels for weights of which two in four are zero",
    )  # fmt: skip
    wishes.add_argument(
        "--profile", metavar="ROWS[xLENGTH,...]",
        help="largest batch, and buckets of open sizes; 32x16,64: up to 32 rows of 16 or of 64",
    )  # fmt: skip


def build_command(arguments: argparse.Namespace) -> int:
    """Build the engine that the arguments describe; return the exit status."""

    def wanted() -> tuple[Order, str]:
        version, config = model_of(arguments)
        onnx = source_of(version, config)
        note = "" if config == read_config(version.parent) else NOTE
        return order_for(onnx, config, arguments.gpu, cache_root(arguments)), note

    return _run(arguments, wanted)


def model_of(arguments: argparse.Namespace) -> tuple[Path, ModelConfig]:
    """Return the folder of a model's newest version, and its config with the wishes.

    Raises:
        NotFound: the repository has no such model.
        SettingsError: the config or a wish cannot be used.
    """
    folder = arguments.models / arguments.model
    if not folder.is_dir():
        there = sorted(child.name for child in arguments.models.glob("*") if child.is_dir())
        raise NotFound(f"{arguments.models} has no model {arguments.model!r}; it has {there}")
    config = read_config(folder)
    if config.ensemble:
        parts = sorted({step.model for step in config.ensemble})
        raise SettingsError(
            f"model {config.name!r} is an ensemble and has no engine; build those of {parts}"
        )
    if config.decoupled:
        raise SettingsError(
            f"model {config.name!r} generates; its engines are built when it is first served with "
            "an instance_group of KIND_GPU"
        )
    given = vars(arguments)
    wishes: dict[str, Any] = {name: given[name] for name in WISHES if given[name] is not None}
    if "keep" in wishes:
        wishes["keep"] = tuple(wishes["keep"])
    config = replace(config, recipe=replace(config.recipe, **wishes))
    if arguments.profile:
        config = profiled(config, arguments.profile)
    return version_folder(folder), config


def cache_root(arguments: argparse.Namespace) -> Path:
    """Return where engines are, as the arguments or the settings say."""
    return Path(arguments.cache or load(InferSettings).engine_cache)


def profiled(config: ModelConfig, text: str) -> ModelConfig:
    """Return a config with other sizes.

    Args:
        config: of a model.
        text: `ROWS` or `ROWSxLENGTH,LENGTH`: the largest batch, and the buckets of sizes that the
            model leaves open. Rows 0: the model has no batch dimension.

    Raises:
        SettingsError: it is no such text.
    """
    found = re.fullmatch(r"([0-9]+)(?:x([1-9][0-9]*(?:,[1-9][0-9]*)*))?", text)
    if not found:
        raise SettingsError(f"--profile {text!r} came, wanted ROWS or ROWSxLENGTH,… as 32x16,64")
    lengths = tuple(sorted({int(word) for word in found[2].split(",")})) if found[2] else None
    return replace(config, max_rows=int(found[1]), lengths=lengths or config.lengths)


class Lines:
    """JSON lines about one build; TensorRT tells of its steps on several threads.

    Args:
        stream: where they go.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._told = -TOLD_EVERY_S

    def tell(self, phase: str, step: int, steps: int) -> None:
        """Write a state of the build, unless the last one is too new."""
        with self._lock:
            if time.monotonic() - self._told >= TOLD_EVERY_S:
                self._told = time.monotonic()
                self.write(phase=phase, step=step, steps=steps)

    def write(self, **fields: object) -> None:
        """Write a line."""
        self._stream.write(json.dumps(fields) + "\n")
        self._stream.flush()


def _received(stream: TextIO) -> Order:
    return Order.from_json(stream.read())


def _run(arguments: argparse.Namespace, wanted: Callable[[], tuple[Order, str]]) -> int:
    worker.prepare(arguments.parent)
    handler = logging.StreamHandler(sys.stderr)
    # TensorRT's words are in a field of their own, and so is why an engine of the cache is ignored.
    blank = {"line": "", "folder": "", "error": ""}
    handler.setFormatter(logging.Formatter(LOG_FORMAT, defaults=blank))
    logging.basicConfig(level="DEBUG", handlers=[handler])
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as stream:
        os.dup2(2, 1)  # a library that prints, as a plugin may, must not stand between the lines
        lines = Lines(stream)
        result, fields = _result(wanted, lines)
        lines.write(result=result, **fields)
    return STATUS[result]


def _result(wanted: Callable[[], tuple[Order, str]], lines: Lines) -> tuple[str, dict[str, object]]:
    try:
        order, note = wanted()
        built = worker.build(order, lines.tell)
    except EngineError as err:
        return "failed", {"error": str(err)}
    except MeshError as err:
        return "refused", {"error": str(err)}
    manifest = built.engine.manifest
    assert manifest is not None
    return "found" if built.found else "built", {
        "model": order.model, "precision": order.recipe.precision,
        "target": str(manifest.key.target), "bytes": manifest.plan_bytes,
        "build_s": manifest.build_s, "folder": str(built.engine.plan.parent),
        "note": note,
    }  # fmt: skip
