"""Trains the demonstration models from the digits that scikit-learn carries, and writes them here.

    python models/make.py

takes about two minutes on two CPU cores. Needs the development extra (scikit-learn, onnxscript).
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

HERE = Path(__file__).parent
EPOCHS = 60


class Residual(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, width, H, W) to the same."""
        h = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(x + self.bn2(self.conv2(h)))


class Separable(nn.Module):
    """A depthwise convolution with stride 2, then a pointwise one."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride=2, padding=1, groups=inputs, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) to (N, outputs, H / 2, W / 2)."""
        return torch.relu(self.bn2(self.pointwise(torch.relu(self.bn1(self.depthwise(x))))))


class DigitsConv(nn.Module):
    """About 100,000 parameters: a stem, residual blocks of 32 and 64 channels, depthwise steps between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(32)
        self.block1 = Residual(32)
        self.step1 = Separable(32, 64)
        self.block2 = Residual(64)
        self.step2 = Separable(64, 96)
        self.head = nn.Linear(96, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, 1, 8, 8) to logits (N, 10)."""
        x = self.block1(torch.relu(self.bn(self.stem(image))))
        return self.head(self.step2(self.block2(self.step1(x))).mean((2, 3)))


class DigitsMlp(nn.Module):
    """About 27,000 parameters in three dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(64, 160), nn.Linear(160, 96), nn.Linear(96, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, 1, 8, 8) to logits (N, 10)."""
        return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(image.flatten(1))))))


def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training images (1437, 1, 8, 8) in [0, 1] and labels, test images (360, 1, 8, 8) and labels."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = (data.images[order][:, None] / 16).astype(np.float32)
    labels = data.target[order].astype(np.int64)
    return images[:1437], labels[:1437], images[1437:], labels[1437:]


def train(model: nn.Module, images: np.ndarray, labels: np.ndarray) -> None:
    """Trains a model on images that are shifted by up to a pixel."""
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    steps = EPOCHS * -(-len(x) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(64):
            dy, dx = (int(v) for v in torch.randint(-1, 2, (2,)))
            loss = nn.functional.cross_entropy(model(torch.roll(x[rows], (dy, dx), (2, 3))), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def main() -> None:
    """Trains, measures, exports."""
    images, labels, test_images, test_labels = digits()
    np.savez_compressed(HERE / "digits_train.npz", image=images, labels=labels)
    np.savez_compressed(HERE / "digits_test.npz", image=test_images, labels=test_labels)
    for name, model in (("digits_conv", DigitsConv()), ("digits_mlp", DigitsMlp())):
        torch.manual_seed(0)
        for layer in model.modules():
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
        train(model.train(), images, labels)
        with torch.no_grad():
            hits = model.eval()(torch.from_numpy(test_images)).argmax(1).numpy() == test_labels
        print(f"{name}: {100 * hits.mean():.2f} % on {len(hits)} test images")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model,
                (torch.from_numpy(images[:2]),),
                HERE / f"{name}.onnx",
                input_names=["image"],
                output_names=["logits"],
                dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
                opset_version=17,
                dynamo=False,
                training=torch.onnx.TrainingMode.PRESERVE,  # keeps BatchNormalization as nodes, which train better
            )


if __name__ == "__main__":
    main()
