"""Nodes of a compact model that are given what the masked original gave them, and what of it would be noticed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.apart import Apart, Spoiled, read_by, sizes_of, take_apart
from onnxprune.differences import MANY_STEPS, difference, noise, sampled, usual
from onnxprune.errors import ModelError, VerificationError
from onnxprune.graph import Graph
from onnxprune.masking import OWN_READER
from onnxprune.records import Plan, reference
from onnxprune.runtime import Session
from onnxprune.surgery import cut
from onnxprune.units import Units

if TYPE_CHECKING:
    import onnx

LOCAL = 1e-5
"""Largest difference of what one node makes, relative to itself or to what is usual in its tensor."""

TOLERANCE = 1e-4
"""The same for the outputs of the whole model, and of nodes that take many steps: there roundings add up."""

RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
"""Operators that draw other numbers in every run; Dropout does in training."""


@dataclass(frozen=True)
class Pair:
    """A compact model and the original that it is held to.

    Attributes:
        units: the original.
        plan: what was removed.
        compact: the compact model.
        device: where both run.
        model: the compact model as a message, without weights.
        original: the original, likewise.
        sizes: tensors of the compact model that are computed from sizes.
        made: tensors that nodes of the original make.
        makers: the node of the compact model that makes each of its tensors.
    """

    units: Units
    plan: Plan
    compact: Graph
    device: str
    model: onnx.ModelProto
    original: onnx.ModelProto
    sizes: Set[str]
    made: Set[str]
    makers: Mapping[str, onnx.NodeProto]

    @classmethod
    def of(cls, units: Units, plan: Plan, compact: Graph, device: str) -> Pair:
        """Looks at two models."""
        model, original = compact.skeleton()[0], units.graph.skeleton()[0]
        sizes = sizes_of(model, compact.constants, plan)
        made = {tensor.name for node in units.graph.nodes for tensor in node.outputs if tensor.name}
        makers = {name: node for node in model.graph.node for name in node.output if name}
        return cls(units, plan, compact, device, model, original, sizes, made, makers)

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

    def cut(self, name: str, value: Any) -> Any:
        """What the compact model has of a tensor of the original."""
        return cut(value, name, self.plan) if isinstance(value, np.ndarray) else value

    def error(self, name: str, by: float) -> VerificationError:
        """What to say of the first tensor that differs."""
        return VerificationError(
            f"the compact model differs from {reference(exact=not self.plan.inexact)}, first in tensor '{name}' (by "
            f"{by:.2g} relative to its values); nothing was written. Please report this with the model."
        )


class Part:
    """Some nodes of the compact model, each by itself."""

    def __init__(self, pair: Pair, nodes: Sequence[int], unstable: Set[str]) -> None:
        """Takes them apart when they are first compared.

        Args:
            pair: the two models.
            nodes: indices in the compact one.
            unstable: tensors of the original that are other numbers in every run.
        """
        self.pair, self.nodes, self.unstable = pair, nodes, unstable
        self.protos = {i: pair.model.graph.node[i] for i in nodes}
        self.near = set().union(*(pair.near(node) for node in self.protos.values()))
        self.random = {name for node in self.protos.values() if self._draws(node) for name in node.output}
        self.apart: tuple[Apart, Session] | None = None
        self.compared: set[str] = set()
        self.noticed: set[str] = set()
        self.unseen: dict[str, str] = {}

    def _draws(self, node: onnx.NodeProto) -> bool:
        """Whether a node makes other numbers in every run although it reads the same ones."""
        drawn = node.op_type in RANDOM or (node.op_type == "Dropout" and len(node.input) > 2)
        return drawn or (self.unstable.isdisjoint(read_by(node)) and not self.unstable.isdisjoint(node.output))

    def compare(self, whole: Mapping[str, Any]) -> None:
        """Compares on one batch, on the first one also with activations that are moved.

        Args:
            whole: what the masked original has.
        """
        near = {*self.near, *self.pair.units.graph.inputs}
        whole = {name: x for name, x in whole.items() if name in near}
        values = {name: self.pair.cut(name, x) for name, x in whole.items()}
        first = self.apart is None
        if first:
            apart = take_apart(self.pair.compact, self.nodes, self._given(values), self._weights())
            self.apart = apart, Session(apart.message, device=self.pair.device, optimize=False)
        self._compare(values, values)
        if first:
            self._compare_moved(whole, values)

    def _given(self, values: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """What nodes that are taken apart are given: arrays that are no sizes."""
        pair = self.pair
        return {
            name: values[name]
            for name in sorted({*self.near, *pair.compact.inputs} & values.keys())
            if isinstance(values[name], np.ndarray) and not (name in pair.sizes and _is_size(values[name]))
        }

    def _weights(self) -> dict[str, int]:
        """The weights to spoil, and an axis of each that was cut; integers of 64 bits are places and sizes."""
        constants = self.pair.compact.constants
        cut_axes = {name: next(iter(axes)) for name, axes in self.pair.plan.initializers.items() if name in constants}
        return {name: axis for name, axis in cut_axes.items() if constants[name].dtype != np.int64}

    def _compare_moved(self, whole: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        """The nodes once more, on activations that are moved at random: no unit is dead, nothing is saturated.

        Not nodes whose masked form is not the original node: those that read their own results, or kept positions only.
        Nor what holds units that go without a trace, which are only as they are in relation to others.
        """
        pair = self.pair
        places = {tuple(node.output): i for i, node in enumerate(pair.original.graph.node)}
        plain = [places[key] for n in self.protos.values() if (key := tuple(n.output)) in places]
        plain = [i for i in plain if self._is_plain(pair.original.graph.node[i])]
        generator = np.random.default_rng(0)
        given = self._given(whole)
        moved = {
            name: _moved(x, name, pair.plan, generator)
            for name, x in given.items()
            if name in pair.plan.activations and name not in pair.plan.spared and x.dtype.kind == "f"
        }
        apart = take_apart(pair.units.graph, plain, given, {})
        if not moved or not apart.results:
            return
        inputs = {name: moved.get(name, whole[name]) for name in apart.inputs}
        try:
            made = Session(apart.message, device=pair.device, optimize=False).run(inputs, [*apart.results.values()])
        except ModelError:  # numbers that data have, but not others
            return
        expected = {name: pair.cut(name, x) for name, x in zip(apart.results, made, strict=True)}
        self._compare({**values, **{name: pair.cut(name, x) for name, x in moved.items()}}, expected)

    def _is_plain(self, node: onnx.NodeProto) -> bool:
        """Whether a node of the original is what the masked original has in its place."""
        return node.op_type not in OWN_READER and not set(node.output) & {*self.pair.plan.inexact, *self.random}

    def _compare(self, values: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
        """Each node against what is expected of it, and with spoiled weights against the same.

        Args:
            values: what the nodes are given.
            expected: what they must make; nodes of which nothing is expected are left out.
        """
        assert self.apart is not None
        (apart, session), pair = self.apart, self.pair
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
                    raise pair.error(tensor, by)
                self.compared.add(tensor)
        for spoiled in apart.spoiled:
            if any(off(tensor, output, some=True) for tensor, output in spoiled.results.items() if tensor in known):
                self.noticed.add(spoiled.weight)
                self.unseen.pop(spoiled.weight, None)
            elif spoiled.weight not in self.noticed:
                self.unseen[spoiled.weight] = self._why_unseen(spoiled, values)

    def _noise(self, node: int, values: Mapping[str, Any]) -> float:
        """By how much what a node makes may differ since larger terms cancel."""
        proto = self.protos[node]
        known = (values.get(name, self.pair.compact.constants.get(name)) for name in proto.input)
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
    return np.where(kept(array, name, plan), noisy, array)


def kept(array: np.ndarray, name: str, plan: Plan) -> np.ndarray:
    """True at the positions of a tensor that a plan keeps, broadcast to it."""
    keep = np.ones((1,) * array.ndim, bool)
    for axis, kept in plan.activations.get(name, {}).items():
        period = plan.periods.get(name, {}).get(axis, array.shape[axis])
        along = np.isin(np.arange(array.shape[axis]) % period, kept)
        keep = keep & along.reshape([-1 if i == axis else 1 for i in range(array.ndim)])
    return keep
