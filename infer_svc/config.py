"""A model's config.pbtxt: Triton's ModelConfig, as far as it is used here."""

import re
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from infer_svc.build.accelerators import recipe_of
from infer_svc.build.recipe import Recipe
from infer_svc.fields import demand_known, ignored
from infer_svc.labels import Labels, labels_of
from infer_svc.versions import NEWEST_ONE, Policy, policy_of
from mesh.errors import SettingsError
from mesh.tensor import NUMPY_DTYPES, TensorSpec

MICRO = 1e-6
LENGTHS = (32, 64, 128, 256, 512)
LENGTHS_KEY = "length_buckets"
PLUGINS_KEY = "plugins"
SLOTS_KEY = "slots"
SLOTS = 32
MOST_SLOTS = 1024
DEFAULT_RECIPE = Recipe()
ENSEMBLE = "ensemble"
NEWEST = -1
_BACKEND_OF_PLATFORM = {
    "onnxruntime_onnx": "onnxruntime",
    "tensorrt_plan": "tensorrt",
    "": "onnxruntime",
}


@dataclass(frozen=True)
class QueuePolicy:
    """What happens to a request that waits."""

    timeout_s: float = 0.0
    """Longest wait; 0: no limit."""
    allow_override: bool = False
    """Whether a request may bring a shorter limit of its own."""
    reject: bool = True
    """After the limit: rejected, or (False) served after the others of its level."""
    max_size: int = 0
    """Requests that may wait; 0: no limit."""


@dataclass(frozen=True)
class Batching:
    """Triton's `dynamic_batching`."""

    preferred: tuple[int, ...] = ()
    """Batch sizes, in rows, that are run as soon as they are reached."""
    delay_s: float = 0.0
    """Longest wait for more rows."""
    levels: int = 0
    """Priority levels; 1 is the most urgent; 0: no priorities."""
    default_level: int = 0
    """Level of a request that names none."""
    default_policy: QueuePolicy = QueuePolicy()
    """Policy of levels that have none of their own."""
    policies: tuple[tuple[int, QueuePolicy], ...] = ()
    """Policies by level."""

    def policy(self, level: int) -> QueuePolicy:
        """Return the queue policy of a level."""
        return dict(self.policies).get(level, self.default_policy)


@dataclass(frozen=True)
class WarmupInput:
    """One tensor of a warm-up request."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    """Without the batch dimension."""
    random: bool
    """Random values; False: zeros."""
    file: str = ""
    """Name of a file with raw values in the model's folder `warmup`."""


@dataclass(frozen=True)
class Warmup:
    """One warm-up request, run `count` times before the model is ready."""

    name: str
    rows: int
    inputs: tuple[WarmupInput, ...]
    count: int = 1


@dataclass(frozen=True)
class Instances:
    """An `instance_group`: lanes on the CPU, or on each of some GPUs."""

    count: int = 1
    """Lanes; on each GPU, where there are several."""
    gpus: tuple[int, ...] | None = None
    """Numbers of visible GPUs; empty: all of them. None: the CPU."""


@dataclass(frozen=True)
class Step:
    """One step of an ensemble: a model, and the ensemble's tensors that it takes and makes."""

    model: str
    version: int
    """`NEWEST`: the one that is served."""
    inputs: tuple[tuple[str, str], ...]
    """An input of the model and the tensor given to it; in the order of their names."""
    outputs: tuple[tuple[str, str], ...]
    """An output of the model and the tensor it becomes; those that nobody wants may lack."""

    @property
    def target(self) -> str:
        """What a request for it asks for."""
        return self.model if self.version == NEWEST else f"{self.model}/{self.version}"


@dataclass(frozen=True)
class ModelConfig:
    """One model of the repository."""

    name: str
    backend: str
    """One of `infer_svc.backends.BACKENDS`. An ONNX model with an instance of KIND_GPU runs on
    TensorRT."""
    filename: str
    """Name of the model file in a version's folder."""
    max_rows: int
    """Largest batch; 0: the model has no batch dimension."""
    inputs: tuple[TensorSpec, ...]
    """Batch dimension included; empty: as the model file declares them."""
    outputs: tuple[TensorSpec, ...]
    """Batch dimension included; empty: as the model file declares them."""
    instances: tuple[Instances, ...]
    """Where it runs, and how many batches at the same time."""
    batching: Batching | None
    """None: each request runs alone."""
    warmups: tuple[Warmup, ...]
    lengths: tuple[int, ...] = LENGTHS
    """Buckets of sizes that the model leaves open, as the length of a text; the smallest first.
    From the parameter `length_buckets`, as "16,32,64"."""
    recipe: Recipe = DEFAULT_RECIPE
    """How its engine is built. From `optimization { execution_accelerators }`."""
    plans: tuple[tuple[str, str], ...] = ()
    """Name of the plan file by compute capability, as "9.0". From `cc_model_filenames`."""
    plugins: tuple[str, ...] = ()
    """Shared libraries with TensorRT's plugins, relative to the model's folder. From the parameter
    `plugins`, as "lib/a.so,lib/b.so"."""
    ensemble: tuple[Step, ...] = ()
    """Steps of a model that is made of others; it has neither file nor lanes of its own."""
    decoupled: bool = False
    """It generates: a request has a reply for each token. From `model_transaction_policy`."""
    slots: int = SLOTS
    """Generations that may be under way. From the parameter `slots`."""
    policy: Policy = NEWEST_ONE
    """Which versions are served. From `version_policy`."""
    labels: Labels = ()
    """Of the classes of outputs. From `label_filename`."""
    ignored: tuple[tuple[str, str], ...] = ()
    """Fields of the file that are not looked at, and why."""


