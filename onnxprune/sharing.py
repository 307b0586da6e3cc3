"""Who shares a tensor: uses of one constant, each of which gets a copy, and bodies of control flow."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx
    import onnx_graphsurgeon as gs


def captured_names(graph: onnx.GraphProto) -> set[str]:
    """Names of tensors that bodies of If, Loop and Scan read from outside themselves, at any depth."""
    return set().union(*map(captured_by, graph.node))


def captured_by(node: onnx.NodeProto) -> set[str]:
    """The same for the bodies of one node."""
    import onnx

    names: set[str] = set()
    for attribute in node.attribute:
        for body in [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs:
            made = {x.name for x in (*body.input, *body.initializer)} | {name for n in body.node for name in n.output}
            read = {name for n in body.node for name in n.input} | {x.name for x in body.output}
            names |= (read | captured_names(body)) - made
    return names


def names_in(graph: onnx.GraphProto) -> set[str]:
    """Names of all tensors of a graph, those inside of bodies included."""
    import onnx

    names = {tensor.name for tensor in (*graph.input, *graph.output, *graph.initializer, *graph.value_info)}
    names |= {tensor.values.name for tensor in graph.sparse_initializer}
    for node in graph.node:
        names.update(node.input, node.output)
        for attribute in node.attribute:
            if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
                bodies = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs
                names = names.union(*map(names_in, bodies))
    return names


def unused(mark: str, names: Collection[str]) -> str:
    """A mark that none of some names contains, so that names with it are new: the one given, or with primes."""
    while any(mark in name for name in names):
        mark += "'"
    return mark


def unshare(
    graph: gs.Graph, constants: Mapping[str, np.ndarray], captured: set[str], names: Collection[str]
) -> dict[str, str]:
    """Gives each use of a shared constant a copy of its own, under a name that is not yet taken.

    Args:
        graph: the nodes.
        constants: the values of its constants.
        captured: names that bodies read from outside.
        names: those that are taken.

    Returns:
        The origin of each copy.
    """
    import onnx_graphsurgeon as gs

    copies: dict[str, str] = {}
    names = set(names)
    for name, tensor in graph.tensors().items():
        if name not in constants:
            continue
        array = constants[name]
        uses = [(node, i) for node in {id(n): n for n in tensor.outputs}.values() for i in _places(node, tensor)]
        tied = sum(size > 1 for size in array.shape) > 1 and len({id(node) for node, _ in uses}) > 1
        tied |= all(node.op == "Slice" and i == 0 for node, i in uses)  # the gates of a bias, put in order
        tied = tied and bool(array.any())  # zeros are no weights, but the initial states of several layers
        if tied:
            continue
        for node, i in uses if name in captured or tensor in graph.outputs else uses[1:]:
            number = len(copies) + 2
            while (copy := f"{name}.{number}") in names:
                number += 1
            names.add(copy)
            copies[copy] = name
            node.inputs[i] = gs.Constant(copy, array)
    return copies


def _places(node: gs.Node, tensor: gs.Tensor) -> list[int]:
    return [i for i, x in enumerate(node.inputs) if x is tensor]
