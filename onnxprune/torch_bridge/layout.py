"""Operators that move, cut, join or repeat positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from onnxprune.torch_bridge.base import Ints, Number, Piece, Tensor, ints, operator, product
from onnxprune.torch_bridge.windows import interleaved

FAR = (2**31 - 1, 2**63 - 1)
"""What exporters write for "to the end", which ONNX Runtime takes for the front when it steps backwards."""


@operator("Reshape", since=5)
def reshape(x: Tensor, shape: Ints, *, allowzero: int = 0) -> Tensor:
    """The same elements in another shape; -1 is what is left over, 0 the size that was there."""
    target = ints(shape)
    if not allowzero:
        target = [x.shape[i] if size == 0 else size for i, size in enumerate(target)]
    return x.reshape(target)


@operator("Flatten")
def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """Y[(axes before), (axes from `axis` on)]."""
    if axis < 0:
        axis += x.dim()
    return x.reshape(product(x.shape[:axis]), product(x.shape[axis:]))


@operator("Transpose")
def transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    """Axis i of Y is axis perm[i] of X; all axes reversed when None."""
    return x.permute(list(perm) if perm is not None else list(range(x.dim()))[::-1])


@operator("Squeeze")
def squeeze(x: Tensor, given: Ints | None = None, *, axes: Sequence[int] | None = None) -> Tensor:
    """Y lacks axes of size 1: those that are listed, or all."""
    chosen = ints(given) if given is not None else axes
    return x.squeeze() if chosen is None else x.squeeze(tuple(chosen))


@operator("Unsqueeze")
def unsqueeze(x: Tensor, given: Ints | None = None, *, axes: Sequence[int] = ()) -> Tensor:
    """Y has further axes of size 1."""
    chosen = ints(given) if given is not None else axes
    rank = x.dim() + len(chosen)
    for axis in sorted(axis % rank for axis in chosen):
        x = x.unsqueeze(axis)
    return x


@operator("Concat")
def concat(*operands: Piece, axis: int = 1) -> Tensor:
    """The operands laid end to end along one axis."""
    return torch.cat(operands, axis)


@operator("Split")
def split(
    x: Tensor,
    given: Ints | None = None,
    *,
    axis: int = 0,
    split: Sequence[int] | None = None,
    num_outputs: int | None = None,
    outputs: int,
) -> tuple[Tensor, ...]:
    """X cut along one axis into parts of given sizes, or equal ones of which the last may be smaller."""
    if given is not None or split is not None:
        return torch.split(x, ints(given) if given is not None else list(split or ()), axis)
    return torch.split(x, -(-x.shape[axis] // outputs), axis)


@operator("Slice", since=10)
def slice_(x: Tensor, starts: Ints, ends: Ints, axes: Ints | None = None, steps: Ints | None = None) -> Tensor:
    """Y[i] = X[start + i * step] along each listed axis, bounds cut off at the ends of the axis."""
    first, last = ints(starts), ints(ends)
    places = ints(axes) if axes is not None else list(range(len(first)))
    strides = ints(steps) if steps is not None else [1] * len(first)
    for axis, start, end, step in zip(places, first, last, strides, strict=True):
        if step < 0:  # torch steps forward only
            size, x = x.shape[axis], x.flip(axis)
            start = min(max(start + size if start < 0 else start, 0), size - 1)
            end = -1 if end in FAR else min(max(end + size if end < 0 else end, -1), size - 1)
            start, end, step = size - 1 - start, size - 1 - end, -step
        x = x[(slice(None),) * (axis % x.dim()) + (slice(start, end, step),)]
    return x


@operator("Slice")
def slice_1(x: Tensor, *, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int] | None = None) -> Tensor:
    """The same, with bounds as attributes."""
    return slice_(x, list(starts), list(ends), None if axes is None else list(axes))


@operator("Expand")
def expand(x: Tensor, shape: Ints) -> Tensor:
    """X repeated along axes of size 1 and along new axes on the left; a target of 1 leaves an axis alone."""
    target = ints(shape)
    target = [1] * (x.dim() - len(target)) + target
    aligned = [1] * (len(target) - x.dim()) + list(x.shape)
    return x.expand([n if m == 1 else m for n, m in zip(aligned, target, strict=True)])


@operator("Tile", since=6)
def tile(x: Tensor, repeats: Ints) -> Tensor:
    """X repeated as a whole along each axis."""
    return x.repeat(ints(repeats))


@operator("Pad", since=11)
def pad(
    x: Tensor, pads: Ints, value: Number | None = None, axes: Ints | None = None, *, mode: str = "constant"
) -> Tensor:
    """Y has a border around X: a constant, X mirrored, its edge repeated, or X wrapped around; negative pads cut."""
    widths = ints(pads)
    places = [axis % x.dim() for axis in ints(axes)] if axes is not None else list(range(x.dim()))
    before, after = [0] * x.dim(), [0] * x.dim()
    for i, axis in enumerate(places):
        before[axis], after[axis] = widths[i], widths[i + len(places)]
    if mode == "constant":
        return F.pad(x, interleaved(before, after), value=0 if value is None else _plain(value))
    cuts = interleaved([min(n, 0) for n in before], [min(n, 0) for n in after])
    x = F.pad(x, cuts) if any(cuts) else x
    for axis, (front, back) in enumerate(zip(before, after, strict=True)):
        if front > 0 or back > 0:
            x = x.index_select(axis, _border(x.shape[axis], max(front, 0), max(back, 0), mode, x.device))
    return x


def _plain(value: Number) -> float:
    return value.item() if isinstance(value, Tensor) else value


def _border(size: int, front: int, back: int, mode: str, device: torch.device) -> Tensor:
    """Which position of an axis comes where when it gets a border."""
    places = torch.arange(-front, size + back, device=device)
    if mode == "edge":
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places % size
    period = max(2 * (size - 1), 1)
    places = places % period
    return torch.minimum(places, period - places) if size > 1 else places


@operator("Pad", since=2)
def pad_2(x: Tensor, *, pads: Sequence[int], value: float = 0.0, mode: str = "constant") -> Tensor:
    """The same, with attributes."""
    return pad(x, list(pads), value, mode=mode)


@operator("DepthToSpace")
def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """X[N,(b,b,c),H,W], or (c,b,b) in mode CRD, becomes Y[N,c,(H,b),(W,b)]."""
    n, depth, h, w = x.shape
    b, c = blocksize, depth // blocksize**2
    if mode == "DCR":
        x = x.reshape(n, b, b, c, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        x = x.reshape(n, c, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(n, c, h * b, w * b)


@operator("SpaceToDepth")
def space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """X[N,c,(H,b),(W,b)] becomes Y[N,(b,b,c),H,W], or (c,b,b) in mode CRD."""
    n, c, height, width = x.shape
    b, h, w = blocksize, height // blocksize, width // blocksize
    x = x.reshape(n, c, h, b, w, b)
    x = x.permute(0, 3, 5, 1, 2, 4) if mode == "DCR" else x.permute(0, 1, 3, 5, 2, 4)
    return x.reshape(n, c * b * b, h, w)


@operator("CenterCropPad")
def center_crop_pad(x: Tensor, shape: Ints, *, axes: Sequence[int] | None = None) -> Tensor:
    """Axes cut or widened with zeros around their middle."""
    for axis, size in zip(range(x.dim()) if axes is None else axes, ints(shape), strict=True):
        have = x.shape[axis]
        if size < have:
            x = x.narrow(axis, (have - size) // 2, size)
        elif size > have:
            sides = [0] * (2 * x.dim())
            front = (size - have) // 2
            place = x.dim() - 1 - axis % x.dim()
            sides[2 * place : 2 * place + 2] = front, size - have - front
            x = F.pad(x, sides)
    return x


@operator("Col2Im")
def col2im(
    x: Tensor,
    image_shape: Ints,
    block_shape: Ints,
    *,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """X[N,(C,block),L] becomes Y[N,C,..], overlapping blocks added up."""
    image, block = ints(image_shape), ints(block_shape)
    rank = len(image)
    apart, steps, border = dilations or [1] * rank, strides or [1] * rank, pads or [0] * 2 * rank
    place = torch.zeros((1, 1), dtype=torch.int64, device=x.device)  # (block, L) of the padded image
    sizes = []
    for i in range(rank):
        sizes.append(image[i] + border[i] + border[i + rank])
        inside = torch.arange(block[i], device=x.device) * apart[i]
        start = torch.arange((sizes[i] - int(inside[-1]) - 1) // steps[i] + 1, device=x.device) * steps[i]
        along = inside[:, None] + start
        place = (place[:, None, :, None] * sizes[i] + along[None, :, None]).flatten(2).flatten(0, 1)
    columns = x.reshape(len(x), -1, place.numel())
    whole = x.new_zeros(*columns.shape[:2], product(sizes)).index_add(2, place.flatten(), columns)
    y = whole.reshape(*columns.shape[:2], *sizes)
    for i in range(rank):
        y = y.narrow(i + 2, border[i], image[i])
    return y