def read_message(folder: Path) -> triton.ModelConfig:
    """Read `config.pbtxt` of a model's folder; without one, an empty message.

    Raises:
        SettingsError: it cannot be parsed, or has another model's name.
    """
    path = folder / "config.pbtxt"
    message = triton.ModelConfig()
    if path.exists():
        try:
            text_format.Parse(path.read_text(encoding="utf-8"), message)
        except (text_format.ParseError, UnicodeDecodeError, OSError) as err:
            raise SettingsError(f"{path} is no ModelConfig: {err}") from err
    if message.name not in ("", folder.name):
        raise SettingsError(f"{path} names the model {message.name!r}, its folder {folder.name!r}")
    return message


def read_config(folder: Path) -> ModelConfig:
    """Read `config.pbtxt` of a model's folder; without one, defaults that need only the file.

    Raises:
        SettingsError: it cannot be parsed, or a value is not possible; the text names the field.
    """
    message = read_message(folder)
    try:
        return _convert(message, folder)
    except ValueError as err:
        raise SettingsError(f"{folder / 'config.pbtxt'}: {err}") from err


def _convert(message: triton.ModelConfig, folder: Path) -> ModelConfig:
    demand_known(message)
    backend = message.backend or _BACKEND_OF_PLATFORM.get(message.platform, message.platform)
    ensemble = _ensemble(message, backend)
    filename = "model.plan" if backend == "tensorrt" else "model.onnx"
    if backend == "onnxruntime" and any(_names_gpu(group) for group in message.instance_group):
        backend = "tensorrt"
    if message.max_batch_size < 0:
        raise ValueError(f"max_batch_size {message.max_batch_size} came, wanted 0 or more")
    batched = message.max_batch_size > 0
    return ModelConfig(
        name=folder.name,
        backend=backend,
        filename=message.default_model_filename or filename,
        max_rows=message.max_batch_size,
        inputs=tuple(_spec(tensor, batched) for tensor in message.input),
        outputs=tuple(_spec(tensor, batched) for tensor in message.output),
        instances=_instances(message, on_gpu=backend == "tensorrt"),
        batching=_batching(message) if message.HasField("dynamic_batching") else None,
        warmups=tuple(_warmup(sample) for sample in message.model_warmup),
        lengths=_lengths(message.parameters[LENGTHS_KEY].string_value),
        recipe=recipe_of(message, folder),
        plans=_plans(message),
        plugins=_plugins(message.parameters[PLUGINS_KEY].string_value),
        ensemble=ensemble,
        decoupled=_decoupled(message),
        slots=_slots(message.parameters[SLOTS_KEY].string_value),
        policy=policy_of(message),
        labels=labels_of(message, folder),
        ignored=tuple(ignored(message).items()),
    )


def _decoupled(message: triton.ModelConfig) -> bool:
    decoupled = bool(message.model_transaction_policy.decoupled)
    if decoupled and (message.max_batch_size or message.HasField("dynamic_batching")):
        raise ValueError(
            f"a model that generates (model_transaction_policy {{ decoupled: true }}) has "
            f"max_batch_size {message.max_batch_size} or dynamic_batching; leave them out, its "
            f"generations share steps as they come: set the parameter {SLOTS_KEY}"
        )
    return decoupled


def _slots(text: str) -> int:
    if not text:
        return SLOTS
    if not text.isdecimal() or not 1 <= int(text) <= MOST_SLOTS:
        raise ValueError(f"{SLOTS_KEY} {text!r} came, wanted 1 to {MOST_SLOTS}")
    return int(text)


def _ensemble(message: triton.ModelConfig, backend: str) -> tuple[Step, ...]:
    steps = message.ensemble_scheduling.step
    if backend != ENSEMBLE:
        if steps:
            raise ValueError(
                f"ensemble_scheduling came for the platform or backend {backend!r}; "
                'write platform: "ensemble"'
            )
        return ()
    if not steps:
        raise ValueError(
            "an ensemble has no steps; list them in ensemble_scheduling { step [ … ] }"
        )
    if not message.input or not message.output:
        raise ValueError(
            f"an ensemble declares {len(message.input)} inputs and {len(message.output)} outputs, "
            "wanted at least one of each: it has no file to take them from"
        )
    if message.instance_group or message.model_warmup:
        raise ValueError(
            "an ensemble has an instance_group or a model_warmup, but nothing of its own to run; "
            "give them to the models of its steps"
        )
    return tuple(_step(number, step) for number, step in enumerate(steps, 1))


