"""Runs the rules over a model and unifies what they state."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune import sizes
from onnxprune.axes import Dim, Layout, dim, leaves, pin, same
from onnxprune.graph import Graph, first_output
from onnxprune.numbering import Numbering
from onnxprune.observation import Observation
from onnxprune.records import Kept
from onnxprune.rules import find_rule
from onnxprune.rules.facts import (
    HEAD,
    Cached,
    Called,
    Counts,
    Fact,
    Met,
    Normalized,
    Omitted,
    Pinned,
    Same,
    Stated,
    Work,
    mentioned,
)
from onnxprune.rules.node import (
    Entry,
    Node,
    Refusal,
    Tensor,
)
from onnxprune.sharing import captured_names
from onnxprune.structure import Meeting, Number, Structure, Use, label
from onnxprune.unification import unify

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


INPUT, OUTPUT = "it is an input of the model", "it is an output of the model"
CACHE = "a cache of the model holds it, whose heads go with --allow-io head alone"
"""Why axes stay that people outside the graph see."""

MOVES = frozenset(
    {"Cast", "Expand", "Gather", "GatherND", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose"}
    | {"Unsqueeze"}
)
"""Operators that give out elements of their first input alone."""


class Numbers(Mapping[int, tuple[Entry, ...]]):
    """The numbers of a node by input, made when its rule asks for them: most rules never do."""

    def __init__(self, terms: Mapping[int, np.ndarray]) -> None:
        self._terms = terms

    def __getitem__(self, index: int) -> tuple[Entry, ...]:
        flat = enumerate(self._terms[index].ravel())
        return tuple(Entry(sizes.value_of(term), sizes.is_fixed(term), None, index, place) for place, term in flat)

    def __iter__(self) -> Iterator[int]:
        return iter(self._terms)

    def __len__(self) -> int:
        return len(self._terms)


def infer(
    graph: Graph, observation: Observation, *, residual: bool = False, allow_io: Collection[str] = ()
) -> Structure:
    """Finds the layout of every axis of a model.

    Args:
        graph: the model.
        observation: the shapes of its tensors.
        residual: whether axes that statistics run over are free, as those of a residual stream under normalization.
        allow_io: what inputs and outputs of the model may lose: "head" for the heads that caches hold.

    Raises:
        AssertionError: a rule states that two axes of different sizes are one, which is a fault of the rule.
    """
    return _Inference(graph, observation, residual, allow_io).run()


class _Inference:
    """One pass over a graph; holds what the steps share."""

    def __init__(self, graph: Graph, observation: Observation, residual: bool, allow_io: Collection[str]) -> None:
        self.graph, self.residual, self.allow_io = graph, residual, allow_io
        self.shapes = observation.shapes
        self.types = observation.types
        self.varying: dict[str, frozenset[int]] = {}
        for name, axis in observation.varying:
            self.varying[name] = self.varying.get(name, frozenset()) | {axis}
        axes = {name: tuple(dim(size) for size in shape) for name, shape in observation.shapes.items()}
        self.out = Structure(graph, axes, varying=observation.varying)
        self.place = {id(axis): (name, i) for name, tensor in axes.items() for i, axis in enumerate(tensor)}
        self.terms: dict[str, np.ndarray] = {}
        self.counts: list[tuple[gs.Node, Counts]] = []
        self.stated: list[Number] = []
        self.caches: set[tuple[str, int]] = set()
        self.steering: list[tuple[str, str]] = []
        self.zeros: set[str] = set()
        self.picked: dict[str, str] = {}
        self.applied: set[str] = set()

    def run(self) -> Structure:
        self._start()
        if not self.allow_io:
            self._pin_borders()  # at once, so that this is the reason which is given
        for node in self.graph.nodes:
            self._follow(node)
            self._follow_zeros(node)
            self._follow_picked(node)
            self._apply(node)
        self.out.uses = [use for use in self.out.uses if use.data not in self.applied]  # picking writes no states then
        self._find_caches()
        self._pin_borders()
        for name in (*self.graph.outputs, *captured_names(self.graph.source.graph)):
            self._escape(name, "its size leaves the model as a value")
        for name, node in self.steering:
            self._escape(name, f"its size is used as a value by {node}")
        values = (name for name, _ in self.steering)
        numbering = Numbering(self.graph, self.out.axes, self.types, self.terms, self.counts, values)
        self.out.numbers = [*self.stated, *numbering.settle()]
        if self.graph.inputs and self.shapes[self.graph.inputs[0]]:
            self.out.batch = self.shapes[self.graph.inputs[0]][0]
        return self.out

    def _start(self) -> None:
        """What holds before any node: constants, and the tensors that subgraphs or sparse formats hold."""
        for name, array in self.graph.constants.items():
            self.out.constant.add(name)
            if (terms := sizes.literals(name, array)) is not None:
                self.terms[name] = terms
        made = {tensor.name for node in self.graph.nodes for tensor in node.outputs} | self.out.constant
        read = {tensor.name for node in self.graph.nodes for tensor in node.inputs}
        for names, because in (
            (captured_names(self.graph.source.graph), "a subgraph reads it"),
            (read - made - set(self.graph.inputs), "it is stored in a sparse format"),
        ):
            for name in names:
                self._pin(self.out.axes.get(name, ()), because, name)

        for alike in _equal_weights(self.graph):
            why = Kept("it is stored twice with other axes", alike[0])
            for name in alike[1:]:
                for a, b in zip(self.out.axes[alike[0]], self.out.axes[name], strict=True):
                    unify(a, b, why)

    def _pin_borders(self) -> None:
        """Pins what people outside the graph see, but for the heads in caches that may go."""
        free = self._heads() if "head" in self.allow_io else set()
        for names, border in ((self.graph.inputs, INPUT), (self.graph.outputs, OUTPUT)):
            for name in names:
                for i, axis in enumerate(self.out.axes.get(name, ())):
                    spared = free if (name, i) in self.caches else set()
                    self._pin([leaf for leaf in leaves(axis) if leaf not in spared], border, name)

    def _find_caches(self) -> None:
        """Finds the caches of a plain graph, and says of heads that stay because of a cache what would let them go.

        A cache is an input that comes out again, with all axes but one at most as they were.
        """
        for names in itertools.product(self.graph.inputs, self.graph.outputs):
            pair = [self.out.axes.get(name, ()) for name in names]
            kept = [i for i, axes in enumerate(zip(*pair, strict=False)) if same(*axes)]
            if len(pair[0]) == len(pair[1]) <= len(kept) + 1:
                self.caches |= set(itertools.product(names, kept))
        heads = self._heads() if "head" not in self.allow_io else set()
        for name, i in self.caches:
            for leaf in heads.intersection(leaves(self.out.axes[name][i])):
                if leaf.kept and leaf.kept.because in (INPUT, OUTPUT):
                    leaf.kept = Kept(CACHE, leaf.kept.node)

    def _heads(self) -> set[Dim]:
        """What attention says are heads, as far as layouts are known by now."""
        return {leaf for axis, kind in self.out.kinds if kind == HEAD for leaf in leaves(axis)}

    def _pin(self, axes: Iterable[Layout], because: str, node: str) -> None:
        for axis in axes:
            pin(axis, Kept(because, node))

    def _follow(self, node: gs.Node) -> None:
        """Follows integers through a node, and constants."""
        names = [tensor.name for tensor in node.inputs]
        outputs = [tensor.name for tensor in node.outputs]
        if any(names) and all(name in self.out.constant for name in names if name):
            self.out.constant.update(outputs)
        if node.domain not in (None, "", "ai.onnx") or (node.op == "Shape" and names[0] not in self.shapes):
            return
        if any(math.prod(self.shapes.get(name, ())) > sizes.LIMIT for name in outputs):
            return  # data, whatever they are made of
        shapes = [(name, self.shapes.get(name, ()), self.varying.get(name, frozenset())) for name in names]
        found = sizes.follow(node.op, node.attrs, [self.terms.get(name) for name in names], shapes)
        for name, terms in zip(outputs, found or (), strict=False):
            if terms.shape == self.shapes.get(name):
                self.terms[name] = sizes.placed(name, terms)
                if name in self.types and all(sizes.is_fixed(term) for term in terms.ravel()):
                    values = [sizes.value_of(term) for term in terms.ravel()]
                    self.out.computed[name] = np.array(values, self.types[name]).reshape(terms.shape)

    def _follow_zeros(self, node: gs.Node) -> None:
        """Follows zeros from where the model makes them to where it has moved them."""
        source = node.inputs[0].name if node.inputs else ""
        if node.op == "ConstantOfShape":
            zero = "value" not in node.attrs or not np.any(node.attrs["value"].values)
        else:
            array = self.graph.constants.get(source)
            one = node.op == "Expand" and array is not None and array.size == 1 and not np.any(array)
            zero = node.op in MOVES and (one or source in self.zeros)
        if zero:
            self.zeros.update(tensor.name for tensor in node.outputs)

    def _follow_picked(self, node: gs.Node) -> None:
        """Follows weights of which data pick some, such as those of experts, from the constant that they come from."""
        source = node.inputs[0].name if node.inputs else ""
        output = first_output(node)
        if node.op in MOVES and output not in self.out.constant:
            origin = self.picked.get(source, source if source in self.graph.constants else "")
            self.picked |= {output: origin} if origin else {}

    def _apply(self, node: gs.Node) -> None:
        """Applies a node's rule, and pins the axes that it does not mention."""
        view = self._view(node)
        tensors = [x for x in (*view.inputs, *view.outputs) if x is not None]
        registered = find_rule(node.domain or "", node.op, view.version)
        because = f"{node.op} works on this axis as a whole"
        facts: list[Fact] = []
        if registered is None:
            because = self._unruled(node, view.version)
        else:
            try:
                facts = list(registered.rule(view))
            except Refusal as refusal:
                because = str(refusal)
            if registered.linear and facts:
                self.out.linear.add(first_output(node))
        seen = {id(leaf) for fact in facts for part in _parts(fact) for leaf in mentioned(part)}
        for fact in facts:
            self._state(node, fact)
        for tensor in tensors:
            self._pin((axis for axis in tensor.axes if id(axis) not in seen), because, label(node))
        followed = all(tensor.name in self.terms for tensor in node.outputs)
        for i, tensor in enumerate(node.inputs):
            steers = tensor.name in self.terms and tensor.name not in self.graph.constants
            if steers and not followed and i not in view.read:
                self.steering.append((tensor.name, label(node)))

    def _unruled(self, node: gs.Node, version: int) -> str:
        """Why a node without a rule keeps all its axes."""
        where = f" of domain {node.domain}" if node.domain else ""
        if any(function.name == node.op and function.domain == node.domain for function in self.graph.source.functions):
            return f"{node.op}{where} is a local function, which is left whole"
        if any(hasattr(value, "nodes") for value in node.attrs.values()):
            return f"{node.op} has a body of its own, which is left whole"
        return f"{node.op}{where} has no rule (opset {version})"

    def _view(self, node: gs.Node) -> Node:
        """The node as its rule sees it."""
        attrs = {k: v for k, v in node.attrs.items() if isinstance(v, int | float | str | list)}
        numbers = Numbers({i: self.terms[x.name] for i, x in enumerate(node.inputs) if x.name in self.terms})
        inputs, outputs = (tuple(self._tensor(t.name) for t in x) for x in (node.inputs, node.outputs))
        zeros = frozenset(i for i, tensor in enumerate(node.inputs) if tensor.name in self.zeros)
        return Node(node.op, self.graph.opset(node.domain or ""), inputs, outputs, attrs, numbers, zeros)

    def _tensor(self, name: str) -> Tensor | None:
        if name not in self.out.axes:
            return None
        return Tensor(name, self.out.axes[name], name in self.out.constant, name in self.picked)

    def _state(self, node: gs.Node, fact: Fact) -> None:
        """Takes one fact over."""
        if isinstance(fact, Same):
            why = Kept(f"{node.op} ties axes that have no common parts", label(node))
            unify(fact.a, fact.b, why)
            if fact.role:
                self._note_use(node, fact)
        elif isinstance(fact, Normalized) and self.residual:
            output = first_output(node)
            self.out.normalized[output] = (*self.out.normalized.get(output, ()), fact.axis)
        elif isinstance(fact, Pinned | Normalized):
            pin(fact.axis, Kept(fact.because, label(node)))
        elif isinstance(fact, Counts):
            self.counts.append((node, fact))
        elif isinstance(fact, Met):
            sides = tuple(self.place.get(id(axis)) for axis in (fact.a, fact.b))
            if sides[0] and sides[1]:
                self.out.meetings.append(Meeting(first_output(node), (sides[0], sides[1]), fact.part))
        elif isinstance(fact, Called):
            self.out.kinds.append((fact.axis, fact.kind))
        elif isinstance(fact, Omitted):
            self.out.omitted.append((first_output(node), fact.input, fact.axes))
        elif isinstance(fact, Stated):
            entry = Entry(fact.value, True, fact.name, None, 0, stated=False)
            self.stated.append(Number(first_output(node), entry, None, None, None, fact.when))
        elif isinstance(fact, Cached) and fact.axis.size > 1:  # axes of one position are one object
            self.caches.add(self.place[id(fact.axis)])
        elif isinstance(fact, Work):
            self.out.work[first_output(node)] = fact.axes

    def _note_use(self, node: gs.Node, fact: Same) -> None:
        """Notes which weight reads or writes which units."""
        data, weight = (fact.a, fact.b) if fact.role == "reads" else (fact.b, fact.a)
        weights = [self.place[id(leaf)] for leaf in mentioned(weight) if id(leaf) in self.place]
        others = [self.place[id(leaf)] for leaf in mentioned(data) if id(leaf) in self.place]
        part = fact.part if fact.part is not None else weight
        use = partial(Use, fact.role, label(node), node.op, first_output(node))
        for name, axis in weights:
            if name in self.picked:
                self.applied.add(name)
                layout, name = self.out.axes[name][axis], self.picked[name]
                axis = next((i for i, whole in enumerate(self.out.axes[name]) if same(whole, layout)), -1)
            if name in self.out.constant and axis >= 0:
                self.out.uses += [use(name, axis, part, other, other_axis) for other, other_axis in others]

    def _escape(self, name: str, because: str) -> None:
        """A tensor holds sizes but is read for its values: it stays what it was, or pins the axes it speaks of."""
        terms = self.terms[name].ravel() if name in self.terms else ()
        axes = [self.out.axes[size.tensor][size.axis] for term in terms for size in sizes.sizes_in(term)]
        if name in self.out.computed and name not in self.graph.outputs:
            self.out.values[name] = axes
        else:
            self._pin(axes, because, name)


def _parts(fact: Fact) -> Iterator[Layout]:
    """The layouts that a fact speaks of."""
    if isinstance(fact, Same):
        yield from (fact.a, fact.b)
    elif isinstance(fact, Called | Met | Omitted | Stated | Work):
        return  # none of them is a statement about what may happen to an axis
    else:
        yield fact.axis


def _equal_weights(graph: Graph) -> Iterator[list[str]]:
    """Weights of two axes or more with the same content, but for uniform ones: exporters fold a shared one per use."""
    alike: dict[Any, list[str]] = defaultdict(list)
    for name, array in graph.constants.items():
        if sum(size > 1 for size in array.shape) > 1 and name not in graph.copies and array.dtype.kind not in "biuSUO":
            alike[array.shape, array.dtype, array.ravel()[:: max(1, array.size // 64)].tobytes()].append(name)
    for names in alike.values():
        while len(names) > 1:
            first = graph.constants[names[0]]
            equal = [name for name in names if np.array_equal(graph.constants[name], first)]
            if len(equal) > 1 and first.min() != first.max():
                yield equal
            names = [name for name in names if name not in equal and name != names[0]]
