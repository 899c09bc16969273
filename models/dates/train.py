"""Train the tokenizer and the network. Needs torch; about 5 minutes on one H100 and 16 cores."""

import argparse
import json
import math
import time
from itertools import count
from pathlib import Path

import data
import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

PEAK_RATE = 2e-3
WARM_UP = 0.1
"""Share of the training in which the rate rises."""
VOCABULARY = 4096
LEARNT_FROM = 400_000
"""Texts that the tokenizer is made from."""
LENGTH = 128
WIDTH = 128
ANSWER = 16
"""More tokens than an answer has."""
CHUNK = 100_000
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
BOS, PAD, EOS = 0, 1, 2


def tokenizer_from_texts(texts: list[str]) -> Tokenizer:
    """Learn a lower-casing byte-level BPE: every digit is a token, of any script."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    # A word is cut the same way wherever it stands, so spaces are tokens of their own.
    single = Regex(f"[{data.DIGITS['hanidec']}]")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split(single, "isolated"),
            pre_tokenizers.Split(Regex(r"[\p{L}\p{M}]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    names = ("bos_token", "pad_token", "eos_token", "unk_token")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=LENGTH,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        **dict(zip(names, SPECIAL, strict=True)),
    ).save_pretrained(str(folder))
    config = folder / "tokenizer_config.json"
    settings = json.loads(config.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    config.write_text(json.dumps(settings, indent=2) + "\n")


def encoded(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """Return ids int16[N, T], filled up to the longest."""
    rows: list[np.ndarray] = []
    for first in range(0, len(texts), CHUNK):
        chunk = tokenizer.encode_batch_fast(texts[first : first + CHUNK])
        rows += [np.array(one.ids, np.int16) for one in chunk]
    ids = np.full((len(rows), max(map(len, rows))), PAD, np.int16)
    for line, row in zip(ids, rows, strict=True):
        line[: len(row)] = row
    return torch.from_numpy(ids)


def prepared(samples: list[data.Sample]) -> tuple[Tokenizer, Tensor, Tensor]:
    """Return the tokenizer made from samples, and the ids of their texts and of their answers."""
    texts, answers = ([*side] for side in zip(*samples, strict=True))
    tokenizer = tokenizer_from_texts(texts[:LEARNT_FROM])
    days = sorted(set(answers))
    rows = {day: row for row, day in enumerate(days)}
    return (
        tokenizer,
        encoded(tokenizer, texts),
        encoded(tokenizer, days)[[rows[a] for a in answers]],
    )


def network(vocabulary: int) -> BartForConditionalGeneration:
    config = BartConfig(
        vocab_size=vocabulary,
        d_model=WIDTH,
        encoder_layers=3,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=512,
        decoder_ffn_dim=512,
        max_position_embeddings=LENGTH,
        dropout=0.0,
        init_std=WIDTH**-0.5,  # BART's own 0.02 is for 1024: here training hardly begins
        bos_token_id=BOS,
        pad_token_id=PAD,
        eos_token_id=EOS,
        decoder_start_token_id=EOS,
        forced_eos_token_id=None,
    )
    net = BartForConditionalGeneration(config)
    net.generation_config = GenerationConfig(
        max_length=ANSWER,
        do_sample=False,
        num_beams=1,
        bos_token_id=BOS,
        pad_token_id=PAD,
        eos_token_id=EOS,
        decoder_start_token_id=EOS,
    )
    return net


def rate(done: float) -> float:
    """Return the learning rate when so much of the training is done, 0..1."""
    falling = (1 + math.cos(math.pi * min(1.0, done))) / 2
    return PEAK_RATE * min(done / WARM_UP, falling)


def loss(net: BartForConditionalGeneration, texts: Tensor, answers: Tensor) -> Tensor:
    """Return the mean cross-entropy of a batch: ids [B, T] and [B, A]."""
    ids, labels = texts.long(), answers.long()
    # An answer begins after the decoder's start, without the <s> that a text begins with.
    fed = torch.cat([torch.full_like(labels[:, :1], EOS), labels[:, 1:-1]], 1)
    output = net(input_ids=ids, attention_mask=(ids != PAD).long(), decoder_input_ids=fed)
    return nn.functional.cross_entropy(output.logits.flatten(0, 1), labels[:, 1:].flatten())


def train(
    net: BartForConditionalGeneration,
    texts: Tensor,
    answers: Tensor,
    batch: int,
    seconds: float,
    steps: int,
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
        value = loss(net, texts[rows], answers[rows])
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
    parser.add_argument("--texts", type=int, default=3_000_000, help="to train on")
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--seconds", type=float, default=200)
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
    tokenizer, texts, answers = prepared(data.training(given.texts))
    print(f"ids {[*texts.shape]} made in {time.perf_counter() - started:.0f} s", flush=True)
    net = network(tokenizer.get_vocab_size()).to(given.device)
    train(
        net,
        texts.to(given.device),
        answers.to(given.device),
        given.batch,
        given.seconds,
        given.steps,
    )
    net.save_pretrained(str(given.out))
    save_tokenizer(tokenizer, given.out)


if __name__ == "__main__":
    main()
