"""Removing positions, and the check that the result computes what the masked original does.

`remove` compresses constants along their axes and brings the numbers up to date that count positions.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.errors import VerificationError
from onnxprune.graph import Graph, first_output
from onnxprune.masking import ZERO_POINTS, masked_parts
from onnxprune.overrides import override
from onnxprune.plans import check_plan, check_units
from onnxprune.precision import is_half
from onnxprune.records import Plan, Written, reference
from onnxprune.runtime import Feeds, Session
from onnxprune.units import Units
from onnxprune.writing import Message

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

TOLERANCE = 1e-4
"""Largest difference between the compact and the masked model, relative to the largest output (1 at least)."""


QUANTUM = 0.02
"""The same where activations are quantized: two steps of eight bits, for sums that lie at a tie and are rounded."""


def remove(graph: Graph, plan: Plan) -> Graph:
    """The model without the positions that a plan gives up.

    Args:
        graph: the model that the plan was made for.
        plan: what to keep.

    Raises:
        PlanError: the plan is for another model.
    """
    check_plan(graph, plan)
    by_node: dict[str, list[Written]] = defaultdict(list)
    frozen = {name: value.array() for name, value in plan.frozen.items()}
    values: dict[str, np.ndarray] = {}
    for number in plan.numbers:
        if number.constant in frozen:
            frozen[number.constant].flat[number.index] = number.value
        elif number.constant:
            values.setdefault(number.constant, np.array(graph.constants[number.constant]))
            values[number.constant].flat[number.index] = number.value
        else:
            by_node[number.node].append(number)
    for name, axes in plan.initializers.items():
        array = values.get(name, graph.constants[name])
        for axis, kept in axes.items():
            array = np.take(array, kept, axis)
        values[name] = array
    sizes = {
        name: {axis: None if axis in plan.periods.get(name, {}) else len(kept) for axis, kept in axes.items()}
        for name, axes in plan.activations.items()
    }
    out = graph.with_constants(values).with_shapes(sizes).with_frozen(frozen).without_inputs(plan.omitted)
    for node in out.nodes:
        _write_numbers(node, by_node.get(first_output(node), []), out)
    return out


def _write_numbers(node: gs.Node, numbers: list[Written], graph: Graph) -> None:
    """Brings attributes up to date, adds the input of numbers that were implied, overrides numbers that are shared."""
    attributes: dict[str, list[Written]] = defaultdict(list)
    added: dict[int, list[Written]] = defaultdict(list)
    for number in numbers:
        if number.attribute:
            attributes[number.attribute].append(number)
        else:
            added[number.input].append(number)
    for name, entries in attributes.items():
        old = node.attrs.get(name, [])
        if isinstance(old, int | float) or isinstance(entries[0].value, float):
            node.attrs[name] = entries[0].value
        else:
            new = list(old) or [0] * len(entries)
            for entry in entries:
                new[entry.index] = entry.value
            node.attrs[name] = new
    for index, entries in added.items():
        if index < len(node.inputs) and node.inputs[index].name:
            override(graph, node, index, entries)
            continue
        values = [entry.value for entry in sorted(entries, key=lambda entry: entry.index)]
        graph.add_input(node, index, np.array(values, np.int64))
        node.attrs.pop("num_outputs", None)  # Split has either


def cut(array: np.ndarray, name: str, plan: Plan) -> np.ndarray:
    """What a plan keeps of an activation."""
    for axis, kept in plan.activations.get(name, {}).items():
        period = plan.periods.get(name, {}).get(axis, array.shape[axis])
        array = np.compress(np.isin(np.arange(array.shape[axis]) % period, kept), array, axis)
    return array


def fed(plan: Plan, feeds: Feeds) -> Feeds:
    """The inputs of a compact model, cut from those of the original where a plan lets inputs shrink."""
    return {name: cut(array, name, plan) for name, array in feeds.items()}


def verify(units: Units, plan: Plan, compact: Graph, feeds: Feeds, *, device: str = "cpu") -> float:
    """Runs the compact model against the masked original, in which normalizations run over what is kept.

    Args:
        units: the original.
        plan: what was removed.
        compact: the result of `remove`.
        feeds: an array for each input.
        device: where to run both.

    Returns:
        The largest absolute difference of any output.

    Raises:
        VerificationError: they differ; the message names the first tensor that does.
    """
    check_units(units, plan)
    masked, shared = masked_parts(units, plan)
    whole = Message.of(masked, shared, single=True)
    small = compact.message(single=True)
    quantized = is_quantized(units.graph)
    allowed = QUANTUM if quantized else TOLERANCE
    if whole.widened:
        Session(compact.message(), device=device).run(fed(plan, feeds))  # it must run as it is, too
        feeds = {name: _single(array) for name, array in feeds.items()}
    outputs = units.graph.outputs
    expected, found = (
        Session(model, device=device, optimize=not quantized).run(given, outputs)
        for model, given in ((whole, feeds), (small, fed(plan, feeds)))
    )
    expected = [cut(x, name, plan) for x, name in zip(expected, outputs, strict=True)]
    differences = [_difference(a, b) for a, b in zip(expected, found, strict=True)]
    if all(difference <= allowed for difference in differences):
        return max((_absolute(a, b) for a, b in zip(expected, found, strict=True)), default=0.0)
    name, difference = _first_difference(units, plan, compact, feeds, allowed)
    raise VerificationError(
        f"the compact model differs from {reference(exact=not plan.inexact)}, first in tensor '{name}' (by "
        f"{difference:.2g} relative to its largest value, {allowed:g} is allowed); nothing was written. Please "
        "report this with the model."
    )


def is_quantized(graph: Graph) -> bool:
    """Whether a model rounds activations to integers, so that equal sums may fall to either side of a tie."""
    return any(node.op in (*ZERO_POINTS, "DynamicQuantizeLinear") for node in graph.nodes)


def _single(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if is_half(array.dtype) else array


def _absolute(a: np.ndarray, b: np.ndarray) -> float:
    if a.dtype.kind not in "f":
        return float(not np.array_equal(a, b))
    return float(np.max(np.abs(a.astype(np.float64) - b), initial=0.0))


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference relative to the largest value, 1 at least; infinite where shapes or NaNs differ."""
    if a.shape != b.shape or not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return float("inf")
    finite = np.isfinite(a)
    return _absolute(a[finite], b[finite]) / max(1.0, float(np.max(np.abs(a[finite]), initial=0.0)))


def _first_difference(units: Units, plan: Plan, compact: Graph, feeds: Feeds, allowed: float) -> tuple[str, float]:
    """The first tensor in the order of the graph that differs, and by how much."""
    names = [tensor.name for node in compact.nodes for tensor in node.outputs if tensor.name]
    known = set(units.graph.outputs)
    masked, shared = masked_parts(units, plan)
    masked.graph.output.extend(type(masked.graph.output[0])(name=name) for name in names if name not in known)
    both = [
        Session(model, device="cpu", optimize=False).run(given, names)
        for model, given in (
            (Message.of(masked, shared, single=True), feeds),
            (compact.message(outputs=names, single=True), fed(plan, feeds)),
        )
    ]
    for name, whole, small in zip(names, *both, strict=True):
        whole = cut(whole, name, plan)
        if isinstance(whole, np.ndarray) and (difference := _difference(whole, small)) > allowed:
            return name, difference
    return compact.outputs[0], float("nan")
