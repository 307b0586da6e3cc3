"""Operators that read or write positions which numbers name: those axes stay whole, all others pass."""

from __future__ import annotations

import math
from collections.abc import Iterator

from onnxprune.axes import Layout, cells, dim
from onnxprune.rules.base import rule
from onnxprune.rules.facts import (
    Fact,
    concat,
    counts,
    paired,
    pinned,
    produced,
    product,
    same,
)
from onnxprune.rules.node import Node, Tensor


@rule("Gather", linear=True)
def gather(node: Node) -> Iterator[Fact]:
    """Y[a, i, s] = X[a, indices[i], s], along one axis."""
    yield from _taken(node, node.attr("axis", 0) % node.input(0).rank, node.input(1).axes)


@rule("GatherND", linear=True)
def gather_nd(node: Node) -> Iterator[Fact]:
    """Y[b, i, s] = X[b, indices[b, i], s]: batch axes b and trailing axes s pass; of one indexed axis it is Gather."""
    x, indices, y = node.input(0), node.input(1), node.output
    batch, depth = node.attr("batch_dims", 0), indices.shape[-1]
    for i in range(batch):
        yield same(indices.axis(i), y.axis(i))
    if depth == 1:
        yield from _taken(node, batch, indices.axes[batch:-1])
        return
    yield from paired(x, y, skip=tuple(range(batch, x.rank)))
    for i in range(batch, indices.rank - 1):
        yield same(indices.axis(i), y.axis(i))
    for i in range(batch, batch + depth):
        yield pinned(x.axis(i), "GatherND picks positions on this axis")
    for j, axis in enumerate(x.axes[batch + depth :], indices.rank - 1):
        yield produced(axis, y.axis(j)) if x.constant else same(axis, y.axis(j))


