"""Which file of a model's version is served on a GPU."""

from collections.abc import Callable
from pathlib import Path

from infer_svc.build.cache import MANIFEST, CachedEngine, read_manifest
from infer_svc.build.manifest import Manifest, Target
from infer_svc.config import ModelConfig
from mesh.errors import EngineError, SettingsError

ONNX = "model.onnx"


def model_file(version: Path, config: ModelConfig) -> Path:
    """Return a file that a model can be loaded from, or the one that is missing.

    Args:
        version: folder of a version of the model.
        config: of the model.
    """
    names = [config.filename]
    if config.backend == "tensorrt":
        names += [*(name for _, name in config.plans), ONNX]
    return next((version / name for name in names if (version / name).exists()), version / names[0])


def plan_of(
    version: Path, config: ModelConfig, target: Target, capability: Callable[[], tuple[int, int]]
) -> CachedEngine | None:
    """Return the plan of the repository for a GPU; None: an engine has to be built.

    `cc_model_filenames` comes first, then the model's file name. A plan that was built elsewhere is
    refused, also where an ONNX file lies beside it: what serves must not depend on what fits.

    Args:
        version: folder of a version of the model.
        config: of the model.
        target: what runs here.
        capability: returns the compute capability of the GPU.

    Raises:
        EngineError: the plan is missing, or its manifest says that it does not fit.
    """
    name = config.filename
    if config.plans:
        name = dict(config.plans).get("{}.{}".format(*capability()), name)
    plan = version / name
    if name.endswith(".onnx") or (name == config.filename and not plan.exists()):
        return None
    if not plan.exists():
        raise EngineError(f"cc_model_filenames names {name!r} for this GPU, {plan} is missing")
    manifest = _beside(plan)
    if manifest is not None:
        _check(plan, manifest, target)
    return CachedEngine(plan, manifest)


def source_of(version: Path, config: ModelConfig) -> Path:
    """Return the ONNX file of a version.

    Raises:
        EngineError: there is none.
    """
    path = version / (config.filename if config.filename.endswith(".onnx") else ONNX)
    if not path.exists():
        raise EngineError(f"there is neither a plan for this GPU nor {path} to build one from")
    return path


def foreign(plan: Path, target: Target, why: object) -> EngineError:
    """Return the error for a plan that does not run here."""
    return EngineError(
        f"plan {plan} is not for this machine: {why}; here runs {target}. Put {ONNX} in its place, "
        "which is built at start or with `trtmesh engine build`, or a plan that was built here"
    )


def _beside(plan: Path) -> Manifest | None:
    """Return a plan's manifest: `<name>.manifest.json`, or the one of a cache entry."""
    for path in (plan.with_suffix(f".{MANIFEST}"), plan.with_name(MANIFEST)):
        if path.exists():
            try:
                return read_manifest(path)
            except SettingsError as err:
                raise EngineError(str(err)) from err
    return None


def _check(plan: Path, manifest: Manifest, target: Target) -> None:
    built = manifest.key.target
    if built != target:
        raise foreign(plan, target, f"it was built for {built}")
    try:
        manifest.check_plan(plan)
    except SettingsError as err:
        raise EngineError(f"plan {plan} cannot be trusted: {err}") from err
