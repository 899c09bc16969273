"""Write what transformers makes of some held-out texts. Needs torch: `make_samples.py MODEL`."""

import json
import sys
from pathlib import Path

import data
import formats
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

COUNT = 200
HERE = Path(__file__).parent


def main(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    known, held_out = formats.split()
    days = data.split()[1]
    made = []
    for every, seed in ((known, 1), (held_out, 2)):
        for text, iso in data.samples(every, days, COUNT // 2, seed):
            with torch.inference_mode():
                ids = network.generate(**tokenizer(text, return_tensors="pt"))[0].tolist()
            made.append({"text": text, "iso": iso, "ids": ids[1:]})  # the first one starts it
    (HERE / "samples").mkdir(exist_ok=True)
    lines = ",\n".join(json.dumps(sample, ensure_ascii=False) for sample in made)
    (HERE / "samples/expected.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
