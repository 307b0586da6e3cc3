"""Operators that read or write positions that an index names."""

from __future__ import annotations

import torch

from onnxprune.torch_bridge.base import Index, Table, Tensor, operator, product

REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
"""torch's names for what happens to elements that are written more than once."""


@operator("Gather")
def gather(x: Table, indices: Index, *, axis: int = 0) -> Tensor:
    """Y = X taken at indices along one axis, whose place the axes of the indices take."""
    if not isinstance(indices, Tensor):
        return x.select(axis, indices)
    axis = axis % x.dim()
    places = positive(indices, x.shape[axis])
    return x.index_select(axis, places.reshape(-1)).reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


def positive(indices: Tensor, size: int) -> Tensor:
    """Indices counted from the front, as torch wants them."""
    return torch.where(indices < 0, indices + size, indices).to(torch.int64)


@operator("GatherElements")
def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """Y[i, j] = X[indices[i, j], j] for axis 0, and so on."""
    return torch.gather(x, axis, positive(indices, x.shape[axis]))


@operator("GatherND")
def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """Y[b, i] = X[b, indices[b, i]], where the last axis of the indices lists coordinates."""
    depth = indices.shape[-1]
    batches = product(x.shape[:batch_dims])
    rows = x.reshape(batches, *x.shape[batch_dims:])
    places = indices.to(torch.int64).reshape(batches, -1, depth)
    batch = torch.arange(batches, device=x.device).unsqueeze(1)
    picked = rows[(batch, *places.unbind(-1))]
    return picked.reshape([*indices.shape[:-1], *x.shape[batch_dims + depth :]])


@operator("ScatterND")
def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    """X with slices replaced, or combined with, updates; the last axis of the indices lists coordinates."""
    depth = indices.shape[-1]
    sizes, rest = x.shape[:depth], product(x.shape[depth:])
    flat = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=x.device)
    for axis, size in enumerate(sizes):
        flat = flat * size + positive(indices[..., axis], size)
    rows = x.reshape(product(sizes), rest)
    news = updates.reshape(-1, rest).to(x.dtype)
    places = flat.reshape(-1, 1).expand_as(news)
    return _written(rows, 0, places, news, reduction).reshape(x.shape)


@operator("ScatterElements", "Scatter")
def scatter_elements(x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none") -> Tensor:
    """Y = X with Y[indices[i, j], j] = updates[i, j] for axis 0, and so on, replaced or combined."""
    return _written(x, axis, positive(indices, x.shape[axis]), updates.to(x.dtype), reduction)


def _written(x: Tensor, axis: int, places: Tensor, updates: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return x.scatter(axis, places, updates)
    return x.scatter_reduce(axis, places, updates, REDUCTIONS[reduction])


@operator("TensorScatter", since=24)
def tensor_scatter(
    past: Tensor, update: Tensor, write_indices: Tensor | None = None, *, axis: int = -2, mode: str = "linear"
) -> Tensor:
    """A cache with new positions along an axis, from a place of each sample on; from its start again when circular."""
    axis %= past.dim()
    places = torch.arange(update.shape[axis], device=past.device).expand(len(past), -1)
    if write_indices is not None:
        places = places + write_indices[:, None]
    if mode == "circular":
        places = places % past.shape[axis]
    shape = [len(past), *(update.shape[axis] if i == axis else 1 for i in range(1, past.dim()))]
    return past.scatter(axis, places.reshape(shape).expand_as(update), update)


@operator("Compress")
def compress(x: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    """The positions of an axis, or of all as one, at which a condition holds; a short condition ends early."""
    if axis is None:
        x, axis = x.reshape(-1), 0
    return x.index_select(axis, torch.nonzero(condition).reshape(-1))


@operator("Unique", since=11)
def unique(x: Tensor, *, axis: int | None = None, sorted: int = 1, outputs: int) -> tuple[Tensor, ...]:
    """The different slices along an axis, or elements; where each is first, which one each position has, how often."""
    if axis is None:
        x, axis = x.reshape(-1), 0
    _, which, counts = torch.unique(x.detach(), return_inverse=True, return_counts=True, dim=axis)
    places = torch.arange(len(which), device=x.device)
    first = torch.full_like(counts, len(which)).scatter_reduce(0, which, places, "amin")
    if not sorted:
        order = first.argsort()
        first, counts, which = first[order], counts[order], order.argsort()[which]
    return (x.index_select(axis, first), first, which, counts)[:outputs]


@operator("ReverseSequence")
def reverse_sequence(x: Tensor, lengths: Tensor, *, batch_axis: int = 1, time_axis: int = 0) -> Tensor:
    """X with the first positions of the time axis in reverse, their number given for each sample."""
    rows = x.movedim((batch_axis, time_axis), (0, 1))
    steps = torch.arange(rows.shape[1], device=x.device).unsqueeze(0)
    many = lengths.reshape(-1, 1)
    places = torch.where(steps < many, many - 1 - steps, steps)
    places = places.reshape(*places.shape, *[1] * (rows.dim() - 2)).expand_as(rows)
    return rows.gather(1, places).movedim((0, 1), (batch_axis, time_axis))
