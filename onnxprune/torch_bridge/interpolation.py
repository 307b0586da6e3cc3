"""Resize and Upsample: each axis of the result is a weighted sum of a few positions of the same axis of the data.

Coordinates are computed in float32 and in the order in which ONNX Runtime computes them: where a coordinate falls
half-way between two positions, rounding decides which of them nearest-neighbour resizing takes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from onnxprune.torch_bridge.base import Floats, Ints, Tensor, floats, ints, operator

COORDINATES = (
    "half_pixel",
    "pytorch_half_pixel",
    "half_pixel_symmetric",
    "align_corners",
    "asymmetric",
    "tf_half_pixel_for_nn",
    "tf_crop_and_resize",
)
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
MODES = ("nearest", "linear", "cubic")
SMOOTH = {3: "linear", 4: "bilinear", 5: "trilinear"}
"""torch's name of linear resizing by the rank of the data."""


@dataclass(frozen=True, slots=True)
class Axis:
    """How one axis is resized.

    Attributes:
        index: which axis.
        size: of the data.
        target: of the result.
        scale: as stated, or target / size.
        roi: the part of the axis that is looked at, for tf_crop_and_resize.
    """

    index: int
    size: int
    target: int
    scale: float
    roi: tuple[float, float] = (0.0, 1.0)


def _unknown_mode(attrs: dict[str, Any]) -> str | None:
    known = {
        "mode": MODES,
        "coordinate_transformation_mode": COORDINATES,
        "nearest_mode": ROUNDINGS,
        "keep_aspect_ratio_policy": ("stretch", "not_larger", "not_smaller"),
    }
    return next((f"{k} {attrs[k]}" for k, values in known.items() if k in attrs and attrs[k] not in values), None)


