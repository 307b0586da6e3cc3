"""Units whose removal changes nothing: dead, constant and duplicate ones. They go before any score is computed.

- dead: zero on all samples where it is read;
- constant: one value on all samples; what it adds to its readers moves into their bias;
- duplicate: every weight that makes it equals that of an earlier unit; its readers read the earlier one twice.

The spectral score does not find them: two equal neurons tear no neighbours apart, and a dead one has many neighbours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from onnxprune.axes import leaves
from onnxprune.graph import Graph
from onnxprune.records import Group, Moments, Weight
from onnxprune.structure import label
from onnxprune.units import Units, units_along


@dataclass(frozen=True, slots=True)
class Exact:
    """The units of one group that can go without a trace.

    Attributes:
        dead: units that are always zero.
        constant: the value of each unit that never changes.
        twin: for each duplicate the earlier unit that it equals.
    """

    dead: tuple[int, ...] = ()
    constant: Mapping[int, float] = field(default_factory=dict)
    twin: Mapping[int, int] = field(default_factory=dict)

    @property
    def units(self) -> set[int]:
        """All of them."""
        return {*self.dead, *self.constant, *self.twin}


def find_exact(units: Units, moments: Moments) -> dict[str, Exact]:
    """Finds dead, constant and duplicate units.

    Constants only where every reader can take them into its bias, duplicates only where no reader is computed.
    Units that statistics run over leave a trace there, so groups that are not exact have none.
    """
    found, constants = {}, units.graph.constants
    for name, group in units.groups.items():
        if not group.exact:
            continue
        low, high = (_extremes(group, table, merge) for table, merge in ((moments.low, np.min), (moments.high, np.max)))
        still = np.flatnonzero(low == high)
        dead = tuple(int(unit) for unit in still if high[unit] == 0)
        constant = {int(unit): float(high[unit]) for unit in still if high[unit] != 0}
        if not group.readers or not all(_takes_constants(units.graph, reader) for reader in group.readers):
            constant = {}
        stored = group.readers and all(reader.tensor in constants for reader in group.readers)  # to read b for a
        pairs = _twins(units, group) if stored else {}
        twins = {a: b for a, b in pairs.items() if a not in dead and a not in constant}
        if dead or constant or twins:
            found[name] = Exact(dead, constant, twins)
    return found


def _extremes(group: Group, table: Mapping[str, np.ndarray], merge: Callable[..., float]) -> np.ndarray:
    """The extreme value of each unit over all that its readers read: (units,)."""
    columns = [(states.unit_of, table[states.site.key]) for states in group.post]
    return np.array(
        [merge(np.concatenate([values[unit_of == unit] for unit_of, values in columns])) for unit in range(group.size)]
    )


def _takes_constants(graph: Graph, reader: Weight) -> bool:
    """Whether what a reader adds for a constant unit is the same everywhere, and has a bias to go to."""
    node = next(node for node in graph.nodes if label(node) == reader.node)
    padded = any(node.attrs.get("pads", ())) or node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    whole = node.attrs.get("group", 1) == 1 and node.attrs.get("alpha", 1.0) == node.attrs.get("beta", 1.0) == 1
    bias = node.inputs[2].name if len(node.inputs) > 2 else ""
    vector = not bias or graph.constants.get(bias, np.zeros(())).ndim == 1
    return reader.op in ("Conv", "Gemm") and whole and vector and not padded and reader.tensor in graph.constants


def _twins(units: Units, group: Group) -> dict[int, int]:
    """Units of which every constant has the same numbers as of an earlier unit, where it does not read them."""
    readers = {(reader.tensor, reader.axis) for reader in group.readers}
    members = units.leaves[group.name]
    slices = [hashlib.blake2b() for _ in range(group.size)]  # the numbers themselves would be a copy of all weights
    for name, array in units.graph.constants.items():
        for i, axis in enumerate(units.structure.axes[name]):
            if (name, i) in readers or not any(leaf in members for leaf in leaves(axis)):
                continue
            unit_of = units_along(axis, members)
            for unit in np.unique(unit_of[unit_of >= 0]):
                slices[unit].update(np.take(array, np.flatnonzero(unit_of == unit), i).tobytes())
    first: dict[bytes, int] = {}
    seen = [first.setdefault(numbers.digest(), unit) for unit, numbers in enumerate(slices)]
    return {unit: twin for unit, twin in enumerate(seen) if twin != unit}


def fold(units: Units, exact: Mapping[str, Exact]) -> Units:
    """The same function, with the weights that read constant and duplicate units moved to biases and twins."""
    rows: dict[str, np.ndarray] = {}
    shifts: dict[str, np.ndarray] = {}
    for name, found in exact.items():
        for reader in units.groups[name].readers:
            if reader.tensor not in units.graph.constants or not (found.constant or found.twin):
                continue
            weight = rows.setdefault(reader.tensor, np.array(units.graph.constants[reader.tensor], np.float64))
            shift = _fold_reader(np.moveaxis(weight, reader.axis, 0), reader, found)
            outputs = shift.ndim - 1 if reader.op == "Gemm" else 0
            taps = tuple(i for i in range(shift.ndim) if i != outputs)
            shifts[reader.node] = shifts.get(reader.node, 0) + shift.sum(axis=taps)
    if not rows:
        return units
    constants = units.graph.constants
    graph = units.graph.with_constants({name: w.astype(constants[name].dtype) for name, w in rows.items()})
    axes = dict(units.structure.axes)
    for node in graph.nodes:
        if np.any(shift := shifts.get(label(node), np.zeros(1))):
            bias = graph.add_to_bias(node, shift)
            axes.setdefault(bias, (axes[node.outputs[0].name][1],))
    return replace(units, graph=graph, structure=replace(units.structure, graph=graph, axes=axes))


def _fold_reader(rows: np.ndarray, reader: Weight, found: Exact) -> np.ndarray:
    """Moves rows of one reader, positions first, in place; returns what constant units added: (...)."""
    for unit, twin in found.twin.items():
        rows[reader.unit_of == twin] += rows[reader.unit_of == unit]
        rows[reader.unit_of == unit] = 0
    shift = np.zeros(rows.shape[1:])
    for unit, value in found.constant.items():
        shift += value * rows[reader.unit_of == unit].sum(axis=0)
        rows[reader.unit_of == unit] = 0
    return shift
