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

from onnxprune.apart import touched
from onnxprune.comparison import TOLERANCE, Pair, Part, kept, unstable
from onnxprune.differences import difference
from onnxprune.errors import ModelError
from onnxprune.findings import Proof
from onnxprune.graph import Graph
from onnxprune.masking import ZERO_POINTS, masked_parts
from onnxprune.plans import check_units
from onnxprune.precision import is_half
from onnxprune.records import Plan, rows_of, take
from onnxprune.runtime import Feeds, Session
from onnxprune.surgery import fed
from onnxprune.units import Units
from onnxprune.writing import Message

if TYPE_CHECKING:
    pass

QUANTUM = 0.02
"""The same where activations are quantized: two steps of eight bits, for sums that lie at a tie and are rounded."""

ROUNDING, ROUNDED, MARGIN = 2.0**-21, 3, 8.0
"""By how much inputs are moved to see what roundings do to an output, how often, and how much more is believed."""

BYTES, BATCHES, PART_BYTES = 128 << 20, 4, 64 << 20
"""Bytes of activations that a batch may make, how many times that all batches may, and those looked at at a time."""


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
    check_units(units, plan)
    return _Trial(Pair.of(units, plan, compact, device)).run(probes)


def verify(units: Units, plan: Plan, compact: Graph, feeds: Feeds, *, device: str = "cpu") -> float:
    """Proves a compact model on one batch, as `prove` does.

    Returns:
        The largest difference of any output, relative to its values.
    """
    return prove(units, plan, compact, [feeds], device=device).difference


class _Trial:
    """A compact model against the masked original; holds what the steps share."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.nodes = touched(pair.units.graph, pair.plan, pair.compact, pair.model)
        outputs = set(pair.units.graph.outputs)
        near = outputs.union(*(pair.near(pair.model.graph.node[i]) for i in self.nodes))
        self.names = sorted(near & pair.made)
        masked, shared = masked_parts(pair.units, pair.plan)
        masked.graph.output.extend(type(masked.graph.output[0])(name=n) for n in self.names if n not in outputs)
        message = Message.of(masked, shared, single=True)
        self.widened = message.widened
        self.masked = Session(message, device=pair.device, optimize=False)
        self.tolerance = QUANTUM if is_quantized(pair.units.graph) else TOLERANCE
        self.small: dict[bool, Session] = {}
        self.unstable: set[str] = set()
        self.moved: dict[str, float | None] = {}

    def run(self, probes: Sequence[Feeds]) -> Proof:
        """Compares node by node, and then the outputs."""
        pair = self.pair
        if self.widened:  # it must run as it is, too
            Session(pair.compact.message(), device=pair.device).run(fed(pair.plan, probes[0]))
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
        compared = set(pair.units.graph.outputs) & pair.made - self.unstable
        noticed: set[str] = set()
        unseen: dict[str, str] = {}
        for nodes in self._parts(first):
            part = Part(self.pair, nodes, self.unstable)
            for _, whole in batches:
                part.compare(whole)
            compared |= part.compared
            noticed |= part.noticed
            unseen |= part.unseen
        largest = max(self._compare_outputs(*batch) for batch in batches)
        count = len(noticed | unseen.keys())
        unseen = {name: because for name, because in sorted(unseen.items()) if name not in noticed}
        random = tuple(name for name in self.pair.units.graph.outputs if name in self.unstable)
        samples = sum(rows_of(feeds) for feeds, _ in batches)
        return Proof(largest, samples, len(compared), count, unseen, random, self.moved)

    def _noted(self, feeds: Feeds) -> dict[str, Any]:
        """What the masked original makes of inputs, and the inputs, masked too."""
        shrunk = {name: array for name, array in feeds.items() if name in self.pair.plan.activations}
        masked = {n: np.where(kept(x, n, self.pair.plan), x, x.dtype.type(0)) for n, x in shrunk.items()}
        return {**dict(zip(self.names, self.masked.run(feeds, self.names), strict=True)), **feeds, **masked}

    def _bytes(self, node: int, feeds: Feeds) -> float:
        """About how much a node of the compact model reads and makes."""
        axes = self.pair.units.structure.axes
        seen = sum(math.prod(axis.size for axis in axes[name]) for name in feeds)
        more = sum(array.size for array in feeds.values()) / max(seen, 1)
        names = [
            name for name in self.pair.near(self.pair.model.graph.node[node]) if name in axes and name in self.pair.made
        ]
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
        """The outputs of the compact model as it is against those of the masked original; the largest difference.

        What differs is looked at without optimizations, which round otherwise and compute some operators otherwise.
        """
        expected = {
            name: self.pair.cut(name, whole[name])
            for name in self.pair.units.graph.outputs
            if name in self.pair.made and name not in self.unstable
        }
        found = self._differences(feeds, expected, optimize=True)
        if any(by > self.tolerance for by in found.values()):
            plain = self._differences(feeds, expected, optimize=False)
            for name, by in plain.items():
                if by > self.tolerance and by > self._rounding(feeds, name):
                    raise self.pair.error(name, by)
            moved = {name: by for name, by in found.items() if by > self.tolerance >= plain[name]}
            self.moved |= {name: by if np.isfinite(by) else None for name, by in moved.items()}
            found = {name: min(by, found[name]) for name, by in plain.items()}
        return max((by for by in found.values() if np.isfinite(by)), default=0.0)

    def _differences(self, feeds: Feeds, expected: Mapping[str, Any], *, optimize: bool) -> dict[str, float]:
        """By how much outputs of the compact model differ from what is expected."""
        if optimize not in self.small:
            message = self.pair.compact.message(single=True)
            self.small[optimize] = Session(message, device=self.pair.device, optimize=optimize)
        outputs = self.small[optimize].run(fed(self.pair.plan, feeds), [*expected])
        found = {}
        for name, output in zip(expected, outputs, strict=True):
            whole = expected[name]
            pairs = [(whole, output)] if isinstance(whole, np.ndarray) else list(zip(whole, output, strict=True))
            found[name] = max((difference(a, b) for a, b in pairs), default=0.0)
        return found

    def _rounding(self, feeds: Feeds, name: str) -> float:
        """How far roundings alone move an output of the original; infinite where they change what is no number."""
        variants = [feeds]
        for seed in range(ROUNDED):
            generator = np.random.default_rng(seed)
            variants.append({n: _rounded(x, generator) for n, x in feeds.items()})
        masked, shared = masked_parts(self.pair.units, self.pair.plan)
        session = Session(Message.of(masked, shared, single=True), device=self.pair.device)
        first, *others = (session.run(variant, [name])[0] for variant in variants)
        plain = self.masked.run(feeds, [name])[0]
        return MARGIN * max(difference(first, other) for other in (plain, *others))


def is_quantized(graph: Graph) -> bool:
    """Whether a model rounds activations to integers, so that equal sums may fall to either side of a tie."""
    return any(node.op in (*ZERO_POINTS, "DynamicQuantizeLinear") for node in graph.nodes)


def _rounded(array: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Numbers of which each is another one nearby."""
    if array.dtype.kind != "f":
        return array
    return (array * (1 + ROUNDING * generator.standard_normal(array.shape))).astype(array.dtype)