@operator("Resize", since=11, lacks=_unknown_mode)
def resize(
    x: Tensor,
    roi: Floats | None = None,
    scales: Floats | None = None,
    sizes: Ints | None = None,
    *,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    """X interpolated at the coordinates of a grid of other size."""
    places = [axis % x.dim() for axis in axes] if axes is not None else list(range(x.dim()))
    wanted = None if sizes is None or not len(sizes) else ints(sizes)
    resized = _axes(x, places, floats(scales), wanted, keep_aspect_ratio_policy)
    crops = coordinate_transformation_mode == "tf_crop_and_resize"
    if crops and (window := floats(roi)) is not None:
        half = len(window) // 2
        resized = [
            Axis(axis.index, axis.size, axis.target, axis.scale, (window[i], window[i + half]))
            for i, axis in enumerate(resized)
        ]
    # ONNX Runtime copies where no size changes, whatever scales say; with antialias it does so axis by axis
    copied = antialias or all(axis.target == axis.size for axis in resized)
    resized = [axis for axis in resized if axis.target != axis.size or (axis.scale != 1 and not copied)]
    if not antialias and _is_torch(x, resized, mode, coordinate_transformation_mode):
        aligned = coordinate_transformation_mode == "align_corners"
        targets = {axis.index: axis.target for axis in resized}
        size = [targets.get(i, x.shape[i]) for i in range(2, x.dim())]
        return F.interpolate(x, size, mode=SMOOTH[x.dim()], align_corners=aligned)
    outside: Tensor | None = None
    for axis in resized:
        at = coordinates(axis, coordinate_transformation_mode, x.device)
        if mode == "nearest":
            x = x.index_select(axis.index, _nearest(at, axis, nearest_mode))
        else:
            x = _interpolated(x, at, axis, mode, cubic_coeff_a, bool(antialias), bool(exclude_outside))
        if crops:
            beyond = ((at < 0) | (at > axis.size - 1)).reshape([-1] + [1] * (x.dim() - 1 - axis.index))
            outside = beyond if outside is None else outside | beyond
    return x if outside is None else torch.where(outside, extrapolation_value, x)


@operator("Resize", since=10, lacks=_unknown_mode)
@operator("Upsample", since=9, lacks=_unknown_mode)
def resize_10(x: Tensor, scales: Floats, *, mode: str = "nearest") -> Tensor:
    """X interpolated on a grid that starts at its first position; nearest rounds down, or up when shrinking."""
    given = floats(scales) or []
    for axis in _axes(x, range(x.dim()), given, None, "stretch"):
        at = coordinates(axis, "asymmetric", x.device)
        if axis.scale == 1:
            continue
        if mode == "nearest":
            x = x.index_select(axis.index, _nearest(at, axis, "ceil" if axis.scale < 1 else "floor"))
        else:
            x = _interpolated(x, at, axis, "linear", 0.0, False, False)
    return x


@operator("Upsample", since=7, lacks=_unknown_mode)
def upsample_7(x: Tensor, *, scales: Sequence[float], mode: str = "nearest") -> Tensor:
    """The same, with scales as an attribute."""
    return resize_10(x, list(scales), mode=mode)


def _axes(
    x: Tensor, places: Sequence[int], scales: Sequence[float] | None, sizes: Sequence[int] | None, policy: str
) -> list[Axis]:
    """Sizes and scales of the listed axes, as ONNX Runtime rounds them."""
    if scales is not None:
        return [
            Axis(i, x.shape[i], int(np.float32(scale) * np.float32(x.shape[i])), scale)
            for i, scale in zip(places, scales, strict=True)
        ]
    ratios = [float(np.float32(size / x.shape[i])) for i, size in zip(places, sizes or (), strict=True)]
    if policy == "stretch":
        return [Axis(i, x.shape[i], size, r) for i, size, r in zip(places, sizes or (), ratios, strict=True)]
    ratio = min(ratios) if policy == "not_larger" else max(ratios)
    return [Axis(i, x.shape[i], math.floor(ratio * x.shape[i] + 0.5), ratio) for i in places]


def _is_torch(x: Tensor, axes: list[Axis], mode: str, transformation: str) -> bool:
    """Whether torch's own linear resizing is this one."""
    return (
        mode == "linear"
        and x.dim() in SMOOTH
        and bool(axes)
        and all(axis.index > 1 and axis.target > 1 for axis in axes)
        and (
            transformation == "align_corners"
            or (
                transformation in ("half_pixel", "pytorch_half_pixel")
                and all(abs(axis.scale * axis.size - axis.target) < 1e-4 for axis in axes)
            )
        )
    )


def coordinates(axis: Axis, transformation: str, device: torch.device) -> Tensor:
    """Where each position of the result lies on the axis of the data; (target,) float32."""
    at = torch.arange(axis.target, dtype=torch.float32, device=device)
    size, target = axis.size, axis.target
    scale = torch.full_like(at, axis.scale)  # torch multiplies by the inverse of a number, which rounds differently
    if transformation == "asymmetric":
        return at / scale
    if transformation == "tf_half_pixel_for_nn":
        return (at + 0.5) / scale
    if transformation == "align_corners":
        return at * (size - 1) / (target - 1) if target > 1 else at * 0
    if transformation == "tf_crop_and_resize":
        start, end = axis.roi
        if target > 1:
            return start * (size - 1) + at * (end - start) * (size - 1) / (target - 1)
        return at * 0 + 0.5 * (start + end) * (size - 1)
    if transformation == "pytorch_half_pixel" and target == 1:
        return at * 0
    offset = 0.0
    if transformation == "half_pixel_symmetric":
        width = np.float32(axis.scale) * np.float32(size)
        offset = float(np.float32(size / 2) * (1 - np.float32(target) / width))
    return offset + (at + 0.5) / scale - 0.5


def _nearest(at: Tensor, axis: Axis, rounding: str) -> Tensor:
    """The position to take for each coordinate."""
    if rounding == "floor":
        at = at.floor()
    elif rounding == "ceil":
        at = at.ceil()
    elif rounding == "round_prefer_floor":
        at = (at - 0.5).ceil()
    else:
        at = (at + 0.5).floor()
    return at.to(torch.int64).clamp(0, axis.size - 1)


def _interpolated(
    x: Tensor, at: Tensor, axis: Axis, mode: str, cubic: float, antialias: bool, exclude_outside: bool
) -> Tensor:
    """The weighted sum of the positions around each coordinate; what lies outside is the border, or left out."""
    shrink = min(axis.scale, 1.0) if antialias else 1.0
    support = (1 if mode == "linear" else 2) / shrink
    first = (at - support).floor() + 1
    total: Tensor | None = None
    shape = [-1] + [1] * (x.dim() - 1 - axis.index)
    taps = [first + tap for tap in range(math.ceil(2 * support) + (support % 1 != 0))]
    weights = [_weight((place - at) * shrink, mode, cubic) for place in taps]
    if exclude_outside and (antialias or mode == "cubic"):
        weights = [w * ((p >= 0) & (p < axis.size)) for w, p in zip(weights, taps, strict=True)]
    norm = sum(weights, torch.zeros_like(at))
    for place, weight in zip(taps, weights, strict=True):
        taken = x.index_select(axis.index, place.to(torch.int64).clamp(0, axis.size - 1))
        part = taken * (weight / norm).to(x.dtype).reshape(shape)
        total = part if total is None else total + part
    return x if total is None else total


def _weight(distance: Tensor, mode: str, a: float) -> Tensor:
    """The weight of a position at a distance: a triangle, or the cubic of Keys with his parameter `a`."""
    d = distance.abs()
    if mode == "linear":
        return (1 - d).clamp_min(0)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = (((d - 5) * d + 8) * d - 4) * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


SAMPLERS = {
    "linear": "bilinear",
    "bilinear": "bilinear",
    "cubic": "bicubic",
    "bicubic": "bicubic",
    "nearest": "nearest",
}
"""torch's names of the modes of GridSample, whose names changed with opset 20."""


def _unknown_sampler(attrs: dict[str, Any]) -> str | None:
    mode, padding = attrs.get("mode", "linear"), attrs.get("padding_mode", "zeros")
    if mode not in SAMPLERS:
        return f"mode {mode}"
    return None if padding in ("zeros", "border", "reflection") else f"padding_mode {padding}"


@operator("GridSample", lacks=_unknown_sampler)
def grid_sample(
    x: Tensor, grid: Tensor, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros"
) -> Tensor:
    """Y[N,C,p] = X[N,C,..] interpolated at grid[N,p], whose coordinates run from -1 to 1."""
    return F.grid_sample(x, grid, SAMPLERS[mode], padding_mode, bool(align_corners))


@operator("AffineGrid")
def affine_grid(theta: Tensor, size: Ints, *, align_corners: int = 0) -> Tensor:
    """The points of an image of given sizes under an affine map of each sample."""
    return F.affine_grid(theta, ints(size), bool(align_corners))
