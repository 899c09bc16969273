"""Score a trained model on held-out days, in known and in held-out formats. Needs torch.

Writes `score.json` and `score.md`, the scores of each locale, beside the model's folder.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import data
import formats
import torch
from transformers import BartForConditionalGeneration, PreTrainedTokenizerFast

BATCH = 1024

Marks = list[tuple[str, bool]]
"""Of each text its locale, and whether the answer is exact."""


class Reader:
    """A trained model.

    Args:
        folder: of the model and its tokenizer.
        device: of torch.
    """

    def __init__(self, folder: Path, device: str) -> None:
        self._tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
        self._net = BartForConditionalGeneration.from_pretrained(str(folder)).eval().to(device)

    def dates(self, texts: list[str]) -> list[str]:
        """Return what the model writes, with greedy decoding."""
        answers: list[str] = []
        for first in range(0, len(texts), BATCH):
            fed = self._tokenizer(
                texts[first : first + BATCH], padding=True, return_tensors="pt"
            ).to(self._net.device)
            ids = self._net.generate(**fed)
            answers += self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        return answers


def marks(reader: Reader, every: list[formats.Format], count: int) -> Marks:
    """Return the marks of so many texts of each locale."""
    _, days = data.split()
    codes: list[str] = []
    samples: list[data.Sample] = []
    for code in sorted({one.locale for one in every}):
        own = [one for one in every if one.locale == code]
        samples += data.samples(own, days, count, seed=1)
        codes += [code] * count
    answers = reader.dates([text for text, _ in samples])
    right = [answer == iso for answer, (_, iso) in zip(answers, samples, strict=True)]
    return list(zip(codes, right, strict=True))


def share(right: list[bool]) -> float:
    return round(sum(right) / len(right), 4)


def table(scores: dict[str, Marks]) -> str:
    """Return the share of exact answers of each locale, in Markdown."""
    rows: defaultdict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for name, found in scores.items():
        for code, right in found:
            rows[code][name].append(right)
    lines = [f"| locale | {' | '.join(scores)} |", "|---" * (len(scores) + 1) + "|"]
    for code, row in sorted(rows.items()):
        cells = [f"{share(row[name]):.4f}" if row[name] else "" for name in scores]
        lines.append(f"| {code} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--texts", type=int, default=500, help="of each locale and kind of format")
    given = parser.parse_args()
    reader = Reader(given.model, given.device)
    scores = {
        f"{name} formats": marks(reader, part, given.texts)
        for name, part in zip(("known", "held-out"), formats.split(), strict=True)
    }
    summary = {
        name: {"exact": share([right for _, right in found]), "texts": len(found)}
        for name, found in scores.items()
    }
    beside = given.model.resolve().parent
    (beside / "score.json").write_text(json.dumps(summary, indent=2) + "\n")
    (beside / "score.md").write_text(table(scores))
    print(table(scores), json.dumps(summary, indent=2), sep="\n")


if __name__ == "__main__":
    main()
