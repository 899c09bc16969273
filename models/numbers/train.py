"""Train the tokenizer and the network. Needs torch; about 4 minutes on one H100 and 16 cores."""

import argparse
import json
import math
import time
from itertools import count
from pathlib import Path

import data
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

PEAK_RATE = 2e-3
WARM_UP = 0.03
"""Share of the training in which the rate rises."""
VOCABULARY = 512
"""At most: there are not so many words in names of numbers."""
LEARNT_FROM = 100_000
"""Texts that the tokenizer is made from."""
POSITIONS = 128
WIDTH = 128
LONGEST = 64
"""More tokens than any text has."""
CHUNK = 100_000
END = "<|endoftext|>"
END_ID = 0
NO_LOSS = -100


def tokenizer_from_texts(texts: list[str]) -> Tokenizer:
    """Learn GPT-2's byte-level BPE, but with a token for every digit."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=POSITIONS,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        bos_token=END,
        eos_token=END,
        pad_token=END,
    ).save_pretrained(str(folder))
    config = folder / "tokenizer_config.json"
    settings = json.loads(config.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    config.write_text(json.dumps(settings, indent=2) + "\n")


def encoded(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """Return ids int16[N, T], each row with at least one end of text."""
    rows: list[np.ndarray] = []
    for first in range(0, len(texts), CHUNK):
        chunk = tokenizer.encode_batch_fast(texts[first : first + CHUNK])
        rows += [np.array(one.ids, np.int16) for one in chunk]
    ids = np.full((len(rows), max(map(len, rows)) + 1), END_ID, np.int16)
    for line, row in zip(ids, rows, strict=True):
        line[: len(row)] = row
    return torch.from_numpy(ids)


def network(vocabulary: int) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=POSITIONS,
        n_embd=WIDTH,
        n_layer=4,
        n_head=4,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=WIDTH**-0.5,
        bos_token_id=END_ID,
        eos_token_id=END_ID,
    )
    net = GPT2LMHeadModel(config)
    net.generation_config = GenerationConfig(
        max_length=LONGEST,
        do_sample=False,
        num_beams=1,
        bos_token_id=END_ID,
        eos_token_id=END_ID,
        pad_token_id=END_ID,
    )
    return net


def rate(done: float) -> float:
    """Return the learning rate when so much of the training is done, 0..1."""
    falling = (1 + math.cos(math.pi * min(1.0, done))) / 2
    return PEAK_RATE * min(done / WARM_UP, falling)


def loss(net: GPT2LMHeadModel, texts: Tensor, equals: int) -> Tensor:
    """Return the mean cross-entropy of what follows "=", up to the first end of text.

    Args:
        net: The network.
        texts: Ids [B, T].
        equals: The id of " =".
    """
    fed, wanted = texts[:, :-1].long(), texts[:, 1:].long()
    begun = (fed == equals).cumsum(1) > 0
    ended = (fed == END_ID).cumsum(1) > 0
    wanted = wanted.masked_fill(~begun | ended, NO_LOSS)
    logits = net(input_ids=fed).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=NO_LOSS)


def train(
    net: GPT2LMHeadModel, texts: Tensor, equals: int, batch: int, seconds: float, steps: int
) -> None:
    """Train until the steps are done, or the seconds over if there are no steps."""
    optimizer = torch.optim.AdamW(net.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    started, total = time.perf_counter(), torch.zeros((), device=texts.device)
    net.train()
    for step in count(1):
        passed = time.perf_counter() - started
        done = step / steps if steps else passed / seconds
        if done > 1:
            break
        rows = torch.randint(len(texts), (batch,), device=texts.device)
        value = loss(net, texts[rows], equals)
        optimizer.param_groups[0]["lr"] = rate(done)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        total += value.detach()
        if step % 100 == 0:
            print(f"step {step} after {passed:.0f} s: loss {float(total) / 100:.4f}", flush=True)
            total.zero_()
    net.eval()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--texts", type=int, default=2_000_000, help="to train on")
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--steps", type=int, default=0, help="instead of seconds")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: as it likes")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    if given.threads:
        torch.set_num_threads(given.threads)
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    started = time.perf_counter()
    texts = [prompt + answer for prompt, answer in data.training(given.texts)]
    tokenizer = tokenizer_from_texts(texts[:LEARNT_FROM])
    ids = encoded(tokenizer, texts)
    print(f"ids {[*ids.shape]} made in {time.perf_counter() - started:.0f} s", flush=True)
    (equals,) = tokenizer.encode(" =").ids
    net = network(tokenizer.get_vocab_size()).to(given.device)
    train(net, ids.to(given.device), equals, given.batch, given.seconds, given.steps)
    net.save_pretrained(str(given.out))
    save_tokenizer(tokenizer, given.out)


if __name__ == "__main__":
    main()
