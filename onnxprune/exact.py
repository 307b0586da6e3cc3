"""Units that can go without a trace, because the weights say so: dead, constant and duplicate ones.

- dead: zero for every input where it is read;
- constant: one number for every input; what it adds to its readers moves into their bias;
- duplicate: every number that makes it equals that of an earlier unit; its readers read the earlier one twice.

All of it follows from the weights and holds for every input. That a unit stands still on some data proves nothing:
see `hints`.

The spectral score does not find such units: two equal neurons tear no neighbours apart, and a dead one has many
neighbours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from onnxprune.axes import leaves
from onnxprune.constancy import Still, find_still
from onnxprune.graph import Graph, bias_of, first_output
from onnxprune.records import Frozen, Group, Plan, Weight
from onnxprune.runtime import Feeds, Session
from onnxprune.structure import label
from onnxprune.surgery import join
from onnxprune.units import Units, units_along

EVEN = 1e-5
"""How much a number that is the same everywhere may vary by rounding, relative to itself: kernels differ at borders."""


@dataclass(frozen=True, slots=True)
class Exact:
    """The units of one group that can go without a trace.

    Attributes:
        dead: units that are always zero.
        constant: for each unit that never changes its value at the sites of the group's readers, in their order.
        twin: for each duplicate the earlier unit that it equals.
    """

    dead: tuple[int, ...] = ()
    constant: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    twin: Mapping[int, int] = field(default_factory=dict)

    @property
    def units(self) -> set[int]:
        """All of them."""
        return {*self.dead, *self.constant, *self.twin}


def find_exact(units: Units, feeds: Feeds) -> dict[str, Exact]:
    """Finds dead, constant and duplicate units.

    Constants only where every reader can take them into its bias, duplicates only where every reader holds them in
    full precision and for itself. Units that statistics run over leave a trace there, so groups that are not exact
    have none.

    Args:
        units: the model.
        feeds: an array for each input, any will do: it tells the values of units that do not depend on it.
    """
    dims = {leaf for name, group in units.groups.items() if group.exact for leaf in units.leaves[name]}
    values = _values(units, find_still(units.structure, dims), feeds)
    found = {}
    for name, group in units.groups.items():
        if not group.exact:
            continue
        still = values.get(name, {})
        dead = tuple(sorted(unit for unit, at in still.items() if not any(at)))
        constant = {unit: at for unit, at in sorted(still.items()) if any(at)}
        if not group.readers or not all(_takes_constants(units.graph, reader) for reader in group.readers):
            constant = {}
        pairs = _twins(units, group) if all(_takes_twins(units.graph, group, r) for r in group.readers) else {}
        twins = {a: b for a, b in pairs.items() if a not in dead and a not in constant}
        if dead or constant or twins:
            found[name] = Exact(dead, constant, twins)
    return found


def _values(units: Units, still: Still, feeds: Feeds) -> dict[str, dict[int, tuple[float, ...]]]:
    """By group and unit, what units that never change are at each site that their readers read."""
    candidates: dict[str, np.ndarray] = {}
    for name, group in units.groups.items():
        masks = [
            np.concatenate([still.get(s.site.tensor, {}).get(d, np.zeros(d.size, bool)) for d in units.leaves[name]])
            for s in group.post
        ]
        if group.exact and masks and (mask := np.logical_and.reduce(masks)).any():
            candidates[name] = np.flatnonzero(mask)
    if not candidates:
        return {}
    tensors = sorted({s.site.tensor for name in candidates for s in units.groups[name].post})
    session = Session(units.graph.message(outputs=tensors), device="cpu", optimize=False)
    seen = dict(zip(tensors, session.run(feeds, tensors), strict=True))
    found: dict[str, dict[int, tuple[float, ...]]] = {}
    for name, chosen in candidates.items():
        for unit in chosen.tolist():
            at = [_value(units, name, unit, s.site.tensor, s.site.axis, seen) for s in units.groups[name].post]
            if None not in at:
                found.setdefault(name, {})[unit] = tuple(value for value in at if value is not None)
    return found


def _value(units: Units, group: str, unit: int, tensor: str, axis: int, seen: Mapping[str, np.ndarray]) -> float | None:
    """The one number that a unit is at a tensor; None where it is none after all, or there is nothing to see."""
    where = np.flatnonzero(units_along(units.structure.axes[tensor][axis], units.leaves[group]) == unit)
    array = np.take(seen[tensor], where, axis).astype(np.float64)
    if not array.size or not np.isfinite(array).all():
        return None
    low, high = float(array.min()), float(array.max())
    return high if high - low <= EVEN * max(abs(low), abs(high)) else None


def settled(units: Units, values: Mapping[str, Exact]) -> dict[str, Exact]:
    """Of units with one value, by group, those that every reader can take into its bias."""
    return {
        name: found
        for name, found in values.items()
        if units.groups[name].readers and all(_takes_constants(units.graph, r) for r in units.groups[name].readers)
    }


def _takes_constants(graph: Graph, reader: Weight) -> bool:
    """Whether what a reader adds for a constant unit is the same everywhere, and has a bias to go to."""
    node = next(node for node in graph.nodes if label(node) == reader.node)
    padded = any(node.attrs.get("pads", ())) or node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    whole = node.attrs.get("group", 1) == 1 and node.attrs.get("alpha", 1.0) == node.attrs.get("beta", 1.0) == 1
    weight = graph.constants.get(node.inputs[1].name)
    if reader.op not in ("Conv", "Gemm") or node.inputs[1].name != reader.tensor or weight is None:
        return False
    bias = bias_of(node)
    width = next(size for axis, size in enumerate(weight.shape) if axis != reader.axis)
    fits = not bias or (bias in graph.constants and graph.constants[bias].shape == (width,))
    return whole and fits and not padded and _is_full(weight)


def _takes_twins(graph: Graph, group: Group, reader: Weight) -> bool:
    """Whether rows of a reader can be added up: it is stored, in full precision, and nobody else reads it."""
    mine = {(r.node, r.axis) for r in group.readers if r.tensor == reader.tensor}
    nodes = {label(node) for node in graph.nodes for tensor in node.inputs if tensor.name == reader.tensor}
    stored = graph.constants.get(reader.tensor)
    alone = {node for node, _ in mine} == nodes and len({axis for _, axis in mine}) == 1
    return stored is not None and _is_full(stored) and alone


def _is_full(array: np.ndarray) -> bool:
    """Whether sums of a few numbers are exact but for a rounding that the law does not see."""
    return array.dtype in (np.float32, np.float64)


def _twins(units: Units, group: Group) -> dict[int, int]:
    """Units of which every constant has the same numbers as of an earlier one of the same dim, but where it reads them.

    Only within a dim are all units treated alike: pieces of an axis that was cut may go different ways.
    """
    if not group.readers:
        return {}
    readers = {(reader.tensor, reader.axis) for reader in group.readers}
    twins: dict[int, int] = {}
    start = 0
    for leaf in units.leaves[group.name]:
        slices = [hashlib.blake2b() for _ in range(leaf.size)]  # the numbers themselves would be a copy of all weights
        for name, array in units.graph.constants.items():
            for i, axis in enumerate(units.structure.axes[name]):
                if (name, i) in readers or leaf not in leaves(axis):
                    continue
                unit_of = units_along(axis, (leaf,))
                for unit in np.unique(unit_of[unit_of >= 0]):
                    slices[unit].update(np.take(array, np.flatnonzero(unit_of == unit), i).tobytes())
        first: dict[bytes, int] = {}
        for unit, numbers in enumerate(slices):
            twin = first.setdefault(numbers.digest(), unit)
            if twin != unit:
                twins[start + unit] = start + twin
        start += leaf.size
    return twins


@dataclass(frozen=True, slots=True)
class Folded:
    """What moves where when units of a model go without a trace.

    Attributes:
        joined: by tensor and axis the pairs of positions (from, into) whose numbers are added up, in this order.
        shifts: by first output of a node what its bias gains: (outputs,) float64.
        settled: by tensor and axis the positions whose part is in a bias.
    """

    joined: Mapping[str, Mapping[int, tuple[tuple[int, int], ...]]]
    shifts: Mapping[str, np.ndarray]
    settled: Mapping[str, Mapping[int, tuple[int, ...]]]

    def readers(self, graph: Graph) -> dict[str, np.ndarray]:
        """The readers in which nothing is left of the units that went, in their full shapes."""
        out: dict[str, np.ndarray] = {}
        for name, axes in self.joined.items():
            out[name] = join(graph.constants[name], axes)
            for axis, pairs in axes.items():
                np.moveaxis(out[name], axis, 0)[[source for source, _ in pairs]] = 0
        for name, settled in self.settled.items():
            out[name] = np.array(out.get(name, graph.constants[name]))
            for axis, positions in settled.items():
                np.moveaxis(out[name], axis, 0)[list(positions)] = 0
        return out


def find_folded(units: Units, exact: Mapping[str, Exact], keep: Mapping[str, np.ndarray]) -> Folded:
    """What moves where when exact units go that a plan does not keep.

    A duplicate moves into the first of its equals that stays; where none does, all of them are gone like any others.

    Args:
        units: the model.
        exact: its units that can go without a trace.
        keep: (units,) bool for each group that loses units.
    """
    joined: dict[str, dict[int, tuple[tuple[int, int], ...]]] = {}
    shifts: dict[str, np.ndarray] = {}
    settled: dict[str, dict[int, tuple[int, ...]]] = {}
    for name, found in exact.items():
        if name not in keep:
            continue
        twins = merged(found, keep[name])
        gone = {unit: at for unit, at in found.constant.items() if not keep[name][unit]}
        group = units.groups[name]
        order = [states.site.key for states in group.post]
        for reader in group.readers if twins else ():
            pairs = [pair for a, b in twins.items() for pair in _places(reader, a, b)]
            known = joined.setdefault(reader.tensor, {}).get(reader.axis, ())
            joined[reader.tensor][reader.axis] = tuple(dict.fromkeys([*known, *pairs]))  # nodes may share a weight
        for reader in group.readers if gone else ():
            at = {unit: values[order.index(reader.site.key)] for unit, values in gone.items()}
            output, shift, positions = shifted(units.graph, reader, at)
            shifts[output] = shifts.get(output, 0) + shift
            before = settled.setdefault(reader.tensor, {}).get(reader.axis, ())
            settled[reader.tensor][reader.axis] = tuple(sorted({*before, *positions}))
    return Folded(joined, shifts, settled)


def merged(found: Exact, keep: np.ndarray) -> dict[int, int]:
    """The duplicates that go, each with the first of its equals that stays."""
    classes: dict[int, list[int]] = {}
    for unit, twin in found.twin.items():
        classes.setdefault(twin, [twin]).append(unit)
    out: dict[int, int] = {}
    for members in classes.values():
        stays = next((unit for unit in sorted(members) if keep[unit]), None)
        out |= {unit: stays for unit in members if stays is not None and not keep[unit]}
    return dict(sorted(out.items()))


def _places(reader: Weight, a: int, b: int) -> Iterator[tuple[int, int]]:
    """Where one unit and another one are on the axis of a reader, position by position."""
    places = (np.flatnonzero(reader.unit_of == unit).tolist() for unit in (a, b))
    yield from zip(*places, strict=True)


def shifted(graph: Graph, reader: Weight, values: Mapping[int, float]) -> tuple[str, np.ndarray, list[int]]:
    """What units of constant value add to the results of a Conv or Gemm.

    Args:
        graph: the model.
        reader: its weight.
        values: of each unit.

    Returns:
        The first output of the node, (outputs,) float64, and the positions on the axis of the weight.
    """
    node = next(node for node in graph.nodes if label(node) == reader.node)
    rows = np.moveaxis(graph.constants[reader.tensor], reader.axis, 0)
    positions = np.flatnonzero(np.isin(reader.unit_of, list(values)))
    per_row = np.array([values[unit] for unit in reader.unit_of[positions].tolist()])
    added = np.tensordot(per_row, rows[positions].astype(np.float64), 1)  # (outputs, taps..)
    return first_output(node), added.reshape(len(added), -1).sum(axis=1), positions.tolist()


def recorded(units: Units, plan: Plan, keep: Mapping[str, np.ndarray], exact: Mapping[str, Exact]) -> Plan:
    """A plan that also says what moves where, so that nothing is lost with the exact units that go.

    Args:
        units: the model.
        plan: what `units.plan` made of `keep`.
        keep: (units,) bool for each group that loses units.
        exact: its units that can go without a trace.
    """
    folded = find_folded(units, exact, keep)
    twins = {name: merged(found, keep[name]) for name, found in exact.items() if name in keep}
    constant = {
        name: {unit: at[0] for unit, at in found.constant.items() if not keep[name][unit]}
        for name, found in exact.items()
        if name in keep
    }
    alive = {name: np.array(mask) for name, mask in keep.items()}
    for name in twins:
        alive[name][[*twins[name], *constant[name]]] = True
    biases = gained(units.graph, folded.shifts)
    used = {bias_of(node) for node in units.graph.nodes if first_output(node) in biases} - {""}
    return replace(
        plan,
        copies={**plan.copies, **units.copies_of({*used, *folded.joined})},
        merged={name: pairs for name, pairs in twins.items() if pairs},
        constant={name: values for name, values in constant.items() if values},
        joined=folded.joined,
        biases={
            name: Frozen.of(kept_of(plan, name, bias)) for name, bias in gained(units.graph, folded.shifts).items()
        },
        spared=units.spared(keep, alive),
    )


def fold(units: Units, folded: Folded) -> Units:
    """The same function, with what moves moved already: nothing is left of the units that go in those that stay."""
    constants = folded.readers(units.graph)
    biases = gained(units.graph, folded.shifts)
    if not constants and not biases:
        return units
    graph = units.graph.with_constants(constants).with_biases(biases)
    axes = dict(units.structure.axes)
    for node in graph.nodes:
        if first_output(node) in biases:
            axes.setdefault(bias_of(node), (axes[first_output(node)][1],))
    return replace(units, graph=graph, structure=replace(units.structure, graph=graph, axes=axes))


def gained(graph: Graph, shifts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The biases of Conv and Gemm that gain something, (outputs,), by first output of the node."""
    found = {}
    for node in graph.nodes:
        shift = shifts.get(first_output(node))
        if shift is not None:
            bias = graph.constants[bias_of(node)] if bias_of(node) else np.zeros(1, node.inputs[1].values.dtype)
            found[first_output(node)] = (bias + shift).astype(bias.dtype)
    return found


def kept_of(plan: Plan, output: str, vector: np.ndarray) -> np.ndarray:
    """What a plan keeps of one number for each channel, or column, that a node gives out."""
    kept = plan.activations.get(output, {}).get(1)
    return vector if kept is None else vector[list(kept)]
