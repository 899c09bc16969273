"""Score a trained model on held-out numbers. Needs torch.

Writes `score.json` beside the model's folder.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import data
import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

BATCH = 1024
KINDS = {"plain": (False, 0.0), "with commas": (True, 0.0), "with zeros": (False, 1.0)}
"""Of each score: whether numbers have commas, and how often half of their digits are zero."""


class Writer:
    """A trained model.

    Args:
        folder: of the model and its tokenizer.
        device: of torch.
    """

    def __init__(self, folder: Path, device: str) -> None:
        self._tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
        self._net = GPT2LMHeadModel.from_pretrained(str(folder)).eval().to(device)

    def answers(self, prompts: list[str]) -> list[str]:
        """Return what the model writes after each prompt, with greedy decoding."""
        # Prompts of one length share a batch, so that nothing has to be filled up.
        lengths: defaultdict[int, list[int]] = defaultdict(list)
        for row, ids in enumerate(self._tokenizer(prompts)["input_ids"]):
            lengths[len(ids)].append(row)
        found = [""] * len(prompts)
        for length, rows in lengths.items():
            for first in range(0, len(rows), BATCH):
                chosen = rows[first : first + BATCH]
                texts = self._batch([prompts[row] for row in chosen], length)
                for row, text in zip(chosen, texts, strict=True):
                    found[row] = text
        return found

    def _batch(self, prompts: list[str], length: int) -> list[str]:
        fed = self._tokenizer(prompts, return_tensors="pt").to(self._net.device)
        ids = self._net.generate(**fed)[:, length:]
        return self._tokenizer.batch_decode(ids, skip_special_tokens=True)


def score(writer: Writer, commas: bool, zeros: float, count: int) -> dict[str, float]:
    """Return the share of exact answers about held-out numbers, and how many they are."""
    numbers = data.numbers(True, zeros, count, seed=1)
    samples = [data.sample(number, commas) for number in numbers]
    answers = writer.answers([prompt for prompt, _ in samples])
    right = [answer == wanted for answer, (_, wanted) in zip(answers, samples, strict=True)]
    return {"exact": round(sum(right) / count, 4), "texts": count}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--texts", type=int, default=20_000, help="of each score")
    given = parser.parse_args()
    writer = Writer(given.model, given.device)
    scores = {kind: score(writer, *how, given.texts) for kind, how in KINDS.items()}
    text = json.dumps(scores, indent=2)
    (given.model.resolve().parent / "score.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
