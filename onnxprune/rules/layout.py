"""Operators that move, cut, join or repeat positions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from onnxprune.axes import Layout, cells, dim
from onnxprune.rules.base import rule
from onnxprune.rules.facts import (
    Fact,
    broadcast,
    concat,
    counts,
    paired,
    pinned,
    product,
    same,
    untouched,
)
from onnxprune.rules.node import Entry, Node, Tensor


def runs(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[range, range]]:
    """Shortest runs of axes with the same number of elements, from the left: (2, 12) to (2, 3, 4) is 2=2, 12=3x4."""
    i = j = 0
    while i < len(before) or j < len(after):
        start_i, start_j, left, right = i, j, 1, 1
        while (i == start_i and j == start_j) or left != right:
            if (left <= right and i < len(before)) or j == len(after):
                left *= before[i]
                i += 1
            else:
                right *= after[j]
                j += 1
        yield range(start_i, i), range(start_j, j)


@rule("Reshape", linear=True)
def reshape(node: Node) -> Iterator[Fact]:
    """Runs of axes with the same number of elements are the same product; a target of 0 copies, -1 adjusts."""
    x, y = node.input(0), node.output
    if math.prod(x.shape) == 0:
        yield from ()
        return
    for old, new in runs(x.shape, y.shape):
        yield same(product(*(x.axis(i) for i in old)), product(*(y.axis(j) for j in new)))
    for j, entry in enumerate(node.entries("shape", 1)):
        if entry.value == 0 and not node.attr("allowzero", 0):
            yield same(x.axis(j), y.axis(j))
        elif entry.value != -1:
            yield counts(entry, y.axis(j))


@rule("Flatten", linear=True)
def flatten(node: Node) -> Iterator[Fact]:
    """Y[(axes before), (axes from `axis` on)]."""
    x, y = node.input(0), node.output
    axis = node.attr("axis", 1)
    axis += x.rank if axis < 0 else 0
    yield same(product(*x.axes[:axis]), y.axis(0))
    yield same(product(*x.axes[axis:]), y.axis(1))


@rule("Transpose", linear=True)
def transpose(node: Node) -> Iterator[Fact]:
    """Axis i of Y is axis perm[i] of X."""
    x, y = node.input(0), node.output
    for i, j in enumerate(node.attr("perm", range(x.rank)[::-1])):
        yield same(y.axis(i), x.axis(j))


@rule("Squeeze", linear=True)
def squeeze(node: Node) -> Iterator[Fact]:
    """Y lacks axes of size 1; where the model leaves open which, they are written down, lest a width of 1 goes too."""
    x, y = node.input(0), node.output
    axes = node.ints("axes", 1)
    gone = [a % x.rank for a in axes] if axes else [i for i, size in enumerate(x.shape) if size == 1]
    yield from _aligned([i for i in range(x.rank) if i not in gone], range(y.rank), x, y)
    if not axes:
        attr, index = (None, 1) if node.version >= 13 else ("axes", None)
        for place, axis in enumerate(gone):
            yield counts(Entry(axis, True, attr, index, place, stated=False), dim(axis), when=x.axes)


@rule("Unsqueeze", linear=True)
def unsqueeze(node: Node) -> Iterator[Fact]:
    """Y has further axes of size 1."""
    x, y = node.input(0), node.output
    new = {a % y.rank for a in node.ints("axes", 1) or ()}
    yield from _aligned(range(x.rank), [i for i in range(y.rank) if i not in new], x, y)


def _aligned(old: Sequence[int], new: Sequence[int], x: Tensor, y: Tensor) -> Iterator[Fact]:
    for i, j in zip(old, new, strict=True):
        yield same(x.axis(i), y.axis(j))


@rule("Concat", linear=True)
def concatenate(node: Node) -> Iterator[Fact]:
    """Y's axis is X1's, then X2's, ...; all other axes are the same."""
    y = node.output
    axis = node.attr("axis", 1) % y.rank
    pieces = [x for x in node.inputs if x is not None]
    yield same(concat(*(x.axis(axis) for x in pieces)), y.axis(axis))
    for x in pieces:
        yield from paired(x, y, skip=(axis,))


@rule("Split", linear=True)
def split(node: Node) -> Iterator[Fact]:
    """X's axis is Y1's, then Y2's, ...; sizes are written down even where they were implied by equal parts."""
    x = node.input(0)
    axis = node.attr("axis", 0) % x.rank
    pieces = [node.tensor(node.outputs, i) for i in range(len(node.outputs))]
    yield same(x.axis(axis), concat(*(y.axis(axis) for y in pieces)))
    for y in pieces:
        yield from paired(x, y, skip=(axis,))
    attr, index = (None, 1) if node.version >= 13 else ("split", None)
    entries = node.entries("split", 1) or tuple(
        Entry(y.shape[axis], True, attr, index, i, stated=False) for i, y in enumerate(pieces)
    )
    for entry, y in zip(entries, pieces, strict=True):
        yield counts(entry, y.axis(axis))


@rule("Slice", linear=True)
def slice_(node: Node) -> Iterator[Fact]:
    """Y[i] = X[start + i * step] along each listed axis.

    With step k the axis is what comes before, then periods of k of which the first position is taken, then what is
    left. A reversed axis is taken apart into single positions. One whose bounds depend on the input stays whole.
    """
    x, y = node.input(0), node.output
    starts, ends = node.entries("starts", 1), node.entries("ends", 2)
    axes = node.ints("axes", 3) or range(len(starts))
    steps = node.ints(None, 4) or [1] * len(starts)
    sliced = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        sliced[axis % x.rank] = start, end, step
    for i in range(x.rank):
        if i not in sliced:
            yield same(x.axis(i), y.axis(i))
        elif all(bound.fixed for bound in sliced[i][:2]):
            yield from _sliced(x.axis(i), y.axis(i), *sliced[i])
        else:
            for tensor in (x, y):
                yield pinned(tensor.axis(i), "Slice has bounds that depend on the input")