def _step(number: int, step: triton.ModelEnsembling.Step) -> Step:
    for field in ("model_name", "input_map", "output_map"):
        if not getattr(step, field):
            raise ValueError(f"step {number} of the ensemble has no {field}")
    return Step(
        model=step.model_name,
        version=step.model_version or NEWEST,
        inputs=tuple(sorted(step.input_map.items())),
        outputs=tuple(sorted(step.output_map.items())),
    )


def _names_gpu(group: triton.ModelInstanceGroup) -> bool:
    return bool(group.kind == triton.ModelInstanceGroup.KIND_GPU or group.gpus)


def _instances(message: triton.ModelConfig, *, on_gpu: bool) -> tuple[Instances, ...]:
    groups = message.instance_group or [triton.ModelInstanceGroup()]
    for group in groups:
        if group.count < 0 or any(gpu < 0 for gpu in group.gpus):
            raise ValueError(
                f"an instance_group has count {group.count} and gpus {list(group.gpus)}, wanted "
                "none below 0"
            )
        if on_gpu and group.kind == triton.ModelInstanceGroup.KIND_CPU:
            raise ValueError(
                "an instance_group of KIND_CPU came for a model that runs on a GPU; give all "
                "groups one kind, or make two models of it"
            )
    return tuple(
        Instances(group.count or 1, tuple(group.gpus) if on_gpu else None) for group in groups
    )


def _lengths(text: str) -> tuple[int, ...]:
    if not text:
        return LENGTHS
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ValueError(f"{LENGTHS_KEY} {text!r} came, wanted sizes as '16,32,64'")
    return tuple(sorted({int(word) for word in words}))


def _plans(message: triton.ModelConfig) -> tuple[tuple[str, str], ...]:
    for capability, filename in message.cc_model_filenames.items():
        if not re.fullmatch(r"[0-9]+\.[0-9]+", capability) or not filename:
            raise ValueError(
                f"cc_model_filenames has {filename!r} for {capability!r}, wanted a file for a "
                "compute capability as '9.0'"
            )
    return tuple(sorted(message.cc_model_filenames.items()))


def _plugins(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _spec(tensor: triton.ModelInput | triton.ModelOutput, batched: bool) -> TensorSpec:
    batch = (-1,) if batched else ()
    return TensorSpec(tensor.name, _dtype(tensor.data_type), (*batch, *tensor.dims))


def _dtype(number: int) -> str:
    name = str(triton.DataType.Name(number)).removeprefix("TYPE_").replace("STRING", "BYTES")
    if name not in NUMPY_DTYPES:
        raise ValueError(f"data_type TYPE_{name} came, wanted one of {sorted(NUMPY_DTYPES)}")
    return name


def _batching(message: triton.ModelConfig) -> Batching:
    batching = message.dynamic_batching
    sizes = tuple(sorted(batching.preferred_batch_size))
    if sizes and not 0 < sizes[0] <= sizes[-1] <= message.max_batch_size:
        raise ValueError(
            f"preferred_batch_size {list(sizes)} came, wanted 1 to max_batch_size "
            f"{message.max_batch_size}"
        )
    levels = batching.priority_levels
    if levels and not 1 <= batching.default_priority_level <= levels:
        raise ValueError(
            f"default_priority_level {batching.default_priority_level} came, wanted 1 to {levels}"
        )
    return Batching(
        preferred=sizes,
        delay_s=batching.max_queue_delay_microseconds * MICRO,
        levels=levels,
        default_level=batching.default_priority_level,
        default_policy=_policy(batching.default_queue_policy),
        policies=tuple(
            (level, _policy(policy)) for level, policy in batching.priority_queue_policy.items()
        ),
    )


def _policy(policy: triton.ModelQueuePolicy) -> QueuePolicy:
    return QueuePolicy(
        timeout_s=policy.default_timeout_microseconds * MICRO,
        allow_override=policy.allow_timeout_override,
        reject=policy.timeout_action == triton.ModelQueuePolicy.REJECT,
        max_size=policy.max_queue_size,
    )


def _warmup(sample: triton.ModelWarmup) -> Warmup:
    for name, given in sample.inputs.items():
        if any(size < 0 for size in given.dims):
            raise ValueError(
                f"model_warmup {sample.name!r} has dims {list(given.dims)} for the input "
                f"{name!r}, wanted the sizes of one row"
            )
    inputs = tuple(
        WarmupInput(
            name=name,
            dtype=_dtype(given.data_type),
            shape=tuple(given.dims),
            random=given.random_data,
            file=given.input_data_file,
        )
        for name, given in sample.inputs.items()
    )
    return Warmup(sample.name, sample.batch_size or 1, inputs, sample.count or 1)
