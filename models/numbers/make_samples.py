"""Write what transformers makes of some numbers. Needs torch: `make_samples.py MODEL`."""

import json
import random
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

COUNT = 100
HERE = Path(__file__).parent


def main(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForCausalLM.from_pretrained(folder).eval()
    chance = random.Random(3)
    made = []
    for _ in range(COUNT):
        number = chance.randrange(10 ** chance.randint(1, 9))
        text = f"{number:,} =" if chance.random() < 0.3 else f"{number} ="
        given = tokenizer(text, return_tensors="pt")
        with torch.inference_mode():
            ids = network.generate(**given)[0].tolist()[given["input_ids"].shape[1] :]
        made.append({"text": text, "ids": ids})
    (HERE / "samples").mkdir(exist_ok=True)
    lines = ",\n".join(map(json.dumps, made))
    (HERE / "samples/expected.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
