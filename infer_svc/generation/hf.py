"""Makes a model's folder from a Hugging Face folder: tokenizer, graphs, configs, pipeline."""

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infer_svc.config import MOST_SLOTS
from infer_svc.generation.bart import Bart
from infer_svc.generation.engines import ENCODER, STEP
from infer_svc.generation.generator import warm_up
from infer_svc.generation.gpt2 import gpt2_step
from infer_svc.generation.graph import Weights
from infer_svc.generation.settings import FILE, GenerationConfig, read_generation_config
from infer_svc.generation.stepper import OrtStepper
from mesh.errors import MeshError, SettingsError

TASKS = {
    "summarization": "bart", "text2text-generation": "bart", "text-generation": "gpt2",
}  # fmt: skip
"""Hugging Face's names, and the `model_type` in `config.json` that does it."""
DTYPES: dict[str, type[np.floating[Any]]] = {"fp32": np.float32, "fp16": np.float16}
SHORTEST, MOST_LENGTH = 2, 1024
"""Ids in a slot: one that is read and one that is made."""
OLDER = ("decoder_start_token_id", "eos_token_id")
"""Ids that are taken from `config.json` where a generation config lacks them."""
MOST_BYTES = 2**31 - 2**20
"""Of a protobuf message, and so of an ONNX file that has its weights in it."""
SAFE = (
    'python -c "from transformers import AutoModel{kind} as M; '
    "M.from_pretrained('{folder}').save_pretrained('{folder}', safe_serialization=True)\""
)


@dataclass(frozen=True)
class Wanted:
    """How the model is to be served."""

    task: str
    """One of `TASKS`."""
    name: str
    """Of the model and the pipeline."""
    length: int = 0
    """Ids that the cache of a slot holds; 0: what there are positions for, 1,024 at most."""
    source_length: int = 0
    """Ids of a text that is encoded; 0: as above."""
    slots: int = 8
    precision: str = "fp32"
    """One of `DTYPES`."""
    gpu: bool = False


@dataclass(frozen=True)
class Imported:
    """What was made."""

    folder: Path
    bytes: int
    """Of the graphs."""
    cache_bytes: int
    """Of the caches of all slots."""


def import_folder(source: Path, models: Path, wanted: Wanted) -> Imported:
    """Make `models/<name>` from a folder as `save_pretrained` writes it. Nothing is downloaded.

    Raises:
        SettingsError: it is no BART or GPT-2 that this knows, or something is missing; there is
            such a model already.
    """
    target = models / wanted.name
    _check_wishes(wanted)
    if target.exists():
        raise SettingsError(f"{target} is there already; give another --name, or remove it")
    if not source.is_dir():
        raise SettingsError(f"{source} is no folder; give one as save_pretrained writes it")
    config = _read(source / "config.json")
    _check_kind(config, wanted)
    weights = _weights(source, wanted)
    _make_repository(models)
    try:
        made, cache = _made(source, models, wanted, config, weights)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as err:
        raise SettingsError(
            f"{source} is none that can be imported ({type(err).__name__}: {err}); compare its "
            "config.json and weights with those that save_pretrained writes"
        ) from err
    except OSError as err:
        raise SettingsError(f"{target} cannot be made: {err}") from err
    return Imported(target, made, cache)


def _made(
    source: Path, models: Path, wanted: Wanted, config: Mapping[str, Any], weights: Weights
) -> tuple[int, int]:
    """Make the folder beside where it shall be, try it and move it; return bytes as `Imported`."""
    with tempfile.TemporaryDirectory(dir=models, prefix=".import-") as scratch:
        folder = Path(scratch) / wanted.name
        version = folder / "1"
        version.mkdir(parents=True)
        length, source_length = _lengths(config, wanted)
        made = _write_graphs(config, weights, version, length, source_length, wanted)
        _write_generation_config(source, config, version)
        _write_tokenizer(source, folder / "tokenizer")
        (folder / "config.pbtxt").write_text(_model_config(wanted))
        (folder / "pipeline.yaml").write_text(_pipeline(wanted, length, source_length))
        _try(version)
        folder.rename(models / wanted.name)
    return made, _cache_bytes(config, length, source_length, wanted)


