"""Half of all units of an ONNX file: what is found, how much goes, and whether the law holds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx

from onnxprune.graph import Graph, from_proto
from onnxprune.grouping import find_units
from onnxprune.proof import verify
from onnxprune.records import Plan
from onnxprune.runtime import Feeds, Session
from onnxprune.surgery import remove
from onnxprune.units import Units


@dataclass(frozen=True, slots=True)
class Halved:
    """What became of a model.

    Attributes:
        groups: how many groups there are of each (units, kind), of those that are pruned by default.
        removed: the share of the parameters that went.
        difference: the largest difference of an output from the masked original, relative to its values.
        moved: the largest absolute difference from the original, relative to its largest output; 0 would prove nothing.
        plan: what was removed.
        compact: what is left.
    """

    groups: Counter[tuple[int, str]]
    removed: float
    difference: float
    moved: float
    plan: Plan
    compact: Graph


def analysed(model: bytes, sample: Feeds | None = None, *, residual: bool = False) -> Units:
    """The units of an ONNX file, with those of the residual stream if asked for."""
    return find_units(from_proto(onnx.load_from_string(model)), sample, residual=residual)


def halves(units: Units, seed: int = 0) -> dict[str, np.ndarray]:
    """Random halves of all groups that are pruned by default."""
    generator = np.random.default_rng(seed)
    chosen = {name: group.size for name, group in units.groups.items() if not group.instead_of}
    keep = {name: generator.permutation(n) < n - n // 2 for name, n in chosen.items()}
    for places in units.vital():  # one of them must stay
        if all(name in keep and not keep[name][unit] for name, unit in places):
            name, unit = places[0]
            keep[name][unit] = True
    return keep


def halve(model: bytes, feeds: Feeds, *, residual: bool = False, sample: Feeds | None = None) -> Halved:
    """Removes half of the units of every group and holds the result to the law.

    Args:
        model: an ONNX file.
        feeds: an array for each input.
        residual: whether the residual stream is halved too; its reference then is the model whose normalizations see
            the kept positions alone.
        sample: inputs for the analysis, where data must say which sizes the model runs with.

    Raises:
        OnnxPruneError: the model cannot be analysed, or the result differs from the masked original.
    """
    units = analysed(model, sample, residual=residual)
    keep = halves(units)
    plan = units.plan(keep)
    compact = remove(units.graph, plan)
    difference = verify(units, plan, compact, feeds)
    whole, small = (Session(x.message(), device="cpu").run(feeds, units.graph.outputs) for x in (units.graph, compact))
    scale = max(float(np.abs(a).max()) for a in whole)
    moved = max(float(np.abs(a - b).max()) for a, b in zip(whole, small, strict=True)) / scale
    groups = Counter((group.size, group.kind) for group in units.groups.values() if not group.instead_of)
    return Halved(groups, 1 - units.cost(keep)[0] / units.cost({})[0], difference, moved, plan, compact)
