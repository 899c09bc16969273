"""What transformers makes of dates: `python …/transformers_dates.py MODEL SECONDS < TEXTS`.

Needs torch. The network is built from the ONNX files of `models/dates`, whose weights have the
names of Hugging Face. Prints one JSON line: tokens per second one by one, by eight threads and by
batches of eight, and the tokens of each text.
"""

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from transformers import AutoTokenizer, BartConfig, BartForConditionalGeneration

AT_ONCE = 8


def weights(version: Path) -> dict[str, torch.Tensor]:
    """Return the weights of both graphs by name; those that were turned are turned back."""
    found = {}
    for name in ("encoder.onnx", "step.onnx"):
        for weight in onnx.load(version / name).graph.initializer:
            if not weight.name.startswith("constant"):
                tensor = torch.from_numpy(numpy_helper.to_array(weight).copy())
                turned = weight.name.endswith(".T")
                found[weight.name.removesuffix(".T")] = tensor.T if turned else tensor
    return found


def network(version: Path) -> BartForConditionalGeneration:
    """Return the network with its weights."""
    given = weights(version)
    step = onnx.load(version / "step.onnx").graph
    heads = next(one for one in step.input if one.name == "k_0").type.tensor_type.shape.dim[1]
    vocabulary, width = given["shared.weight"].shape

    def layers(side: str) -> int:
        return len({name.split(".")[2] for name in given if name.startswith(f"{side}.layers.")})

    config = BartConfig(
        vocab_size=vocabulary, d_model=width, encoder_layers=layers("encoder"),
        decoder_layers=layers("decoder"), encoder_attention_heads=heads.dim_value,
        decoder_attention_heads=heads.dim_value,
        encoder_ffn_dim=len(given["encoder.layers.0.fc1.bias"]),
        decoder_ffn_dim=len(given["encoder.layers.0.fc1.bias"]),
        max_position_embeddings=len(given["encoder.embed_positions.weight"]) - 2,
        forced_eos_token_id=None,
    )  # fmt: skip
    made = BartForConditionalGeneration(config)
    made.model.load_state_dict(given, strict=False)
    made.final_logits_bias.copy_(given["final_logits_bias"].reshape(1, -1))
    made.tie_weights()
    return made.eval()


def rate(work: Callable[[int], int], seconds: float) -> float:
    """Return tokens per second of work that is done again and again."""
    work(0)
    began, tokens, turn = time.perf_counter(), 0, 0
    while (passed := time.perf_counter() - began) < seconds:
        tokens += work(turn)
        turn += 1
    return tokens / passed


def main(folder: Path, seconds: float) -> None:
    texts: list[str] = json.load(sys.stdin)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    made = network(folder / "1")
    options: dict[str, Any] = {
        "do_sample": False, "num_beams": 1, "max_length": 16, "decoder_start_token_id": 2,
        "eos_token_id": 2, "pad_token_id": tokenizer.pad_token_id, "forced_bos_token_id": None,
    }  # fmt: skip

    def generate(part: list[str]) -> list[list[int]]:
        with torch.inference_mode():
            given = tokenizer(part, return_tensors="pt", padding=True)
            rows = made.generate(**given, **options)[:, 1:].tolist()
        return [row[: row.index(2) + 1] if 2 in row else row for row in rows]

    def one(turn: int) -> int:
        return sum(map(len, generate([texts[turn % len(texts)]])))

    def batch(turn: int) -> int:
        begin = turn * AT_ONCE % (len(texts) - AT_ONCE)
        return sum(map(len, generate(texts[begin : begin + AT_ONCE])))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        figures = {
            "one_by_one": rate(one, seconds),
            "eight_threads": rate(
                lambda turn: sum(pool.map(one, range(8 * turn, 8 * turn + 8))), seconds
            ),
            "batches_of_eight": rate(batch, seconds),
        }
    print(json.dumps({"tokens_per_s": figures, "ids": [generate([text])[0] for text in texts]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
