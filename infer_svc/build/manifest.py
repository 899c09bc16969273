"""What an engine was built from and for: its key, and the manifest that stands beside it."""

import functools
import hashlib
import json
import mmap
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from infer_svc.backends.trt_api import Api
from infer_svc.backends.trt_build import Profile
from mesh.errors import SettingsError

PORTABLE = "portable"
"""TensorRT-RTX: one engine for every kind of GPU it knows."""
TF32_OVERRIDE = "NVIDIA_TF32_OVERRIDE"
"""A variable of NVIDIA's libraries; 0: FP32 matrices are multiplied with all their bits."""
FORMAT = 1
_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "model": str, "recipe": dict, "plan_sha256": str, "plan_bytes": int, "created": str,
    "build_s": (int, float), "trtmesh": str, "gpu": str,
}  # fmt: skip
"""Of the fields of a manifest."""


@dataclass(frozen=True)
class Target:
    """Where an engine can run."""

    flavour: str
    """`tensorrt` or `tensorrt_rtx`."""
    version: str
    """Of TensorRT; no other one loads the engine."""
    gpus: str
    """`portable`, or the compute capability as `sm_90`."""
    tf32: str = ""
    """Value of `TF32_OVERRIDE`; TensorRT-RTX runs no engine that was built under another."""

    def __str__(self) -> str:
        """Return it as error texts and tables show it."""
        where = "any GPU" if self.gpus == PORTABLE else self.gpus
        under = f" with {TF32_OVERRIDE}={self.tf32}" if self.tf32 else ""
        return f"{self.flavour} {self.version} on {where}{under}"


@dataclass(frozen=True)
class Key:
    """All that makes two engines differ."""

    onnx: str
    """SHA-256 of the model, its external data included."""
    target: Target
    recipe: str
    """Digest of the recipe."""
    profiles: str
    """JSON of the optimization profiles."""
    plugins: tuple[str, ...] = ()
    """SHA-256 of each plugin library."""

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of all parts: the name of the engine's folder."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Manifest:
    """Of one engine."""

    key: Key
    model: str
    """Name of the model that it was built for."""
    recipe: dict[str, Any]
    """Fields of the recipe."""
    plan_sha256: str
    plan_bytes: int
    created: str
    """UTC, as `2026-11-26T18:30:00Z`."""
    build_s: float
    """Seconds it took, with the conversion."""
    trtmesh: str
    """Our version."""
    gpu: str = ""
    """Name of the GPU that it was built on; empty: on none."""

    def to_json(self) -> str:
        """Return it as JSON for people too."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Return the manifest of its JSON.

        Raises:
            SettingsError: it is no manifest of a version that is known.
        """
        try:
            values = json.loads(text)
            if (number := values.pop("format")) != FORMAT:
                raise SettingsError(f"manifest of format {number!r} came, wanted {FORMAT}")
            key = values.pop("key")
            target = Target(**key.pop("target"))
            plugins = tuple(key.pop("plugins"))
            made = cls(key=Key(target=target, plugins=plugins, **key), **values)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as err:
            raise SettingsError(f"this is no manifest of an engine: {err!r}") from err
        for name, kind in _KINDS.items():
            if not isinstance(value := getattr(made, name), kind):
                raise SettingsError(f"this is no manifest of an engine: its {name} is {value!r}")
        return made

    def check_size(self, plan: Path) -> None:
        """Compare a plan's size with the one here.

        Raises:
            SettingsError: it is missing or another one.
        """
        try:
            size = plan.stat().st_size
        except OSError as err:
            raise SettingsError(f"{plan} cannot be read: {err.strerror}") from err
        if size != self.plan_bytes:
            raise SettingsError(f"{plan} has {size} bytes, its manifest says {self.plan_bytes}")

    def check_plan(self, plan: Path) -> None:
        """Compare a plan with its size and hash here.

        Raises:
            SettingsError: it is missing or another one; the text says what differs.
        """
        self.check_size(plan)
        try:
            found = file_hash([plan])
        except OSError as err:
            raise SettingsError(f"{plan} cannot be read: {err.strerror}") from err
        if found != self.plan_sha256:
            raise SettingsError(f"{plan} is not the one that its manifest has the SHA-256 of")


def target_of(api: Api, capability: Callable[[], tuple[int, int]]) -> Target:
    """Return what engines must be built for to run here.

    Args:
        api: of TensorRT.
        capability: returns the compute capability of the GPU; TensorRT-RTX does not ask for it.
    """
    if api.is_rtx:
        tf32 = os.environ.get(TF32_OVERRIDE, "")  # noqa: TID251  not ours, and read by TensorRT
        return Target(api.flavour, api.version, PORTABLE, tf32)
    major, minor = capability()
    return Target(api.flavour, api.version, f"sm_{major}{minor}")


def profiles_json(profiles: Sequence[Profile]) -> str:
    """Return optimization profiles as JSON; equal ones are equal texts."""
    return json.dumps([dict(profile) for profile in profiles], sort_keys=True)


def model_hash(onnx: Path) -> str:
    """Return the SHA-256 of an ONNX file and of the files that it names as its external data.

    Raises:
        SettingsError: one of them cannot be read.
    """
    try:
        return file_hash([onnx, *external_data(onnx)])
    except OSError as err:
        raise SettingsError(f"{onnx} cannot be read: {err}") from err


def external_data(onnx: Path) -> list[Path]:
    """Return the files beside an ONNX file whose paths stand in it.

    External data lies in the model's folder or below, and is named by its path from there. So no
    parser is needed; a file that is named by chance only makes the hash say more.
    """
    beside = [path for path in sorted(onnx.parent.rglob("*")) if path.is_file() and path != onnx]
    if not beside or not onnx.stat().st_size:
        return []
    with onnx.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return [
            path
            for path in beside
            if content.find(str(path.relative_to(onnx.parent)).encode()) >= 0
        ]


def file_hash(paths: Sequence[Path]) -> str:
    """Return the SHA-256 of files, each with its name unless there is only one."""
    found = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        if len(paths) == 1:
            return digest.hex()
        found.update(path.name.encode() + b"\0" + digest)
    return found.hexdigest()


def plan_hash(plan: bytes) -> str:
    """Return the SHA-256 of a plan."""
    return hashlib.sha256(plan).hexdigest()
