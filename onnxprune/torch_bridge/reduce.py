"""Operators that take axes together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from onnxprune.torch_bridge.base import Ints, Number, Tensor, integer, ints, operator, product

Reduction = Callable[[Tensor, tuple[int, ...], bool], Tensor]


def reduces(op: str) -> Callable[[Reduction], Callable[..., Tensor]]:
    """Registers a reduction of (data, axes, whether they are kept) under ONNX's attributes.

    Axes are an attribute or, in newer opsets, an input; without any, all axes are reduced, or none if the node says so.
    """

    def register(function: Reduction) -> Callable[..., Tensor]:
        def reduction(
            x: Tensor,
            given: Ints | None = None,
            *,
            axes: Sequence[int] | None = None,
            keepdims: int = 1,
            noop_with_empty_axes: int = 0,
        ) -> Tensor:
            chosen = tuple(ints(given)) if given is not None else tuple(axes or ())
            if not chosen and not noop_with_empty_axes:
                chosen = tuple(range(x.dim()))
            return function(x, chosen, bool(keepdims))

        reduction.__name__ = function.__name__
        reduction.__qualname__ = function.__qualname__
        return operator(op)(reduction)

    return register


@reduces("ReduceSum")
def reduce_sum(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """Y = sum of X."""
    return _sum(x, axes, keep)


def _sum(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return x.sum(axes, keep, dtype=x.dtype) if axes else x


@reduces("ReduceMean")
def reduce_mean(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """Y = mean of X; that of integers is cut off."""
    if x.is_floating_point():
        return x.mean(axes, keep) if axes else x
    count = product(x.shape[axis] for axis in axes)
    return torch.div(_sum(x, axes, keep), count, rounding_mode="trunc")


@reduces("ReduceProd")
def reduce_prod(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """Y = product of X."""
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = torch.prod(x, axis, keep, dtype=x.dtype)
    return x


@reduces("ReduceMax")
def reduce_max(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """Y = largest of X; of nothing, what is smaller than all others."""
    return _extreme(x, axes, keep, largest=True)


@reduces("ReduceMin")
def reduce_min(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """Y = smallest of X; of nothing, what is larger than all others."""
    return _extreme(x, axes, keep, largest=False)


def _extreme(x: Tensor, axes: tuple[int, ...], keep: bool, *, largest: bool) -> Tensor:
    for axis in axes:
        if not x.shape[axis]:
            shape = [1 if i == axis % x.dim() else size for i, size in enumerate(x.shape)]
            x = x.new_full(shape, _end(x.dtype, low=largest))
    if not axes:
        return x
    return x.amax(axes, keep) if largest else x.amin(axes, keep)


def _end(dtype: torch.dtype, *, low: bool) -> float:
    """The lowest number of a type, or the highest."""
    if dtype == torch.bool:
        return not low
    if dtype.is_floating_point:
        return -math.inf if low else math.inf
    return torch.iinfo(dtype).min if low else torch.iinfo(dtype).max


@reduces("ReduceL1")
def reduce_l1(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """Y = sum of |X|."""
    return _sum(x.abs(), axes, keep)


@reduces("ReduceL2")
def reduce_l2(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """Y = root of the sum of X^2."""
    if x.is_floating_point():
        return torch.linalg.vector_norm(x, 2, axes, keep) if axes else x.abs()
    return _sum(x.square(), axes, keep).sqrt().to(x.dtype)


@reduces("ReduceSumSquare")
def reduce_sum_square(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """Y = sum of X^2."""
    return _sum(x.square(), axes, keep)


@reduces("ReduceLogSum")
def reduce_log_sum(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """Y = log of the sum of X."""
    return _sum(x, axes, keep).log().to(x.dtype)


@reduces("ReduceLogSumExp")
def reduce_log_sum_exp(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """Y = log of the sum of exp(X)."""
    return torch.logsumexp(x, axes, keep).to(x.dtype) if axes else x


@operator("ArgMax")
def arg_max(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """Y = place of the largest of X on one axis; of several, the first or the last."""
    if not select_last_index:
        return x.argmax(axis, keepdim=bool(keepdims))
    return x.shape[axis] - 1 - x.flip(axis).argmax(axis, keepdim=bool(keepdims))


@operator("ArgMin")
def arg_min(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """Y = place of the smallest of X on one axis; of several, the first or the last."""
    if not select_last_index:
        return x.argmin(axis, keepdim=bool(keepdims))
    return x.shape[axis] - 1 - x.flip(axis).argmin(axis, keepdim=bool(keepdims))


@operator("Softmax", since=13)
def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Y = exp(X) / sum of exp(X) over one axis."""
    return torch.softmax(x, axis)


@operator("LogSoftmax", since=13)
def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Y = log of the softmax of X."""
    return torch.log_softmax(x, axis)


@operator("Hardmax", since=13)
def hardmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Y = 1 at the first largest of X on one axis, else 0."""
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1)


@operator("Softmax")
def softmax_1(x: Tensor, *, axis: int = 1) -> Tensor:
    """Before opset 13: over all axes from `axis` on."""
    return softmax(_flat(x, axis)).reshape(x.shape)


@operator("LogSoftmax")
def log_softmax_1(x: Tensor, *, axis: int = 1) -> Tensor:
    """Before opset 13: over all axes from `axis` on."""
    return log_softmax(_flat(x, axis)).reshape(x.shape)


@operator("Hardmax")
def hardmax_1(x: Tensor, *, axis: int = 1) -> Tensor:
    """Before opset 13: over all axes from `axis` on."""
    return hardmax(_flat(x, axis)).reshape(x.shape)


def _flat(x: Tensor, axis: int) -> Tensor:
    """All axes from one on as one."""
    axis = axis % x.dim()
    return x.reshape(*x.shape[:axis], -1)


@operator("CumSum")
def cum_sum(x: Tensor, axis: Number, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Y = running sums along one axis, from its end when `reverse`, without the element itself when `exclusive`."""
    return _running(torch.cumsum, 0, x, integer(axis), exclusive, reverse)


@operator("CumProd", since=26)
def cum_prod(x: Tensor, axis: Number, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """The same with products."""
    return _running(torch.cumprod, 1, x, integer(axis), exclusive, reverse)


def _running(function: Callable[..., Tensor], first: int, x: Tensor, axis: int, exclusive: int, reverse: int) -> Tensor:
    x = x.flip(axis) if reverse else x
    y = function(x, axis, dtype=x.dtype)
    if exclusive:
        y = torch.cat([torch.full_like(y.narrow(axis, 0, 1), first), y.narrow(axis, 0, y.shape[axis] - 1)], axis)
    return y.flip(axis) if reverse else y


@operator("TopK", since=10)
def top_k(
    x: Tensor, k: Number, *, axis: int = -1, largest: int = 1, sorted: int = 1, outputs: int
) -> tuple[Tensor, ...]:
    """The k largest or smallest elements along one axis and their places; of equal ones the first come first."""
    values, places = torch.sort(x, stable=True, dim=axis, descending=bool(largest))
    count = integer(k)
    return (values.narrow(axis, 0, count), places.narrow(axis, 0, count))[:outputs]


@operator("TopK")
def top_k_1(x: Tensor, *, k: int, axis: int = -1, outputs: int) -> tuple[Tensor, ...]:
    """The same, with `k` as an attribute."""
    return top_k(x, k, axis=axis, outputs=outputs)