def _taken(node: Node, axis: int, places: tuple[Layout, ...]) -> Iterator[Fact]:
    """Indices along one axis of X, its `places` in Y: a table that data index into writes the axes beside it."""
    x, indices, y = node.input(0), node.input(1), node.output
    for i in (i for i in range(x.rank) if i != axis):
        beside = y.axis(i if i < axis else i + len(places) - 1)
        yield produced(x.axis(i), beside) if x.constant else same(x.axis(i), beside)
    for i, place in enumerate(places, axis):
        yield same(place, y.axis(i))
    entries = node.entries(None, 1) if 1 in node.numbers else ()
    n, count = x.shape[axis], math.prod(place.size for place in places)
    picks = [int(entry.value or 0) % n for entry in entries]
    known = indices.constant and picks and all(entry.fixed for entry in entries)
    if not known or picks != picks[:count] * (len(picks) // count):  # other ones for each sample of a batch
        yield pinned(x.axis(axis), f"{node.op} picks positions that data decide")
        return
    if len(places) == 0:
        yield same(x.axis(axis), concat(dim(picks[0]), dim(1), dim(n - picks[0] - 1)))
    elif len(places) == 1:
        single = cells(n)
        yield same(x.axis(axis), concat(*single))
        yield same(y.axis(axis), concat(*(single[pick] for pick in picks[:count])))
    else:
        return
    for entry, pick in zip(entries, picks, strict=True):
        yield counts(entry, x.axis(axis), pick)


@rule("GatherElements", linear=True)
def gather_elements(node: Node) -> Iterator[Fact]:
    """Y[i, j] = X[indices[i, j], j] for axis 0: the other axes of X begin with those of the indices."""
    x, indices = node.input(0), node.input(1)
    axis = node.attr("axis", 0) % x.rank
    yield from paired(indices, node.output)
    yield from _beside(x, indices, axis)
    yield pinned(x.axis(axis), "GatherElements picks positions on this axis")


@rule("Scatter", "ScatterElements", linear=True)
def scatter_elements(node: Node) -> Iterator[Fact]:
    """Y = X with Y[indices[i, j], j] = updates[i, j] for axis 0: axes beside the written one pass."""
    x, indices, updates, y = node.input(0), node.input(1), node.input(2), node.output
    axis = node.attr("axis", 0) % x.rank
    yield from paired(x, y)
    yield from paired(indices, updates)
    yield from _beside(x, indices, axis)
    for tensor in (x, indices):
        yield pinned(tensor.axis(axis), f"{node.op} writes positions of this axis")


def _beside(x: Tensor, indices: Tensor, axis: int) -> Iterator[Fact]:
    for i in range(x.rank):
        if i != axis:
            yield same(x.axis(i), concat(indices.axis(i), dim(x.shape[i] - indices.shape[i])))


@rule("ScatterND", linear=True)
def scatter_nd(node: Node) -> Iterator[Fact]:
    """Y = X with Y[indices[i], s] = updates[i, s]: trailing axes s pass, written axes and the list of writes stay."""
    x, indices, updates, y = node.input(0), node.input(1), node.input(2), node.output
    depth = indices.shape[-1]
    yield from paired(x, y)
    for i in range(depth):
        yield pinned(x.axis(i), "ScatterND writes positions of this axis")
    for i in range(depth, x.rank):
        yield same(updates.axis(i - x.rank), y.axis(i))


@rule("TopK")
def top_k(node: Node) -> Iterator[Fact]:
    """The largest values along one axis and where they are; other axes pass."""
    x = node.input(0)
    axis = node.attr("axis", -1) % x.rank
    for y in filter(None, node.outputs):
        yield from paired(x, y, skip=(axis,))
    yield pinned(x.axis(axis), "TopK gives positions on this axis")


@rule("OneHot")
def one_hot(node: Node) -> Iterator[Fact]:
    """Y has a further axis, on which an index names a position; the axes of the indices pass."""
    indices, y = node.input(0), node.output
    axis = node.attr("axis", -1) % y.rank
    for i, old in enumerate(indices.axes):
        yield same(old, y.axis(i + (i >= axis)))
    yield pinned(y.axis(axis), "OneHot names positions on this axis")


@rule("Compress", linear=True)
def compress(node: Node) -> Iterator[Fact]:
    """Positions of one axis that a condition picks; other axes pass, without an axis everything is flattened."""
    x = node.input(0)
    if "axis" in node.attrs:
        axis = node.attr("axis", 0) % x.rank
        yield from paired(x, node.output, skip=(axis,))
        yield pinned(x.axis(axis), "Compress picks positions on this axis")


@rule("ReverseSequence", linear=True)
def reverse_sequence(node: Node) -> Iterator[Fact]:
    """Y = X with the first positions of the time axis reversed, their number given for each sample."""
    x = node.input(0)
    yield from paired(x, node.output)
    yield same(node.input(1).axis(0), x.axis(node.attr("batch_axis", 1)))
    yield pinned(x.axis(node.attr("time_axis", 0)), "ReverseSequence turns this axis round")


@rule("Trilu", linear=True)
def trilu(node: Node) -> Iterator[Fact]:
    """A triangle of the last two axes, which stay whole."""
    x = node.input(0)
    yield from paired(x, node.output)
    for axis in x.axes[-2:]:
        yield pinned(axis, "Trilu takes a triangle of this axis")


@rule("CenterCropPad", linear=True)
def center_crop_pad(node: Node) -> Iterator[Fact]:
    """Axes that are not listed pass; the others are cut or widened around their middle."""
    x = node.input(0)
    yield from paired(x, node.output, skip=tuple(node.attr("axes", range(x.rank))))


@rule("Col2Im", linear=True)
def col2im(node: Node) -> Iterator[Fact]:
    """X[N,(C,block),L] becomes Y[N,C,..], overlapping blocks added up."""
    x, y = node.input(0), node.output
    block = dim(x.shape[1] // y.shape[1])
    yield same(x.axis(0), y.axis(0))
    yield same(x.axis(1), product(y.axis(1), block))
    yield pinned(block, "positions of a block of Col2Im")


@rule("GridSample", linear=True)
def grid_sample(node: Node) -> Iterator[Fact]:
    """Y[N,C,p] = X[N,C,..] interpolated at grid[N,p]; samples, channels and the points of the grid pass."""
    x, grid, y = node.input(0), node.input(1), node.output
    yield same(x.axis(1), y.axis(1))
    yield same(x.axis(0), y.axis(0))
    for point, place in zip(grid.axes[:-1], (y.axis(0), *y.axes[2:]), strict=True):
        yield same(point, place)


@rule("AffineGrid")
def affine_grid(node: Node) -> Iterator[Fact]:
    """Y[N,..,2] = points of an image of sizes (N, C, ..) under theta[N,..]; it does not matter what C is."""
    y = node.output
    yield same(node.input(0).axis(0), y.axis(0))
    entries = node.entries(None, 1)
    for entry, axis in zip((entries[0], *entries[2:]), y.axes[:-1], strict=True):
        yield counts(entry, axis)


@rule("MaxRoiPool", "RoiAlign")
def roi(node: Node) -> Iterator[Fact]:
    """Y[R,C,..] = pooled over regions[R] of X[N,C,..]; data say of which image a region is."""
    x, regions, y = node.input(0), node.input(1), node.output
    yield same(x.axis(1), y.axis(1))
    yield same(regions.axis(0), y.axis(0))
    if (images := node.optional(2)) is not None:
        yield same(images.axis(0), y.axis(0))


@rule("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
def random(node: Node) -> Iterator[Fact]:
    """Random numbers, which are other ones in a smaller tensor: everything stays whole."""
    for axis in (axis for tensor in (*node.inputs, *node.outputs) if tensor is not None for axis in tensor.axes):
        yield pinned(axis, f"{node.op} draws a number for each position")


@rule("DFT", "Det", "EyeLike", "MaxUnpool", "NonMaxSuppression", "NonZero", "Range", "STFT", "Unique")
def whole(node: Node) -> Iterator[Fact]:
    """Positions count through all axes, or data decide how many there are: everything stays whole."""
    yield from ()
