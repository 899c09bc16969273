"""How a config.pbtxt says what engine it wants: Triton's execution accelerators, and our own."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2 as triton

from infer_svc.build.recipe import Recipe
from mesh.errors import SettingsError

ACCELERATOR = "tensorrt"
MEBIBYTE = 1024**2


def recipe_of(message: triton.ModelConfig, folder: Path) -> Recipe:
    """Return the recipe of a model; without an accelerator, FP32.

    Args:
        message: the model's config.
        folder: of the model; calibration data is given relative to it.

    Raises:
        ValueError: an accelerator, a parameter or its value is not known; the text names it.
    """
    accelerators = message.optimization.execution_accelerators
    if accelerators.cpu_execution_accelerator:
        names = [one.name for one in accelerators.cpu_execution_accelerator]
        raise ValueError(f"cpu_execution_accelerator {names} came, there is none; leave it out")
    given = accelerators.gpu_execution_accelerator
    if not given:
        return Recipe()
    names = [one.name for one in given]
    if names != [ACCELERATOR]:
        raise ValueError(f"gpu_execution_accelerator {names} came, wanted {[ACCELERATOR]}")
    values: dict[str, Any] = {}
    for name, text in sorted(given[0].parameters.items()):
        if name not in PARAMETERS:
            raise ValueError(
                f"parameter {name!r} of the accelerator 'tensorrt' came, there are "
                f"{sorted(PARAMETERS)}"
            )
        field, read = PARAMETERS[name]
        try:
            values[field] = read(text.strip())
        except ValueError as err:
            raise ValueError(
                f"parameter {name!r} of the accelerator 'tensorrt' is {text!r}, wanted {err}"
            ) from err
    if values.get("calibration") is not None:
        values["calibration"] = folder / values["calibration"]
    try:
        return Recipe(**values)
    except SettingsError as err:
        raise ValueError(str(err)) from err


def _precision(text: str) -> str:
    if text.lower() not in ("fp32", "fp16", "int8"):
        raise ValueError("FP32, FP16 or INT8")
    return text.lower()


def _mebibytes(text: str) -> int:
    if not text.isdecimal() or int(text) < MEBIBYTE:
        raise ValueError(f"bytes, at least {MEBIBYTE}")
    return int(text) // MEBIBYTE


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise ValueError("true or false")
    return text.lower() in ("true", "1")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("a number") from None


def _path(text: str) -> Path:
    if not text:
        raise ValueError("a path relative to the model's folder")
    return Path(text)


PARAMETERS: Mapping[str, tuple[str, Callable[[str], object]]] = {
    "precision_mode": ("precision", _precision),
    "max_workspace_size_bytes": ("workspace_mbytes", _mebibytes),
    "keep": ("keep", _names),
    "auto": ("auto", _flag),
    "calibration": ("calibration", _path),
    "tolerance": ("tolerance", _number),
    "sparsity": ("sparsity", _flag),
    "tf32": ("tf32", _flag),
}
"""Fields of a recipe by their names in a config; the first two are Triton's."""
