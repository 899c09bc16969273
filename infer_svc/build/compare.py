"""`engine compare`: the accuracy of each precision against FP32, per output and layer by layer."""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from infer_svc.build.precision import convert
from infer_svc.build.quantization import FLAVOURS
from infer_svc.build.recipe import PRECISIONS, Recipe
from infer_svc.build.report import Report
from infer_svc.config import read_config
from mesh.errors import NotFound, SettingsError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands = object

ALTERED = tuple(name for name in PRECISIONS if name != "fp32")


def add_compare(commands: Commands) -> None:
    """Add the command to a command line."""
    parser = commands.add_parser("compare", help="accuracy of each precision against FP32")
    parser.add_argument("model", metavar="MODEL", help="a name in the repository or an ONNX file")
    parser.add_argument("--models", type=Path, default=Path("models"), metavar="DIR")
    parser.add_argument(
        "--precision", nargs="+", choices=ALTERED, type=str.lower, metavar="PRECISION",
        help=f"of {', '.join(ALTERED)}; without it fp16, and int8 where there is calibration data",
    )  # fmt: skip
    parser.add_argument(
        "--calibration", type=Path, metavar="DATA", help="an .npz file, or a folder of .npz or .npy"
    )
    sensitive = parser.add_mutually_exclusive_group()
    sensitive.add_argument("--keep", nargs="+", default=[], metavar="NODE", help="in FP32")
    sensitive.add_argument("--auto", action="store_true", help="find nodes to keep in FP32")
    parser.add_argument("--tolerance", type=float, metavar="X", help="largest error of an output")
    parser.add_argument("--flavour", choices=sorted(FLAVOURS), default="onnxruntime")
    parser.add_argument("--layers", type=int, default=10, metavar="N", help="how many are shown")
    parser.add_argument("--json", action="store_true", help="print JSON, a report per line")
    parser.set_defaults(run=compare_command)


def compare_command(arguments: argparse.Namespace) -> int:
    """Print a report for each precision.

    Args:
        arguments: as `add_compare` declares them.

    Returns:
        0, or 1 where one exceeds its tolerance.

    Raises:
        NotFound: the repository has no such model.
        SettingsError: the model cannot have this precision, or the data does not fit it.
        EngineError: the model cannot be converted.
    """
    source = model_file(arguments.model, arguments.models)
    wanted = arguments.precision or (ALTERED if arguments.calibration else ("fp16",))
    holds = True
    for precision in wanted:
        recipe = Recipe(
            precision,
            keep=tuple(arguments.keep),
            auto=arguments.auto,
            calibration=arguments.calibration,
            tolerance=arguments.tolerance,
        )
        report = _report(source, recipe, arguments.flavour)
        holds &= report.holds
        if arguments.json:
            text = report.to_json().replace("\n", "")
        else:
            text = report.text(arguments.layers)
        sys.stdout.write(f"{text}\n")
    return 0 if holds else 1


def model_file(name: str, models: Path) -> Path:
    """Return the ONNX file that is meant.

    Args:
        name: of a model in the repository, of which the newest version counts; or a file.
        models: the repository.

    Raises:
        NotFound: there is no such model.
        SettingsError: it has no ONNX file.
    """
    if name.endswith(".onnx"):
        if not Path(name).is_file():
            raise NotFound(f"there is no file {name}")
        return Path(name)
    folder = models / name
    if not folder.is_dir():
        there = sorted(child.name for child in models.glob("*") if child.is_dir())
        raise NotFound(f"{models} has no model {name!r}; it has {there}")
    config = read_config(folder)
    if config.decoupled:
        raise SettingsError(
            f"model {name!r} generates; name one of its files, as {folder}/1/step.onnx"
        )
    filename = config.filename.replace(".plan", ".onnx")
    versions = [path for path in folder.glob(f"*/{filename}") if path.parent.name.isdecimal()]
    if not versions:
        raise SettingsError(f"model {name!r} has no {filename} in {folder}/<version>/")
    return max(versions, key=lambda path: int(path.parent.name))


def _report(source: Path, recipe: Recipe, flavour: str) -> Report:
    with tempfile.TemporaryDirectory() as folder:
        made = convert(source, Path(folder) / "model.onnx", recipe, flavour, checked=False)
    if made.report is None:
        raise SettingsError(f"{recipe.precision} is what the others are compared with")
    return made.report
