"""The detector: a small YOLOv8-style network without anchors and without objectness."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STRIDES = (8, 16, 32)
CLASSES = 10
SIDE = 320


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    # ReLU, not SiLU: ONNX Runtime fuses it into the convolution.
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Residual(nn.Module):
    """Two 3x3 convolutions through half the channels, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.body = nn.Sequential(conv(channels, half), conv(half, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Head(nn.Module):
    """One level's side distances (in strides) and class logits: [N, 4 + 10, cells]."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.cells = (SIDE // stride) ** 2
        self.sides = nn.Sequential(conv(channels, 48), nn.Conv2d(48, 4, 1))
        self.scores = nn.Sequential(conv(channels, 64), nn.Conv2d(64, CLASSES, 1))
        # Start near the true share of digits, or the first steps drown in background.
        nn.init.constant_(self.scores[-1].bias, -6.0)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([F.softplus(self.sides(x)), self.scores(x)], 1)
        # A fixed shape keeps the output's shape fixed in the exported graph.
        return both.reshape(-1, 4 + CLASSES, self.cells)


class Detector(nn.Module):
    """Pixels uint8[N, 320, 320, 3], RGB, to predictions float32[N, 14, 2100].

    The rows are centre x, centre y, width and height in pixels, then ten class scores, 0..1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 16, stride=2), conv(16, 32, stride=2), Residual(32))
        self.p3 = nn.Sequential(conv(32, 64, stride=2), Residual(64))
        self.p4 = nn.Sequential(conv(64, 96, stride=2), Residual(96))
        self.p5 = nn.Sequential(conv(96, 96, stride=2), Residual(96))
        self.lateral = nn.ModuleList([conv(width, 64, 1) for width in (64, 96, 96)])
        self.smooth = nn.ModuleList([conv(64, 64) for _ in range(2)])
        self.heads = nn.ModuleList([Head(64, stride) for stride in STRIDES])
        points, steps = grid()
        self.register_buffer("points", points)
        self.register_buffer("steps", steps)

    def raw(self, pixels: Tensor) -> Tensor:
        """Return side distances in strides and class logits: float32[N, 14, 2100]."""
        images = pixels.to(torch.float32) * (1 / 127.5) - 1
        c3 = self.p3(self.stem(images.permute(0, 3, 1, 2)))
        c4 = self.p4(c3)
        f3, f4, f5 = (net(c) for net, c in zip(self.lateral, (c3, c4, self.p5(c4)), strict=True))
        f4 = self.smooth[1](f4 + F.interpolate(f5, scale_factor=2.0))
        f3 = self.smooth[0](f3 + F.interpolate(f4, scale_factor=2.0))
        return torch.cat([head(f) for head, f in zip(self.heads, (f3, f4, f5), strict=True)], 2)

    def corners(self, raw: Tensor) -> Tensor:
        """Turn side distances into left, top, right, bottom in pixels: float32[N, 4, 2100]."""
        sides = raw[:, :4] * self.steps
        return torch.cat([self.points - sides[:, :2], self.points + sides[:, 2:]], 1)

    def forward(self, pixels: Tensor) -> Tensor:
        raw = self.raw(pixels)
        sides = raw[:, :4] * self.steps
        before, after = sides[:, :2], sides[:, 2:]
        centre, size = self.points + (after - before) * 0.5, before + after
        return torch.cat([centre, size, raw[:, 4:].sigmoid()], 1)


def grid() -> tuple[Tensor, Tensor]:
    """Return the cell centres float32[2, 2100] (x, y) and their strides float32[1, 2100]."""
    points, steps = [], []
    for stride in STRIDES:
        line = (torch.arange(SIDE // stride) + 0.5) * stride
        y, x = torch.meshgrid(line, line, indexing="ij")
        points.append(torch.stack([x.flatten(), y.flatten()]))
        steps.append(torch.full((1, line.numel() ** 2), float(stride)))
    return torch.cat(points, 1), torch.cat(steps, 1)
