"""Compares the steps of an ensemble with each other and with their models, as Triton does."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from infer_svc.config import ModelConfig, Step, read_config
from infer_svc.repository import Model
from mesh.errors import NotFound, Refused, SettingsError
from mesh.tensor import TensorSpec

Find = Callable[[str], Model]
"""Returns a loaded model by its name; raises `NotFound` or `Refused`."""


@dataclass(frozen=True)
class End:
    """One end of a tensor: what makes it or takes it."""

    tensor: str
    spec: TensorSpec
    name: str
    """As in "input 'x' of model 'm'"."""


def load_order(folders: Sequence[Path]) -> list[Path]:
    """Return the folders of models with those of an ensemble's steps before its own."""
    by_name = {folder.name: folder for folder in folders}
    ordered: dict[str, Path] = {}
    seen: set[str] = set()

    def visit(name: str) -> None:
        if name in seen or name not in by_name:
            return
        seen.add(name)
        for part in _parts(by_name[name]):
            visit(part)
        ordered[name] = by_name[name]

    for folder in folders:
        visit(folder.name)
    return list(ordered.values())


def with_parts(folder: Path, find: Callable[[str], Path]) -> list[Path]:
    """Return the folders of all models that a model's steps lead to, parts first, and its own.

    Args:
        folder: of the model.
        find: returns the folder of a model.
    """
    found = {folder.name: folder}
    waiting = [folder]
    while waiting:
        for name in _parts(waiting.pop()):
            if name not in found and find(name).is_dir():
                found[name] = find(name)
                waiting.append(found[name])
    return load_order(list(found.values()))


def follow_parts(folders: Sequence[Path], later: Sequence[Path]) -> list[Path]:
    """Return what is loaded later, and the ensembles that must wait for it, parts first.

    Args:
        folders: of all models.
        later: some of them.
    """
    waiting = list(later)
    for folder in load_order(folders):
        names = {one.name for one in waiting}
        if folder not in waiting and not names.isdisjoint(_parts(folder)):
            waiting.append(folder)
    return load_order(waiting)


def check_steps(ensemble: Model, find: Find) -> ModelConfig:
    """Compare an ensemble's steps with its tensors and with their models, which are loaded.

    Args:
        ensemble: as it was read.
        find: its models.

    Returns:
        The config, with the sizes of inputs and outputs filled in that only its models fix.

    Raises:
        SettingsError: something does not fit; the text names it.
    """
    config = ensemble.config
    try:
        _check_wiring(config)
        parts = [(step, _part(ensemble, step, find)) for step in config.ensemble]
        return _fit(config, parts)
    except ValueError as err:
        raise SettingsError(f"ensemble {config.name!r}: {err}") from err


def _parts(folder: Path) -> list[str]:
    try:
        return [step.model for step in read_config(folder).ensemble]
    except SettingsError:
        return []  # it is told when the model is loaded


def _all_parts(folder: Path) -> set[str]:
    """Return the names of a model and of all models that its steps lead to."""
    found: set[str] = set()
    waiting = [folder.name]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += _parts(folder.with_name(name))
    return found


def _check_wiring(config: ModelConfig) -> None:
    """Compare the tensors' names: each made once, none missing, none waiting for itself."""
    steps = config.ensemble
    makers = {spec.name: "the caller" for spec in config.inputs}
    for step in steps:
        for _, tensor in step.outputs:
            if tensor in makers:
                raise ValueError(
                    f"tensor {tensor!r} is made by {makers[tensor]} and by model {step.model!r}; "
                    "give it another name in one output_map"
                )
            makers[tensor] = f"model {step.model!r}"
    for step in steps:
        for name, tensor in step.inputs:
            if tensor not in makers:
                raise ValueError(
                    f"input {name!r} of model {step.model!r} takes the tensor {tensor!r}, which "
                    f"nobody makes; there are {sorted(makers)}"
                )
    made = {tensor for step in steps for _, tensor in step.outputs}
    if missing := [spec.name for spec in config.outputs if spec.name not in made]:
        raise ValueError(f"no step makes the outputs {missing}; the steps make {sorted(made)}")
    taken = {tensor for step in steps for _, tensor in step.inputs}
    if unused := [spec.name for spec in config.inputs if spec.name not in taken]:
        raise ValueError(f"no step takes the inputs {unused}; map them, or declare them no more")
    _check_order(config)


