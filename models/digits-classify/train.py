"""Train the digit classifier and write `1/model.onnx`. Needs torch; about 2 minutes on one core."""

import time
from pathlib import Path

import data
import evaluate
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPOCHS = 140
BATCH = 64
MODEL = Path(__file__).parent / "1" / "model.onnx"


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Classifier(nn.Module):
    """Pixels uint8[N, 32, 32, 3] to logits float32[N, 10]; the scaling is part of the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            block(3, 16),
            block(16, 32, 2),
            block(32, 32),
            block(32, 64, 2),
            block(64, 64),
            block(64, 96, 2),
        )
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(96 * 4 * 4, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        images = pixels.to(torch.float32) * (1 / 127.5) - 1
        features = self.body(images.permute(0, 3, 1, 2))
        logits: Tensor = self.head(self.drop(features.flatten(1)))
        return logits


def train() -> Classifier:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    (ink, labels), _ = data.split()
    net = Classifier().train()
    steps = EPOCHS * (len(ink) // BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for epoch in range(EPOCHS):
        order = rng.permutation(len(ink))[: len(ink) // BATCH * BATCH].reshape(-1, BATCH)
        total = 0.0
        for rows in order:
            images = torch.from_numpy(pictures(ink[rows], rng))
            loss = F.cross_entropy(
                net(images), torch.from_numpy(labels[rows]), label_smoothing=0.05
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1} loss {total / len(order):.4f}", flush=True)
    return net.eval()


def pictures(ink: data.Floats, rng: np.random.Generator) -> data.Image:
    """Draw a batch, one digit in ten undistorted."""
    plain = rng.random(len(ink)) < 0.1
    drawn = (
        data.picture(one) if clean else data.distorted(one, rng)
        for one, clean in zip(ink, plain, strict=True)
    )
    return np.stack(list(drawn))


def export(net: Classifier) -> None:
    torch.onnx.export(
        net,
        (torch.zeros(2, data.SIDE, data.SIDE, 3, dtype=torch.uint8),),
        str(MODEL),
        dynamo=False,
        opset_version=17,
        input_names=["pixels"],
        output_names=["logits"],
        dynamic_axes={"pixels": {0: "batch"}, "logits": {0: "batch"}},
    )


if __name__ == "__main__":
    started = time.perf_counter()
    export(train())
    print(f"trained in {time.perf_counter() - started:.0f} s")
    evaluate.main()
