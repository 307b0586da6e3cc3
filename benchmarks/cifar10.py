"""The CIFAR-10 reference data: images as the reference ResNets want them."""

from __future__ import annotations

import lzma
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

import onnxprune
from onnxprune.graph import from_proto
from reference import file

MEAN = np.array([0.485, 0.456, 0.406], np.float32).reshape(1, 3, 1, 1)
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32).reshape(1, 3, 1, 1)


def model(name: str) -> Path:
    """The file of a trained network, such as "resnet20_cifar10_bn"; ends the program where there is none."""
    return file(f"models/{name}.onnx")


def images(*names: str, count: int | None = None) -> dict[str, np.ndarray]:
    """Images and labels of some files, such as "test" or "train_0": image (N, 3, 32, 32) float32, label (N,) int64.

    Args:
        names: the files.
        count: how many of the first images of each file; all when None.
    """
    parts = [_read(file(f"cifar10_{name}.npz"), count) for name in names]
    pixels, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    return {"image": (pixels.astype(np.float32) / 255 - MEAN) / DEVIATION, "label": labels}


def _read(path: Path, count: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Undoes the packing: planes G, R-G, B-G, each pixel as the residual of a median edge prediction, modulo 256."""
    with np.load(path) as arrays:
        labels, packed = arrays["labels"].astype(np.int64)[:count], lzma.decompress(arrays["packed"].tobytes())
    residuals = np.frombuffer(packed, np.uint8).reshape(3, -1, 32, 32)[:, : len(labels)]
    residuals = np.ascontiguousarray(residuals.transpose(2, 3, 0, 1)).astype(np.int16)  # rows, columns, planes, images
    planes = np.zeros((33, 33, 3, len(labels)), np.int16)  # one border row and column
    for i in range(1, 33):
        for j in range(1, 33):
            left = planes[i, j - 1] if j > 1 else planes[i - 1, j]
            upper = planes[i - 1, j] if i > 1 else left
            corner = planes[i - 1, j - 1] if i > 1 and j > 1 else (left if i == 1 else upper)
            high, low = np.maximum(left, upper), np.minimum(left, upper)
            guess = np.where(corner >= high, low, np.where(corner <= low, high, left + upper - corner))
            value = (residuals[i - 1, j - 1] + guess) & 255
            planes[i, j] = value
            planes[i, j, 1:] = ((value[1:] + value[0]) & 255) - value[0]
    pixels = planes[1:, 1:].copy()
    pixels[:, :, 1:] += pixels[:, :, :1]
    return pixels[:, :, [1, 0, 2]].transpose(3, 2, 0, 1).astype(np.uint8), labels


def pruned(
    original: onnxprune.Graph, macs: float, criterion: str = "variance", round_to: int | None = None
) -> onnxprune.Pruned:
    """A network with this share of its multiply-accumulates, refit, from 1,024 training images."""
    return onnxprune.prune(
        original,
        onnxprune.Budget("macs", macs),
        images("train_0", count=1024),
        ranking=onnxprune.Ranking(criterion),
        method=onnxprune.Method(refit=True, latency=False, limits=onnxprune.Limits(round_to=round_to)),
    )


def mirrored(name: str) -> onnxprune.Graph:
    """A trained network whose logits are the mean of what it says of an image and of its mirror image."""
    found = onnx.load(model(name))
    graph = found.graph
    image, logits = graph.input[0].name, graph.output[0].name
    for node in graph.node:
        node.input[:] = ["both" if tensor == image else tensor for tensor in node.input]
        node.output[:] = ["views" if tensor == logits else tensor for tensor in node.output]
    constants = {"last": [-1], "first": [-(2**31)], "two": [2, -1, 10], "widths": [3]}
    graph.initializer.extend(numpy_helper.from_array(np.array(v, np.int64), k) for k, v in constants.items())
    # from the last column to the first one, in steps of -1
    graph.node.insert(0, helper.make_node("Slice", [image, "last", "first", "widths", "last"], ["mirror"]))
    graph.node.insert(1, helper.make_node("Concat", [image, "mirror"], ["both"], axis=0))
    graph.node.append(helper.make_node("Reshape", ["views", "two"], ["stacked"]))
    graph.node.append(helper.make_node("ReduceMean", ["stacked"], [logits], axes=[0], keepdims=0))
    return from_proto(found)


def crop(arrays: dict[str, np.ndarray], generator: np.random.Generator) -> dict[str, np.ndarray]:
    """A crop of 32 x 32 after padding by 4 black pixels, and a flip of every second image, as in the training."""
    images = arrays["image"]
    padded = np.broadcast_to(-MEAN / DEVIATION, (len(images), 3, 40, 40)).copy()
    padded[:, :, 4:36, 4:36] = images
    rows, columns = generator.integers(0, 9, (2, len(images)))
    crops = np.lib.stride_tricks.sliding_window_view(padded, (32, 32), (2, 3))[np.arange(len(images)), :, rows, columns]
    flipped = generator.random(len(images)) < 0.5
    return {"image": np.where(flipped[:, None, None, None], crops[..., ::-1], crops)}


def cutmix(arrays: dict[str, np.ndarray], generator: np.random.Generator) -> dict[str, np.ndarray]:
    """`crop`, and then a rectangle of each image comes from another one of the batch: CutMix (arXiv 1905.04899).

    The rectangle has up to half of the area, so the larger part of an image is still what its label says.
    """
    return {"image": _patched(crop(arrays, generator)["image"], generator)}


def half_cutmix(arrays: dict[str, np.ndarray], generator: np.random.Generator) -> dict[str, np.ndarray]:
    """`cutmix` in half of the images, and `crop` in the others."""
    images, mixed = crop(arrays, generator)["image"], generator.random(len(arrays["image"])) < 0.5
    return {"image": np.where(mixed[:, None, None, None], _patched(images, generator), images)}


def _patched(images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Images (N, 3, 32, 32) with a rectangle of another one."""
    sides = 32 * np.sqrt(generator.uniform(0, 0.5, len(images)))
    centres = generator.uniform(0, 32, (2, len(images)))
    rows, columns = (abs(np.arange(32) + 0.5 - centre[:, None]) < sides[:, None] / 2 for centre in centres)
    inside = (rows[:, :, None] & columns[:, None])[:, None]
    return np.where(inside, images[generator.permutation(len(images))], images)