def _try(version: Path) -> None:
    """Run a step of what was made, with one slot and on the CPU.

    Raises:
        SettingsError: the generation config is of another vocabulary, or weights and `config.json`
            are not of one network.
    """
    encoder = version / ENCODER
    generation = read_generation_config(version)
    try:
        stepper = OrtStepper(version / STEP, 1, encoder if encoder.exists() else None)
        warm_up(stepper)
    except MeshError as err:
        raise SettingsError(f"config.json and the weights do not fit each other: {err}") from err
    generation.check(stepper.vocabulary)


def _check_wishes(wanted: Wanted) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", wanted.name):
        raise SettingsError(
            f"the name {wanted.name!r} came, wanted letters, digits, '_', '-' and '.'; give one "
            "with --name"
        )
    if not 1 <= wanted.slots <= MOST_SLOTS:
        raise SettingsError(f"{wanted.slots} slots came, wanted 1 to {MOST_SLOTS}")
    for name in ("length", "source_length"):
        if getattr(wanted, name) < 0:
            raise SettingsError(f"a {name} of {getattr(wanted, name)} came, wanted 0 or more")


def _make_repository(models: Path) -> None:
    try:
        models.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise SettingsError(f"model repository {models} cannot be made: {err.strerror}") from err


def _check_kind(config: Mapping[str, Any], wanted: Wanted) -> None:
    kind = TASKS.get(wanted.task)
    if kind is None:
        raise SettingsError(f"task {wanted.task!r} came, wanted one of {[*TASKS]}")
    if config.get("model_type") != kind:
        raise SettingsError(
            f"a model of the type {config.get('model_type')!r} came, {wanted.task} is done with "
            f"{kind!r}; other types cannot be imported"
        )


def _lengths(config: Mapping[str, Any], wanted: Wanted) -> tuple[int, int]:
    """Return the ids that a cache holds and those of a source; 0: there is no encoder."""
    encodes = TASKS[wanted.task] == "bart"
    most = int(config["max_position_embeddings" if encodes else "n_positions"])
    length = wanted.length or min(most, MOST_LENGTH)
    source = (wanted.source_length or min(most, MOST_LENGTH)) if encodes else 0
    for name, value in (("length", length), ("source length", source)):
        if value > most:
            raise SettingsError(f"a {name} of {value} came, the model has {most} positions")
    if length < SHORTEST:
        raise SettingsError(f"a length of {length} came, wanted {SHORTEST} or more")
    return length, source


def _write_graphs(
    config: Mapping[str, Any],
    weights: Weights,
    version: Path,
    length: int,
    source_length: int,
    wanted: Wanted,
) -> int:
    """Write the ONNX files; return their bytes."""
    dtype = DTYPES[wanted.precision]
    size = sum(array.size for array in weights.values()) * np.dtype(dtype).itemsize
    if size > MOST_BYTES:
        raise SettingsError(
            f"the weights have {size / 2**30:.1f} GiB in {wanted.precision}, an ONNX file holds "
            "less than 2; take --precision fp16, or a smaller model"
        )
    if TASKS[wanted.task] == "bart":
        bart = Bart(config, weights, dtype)
        graphs = {
            ENCODER: bart.encoder(source_length), STEP: bart.step(length, source_length)
        }  # fmt: skip
    else:
        graphs = {STEP: gpt2_step(config, weights, length, dtype)}
    return sum((version / name).write_bytes(graph.SerializeToString())
               for name, graph in graphs.items())  # fmt: skip


