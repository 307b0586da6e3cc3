"""Dims, layouts and their unification: the type system of tensor axes. Knows no ONNX.

Every axis of every tensor has a layout, a tree of

- `Dim`, a variable with a size (768 neurons),
- `Product`, row-major like a reshape (12 heads x 64 rows each),
- `Concat`, pieces laid end to end (queries, keys, values).

`unify(a, b)` states that two layouts are the same thing, position by position. It refines both until they agree;
what cannot be refined is pinned, with a reason. The keep-mask of any axis then follows from the masks of its leaves.

Two laws carry everything, and tests/test_axes.py enumerates positions to check them:

- a product distributes over a concatenation on its left, `(a + b) x c = a x c + b x c`, but on its right only where
  the left factor has one position;
- unification is sound: whichever masks the remaining leaves are given, both sides get the same mask.

Why binding instead of solving constraints: refinement only splits a dim or merges two, so each step is local, and the
cost is a few unions per operator, whatever the width of the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
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
    flat: list[Layout] = []
    for factor in map(resolve, factors):
        flat.extend(factor.factors if isinstance(factor, Product) else (factor,))
    if any(factor.size == 0 for factor in flat):
        return NONE
    ones = {id(factor): factor for factor in flat if factor.size == 1}
    flat = [*ones.values(), *(factor for factor in flat if factor.size != 1)]
    for i, factor in enumerate(flat):
        if isinstance(factor, Concat):
            return concat(*(product(*flat[:i], piece, *flat[i + 1 :]) for piece in factor.pieces))
        if factor.size != 1:
            break
    if not flat:
        return ONE
    return flat[0] if len(flat) == 1 else Product(tuple(flat))


def concat(*pieces: Layout) -> Layout:
    """The concatenation in normal form: flat, without empty pieces."""
    flat: list[Layout] = []
    for piece in map(resolve, pieces):
        flat.extend(piece.pieces if isinstance(piece, Concat) else (piece,))
    if not flat:
        return NONE
    return flat[0] if len(flat) == 1 else Concat(tuple(flat))


def resolve(layout: Layout) -> Layout:
    """The layout as far as it is known by now: bound dims replaced, in normal form."""
    if isinstance(layout, Dim):
        chain = []  # a loop, since deep networks bind each dim to the one before it
        while isinstance(layout, Dim) and layout.bound is not None:
            chain.append(layout)
            layout = layout.bound
        if chain and not isinstance(layout, Dim):
            layout = resolve(layout)
        for variable in chain:
            variable.bound = layout
        return layout
    if isinstance(layout, Product) and all(type(f) is Dim and f.bound is None and f.size > 1 for f in layout.factors):
        return layout if len(layout.factors) != 1 else layout.factors[0]  # in normal form already, as most are
    return product(*layout.factors) if isinstance(layout, Product) else concat(*layout.pieces)


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


def unify(a: Layout, b: Layout, why: Kept) -> None:
    """States that two layouts are the same axis.

    Args:
        a: one layout.
        b: the other, of the same size.
        why: the reason given to dims that must be pinned because no common refinement exists.

    Raises:
        ValueError: the sizes differ, so the statement is false.
    """
    a, b = resolve(a), resolve(b)
    if a.size != b.size:
        raise ValueError(f"an axis of size {a.size} cannot be the same as one of size {b.size}")
    if same(a, b):
        return
    if isinstance(a, Dim):
        _bind(a, b, why)
    elif isinstance(b, Dim):
        _bind(b, a, why)
    elif isinstance(a, Concat) or isinstance(b, Concat):
        # Each split may refine the other side too, so the remainders are resolved anew by the calls below.
        border = min(x.pieces[0].size for x in (a, b) if isinstance(x, Concat))
        (left_a, right_a), (left_b, right_b) = split(a, border, why), split(b, border, why)
        unify(left_a, left_b, why)
        unify(right_a, right_b, why)
    else:
        _unify_products(a, b, why)


def _bind(variable: Dim, layout: Layout, why: Kept) -> None:
    """Gives an unbound dim its meaning; its reason and its family pass on to what it stands for now."""
    inside = list(leaves(layout))
    if variable in inside:  # d = c x d with a one-position c: c is always there
        for other in inside:
            if other is not variable:
                pin(other, variable.kept or why)
        return
    if isinstance(layout, Dim):
        layout.family.join(variable.family)
    variable.bound = layout
    if variable.kept:
        pin(layout, variable.kept)


def _unify_products(a: Product, b: Product, why: Kept) -> None:
    """Walks two products from the left, factoring the wider first factor until both begin with the same size."""
    ones_a, ones_b = ([f for f in x.factors if f.size == 1] for x in (a, b))
    if ones_a or ones_b:
        if len(ones_a) == len(ones_b) == 1:
            unify(ones_a[0], ones_b[0], why)
        else:
            for one in {*ones_a, *ones_b}:
                pin(one, why)
        unify(product(*a.factors[len(ones_a) :]), product(*b.factors[len(ones_b) :]), why)
        return
    first_a, first_b = a.factors[0], b.factors[0]
    wide, narrow = (first_a, first_b) if first_a.size >= first_b.size else (first_b, first_a)
    if wide.size % narrow.size or not isinstance(wide, Dim):
        pin(a, why)
        pin(b, why)
    elif wide.size != narrow.size:
        _bind(wide, Product((Dim(narrow.size), Dim(wide.size // narrow.size))), why)
        unify(a, b, why)
    else:
        unify(first_a, first_b, why)
        unify(product(*a.factors[1:]), product(*b.factors[1:]), why)


def split(layout: Layout, at: int, why: Kept, family: Family | None = None) -> tuple[Layout, Layout]:
    """Cuts an axis in two, refining the dim that the cut goes through.

    Args:
        layout: the axis.
        at: how many positions come before the cut.
        why: the reason given to a factor that must be pinned because the cut goes through the middle of it.
        family: the family of the pieces of a dim; a new one for each when not given.
    """
    layout = resolve(layout)
    if at in (0, layout.size):
        return (NONE, layout) if at == 0 else (layout, NONE)
    if isinstance(layout, Dim):
        halves = Dim(at, family), Dim(layout.size - at, family)
        _bind(layout, Concat(halves), why)
        return resolve(halves[0]), resolve(halves[1])
    if isinstance(layout, Concat):
        for i, piece in enumerate(layout.pieces):
            if at < piece.size:
                left, right = split(piece, at, why, family)
                return concat(*layout.pieces[:i], left), concat(right, *layout.pieces[i + 1 :])
            at -= piece.size
    assert isinstance(layout, Product)
    return _split_product(layout, at, why)


def _split_product(layout: Product, at: int, why: Kept) -> tuple[Layout, Layout]:
    """Cuts a product between two rows, or through one row, which is then taken out of the first factor."""
    first, rest = layout.factors[0], product(*layout.factors[1:])
    row, rest_at = divmod(at, rest.size)
    if not rest_at:
        above, below = split(first, row, why)
        for part in (above, below):
            if part.size == 1 < rest.size:  # a whole block is no unit beside the positions inside it
                pin(part, why)
        return product(above, rest), product(below, rest)
    pin(rest if rest.size <= first.size else first, why)  # the wider factor holds the units
    family = first.family if isinstance(first, Dim) else None
    above, below = split(first, row, why, family)
    cut, below = split(below, 1, why, family)
    left, right = split(rest, rest_at, why)
    return concat(product(above, rest), product(cut, left)), concat(product(cut, right), product(below, rest))


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
