"""Sizes of layouts as polynomials in their free dims: what they will be, whatever is removed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container

from onnxprune.axes import Concat, Dim, Layout, resolve

Extent = Counter[tuple[int, ...]]
"""A size as a polynomial: how often each product of free dims, named by sorted ids, is counted."""


def extent(layout: Layout, free: Container[Dim] | None = None) -> Extent:
    """The size of an axis as a polynomial in its free dims.

    Args:
        layout: the axis.
        free: the dims that count as variables; all that are not pinned when not given.
    """
    layout = resolve(layout)
    if isinstance(layout, Dim):
        variable = layout in free if free is not None else not layout.kept
        return Counter({(id(layout),): 1} if variable else {(): layout.size})
    if isinstance(layout, Concat):
        total: Extent = Counter()
        for piece in layout.pieces:
            total.update(extent(piece, free))
        return total
    size: Extent = Counter({(): 1})
    for factor in layout.factors:
        size = times(size, extent(factor, free))
    return size


def times(a: Extent, b: Extent) -> Extent:
    """The product of two sizes."""
    out: Extent = Counter()
    for p, m in a.items():
        for q, n in b.items():
            out[tuple(sorted(p + q))] += m * n
    return out
