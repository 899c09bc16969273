"""From an ONNX file to a serialized engine."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infer_svc.backends.trt_progress import Monitor, attach
from mesh.errors import EngineError

WORKSPACE_BYTES = 2 * 1024**3

Range = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Smallest, best and largest shape of an input."""
Profile = Mapping[str, Range]
"""What one optimization profile allows, by input."""


@dataclass(frozen=True)
class Recipe:
    """How an engine is built; fields as the arguments of `Api.build`."""

    onnx: Path
    profiles: Sequence[Profile]
    workspace_bytes: int
    tf32: bool
    sparsity: bool
    detailed: bool


def make_plan(
    trt: Any,
    logger: Any,
    flags: int,
    recipe: Recipe,
    monitor: Monitor | None,
    prepare: Callable[[Any], None],
) -> Any:
    """Return TensorRT's memory with the engine, or None; the logger has the reason.

    Args:
        trt: TensorRT's module.
        logger: of that module.
        flags: of the network.
        recipe: what to build.
        monitor: is told of the progress.
        prepare: does something to the network that was parsed.

    Raises:
        EngineError: the file cannot be parsed, or a profile does not fit.
    """
    builder = trt.Builder(logger)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(recipe.onnx)):
        errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise EngineError(f"cannot parse {recipe.onnx}: {'; '.join(errors)}")
    prepare(network)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, recipe.workspace_bytes)
    if not recipe.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if recipe.sparsity:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if recipe.detailed:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    for profile in recipe.profiles:
        _add_profile(builder, config, network, profile)
    reporter = attach(trt, config, monitor) if monitor else None
    plan = builder.build_serialized_network(network, config)
    # TensorRT does not keep the reporter: all that uses it ends before.
    del config, builder, reporter
    return plan


def _add_profile(builder: Any, config: Any, network: Any, profile: Profile) -> None:
    given = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        name = network.get_input(index).name
        if name in profile:
            given.set_shape(name, *profile[name])
    if config.add_optimization_profile(given) < 0:
        raise EngineError(f"profile {dict(profile)} does not fit")
