"""A model taken apart into its nodes: each is given its inputs from outside, so that each can be looked at by itself.

Tensors that hold sizes stay connected, since in a compact model they are other numbers and rightly so; and so does what
no array can hold, such as sequences.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.graph import Graph
from onnxprune.precision import is_floating
from onnxprune.records import Plan
from onnxprune.sharing import captured_by, names_in, unused
from onnxprune.writing import Message

if TYPE_CHECKING:
    import onnx

SPOILED = 2.0**-6
"""By how much a weight is spoiled, relative to itself."""


@dataclass(frozen=True, slots=True)
class Spoiled:
    """A weight that is spoiled a little for one node.

    Attributes:
        weight: the weight.
        node: the index of the node.
        results: the node's tensors, and the outputs that show what becomes of them.
    """

    weight: str
    node: int
    results: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Apart:
    """Nodes of a model, each by itself.

    Attributes:
        message: all of them as one model, for a session.
        inputs: the tensors that they are given.
        results: the tensors that they make, in the order of the model, and the outputs that show them.
        makers: the index of the node that makes each of them.
        spoiled: the same nodes with weights that are spoiled.
    """

    message: Message
    inputs: tuple[str, ...]
    results: Mapping[str, str]
    makers: Mapping[str, int]
    spoiled: tuple[Spoiled, ...]


def touched(original: Graph, plan: Plan, compact: Graph, model: onnx.ModelProto) -> list[int]:
    """The nodes of a compact model that are not what they were, or have to do with something that shrank.

    Args:
        original: the model.
        plan: what was removed.
        compact: the model without it.
        model: the same as a message.
    """
    before = {tuple(node.output): node for node in original.skeleton()[0].graph.node}
    shrunk = {*plan.activations, *plan.frozen}
    same = {name for name, array in compact.constants.items() if array is original.constants.get(name)}
    found = []
    for i, node in enumerate(model.graph.node):
        read = set(read_by(node))
        changed = any(name in compact.constants and name not in same for name in read)
        if changed or not shrunk.isdisjoint({*read, *node.output}) or before.get(tuple(node.output)) != node:
            found.append(i)
    return [i for i in found if model.graph.node[i].op_type != "Constant"]


def read_by(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads, its bodies included."""
    yield from filter(None, node.input)
    yield from captured_by(node)


def sizes_of(model: onnx.ModelProto, constants: Collection[str], plan: Plan) -> set[str]:
    """Tensors that are computed from sizes, and from constants at most; those that a plan overwrites are sizes."""
    found = {*plan.frozen, *(number.constant for number in plan.numbers)}
    fixed = set(constants) - found
    for node in model.graph.node:
        read = list(read_by(node))
        if node.op_type in ("Shape", "Size"):
            found.update(node.output)
        elif read and all(name in found or name in fixed for name in read):
            (fixed if fixed.issuperset(read) else found).update(node.output)
    return found


def take_apart(compact: Graph, nodes: Sequence[int], given: Mapping[str, np.ndarray], cut: Mapping[str, int]) -> Apart:
    """Makes one model of some nodes of another one.

    Args:
        compact: the model that they are of.
        nodes: the indices of the nodes in its message.
        given: for each tensor that is given from outside an array of its type and rank.
        cut: the weights to spoil, and an axis of each that was cut.
    """
    import onnx
    from onnx import helper

    model, weights = compact.skeleton()
    mark = unused(":", names_in(model.graph))
    makers = {name: i for i, node in enumerate(model.graph.node) for name in node.output if name}
    taken = sorted(_needed(model, nodes, set(given), makers))
    out = onnx.ModelProto()
    out.CopyFrom(model)
    for part in ("node", "input", "output", "value_info", "initializer"):
        out.graph.ClearField(part)
    arrays: dict[str, np.ndarray] = {}
    results: dict[str, str] = {}
    spoils: list[Spoiled] = []
    read: set[str] = set()
    for i in taken:
        node = out.graph.node.add()
        node.CopyFrom(model.graph.node[i])
        read.update(read_by(node))
        shown = {name: f"{name}{mark}" for name in node.output if name in given}
        node.output[:] = [shown.get(name, name) for name in node.output]
        if i not in nodes:
            continue
        results |= shown
        for place, name in enumerate(model.graph.node[i].input):
            array = spoil(compact.constants[name], cut[name]) if name in cut and shown else None
            if array is None:
                continue
            copy = out.graph.node.add()
            copy.CopyFrom(model.graph.node[i])
            copy.name = ""
            again = f"{mark}{place}"
            copy.input[place] = f"{name}{mark}{i}{again}"
            arrays[copy.input[place]] = array
            copy.output[:] = [f"{output}{again}" if output else "" for output in copy.output]
            spoils.append(Spoiled(name, i, {output: f"{output}{again}" for output in shown}))
    arrays |= {name: weights[name] for name in weights if name in read}
    for name, array in arrays.items():
        out.graph.initializer.add(
            name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=list(array.shape)
        )
    inputs = [name for name in given if name in read]
    for name in inputs:
        value = out.graph.input.add(name=name)
        value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(given[name].dtype)
        for _ in given[name].shape:
            value.type.tensor_type.shape.dim.add()
    for name in (*results.values(), *(output for s in spoils for output in s.results.values())):
        out.graph.output.add(name=name)
    message = Message.of(out, compact.filled(out, arrays), single=True)
    return Apart(message, tuple(inputs), results, {name: makers[name] for name in results}, tuple(spoils))


def _needed(model: onnx.ModelProto, nodes: Sequence[int], given: set[str], makers: Mapping[str, int]) -> set[int]:
    """The nodes, and those that make what they read and are not given."""
    found: set[int] = set()
    queue = list(nodes)
    while queue:
        i = queue.pop()
        if i not in found:
            found.add(i)
            queue += [makers[name] for name in read_by(model.graph.node[i]) if name in makers and name not in given]
    return found


def spoil(array: np.ndarray, axis: int) -> np.ndarray | None:
    """A weight that is a little wrong along an axis; None where there is nothing that could be wrong in it.

    Numbers are off by one to two parts in 64, integers are moved by one position, so that they stay among those that
    the model has.
    """
    if array.size and is_floating(array.dtype):
        steps = SPOILED * (1 + (np.arange(array.shape[axis]) * 0.618) % 1)
        shape = [-1 if i == axis else 1 for i in range(array.ndim)]
        spoiled = (
            array.astype(np.float64) * (1 + steps.reshape(shape)) if array.any() else np.full(array.shape, SPOILED)
        )
        return spoiled.astype(array.dtype)
    moved = np.roll(array, 1, axis)
    return None if np.array_equal(moved, array) else moved
