"""Text generation by a BART of the large size with random weights, in FP16, against bare steps.

Slots and sizes are those of the design: 64 slots, 256 ids of text, sources of up to 512. No token
ends a text: each has as many as it asks for.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from benchmarks.gpu.served import show
from benchmarks.load.generating import summary
from benchmarks.peers.server import running
from benchmarks.peers.systems import Place, start_mesh
from infer_svc.backends.cuda import device
from infer_svc.backends.machine import Machine
from infer_svc.build.builds import Builds
from infer_svc.config import read_config
from infer_svc.generation.bart import Bart
from infer_svc.generation.engines import ENCODER, STEP
from infer_svc.generation.generator import Generator, open_generator, with_tensors
from infer_svc.generation.settings import FILE
from infer_svc.generation.tensorrt_stepper import TensorRTStepper
from infer_svc.metrics import ModelMetrics
from mesh.item import Request
from mesh.port import free_ports

SLOTS, LENGTH, SOURCE = 64, 256, 512
TOKENS = 128
"""Of each text, where rates of tokens are measured."""
SUMMARY = 20
SECONDS = 6.0
STEPS = 300
CLIENTS, PROCESSES = 64, 8
MESH = {"gateway": 5, "preprocess": 1, "infer": 1, "postprocess": 2}
UP_S = 240.0
VOCABULARY, WIDTH, LAYERS, HEADS, WIDE = 50265, 1024, 12, 16, 4096
CONFIG = {
    "model_type": "bart", "vocab_size": VOCABULARY, "d_model": WIDTH, "encoder_layers": LAYERS,
    "decoder_layers": LAYERS, "encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": WIDE, "decoder_ffn_dim": WIDE, "max_position_embeddings": 1024,
    "activation_function": "gelu",
}  # fmt: skip


async def measure(root: Path) -> dict[str, Any]:
    """Return the figures."""
    place = Place(root / "generation")
    folder = write(place.models)
    builds = Builds(root / "engines")
    began = time.perf_counter()
    config = with_tensors(read_config(folder))
    generator = open_generator(
        config, folder / "1", Machine(builds=builds), ModelMetrics("large", 1, 0),
        asyncio.get_running_loop(),
    )  # fmt: skip
    found: dict[str, Any] = {
        "gpu": device(0).name, "slots": SLOTS, "open_s": round(time.perf_counter() - began, 1),
    }  # fmt: skip
    note(found, "bare", bare(generator))
    note(found, "inside", await inside(generator))
    found["inside_to_bare"] = round(
        found["inside"]["tokens_per_s"] / found["bare"][f"{SLOTS}_rows_per_s"], 3
    )
    note(found, "alone", await alone(generator))
    note(found, "summaries", await summaries(generator))
    await asyncio.to_thread(generator.close)
    note(found, "through", await asyncio.to_thread(through, root, place))
    found["through_to_bare"] = round(
        found["through"]["tokens_per_s"] / found["bare"][f"{SLOTS}_rows_per_s"], 3
    )
    note(found, "transformers", one_by_one())
    rate = found["transformers"]["tokens_per_s"]
    found["inside_to_transformers"] = round(found["inside"]["tokens_per_s"] / rate, 1)
    return found


def note(found: dict[str, Any], name: str, figures: Any) -> None:
    """Note figures, and print them: what follows may take minutes."""
    found[name] = figures
    show({name: figures})


def weights() -> dict[str, NDArray[np.float16]]:
    """Return random weights by the names of Hugging Face."""
    random = np.random.default_rng(0)
    made: dict[str, NDArray[np.float16]] = {}

    def linear(name: str, rows: int, columns: int) -> None:
        values = random.standard_normal((rows, columns), np.float32) * np.float32(0.03)
        made[f"{name}.weight"] = values.astype(np.float16)
        made[f"{name}.bias"] = np.zeros(rows, np.float16)

    def norm(name: str) -> None:
        made[f"{name}.weight"] = np.ones(WIDTH, np.float16)
        made[f"{name}.bias"] = np.zeros(WIDTH, np.float16)

    linear("shared", VOCABULARY, WIDTH)
    made["final_logits_bias"] = np.zeros((1, VOCABULARY), np.float16)
    for side in ("encoder", "decoder"):
        linear(f"{side}.embed_positions", 1026, WIDTH)
        norm(f"{side}.layernorm_embedding")
        for layer in range(LAYERS):
            name = f"{side}.layers.{layer}"
            attentions = ["self_attn", "encoder_attn"][: 1 + (side == "decoder")]
            for attention in attentions:
                for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    linear(f"{name}.{attention}.{part}", WIDTH, WIDTH)
                norm(f"{name}.{attention}_layer_norm")
            linear(f"{name}.fc1", WIDE, WIDTH)
            linear(f"{name}.fc2", WIDTH, WIDE)
            norm(f"{name}.final_layer_norm")
    return made


def write(models_root: Path) -> Path:
    """Write the model's folder, with a tokenizer of as many words; return it."""
    folder = models_root / "large"
    version = folder / "1"
    version.mkdir(parents=True)
    bart = Bart(CONFIG, weights(), np.float16)
    (version / ENCODER).write_bytes(bart.encoder(SOURCE).SerializeToString())
    (version / STEP).write_bytes(bart.step(LENGTH, SOURCE).SerializeToString())
    (version / FILE).write_text('{"decoder_start_token_id": 2}')
    (folder / "config.pbtxt").write_text(
        'model_transaction_policy { decoupled: true } platform: "onnxruntime_onnx" '
        "instance_group [ { count: 1 kind: KIND_GPU gpus: [ 0 ] } ] "
        f'parameters {{ key: "slots" value {{ string_value: "{SLOTS}" }} }}'
    )
    words = {f"w{number}": number for number in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece("##", cleanup=False)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="w3"
    ).save_pretrained(folder / "tokenizer")
    (folder / "pipeline.yaml").write_text(f"""
task: generate
preprocess: {{op: tokenize, parameters: {{folder: large/tokenizer, max_length: {SOURCE}}}}}
model: large
postprocess: {{op: detokenize, parameters: {{folder: large/tokenizer}}}}
deadline_s: 60
""")
    return folder


