"""A pipeline is data: an op, a model, an op; compared with the stages before it serves."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from gateway.detokenizer import INPUTS as DETOKENIZED
from mesh import WIRE_VERSION
from mesh.client import StageClient
from mesh.errors import MeshError, Refused, SettingsError, StageUnavailable
from mesh.status import from_status
from mesh.tensor import TensorSpec
from mesh.validation import faults
from protos.mesh.v1.stage_pb2 import Target, TargetSpec

FILE = "pipeline.yaml"
GENERATE = "generate"
GENERATED = (
    TensorSpec("text", "BYTES", (1,)), TensorSpec("finish_reason", "BYTES", (1,)),
    TensorSpec("prompt_tokens", "INT64", (1,)), TensorSpec("completion_tokens", "INT64", (1,)),
)  # fmt: skip
"""What the last answer of a generation has."""
UNKNOWN_BYTES = 64 * 1024
"""Credit for tensors whose size is not fixed, as token ids."""


class OpConfig(BaseModel):
    """An op of a CPU stage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    op: str
    """Name of the op."""
    parameters: dict[str, JsonValue] = {}
    """Its parameters; paths in them are relative to the model repository."""


class PipelineConfig(BaseModel):
    """`models/<name>/pipeline.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: Literal["detect", "classify", "classify_text", "generate", "custom"] = "custom"
    """Which typed call it answers; all answer `Run` and `Stream`."""
    preprocess: OpConfig | None = None
    """None: requests bring the model's inputs."""
    model: str
    """Name of a model in the repository."""
    postprocess: OpConfig | None = None
    """None: answers are the model's outputs."""
    cache_mbytes: float = Field(default=0.0, ge=0)
    """Megabytes of answers that each data worker keeps, to give them again for the same request and
    version; 0: none. Not for `generate`."""
    deadline_s: float = Field(default=10.0, gt=0)
    """Longest time for a request; a caller's own shorter deadline wins."""


@dataclass(frozen=True)
class Pipeline:
    """A pipeline whose stages fit."""

    name: str
    config: PipelineConfig
    model_version: str
    """The newest that serves."""
    versions: tuple[str, ...]
    """All of the model that serve."""
    before: Target | None
    """The preprocess op with its parameters."""
    after: Target | None
    """The postprocess op with its parameters."""
    inputs: tuple[TensorSpec, ...]
    """What a request brings."""
    outputs: tuple[TensorSpec, ...]
    """What an answer has."""
    batched: bool
    """Whether the model has a batch dimension, or an op brings one."""
    platform: str
    """Of the model where it is alone; else an ensemble."""
    labels: Mapping[str, Sequence[str]]
    """Of the classes of the model's outputs, where they are answers."""
    model_bytes: int
    """Credit that a request needs at the infer stage."""


@dataclass(frozen=True)
class Stages:
    """A client for each stage."""

    preprocess: StageClient
    infer: StageClient
    postprocess: StageClient

    def all(self) -> tuple[StageClient, StageClient, StageClient]:
        """Return them in the order of a request's way."""
        return self.preprocess, self.infer, self.postprocess


def read_pipelines(root: Path) -> dict[str, PipelineConfig | MeshError]:
    """Read every `pipeline.yaml` of a repository; a broken one's error stands in its place.

    Raises:
        SettingsError: the repository is no folder, or has no pipeline.
    """
    found: dict[str, PipelineConfig | MeshError] = {}
    for path in sorted(root.glob(f"*/{FILE}")):
        try:
            found[path.parent.name] = PipelineConfig.model_validate(
                yaml.safe_load(path.read_text(encoding="utf-8"))
            )
        except ValidationError as err:
            found[path.parent.name] = Refused(f"{path} is no pipeline: {faults(err, 'file')}")
        except (yaml.YAMLError, UnicodeDecodeError, OSError) as err:
            found[path.parent.name] = Refused(f"{path} is no pipeline: {err}")
    if not found:
        raise SettingsError(f"no {FILE} in the folders of {root}; give a repository with --models")
    return found


