"""Removing positions from a model.

`remove` compresses constants along their axes and brings the numbers up to date that count positions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.graph import Graph, first_output
from onnxprune.overrides import override
from onnxprune.plans import check_plan
from onnxprune.records import Plan, Written
from onnxprune.runtime import Feeds

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


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
    for name, pairs in plan.joined.items():
        values[name] = join(values.get(name, graph.constants[name]), pairs)
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
    return out.with_biases({output: bias.array() for output, bias in plan.biases.items()})


def join(array: np.ndarray, axes: Mapping[int, Sequence[tuple[int, int]]]) -> np.ndarray:
    """Adds positions of a constant to others, in float64, axis by axis and pair by pair.

    Args:
        array: the constant.
        axes: by axis the pairs (from, into) of positions.
    """
    wide = np.array(array, np.float64)
    for axis, pairs in sorted(axes.items()):
        rows = np.moveaxis(wide, axis, 0)
        for source, into in pairs:
            rows[into] += rows[source]
    return wide.astype(array.dtype)


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
