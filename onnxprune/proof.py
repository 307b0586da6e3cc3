"""The proof that a compact model computes what the masked original does, and how much it sees.

The masked original runs, and what it computes is noted. Each node of the compact model that surgery may have touched is
then given what the masked original gave it, and must make of it what the masked original made. So no rounding adds up
over depth, nothing hides behind an output that is saturated or a class that stays the same, every tensor is held to its
own scale, and integers must be equal; since the nodes are joined as they were, the whole is equal, too. The outputs of
the compact model as the file has it are compared as well.

What the proof cannot see it says: every weight that was cut is spoiled a little, and the comparison must notice it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.apart import Apart, Spoiled, read_by, sizes_of, take_apart, touched
from onnxprune.differences import MANY_STEPS, difference, noise, usual
from onnxprune.errors import ModelError, VerificationError
from onnxprune.findings import Proof
from onnxprune.graph import Graph
from onnxprune.masking import OWN_READER, ZERO_POINTS, check_plan, masked_parts
from onnxprune.precision import is_half
from onnxprune.records import Plan, reference, rows_of
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
    trial = _Trial(units, plan, compact, device)
    for i, feeds in enumerate(probes):
        try:
            trial.run(feeds)
        except ModelError:
            if i == 0:
                raise
    return trial.proof()


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
        self.nodes = touched(units.graph, plan, compact, self.model)
        self.sizes = sizes_of(self.model, compact.constants, plan)
        made = {tensor.name for node in units.graph.nodes for tensor in node.outputs if tensor.name}
        self.near = self._near()
        self.names = sorted((self.near | set(units.graph.outputs)) & made)
        masked, shared = masked_parts(units, plan)
        known = set(units.graph.outputs)
        masked.graph.output.extend(type(masked.graph.output[0])(name=n) for n in self.names if n not in known)
        message = Message.of(masked, shared, single=True)
        self.widened = message.widened
        self.masked = Session(message, device=device, optimize=False)
        self.small = Session(compact.message(single=True), device=device)
        self.apart: tuple[Apart, Session] | None = None
        self.quantized = is_quantized(units.graph)
        self.random: set[str] = set()
        self.unstable: set[str] = set()
        self.compared: set[str] = set()
        self.noticed: set[str] = set()
        self.unseen: dict[str, str] = {}
        self.largest, self.samples = 0.0, 0

    def _near(self) -> set[str]:
        """What the touched nodes read and make, and what the sizes are computed from that they read."""
        makers = {name: node for node in self.model.graph.node for name in node.output if name}
        near: set[str] = set()
        queue = [self.model.graph.node[i] for i in self.nodes]
        while queue:
            node = queue.pop()
            new = {name for name in (*read_by(node), *node.output) if name} - near
            queue += [makers[name] for name in new & self.sizes if name in makers]
            near |= new
        return near

    def run(self, feeds: Feeds) -> None:
        """Compares on one batch."""
        first = not self.samples
        if self.widened:
            if first:
                Session(self.compact.message(), device=self.device).run(fed(self.plan, feeds))  # as it is, too
            feeds = {name: _single(array) for name, array in feeds.items()}
        whole = self._noted(feeds)
        values = {name: self._cut(name, x) for name, x in whole.items()}
        if first:
            self._note_random(whole, self._noted(feeds))
            self.apart = self._taken_apart(values)
        if self.apart is not None:
            self._compare_nodes(values, values)
            if first:
                self._compare_stirred(whole, values)
        self._compare_outputs(feeds, values)
        self.samples += rows_of(feeds)

    def _noted(self, feeds: Feeds) -> dict[str, Any]:
        """What the masked original has, its inputs masked too."""
        shrunk = {name: array for name, array in feeds.items() if name in self.plan.activations}
        masked = {n: np.where(_kept(x, n, self.plan), x, x.dtype.type(0)) for n, x in shrunk.items()}
        return {**dict(zip(self.names, self.masked.run(feeds, self.names), strict=True)), **feeds, **masked}

    def _cut(self, name: str, value: Any) -> Any:
        """What the compact model has of it."""
        return cut(value, name, self.plan) if isinstance(value, np.ndarray) else value

    def _note_random(self, whole: Mapping[str, Any], again: Mapping[str, Any]) -> None:
        """Finds what is another number in every run, from two runs of the original."""
        self.unstable = {
            name for name, x in whole.items() if isinstance(x, np.ndarray) and difference(x, again[name]) > 0
        }
        for i in self.nodes:
            node = self.model.graph.node[i]
            draws = node.op_type in RANDOM or (node.op_type == "Dropout" and len(node.input) > 2)
            if draws or (self.unstable.isdisjoint(read_by(node)) and not self.unstable.isdisjoint(node.output)):
                self.random.update(node.output)

    def _taken_apart(self, values: Mapping[str, Any]) -> tuple[Apart, Session] | None:
        """The touched nodes, each by itself, with weights that are right and with weights that are spoiled."""
        given = self._given(values)
        weights = {
            name: next(iter(axes))
            for name, axes in self.plan.initializers.items()
            if name in self.compact.constants and self.compact.constants[name].dtype != np.int64
        }
        apart = take_apart(self.compact, self.nodes, given, weights)
        if not apart.results:
            return None
        return apart, Session(apart.message, device=self.device, optimize=False)

    def _given(self, values: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """What nodes that are taken apart are given: arrays that are no sizes."""
        return {
            name: values[name]
            for name in sorted({*self.near, *self.compact.inputs} & values.keys())
            if isinstance(values[name], np.ndarray) and not (name in self.sizes and _is_size(values[name]))
        }

    def _compare_stirred(self, whole: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        """The nodes once more, on activations that are moved at random: no unit is dead, nothing is saturated.

        Not nodes whose masked form is not the original node: those that read their own results, or kept positions only.
        Nor what holds units that go without a trace, which are only as they are in relation to others.
        """
        model = self.units.graph.skeleton()[0]
        at = {tuple(node.output): i for i, node in enumerate(model.graph.node)}
        nodes = [self.model.graph.node[i] for i in self.nodes]
        plain = [at[tuple(n.output)] for n in nodes if tuple(n.output) in at and self._is_plain(n)]
        generator = np.random.default_rng(0)
        moved = {
            name: _stirred(x, name, self.plan, generator)
            for name, x in self._given(whole).items()
            if name in self.plan.activations and name not in self.plan.spared and x.dtype.kind == "f"
        }
        apart = take_apart(self.units.graph, plain, self._given(whole), {})
        if not moved or not apart.results:
            return
        inputs = {name: moved.get(name, whole[name]) for name in apart.inputs}
        try:
            made = Session(apart.message, device=self.device, optimize=False).run(inputs, [*apart.results.values()])
        except ModelError:  # numbers that data have, but not others
            return
        expected = {name: self._cut(name, x) for name, x in zip(apart.results, made, strict=True)}
        self._compare_nodes({**values, **{name: self._cut(name, x) for name, x in moved.items()}}, expected)

    def _is_plain(self, node: onnx.NodeProto) -> bool:
        """Whether a node of the original is what the masked original has in its place."""
        return node.op_type not in OWN_READER and not set(node.output) & {*self.plan.inexact, *self.random}

    def _compare_nodes(self, values: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
        """Each touched node against what is expected of it, and with spoiled weights against the same.

        Args:
            values: what the nodes are given.
            expected: what they must make; nodes of which nothing is expected are left out.
        """
        assert self.apart is not None
        apart, session = self.apart
        shown = [*apart.results.values(), *(output for s in apart.spoiled for output in s.results.values())]
        found = dict(zip(shown, session.run({name: values[name] for name in apart.inputs}, shown), strict=True))
        known = {name for name in apart.results if name in expected and name not in self.random}
        floors = {name: self._noise(apart.makers[name], values) / LOCAL for name in known}
        steps = {name: self.model.graph.node[apart.makers[name]].op_type in MANY_STEPS for name in known}

        def off(tensor: str, output: str) -> float:
            """How far a result is off, 0 where that is no more than roundings."""
            by = difference(expected[tensor], found[output], noise=floors[tensor])
            return by if by > (TOLERANCE if steps[tensor] else LOCAL) else 0.0

        for tensor, output in apart.results.items():
            if tensor in known:
                if by := off(tensor, output):
                    raise self._error(tensor, by)
                self.compared.add(tensor)
        for spoiled in apart.spoiled:
            seen = any(off(tensor, output) for tensor, output in spoiled.results.items() if tensor in known)
            if seen or spoiled.weight in self.noticed:
                self.noticed.add(spoiled.weight)
                self.unseen.pop(spoiled.weight, None)
            else:
                self.unseen[spoiled.weight] = self._why_unseen(spoiled, values)

    def _noise(self, node: int, values: Mapping[str, Any]) -> float:
        """By how much what a node makes may differ since terms of its sums cancel."""
        proto = self.model.graph.node[node]
        known = (values.get(name, self.compact.constants.get(name)) for name in proto.input)
        return noise(proto.op_type, [x for x in known if isinstance(x, np.ndarray) and x.dtype.kind == "f"])

    def _why_unseen(self, spoiled: Spoiled, values: Mapping[str, Any]) -> str:
        """Why nobody would have noticed that a weight is wrong, in the reader's words."""
        made = [values[tensor] for tensor in spoiled.results]
        read = [values[name] for name in self.model.graph.node[spoiled.node].input if name in values]
        if any(x.dtype.kind == "f" and not np.isfinite(x).any() for x in made if x.size):
            return "what it makes is no number"
        if read and all(isinstance(x, np.ndarray) and not np.any(x) for x in read):
            return "it reads nothing but zeros"
        if not any(x.size for x in made):
            return "it makes nothing"
        return "it makes no visible difference"

    def _compare_outputs(self, feeds: Feeds, values: Mapping[str, Any]) -> None:
        """The outputs of the compact model as it is against those of the masked original."""
        names = self.units.graph.outputs
        for name, found in zip(names, self.small.run(fed(self.plan, feeds), names), strict=True):
            if name not in values or name in self.unstable:
                continue
            expected = values[name]
            pairs = [(expected, found)] if isinstance(expected, np.ndarray) else list(zip(expected, found, strict=True))
            for a, b in pairs:
                by = difference(a, b)
                if by > (QUANTUM if self.quantized else TOLERANCE) and by > self._rounding(feeds, name):
                    raise self._error(name, by)
                self.largest = max(self.largest, by if np.isfinite(by) else 0.0)
            self.compared.add(name)

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

    def _error(self, name: str, by: float) -> VerificationError:
        return VerificationError(
            f"the compact model differs from {reference(exact=not self.plan.inexact)}, first in tensor '{name}' (by "
            f"{by:.2g} relative to its values); nothing was written. Please report this with the model."
        )

    def proof(self) -> Proof:
        """What all batches have shown."""
        outputs = tuple(name for name in self.units.graph.outputs if name in self.unstable)
        count = len(self.noticed | self.unseen.keys())
        return Proof(self.largest, self.samples, len(self.compared), count, dict(sorted(self.unseen.items())), outputs)


