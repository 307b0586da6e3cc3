"""Convolutional networks as deep as the ones people deploy, but narrow, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from zoo.base import Input, Model
from zoo.convolutional import Bottleneck, InvertedResidual, conv, unit


class BasicBlock(nn.Module):
    """Two convolutions around a shortcut that is projected where sizes change."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(unit(inputs, outputs, 3, stride), conv(outputs, outputs), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Identity() if stride == 1 and inputs == outputs else conv(inputs, outputs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class ResNet20(nn.Module):
    """Three stages of three basic blocks."""

    def __init__(self) -> None:
        super().__init__()
        widths, blocks, inputs = (16, 32, 64), [], 16
        for stage, width in enumerate(widths):
            for i in range(3):
                blocks.append(BasicBlock(inputs, width, 2 if stage and not i else 1))
                inputs = width
        self.stem, self.body, self.head = unit(3, 16), nn.Sequential(*blocks), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


class ResNet50(nn.Module):
    """Stages of 3, 4, 6 and 3 bottlenecks, an eighth as wide as the original."""

    def __init__(self) -> None:
        super().__init__()
        blocks, inputs = [], 8
        for stage, count in enumerate((3, 4, 6, 3)):
            width = 8 << stage
            for i in range(count):
                blocks.append(Bottleneck(inputs, width, 4 * width, 2 if stage and not i else 1))
                inputs = 4 * width
        self.stem = nn.Sequential(unit(3, 8, 7, 2), nn.MaxPool2d(3, 2, 1))
        self.body, self.head = nn.Sequential(*blocks), nn.Linear(inputs, 20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


class MobileNetV2(nn.Module):
    """The stages of the original at half its width; the head reads a wide last layer."""

    def __init__(self) -> None:
        super().__init__()
        stages = ((8, 1, 1), (12, 2, 2), (16, 3, 2), (32, 4, 2), (48, 3, 1), (80, 3, 2), (160, 1, 1))
        blocks, inputs = [], 16
        for width, count, stride in stages:
            for i in range(count):
                blocks.append(InvertedResidual(inputs, width, 1 if i else stride, squeeze=False))
                inputs = width
        self.body = nn.Sequential(unit(3, 16, 3, 2), *blocks, unit(inputs, 640, 1))
        self.head = nn.Linear(640, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Inception(nn.Module):
    """Four branches, one of them pooled, one of them of 1 x 7 and 7 x 1 taps, joined twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = unit(3, 10, 3, 2)
        self.blocks = nn.ModuleList(self._branches(inputs) for inputs in (10, 40))
        self.head = nn.Linear(40, 7)

    @staticmethod
    def _branches(inputs: int) -> nn.ModuleList:
        taps = nn.Sequential(
            unit(inputs, 6, 1), nn.Conv2d(6, 9, (1, 7), padding=(0, 3)), nn.Conv2d(9, 12, (7, 1), padding=(3, 0))
        )
        pool = nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), unit(inputs, 8, 1))
        return nn.ModuleList([unit(inputs, 11, 1), nn.Sequential(unit(inputs, 7, 1), unit(7, 9)), taps, pool])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for branches in self.blocks:
            x = torch.relu(torch.cat([branch(x) for branch in branches], 1))
        return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Tcn(nn.Module):
    """Causal convolutions with normalized weights: the end is chopped off, shortcuts are projected."""

    def __init__(self) -> None:
        super().__init__()
        normed = torch.nn.utils.parametrizations.weight_norm
        self.first = nn.ModuleList(
            normed(nn.Conv1d(i, o, 3, padding=2 * d, dilation=d)) for i, o, d in ((4, 14, 1), (14, 18, 2))
        )
        self.second = nn.ModuleList(
            normed(nn.Conv1d(o, o, 3, padding=2 * d, dilation=d)) for o, d in ((14, 1), (18, 2))
        )
        self.shortcuts, self.head = nn.ModuleList([nn.Conv1d(4, 14, 1), nn.Conv1d(14, 18, 1)]), nn.Linear(18, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for a, b, shortcut in zip(self.first, self.second, self.shortcuts, strict=True):
            h = torch.relu(a(x)[:, :, : x.shape[2]])
            h = torch.relu(b(h)[:, :, : x.shape[2]])
            x = torch.relu(h + shortcut(x))
        return self.head(x[:, :, -1])


class Csp(nn.Module):
    """A YOLO stage: split, bottlenecks on one half, everything joined, then pooled at three sizes."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.enter, self.leave = unit(inputs, 2 * width, 1), unit(4 * width, outputs, 1)
        self.blocks = nn.ModuleList(nn.Sequential(unit(width, width), unit(width, width)) for _ in range(2))
        self.squeeze, self.spread = unit(outputs, 9, 1), unit(36, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = list(self.enter(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(parts[-1] + block(parts[-1]))
        pools = [self.squeeze(self.leave(torch.cat(parts, 1)))]
        for _ in range(3):
            pools.append(functional.max_pool2d(pools[-1], 5, 1, 2))
        return self.spread(torch.cat(pools, 1))


class Yolo(nn.Module):
    """Two stages, a neck that goes up and down again, decoupled heads whose boxes are expected values of bins."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (
            nn.Sequential(unit(3, 12, 3, 2), Csp(12, 8, 20)),
            nn.Sequential(unit(20, 24, 3, 2), Csp(24, 10, 28)),
        )
        self.up, self.down, self.last = unit(48, 16, 1), unit(16, 16, 3, 2), unit(44, 22, 1)
        self.boxes = nn.ModuleList(nn.Sequential(unit(w, 14), nn.Conv2d(14, 4 * 6, 1)) for w in (16, 22))
        self.classes = nn.ModuleList(nn.Sequential(unit(w, 15), nn.Conv2d(15, 5, 1)) for w in (16, 22))
        self.register_buffer("bins", torch.arange(6.0).view(1, 6, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.a(x)
        b = self.b(a)
        up = self.up(torch.cat([functional.interpolate(b, scale_factor=2.0), a], 1))
        maps = up, self.last(torch.cat([self.down(up), b], 1))
        found = []
        for x, boxes, classes in zip(maps, self.boxes, self.classes, strict=True):
            found.append(torch.cat([boxes(x), classes(x)], 1).flatten(2))
        boxes, classes = torch.cat(found, 2).split((24, 5), 1)
        bins = boxes.view(boxes.shape[0], 4, 6, -1).transpose(1, 2).softmax(1)
        return torch.cat([(bins * self.bins).sum(1), classes.sigmoid()], 1)


def models() -> dict[str, Model]:
    """Images of 32 x 32 pixels, and one sequence."""
    image = {"x": Input(("batch", 3, 32, 32))}
    return {
        "resnet20": Model(ResNet20, image),
        "resnet50": Model(ResNet50, image),
        "mobilenet_v2": Model(MobileNetV2, image),
        "inception": Model(Inception, image),
        "yolo": Model(Yolo, image),
        "tcn": Model(Tcn, {"x": Input(("batch", 4, 20))}),
    }