def pipeline_files(root: Path) -> dict[Path, tuple[int, int]]:
    """Return the size of every `pipeline.yaml`, and when it was changed."""
    found = {}
    for path in root.glob(f"*/{FILE}"):
        status = path.stat()
        found[path] = status.st_size, status.st_mtime_ns
    return found


async def check_pipeline(name: str, config: PipelineConfig, stages: Stages) -> Pipeline:
    """Ask the stages what they have and return the pipeline if it fits them.

    Raises:
        Refused: an op, a model, a parameter, a shape or a dtype does not fit; the text says which.
        StageUnavailable: a stage cannot be asked now.
    """
    model = await _describe(stages.infer, Target(name=config.model))
    inputs, outputs = _specs(model.inputs), _specs(model.outputs)
    size = 0
    before, after = _target(config.preprocess), _target(config.postprocess)
    generates = config.task == GENERATE
    if generates != model.decoupled or (generates and None in (before, after)):
        kind = "generates" if model.decoupled else "does not generate"
        raise Refused(
            f"pipeline {name!r}: model {model.name!r} {kind}, the task is {config.task!r}; a model "
            f"that generates wants `task: {GENERATE}`, an op before and one after it; no other does"
        )
    if before is not None:
        op = await _describe(stages.preprocess, before)
        _join(
            name, f"op {op.name!r}", _specs(op.outputs), f"model {model.name!r}", inputs, exact=True
        )
        inputs, size = _specs(op.inputs), op.output_bytes
    if after is not None:
        op = await _describe(stages.postprocess, after)
        outputs = DETOKENIZED if generates else outputs
        _join(name, f"model {model.name!r}", outputs, f"op {op.name!r}", _specs(op.inputs))
        outputs = GENERATED if generates else _specs(op.outputs)
    version = model.version
    versions = tuple(model.versions) or (version,)
    labels = {one.output: tuple(one.names) for one in model.labels if after is None}
    alone = before is None and after is None
    return Pipeline(
        name, config, version, versions, before, after, inputs, outputs,
        batched=bool(model.max_batch_size) or before is not None,
        platform=model.platform if alone else "ensemble", labels=labels,
        model_bytes=size or UNKNOWN_BYTES,
    )  # fmt: skip


def _target(config: OpConfig | None) -> Target | None:
    """Return the wire form of an op; equal parameters are equal bytes."""
    if config is None:
        return None
    values = json.dumps(config.parameters, sort_keys=True, separators=(",", ":"))
    return Target(name=config.op, parameters=values.encode() if config.parameters else b"")


async def _describe(client: StageClient, target: Target) -> TargetSpec:
    answer = await client.describe([target])
    if answer.wire_version != WIRE_VERSION:
        raise Refused(
            f"{client.stage} speaks wire version {answer.wire_version}, this gateway "
            f"{WIRE_VERSION}; run one release"
        )
    if len(answer.targets) != 1:
        raise Refused(f"{client.stage} told nothing of {target.name!r}")
    spec = answer.targets[0]
    if spec.HasField("status"):
        error = from_status(spec.status)
        kind = StageUnavailable if isinstance(error, StageUnavailable) else Refused
        raise kind(f"{client.stage}: {error}")
    return spec


def _join(
    pipeline: str, giver: str, given: tuple[TensorSpec, ...], taker: str,
    wanted: tuple[TensorSpec, ...], *, exact: bool = False,
) -> None:  # fmt: skip
    by_name = {spec.name: spec for spec in given}
    # An op leaves out what it does not take, the infer stage refuses it.
    if exact and len(by_name) > len(wanted):
        raise Refused(
            f"pipeline {pipeline!r}: {taker} wants {', '.join(map(str, wanted))} and no more, "
            f"{giver} gives {', '.join(map(str, given))}"
        )
    for spec in wanted:
        came = by_name.get(spec.name)
        if came is None or not came.fits(spec):
            raise Refused(
                f"pipeline {pipeline!r}: {taker} wants {spec}, {giver} gives "
                f"{', '.join(map(str, given))}"
            )


def _specs(specs: Iterable[Any]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec.from_proto(spec) for spec in specs)
