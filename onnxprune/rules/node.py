"""A node as its rule sees it: its tensors with their axes, its attributes, and the numbers that steer it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from onnxprune.axes import Layout


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


class Refusal(Exception):
    """Raised by a node's accessor when a rule cannot be applied; the reason then pins every axis of the node."""


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
        """The layout of an axis, counted from the end when negative.

        Raises:
            Refusal: there is none, so the node is not as its rule knows it.
        """
        if not -self.rank <= index < self.rank:
            raise Refusal(f"{self.name} has no axis {index}, which a rule speaks of")
        return self.axes[index]


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
