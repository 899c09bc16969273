"""ResNet-50 and BERT-Large with random weights, in FP16, as models of a repository."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
import transformers

from mesh.tensor import Tensors

ROWS = 32
LENGTH = 128
WORDS = 30522
CONFIG = """
max_batch_size: {rows}
instance_group [ {{ count: {lanes} kind: KIND_GPU gpus: [ 0 ] }} ]
dynamic_batching {{ preferred_batch_size: [ {rows} ] max_queue_delay_microseconds: {delay_us} }}
parameters {{ key: "length_buckets" value {{ string_value: "{length}" }} }}
"""


@dataclass(frozen=True)
class Network:
    """A network that is measured."""

    name: str
    make: Callable[[], Any]
    """Returns it as a PyTorch module, in FP32, on the CPU."""
    dtypes: dict[str, type]
    """NumPy's, of its inputs."""
    shapes: dict[str, tuple[int, ...]]
    """Of one row of its inputs."""

    def rows(self, count: int, seed: int = 0) -> Tensors:
        """Return random inputs."""
        random = np.random.default_rng(seed)
        return {
            name: self._values(random, name, (count, *shape)) for name, shape in self.shapes.items()
        }

    def _values(self, random: np.random.Generator, name: str, shape: tuple[int, ...]) -> Any:
        if name == "attention_mask":
            return np.ones(shape, np.int64)
        if self.dtypes[name] is np.int64:
            return random.integers(0, WORDS, shape)
        if self.dtypes[name] is np.uint8:
            return random.integers(0, 256, shape, np.uint8)
        return random.standard_normal(shape).astype(self.dtypes[name])


def make_resnet() -> Any:
    torch.manual_seed(0)
    return torchvision.models.resnet50(weights=None).eval()


def make_bert() -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=WORDS, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16,
        intermediate_size=4096, attn_implementation="eager",
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config).eval()


RESNET = Network("resnet50", make_resnet, {"x": np.float16}, {"x": (3, 224, 224)})
BERT = Network(
    "bert-large", make_bert, {"input_ids": np.int64, "attention_mask": np.int64},
    {"input_ids": (LENGTH,), "attention_mask": (LENGTH,)},
)  # fmt: skip
NETWORKS = {network.name: network for network in (RESNET, BERT)}


def write(network: Network, root: Path, lanes: int, delay_us: int = 1000) -> Path:
    """Write a network as a model; return its folder. The file is kept where there is one."""
    folder = root / network.name
    (folder / "1").mkdir(parents=True, exist_ok=True)
    text = CONFIG.format(rows=ROWS, lanes=lanes, delay_us=delay_us, length=LENGTH)
    (folder / "config.pbtxt").write_text(text)
    path = folder / "1/model.onnx"
    if not path.exists():
        inputs = {name: torch.from_numpy(array) for name, array in network.rows(2).items()}
        axes = {name: {0: "rows"} for name in (*inputs, "y")}
        module = _Outputs(network.make().half().cuda())
        torch.onnx.export(
            module, tuple(tensor.cuda() for tensor in inputs.values()), str(path), dynamo=False,
            opset_version=17, input_names=list(inputs), output_names=["y"], dynamic_axes=axes,
        )  # fmt: skip
    return folder


class _Outputs(torch.nn.Module):  # type: ignore[misc]
    """Returns logits as a tensor, whatever the network returns."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self._network = network

    def forward(self, *inputs: Any) -> Any:
        made = self._network(*inputs)
        return made.logits if hasattr(made, "logits") else made
