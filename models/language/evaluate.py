"""Print the held-out score of the committed model. Needs no torch."""

from pathlib import Path

import data
import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from transformers import AutoTokenizer, PreTrainedTokenizerFast

HERE = Path(__file__).parent
MODEL = HERE / "1" / "model.onnx"
MAX_LENGTH = 128
BATCH = 32


def session(path: Path = MODEL) -> ort.InferenceSession:
    """Open the model on one CPU thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def tokenizer() -> PreTrainedTokenizerFast:
    """Load the committed tokenizer, from its folder only."""
    loaded = AutoTokenizer.from_pretrained(str(HERE / "tokenizer"), local_files_only=True)
    assert isinstance(loaded, PreTrainedTokenizerFast)
    return loaded


def logits(
    model: ort.InferenceSession, tokens: PreTrainedTokenizerFast, texts: list[str]
) -> npt.NDArray[np.float32]:
    """Run sentences as one padded batch: float32[N, L]."""
    fed = tokens(texts, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="np")
    feeds = {name: fed[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
    answer: npt.NDArray[np.float32] = model.run(["logits"], feeds)[0]
    return answer


def accuracy(
    model: ort.InferenceSession, tokens: PreTrainedTokenizerFast, samples: list[data.Sample]
) -> float:
    """Return the share of samples whose largest logit is the right language, 0..1."""
    # Similar lengths share a batch, so that little of the work is padding.
    ordered = sorted(samples, key=lambda sample: len(sample[0].encode()))
    right = 0
    for first in range(0, len(ordered), BATCH):
        texts, labels = zip(*ordered[first : first + BATCH], strict=True)
        right += int((logits(model, tokens, list(texts)).argmax(1) == labels).sum())
    return right / len(ordered)


def main() -> None:
    """Print the held-out accuracy and the answers to the sample sentences."""
    model, tokens = session(), tokenizer()
    _, held_out = data.split()
    for name, samples in (("sentences", data.sentences(held_out)), ("all messages", held_out)):
        print(f"{accuracy(model, tokens, samples):.4f} right of {len(samples)} held-out {name}")
    texts = (HERE / "samples" / "sentences.txt").read_text(encoding="utf-8").splitlines()
    for text, row in zip(texts, logits(model, tokens, texts), strict=True):
        print(f"{data.LABELS[int(row.argmax())]:12} {text}")


if __name__ == "__main__":
    main()
