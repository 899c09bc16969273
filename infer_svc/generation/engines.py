"""Networks of a model that generates, on the CPU or on a GPU."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from infer_svc.backends.cuda import device
from infer_svc.backends.machine import Machine
from infer_svc.backends.tensorrt import TensorRTEngine, tensorrt_api
from infer_svc.backends.trt_build import Profile, Range
from infer_svc.build.order import declared_inputs
from infer_svc.config import ModelConfig
from infer_svc.generation.layout import sized
from infer_svc.generation.stepper import CACHE, OrtStepper, Stepper
from infer_svc.generation.tensorrt_stepper import PIECES, TensorRTStepper
from infer_svc.repository import places
from mesh.errors import SettingsError
from mesh.tensor import TensorSpec

log = logging.getLogger(__name__)

STEP, ENCODER = "step.onnx", "encoder.onnx"
"""Files of a version."""


def open_stepper(version: Path, config: ModelConfig, machine: Machine) -> Stepper:
    """Load the networks of a version.

    Args:
        version: its folder.
        config: of the model.
        machine: what it may use.

    Raises:
        SettingsError: a file is missing or broken, or the config wants what cannot be had.
        EngineError: an engine cannot be built, or the GPU fails.
        DeviceLost: only a new process helps.
    """
    encoder = version / ENCODER
    if config.backend == "onnxruntime":
        found = encoder if encoder.exists() else None
        return OrtStepper(version / STEP, config.slots, found, machine.threads)
    if config.backend != "tensorrt":
        raise SettingsError(
            f"model {config.name!r} wants the backend {config.backend!r}, which does not generate"
        )
    gpus = [gpu for gpu in places(config) if gpu is not None]
    if len(gpus) != 1:
        raise SettingsError(
            f"model {config.name!r} wants the GPUs {gpus}, but generates on one of a process; name "
            "one in its instance_group, or start a process for each with `trtmesh up --gpu-each`"
        )
    in_place = (api := tensorrt_api()).writes_caches
    if not in_place:
        log.warning(
            "caches are copied at each step", extra={
                "model": config.name, "runtime": f"{api.flavour} {api.version}",
                "fix": "TensorRT 10.15 or newer writes into them where they are",
            },
        )  # fmt: skip
        config = replace(config, recipe=replace(config.recipe, in_place=False))
    inputs = declared_inputs(version / STEP)
    step = _engine(version, config, gpus[0], machine, STEP, [step_profile(inputs, config.slots)])
    if not encoder.exists():
        return TensorRTStepper(
            device(gpus[0]), step, None, config.slots, machine, in_place=in_place
        )
    longest = next(spec.shape[2] for spec in inputs if spec.name.startswith("xk_"))
    declared = declared_inputs(encoder)
    profiles = encoder_profiles(declared, config.lengths, longest)
    made = _engine(version, config, gpus[0], machine, ENCODER, profiles)
    return TensorRTStepper(device(gpus[0]), step, made, config.slots, machine, in_place=in_place)


def step_profile(inputs: Sequence[TensorSpec], slots: int) -> Profile:
    """Return what a step is built for: best for one id of each slot, and for pieces of a text too.

    One profile for both: TensorRT-RTX 1.5 builds no such graph with two.

    Args:
        inputs: as the ONNX file declares them.
        slots: of the caches.
    """
    cache = next(spec.shape[2] for spec in inputs if spec.name.startswith(CACHE))
    rows, tokens = (1, slots, slots), (1, 1, min(PIECES[0], cache))
    return {spec.name: _range(spec, rows, tokens) for spec in inputs if -1 in spec.shape}


def encoder_profiles(
    inputs: Sequence[TensorSpec], lengths: Sequence[int], longest: int
) -> list[Profile]:
    """Return what an encoder is built for: one source of each length, and of the longest.

    Args:
        inputs: as the ONNX file declares them.
        lengths: that the config names.
        longest: source that a slot holds.
    """
    sizes = sorted({longest, *(length for length in lengths if length < longest)})
    return [
        {spec.name: _range(spec, (1, 1, 1), (size,) * 3) for spec in inputs if -1 in spec.shape}
        for size in sizes
    ]


def _engine(
    version: Path,
    config: ModelConfig,
    gpu: int,
    machine: Machine,
    file: str,
    profiles: Sequence[Profile],
) -> TensorRTEngine:
    if machine.builds is None:
        raise SettingsError(f"model {config.name!r} wants TensorRT, this process has no engines")
    one = replace(config, filename=file)
    engine = machine.builds.engine_for(version / file, one, gpu, profiles)
    kernels = machine.builds.kernels_file(engine, gpu)
    return TensorRTEngine(tensorrt_api(), device(gpu), engine.plan, machine, kernels)


def _range(spec: TensorSpec, rows: Sequence[int], tokens: Sequence[int]) -> Range:
    least, best, most = (sized(spec, *sizes) for sizes in zip(rows, tokens, strict=True))
    return least, best, most