def _check_order(config: ModelConfig) -> None:
    waiting = list(config.ensemble)
    there = {spec.name for spec in config.inputs}
    while ready := [step for step in waiting if all(name in there for _, name in step.inputs)]:
        there |= {tensor for step in ready for _, tensor in step.outputs}
        waiting = [step for step in waiting if step not in ready]
    if waiting:
        wants = {
            step.model: [tensor for _, tensor in step.inputs if tensor not in there]
            for step in waiting
        }
        raise ValueError(
            f"steps wait for each other in a circle, each for tensors of the others: {wants}; "
            "the steps must form a graph without one"
        )


def _part(ensemble: Model, step: Step, find: Find) -> Model:
    """Return the model of a step, compared with what the step says of it."""
    if ensemble.config.name in _all_parts(ensemble.folder.with_name(step.model)):
        raise ValueError(
            f"its model {step.model!r} is this ensemble or has it as a part; an ensemble cannot "
            "run itself"
        )
    try:
        part = find(step.target)
    except Refused as err:
        raise ValueError(f"its model {step.model!r} is refused: {err}") from err
    except NotFound as err:
        raise ValueError(f"its {err}") from err
    if part.config.decoupled:
        raise ValueError(f"its model {step.model!r} generates; an ensemble has one answer")
    if part.config.max_rows < ensemble.config.max_rows:
        raise ValueError(
            f"its max_batch_size is {ensemble.config.max_rows}, that of its model {step.model!r} "
            f"{part.config.max_rows}; it must not be the larger one"
        )
    inputs, given = [spec.name for spec in part.config.inputs], [name for name, _ in step.inputs]
    if sorted(inputs) != given:
        raise ValueError(
            f"the input_map of model {step.model!r} has the keys {given}, the inputs of the model "
            f"are {sorted(inputs)}; map each of them"
        )
    outputs = [spec.name for spec in part.config.outputs]
    if unknown := [name for name, _ in step.outputs if name not in outputs]:
        raise ValueError(
            f"the output_map of model {step.model!r} has the keys {unknown}, the outputs of the "
            f"model are {sorted(outputs)}"
        )
    return part


def _fit(config: ModelConfig, parts: Iterable[tuple[Step, Model]]) -> ModelConfig:
    """Compare dtypes and shapes at both ends of each tensor."""
    found: dict[str, End] = {}
    for end in _ends(config, list(parts)):
        first = found.setdefault(end.tensor, end)
        if not first.spec.fits(end.spec):
            raise ValueError(
                f"tensor {end.tensor!r} is {_kind(first)} as {first.name}, but {_kind(end)} as "
                f"{end.name}; both must have the same dtype and shape"
            )
        shape = tuple(
            b if a == -1 else a for a, b in zip(first.spec.shape, end.spec.shape, strict=True)
        )
        found[end.tensor] = replace(first, spec=replace(first.spec, shape=shape))

    def narrow(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(replace(spec, shape=found[spec.name].spec.shape) for spec in specs)

    return replace(config, inputs=narrow(config.inputs), outputs=narrow(config.outputs))


def _kind(end: End) -> str:
    return str(replace(end.spec, name="")).removeprefix(": ")


def _ends(config: ModelConfig, parts: Sequence[tuple[Step, Model]]) -> Iterator[End]:
    """Yield both ends of every tensor, what makes it before what takes it."""
    for spec in config.inputs:
        yield End(spec.name, spec, "input of the ensemble")
    for kind in ("output", "input"):
        for step, part in parts:
            real = part.config.outputs if kind == "output" else part.config.inputs
            specs = {spec.name: spec for spec in real}
            for name, tensor in step.outputs if kind == "output" else step.inputs:
                yield End(tensor, specs[name], f"{kind} {name!r} of model {step.model!r}")
    for spec in config.outputs:
        yield End(spec.name, spec, "output of the ensemble")