def _sliced(x: Layout, y: Layout, start: Entry, end: Entry, step: int) -> Iterator[Fact]:
    n = x.size
    if step < 0:
        if y.size == n and step == -1:
            single = cells(n)
            yield same(x, concat(*single))
            yield same(y, concat(*single[::-1]))
        return
    first, last, _ = slice(int(start.value or 0), int(end.value or 0), step).indices(n)
    periods, rest = divmod(max(last - first, 0), step)
    taken, skipped = dim(periods), dim(step - 1)
    tail = concat(dim(1), dim(rest - 1)) if rest else concat()
    after = dim(n - first - periods * step - rest)
    yield same(x, concat(dim(first), product(taken, concat(dim(1), skipped)), tail, after))
    yield same(y, concat(taken, dim(1)) if rest else taken)
    yield pinned(skipped, "the step of a Slice")
    yield counts(start, x, first)
    if (end.value or 0) < 2**31 - 1:  # what exporters write for "all the rest"
        yield counts(end, x, last if last < n else None)


@rule("Expand", linear=True)
def expand(node: Node) -> Iterator[Fact]:
    """Y = X repeated along axes of size 1 and along new axes on the left."""
    x, y = node.input(0), node.output
    yield from broadcast(x, y)
    entries = node.entries(None, 1)
    for i, entry in enumerate(entries):
        axis = y.axis(i - len(entries))
        if entry.value != 1:
            yield counts(entry, axis)


@rule("Tile", linear=True)
def tile(node: Node) -> Iterator[Fact]:
    """Y's axis is X's axis, repeated as a whole."""
    x, y = node.input(0), node.output
    for i, entry in enumerate(node.entries(None, 1)):
        if x.shape[i] == y.shape[i]:
            yield same(x.axis(i), y.axis(i))
        elif x.shape[i]:
            times = dim(y.shape[i] // x.shape[i])
            yield same(product(times, x.axis(i)), y.axis(i))
            yield counts(entry, times)


@rule("Pad", linear=True)
def pad(node: Node) -> Iterator[Fact]:
    """Y's axis is a border, X's axis, another border; borders that repeat X need it whole."""
    x, y = node.input(0), node.output
    entries = node.entries("pads", 1)
    axes = [axis % x.rank for axis in node.ints(None, 3) or range(x.rank)]
    node.ints("pads", 1)  # refuses widths that depend on the input
    widths = {axis: (entries[i], entries[i + len(axes)]) for i, axis in enumerate(axes)}
    for i in range(x.rank):
        before, after = widths.get(i, (None, None))
        if before is None or after is None or (before.value == 0 and after.value == 0):
            yield same(x.axis(i), y.axis(i))
        elif node.attr("mode", "constant") == "constant" and min(before.value or 0, after.value or 0) >= 0:
            border = dim(int(before.value or 0)), dim(int(after.value or 0))
            yield same(concat(border[0], x.axis(i), border[1]), y.axis(i))
            yield counts(before, border[0])
            yield counts(after, border[1])


@rule("Resize", "Upsample")
def resize(node: Node) -> Iterator[Fact]:
    """Axes that are not resized pass; the others are interpolated as a whole."""
    x, y = node.input(0), node.output
    axes = [axis % x.rank for axis in node.attr("axes", range(x.rank))]
    scales = [entry.value for entry in node.entries("scales", 1 if node.op == "Upsample" or node.version < 11 else 2)]
    sizes = node.entries(None, 3) if node.op == "Resize" else ()
    if node.attr("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        return
    for i in range(x.rank):
        place = axes.index(i) if i in axes else None
        unscaled = place is None or (scales[place] == 1 if scales else x.shape[i] == y.shape[i])
        if unscaled:
            yield same(x.axis(i), y.axis(i))
            if sizes and place is not None:
                yield counts(sizes[place], y.axis(i))


@rule("DepthToSpace")
def depth_to_space(node: Node) -> Iterator[Fact]:
    """X[N,(b,b,c),H,W], or (c,b,b) in mode CRD, becomes Y[N,c,(H,b),(W,b)]."""
    yield from _blocks(node, deep=node.input(0), wide=node.output)


@rule("SpaceToDepth")
def space_to_depth(node: Node) -> Iterator[Fact]:
    """X[N,c,(H,b),(W,b)] becomes Y[N,(b,b,c),H,W]."""
    yield from _blocks(node, deep=node.output, wide=node.input(0))


def _blocks(node: Node, deep: Tensor, wide: Tensor) -> Iterator[Fact]:
    size = node.attr("blocksize", 1)
    rows, columns = dim(size), dim(size)
    c = wide.axis(1)
    order = (c, rows, columns) if node.attr("mode", "DCR") == "CRD" else (rows, columns, c)
    yield same(deep.axis(0), wide.axis(0))
    yield same(deep.axis(1), product(*order))
    yield same(wide.axis(2), product(deep.axis(2), rows))
    yield same(wide.axis(3), product(deep.axis(3), columns))
    for block in (rows, columns):
        yield pinned(block, f"positions of a block of {node.op}")


@rule("Shape", "Size")
def shape(node: Node) -> Iterator[Fact]:
    """Sizes follow the axes, whatever happens to them."""
    for axis in node.input(0).axes:
        yield untouched(axis)


@rule("ConstantOfShape")
def constant_of_shape(node: Node) -> Iterator[Fact]:
    """Y has the sizes that its input lists."""
    for entry, axis in zip(node.entries(None, 0), node.output.axes, strict=True):
        yield counts(entry, axis)
