"""A model's config as Triton tells it: what the file says, and what was filled in."""

from tritonclient.grpc import model_config_pb2 as triton

from infer_svc.config import ModelConfig, read_message
from infer_svc.repository import Model
from mesh.errors import SettingsError
from mesh.tensor import TensorSpec

PLATFORMS = {"onnxruntime": "onnxruntime_onnx", "tensorrt": "tensorrt_plan"}


def platform_of(config: ModelConfig) -> str:
    """Return the platform of a model."""
    return "ensemble" if config.ensemble else PLATFORMS.get(config.backend, "")


def completed(model: Model) -> triton.ModelConfig:
    """Return the config of a loaded model.

    Tensors are those of the model file where the config names none; the platform, the file's name,
    the instances and the version policy are what they are without a word in it.
    """
    config = model.config
    try:
        message = read_message(model.folder)
    except SettingsError:  # the file was changed meanwhile, and is told of elsewhere
        message = triton.ModelConfig()
    message.name = config.name
    if not config.ensemble:
        message.platform = message.platform or platform_of(config)
        message.backend = config.backend
        message.default_model_filename = config.filename
        if not message.instance_group:
            _add_instances(message, model)
    if not message.HasField("version_policy"):
        message.version_policy.latest.num_versions = 1
    skip = 1 if config.max_rows else 0
    for target, specs in ((message.input, config.inputs), (message.output, config.outputs)):
        named = {tensor.name: tensor for tensor in target}
        for spec in specs:
            tensor = named.get(spec.name) or target.add(name=spec.name)
            tensor.data_type = _number(spec)
            if not tensor.dims:
                tensor.dims.extend(spec.shape[skip:])
    return message


def _add_instances(message: triton.ModelConfig, model: Model) -> None:
    for number, placement in enumerate(model.placements):
        group = message.instance_group.add(
            name=f"{model.config.name}_{number}", count=placement.lanes
        )
        group.kind = (
            triton.ModelInstanceGroup.KIND_CPU
            if placement.gpu is None
            else triton.ModelInstanceGroup.KIND_GPU
        )
        if placement.gpu is not None:
            group.gpus.append(placement.gpu)


def _number(spec: TensorSpec) -> int:
    name = "STRING" if spec.dtype == "BYTES" else spec.dtype
    return int(triton.DataType.Value(f"TYPE_{name}"))
