"""The groups of a model, and what removing their units means for every tensor, number and cost of it."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.axes import Dim, Layout, Product, keep_mask, leaves, pieces, product, resolve
from onnxprune.costs import Costs
from onnxprune.errors import PlanError
from onnxprune.graph import Graph
from onnxprune.records import Frozen, Group, KeptAxis, KeptIndices, Plan, Written
from onnxprune.structure import Number, Structure


@dataclass(frozen=True, slots=True)
class Units:
    """The groups of a model and all that follows from removing their units.

    Attributes:
        graph: the model.
        structure: its layouts.
        groups: the groups by name, in the order of the graph; those that stand instead of another one included.
        kept: axes of constants that do not take part, and why.
        costs: what the model costs, depending on what is kept.
        leaves: the free dims of each group, in the order of their units.
    """

    graph: Graph
    structure: Structure
    groups: Mapping[str, Group]
    kept: tuple[KeptAxis, ...]
    costs: Costs
    leaves: Mapping[str, tuple[Dim, ...]]

    def whole(self) -> dict[str, np.ndarray]:
        """The keep-masks of a plan that removes nothing: (units,) bool for each group."""
        return {name: np.ones(group.size, bool) for name, group in self.groups.items()}

    def cost(self, keep: Mapping[str, np.ndarray]) -> tuple[int, int]:
        """Parameters and multiply-accumulates of one sample when only some units are kept.

        Args:
            keep: (units,) bool for each group that loses units.
        """
        counts: list[int] = []
        for name, members in self.leaves.items():
            if name not in keep:
                counts += [leaf.size for leaf in members]
            elif len(members) == 1:
                counts.append(int(np.count_nonzero(keep[name])))
            else:
                counts += [int(mask.sum()) for mask in self._masks({name: keep[name]}).values()]
        kept = np.array(counts, float)
        return self.costs.params(kept), self.costs.macs(kept) // max(self.structure.batch, 1)

    def _masks(self, keep: Mapping[str, np.ndarray]) -> dict[Dim, np.ndarray]:
        """Keep-masks of leaves from keep-masks of groups, in the order of the cost polynomials."""
        masks: dict[Dim, np.ndarray] = {}
        for name, mask in keep.items():
            borders = np.cumsum([leaf.size for leaf in self.leaves[name]])[:-1]
            masks |= dict(zip(self.leaves[name], np.split(np.asarray(mask, bool), borders), strict=True))
        return masks

    def _omitted(self, masks: Mapping[Dim, np.ndarray]) -> dict[str, tuple[int, ...]]:
        """The optional inputs that are left out."""
        found: dict[str, tuple[int, ...]] = {}
        for node, index, axes in self.structure.omitted:
            if not all(keep_mask(axis, masks).all() for axis in axes):
                found[node] = (*found.get(node, ()), index)
        return dict(sorted(found.items()))

    def _shrunk(
        self, masks: Mapping[Dim, np.ndarray]
    ) -> tuple[dict[str, dict[int, tuple[int, ...]]], dict[str, dict[int, int]]]:
        """The kept positions of every tensor axis that loses some, and the periods of those whose size varies."""
        shrunk: dict[str, dict[int, tuple[int, ...]]] = {}
        periods: dict[str, dict[int, int]] = {}
        for tensor, i, axis in self._touched(masks):
            kept = keep_mask(axis, masks)
            if not kept.all():
                shrunk.setdefault(tensor, {})[i] = tuple(np.flatnonzero(kept).tolist())
                if (tensor, i) in self.structure.varying:
                    periods.setdefault(tensor, {})[i] = len(kept)
        return shrunk, periods

    def _touched(self, masks: Mapping[Dim, np.ndarray]) -> Iterator[tuple[str, int, Layout]]:
        """The tensor axes with dims that have a mask, and their layouts, of those whose size varies what repeats."""
        for tensor, axes in self.structure.axes.items():
            for i, axis in enumerate(axes):
                if any(leaf in masks for leaf in leaves(axis)):
                    yield tensor, i, _period(axis, masks) if (tensor, i) in self.structure.varying else axis

    def spared(self, keep: Mapping[str, np.ndarray], alive: Mapping[str, np.ndarray]) -> dict[str, KeptIndices]:
        """By tensor and axis, the positions that go with the units that are alive although they are not kept.

        Args:
            keep: (units,) bool for each group that loses units.
            alive: the same, with all units that are kept and others.
        """
        if all(np.array_equal(keep[name], alive[name]) for name in keep):
            return {}
        kept, living = self._masks(keep), self._masks(alive)
        found: dict[str, dict[int, tuple[int, ...]]] = {}
        for tensor, i, axis in self._touched(kept):
            extra = keep_mask(axis, living) & ~keep_mask(axis, kept)
            if extra.any():
                found.setdefault(tensor, {})[i] = tuple(np.flatnonzero(extra).tolist())
        return dict(sorted(found.items()))

    def vital(self) -> list[tuple[tuple[str, int], ...]]:
        """Sets of units of which one at least must stay, or a tensor would have no position on an axis: (group, unit).

        Only where a part of a group has an axis for itself, as behind a Slice; of a whole group one stays anyway.
        """
        first: dict[Dim, tuple[str, int]] = {}
        for name, members in self.leaves.items():
            starts = np.cumsum([0, *(leaf.size for leaf in members)])
            first |= {leaf: (name, int(start)) for leaf, start in zip(members, starts, strict=False)}
        partial = {leaf for members in self.leaves.values() if len(members) > 1 for leaf in members}
        found: dict[frozenset[Dim], None] = {}
        for axes in self.structure.axes.values():
            for axis in axes:
                parts = [[leaf for leaf in leaves(piece) if leaf in partial][:1] for piece in pieces(axis)]
                together = frozenset(leaf for part in parts for leaf in part)
                if together and all(parts) and not any(together.issuperset(m) for m in self.leaves.values()):
                    found[together] = None
        return [
            tuple((first[leaf][0], first[leaf][1] + i) for leaf in together for i in range(leaf.size))
            for together in found
        ]

    def copies_of(self, changed: Collection[str]) -> dict[str, str]:
        """The origins of copies of constants that may come apart, since the origin or one of its copies changes."""
        copies = self.graph.copies
        origins = {copies.get(name, name) for name in changed}
        return {copy: origin for copy, origin in sorted(copies.items()) if origin in origins}

    def plan(self, keep: Mapping[str, np.ndarray], settings: Mapping[str, object] | None = None) -> Plan:
        """Writes down what removing units means for every tensor and every number of the model.

        Args:
            keep: (units,) bool for each group that loses units.
            settings: how the plan was made.

        Raises:
            PlanError: a group is unknown, has another size, or would lose all its units, or a tensor all its positions.
        """
        for name, mask in keep.items():
            if name not in self.groups:
                raise PlanError(f"there is no group '{name}' in this model; `onnxprune inspect` lists them.")
            if len(mask) != self.groups[name].size:
                raise PlanError(f"group '{name}' has {self.groups[name].size} units, the plan speaks of {len(mask)}.")
            if not np.any(mask):
                raise PlanError(f"group '{name}' would lose all its {len(mask)} units; at least 1 must stay.")
        masks = self._masks(keep)
        shrunk, periods = self._shrunk(masks)
        for tensor, by_axis in shrunk.items():
            if not all(by_axis.values()):
                raise PlanError(f"the plan leaves tensor '{tensor}' without positions; keep one of its units at least.")
        constants = self.graph.constants
        numbers = tuple(_written(self.structure.numbers, masks))
        computed = self.structure.computed
        frozen = {number.constant for number in numbers if number.constant in computed}
        frozen |= {
            name
            for name, axes in self.structure.values.items()
            if any(leaf in masks and not masks[leaf].all() for axis in axes for leaf in leaves(axis))
        }
        return Plan(
            self.graph.sha256,
            {name: (len(mask), tuple(np.flatnonzero(mask).tolist())) for name, mask in sorted(keep.items())},
            {name: by for name, by in sorted(shrunk.items()) if name in constants},
            {name: by for name, by in sorted(shrunk.items()) if name not in constants},
            numbers,
            {name: Frozen.of(computed[name]) for name in sorted(frozen)},
            self.copies_of({*shrunk, *(number.constant for number in numbers)}),
            dict(sorted(periods.items())),
            self._omitted(masks),
            inexact=tuple(
                output
                for output, axes in sorted(self.structure.normalized.items())
                if any(not keep_mask(axis, masks).all() for axis in axes)
            ),
            settings=dict(settings or {}),
        )


def _period(axis: Layout, masks: Mapping[Dim, np.ndarray]) -> Layout:
    """What repeats on an axis of varying size: batch x heads is the heads, again and again."""
    axis = resolve(axis)
    factors = axis.factors if isinstance(axis, Product) else (axis,)
    rest = itertools.dropwhile(lambda factor: not any(leaf in masks for leaf in leaves(factor)), factors)
    return product(*rest)


def _written(numbers: Iterable[Number], masks: Mapping[Dim, np.ndarray]) -> Iterator[Written]:
    """The numbers that change, and all of a list of implied ones as soon as one of it does."""
    rows: list[tuple[Number, Written, bool]] = []
    known: dict[Layout, np.ndarray] = {}

    def kept(axis: Layout) -> np.ndarray:
        if axis not in known:  # a Gather has a number for each position that it picks on one axis
            known[axis] = keep_mask(axis, masks)
        return known[axis]

    for number in numbers:
        entry = number.entry
        after, changed = entry.value or 0, False
        if number.axis is not None:
            mask = kept(number.axis)
            after = int(mask[: number.upto].sum())
            changed = not mask.all() and after != entry.value  # a position counted from the end moves with the size
        constant, index = number.place or ("", entry.index)
        source = -1 if entry.input is None else entry.input
        changed |= any(not kept(axis).all() for axis in number.when)
        part = int(entry.value or 0) if not constant and not entry.fixed else 0
        rows.append((number, Written(number.node, entry.attr or "", source, constant, index, after, part), changed))
    stirred = {(written.node, written.attribute, written.input) for _, written, changed in rows if changed}
    for number, written, changed in rows:
        where = written.node, written.attribute, written.input
        if changed or (not number.entry.stated and where in stirred):
            yield written


Places = Mapping[Dim, tuple[np.ndarray, np.ndarray]]
"""For each leaf of an axis the positions where it is found, and which of its own positions stands at each of them."""


def places_along(axis: Layout) -> Places:
    """Where the leaves of an axis are."""
    axis = resolve(axis)
    if isinstance(axis, Dim):
        return {axis: (np.arange(axis.size), np.arange(axis.size))}
    found: dict[Dim, list[tuple[np.ndarray, np.ndarray]]] = {}
    if isinstance(axis, Product):
        sizes = [factor.size for factor in axis.factors]
        for i, factor in enumerate(axis.factors):
            grid = np.moveaxis(np.arange(axis.size).reshape(sizes), i, -1).reshape(-1, factor.size)
            for leaf, (where, own) in places_along(factor).items():
                found.setdefault(leaf, []).append((grid[:, where].ravel(), np.tile(own, len(grid))))
    else:
        start = 0
        for piece in axis.pieces:
            for leaf, (where, own) in places_along(piece).items():
                found.setdefault(leaf, []).append((start + where, own))
            start += piece.size
    return {
        leaf: (np.concatenate(parts[0]), np.concatenate(parts[1]))
        for leaf, all_ in found.items()
        if (parts := tuple(zip(*all_, strict=True)))
    }


def units_at(places: Places, size: int, members: Sequence[Dim]) -> np.ndarray:
    """The unit of each position of an axis, -1 for positions of other groups: (size,) int.

    Args:
        places: where the leaves of the axis are.
        size: how many positions it has.
        members: the leaves of the group, in the order of their units.
    """
    units, start = np.full(size, -1), 0
    for leaf in members:
        if leaf in places:
            where, own = places[leaf]
            np.maximum.at(units, where, start + own)
        start += leaf.size
    return units


def units_along(axis: Layout, members: Sequence[Dim]) -> np.ndarray:
    """The same for an axis whose leaves are looked up for this once."""
    return units_at(places_along(axis), axis.size, members)
