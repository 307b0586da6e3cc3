"""Stating that two axes are the same thing.

`unify(a, b)` refines both layouts until they agree, position by position; what cannot be refined is pinned, with a
reason.

Why binding instead of solving constraints: refinement only splits a dim or merges two, so each step is local, and the
cost is a few unions per operator, whatever the width of the model.
"""

from __future__ import annotations

from onnxprune.axes import NONE, Concat, Dim, Family, Layout, Product, concat, leaves, pin, product, resolve, same
from onnxprune.records import Kept


def unify(a: Layout, b: Layout, why: Kept) -> None:
    """States that two layouts are the same axis.

    Args:
        a: one layout.
        b: the other, of the same size.
        why: the reason given to dims that must be pinned because no common refinement exists.

    Raises:
        ValueError: the sizes differ, so the statement is false.
    """
    if a.size != b.size:
        raise ValueError(f"an axis of size {a.size} cannot be the same as one of size {b.size}")
    todo = [([a], [b])]  # layouts laid end to end on either side, the first one last
    while todo:
        left, right = todo.pop()
        first, second = _first(left), _first(right)
        if first is None or second is None:
            continue
        if isinstance(first, Dim) and len(left) == 1:
            _bind(first, concat(*right[::-1]), why)
        elif isinstance(second, Dim) and len(right) == 1:
            _bind(second, concat(*left[::-1]), why)
        elif len(left) == len(right) == 1:
            assert isinstance(first, Product)
            assert isinstance(second, Product)
            todo += [([x], [y]) for x, y in reversed(_factored(first, second, why))]
        else:
            wide, narrow = (left, right) if first.size > second.size else (right, left)
            count, size = _fitting(narrow, wide[-1].size) if isinstance(wide[-1], Dim) else (1, narrow[-1].size)
            few, many = [wide.pop()], narrow[-count:]
            del narrow[-count:]
            if few[0].size > size:
                few[0], rest = split(few[0], size, why)
                wide.append(rest)
            todo.append((left, right))  # resolved anew when its turn comes, since what is done now may refine it
            todo.append((few, many) if wide is left else (many, few))


def _fitting(pieces: list[Layout], size: int) -> tuple[int, int]:
    """How many of the first layouts of a list that begins at its end have this many positions at most, and how many."""
    count, total = 0, 0
    for piece in reversed(pieces):
        if total + piece.size > size:
            break
        count, total = count + 1, total + piece.size
    return count, total


def _first(pieces: list[Layout]) -> Layout | None:
    """The first layout of a list that begins at its end, in normal form; None where there is none."""
    while pieces:
        layout = resolve(pieces[-1])
        if not isinstance(layout, Concat):
            pieces[-1] = layout
            return layout
        pieces[-1:] = layout.pieces[::-1]
    return None


def _bind(variable: Dim, layout: Layout, why: Kept) -> None:
    """Gives an unbound dim its meaning; its reason and its family pass on to what it stands for now."""
    if layout is variable:
        return
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


def _factored(a: Product, b: Product, why: Kept) -> list[tuple[Layout, Layout]]:
    """What it comes down to that two products are the same: pairs of layouts, in order.

    Both are walked from the left, the wider first factor factored until both begin with the same size.
    """
    if same(a, b):
        return []
    ones_a, ones_b = ([f for f in x.factors if f.size == 1] for x in (a, b))
    if ones_a or ones_b:
        rest = Product(a.factors[len(ones_a) :]), Product(b.factors[len(ones_b) :])
        if len(ones_a) == len(ones_b) == 1:
            return [(ones_a[0], ones_b[0]), rest]
        for one in {*ones_a, *ones_b}:
            pin(one, why)
        return [rest]
    first_a, first_b = a.factors[0], b.factors[0]
    wide, narrow = (first_a, first_b) if first_a.size >= first_b.size else (first_b, first_a)
    if wide.size % narrow.size or not isinstance(wide, Dim):
        pin(a, why)
        pin(b, why)
        return []
    if wide.size != narrow.size:
        _bind(wide, Product((Dim(narrow.size), Dim(wide.size // narrow.size))), why)
        return [(a, b)]
    return [(first_a, first_b), (Product(a.factors[1:]), Product(b.factors[1:]))]


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
