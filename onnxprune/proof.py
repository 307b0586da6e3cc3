"""The proof that a compact model computes what the masked original does, and how much it sees.

The masked original runs, and what it computes is noted. Each node of the compact model that surgery may have touched is
then given what the masked original gave it, and must make of it what the masked original made. So no rounding adds up
over depth, nothing hides behind an output that is saturated or a class that stays the same, every tensor is held to its
own scale, and integers must be equal; since the nodes are joined as they were, the whole is equal, too. The outputs of
the compact model as the file has it are compared as well.

What the proof cannot see it says: every weight that was cut is spoiled a little, and the comparison must notice it.

Nodes are looked at part by part, and on fewer samples where they make much, so that the proof of a large model needs
neither a second copy of it nor all of its activations at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.apart import Apart, Spoiled, read_by, sizes_of, take_apart, touched
from onnxprune.differences import MANY_STEPS, difference, noise, sampled, usual
from onnxprune.errors import ModelError, VerificationError
from onnxprune.findings import Proof
from onnxprune.graph import Graph
from onnxprune.masking import OWN_READER, ZERO_POINTS, check_plan, masked_parts
from onnxprune.precision import is_half
from onnxprune.records import Plan, reference, rows_of, take
from onnxprune.runtime import Feeds, Session
from onnxprune.surgery import cut, fed
from onnxprune.units import Units
from onnxprune.writing import Message

if TYPE_CHECKING:
    import onnx

LOCAL = 1e-5
"""Largest difference of what one node makes, relative to itself or to what is usual in its tensor."""

TOLERANCE = 1e-4
"""The same for the outputs of the whole model, and of nodes that take many steps: there roundings add up."""

QUANTUM = 0.02
"""The same where activations are quantized: two steps of eight bits, for sums that lie at a tie and are rounded."""

ROUNDING, ROUNDED, MARGIN = 2.0**-21, 3, 8.0
"""By how much inputs are moved to see what roundings do to an output, how often, and how much more is believed."""

BYTES, BATCHES, PART_BYTES = 128 << 20, 4, 64 << 20
"""Bytes of activations that a batch may make, how many times that all batches may, and those looked at at a time."""

RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
"""Operators that draw other numbers in every run; Dropout does in training."""


def prove(units: Units, plan: Plan, compact: Graph, probes: Sequence[Feeds], *, device: str = "cpu") -> Proof:
    """Holds a compact model to the masked original, in which normalizations run over what is kept.

    Args:
        units: the original.
        plan: what was removed.
        compact: the result of `remove`.
        probes: batches, an array for each input of the original in each. The first must run; others that the original
            cannot run are left out.
        device: where to run the models.

    Raises:
        VerificationError: they differ; the message names the first tensor that does.
        PlanError: the plan is for another model.
    """
    check_plan(units.graph, plan)
    return _Trial(units, plan, compact, device).run(probes)


def verify(units: Units, plan: Plan, compact: Graph, feeds: Feeds, *, device: str = "cpu") -> float:
    """Proves a compact model on one batch, as `prove` does.

    Returns:
        The largest difference of any output, relative to its values.
    """
    return prove(units, plan, compact, [feeds], device=device).difference


class _Trial:
    """A compact model against the masked original; holds what the steps share."""

    def __init__(self, units: Units, plan: Plan, compact: Graph, device: str) -> None:
        self.units, self.plan, self.compact, self.device = units, plan, compact, device
        self.model = compact.skeleton()[0]
        self.original = units.graph.skeleton()[0]
        self.places = {tuple(node.output): i for i, node in enumerate(self.original.graph.node)}
        self.makers = {name: node for node in self.model.graph.node for name in node.output if name}
        self.sizes = sizes_of(self.model, compact.constants, plan)
        self.made = {tensor.name for node in units.graph.nodes for tensor in node.outputs if tensor.name}
        self.nodes = touched(units.graph, plan, compact, self.model)
        outputs = set(units.graph.outputs)
        near = outputs.union(*(self.near(self.model.graph.node[i]) for i in self.nodes))
        self.names = sorted(near & self.made)
        masked, shared = masked_parts(units, plan)
        masked.graph.output.extend(type(masked.graph.output[0])(name=n) for n in self.names if n not in outputs)
        message = Message.of(masked, shared, single=True)
        self.widened = message.widened
        self.masked = Session(message, device=device, optimize=False)
        self.tolerance = QUANTUM if is_quantized(units.graph) else TOLERANCE
        self.compared: set[str] = set()
        self.unstable: set[str] = set()
        self.noticed: set[str] = set()
        self.unseen: dict[str, str] = {}

    def run(self, probes: Sequence[Feeds]) -> Proof:
        """Compares node by node, and then the outputs."""
        if self.widened:
            Session(self.compact.message(), device=self.device).run(fed(self.plan, probes[0]))  # as it is, too
        batches: list[tuple[Feeds, dict[str, Any]]] = []
        used = 0.0
        for feeds in map(self._few, probes):
            used += (needed := sum(self._bytes(i, feeds) for i in self.nodes))
            if batches and used > BATCHES * BYTES:
                used -= needed
                continue
            try:
                batches.append((feeds, self._noted(feeds)))
            except ModelError:
                if not batches:
                    raise
        first, whole = batches[0]
        self.unstable = unstable(whole, self._noted(first))
        for nodes in self._parts(first):
            part = _Part(self, nodes)
            for _, whole in batches:
                part.compare(whole)
        largest = max(self._compare_outputs(*batch) for batch in batches)
        count = len(self.noticed | self.unseen.keys())
        random = tuple(name for name in self.units.graph.outputs if name in self.unstable)
        samples = sum(rows_of(feeds) for feeds, _ in batches)
        return Proof(largest, samples, len(self.compared), count, dict(sorted(self.unseen.items())), random)

    def near(self, node: onnx.NodeProto) -> set[str]:
        """What a node reads and makes, and what the sizes are computed from that it reads."""
        near: set[str] = set()
        queue = [node]
        while queue:
            node = queue.pop()
            new = {name for name in (*read_by(node), *node.output) if name} - near
            queue += [self.makers[name] for name in new & self.sizes if name in self.makers]
            near |= new
        return near

    def _noted(self, feeds: Feeds) -> dict[str, Any]:
        """What the masked original makes of inputs, and the inputs, masked too."""
        shrunk = {name: array for name, array in feeds.items() if name in self.plan.activations}
        masked = {n: np.where(_kept(x, n, self.plan), x, x.dtype.type(0)) for n, x in shrunk.items()}
        return {**dict(zip(self.names, self.masked.run(feeds, self.names), strict=True)), **feeds, **masked}

    def cut(self, name: str, value: Any) -> Any:
        """What the compact model has of it."""
        return cut(value, name, self.plan) if isinstance(value, np.ndarray) else value

    def _bytes(self, node: int, feeds: Feeds) -> float:
        """About how much a node of the compact model reads and makes."""
        axes = self.units.structure.axes
        seen = sum(math.prod(axis.size for axis in axes[name]) for name in feeds)
        more = sum(array.size for array in feeds.values()) / max(seen, 1)
        names = [name for name in self.near(self.model.graph.node[node]) if name in axes and name in self.made]
        return 4 * more * sum(math.prod(axis.size for axis in axes[name]) for name in names)

    def _few(self, feeds: Feeds) -> Feeds:
        """A batch in float32, of as many samples as do not make too much."""
        if self.widened:
            feeds = {name: x.astype(np.float32) if is_half(x.dtype) else x for name, x in feeds.items()}
        rows = rows_of(feeds)
        each = sum(self._bytes(i, feeds) for i in self.nodes) / max(rows, 1)
        fixed = any(isinstance(size, int) for _, _, shape in self.masked.inputs for size in shape[:1])
        return feeds if fixed or each * rows <= BYTES else take(feeds, slice(0, max(1, int(BYTES // each))))

    def _parts(self, feeds: Feeds) -> Iterator[list[int]]:
        """The nodes in order, as many at a time as do not make too much."""
        part: list[int] = []
        used = 0.0
        for node in self.nodes:
            needed = self._bytes(node, feeds)
            if part and used + needed > PART_BYTES:
                yield part
                part, used = [], 0.0
            part.append(node)
            used += needed
        if part:
            yield part

    def _compare_outputs(self, feeds: Feeds, whole: Mapping[str, Any]) -> float:
        """The outputs of the compact model as it is against those of the masked original; the largest difference."""
        names, largest = self.units.graph.outputs, 0.0
        small = Session(self.compact.message(single=True), device=self.device)
        for name, found in zip(names, small.run(fed(self.plan, feeds), names), strict=True):
            if name not in self.made or name in self.unstable:
                continue
            expected = self.cut(name, whole[name])
            pairs = [(expected, found)] if isinstance(expected, np.ndarray) else list(zip(expected, found, strict=True))
            by = max((difference(a, b) for a, b in pairs), default=0.0)
            if by > self.tolerance and by > self._rounding(feeds, name):
                raise self.error(name, by)
            largest = max(largest, by if np.isfinite(by) else 0.0)
            self.compared.add(name)
        return largest

    def _rounding(self, feeds: Feeds, name: str) -> float:
        """How far roundings alone move an output of the original; infinite where they change what is no number."""
        variants = [feeds]
        for seed in range(ROUNDED):
            generator = np.random.default_rng(seed)
            variants.append({n: _rounded(x, generator) for n, x in feeds.items()})
        masked, shared = masked_parts(self.units, self.plan)
        session = Session(Message.of(masked, shared, single=True), device=self.device)
        first, *others = (session.run(variant, [name])[0] for variant in variants)
        plain = self.masked.run(feeds, [name])[0]
        return MARGIN * max(difference(first, other) for other in (plain, *others))

    def error(self, name: str, by: float) -> VerificationError:
        """What to say of the first tensor that differs."""
        return VerificationError(
            f"the compact model differs from {reference(exact=not self.plan.inexact)}, first in tensor '{name}' (by "
            f"{by:.2g} relative to its values); nothing was written. Please report this with the model."
        )


class _Part:
    """Some of the touched nodes, each by itself."""

    def __init__(self, trial: _Trial, nodes: Sequence[int]) -> None:
        self.trial, self.nodes = trial, nodes
        self.protos = {i: trial.model.graph.node[i] for i in nodes}
        self.near = set().union(*(trial.near(node) for node in self.protos.values()))
        self.random = {name for node in self.protos.values() if self._draws(node) for name in node.output}
        self.apart: tuple[Apart, Session] | None = None

    def _draws(self, node: onnx.NodeProto) -> bool:
        """Whether a node makes other numbers in every run although it reads the same ones."""
        moving = self.trial.unstable
        drawn = node.op_type in RANDOM or (node.op_type == "Dropout" and len(node.input) > 2)
        return drawn or (moving.isdisjoint(read_by(node)) and not moving.isdisjoint(node.output))

    def compare(self, whole: Mapping[str, Any]) -> None:
        """Compares on one batch, on the first one also with activations that are moved.

        Args:
            whole: what the masked original has.
        """
        near = {*self.near, *self.trial.units.graph.inputs}
        whole = {name: x for name, x in whole.items() if name in near}
        values = {name: self.trial.cut(name, x) for name, x in whole.items()}
        first = self.apart is None
        if first:
            apart = take_apart(self.trial.compact, self.nodes, self._given(values), self._weights())
            self.apart = apart, Session(apart.message, device=self.trial.device, optimize=False)
        self._compare(values, values)
        if first:
            self._compare_moved(whole, values)

    def _given(self, values: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """What nodes that are taken apart are given: arrays that are no sizes."""
        trial = self.trial
        return {
            name: values[name]
            for name in sorted({*self.near, *trial.compact.inputs} & values.keys())
            if isinstance(values[name], np.ndarray) and not (name in trial.sizes and _is_size(values[name]))
        }

    def _weights(self) -> dict[str, int]:
        """The weights to spoil, and an axis of each that was cut; integers of 64 bits are places and sizes."""
        constants = self.trial.compact.constants
        cut_axes = {name: next(iter(axes)) for name, axes in self.trial.plan.initializers.items() if name in constants}
        return {name: axis for name, axis in cut_axes.items() if constants[name].dtype != np.int64}

    def _compare_moved(self, whole: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        """The nodes once more, on activations that are moved at random: no unit is dead, nothing is saturated.

        Not nodes whose masked form is not the original node: those that read their own results, or kept positions only.
        Nor what holds units that go without a trace, which are only as they are in relation to others.
        """
        trial = self.trial
        plain = [trial.places[key] for n in self.protos.values() if (key := tuple(n.output)) in trial.places]
        plain = [i for i in plain if self._is_plain(trial.original.graph.node[i])]
        generator = np.random.default_rng(0)
        given = self._given(whole)
        moved = {
            name: _moved(x, name, trial.plan, generator)
            for name, x in given.items()
            if name in trial.plan.activations and name not in trial.plan.spared and x.dtype.kind == "f"
        }
        apart = take_apart(trial.units.graph, plain, given, {})
        if not moved or not apart.results:
            return
        inputs = {name: moved.get(name, whole[name]) for name in apart.inputs}
        try:
            made = Session(apart.message, device=trial.device, optimize=False).run(inputs, [*apart.results.values()])
        except ModelError:  # numbers that data have, but not others
            return
        expected = {name: trial.cut(name, x) for name, x in zip(apart.results, made, strict=True)}
        self._compare({**values, **{name: trial.cut(name, x) for name, x in moved.items()}}, expected)

    def _is_plain(self, node: onnx.NodeProto) -> bool:
        """Whether a node of the original is what the masked original has in its place."""
        return node.op_type not in OWN_READER and not set(node.output) & {*self.trial.plan.inexact, *self.random}

    def _compare(self, values: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
        """Each node against what is expected of it, and with spoiled weights against the same.

        Args:
            values: what the nodes are given.
            expected: what they must make; nodes of which nothing is expected are left out.
        """
        assert self.apart is not None
        (apart, session), trial = self.apart, self.trial
        shown = [*apart.results.values(), *(output for s in apart.spoiled for output in s.results.values())]
        if not shown:
            return
        found = dict(zip(shown, session.run({name: values[name] for name in apart.inputs}, shown), strict=True))
        known = {name for name in apart.results if name in expected and name not in self.random}
        floors = {name: self._noise(apart.makers[name], values) / LOCAL for name in known}

        def off(tensor: str, output: str, *, some: bool = False) -> float:
            """How far a result is off, or some of its numbers are; 0 where that is no more than roundings."""
            a, b = (sampled(x) if some else x for x in (expected[tensor], found[output]))
            by = difference(a, b, noise=floors[tensor])
            many = self.protos[apart.makers[tensor]].op_type in MANY_STEPS
            return by if by > (TOLERANCE if many else LOCAL) else 0.0

        for tensor, output in apart.results.items():
            if tensor in known:
                if by := off(tensor, output):
                    raise trial.error(tensor, by)
                trial.compared.add(tensor)
        for spoiled in apart.spoiled:
            if any(off(tensor, output, some=True) for tensor, output in spoiled.results.items() if tensor in known):
                trial.noticed.add(spoiled.weight)
                trial.unseen.pop(spoiled.weight, None)
            elif spoiled.weight not in trial.noticed:
                trial.unseen[spoiled.weight] = self._why_unseen(spoiled, values)

    def _noise(self, node: int, values: Mapping[str, Any]) -> float:
        """By how much what a node makes may differ since larger terms cancel."""
        proto = self.protos[node]
        known = (values.get(name, self.trial.compact.constants.get(name)) for name in proto.input)
        return noise(proto.op_type, [x for x in known if isinstance(x, np.ndarray) and x.dtype.kind == "f"])

    def _why_unseen(self, spoiled: Spoiled, values: Mapping[str, Any]) -> str:
        """Why nobody would have noticed that a weight is wrong, in the reader's words."""
        made = [values[tensor] for tensor in spoiled.results]
        read = [values[name] for name in self.protos[spoiled.node].input if name in values]
        if any(x.dtype.kind == "f" and not np.isfinite(x).any() for x in made if x.size):
            return "what it makes is no number"
        if read and all(isinstance(x, np.ndarray) and not np.any(x) for x in read):
            return "it reads nothing but zeros"
        if not any(x.size for x in made):
            return "it makes nothing"
        return "it makes no visible difference"


