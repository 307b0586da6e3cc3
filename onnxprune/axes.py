"""Dims and layouts: the type system of tensor axes. Knows no ONNX.

Every axis of every tensor has a layout, a tree of

- `Dim`, a variable with a size (768 neurons),
- `Product`, row-major like a reshape (12 heads x 64 rows each),
- `Concat`, pieces laid end to end (queries, keys, values).

What is stated of two axes (`unification.unify`) binds dims to layouts. The keep-mask of any axis then follows from the
masks of its leaves, the dims that are not bound.

Two laws carry everything, and tests/test_axes.py enumerates positions to check them:

- a product distributes over a concatenation on its left, `(a + b) x c = a x c + b x c`, but on its right only where
  the left factor has one position;
- unification is sound: whichever masks the remaining leaves are given, both sides get the same mask.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxprune.records import Kept


class Family:
    """What the pieces of a dim that was cut at an odd place still have in common; joined when dims are merged."""

    __slots__ = ("_parent",)

    def __init__(self) -> None:
        self._parent: Family | None = None

    def root(self) -> Family:
        """The representative of all families joined with this one."""
        family = self
        while family._parent is not None:
            family = family._parent
        return family

    def join(self, other: Family) -> None:
        """Makes two families one."""
        mine, yours = self.root(), other.root()
        if mine is not yours:
            mine._parent = yours


class Dim:
    """A variable of the type system: `size` positions that may each stay or go.

    A dim of one position exists only as a piece of something wider, and can go like any other unit. An axis that is
    born with size 1 has the layout `ONE` and no dim.
    """

    __slots__ = ("bound", "family", "kept", "size")

    def __init__(self, size: int, family: Family | None = None) -> None:
        self.size = size
        self.bound: Layout | None = None
        self.kept: Kept | None = None
        self.family = family or Family()

    def __repr__(self) -> str:
        return f"d{id(self) // 16 % 9973}:{self.size}{'!' if self.kept else ''}"


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """Row-major product of layouts; the first factor varies slowest."""

    factors: tuple[Layout, ...]
    size: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", math.prod(factor.size for factor in self.factors))

    def __repr__(self) -> str:
        return "(" + " x ".join(map(repr, self.factors)) + ")"


@dataclass(frozen=True, slots=True, eq=False)
class Concat:
    """Layouts laid end to end."""

    pieces: tuple[Layout, ...]
    size: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", sum(piece.size for piece in self.pieces))

    def __repr__(self) -> str:
        return "[" + " + ".join(map(repr, self.pieces)) + "]"


Layout = Dim | Product | Concat

ONE = Product(())
"""An axis with one position, which can never go."""

NONE = Concat(())
"""An axis without positions."""


def dim(size: int) -> Layout:
    """A fresh layout of `size` positions: a new dim, or a constant for sizes 0 and 1."""
    return Dim(size) if size > 1 else (ONE if size == 1 else NONE)


def cells(size: int) -> tuple[Layout, ...]:
    """`size` fresh dims of one position each, one family; for permutations that no product can express."""
    family = Family()
    return tuple(Dim(1, family) for _ in range(size))


def product(*factors: Layout) -> Layout:
    """The row-major product in normal form: flat, without `ONE`, concatenations moved out where the law allows it.

    Dims of one position come first, each once: where they stand makes no difference.
    """
    return _product([resolve(factor) for factor in factors])


def _product(factors: Iterable[Layout]) -> Layout:
    """The same of factors in normal form."""
    flat: list[Layout] = []
    for factor in factors:
        flat.extend(factor.factors if isinstance(factor, Product) else (factor,))
    if any(factor.size == 0 for factor in flat):
        return NONE
    ones = {id(factor): factor for factor in flat if factor.size == 1}
    flat = [*ones.values(), *(factor for factor in flat if factor.size != 1)]
    for i, factor in enumerate(flat):
        if isinstance(factor, Concat):
            return _concat([_product([*flat[:i], piece, *flat[i + 1 :]]) for piece in factor.pieces])
        if factor.size != 1:
            break
    if not flat:
        return ONE
    return flat[0] if len(flat) == 1 else Product(tuple(flat))


def concat(*pieces: Layout) -> Layout:
    """The concatenation in normal form: flat, without empty pieces."""
    return _concat([resolve(piece) for piece in pieces])


def _concat(pieces: Iterable[Layout]) -> Layout:
    """The same of pieces in normal form."""
    flat: list[Layout] = []
    for piece in pieces:
        flat.extend(piece.pieces if isinstance(piece, Concat) else (piece,))
    if not flat:
        return NONE
    return flat[0] if len(flat) == 1 else Concat(tuple(flat))


def resolve(layout: Layout) -> Layout:
    """The layout as far as it is known by now: bound dims replaced, in normal form.

    Loops, since deep networks bind each dim to the one before it, and axes that are cut again and again hold
    concatenations inside of concatenations. A normal form is no deeper than the logarithm of its size.
    """
    chain = []
    while type(layout) is Dim and layout.bound is not None:
        chain.append(layout)
        layout = layout.bound
    if not _is_settled(layout):
        layout = _normal(layout)
    for variable in chain:
        variable.bound = layout
    return layout


def _normal(layout: Layout) -> Layout:
    """The normal form of a product or a concatenation, without recursion."""
    known: dict[Layout, Layout] = {}
    stack = [layout]
    while stack:
        top = stack[-1]
        parts = _parts(top)
        waiting = [part for part in parts if part not in known and not _is_settled(part)]
        if waiting:
            stack.extend(waiting)
            continue
        stack.pop()
        now = [known.get(part, part) for part in parts]
        if isinstance(top, Dim):
            top.bound = now[0]
        known[top] = now[0] if isinstance(top, Dim) else (_product if isinstance(top, Product) else _concat)(now)
    return known[layout]


def _parts(layout: Layout) -> tuple[Layout, ...]:
    """What a layout is known by: what a dim is bound to, factors, pieces."""
    if isinstance(layout, Dim):
        return (layout.bound,) if layout.bound is not None else ()
    return layout.factors if isinstance(layout, Product) else layout.pieces


def _is_settled(layout: Layout) -> bool:
    """Whether a layout is plainly in normal form: a free dim, or free dims of several positions multiplied."""
    if type(layout) is Dim:
        return layout.bound is None
    if type(layout) is Product and len(layout.factors) != 1:
        return all(type(f) is Dim and f.bound is None and f.size > 1 for f in layout.factors)
    return False


def pieces(layout: Layout) -> tuple[Layout, ...]:
    """What is laid end to end on an axis; the axis itself where that is one thing."""
    layout = resolve(layout)
    return layout.pieces if isinstance(layout, Concat) else (layout,)


def leaves(layout: Layout) -> Iterator[Dim]:
    """The unbound dims of a layout in order of position; a dim that occurs twice comes twice."""
    layout = resolve(layout)
    if isinstance(layout, Dim):
        yield layout
    else:
        for part in layout.factors if isinstance(layout, Product) else layout.pieces:
            yield from leaves(part)


def same(a: Layout, b: Layout) -> bool:
    """Whether two layouts are known to be equal."""
    a, b = resolve(a), resolve(b)
    if isinstance(a, Product) and isinstance(b, Product):
        return len(a.factors) == len(b.factors) and all(map(same, a.factors, b.factors))
    if isinstance(a, Concat) and isinstance(b, Concat):
        return len(a.pieces) == len(b.pieces) and all(map(same, a.pieces, b.pieces))
    return a is b


def pin(layout: Layout, why: Kept) -> bool:
    """Forbids every leaf of the layout to lose a position, and says whether one still could.

    The first reason given to a leaf stays.
    """
    free = [leaf for leaf in leaves(layout) if not leaf.kept]
    for leaf in free:
        leaf.kept = why
        if leaf.size == 1:  # one position that always stays says nothing
            leaf.bound = ONE
    return bool(free)


def runs(layout: Layout) -> Iterator[tuple[Layout, Layout]]:
    """Neighbouring factors of a product, and the product of all others; nothing for other layouts."""
    layout = resolve(layout)
    if not isinstance(layout, Product):
        return
    for i in range(len(layout.factors)):
        for j in range(i + 1, len(layout.factors) + 1):
            yield product(*layout.factors[i:j]), product(*layout.factors[:i], *layout.factors[j:])


def keep_mask(layout: Layout, masks: Mapping[Dim, np.ndarray]) -> np.ndarray:
    """Which positions of an axis stay.

    Args:
        layout: an axis of n positions.
        masks: (size,) bool for every dim that loses positions; all other dims stay whole.

    Returns:
        (n,) bool.
    """
    layout = resolve(layout)
    if isinstance(layout, Dim):
        return masks[layout] if layout in masks else np.ones(layout.size, bool)
    if isinstance(layout, Concat):
        return np.concatenate([np.zeros(0, bool), *(keep_mask(piece, masks) for piece in layout.pieces)])
    mask = np.ones(1, bool)
    for factor in layout.factors:
        mask = np.logical_and.outer(mask, keep_mask(factor, masks)).ravel()
    return mask


def factors_of(layout: Layout) -> list[Layout]:
    """What a layout is the row-major product of; itself where that is one thing."""
    layout = resolve(layout)
    return list(layout.factors) if isinstance(layout, Product) else [layout]


def found_in(part: Layout, whole: Layout) -> np.ndarray | None:
    """Where the positions of a product are in a product with further factors, which repeat them.

    Args:
        part: heads x rows, for example, n positions.
        whole: heads x queries x rows, m positions.

    Returns:
        (n, m / n) int, the positions of `whole` that belong to each one of `part`; None where `part` has dims that
        `whole` lacks, or either is a concatenation.
    """
    dims = [[factor for factor in factors_of(layout) if isinstance(factor, Dim)] for layout in (part, whole)]
    inside, around = dims
    known = math.prod(d.size for d in inside) == part.size and math.prod(d.size for d in around) == whole.size
    if not known or not set(inside) <= set(around) or any(len(set(x)) < len(x) for x in dims):
        return None
    grid = np.arange(whole.size).reshape([factor.size for factor in around])
    order = [around.index(factor) for factor in inside]
    return grid.transpose([*order, *(i for i in range(len(around)) if i not in order)]).reshape(part.size, -1)
