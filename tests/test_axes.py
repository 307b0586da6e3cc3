"""The type system of axes: its laws, by enumerating positions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.axes import (
    NONE,
    ONE,
    Concat,
    Dim,
    Layout,
    Product,
    concat,
    dim,
    keep_mask,
    leaves,
    pin,
    product,
    resolve,
    same,
)
from onnxprune.extents import extent
from onnxprune.records import Kept
from onnxprune.unification import split, unify

WHY = Kept("no common parts", "node")


@st.composite
def layouts(draw: st.DrawFn, size: int, pool: list[Dim], depth: int = 3) -> Layout:
    """A random tree of `size` positions over old and new dims."""
    known = [leaf for leaf in pool if leaf.size == size]
    form = draw(st.sampled_from(["leaf", "product", "concat"])) if depth and size > 1 else "leaf"
    if form == "leaf":
        if known and draw(st.booleans()):
            return draw(st.sampled_from(known))
        leaf = dim(size)
        pool.extend([leaf] if isinstance(leaf, Dim) else [])
        return leaf
    if form == "product":
        outer = draw(st.sampled_from([d for d in range(1, size + 1) if size % d == 0]))
        parts = outer, size // outer
    else:
        cut = draw(st.integers(1, size - 1))
        parts = cut, size - cut
    build = product if form == "product" else concat
    return build(*(draw(layouts(part, pool, depth - 1)) for part in parts))


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_unification_is_sound(data: st.DataObject) -> None:
    """Whichever masks the remaining leaves are given, everything that was stated to be the same has the same mask."""
    pool: list[Dim] = []
    equations = []
    for _ in range(data.draw(st.integers(1, 4))):
        size = data.draw(st.sampled_from([4, 6, 8, 9, 10, 12, 24, 58]))
        a, b = data.draw(layouts(size, pool)), data.draw(layouts(size, pool))
        unify(a, b, WHY)
        equations.append((a, b))
    free = {leaf for pair in equations for side in pair for leaf in leaves(side) if not leaf.kept}
    generator = np.random.default_rng(data.draw(st.integers(0, 999)))
    masks = {leaf: generator.random(leaf.size) < 0.6 for leaf in free}
    for a, b in equations:
        np.testing.assert_array_equal(keep_mask(a, masks), keep_mask(b, masks))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_extent_counts_what_is_kept(data: st.DataObject) -> None:
    """The polynomial of an axis, at the kept counts of its leaves, is the number of positions that the mask keeps."""
    pool: list[Dim] = []
    axis = data.draw(layouts(data.draw(st.sampled_from([6, 12, 24])), pool))
    generator = np.random.default_rng(data.draw(st.integers(0, 999)))
    masks = {leaf: generator.random(leaf.size) < 0.6 for leaf in leaves(axis)}
    counts = {id(leaf): int(mask.sum()) for leaf, mask in masks.items()}
    total = sum(n * int(np.prod([counts[key] for key in which])) for which, n in extent(axis).items())
    assert total == keep_mask(axis, masks).sum()


def test_a_product_distributes_on_its_left_alone() -> None:
    heads, first, second = Dim(3), Dim(2), Dim(4)
    assert same(product(concat(first, second), heads), concat(product(first, heads), product(second, heads)))
    assert not same(product(heads, concat(first, second)), concat(product(heads, first), product(heads, second)))
    assert isinstance(resolve(product(heads, concat(first, second))), Product)


def test_equal_factors_are_merged() -> None:
    """768 = 12 x 64 and 768 = 12 x 64 again, as when queries and keys are split into heads."""
    width, other, heads, rows = Dim(768), Dim(768), Dim(12), Dim(64)
    unify(width, product(heads, rows), WHY)
    unify(other, product(Dim(12), Dim(64)), WHY)
    unify(width, other, WHY)
    assert same(width, other)
    assert [leaf.size for leaf in leaves(width)] == [12, 64]


def test_products_have_a_common_refinement() -> None:
    """(2 x 12) and (6 x 4) are both (2 x 3 x 4)."""
    a, b = product(Dim(2), Dim(12)), product(Dim(6), Dim(4))
    unify(a, b, WHY)
    assert [leaf.size for leaf in leaves(a)] == [leaf.size for leaf in leaves(b)] == [2, 3, 4]
    assert same(a, b) and not any(leaf.kept for leaf in leaves(a))


def test_coprime_factors_are_pinned_with_the_reason() -> None:
    a, b = product(Dim(2), Dim(3)), product(Dim(3), Dim(2))
    unify(a, b, WHY)
    assert all(leaf.kept == WHY for side in (a, b) for leaf in leaves(side))


def test_concatenations_split_at_all_borders() -> None:
    a, b = concat(Dim(8), Dim(16), Dim(8)), concat(Dim(12), Dim(20))
    unify(a, b, WHY)
    assert [leaf.size for leaf in leaves(a)] == [8, 4, 12, 8]
    assert same(a, b)


def test_a_cut_through_a_row_takes_it_out() -> None:
    """29 channels interleaved with 29 others, cut in the middle: the fifteenth pair is torn, its parts stay tied."""
    channels, two = Dim(29), Dim(2)
    left, right = split(product(channels, two), 29, WHY)
    assert left.size == right.size == 29
    assert [leaf.size for leaf in leaves(channels)] == [14, 1, 14]
    assert len({leaf.family.root() for leaf in leaves(channels)}) == 1
    middle = list(leaves(channels))[1]
    gone = {middle: np.zeros(1, bool)}
    assert (~keep_mask(left, gone)).nonzero()[0].tolist() == [28]
    assert (~keep_mask(right, gone)).nonzero()[0].tolist() == [0]


def test_pinning_keeps_the_first_reason_and_reaches_later_parts() -> None:
    width = Dim(6)
    pin(width, Kept("first", "a"))
    pin(width, Kept("second", "b"))
    unify(width, product(Dim(2), Dim(3)), WHY)
    assert {leaf.kept for leaf in leaves(width)} == {Kept("first", "a")}


def test_sizes_must_agree() -> None:
    with pytest.raises(ValueError, match="an axis of size 3 cannot be the same as one of size 4"):
        unify(Dim(3), Dim(4), WHY)


def test_normal_form() -> None:
    a, b = Dim(2), Dim(3)
    assert resolve(Product((ONE, a, Product((b, ONE))))).size == 6
    assert list(leaves(Product((ONE, a, Product((b, ONE)))))) == [a, b]
    assert resolve(Concat((NONE, a))) is a
    assert product(a, NONE) is NONE
    assert dim(1) is ONE and dim(0) is NONE


def test_a_chain_of_ten_thousand_bindings_is_no_recursion() -> None:
    chain = [dim(6) for _ in range(10_000)]
    for a, b in itertools.pairwise(chain):
        unify(a, b, WHY)
    assert same(chain[0], chain[-1])
    unify(chain[-1], product(dim(2), dim(3)), WHY)
    assert [leaf.size for leaf in leaves(chain[0])] == [2, 3]
