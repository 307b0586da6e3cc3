"""What a rule is, and the registry of rules.

A rule is a pure function named like its operator. It reads a `Node`, the shapes of its tensors and the integers that
steer it, and yields facts:

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

An axis that no fact of the rule mentions is pinned, and so is every axis of an operator without a rule: ignorance costs
compression, never correctness.

Why `counts` instead of a resize function beside each rule: "this number is the size of that axis" is a fact about the
operator like any other, one generic step of surgery then brings every number up to date, and nothing can be said twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from onnxprune.axes import Concat, Dim, Product
from onnxprune.axes import Layout as Layout
from onnxprune.axes import cells as cells  # new layouts, for rules that need them
from onnxprune.axes import dim as dim


def product(*factors: Layout) -> Layout:
    """Row-major product of axes, as a rule states it."""
    return Product(factors)


def concat(*pieces: Layout) -> Layout:
    """Axes laid end to end, as a rule states it."""
    return Concat(pieces)


@dataclass(frozen=True, slots=True)
class Entry:
    """One number that steers a node, an integer but for the scales of Resize.

    Attributes:
        value: what it is in the observed run; None when not known.
        fixed: whether it is the same for all inputs of the model.
        attr: the attribute that holds it, or would in this version of the operator; None for an input.
        input: the index of the input that holds it, or would; None for an attribute.
        index: its place in the attribute or input.
        stated: whether the model says the number; False where it is implied, such as the equal parts of a Split.
    """

    value: float | None
    fixed: bool
    attr: str | None
    input: int | None
    index: int
    stated: bool = True


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as a node sees it.

    Attributes:
        name: its name.
        axes: the layout of each axis.
        constant: whether it is a constant or computed from constants alone.
        picked: whether it is what data pick of a constant, such as the weights of experts.
    """

    name: str
    axes: tuple[Layout, ...]
    constant: bool
    picked: bool = False

    @property
    def weight(self) -> bool:
        """Whether what is multiplied with it meets numbers of the model rather than of the data."""
        return self.constant or self.picked

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes in the observed run."""
        return tuple(axis.size for axis in self.axes)

    def axis(self, index: int) -> Layout:
        """The layout of an axis, counted from the end when negative."""
        return self.axes[index]


class Refusal(Exception):
    """Raised by a node's accessor when a rule cannot be applied; the reason then pins every axis of the node."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node as its rule sees it.

    Attributes:
        op: the operator.
        inputs: a tensor for each input, None where an optional one is left out.
        outputs: the same for outputs.
        attrs: plain attributes.
        numbers: for each input that holds numbers known before any data are seen, those numbers.
        zeros: the inputs that the model computes and that are zero everywhere.
        read: the inputs whose numbers the rule asked for; it answers for them, values elsewhere pin what they count.
    """

    op: str
    version: int
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor | None, ...]
    attrs: dict[str, Any]
    numbers: Mapping[int, tuple[Entry, ...]] = field(default_factory=dict)
    zeros: frozenset[int] = frozenset()
    read: set[int] = field(default_factory=set)

    @property
    def output(self) -> Tensor:
        """The first output."""
        return self.tensor(self.outputs, 0)

    def input(self, index: int = 0) -> Tensor:
        """An input that must be there."""
        return self.tensor(self.inputs, index)

    def optional(self, index: int) -> Tensor | None:
        """An input that may be left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def tensor(self, tensors: tuple[Tensor | None, ...], index: int) -> Tensor:
        """One of the node's tensors.

        Raises:
            Refusal: it is left out, or its shape is not known.
        """
        found = tensors[index] if index < len(tensors) else None
        if found is None:
            raise Refusal(f"{self.op} lacks a tensor of known shape")
        return found

    def attr(self, name: str, default: Any) -> Any:
        """A plain attribute."""
        return self.attrs.get(name, default)

    def entries(self, name: str | None, index: int | None = None) -> tuple[Entry, ...]:
        """The integers of an attribute or of an input, whichever this version of the operator has; () if neither."""
        if name is not None and name in self.attrs:
            values = self.attrs[name]
            if isinstance(values, int):
                values = [values]
            return tuple(Entry(value, True, name, None, i) for i, value in enumerate(values))
        if index is None or self.optional(index) is None:
            return ()
        self.read.add(index)
        if index not in self.numbers:
            raise Refusal(f"{self.op} reads {self.inputs[index].name}, which is computed from data")  # type: ignore[union-attr]
        return self.numbers[index]

    def ints(self, name: str | None, index: int | None = None) -> list[int] | None:
        """The values of such integers; None where the node has neither attribute nor input.

        Raises:
            Refusal: they are not the same for all inputs of the model.
        """
        entries = self.entries(name, index)
        if not entries and (index is None or self.optional(index) is None) and (name is None or name not in self.attrs):
            return None
        if not all(entry.fixed for entry in entries):
            raise Refusal(f"{self.op} is steered by numbers that depend on the input")
        return [int(entry.value) for entry in entries if entry.value is not None]


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
Rule = Callable[[Node], Iterator[Fact]]


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


@dataclass(frozen=True, slots=True)
class Registered:
    """A rule, whether its operator is linear in its data, and the first opset it holds for."""

    rule: Rule
    linear: bool
    since: int


_REGISTRY: dict[tuple[str, str], list[Registered]] = {}

MICROSOFT = "com.microsoft"


def rule(*ops: str, since: int = 1, linear: bool = False, domain: str = "") -> Callable[[Rule], Rule]:
    """Registers a function as the rule of operators, from an opset up to the next registered one.

    Args:
        ops: operators that share the rule.
        since: the first opset it holds for.
        linear: whether the operator is linear in each of its data inputs, which is where a nonlinearity is sought.
        domain: the operator set.

    Raises:
        ValueError: the operator has a rule for this opset already.
    """

    def register(function: Rule) -> Rule:
        for op in ops:
            entries = _REGISTRY.setdefault((domain, op), [])
            if any(entry.since == since for entry in entries):
                raise ValueError(f"{op} has two rules for opset {since}")
            entries.append(Registered(function, linear, since))
            entries.sort(key=lambda entry: -entry.since)
        return function

    return register


def carries(*ops: str, linear: bool = False, domain: str = "") -> None:
    """Registers operators that work on each element of their first input by itself."""

    @rule(*ops, linear=linear, domain=domain)
    def carry(node: Node) -> Iterator[Fact]:
        for output in filter(None, node.outputs):
            yield from paired(node.input(), output)


def find_rule(domain: str, op: str, version: int) -> Registered | None:
    """The rule of an operator at an opset: the newest that is not newer than it."""
    domain = "" if domain in ("", "ai.onnx") else domain
    return next((entry for entry in _REGISTRY.get((domain, op), ()) if entry.since <= version), None)


def supported_operators() -> dict[str, list[str]]:
    """The operators with a rule, by domain."""
    table: dict[str, list[str]] = {}
    for domain, op in sorted(_REGISTRY):
        table.setdefault(domain, []).append(op)
    return table


def mentioned(layout: Layout) -> Iterator[Dim]:
    """The dims that a rule named in an expression, whatever they are bound to."""
    if isinstance(layout, Dim):
        yield layout
    else:
        for part in layout.factors if isinstance(layout, Product) else layout.pieces:
            yield from mentioned(part)