def is_quantized(graph: Graph) -> bool:
    """Whether a model rounds activations to integers, so that equal sums may fall to either side of a tie."""
    return any(node.op in (*ZERO_POINTS, "DynamicQuantizeLinear") for node in graph.nodes)


def _is_size(array: np.ndarray) -> bool:
    """Whether an array that was computed from sizes may be other numbers where sizes are others."""
    return array.dtype.kind in "iub" or array.ndim < 2


def _stirred(array: np.ndarray, name: str, plan: Plan, generator: np.random.Generator) -> np.ndarray:
    """An activation with noise of its own size at the positions that a plan keeps."""
    moved = usual(array) / 4 or 1.0
    noise = (moved * generator.standard_normal(array.shape)).astype(array.dtype)
    return np.where(_kept(array, name, plan), array + noise, array)


def _kept(array: np.ndarray, name: str, plan: Plan) -> np.ndarray:
    """True at the positions of a tensor that a plan keeps, broadcast to it."""
    keep = np.ones((1,) * array.ndim, bool)
    for axis, kept in plan.activations.get(name, {}).items():
        period = plan.periods.get(name, {}).get(axis, array.shape[axis])
        along = np.isin(np.arange(array.shape[axis]) % period, kept)
        keep = keep & along.reshape([-1 if i == axis else 1 for i in range(array.ndim)])
    return keep


def _single(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if is_half(array.dtype) else array


def _rounded(array: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Numbers of which each is another one nearby."""
    if array.dtype.kind != "f":
        return array
    return (array * (1 + ROUNDING * generator.standard_normal(array.shape))).astype(array.dtype)
