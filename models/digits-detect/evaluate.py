"""Print the held-out score of the committed model. Needs no torch."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import data
import numpy as np
import numpy.typing as npt
import onnxruntime as ort

HERE = Path(__file__).parent
MODEL = HERE / "1" / "model.onnx"
PAGES = 120
SAME_DIGIT = 0.5
"""IoU from which two boxes of one class count as one digit."""


@dataclass(frozen=True)
class Found:
    """The digits found on one page, best first."""

    boxes: data.Floats
    """float32[K, 4]: left, top, right, bottom in pixels."""
    scores: data.Floats
    """float32[K], 0..1."""
    labels: data.Labels
    """int64[K], 0..9."""


def session(path: Path = MODEL) -> ort.InferenceSession:
    """Open the model on one CPU thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def predict(model: ort.InferenceSession, pixels: data.Image) -> data.Floats:
    """Run uint8[N, 320, 320, 3] pages in one batch: float32[N, 14, 2100]."""
    answer: data.Floats = model.run(["predictions"], {"pixels": pixels})[0]
    return answer


def letterbox(pixels: data.Image) -> tuple[data.Image, float, tuple[int, int]]:
    """Fit uint8[H, W, 3] into 320x320, the rest grey: the page, the scale, left and top."""
    height, width = pixels.shape[:2]
    scale = data.SIDE / max(height, width)
    size = (round(width * scale), round(height * scale))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    left, top = (data.SIDE - size[0]) // 2, (data.SIDE - size[1]) // 2
    page = np.full((data.SIDE, data.SIDE, 3), 114, np.uint8)
    page[top : top + size[1], left : left + size[0]] = small
    return page, scale, (left, top)


def found(predictions: data.Floats, lowest: float) -> Found:
    """Turn one page's float32[14, 2100] into boxes, without doubles of one class."""
    labels = predictions[4:].argmax(0)
    scores = predictions[4:].max(0)
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= lowest][:300]
    half = predictions[2:4, order].T / 2
    centre = predictions[:2, order].T
    boxes = np.concatenate([centre - half, centre + half], axis=1)
    labels, scores = labels[order].astype(np.int64), scores[order]
    kept = _without_doubles(boxes, labels)
    return Found(boxes[kept], scores[kept], labels[kept])


def overlap(a: data.Floats, b: data.Floats) -> data.Floats:
    """Return the IoU of boxes float32[K, 4] and float32[M, 4]: float32[K, M]."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = np.clip(high - low, 0, None).prod(2)
    areas = [(box[:, 2:] - box[:, :2]).prod(1) for box in (a, b)]
    iou: data.Floats = both / (areas[0][:, None] + areas[1][None] - both + 1e-9)
    return iou


def mean_average_precision(answers: list[Found], pages: list[data.Page]) -> float:
    """Return mAP50: the area under precision over recall at IoU 0.5, averaged over digits."""
    return float(np.mean([_average_precision(answers, pages, digit) for digit in range(10)]))


def _without_doubles(boxes: data.Floats, labels: data.Labels) -> list[int]:
    kept: list[int] = []
    same = (overlap(boxes, boxes) > SAME_DIGIT) & (labels[:, None] == labels[None])
    for one in range(len(boxes)):
        if not same[one, kept].any():
            kept.append(one)
    return kept


def _average_precision(answers: list[Found], pages: list[data.Page], digit: int) -> float:
    scores, hits = [], []
    for answer, page in zip(answers, pages, strict=True):
        mine = answer.labels == digit
        scores.append(answer.scores[mine])
        hits.append(_hits(answer.boxes[mine], page.boxes[page.labels == digit]))
    real = sum(int((page.labels == digit).sum()) for page in pages)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    right = np.concatenate(hits)[order].cumsum()
    precision = right / np.arange(1, len(right) + 1)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.diff(right, prepend=0) / real
    return float((best_from_here * steps).sum())


def _hits(boxes: data.Floats, real: data.Floats) -> npt.NDArray[np.bool_]:
    """Match boxes, best first, to the real ones; each real box is found once."""
    hits = np.zeros(len(boxes), bool)
    iou = overlap(boxes, real)
    for row in range(len(boxes)):
        if len(real) and iou[row].max() >= SAME_DIGIT:
            hits[row] = True
            iou[:, iou[row].argmax()] = 0
    return hits


def score(model: ort.InferenceSession, pages: list[data.Page]) -> float:
    """Return the mAP50 on pages, 0..1."""
    answers = [found(predict(model, page.pixels[None])[0], 0.001) for page in pages]
    return mean_average_precision(answers, pages)


def main() -> None:
    """Print the held-out score and what is found on the sample page."""
    model = session()
    print(f"held-out mAP50 {score(model, data.held_out(PAGES)):.4f} on {PAGES} pages")
    sample = cv2.imread(str(HERE / "samples" / "page.jpg"))
    if sample is not None:
        page, scale, corner = letterbox(sample[:, :, ::-1])
        answer = found(predict(model, page[None])[0], 0.25)
        for box, value, label in zip(answer.boxes, answer.scores, answer.labels, strict=True):
            place = ((box - [*corner, *corner]) / scale).round().astype(int).tolist()
            print(f"{label} {value:.2f} {place}")


if __name__ == "__main__":
    main()
