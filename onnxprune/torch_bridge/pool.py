"""Pooling over windows and over all positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from onnxprune.torch_bridge.base import Ints, Tensor, ints, operator, product
from onnxprune.torch_bridge.windows import CONV, Windows, windows

AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
MAXIMUM = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
MAXIMUM_AND_INDEX = {1: F.max_pool1d_with_indices, 2: F.max_pool2d_with_indices, 3: F.max_pool3d_with_indices}


@operator("AveragePool")
def average_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """The mean over each window, of the data alone or of data and padding."""
    places = windows(x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    padding, counts_padding = list(places.before), bool(count_include_pad)
    if places.fits and max(places.dilations) == 1 and places.after == places.declared:
        return AVERAGE[places.rank](x, list(kernel_shape), list(places.strides), padding, False, counts_padding)
    counted = x.new_ones((1, 1, *x.shape[2:]))
    if counts_padding:
        border = Windows((), (), (), places.before, places.declared, ())
        counted = border.pad(counted, 1.0)
        places_left = [a - d for a, d in zip(places.after, places.declared, strict=True)]
        rest = Windows(places.kernel, places.strides, places.dilations, (0,) * places.rank, tuple(places_left), ())
        return _sums(x, places) / _sums(counted, rest)
    return _sums(x, places) / _sums(counted, places)


def _sums(x: Tensor, places: Windows) -> Tensor:
    """The sum over each window of the padded data."""
    x = places.pad(x)
    if max(places.dilations) == 1:
        means = AVERAGE[places.rank](x, list(places.kernel), list(places.strides))
        return means * float(torch.Size(places.kernel).numel())
    ones = x.new_ones((1, 1, *places.kernel))
    planes = x.reshape(-1, 1, *x.shape[2:])
    sums = CONV[places.rank](planes, ones, None, places.strides, 0, places.dilations)
    return sums.reshape(*x.shape[:2], *sums.shape[2:])


@operator("LpPool", since=2)
def lp_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    p: int = 2,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """The p-norm of each window."""
    places = windows(x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    sums = _sums(x.abs().pow(p), places)
    return sums.clamp_min(torch.finfo(x.dtype).tiny).pow(1 / p)  # the root has no slope at 0


@operator("MaxPool")
def max_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    storage_order: int = 0,
    strides: Sequence[int] | None = None,
    outputs: int,
) -> tuple[Tensor, ...]:
    """The largest element of each window, and its place in the whole of X."""
    places = windows(x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    data = x if x.is_floating_point() else x.to(torch.float32)
    steps, taps = list(places.strides), list(places.dilations)
    if outputs == 1 and places.fits:
        y = MAXIMUM[places.rank](data, list(kernel_shape), steps, list(places.before), taps)
        return (y.to(x.dtype),)
    data = places.pad(data, -torch.inf)
    if outputs == 1:
        return (MAXIMUM[places.rank](data, list(kernel_shape), steps, [0] * places.rank, taps).to(x.dtype),)
    y, index = MAXIMUM_AND_INDEX[places.rank](data, list(kernel_shape), steps, [0] * places.rank, taps)
    return y.to(x.dtype), _index(index, x, data, places, storage_order)


def _index(index: Tensor, x: Tensor, data: Tensor, places: Windows, storage_order: int) -> Tensor:
    """Places on the padded plane as places in X; `storage_order` 1 counts along columns."""
    coordinates = []
    for size, front in zip(reversed(data.shape[2:]), reversed(places.before), strict=True):
        coordinates.append((index % size) - front)
        index = index // size
    sizes = list(x.shape[:1:-1])
    if storage_order:
        coordinates, sizes = coordinates[::-1], sizes[::-1]
    place, stride = torch.zeros_like(index), 1
    for coordinate, size in zip(coordinates, sizes, strict=True):
        place, stride = place + coordinate * stride, stride * size
    planes = torch.arange(x.shape[0] * x.shape[1], device=x.device).reshape(*x.shape[:2], *[1] * places.rank)
    return place + planes * stride


@operator("MaxUnpool", since=9)
def max_unpool(
    x: Tensor,
    indices: Tensor,
    output_shape: Ints | None = None,
    *,
    kernel_shape: Sequence[int],
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Zeros, with the elements of X at their places in the whole of Y."""
    if output_shape is None:
        rank = len(kernel_shape)
        steps, border = strides or [1] * rank, pads or [0] * 2 * rank
        sizes = [
            (size - 1) * steps[i] + kernel_shape[i] - border[i] - border[i + rank] for i, size in enumerate(x.shape[2:])
        ]
        shape = [*x.shape[:2], *sizes]
    else:
        shape = ints(output_shape)
    return x.new_zeros(product(shape)).scatter(0, indices.reshape(-1), x.reshape(-1)).reshape(shape)


@operator("GlobalAveragePool")
def global_average_pool(x: Tensor) -> Tensor:
    """The mean over all positions."""
    return x.mean(dim=tuple(range(2, x.dim())), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(x: Tensor) -> Tensor:
    """The largest element over all positions."""
    return x.amax(dim=tuple(range(2, x.dim())), keepdim=True)


@operator("GlobalLpPool", since=2)
def global_lp_pool(x: Tensor, *, p: int = 2) -> Tensor:
    """The p-norm over all positions."""
    return torch.linalg.vector_norm(x, p, dim=tuple(range(2, x.dim())), keepdim=True)
