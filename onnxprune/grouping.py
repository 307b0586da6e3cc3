"""Finds the groups of units in the layouts of a model: their kind, weights and states, and which yields to which.

A leaf dim is free when no rule pinned it, a weight writes it and a weight reads it, or two activations each other's, as
queries and keys do with their width. Positions that no weight writes,
such as pixels, tokens or table rows, are no units, although a dense layer behind them may have them on its weight.

Where two free dims share an axis (heads x rows of a head, groups x channels of a group) their units overlap. Both are
groups, but only one is pruned unless the other is asked for by name: an exact one before one that is not, whole heads,
since those save time in attention itself (with their keys and values before queries alone), and elsewhere the wider
one, which cuts finer.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from onnxprune.axes import Dim, Family, Layout, Product, factors_of, found_in, leaves, pieces, product, resolve, same
from onnxprune.costs import Costs, polynomial
from onnxprune.graph import Graph, first_output
from onnxprune.inference import infer
from onnxprune.observation import observe
from onnxprune.padding import Tokens
from onnxprune.records import Group, Kept, KeptAxis, Site, States, Weight
from onnxprune.rules.facts import (
    CHANNEL,
    HEAD,
    HIDDEN,
    KINDS,
    NEURON,
)
from onnxprune.runtime import Feeds
from onnxprune.states import by_feature
from onnxprune.structure import Meeting, Structure, Use
from onnxprune.units import Places, Units, places_along, units_at
from onnxprune.validation import checked

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


QUANTIZED = {
    "ConvInteger": (1,),
    "DequantizeLinear": (0,),
    "MatMulInteger": (0, 1),
    "QGemm": (0, 3, 6),
    "QLinearAdd": (0, 3),
    "QLinearConv": (3, 8),
    "QLinearMatMul": (0, 3),
    "QLinearMul": (0, 3),
}
"""Inputs at which an integer constant is a weight."""

AllowIO = Literal["head"]
"""What inputs and outputs of a model may lose."""

QUERY_HEAD = "query head of each key-value head"


def find_units(
    graph: Graph, sample: Feeds | None = None, *, residual: bool = False, allow_io: Collection[str] = ()
) -> Units:
    """Finds what can be pruned.

    Args:
        graph: the model.
        sample: an array for each input, where sizes of symbolic axes have to come from data.
        residual: whether units that statistics run over, such as those of a residual stream under LayerNormalization,
            are groups too, marked as not exact.
        allow_io: what inputs and outputs of the model may lose: "head" for the heads that caches hold.

    Raises:
        ModelError: ONNX Runtime cannot load the model.
        DataError: sizes of symbolic axes could not be settled without data.
        PlanError: an option is unknown.
    """
    residual = checked("--residual", residual, bool)
    allow_io = checked("--allow-io", tuple(allow_io) if isinstance(allow_io, Set) else allow_io, tuple[AllowIO, ...])
    structure = infer(graph, observe(graph, sample), residual=residual, allow_io=allow_io)
    finder = _Finder(structure)
    return finder.units()


class _Finder:
    """Finds the groups of a structure; holds the tables that the steps share."""

    def __init__(self, structure: Structure) -> None:
        self.structure = structure
        self.uses: dict[str, dict[Dim, list[Use]]] = {"reads": defaultdict(list), "writes": defaultdict(list)}
        for use in structure.uses:
            for leaf in dict.fromkeys(leaves(use.part)):
                self.uses[use.role][leaf].append(use)
        self.made = {
            leaf
            for use in structure.uses
            if use.role == "writes"
            for leaf in leaves(structure.axes[use.weight][use.axis])
        }
        self.read_at = {leaf: {(use.data, use.output) for use in uses} for leaf, uses in self.uses["reads"].items()}
        self.meetings: dict[Dim, list[Meeting]] = defaultdict(list)
        for meeting in structure.meetings:
            for leaf in dict.fromkeys(leaves(meeting.part)):
                self.meetings[leaf].append(meeting)
                self.read_at.setdefault(leaf, set()).update((side[0], meeting.output) for side in meeting.sides)
        self.places: dict[Dim, dict[str, int]] = defaultdict(dict)
        for tensor, axes in structure.axes.items():
            for i, axis in enumerate(axes):
                for leaf in leaves(axis):
                    self.places[leaf].setdefault(tensor, i)
        self.kinds: dict[Dim, str] = {}
        for layout, kind in sorted(structure.kinds, key=lambda entry: -KINDS.index(entry[1])):
            self.kinds |= dict.fromkeys(leaves(layout), kind)
        self.overlaps: dict[tuple[Dim, Dim], None] = {}
        for axes in structure.axes.values():
            for axis in axes:
                self.overlaps |= dict.fromkeys(_overlaps(resolve(axis)))
        self.readers_of: dict[str, list[gs.Node]] = defaultdict(list)
        self.quantized: set[str] = set()
        for node in structure.graph.nodes:
            for i, tensor in enumerate(node.inputs):
                self.readers_of[tensor.name].append(node)
                if i in QUANTIZED.get(node.op, ()):
                    self.quantized.add(tensor.name)
        self.tokens = Tokens(structure)
        self._places: dict[Layout, Places] = {}
        self._sites: dict[tuple[str, int], Site] = {}
        self.inexact = {leaf for axes in structure.normalized.values() for axis in axes for leaf in leaves(axis)}

    def units(self) -> Units:
        """The groups and everything around them."""
        families = self._families()
        names = self._names(families)
        of_leaf = {leaf: name for name, members in names.items() for leaf in members}
        groups = {name: self._group(name, members) for name, members in names.items()}
        for name, other in self._alternatives(groups, of_leaf).items():
            groups[name] = replace(groups[name], instead_of=other)
        order = {leaf: i for i, leaf in enumerate(of_leaf)}
        return Units(
            self.structure.graph,
            self.structure,
            groups,
            tuple(self._kept(set(of_leaf))),
            Costs(polynomial(self._parameters(), order), polynomial(self.structure.work.values(), order)),
            {name: tuple(members) for name, members in names.items()},
        )

    def _families(self) -> list[list[Dim]]:
        """Free leaves by family, in the order in which nodes of the model write them."""
        found: dict[Family, dict[Dim, None]] = {}
        for use in self.structure.uses:
            for leaf in leaves(use.part):
                if not leaf.kept and self._is_read(leaf) and self.uses["writes"].get(leaf):
                    found.setdefault(leaf.family.root(), {})[leaf] = None
        return [list(members) for members in found.values() if sum(leaf.size for leaf in members) > 1]

    def _is_read(self, leaf: Dim) -> bool:
        return bool(self.uses["reads"].get(leaf) or self.meetings.get(leaf))

    def _names(self, families: list[list[Dim]]) -> dict[str, list[Dim]]:
        """Names groups after the first weight that writes them; a range says which part of its axis."""
        names: dict[str, list[Dim]] = {}
        for members in families:
            use = self.uses["writes"][members[0]][0]
            where = np.flatnonzero(self._units_of(use.weight, use.axis, members) >= 0)
            name = use.weight
            if len(where) < self.structure.axes[use.weight][use.axis].size:
                name += f"[{where[0]}:{where[-1] + 1}]"
            while name in names:
                name += "'"
            names[name] = members
        return names

    def _group(self, name: str, members: list[Dim]) -> Group:
        """Everything that is known of a group."""
        writers = tuple(self._weights("writes", members))
        readers = tuple(self._weights("reads", members))
        post = {weight.site.key: weight.site for weight in readers}
        if not readers:
            met = dict.fromkeys(meeting for leaf in members for meeting in self.meetings[leaf])
            post = {f"{m.output}/{i}": self._site(*side) for m in met for i, side in enumerate(m.sides)}
        pre: dict[str, Site] = {}
        for leaf in members:
            for use in self.uses["writes"][leaf]:
                for site in self._before_nonlinearity(use, leaf) or post.values():
                    pre[site.key] = site
        exact = self.inexact.isdisjoint(members)
        kind = self._kind(members, writers, readers) if exact else CHANNEL
        size = sum(leaf.size for leaf in members)
        reader = readers[0] if readers else None
        after = self._states(post.values(), members, reader, whole=True)
        linear = pre.keys() == {site.key for site in post.values()}
        before = () if linear else self._states(pre.values(), members, reader)
        return Group(name, kind, size, writers, readers, before or after, after, "", exact)

    def _weights(self, role: str, members: list[Dim]) -> Iterator[Weight]:
        uses = {(use.output, use.weight, use.axis): use for leaf in members for use in self.uses[role][leaf]}
        for use in uses.values():
            units = self._units_of(use.weight, use.axis, members)
            yield Weight(use.node, use.op, use.weight, use.axis, units, self._site(use.data, use.data_axis))

    def _states(
        self, sites: Iterable[Site], members: list[Dim], reader: Weight | None, *, whole: bool = False
    ) -> tuple[States, ...]:
        """The states at sites; without `whole`, of units of several features only those that a reader gets to see.

        Queries and keys say what a head looks at, in coordinates of its own; its values are what it hands on.
        """
        found = []
        for site in sites:
            unit_of, rows = self._features_of(site, members), None
            if np.bincount(unit_of[unit_of >= 0], minlength=1).max() > 1 and site.outer * site.inner == 1:
                rows = self._rows(site, reader) if reader else None
                if rows is not None:
                    unit_of = np.where(rows[:, 0] >= 0, unit_of, -1)
                elif not whole and not (reader and reader.op == "Conv"):  # which reads one group after the other
                    continue
            found.append(States(site, unit_of, rows))
        return tuple(found)

    def _rows(self, site: Site, reader: Weight) -> np.ndarray | None:
        """The positions on the axis of a reader that each feature comes to, -1 for those that do not: see `States`."""
        seen = self.structure.axes[reader.tensor][reader.axis]
        parts = [found_in(piece, seen) for piece in pieces(self.structure.axes[site.tensor][site.axis])]
        sizes = [piece.size for piece in pieces(self.structure.axes[site.tensor][site.axis])]
        repeats = {part.shape[1] for part in parts if part is not None}
        if len(repeats) != 1:
            return None
        missing = [np.full((size, *repeats), -1) for size in sizes]
        return np.concatenate([m if part is None else part for part, m in zip(parts, missing, strict=True)])

    def _features_of(self, site: Site, members: list[Dim]) -> np.ndarray:
        """The unit of each feature of a site."""
        return by_feature(self._units_of(site.tensor, site.axis, members), site)[:, 0]

    def _units_of(self, tensor: str, axis: int, members: list[Dim]) -> np.ndarray:
        """The unit of each position of an axis; where its leaves are is looked up once for all groups."""
        layout = self.structure.axes[tensor][axis]
        if layout not in self._places:
            self._places[layout] = places_along(layout)
        return units_at(self._places[layout], layout.size, members)

    def _site(self, tensor: str, axis: int) -> Site:
        """The site of a tensor axis, found once for all groups."""
        if (tensor, axis) not in self._sites:
            self._sites[tensor, axis] = self._found_site(tensor, axis)
        return self._sites[tensor, axis]

    def _found_site(self, tensor: str, axis: int) -> Site:
        """The same found anew: positions that no weight writes, in front or behind, are samples."""
        layout = resolve(self.structure.axes[tensor][axis])
        parts = [factors_of(piece) for piece in pieces(layout)]
        tails = [product(*self._positions(factors[::-1])[::-1]) for factors in parts]
        inner = tails[0].size if all(same(tail, tails[0]) for tail in tails) else 1
        heads = self._positions(parts[0]) if len(parts) == 1 else []
        outer = product(*heads).size
        rank = len(self.structure.axes[tensor])
        repeats = self.tokens.repeats(tensor, axis, outer * inner)
        return Site(tensor, axis, rank, layout.size // (outer * inner), outer, inner, repeats)

    def _positions(self, factors: list[Layout]) -> list[Layout]:
        """The first factors of a product that no weight makes; one factor at least is left over."""
        taken = itertools.takewhile(lambda f: self.made.isdisjoint(leaves(f)), factors)
        return list(taken)[: len(factors) - 1]

    def _before_nonlinearity(self, use: Use, leaf: Dim) -> list[Site]:
        """The value that enters the first nonlinearity after a weight; nothing where there is no such tensor."""
        if self.kinds.get(leaf) == HIDDEN:  # the gates lie inside the operator
            return []
        seen, queue = {use.data}, [use.data]
        while queue:
            tensor = queue.pop(0)
            for node in self.readers_of[tensor]:
                outputs = [t.name for t in node.outputs if t.name in self.places[leaf]]
                if self._reads(node, tensor, leaf) or node.op in ("Shape", "Size"):
                    continue
                if not self._is_linear(node):
                    return [self._site(tensor, self.places[leaf][tensor])]
                queue.extend(name for name in outputs if name not in seen)
                seen.update(outputs)
        return []

    def _reads(self, node: gs.Node, tensor: str, leaf: Dim) -> bool:
        """Whether a node contracts these units, so that the way from the writer ends there."""
        return (tensor, first_output(node)) in self.read_at.get(leaf, ())

    def _is_linear(self, node: gs.Node) -> bool:
        """Whether a node is linear: its operator is, and what it multiplies by is constant."""
        if first_output(node) not in self.structure.linear:
            return False
        data = [t for t in node.inputs if t.name and t.name not in self.structure.constant]
        return len(data) < 2 or node.op in ("Add", "Sub", "Sum", "Mean", "Concat")

    def _kind(self, members: list[Dim], writers: Sequence[Weight], readers: Sequence[Weight]) -> str:
        """What a unit is, in the reader's words."""
        kind = self.kinds.get(members[0], NEURON)
        if not readers:
            axes = [self.structure.axes[name][axis] for name, axis in self.meetings[members[0]][0].sides]
            paired = any(_paired(axis, members[0]) for axis in axes)
            return "rotary pair of each head" if paired else "query-key width of each head"
        others = [b if a is members[0] else a for a, b in self.overlaps if members[0] in (a, b)]
        heads = [leaf for leaf in others if self.kinds.get(leaf) == HEAD and self.uses["writes"][leaf]]
        if kind == HEAD and heads:  # key-value heads are written in more pieces than the queries that share them
            fewer = all(self._pieces_written(members[0]) < self._pieces_written(leaf) for leaf in heads)
            return QUERY_HEAD if fewer else "key-value head"
        if kind == NEURON and heads:
            return "value width of each head"
        if kind == NEURON and all(self._same_stream(w, r) for w in writers for r in readers):
            return "feed-forward unit"
        return kind

    def _pieces_written(self, leaf: Dim) -> int:
        """In how many pieces of weights a unit is written: queries, keys and values, in three weights or in one."""
        axes = [self.structure.axes[use.weight][use.axis] for use in self.uses["writes"][leaf]]
        return sum(leaf in leaves(piece) for axis in axes for piece in pieces(axis))

    def _same_stream(self, writer: Weight, reader: Weight) -> bool:
        """Whether a dense layer gives back to the stream that the one before it took from."""
        streams = [
            [axis for i, axis in enumerate(self.structure.axes[weight.tensor]) if i != weight.axis]
            for weight in (writer, reader)
        ]
        return len(streams[0]) == len(streams[1]) in (1, 2) and same(streams[0][-1], streams[1][-1])  # 2: of experts

    def _alternatives(self, groups: Mapping[str, Group], of_leaf: Mapping[Dim, str]) -> dict[str, str]:
        """For each group that overlaps another on some axis and yields to it, the other one."""
        rivals: dict[str, set[str]] = defaultdict(set)
        for a, b in self.overlaps:
            if a in of_leaf and b in of_leaf and of_leaf[a] != of_leaf[b]:
                rivals[of_leaf[a]].add(of_leaf[b])
                rivals[of_leaf[b]].add(of_leaf[a])
        chosen: set[str] = set()
        instead: dict[str, str] = {}
        for name in sorted(groups, key=lambda name: _preference(groups[name])):
            taken = [other for other in rivals[name] if other in chosen]
            if taken:
                instead[name] = min(taken)
            else:
                chosen.add(name)
        return instead

    def _kept(self, free: set[Dim]) -> Iterator[KeptAxis]:
        """Axes of constants that keep positions, and why."""
        for name, array in self.structure.graph.constants.items():
            if not self._is_weight(name, array) or name in self.structure.graph.copies:
                continue
            for i, axis in enumerate(self.structure.axes[name]):
                for leaf in leaves(axis):
                    if leaf not in free:
                        yield KeptAxis(name, i, axis.size, leaf.kept or self._unused(leaf))
                        break

    def _unused(self, leaf: Dim) -> Kept:
        """Why a dim that nothing pins is in no group."""
        if not self.uses["writes"][leaf]:
            return Kept("no weight of the model writes it", "")
        return Kept("it is one unit" if self._is_read(leaf) else "no weight of the model reads it", "")

    def _is_weight(self, name: str, array: np.ndarray) -> bool:
        """Whether a constant holds weights: floating-point numbers, or integers that stand for such numbers."""
        return array.dtype.kind not in "biuSUO" or name in self.quantized

    def _parameters(self) -> Iterator[tuple[Layout, ...]]:
        """The axes of every constant that holds weights; copies are stored once."""
        graph = self.structure.graph
        for name, array in graph.constants.items():
            if self._is_weight(name, array) and array.ndim and name not in graph.copies:
                yield self.structure.axes[name]


def _preference(group: Group) -> tuple[bool, bool, bool, int]:
    """Sorts groups that overlap: exact ones, heads, those with their keys and values before others, the finer cut."""
    head = group.kind in ("head", "key-value head", QUERY_HEAD)
    return not group.exact, not head, group.kind == QUERY_HEAD, -group.size


def _paired(axis: Layout, leaf: Dim) -> bool:
    """Whether a unit has two positions beside what is free on its axis, halves or neighbours: a rotated pair."""
    held = [(piece, set(leaves(piece))) for piece in pieces(axis)]
    size = sum(piece.size for piece, inside in held if leaf in inside)
    free = {other for _, inside in held if leaf in inside for other in inside if not other.kept}
    return size == 2 * math.prod(other.size for other in free)


def _overlaps(layout: Layout) -> Iterator[tuple[Dim, Dim]]:
    """Pairs of leaves that stand in different factors of a product, so that their units share positions."""
    if isinstance(layout, Dim):
        return
    parts = layout.factors if isinstance(layout, Product) else layout.pieces
    for i, part in enumerate(parts):
        yield from _overlaps(part)
        for other in parts[i + 1 :] if isinstance(layout, Product) else ():
            yield from itertools.product(leaves(part), leaves(other))
