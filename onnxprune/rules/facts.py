"""What a rule may state about the axes of a node, each fact by a function of its own.

- `same(a, b)`: two axes are one thing;
- `contracted(data, weight)`: the same, and the operator sums over it: the weight reads the units;
- `met(a, b)`: the operator sums over an axis of two activations, as attention does over the width of queries and keys;
- `produced(weight, result)`: the same, and the operator makes it: the weight writes the units;
- `counts(entry, axis)`: an attribute or an integer input holds the size of an axis, or a position on it;
- `pinned(axis, because)`: the axis must stay whole;
- `normalized(axis, because)`: statistics run over the axis: it stays whole, unless whoever asks accepts that they then
  run over the positions that are left, which is not what a mask computes;
- `untouched(axis)`: the operator does not care, whatever happens to the axis;
- `called(axis, kind)`: what a unit of the axis is, in the reader's words;
- `omitted(index, *axes)`: an optional input of zeros is left out when one of these axes changes, since zeros are what
  the operator takes without it;
- `stated(name, value, *axes)`: an attribute that the operator derives from these axes must be written when they change;
- `cached(axis)`: the axis of a cache holds heads, which may go from inputs and outputs of the model if asked to;
- `work(*axes)`: the multiply-accumulates of the operator are the product of these sizes.

Why `counts` instead of a resize function beside each rule: "this number is the size of that axis" is a fact about the
operator like any other, one generic step of surgery then brings every number up to date, and nothing can be said twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from onnxprune.axes import Concat, Dim, Layout, Product
from onnxprune.rules.node import Entry, Tensor


def product(*factors: Layout) -> Layout:
    """Row-major product of axes, as a rule states it."""
    return Product(factors)


def concat(*pieces: Layout) -> Layout:
    """Axes laid end to end, as a rule states it."""
    return Concat(pieces)


@dataclass(frozen=True, slots=True)
class Same:
    """Two axes are one thing; `role` says whether a weight reads or writes it, `part` which part (all when None)."""

    a: Layout
    b: Layout
    role: str = ""
    part: Layout | None = None


@dataclass(frozen=True, slots=True)
class Met:
    """Two activations are summed over axes of theirs, each other's readers; the units are those in `part`."""

    a: Layout
    b: Layout
    part: Layout


@dataclass(frozen=True, slots=True)
class Pinned:
    """An axis must stay whole."""

    axis: Layout
    because: str


@dataclass(frozen=True, slots=True)
class Normalized:
    """An axis that statistics run over."""

    axis: Layout
    because: str


@dataclass(frozen=True, slots=True)
class Untouched:
    """An axis that the operator does not care about."""

    axis: Layout


@dataclass(frozen=True, slots=True)
class Counts:
    """An integer is the number of positions of an axis, of its first `upto` ones when given.

    One that the model does not state must also be written when an axis in `when` changes.
    """

    entry: Entry
    axis: Layout
    upto: int | None = None
    when: tuple[Layout, ...] = ()


@dataclass(frozen=True, slots=True)
class Stated:
    """An attribute that the operator would derive from the sizes of axes; written down when one of them changes."""

    name: str
    value: float
    when: tuple[Layout, ...]


@dataclass(frozen=True, slots=True)
class Cached:
    """An axis of a cache that holds heads."""

    axis: Layout


@dataclass(frozen=True, slots=True)
class Called:
    """What a unit of an axis is, in the reader's words."""

    axis: Layout
    kind: str


@dataclass(frozen=True, slots=True)
class Omitted:
    """An optional input is left out when one of the axes loses positions."""

    input: int
    axes: tuple[Layout, ...]


@dataclass(frozen=True, slots=True)
class Work:
    """Multiply-accumulates: the product of sizes."""

    axes: tuple[Layout, ...]


HEAD, HIDDEN, CHANNEL, NEURON = KINDS = ("head", "hidden unit", "channel", "neuron")
"""What units are, strongest first: a unit that several operators name goes by the strongest name."""

Fact = Same | Met | Pinned | Normalized | Untouched | Counts | Stated | Omitted | Cached | Called | Work


def same(a: Layout, b: Layout) -> Fact:
    """States that two axes are one thing."""
    return Same(a, b)


def contracted(data: Layout, weight: Layout, part: Layout | None = None) -> Fact:
    """States that an operator sums over an axis of its data and of its weight, which reads the units in `part`."""
    return Same(data, weight, "reads", part)


def met(a: Layout, b: Layout, part: Layout) -> Fact:
    """States that axes of two activations are summed over, of which `part` is one thing that can go from both."""
    return Met(a, b, part)


def produced(weight: Layout, result: Layout, part: Layout | None = None) -> Fact:
    """States that an axis of the weight makes an axis of the result; the weight writes the units in `part`."""
    return Same(weight, result, "writes", part)


def pinned(axis: Layout, because: str) -> Fact:
    """States that an axis must stay whole."""
    return Pinned(axis, because)


def normalized(axis: Layout, because: str) -> Fact:
    """States that statistics run over an axis, which stays whole unless inexact groups are wanted."""
    return Normalized(axis, because)


def untouched(axis: Layout) -> Fact:
    """States that an operator does not care about an axis."""
    return Untouched(axis)


def counts(entry: Entry, axis: Layout, upto: int | None = None, when: tuple[Layout, ...] = ()) -> Fact:
    """States that an integer is the size of an axis, or how many positions come before position `upto`."""
    return Counts(entry, axis, upto, when)


def stated(name: str, value: float, *when: Layout) -> Fact:
    """States that an attribute is derived from the sizes of these axes, and keeps its value when they change."""
    return Stated(name, value, when)


def cached(axis: Layout) -> Fact:
    """States that an axis of a cache holds heads."""
    return Cached(axis)


def called(axis: Layout, kind: str) -> Fact:
    """States what a unit of an axis is, in the reader's words: one of `KINDS`."""
    return Called(axis, kind)


def omitted(index: int, *axes: Layout) -> Fact:
    """States that an input of zeros can be left out, and is when one of these axes changes."""
    return Omitted(index, axes)


def work(*axes: Layout) -> Fact:
    """States the multiply-accumulates of an operator."""
    return Work(axes)


def broadcast(operand: Tensor, result: Tensor) -> Iterator[Fact]:
    """An operand of an elementwise operator: axes are equal from the right, an axis of size 1 says nothing."""
    for i in range(1, operand.rank + 1):
        if operand.shape[-i] == result.shape[-i]:
            yield same(operand.axis(-i), result.axis(-i))


def paired(a: Tensor, b: Tensor, skip: tuple[int, ...] = ()) -> Iterator[Fact]:
    """Axis by axis equality of two tensors of one rank, but for the axes in `skip`."""
    for i in range(a.rank):
        if i not in skip and i - a.rank not in skip:
            yield same(a.axis(i), b.axis(i))


def mentioned(layout: Layout) -> Iterator[Dim]:
    """The dims that a rule named in an expression, whatever they are bound to."""
    if isinstance(layout, Dim):
        yield layout
    else:
        for part in layout.factors if isinstance(layout, Product) else layout.pieces:
            yield from mentioned(part)
