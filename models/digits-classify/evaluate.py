"""Print the held-out score of the committed model. Needs no torch."""

from pathlib import Path

import data
import numpy as np
import numpy.typing as npt
import onnxruntime as ort

MODEL = Path(__file__).parent / "1" / "model.onnx"


def session(path: Path = MODEL) -> ort.InferenceSession:
    """Open the model on one CPU thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def logits(model: ort.InferenceSession, pixels: data.Image) -> npt.NDArray[np.float32]:
    """Run uint8[N, 32, 32, 3] pictures in one batch: float32[N, 10]."""
    answer: npt.NDArray[np.float32] = model.run(["logits"], {"pixels": pixels})[0]
    return answer


def accuracy(model: ort.InferenceSession, pixels: data.Image, labels: data.Labels) -> float:
    """Return the share of pictures whose largest logit is the right digit, 0..1."""
    return float((logits(model, pixels).argmax(1) == labels).mean())


def main() -> None:
    """Print the accuracy on plain and on distorted held-out pictures."""
    model = session()
    print(f"held-out accuracy {accuracy(model, *data.held_out()):.4f}")
    print(f"held-out accuracy, distorted {accuracy(model, *data.held_out_distorted()):.4f}")


if __name__ == "__main__":
    main()
