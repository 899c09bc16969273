"""The steps as people write them: OpenCV and numpy, a tokenizer, ONNX Runtime, argsort."""

from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
"""Of ImageNet, as every example normalizes."""

Inputs = dict[str, NDArray[Any]]


def prepare(file: bytes) -> Inputs:
    """Decode, resize, crop, normalize: {"x0": FP32[1, 3, 224, 224]}."""
    import cv2  # noqa: PLC0415  the text servers do without

    picture = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        raise ValueError("not a picture")
    scale = 256 / min(picture.shape[:2])
    size = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
    picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    top, left = (picture.shape[0] - 224) // 2, (picture.shape[1] - 224) // 2
    crop = cv2.cvtColor(picture[top : top + 224, left : left + 224], cv2.COLOR_BGR2RGB)
    pixels = ((crop.astype(np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1)
    return {"x0": np.ascontiguousarray(pixels[None])}


class Tokens:
    """A Hugging Face tokenizer, called as its documentation does."""

    def __init__(self, folder: str) -> None:
        from transformers import AutoTokenizer  # noqa: PLC0415  slow; the picture servers do without

        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def prepare(self, text: bytes) -> Inputs:
        """Return {"input_ids", "attention_mask"}: INT64[1, L]."""
        encoded = self._tokenizer(
            text.decode(), truncation=True, max_length=128, return_tensors="np"
        )
        return {name: encoded[name].astype(np.int64) for name in ("input_ids", "attention_mask")}


def session(path: str) -> Any:
    """Open a model; one thread a run, as everywhere in this benchmark."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def rank(logits: NDArray[np.float32], k: int = 5) -> dict[str, list[Any]]:
    """Return the best classes of one row FP32[C] and their probabilities."""
    wide = logits.astype(np.float64)
    scores = np.exp(wide - wide.max())
    best = np.argsort(-scores)[:k]
    return {"classes": best.tolist(), "scores": (scores[best] / scores.sum()).tolist()}
