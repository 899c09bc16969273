"""Train the tokenizer and the language model. Needs torch; about 9 minutes on 1 core."""

import json
import shutil
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import data
import evaluate
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

STEPS = 8000
BATCH = 64
PEAK_RATE = 2e-3
LENGTH = 64
VOCABULARY = 8192
SHARES = (0.02, 0.1, 0.35)
"""Shares of the merges that the coarser cuts of a word use."""
CHANCES = (0.5, 0.05, 0.2, 0.25)
"""How often a word is cut with all merges, and with each of the shares."""
EVERYDAY = 4
"""How many times an everyday phrase counts."""
MOST_LOST = 0.3
"""Up to this share of a sentence's tokens is left out."""
HERE = Path(__file__).parent
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CLS, SEP = 2, 3


def tokenizer_from_texts(texts: list[str]) -> Tokenizer:
    """Learn a lower-casing byte-level BPE: no script has unknown characters."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
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
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    return tokenizer


def coarser(tokenizer: Tokenizer, share: float) -> Tokenizer:
    """Return the same tokenizer with only its first merges: same ids, smaller pieces."""
    state = json.loads(tokenizer.to_str())
    merges = state["model"]["merges"]
    state["model"]["merges"] = merges[: int(len(merges) * share)]
    return Tokenizer.from_str(json.dumps(state))


def save_tokenizer(tokenizer: Tokenizer) -> None:
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    folder = HERE / "tokenizer"
    shutil.rmtree(folder, ignore_errors=True)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=evaluate.MAX_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
        **dict(zip(names, SPECIAL, strict=True)),
    ).save_pretrained(str(folder))
    config = folder / "tokenizer_config.json"
    settings = json.loads(config.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    config.write_text(json.dumps(settings, indent=2) + "\n")


def network() -> BertForSequenceClassification:
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=evaluate.MAX_LENGTH,
        type_vocab_size=1,
        num_labels=len(data.LABELS),
        attn_implementation="eager",
    )
    return BertForSequenceClassification(config)


class Sentences:
    """Endless training batches: every language as often as any other."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        train = data.split()[0] + data.everyday() * EVERYDAY
        self.rng = np.random.default_rng(seed)
        self.texts = [[t for t, label in train if label == i] for i in range(len(data.LABELS))]
        self.whole = tokenizer
        # Fewer merges now and then: words never seen are cut into small pieces too.
        self.models = [tokenizer.model] + [coarser(tokenizer, share).model for share in SHARES]
        self.known: list[dict[str, list[int]]] = [{} for _ in self.models]

    def batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield int64 ids and mask [BATCH, T], T at most LENGTH, and labels [BATCH]."""
        while True:
            labels = self.rng.integers(len(data.LABELS), size=8 * BATCH)
            rows = [self._ids(int(label)) for label in labels]
            # Rows of one length share a batch, so that little of the work is padding.
            order = np.array(sorted(range(len(rows)), key=lambda i: len(rows[i])))
            for chosen in self.rng.permutation(order.reshape(-1, BATCH)):
                ids = np.zeros((BATCH, max(len(rows[i]) for i in chosen)), np.int64)
                for line, i in zip(ids, chosen, strict=True):
                    line[: len(rows[i])] = rows[i]
                tokens = torch.from_numpy(ids)
                yield tokens, (tokens > 0).long(), torch.from_numpy(labels[chosen])

    def _ids(self, label: int) -> list[int]:
        text = data.varied(self.texts[label], label in data.SPACELESS, self.rng)
        text = self.whole.normalizer.normalize_str(text)
        words = [word for word, _ in self.whole.pre_tokenizer.pre_tokenize_str(text)]
        cuts = self.rng.choice(len(self.models), p=CHANCES, size=len(words))
        ids = [one for word, cut in zip(words, cuts, strict=True) for one in self._cut(word, cut)]
        lost = self.rng.random(len(ids)) < self.rng.random() * MOST_LOST
        kept = [one for one, gone in zip(ids, lost, strict=True) if not gone] or ids
        return [CLS, *kept[: LENGTH - 2], SEP]

    def _cut(self, word: str, cut: int) -> list[int]:
        known = self.known[cut]
        if word not in known:
            known[word] = [token.id for token in self.models[cut].tokenize(word)]
        return known[word]


def train(net: BertForSequenceClassification, sentences: Sentences) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), lr=PEAK_RATE, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=STEPS)
    net.train()
    total = 0.0
    for step, (ids, mask, labels) in enumerate(islice(sentences.batches(), STEPS), 1):
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(input_ids=ids, attention_mask=mask).logits.float()
        loss = F.cross_entropy(logits, labels, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total += float(loss.detach())
        if step % 500 == 0:
            print(f"step {step} loss {total / 500:.4f}", flush=True)
            total = 0.0
    net.eval()


def halve_table(path: Path) -> None:
    """Store the word table as float16: it is most of the file and needs no more precision."""
    model = onnx.load(str(path))
    graph = model.graph
    table = max(graph.initializer, key=lambda one: int(np.prod(one.dims)))
    gather = next(node for node in graph.node if table.name in node.input)
    looked_up = gather.output[0]
    gather.output[0] = looked_up + "_half"
    widen = helper.make_node("Cast", [gather.output[0]], [looked_up], to=TensorProto.FLOAT)
    graph.node.insert(list(graph.node).index(gather) + 1, widen)
    half = numpy_helper.to_array(table).astype(np.float16)
    table.CopyFrom(numpy_helper.from_array(half, table.name))
    onnx.save(model, str(path))


class Logits(nn.Module):
    """The graph that is exported: no token types, logits only."""

    def __init__(self, net: BertForSequenceClassification) -> None:
        super().__init__()
        self.net = net

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        # A ready additive mask spares the graph the library's own mask building.
        hidden = (1 - attention_mask[:, None, None, :]).to(torch.float32) * -1e9
        logits: Tensor = self.net(input_ids=input_ids, attention_mask=hidden).logits
        return logits


def export(net: BertForSequenceClassification) -> None:
    ids = torch.ones(2, 16, dtype=torch.int64)
    axes = {0: "batch", 1: "length"}
    torch.onnx.export(
        Logits(net).eval(),
        (ids, torch.ones_like(ids)),
        str(evaluate.MODEL),
        dynamo=False,
        opset_version=17,
        input_names=["input_ids", "attention_mask"],
        output_names=["logits"],
        dynamic_axes={"input_ids": axes, "attention_mask": axes, "logits": {0: "batch"}},
    )


if __name__ == "__main__":
    started = time.perf_counter()
    torch.manual_seed(0)
    tokenizer = tokenizer_from_texts([text for text, _ in data.split()[0] + data.everyday()])
    save_tokenizer(tokenizer)
    net = network()
    train(net, Sentences(tokenizer, seed=0))
    export(net)
    halve_table(evaluate.MODEL)
    (HERE / "labels.txt").write_text("\n".join(data.LABELS) + "\n", encoding="utf-8")
    print(f"trained in {time.perf_counter() - started:.0f} s")
    evaluate.main()
