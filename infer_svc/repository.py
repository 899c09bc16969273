"""The model repository: Triton's folder layout, one model per folder."""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from infer_svc.backends import BACKENDS, Engine
from infer_svc.backends.cuda import visible_gpus
from infer_svc.backends.machine import Machine
from infer_svc.build.recipe import Recipe
from infer_svc.build.selection import model_file
from infer_svc.config import ModelConfig, Warmup, WarmupInput, read_config
from infer_svc.versions import NEWEST_ONE, versions_of, wanted
from mesh.errors import EngineError, InvalidInput, SettingsError
from mesh.tensor import FLOATS, NUMPY_DTYPES, Array, Tensors, TensorSpec, from_proto
from protos.mesh.v1 import tensor_pb2

log = logging.getLogger(__name__)

NEEDS_GPU = "this model runs on the CPU as its file is; give it an instance_group of KIND_GPU"


@dataclass(frozen=True)
class Placement:
    """A model's engine on the CPU or on one GPU."""

    engine: Engine
    lanes: int
    """Batches that it runs at the same time."""
    gpu: int | None
    """None: the CPU."""


@dataclass(frozen=True)
class Model:
    """A loaded model."""

    config: ModelConfig
    """Its inputs and outputs are filled in from the engine where the file had none."""
    version: int
    placements: tuple[Placement, ...]
    """None for an ensemble, whose steps run on those of their models, and for a model that
    generates."""
    folder: Path


def model_folders(root: Path) -> list[Path]:
    """Return the folders of a repository that hold a model; others may hold only a pipeline.

    Raises:
        SettingsError: the repository is no folder.
    """
    if not root.is_dir():
        raise SettingsError(f"model repository {root} is no folder; give one with --models DIR")
    return [
        folder
        for folder in sorted(root.iterdir())
        if folder.is_dir() and ((folder / "config.pbtxt").exists() or versions_of(folder))
    ]


def preloaded(folders: Sequence[Path], names: Sequence[str]) -> list[Path]:
    """Return the folders of the models to be preloaded, in their order.

    Args:
        folders: of all models.
        names: of those; `*` stands for all that are not named.

    Raises:
        SettingsError: a name is none of theirs.
    """
    by_name = {folder.name: folder for folder in folders}
    unknown = [name for name in names if name not in by_name and name != "*"]
    if unknown:
        raise SettingsError(f"INFER_PRELOAD names {unknown}, the repository has {sorted(by_name)}")
    others = [name for name in by_name if name not in names]
    order = itertools.chain.from_iterable(others if name == "*" else [name] for name in names)
    return [by_name[name] for name in dict.fromkeys(order)]


def load_model(folder: Path, machine: Machine, number: int | None = None) -> Model:
    """Load a version of a model: its config, and its engines.

    An ensemble has no engines, those of a model that generates are not lanes'.

    Args:
        folder: of the model.
        machine: what it may use.
        number: of the version; None: the newest.

    Raises:
        SettingsError: config, version or model file is missing, broken, or they do not fit
            together; the text says which.
    """
    config = read_config(folder)
    for field, why in config.ignored:
        log.warning("field ignored", extra={"model": config.name, "field": field, "why": why})
    version = version_folder(folder) if number is None else folder / str(number)
    if config.ensemble or config.decoupled:
        return Model(config, int(version.name), (), folder)
    loader = BACKENDS.get(config.backend)
    if loader is None:
        raise SettingsError(
            f"model {config.name!r} wants the backend {config.backend!r}, "
            f"this machine has {sorted(BACKENDS)}"
        )
    if config.backend == "onnxruntime" and (config.recipe != Recipe() or config.plugins):
        log.warning(
            "precision and plugins are for a GPU", extra={"model": config.name, "fix": NEEDS_GPU}
        )
    path = model_file(version, config)
    if not path.is_file():
        raise SettingsError(f"model {config.name!r} has no file {path}")
    try:
        placements = tuple(
            Placement(loader(path, config, gpu, machine), lanes, gpu)
            for gpu, lanes in places(config).items()
        )
    except EngineError as err:
        raise SettingsError(f"model {config.name!r}: {err}") from err
    engine = placements[0].engine
    config = replace(
        config,
        inputs=_agree(config, "input", config.inputs, engine.inputs),
        outputs=_agree(config, "output", config.outputs, engine.outputs),
    )
    return Model(config, int(version.name), placements, folder)


def version_folder(folder: Path) -> Path:
    """Return the folder of a model's newest version.

    Raises:
        SettingsError: it has none.
    """
    return folder / str(wanted(folder, versions_of(folder), NEWEST_ONE)[-1])


