"""A step of training with the bridge's module beside the same network written in PyTorch, in turns.

    python benchmarks/step_time.py

takes about two minutes. Both networks have the same weights and batch; a step is forward, backward and AdamW.
"""

from __future__ import annotations

import io
import itertools
import time
import warnings
from collections.abc import Callable

import numpy as np
import onnx
import torch
from torch import nn
from torch.nn import functional

import cifar10
import onnxprune
from onnxprune.graph import from_proto
from onnxprune.torch_bridge import to_torch
from results import publish, table

RUNS = 15


class Block(nn.Module):
    """Two convolutions and the shortcut of option A."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, outputs // inputs, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Applies the block."""
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if y.shape != x.shape:
            border = (y.shape[1] - x.shape[1]) // 2
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, border, border))
        return torch.relu(y + x)


class ResNet(nn.Module):
    """ResNet-20 for CIFAR-10."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
        self.blocks = nn.Sequential(*(Block(a, b) for a, b in itertools.pairwise(widths)))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images to classes."""
        return self.linear(self.blocks(torch.relu(self.bn1(self.conv1(x)))).mean((2, 3)))


class Encoder(nn.Module):
    """A Transformer encoder of 4 layers that are 128 wide, over embeddings, as a classifier."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True, activation="gelu")
        self.embedding, self.classes = nn.Embedding(1000, 128), nn.Linear(128, 2)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens to classes."""
        return self.classes(self.layers(self.embedding(x)).mean(1))


def step(module: nn.Module, inputs: torch.Tensor) -> Callable[[], float]:
    """A function that makes one step and returns its seconds."""
    optimizer = torch.optim.AdamW(module.train().parameters(), lr=1e-5)

    def run() -> float:
        start = time.perf_counter()
        output = module(inputs)
        loss = (output[0] if isinstance(output, tuple) else output).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return time.perf_counter() - start

    return run


def exported(module: nn.Module, inputs: torch.Tensor) -> onnxprune.Graph:
    """The ONNX form of a module."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(), (inputs,), buffer, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "batch"}}
        )
    return from_proto(onnx.load_model_from_string(buffer.getvalue()))


def main() -> None:
    """Times both networks and writes the table."""
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    images = torch.from_numpy(generator.standard_normal((128, 3, 32, 32)).astype("f"))
    images = images.contiguous(memory_format=torch.channels_last)
    tokens = torch.from_numpy(generator.integers(0, 1000, (32, 64)))
    encoder = Encoder()
    for parameter in encoder.parameters():  # equal layers would be exported as one
        parameter.data.add_(0.01 * torch.randn_like(parameter))
    cases = {
        "ResNet-20, 128 images": (onnxprune.load(cifar10.model("resnet20_cifar10_bn")), ResNet(), images),
        "encoder, 32 texts of 64 tokens": (exported(encoder, tokens), encoder, tokens),
    }
    rows = [["network", "native", "bridge", "ratio"]]
    for name, (graph, native, inputs) in cases.items():
        ours = to_torch(graph)
        for module in (ours, native):
            module.to(memory_format=torch.channels_last)
        counts = [sum(p.numel() for p in module.parameters()) for module in (ours, native)]
        assert counts[0] == counts[1], f"{name}: {counts[0]} and {counts[1]} parameters"
        runs = step(native, inputs), step(ours, inputs)
        for run in runs * 2:
            run()
        times = np.array([[run() for run in runs] for _ in range(RUNS)])  # (runs, 2)
        native_time, our_time = np.median(times, axis=0)
        ratio = float(np.median(times[:, 1] / times[:, 0]))
        rows.append([name, f"{1e3 * native_time:.0f} ms", f"{1e3 * our_time:.0f} ms", f"x {ratio:.2f}"])
    publish(
        "step_time.py",
        "## A step of training, the bridge's module beside a native one",
        f"Forward, backward and AdamW in turns, median of {RUNS} pairs, {torch.get_num_threads()} threads.",
        table(rows),
    )


if __name__ == "__main__":
    main()
