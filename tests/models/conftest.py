"""Loading of the scripts in `models/`, whose folders are no packages."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

MODELS = Path(__file__).parents[2] / "models"
SIBLINGS = ("data", "evaluate", "backdrop")


@pytest.fixture(scope="session")
def script() -> Callable[[str, str], ModuleType]:
    """Load a script of a model folder by name: `script("language", "evaluate")`."""
    return _load


@pytest.fixture(scope="session")
def config() -> Callable[[str], Any]:
    """Read the `config.pbtxt` of a model folder."""

    def read(model: str) -> Any:
        text = (MODELS / model / "config.pbtxt").read_text(encoding="utf-8")
        return text_format.Parse(text, model_config_pb2.ModelConfig())

    return read


def _load(model: str, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, MODELS / model / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with _siblings(MODELS / model):
        # Dataclasses look their own module up by name while it runs.
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return module


@contextmanager
def _siblings(folder: Path) -> Iterator[None]:
    """Let a script import its neighbours, and forget them afterwards: the names repeat."""
    hidden = {name: sys.modules.pop(name) for name in SIBLINGS if name in sys.modules}
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in SIBLINGS:
            sys.modules.pop(name, None)
        sys.modules.update(hidden)
