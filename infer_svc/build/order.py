"""What is to be built: all that a process of its own needs to build one engine."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from infer_svc.backends.shapes import profiles_of
from infer_svc.backends.trt_build import Profile, Range
from infer_svc.build.graph import package
from infer_svc.build.manifest import Key, Target, file_hash, model_hash, profiles_json
from infer_svc.build.recipe import Recipe
from infer_svc.config import ModelConfig
from mesh.errors import SettingsError
from mesh.tensor import TensorSpec


@dataclass(frozen=True)
class Order:
    """One engine."""

    model: str
    """Name of the model."""
    onnx: Path
    recipe: Recipe
    profiles: Sequence[Profile]
    plugins: tuple[Path, ...]
    """Shared libraries with TensorRT's plugins."""
    gpu: int
    """Number of the visible GPU that full TensorRT builds on."""
    cache: Path
    """Root of the engine cache."""

    def key(self, target: Target) -> Key:
        """Return the key of the engine. The model is read in full for its hash.

        Raises:
            SettingsError: the model, its calibration data or a plugin cannot be read.
        """
        return Key(
            onnx=model_hash(self.onnx),
            target=target,
            recipe=self.recipe.digest(),
            profiles=profiles_json(self.profiles),
            plugins=tuple(map(_library_hash, self.plugins)),
        )

    def to_json(self) -> str:
        """Return the order as JSON."""
        return json.dumps({
            "model": self.model, "onnx": str(self.onnx), "recipe": self.recipe.to_json(),
            "profiles": profiles_json(self.profiles), "gpu": self.gpu, "cache": str(self.cache),
            "plugins": [str(path) for path in self.plugins],
        })  # fmt: skip

    @classmethod
    def from_json(cls, text: str) -> "Order":
        """Return the order of its JSON, as `to_json` wrote it."""
        values = json.loads(text)
        return cls(
            model=values["model"],
            onnx=Path(values["onnx"]),
            recipe=Recipe.from_json(values["recipe"]),
            profiles=_profiles(values["profiles"]),
            plugins=tuple(map(Path, values["plugins"])),
            gpu=values["gpu"],
            cache=Path(values["cache"]),
        )


def order_for(
    onnx: Path,
    config: ModelConfig,
    gpu: int,
    cache: Path,
    profiles: Sequence[Profile] | None = None,
) -> Order:
    """Return the order for a model as its config wants it.

    Args:
        onnx: the model, in the folder of a version.
        config: of the model.
        gpu: number of the visible GPU that it is for.
        cache: root of the engine cache.
        profiles: that it is built for; None: those of the config.

    Raises:
        SettingsError: the file is no model.
    """
    folder = onnx.parent.parent
    if profiles is None:
        profiles = profiles_of(declared_inputs(onnx), config.max_rows, config.lengths)
    plugins = plugin_paths(folder, config)
    return Order(config.name, onnx.absolute(), config.recipe, profiles, plugins, gpu, cache)


def declared_inputs(path: Path) -> list[TensorSpec]:
    """Return the inputs that an ONNX file declares; their dtypes have ONNX's names.

    ONNX Runtime is not asked: it takes no model with nodes that only a plugin of TensorRT knows.

    Raises:
        SettingsError: the file is no model, or the package onnx is missing.
    """
    onnx = package()
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except (OSError, DecodeError) as err:
        raise SettingsError(f"{path} is no ONNX model: {err}") from err
    if not graph.node:
        raise SettingsError(f"{path} is no ONNX model: it has no nodes")
    constants = {constant.name for constant in graph.initializer}
    specs = []
    for value in graph.input:
        tensor = value.type.tensor_type
        shape = tuple(
            dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim
        )
        if value.name not in constants:
            specs.append(
                TensorSpec(value.name, onnx.TensorProto.DataType.Name(tensor.elem_type), shape)
            )
    return specs


def plugin_paths(folder: Path, config: ModelConfig) -> tuple[Path, ...]:
    """Return the plugin libraries of a model; their paths are relative to its folder."""
    return tuple((folder / name).absolute() for name in config.plugins)


def _library_hash(path: Path) -> str:
    try:
        return file_hash([path])
    except OSError as err:
        raise SettingsError(f"plugin library {path} cannot be read: {err.strerror}") from err


def _profiles(text: str) -> list[Profile]:
    def shapes(sizes: list[list[int]]) -> Range:
        smallest, best, largest = map(tuple, sizes)
        return smallest, best, largest

    return [
        {name: shapes(sizes) for name, sizes in profile.items()} for profile in json.loads(text)
    ]
