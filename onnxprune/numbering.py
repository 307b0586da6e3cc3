"""Which integers of a model follow the sizes of its axes, and which axes stay because some integer could not."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune import sizes
from onnxprune.axes import Layout, leaves, pin, runs
from onnxprune.extents import Extent, extent, times
from onnxprune.graph import Graph, first_output
from onnxprune.records import Kept
from onnxprune.rules.facts import Counts
from onnxprune.structure import Number, label

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


OVERRIDES_SINCE = 11
"""The first opset with ScatterElements, which puts a number in on the way to a node."""


class Numbering:
    """The integers that rules ask to follow sizes, settled when the layouts are known.

    Attributes:
        graph: the model.
        axes: the layout of each axis of each tensor.
        types: the element types of computed tensors.
        terms: for each tensor that holds sizes, what its entries are computed from.
        counts: which number of which node counts the positions of which axis.
        values: tensors of sizes that a node uses as values.
    """

    def __init__(
        self,
        graph: Graph,
        axes: Mapping[str, tuple[Layout, ...]],
        types: Mapping[str, type],
        terms: Mapping[str, np.ndarray],
        counts: Sequence[tuple[gs.Node, Counts]],
        values: Iterable[str],
    ) -> None:
        self.graph, self.axes, self.types = graph, axes, types
        self.terms, self.counts, self.values = terms, counts, tuple(values)
        self._extents: dict[Layout, Extent] = {}
        self._free: dict[Layout, bool] = {}
        self._chains: dict[int, Extent | None] = {}

    def settle(self) -> list[Number]:
        """Finds out which integers must be written; pins the axes that some integer could not follow.

        A literal that nodes read with different meanings, such as a width in a Concat of sizes that the Reshapes of
        several layers share, stays; each of these nodes then has its own number put in on the way to it.
        """
        settled = False
        while not settled:
            found = [(*self._number(node, fact), node) for node, fact in self.counts]
            settled = not any(pinned for _, pinned, _ in found)
            meanings = self._meanings()
            shared = {place for place, taken in meanings.items() if len(taken) > 1}
            numbers = [(number, node) for number, _, node in found if number is not None]
            for number, node in numbers:
                if number.place in shared and number.axis is not None and not self._may_override(node, number):
                    settled &= not self._pin((number.axis,), f"{node.op} shares a number with another node", node)
        return [replace(number, place=None) if number.place in shared else number for number, _ in numbers]

    def _pin(self, axes: Iterable[Layout], because: str, node: gs.Node) -> bool:
        """Pins axes, and says whether one of them was free."""
        pinned = any([pin(axis, Kept(because, label(node))) for axis in axes])
        if pinned:
            self._extents.clear()
            self._chains.clear()
            self._free.clear()
        return pinned

    def _size(self, axis: Layout) -> Extent:
        """The extent of an axis, noted until something is pinned: a Gather asks for it at every position it picks."""
        if axis not in self._extents:
            self._extents[axis] = extent(axis)
        return self._extents[axis]

    def _is_free(self, axis: Layout) -> bool:
        """Whether an axis may lose positions."""
        if axis not in self._free:
            self._free[axis] = any(leaf.kept is None for leaf in leaves(axis))
        return self._free[axis]

    def _may_override(self, node: gs.Node, number: Number) -> bool:
        """Whether another number can be put into an input of a node, which must be a vector for that.

        One that varies must be a product of whole numbers, the literal among them.
        """
        name = node.inputs[number.entry.input].name
        kind = self.graph.constants[name].dtype if name in self.graph.constants else self.types.get(name)
        if self.graph.opset() < OVERRIDES_SINCE or self.terms[name].ndim != 1 or kind != np.int64:
            return False
        if number.entry.fixed or number.place is None:
            return number.entry.fixed
        factors = sizes.factors(self.terms[name][number.entry.index])
        literals = [factor.place for factor in factors if isinstance(factor, sizes.Literal)]
        return number.place in literals and all(isinstance(sizes.value_of(factor), int) for factor in factors)

    def _meanings(self) -> dict[sizes.Place, set[Any]]:
        """What the nodes that read a literal take it for."""
        meanings: dict[sizes.Place, set[Any]] = defaultdict(set)
        for node, fact in self.counts:
            if fact.entry.input is not None and fact.entry.stated:
                term, fact = self._narrowed(node, fact)
                if isinstance(term, sizes.Literal | sizes.Computed) and term.place:
                    meanings[term.place].add((fact.upto, tuple(sorted(self._size(fact.axis).items()))))
        for name in self.values:
            for term in self.terms[name].ravel():
                if isinstance(term, sizes.Literal | sizes.Computed) and term.place:
                    meanings[term.place].add("a value")
        return meanings

    def _number(self, node: gs.Node, fact: Counts) -> tuple[Number | None, bool]:
        """The integer of a fact if it has to be written, and whether something had to be pinned for want of a way."""
        if fact.entry.input is None or not fact.entry.stated:
            number = Number(first_output(node), fact.entry, None, fact.axis, fact.upto, fact.when)
            return (number if self._is_free(fact.axis) or not fact.entry.stated else None), False
        term, fact = self._narrowed(node, fact)
        sources = self._sources(term)
        if not any(map(self._is_free, (fact.axis, *sources))):
            return None, False
        if fact.upto is None and not isinstance(term, sizes.Literal) and self._extent(term) == self._size(fact.axis):
            return None, False
        place = term.place if isinstance(term, sizes.Literal | sizes.Computed) else None
        number = Number(first_output(node), fact.entry, place, fact.axis, fact.upto, sources)
        if place or self._may_override(node, number):
            return number, False
        because = f"{node.op} has a size of it from a computation that would not follow"
        return None, self._pin((fact.axis, *sources), because, node)

    def _narrowed(self, node: gs.Node, fact: Counts) -> tuple[sizes.Term, Counts]:
        """A number and what it counts; of batch x 12, or a size divided by 12, only the 12, which counts the heads."""
        assert fact.entry.input is not None
        term = self.terms[node.inputs[fact.entry.input].name].ravel()[fact.entry.index]
        if sizes.is_fixed(term):
            return term, fact
        match term:
            case sizes.Computed("Div", (sizes.Size() as size, sizes.Literal() as divisor)) if divisor.place:
                for counted, left in runs(self.axes[size.tensor][size.axis]):
                    if counted.size == divisor.value and extent(left) == self._size(fact.axis):
                        return divisor, _counting(fact, divisor, counted)
        factors = sizes.factors(term)
        for literal in factors:
            if not isinstance(literal, sizes.Literal) or not literal.place:
                continue
            others = [self._extent(other) for other in factors if other is not literal]
            if any(other is None for other in others):
                continue
            one: Extent = Counter({(): 1})
            rest = reduce(times, (other for other in others if other is not None), one)
            for counted, left in runs(fact.axis):
                if counted.size == literal.value and extent(left) == rest:
                    return literal, _counting(fact, literal, counted)
        return term, fact

    def _sources(self, term: sizes.Term) -> tuple[Layout, ...]:
        """The axes from whose sizes a number is computed."""
        return tuple(self.axes[size.tensor][size.axis] for size in sizes.sizes_in(term))

    def _extent(self, term: sizes.Term) -> Extent | None:
        """What an integer of a chain will be, as a polynomial in the free dims; None when not known."""
        for other in sizes.inside(term) if id(term) not in self._chains else ():
            self._chains[id(other)] = self._step(other)
        return self._chains[id(term)]

    def _step(self, term: sizes.Term) -> Extent | None:
        """The same where that of its arguments is known."""
        if isinstance(term, sizes.Size):
            return self._size(self.axes[term.tensor][term.axis])
        if isinstance(term, sizes.Computed):
            args = [self._chains[id(arg)] for arg in term.args]
            if any(arg is None for arg in args):
                return None
            if all(set(arg) <= {()} for arg in args if arg is not None):
                return Counter({(): int(term.value)})
            a, b = args[0], args[-1]
            if term.op == "Trunc":
                return a
            if a is not None and b is not None and len(args) == 2 and term.op in ("Mul", "Add"):
                return times(a, b) if term.op == "Mul" else a + b
            return None
        value = sizes.value_of(term)
        return None if value is None else Counter({(): int(value)})


def _counting(fact: Counts, literal: sizes.Literal, axis: Layout) -> Counts:
    """The same fact of a literal that another number is computed from."""
    return replace(fact, entry=replace(fact.entry, value=literal.value, fixed=False), axis=axis)