def bare(generator: Generator) -> dict[str, Any]:
    """Return the rates of steps alone, each put while the one ahead of it runs."""
    stepper = generator.stepper
    assert isinstance(stepper, TensorRTStepper)
    found: dict[str, Any] = {}
    for rows in (1, 8, SLOTS):
        rates = []
        for _ in range(3):
            stepper.put([5] * rows, [1] * rows)
            began = time.perf_counter()
            for step in range(STEPS):
                stepper.put([None] * rows, [2 + step % (LENGTH - 3)] * rows)
                stepper.take()
            rates.append(STEPS * rows / (time.perf_counter() - began))
            stepper.take()
        found[f"{rows}_rows_per_s"] = round(statistics.median(rates))
        found[f"{rows}_rows_step_ms"] = round(1e3 * rows / statistics.median(rates), 3)
    for length in (32, SOURCE):
        began = time.perf_counter()
        for _ in range(20):
            stepper.begin(0, [7] * length)
        stepper.put([5], [0])
        stepper.take()
        found[f"encoder_{length}_ms"] = round(1e3 * (time.perf_counter() - began) / 20, 3)
    return found


async def ask(generator: Generator, length: int, tokens: int) -> tuple[float, float, int]:
    """Generate once; return seconds to the first token and to the end, and how many came."""
    ids = np.full((1, length), 7, np.int64)
    began, first, count = time.perf_counter(), 0.0, 0

    def emit(_: Any) -> None:
        nonlocal first, count
        first = first or time.perf_counter() - began
        count += 1

    request = Request("large", b"", json.dumps({"max_tokens": tokens}).encode(), emit=emit)
    await generator.run(request, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    return first, time.perf_counter() - began, count


async def inside(generator: Generator) -> dict[str, Any]:
    """Return the rate of as many generations as there are slots, through the scheduler."""
    end = time.perf_counter() + 2 + SECONDS
    tokens = 0.0

    async def client() -> None:
        nonlocal tokens
        while (began := time.perf_counter()) < end:
            await ask(generator, 32, TOKENS)
            done = time.perf_counter()
            inside = min(done, end) - max(began, end - SECONDS)
            tokens += TOKENS * max(0.0, inside) / (done - began)

    await asyncio.gather(*(client() for _ in range(SLOTS)))
    return {"tokens_per_s": round(tokens / SECONDS), "tokens_each": TOKENS}


async def alone(generator: Generator) -> dict[str, Any]:
    """Return the time to the first token where a slot is free and nobody else is there."""
    firsts = [(await ask(generator, SOURCE, 8))[0] for _ in range(30)]
    return {"source": SOURCE, "first_token_p50_ms": round(1e3 * statistics.median(firsts), 2)}


async def summaries(generator: Generator) -> list[dict[str, Any]]:
    """Return the rates and latencies of short texts after long sources."""
    found = []
    for clients in (16, 32, SLOTS):
        end = time.perf_counter() + SECONDS
        took: list[float] = []

        async def client(end: float = end, took: list[float] = took) -> None:
            while time.perf_counter() < end:
                took.append((await ask(generator, 400, SUMMARY))[1])

        await asyncio.gather(*(client() for _ in range(clients)))
        found.append({
            "clients": clients, "per_s": round(len(took) / SECONDS),
            "p50_ms": round(1e3 * float(np.percentile(took, 50)), 1),
            "p99_ms": round(1e3 * float(np.percentile(took, 99)), 1),
        })  # fmt: skip
    return found


def through(root: Path, place: Place) -> dict[str, Any]:
    """Return the rate of streaming clients through all services."""
    port = free_ports(1)[0]
    environment = {"INFER_ENGINE_CACHE": str(root / "engines")}
    start = start_mesh(place, port, "mesh", MESH, environment)
    assert start.ready is not None
    words = [
        sys.executable, "-m", "benchmarks.load.generating", f"127.0.0.1:{port}", "--pipeline",
        "large", "--clients", str(CLIENTS // PROCESSES), "--seconds", str(SECONDS),
        "--tokens", str(TOKENS), "--texts", " ".join(["w7"] * 32),
    ]  # fmt: skip
    with (
        running(start.command, start.environment, place.log("mesh"), start.ready, UP_S),
        ThreadPoolExecutor(PROCESSES) as pool,
    ):
        outputs = pool.map(
            lambda _: subprocess.run(words, check=True, capture_output=True, text=True).stdout,
            range(PROCESSES),
        )
        return summary([json.loads(output.splitlines()[-1]) for output in outputs])


def one_by_one() -> dict[str, Any]:
    """Return what transformers makes in FP16, one text after the other."""
    config = transformers.BartConfig(**{
        name: value for name, value in CONFIG.items() if name != "model_type"
    })  # fmt: skip
    network = transformers.BartForConditionalGeneration(config).half().cuda().eval()
    ids = torch.full((1, 32), 7, device="cuda")
    options: dict[str, Any] = {
        "do_sample": False, "num_beams": 1, "max_new_tokens": TOKENS, "min_new_tokens": TOKENS,
    }  # fmt: skip
    rates = []
    with torch.inference_mode():
        for _ in range(4):
            began = time.perf_counter()
            network.generate(ids, **options)
            torch.cuda.synchronize()
            rates.append(TOKENS / (time.perf_counter() - began))
    return {"tokens_per_s": round(statistics.median(rates[1:]), 1)}
