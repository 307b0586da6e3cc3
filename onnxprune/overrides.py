"""Other numbers for one of several nodes that share a vector of sizes: put in on the way to it.

A size such as batch x 4 varies, and is computed once for layers that lose different heads. Since it is a multiple of 4,
dividing it by 4 and multiplying it with the heads that a layer keeps is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.graph import Graph, first_output
from onnxprune.records import Written

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


def override(graph: Graph, node: gs.Node, index: int, numbers: Sequence[Written]) -> None:
    """Puts numbers into a vector on its way to a node. Edits the graph.

    Args:
        graph: the graph.
        node: the node that reads the vector.
        index: which of its inputs that is.
        numbers: what to put in; where it is part of a product, the rest of the product stays.
    """
    name = graph.fresh(f"{first_output(node)}.input{index}")
    whole = [number for number in numbers if not number.part]
    parts = [number for number in numbers if number.part]
    if parts:
        places = _vector(graph, f"{name}.parts.places", [number.index for number in parts])
        new = _before(graph, node, f"{name}.parts.taken", "Gather", node.inputs[index], places)
        for op, values in (("Div", [n.part for n in parts]), ("Mul", [int(n.value) for n in parts])):
            factors = _vector(graph, f"{name}.parts.{op.lower()}.by", values)
            new = _before(graph, node, f"{name}.parts.{op.lower()}", op, new, factors)
        vector = node.inputs[index], places, new
        node.inputs[index] = _before(graph, node, f"{name}.parts", "ScatterElements", *vector)
    if whole:
        places = _vector(graph, f"{name}.places", [number.index for number in whole])
        new = _vector(graph, f"{name}.numbers", [int(number.value) for number in whole])
        node.inputs[index] = _before(graph, node, name, "ScatterElements", node.inputs[index], places, new)


def _vector(graph: Graph, name: str, values: list[int]) -> gs.Constant:
    import onnx_graphsurgeon as gs

    graph.constants[name] = np.array(values, np.int64)
    return gs.Constant(name, graph.constants[name])


def _before(graph: Graph, node: gs.Node, name: str, op: str, *inputs: gs.Tensor) -> gs.Variable:
    """A new node in front of another one; gives its output."""
    import onnx_graphsurgeon as gs

    made = gs.Variable(name, np.int64)
    at = next(i for i, other in enumerate(graph.gs.nodes) if other is node)
    graph.gs.nodes.insert(at, gs.Node(op, name, inputs=list(inputs), outputs=[made]))
    return made
