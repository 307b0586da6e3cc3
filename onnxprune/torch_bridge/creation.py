"""Operators that make tensors out of numbers and sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from onnxprune.torch_bridge.base import Ints, Number, Tensor, dtype_of, integer, ints, operator, tensor


@operator(
    "Constant",
    lacks=lambda attrs: next((name for name in attrs if name.startswith("sparse") or "string" in name), None),
)
def constant(
    *,
    value: Tensor | None = None,
    value_float: float | None = None,
    value_floats: Sequence[float] | None = None,
    value_int: int | None = None,
    value_ints: Sequence[int] | None = None,
) -> Tensor:
    """A tensor or numbers from an attribute; those of the main graph are constants already."""
    if value is not None:
        return value
    if value_float is not None or value_floats is not None:
        return torch.tensor(value_float if value_floats is None else list(value_floats), dtype=torch.float32)
    return torch.tensor(value_int if value_ints is None else list(value_ints or ()), dtype=torch.int64)


@operator("ConstantOfShape")
def constant_of_shape(shape: Ints, *, value: Tensor | None = None) -> Tensor:
    """One value everywhere, the sizes given by the input."""
    if value is None:
        return torch.zeros(ints(shape))
    return value.reshape([1] * len(ints(shape))).expand(ints(shape)).contiguous()


@operator("Range")
def range_(start: Tensor, limit: Tensor, delta: Tensor, *, stash_type: int = 1) -> Tensor:
    """start, start + delta, ... before limit."""
    first, last, step = start.item(), limit.item(), delta.item()
    if (last - first) * step <= 0:
        return start.new_empty(0)
    return torch.arange(first, last, step, dtype=start.dtype, device=start.device)


@operator("Shape", sizes=True)
def shape(x: Tensor, *, start: int = 0, end: int | None = None) -> list[int]:
    """The sizes of some axes of X."""
    return list(x.shape[start:end])


@operator("Size", sizes=True)
def size(x: Tensor) -> int:
    """The number of elements of X."""
    return x.numel()


@operator("NonZero")
def non_zero(x: Tensor) -> Tensor:
    """Y[axis, i] = where on that axis the i-th element other than zero is."""
    return torch.nonzero(x if x.dim() else x.reshape(1)).T


@operator("OneHot")
def one_hot(indices: Tensor, depth: Number, values: Tensor, *, axis: int = -1) -> Tensor:
    """values[1] at the index along a new axis, values[0] elsewhere; an index out of range has none."""
    count = integer(depth)
    places = indices.to(torch.int64).unsqueeze(axis)
    places = torch.where(places < 0, places + count, places)
    steps = torch.arange(count, device=places.device)
    steps = steps.reshape([-1 if i == axis % places.dim() else 1 for i in range(places.dim())])
    return torch.where(places == steps, values[1], values[0])


@operator("Trilu")
def trilu(x: Tensor, k: Number = 0, *, upper: int = 1) -> Tensor:
    """X above or below a diagonal, zeros elsewhere."""
    return torch.triu(x, integer(k)) if upper else torch.tril(x, integer(k))


@operator("EyeLike")
def eye_like(x: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    """Ones on a diagonal, zeros elsewhere, in the sizes of X."""
    ones = torch.ones(x.shape, dtype=x.dtype if dtype is None else dtype_of(dtype), device=x.device)
    return torch.triu(torch.tril(ones, k), k)


def _window(op: str, *weights: float) -> None:
    """Registers a window that is a sum of cosines with these weights, the first one constant."""

    def window(size: Number, *, output_datatype: int = 1, periodic: int = 1) -> Tensor:
        """Weights of the samples of a frame; the last one is left out when `periodic`."""
        count = integer(size)
        angles = torch.arange(count, dtype=torch.float64) * (2 * math.pi / max(1, count - 1 + periodic))
        total = sum(weight * torch.cos(i * angles) for i, weight in enumerate(weights))
        return tensor(total).to(dtype_of(output_datatype))

    operator(op, since=17)(window)


_window("HannWindow", 0.5, -0.5)
_window("HammingWindow", 25 / 46, -21 / 46)
_window("BlackmanWindow", 0.42, -0.5, 0.08)
