"""Whether a plan can be followed: it is of this model, and names what is there.

A plan is a file, which may have been edited, or be of another model. What it says is held against the graph before
anything is done, and against the units of the model where they are known.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from onnxprune.errors import PlanError
from onnxprune.graph import Graph, first_output
from onnxprune.records import Plan
from onnxprune.units import Units


def check_plan(graph: Graph, plan: Plan) -> None:
    """Makes sure that a plan is for a model.

    Raises:
        PlanError: it is for another one, or names a constant, an axis, a position or a node that is not there.
    """
    if plan.model != graph.sha256:
        raise PlanError(
            f"the plan was made for another model (SHA-256 {plan.model[:12]}..., this one has {graph.sha256[:12]}...); "
            "use the model that it was made for, or make a new plan."
        )
    _refuse(_constants(graph, plan))
    _refuse(_nodes(graph, plan))


def check_units(units: Units, plan: Plan) -> None:
    """Makes sure that a plan is for a model whose units are known.

    Raises:
        PlanError: it is not, or speaks of other groups or tensors than the model has.
    """
    check_plan(units.graph, plan)
    for name, (size, _) in plan.groups.items():
        if name not in units.groups or units.groups[name].size != size:
            have = f"has {units.groups[name].size} units" if name in units.groups else "is no group of this model"
            raise PlanError(f"the plan speaks of {size} units of '{name}', which {have}; make a new plan.")
    shapes = {name: [axis.size for axis in axes] for name, axes in units.structure.axes.items()}
    _refuse(
        f"{_kept(name, axis, indices)}, which has the shape {shapes.get(name)}"
        for name, axes in plan.activations.items()
        for axis, indices in axes.items()
        if not _fits(shapes.get(name, []), axis, max(indices, default=-1))
    )


def _refuse(faults: Iterator[str]) -> None:
    """Raises the first fault that there is."""
    for fault in faults:
        raise PlanError(f"the plan does not fit this model: it {fault}; it was edited, so make a new one.")


def _fits(shape: list[int] | tuple[int, ...], axis: int, last: int) -> bool:
    return 0 <= axis < len(shape) and last < shape[axis]


def _kept(name: str, axis: int, indices: tuple[int, ...]) -> str:
    return f"keeps positions up to {max(indices, default=-1)} of axis {axis} of '{name}'"


def _constants(graph: Graph, plan: Plan) -> Iterator[str]:
    """What it says of constants that are not there, or smaller."""
    for name, axes in plan.initializers.items():
        if name not in graph.constants:
            yield f"names the constant '{name}', which it has not"
            continue
        shape = graph.constants[name].shape
        for axis, indices in axes.items():
            if not _fits(shape, axis, max(indices, default=-1)):
                yield f"{_kept(name, axis, indices)}, which has the shape {list(shape)}"
    for copy, origin in plan.copies.items():
        if graph.copies.get(copy) != origin:
            yield f"calls '{copy}' a copy of '{origin}', which it is not"


def _nodes(graph: Graph, plan: Plan) -> Iterator[str]:
    """What it says of nodes that are not there, or have other inputs and attributes."""
    nodes = {first_output(node): node for node in graph.nodes}
    tensors = {tensor.name for node in graph.nodes for tensor in node.outputs}
    for name in (*plan.activations, *plan.periods):
        if name not in tensors and name not in graph.inputs:
            yield f"names the tensor '{name}', which it has not"
    for name in (*plan.frozen, *plan.inexact):
        if name not in tensors:
            yield f"names the tensor '{name}', which no node makes"
    for name in (*plan.omitted, *(number.node for number in plan.numbers)):
        if name not in nodes:
            yield f"names a node that makes '{name}', which it has not"
    for name, inputs in plan.omitted.items():
        if not all(0 <= index < len(nodes[name].inputs) for index in inputs):
            yield f"leaves out the inputs {list(inputs)} of the node that makes '{name}', which has fewer"
    for number in plan.numbers:
        if number.constant in plan.frozen:
            size = math.prod(plan.frozen[number.constant].shape)
        elif number.constant:
            size = graph.constants[number.constant].size if number.constant in graph.constants else 0
        else:
            listed = nodes[number.node].attrs.get(number.attribute, []) if number.attribute else []
            size = len(listed) if isinstance(listed, list) and listed else number.index + 1
        if number.index >= size:
            where = number.constant or number.attribute
            yield f"writes number {number.index} of '{where}' for '{number.node}', which has {size}"
