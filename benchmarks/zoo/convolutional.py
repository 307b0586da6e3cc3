"""Small networks with random weights in plain PyTorch, one for each way in which channels get tied together."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from zoo.base import Input, Model


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution that keeps positions, without bias."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


def unit(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU."""
    return nn.Sequential(conv(inputs, outputs, kernel, stride, groups), nn.BatchNorm2d(outputs), nn.ReLU())


def shuffle(x: torch.Tensor, groups: int) -> torch.Tensor:
    """Interleaves groups of channels."""
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class Mlp(nn.Module):
    """Dense layers with BatchNorm and several activations."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(20, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 24), nn.GELU(), nn.Linear(24, 6, bias=False)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.log_softmax(self.body(x), 1)


class Bottleneck(nn.Module):
    """A bottleneck with a projected or a plain shortcut, its middle grouped or not."""

    def __init__(self, inputs: int, width: int, outputs: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            unit(inputs, width, 1),
            unit(width, width, 3, stride, groups),
            conv(width, outputs, 1),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Identity() if inputs == outputs and stride == 1 else conv(inputs, outputs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class ResNet(nn.Module):
    """Two stages of bottlenecks behind a stem with pooling."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(unit(3, 8, 7, 2), nn.MaxPool2d(3, 2, 1))
        self.stages = nn.Sequential(
            Bottleneck(8, 16, 32, 1, groups), Bottleneck(32, 16, 32, 1, groups), Bottleneck(32, 32, 64, 2, groups)
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.adaptive_avg_pool2d(self.stages(self.stem(x)), (1, 1))
        return self.head(torch.flatten(x, 1))


class InvertedResidual(nn.Module):
    """Expansion, depthwise, optional squeeze-and-excitation, projection."""

    def __init__(self, inputs: int, outputs: int, stride: int, squeeze: bool) -> None:
        super().__init__()
        hidden = 4 * inputs
        self.expand, self.depthwise = unit(inputs, hidden, 1), unit(hidden, hidden, 3, stride, hidden)
        self.gate = nn.Sequential(nn.Conv2d(hidden, 4, 1), nn.SiLU(), nn.Conv2d(4, hidden, 1), nn.Sigmoid())
        self.project = nn.Sequential(conv(hidden, outputs, 1), nn.BatchNorm2d(outputs))
        self.squeeze, self.residual = squeeze, stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.depthwise(self.expand(x))
        if self.squeeze:
            h = h * self.gate(h.mean((2, 3), keepdim=True))
        return x + self.project(h) if self.residual else self.project(h)


class MobileNet(nn.Module):
    """Inverted residuals, with or without gates."""

    def __init__(self, squeeze: bool = False) -> None:
        super().__init__()
        blocks = [InvertedResidual(*sizes, squeeze) for sizes in ((8, 8, 1), (8, 12, 2), (12, 12, 1))]
        self.body = nn.Sequential(unit(3, 8, 3, 2), *blocks, unit(12, 24, 1))
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(24, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


class UNet(nn.Module):
    """Skip connections by concatenation, transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = unit(3, 8), unit(8, 16), unit(16, 32)
        self.up2, self.up1 = nn.ConvTranspose2d(32, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)
        self.join2, self.join1, self.head = unit(32, 16), unit(16, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.down1(x)
        b = self.down2(functional.max_pool2d(a, 2))
        c = self.bottom(functional.max_pool2d(b, 2))
        b = self.join2(torch.cat([b, self.up2(c)], 1))
        return self.head(self.join1(torch.cat([a, self.up1(b)], 1)))


class DenseNet(nn.Module):
    """Every layer reads all layers before it."""

    def __init__(self) -> None:
        super().__init__()
        widths = [16, 24, 32]
        self.stem = conv(3, 16)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(w), nn.ReLU(), conv(w, 16, 1), nn.BatchNorm2d(16), nn.ReLU(), conv(16, 8))
            for w in widths
        )
        self.head = nn.Sequential(nn.BatchNorm2d(40), nn.ReLU(), nn.Conv2d(40, 20, 1), nn.AvgPool2d(2))
        self.classes = nn.Linear(20, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.classes(self.head(x).mean((2, 3)))


class Shuffled(nn.Module):
    """ShuffleNetV2 units with odd halves, then a grouped convolution behind a shuffle as in ShuffleNetV1."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = unit(3, 58)
        self.branches = nn.ModuleList(nn.Sequential(unit(29, 29, 1), unit(29, 29, 3, 1, 29)) for _ in range(3))
        self.first, self.second = conv(58, 32, 1), nn.Sequential(conv(32, 32, 3, 1, 32), conv(32, 16, 1, 1, 4))
        self.grouped, self.head = conv(32, 32, 1, 1, 4), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for branch in self.branches:
            left, right = x.chunk(2, 1)
            x = shuffle(torch.cat([left, branch(right)], 1), 2)
        x = shuffle(self.grouped(torch.relu(self.first(x))), 4)
        return self.head(self.second(torch.relu(x)).mean((2, 3)))


class Detector(nn.Module):
    """CSP and SPPF blocks, nearest upsampling, two heads that are flattened and joined."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = unit(3, 16, 3, 2), unit(16, 32, 3, 2)
        self.split, self.inner, self.merge = unit(32, 32, 1), unit(16, 16), unit(48, 32, 1)
        self.squeeze, self.spread = unit(32, 16, 1), unit(64, 32, 1)
        self.fuse, self.heads = unit(48, 24, 1), nn.ModuleList([nn.Conv2d(24, 21, 1), nn.Conv2d(32, 21, 1)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.stem(x)
        left, right = self.split(self.down(a)).chunk(2, 1)
        b = self.merge(torch.cat([left, right, right + self.inner(right)], 1))
        pools = [self.squeeze(b)]
        for _ in range(3):
            pools.append(functional.max_pool2d(pools[-1], 5, 1, 2))
        b = self.spread(torch.cat(pools, 1))
        c = self.fuse(torch.cat([functional.interpolate(b, scale_factor=2), a], 1))
        maps = [head(y).view(x.shape[0], 3, 7, -1).transpose(2, 3) for head, y in zip(self.heads, (c, b), strict=True)]
        return torch.cat([y.reshape(x.shape[0], -1, 7) for y in maps], 1).sigmoid()


class Vgg(nn.Module):
    """Channels times positions in front of dense layers, and a local response normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.LocalResponseNorm(3), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classes = nn.Sequential(nn.Linear(256, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        return self.classes(x.view(x.size(0), -1))


class Video(nn.Module):
    """Three dimensions, instance normalization, PReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(3, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.MaxPool3d(2),
            nn.Conv3d(8, 12, 3, padding=1), nn.InstanceNorm3d(12, affine=True), nn.PReLU(12),
            nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(12, 5),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


class Temporal(nn.Module):
    """One dimension, dilations, a residual, GroupNorm, the last step picked."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv1d(c, 12, 3, padding=2, dilation=2) for c in (4, 12))
        self.norm, self.head = nn.GroupNorm(3, 12), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.first(x))
        h = functional.gelu(h + self.norm(self.second(h)))
        return self.head(h[:, :, -1])


class SuperResolution(nn.Module):
    """Pixel shuffle and its inverse, reflected borders."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.d = nn.Conv2d(48, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = functional.elu(self.a(functional.pad(x, (1, 1, 1, 1), mode="reflect")))
        h = functional.leaky_relu(self.c(functional.pixel_shuffle(torch.tanh(self.b(h)), 2)))
        return self.d(functional.pixel_unshuffle(h, 2))


class Autoencoder(nn.Module):
    """Grouped, depthwise and plain transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.Softplus(), nn.Conv2d(8, 16, 3, 2, 1, groups=4), nn.Hardswish(),
            nn.ConvTranspose2d(16, 8, 4, 2, 1, groups=4), nn.SELU(), nn.ConvTranspose2d(8, 8, 3, 1, 1, groups=8),
            nn.Hardtanh(), nn.ConvTranspose2d(8, 3, 4, 2, 1),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


class OptionA(nn.Module):
    """A CIFAR ResNet's shortcut: every second pixel, zero channels padded on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = unit(3, 8), unit(8, 16, 3, 2), conv(16, 16)
        self.c, self.head = unit(16, 16), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        shortcut = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        x = torch.relu(self.b(self.a(x)) + shortcut)
        return self.head(functional.avg_pool2d(self.c(x) + x, 8).flatten(1))


class Recurrent(nn.Module):
    """Two recurrent layers, the last step classified."""

    def __init__(self, kind: type[nn.RNNBase], *, bidirectional: bool = False) -> None:
        super().__init__()
        self.layers = kind(6, 16, 2, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(32 if bidirectional else 16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x)[0][:, -1])


class Causal(nn.Module):
    """A temporal convolutional network: padded to the left, dilated more and more, residual."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Conv1d(4, 16, 1)
        self.layers = nn.ModuleList(nn.Conv1d(c, 16, 3, dilation=2**i) for i, c in enumerate((4, 16, 16, 16)))
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i in (0, 2):
            h = x
            for layer in self.layers[i : i + 2]:
                h = torch.relu(layer(functional.pad(h, (2 * layer.dilation[0], 0))))
            x = torch.relu(h + (x if i else self.narrow(x)))
        return self.head(x[:, :, -1])


def networks() -> dict[str, tuple[type[nn.Module] | object, tuple[int, ...], float]]:
    """For each network how to make it, the shape of its input, and the least share of parameters that must go.

    The share is that of removing half of every group without rounding.
    """
    return {
        "mlp": (Mlp, (2, 20), 0.60),
        "resnet": (ResNet, (2, 3, 32, 32), 0.70),
        "resnext": (lambda: ResNet(groups=4), (2, 3, 32, 32), 0.67),
        "mobilenet": (MobileNet, (2, 3, 32, 32), 0.58),
        "efficientnet": (lambda: MobileNet(squeeze=True), (2, 3, 32, 32), 0.60),
        "unet": (UNet, (2, 3, 16, 16), 0.74),
        "densenet": (DenseNet, (2, 3, 16, 16), 0.68),
        "shufflenet": (Shuffled, (2, 3, 8, 8), 0.45),
        "detector": (Detector, (2, 3, 32, 32), 0.70),
        "vgg": (Vgg, (2, 3, 16, 16), 0.69),
        "video": (Video, (2, 3, 4, 4, 4), 0.65),
        "temporal": (Temporal, (2, 4, 20), 0.40),
        "superresolution": (SuperResolution, (2, 3, 8, 8), 0.68),
        "autoencoder": (Autoencoder, (2, 3, 16, 16), 0.45),
        "causal": (Causal, (2, 4, 20), 0.70),
        "lstm": (lambda: Recurrent(nn.LSTM), (2, 7, 6), 0.68),
        "lstm_both_ways": (lambda: Recurrent(nn.LSTM, bidirectional=True), (2, 7, 6), 0.70),
        "gru_both_ways": (lambda: Recurrent(nn.GRU, bidirectional=True), (2, 7, 6), 0.70),
        "rnn": (lambda: Recurrent(nn.RNN), (2, 7, 6), 0.60),
        "option_a": (OptionA, (2, 3, 16, 16), 0.70),
    }


def make(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A network with random weights and statistics, in evaluation mode, and an input."""
    build, shape, _ = networks()[name]
    torch.manual_seed(0)
    net = build()
    for layer in net.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
            layer.weight.data.uniform_(0.5, 2)
            layer.bias.data.normal_()
    return net.eval(), torch.randn(*shape)


def models() -> dict[str, Model]:
    """The same networks as members of the zoo."""
    return {name: Model(build, {"x": Input(("batch", *shape[1:]))}) for name, (build, shape, _) in networks().items()}