def is_quantized(graph: Graph) -> bool:
    """Whether a model rounds activations to integers, so that equal sums may fall to either side of a tie."""
    return any(node.op in (*ZERO_POINTS, "DynamicQuantizeLinear") for node in graph.nodes)


def unstable(once: Mapping[str, Any], again: Mapping[str, Any]) -> set[str]:
    """The arrays that are others in another run on the same inputs."""
    return {name for name, x in once.items() if isinstance(x, np.ndarray) and difference(x, again[name]) > 0}


def _is_size(array: np.ndarray) -> bool:
    """Whether an array that was computed from sizes may be other numbers where sizes are others."""
    return array.dtype.kind in "iub" or array.ndim < 2


def _moved(array: np.ndarray, name: str, plan: Plan, generator: np.random.Generator) -> np.ndarray:
    """An activation with noise of its own size at the positions that a plan keeps."""
    size = usual(array) / 4 or 1.0
    noisy = (array + size * generator.standard_normal(array.shape)).astype(array.dtype)
    return np.where(_kept(array, name, plan), noisy, array)


def _kept(array: np.ndarray, name: str, plan: Plan) -> np.ndarray:
    """True at the positions of a tensor that a plan keeps, broadcast to it."""
    keep = np.ones((1,) * array.ndim, bool)
    for axis, kept in plan.activations.get(name, {}).items():
        period = plan.periods.get(name, {}).get(axis, array.shape[axis])
        along = np.isin(np.arange(array.shape[axis]) % period, kept)
        keep = keep & along.reshape([-1 if i == axis else 1 for i in range(array.ndim)])
    return keep


def _rounded(array: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Numbers of which each is another one nearby."""
    if array.dtype.kind != "f":
        return array
    return (array * (1 + ROUNDING * generator.standard_normal(array.shape))).astype(array.dtype)
