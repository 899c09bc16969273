"""Train the digit detector and write `1/model.onnx`. Needs torch; about 14 minutes on 2 cores."""

import time
from pathlib import Path

import data
import evaluate
import numpy as np
import onnx
import torch
from loss import Truth, loss
from network import Detector
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

STEPS = 2600
BATCH = 16
PEAK_RATE = 3e-3
MODEL = Path(__file__).parent / "1" / "model.onnx"


class Pages(Dataset[tuple[Tensor, Truth]]):
    """Training batches; each is drawn from its own seed, whichever process draws it."""

    def __init__(self) -> None:
        self.source, _ = data.split()

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, index: int) -> tuple[Tensor, Truth]:
        rng = np.random.default_rng([0, index])
        pages = [data.page(self.source, rng) for _ in range(BATCH)]
        boxes = torch.zeros(BATCH, data.MOST, 4)
        labels = torch.zeros(BATCH, data.MOST, dtype=torch.int64)
        real = torch.zeros(BATCH, data.MOST, dtype=torch.bool)
        for row, page in enumerate(pages):
            count = len(page.labels)
            boxes[row, :count] = torch.from_numpy(page.boxes)
            labels[row, :count] = torch.from_numpy(page.labels)
            real[row, :count] = True
        pixels = torch.from_numpy(np.stack([page.pixels for page in pages]))
        return pixels, Truth(boxes, labels, real)


def train() -> Detector:
    torch.manual_seed(0)
    net = Detector().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=PEAK_RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_RATE, total_steps=STEPS, pct_start=0.15
    )
    total = 0.0
    loader = DataLoader(Pages(), batch_size=None, num_workers=1, prefetch_factor=8)
    for step, (pixels, truth) in enumerate(loader, 1):
        with torch.autocast("cpu", torch.bfloat16):
            raw = net.raw(pixels).float()
        value = loss(net.corners(raw), raw[:, 4:], net.points, truth)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        total += float(value.detach())
        if step % 100 == 0:
            print(f"step {step} loss {total / 100:.4f}", flush=True)
            total = 0.0
    return net.eval()


def export(net: Detector) -> None:
    torch.onnx.export(
        net.to(memory_format=torch.contiguous_format),
        (torch.zeros(2, data.SIDE, data.SIDE, 3, dtype=torch.uint8),),
        str(MODEL),
        dynamo=False,
        opset_version=17,
        input_names=["pixels"],
        output_names=["predictions"],
        dynamic_axes={"pixels": {0: "batch"}, "predictions": {0: "batch"}},
    )
    # The exporter leaves the output's shape open, though it follows from the graph.
    onnx.save(onnx.shape_inference.infer_shapes(onnx.load(str(MODEL))), str(MODEL))


if __name__ == "__main__":
    started = time.perf_counter()
    export(train())
    print(f"trained in {time.perf_counter() - started:.0f} s")
    evaluate.main()