def places(config: ModelConfig) -> dict[int | None, int]:
    """Return the lanes of a model on each GPU, or on the CPU (None).

    Raises:
        SettingsError: it names a GPU that this process does not see.
    """
    found: dict[int | None, int] = {}
    for group in config.instances:
        if group.gpus is None:
            gpus: list[int | None] = [None]
        else:
            try:
                visible = visible_gpus()
            except SettingsError as err:
                raise SettingsError(
                    f"model {config.name!r} wants {_gpus(group.gpus)}: {err}, or give it an "
                    "instance_group of KIND_CPU if it is an ONNX model"
                ) from err
            if not visible or any(gpu >= visible for gpu in group.gpus):
                raise SettingsError(
                    f"model {config.name!r} wants {_gpus(group.gpus)}, this process sees "
                    f"{visible}; look at CUDA_VISIBLE_DEVICES and `trtmesh doctor --gpu`"
                )
            gpus = list(group.gpus or range(visible))
        for gpu in gpus:
            found[gpu] = found.get(gpu, 0) + group.count
    return found


def _gpus(wanted: tuple[int, ...]) -> str:
    return f"the GPUs {list(wanted)}" if wanted else "a GPU"


def warmup_inputs(model: Model) -> list[tuple[Tensors, int]]:
    """Return the warm-up requests of a model and how often each is run.

    Without any in the config: one row of zeros, where every size is known.

    Raises:
        SettingsError: a warm-up input does not fit the model.
    """
    config = model.config
    if config.warmups:
        return [(_warmup_tensors(model, warmup), warmup.count) for warmup in config.warmups]
    if any(-1 in spec.shape[1:] for spec in config.inputs):
        return []
    zeros = {spec.name: _zeros(spec.dtype, _one(spec)) for spec in config.inputs}
    return [(zeros, 1)]


def _agree(
    config: ModelConfig, kind: str, given: tuple[TensorSpec, ...], real: tuple[TensorSpec, ...]
) -> tuple[TensorSpec, ...]:
    """Return the configured tensors, compared with the engine's; the engine's if there are none.

    A size that only one of the two leaves open is the other's.
    """
    if config.max_rows:
        for spec in real:
            if not spec.shape or spec.shape[0] != -1:
                raise SettingsError(
                    f"model {config.name!r} has max_batch_size {config.max_rows}, but {kind} "
                    f"{spec} has no batch dimension of any size; set max_batch_size to 0"
                )
    by_name = {spec.name: spec for spec in real}
    for spec in given:
        found = by_name.get(spec.name)
        if found is None or not spec.fits(found):
            raise SettingsError(
                f"model {config.name!r}: config.pbtxt has the {kind} {spec}, "
                f"the model file has {[str(s) for s in real]}"
            )
    missing = by_name.keys() - {spec.name for spec in given}
    if given and missing and kind == "input":
        raise SettingsError(
            f"model {config.name!r}: config.pbtxt lacks the inputs {sorted(missing)}"
        )
    return tuple(_narrow(spec, by_name[spec.name]) for spec in given) or real


def _narrow(spec: TensorSpec, real: TensorSpec) -> TensorSpec:
    shape = tuple(b if a == -1 else a for a, b in zip(spec.shape, real.shape, strict=True))
    return replace(spec, shape=shape)


def _one(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(1 if dim == -1 else dim for dim in spec.shape)


def _warmup_tensors(model: Model, warmup: Warmup) -> Tensors:
    specs = {spec.name: spec for spec in model.config.inputs}
    tensors: Tensors = {}
    for given in warmup.inputs:
        spec = specs.get(given.name)
        if spec is None:
            raise SettingsError(
                f"model {model.config.name!r}: warm-up {warmup.name!r} names the input "
                f"{given.name!r}, the model has {sorted(specs)}"
            )
        rows = (warmup.rows,) if model.config.max_rows else ()
        tensors[given.name] = _warmup_values(model, given, (*rows, *given.shape))
    return tensors


def _warmup_values(model: Model, given: WarmupInput, shape: tuple[int, ...]) -> Array:
    dtype = NUMPY_DTYPES[given.dtype]
    if given.file:
        path = model.folder / "warmup" / given.file
        one_row = shape[1:] if model.config.max_rows else shape
        message = tensor_pb2.Tensor(name=given.name, dtype=given.dtype, shape=one_row)
        try:
            message.raw = path.read_bytes()
            row = from_proto(tensor_pb2.Tensors(tensors=[message]))[given.name]
        except (OSError, InvalidInput) as err:
            raise SettingsError(f"warm-up file {path} cannot be used: {err}") from err
        return np.broadcast_to(row, shape).copy()
    if given.random and given.dtype != "BYTES":
        random = np.random.default_rng(0).random(shape)
        return (random * (1 if dtype in FLOATS else 100)).astype(dtype)
    return _zeros(given.dtype, shape)


def _zeros(dtype: str, shape: tuple[int, ...]) -> Array:
    # NumPy's zeros of dtype object are numbers.
    return np.full(shape, b"", object) if dtype == "BYTES" else np.zeros(shape, NUMPY_DTYPES[dtype])