def _write_generation_config(source: Path, config: Mapping[str, Any], version: Path) -> None:
    """Write what of the generation config is used; older folders have it in `config.json`.

    Where both are there, only ids that the newer one lacks come from the older: transformers takes
    nothing else from it.
    """
    path = source / FILE
    given = dict(config)
    if path.exists():
        given = {name: config.get(name) for name in OLDER} | _read(path)
    used = {name: given.get(name) for name in GenerationConfig.model_fields}
    kept = {name: value for name, value in used.items() if value is not None}
    (version / FILE).write_text(json.dumps(kept, indent=2) + "\n")


def _write_tokenizer(source: Path, folder: Path) -> None:
    """Write the tokenizer as `tokenizer.json`, also where the folder has an older form of it."""
    from transformers import AutoTokenizer  # noqa: PLC0415 seconds, and only for this

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, local_files_only=True, trust_remote_code=False
        )
    except Exception as err:  # tokenizers raises nothing more special
        why = f"{type(err).__name__}: {err}".splitlines()[0]
        raise SettingsError(f"no tokenizer can be loaded from {source}: {why}") from err
    if not tokenizer.is_fast:
        raise SettingsError(f"{type(tokenizer).__name__} in {source} is no fast tokenizer")
    tokenizer.save_pretrained(folder)


def _weights(source: Path, wanted: Wanted) -> Weights:
    from safetensors.numpy import load_file  # noqa: PLC0415 comes with transformers

    index = source / "model.safetensors.index.json"
    if index.exists():
        places = _read(index).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(at, str) for at in places.values()):
            raise SettingsError(f"{index} has no weight_map from names to files")
        names = sorted(set(places.values()))
    elif (source / "model.safetensors").exists():
        names = ["model.safetensors"]
    else:
        kind = "ForCausalLM" if TASKS[wanted.task] == "gpt2" else "ForSeq2SeqLM"
        raise SettingsError(
            f"{source} has no model.safetensors; an older file of weights becomes one by "
            + SAFE.format(kind=kind, folder=source)
        )
    weights: dict[str, Any] = {}
    for name in names:
        try:
            weights |= load_file(source / name)
        except Exception as err:  # safetensors raises nothing more special
            raise SettingsError(f"{source / name} cannot be read: {err}") from err
    return weights


def _cache_bytes(config: Mapping[str, Any], length: int, source_length: int, wanted: Wanted) -> int:
    encodes = source_length > 0
    width = int(config["d_model" if encodes else "n_embd"])
    layers = int(config["decoder_layers" if encodes else "n_layer"])
    item = np.dtype(DTYPES[wanted.precision]).itemsize
    return 2 * layers * width * item * (length + source_length) * wanted.slots


def _model_config(wanted: Wanted) -> str:
    kind = "KIND_GPU" if wanted.gpu else "KIND_CPU"
    return f"""name: "{wanted.name}"
platform: "onnxruntime_onnx"
model_transaction_policy {{
  decoupled: true
}}
instance_group [
  {{
    count: 1
    kind: {kind}
  }}
]
parameters {{
  key: "slots"
  value {{ string_value: "{wanted.slots}" }}
}}
"""


def _pipeline(wanted: Wanted, length: int, source_length: int) -> str:
    # A text that is encoded may end early; one that goes on must not, and leaves room for a token.
    limit = (
        f"max_length: {source_length}" if source_length
        else f"max_length: {length - 1}, truncate: false"
    )  # fmt: skip
    # In quotes: a model may be called 123 or null.
    return f"""task: generate
preprocess:
  op: tokenize
  parameters: {{folder: "{wanted.name}/tokenizer", {limit}}}
model: "{wanted.name}"
postprocess:
  op: detokenize
  parameters: {{folder: "{wanted.name}/tokenizer"}}
deadline_s: 60
"""


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as err:
        why = err.strerror if isinstance(err, OSError) else err
        raise SettingsError(f"{path} cannot be read: {why}") from err
    if not isinstance(found, dict):
        raise SettingsError(f"{path} is no JSON object")
    return found
