"""Which constants of a model are trained, under which name, and which stand for the same thing.

A constant is a parameter where its operator says so (weights and biases of convolutions, dense layers and
normalizations, slopes of PRelu). Elsewhere it has to look like one:

- operands of Add and Sub: two elements or more along one axis; along several axes numbers that are not all multiples
  of one half, since those are masks and grids, while position embeddings are not; the same for pieces of a Concat;
- operands of Mul and Div: two elements or more along one axis; tables over several axes are sines and cosines;
- operands of MatMul and Einsum: along several axes, or combined with an activation;
- tables that data index into: two axes or more.

An operand is combined with an activation if what it meets comes from a floating input or from a weight, not from
positions or sizes. What is computed from constants alone is followed back to them: through operators that only move
elements to every constant, through others to those of two elements or more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.graph import Graph
from onnxprune.torch_bridge.base import Operator, Role, find_operator

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

MOVES = frozenset(
    {"Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile"}
    | {"Transpose", "Unsqueeze"}
)
"""Operators that only move elements."""

STEERING = frozenset({Role.NUMBERS, Role.NUMBER, Role.INDEX})
"""Inputs that are no data."""


@dataclass(slots=True)
class Weights:
    """What is trained.

    Attributes:
        parameters: for each parameter, by the name of the constant it is called after, all constants it stands for.
        statistics: the constant behind each tensor that a BatchNormalization reads as a running statistic.
    """

    parameters: dict[str, list[str]] = field(default_factory=dict)
    statistics: dict[str, str] = field(default_factory=dict)

    def called(self) -> dict[str, str]:
        """For each trained constant the parameter that stands for it."""
        return {name: parameter for parameter, names in self.parameters.items() for name in names}


def find_weights(graph: Graph) -> Weights:
    """Which constants of a model are trained.

    Args:
        graph: a model whose operators are all known to the bridge.
    """
    search = _Search(graph)
    search.walk(graph.gs)
    weights = Weights(statistics=search.statistics)
    for names in _tied(graph, search.found):
        weights.parameters[names[0]] = names
    return weights


class _Search:
    """A walk over the nodes that knows what is constant and what is an activation."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.found: dict[str, None] = {}  # in order of first use
        self.statistics: dict[str, str] = {}
        # for each tensor made of constants alone the floating ones that it is made of
        self.leaves: dict[str, dict[str, None]] = {
            name: {name: None} if _is_floating(array) else {} for name, array in graph.constants.items()
        }
        self.same = {name: name for name in graph.constants}  # the constant that an Identity passes on
        self.activations = {
            info.name for info in graph.source.graph.input if info.type.tensor_type.elem_type in FLOATING
        }

    def walk(self, body: gs.Graph) -> None:
        """All nodes of a graph in order, those of its bodies included."""
        for node in body.nodes:
            operator = find_operator(node.domain or "", node.op, self.graph.opset(node.domain or ""))
            if operator is None:
                continue
            bodies = [value for value in node.attrs.values() if hasattr(value, "nodes")]
            for inner in bodies:
                self.activations.update(tensor.name for tensor in inner.inputs)  # they change from pass to pass
                self.walk(inner)
            if any(tensor.name in self.activations for inner in bodies for tensor in inner.outputs):
                self.activations.update(output.name for output in node.outputs)
            roles = [(tensor.name, operator.role(i)) for i, tensor in enumerate(node.inputs) if tensor.name]
            data = [(name, role) for name, role in roles if role not in STEERING]
            known = all(name in self.leaves for name, role in roles if role not in STEERING or role is Role.INDEX)
            if known and not bodies:
                self.compute(node, operator, data)
            else:
                self.use(node, operator, data, indexed=len(roles) > 1 and roles[1][0] not in self.leaves)

    def compute(self, node: gs.Node, operator: Operator, data: list[tuple[str, Role]]) -> None:
        """A node of constants alone: its results stand for the constants that they are made of."""
        made: dict[str, None] = {}
        for name, _ in data:
            for leaf in {} if operator.sizes else self.leaves[name]:
                if node.op in MOVES or self.graph.constants[leaf].size > 1:
                    made[leaf] = None
        for output in node.outputs:
            self.leaves[output.name] = made
            if node.op == "Identity" and data[0][0] in self.same:
                self.same[output.name] = self.same[data[0][0]]

    def use(self, node: gs.Node, operator: Operator, data: list[tuple[str, Role]], indexed: bool) -> None:
        """A node that reads something that is no constant."""
        active = any(name in self.activations for name, _ in data)
        for name, role in data:
            if name not in self.leaves:
                continue
            leaves = self.leaves[name]
            if role is Role.STATISTIC and name in self.same:
                self.statistics[name] = self.same[name]
            elif role is Role.WEIGHT or self.looks_trained(role, leaves, active, indexed):
                self.found.update(leaves)
                active = True
        if active and not operator.sizes:
            self.activations.update(output.name for output in node.outputs)

    def looks_trained(self, role: Role, leaves: Mapping[str, None], active: bool, indexed: bool) -> bool:
        """Whether constants under a role that leaves it open look like weights."""
        arrays = [self.graph.constants[leaf] for leaf in leaves]
        wide = max((sum(size > 1 for size in array.shape) for array in arrays), default=0)
        if not wide:
            return False
        match role:
            case Role.TABLE:
                return indexed and wide > 1
            case Role.MATRIX:
                return active or wide > 1
            case Role.FACTOR:
                return active and wide == 1
            case Role.SUMMAND:
                return active and (wide == 1 or not all(map(_is_grid, arrays)))
            case Role.PIECE:
                return active and not all(map(_is_grid, arrays))
            case _:
                return False


FLOATING = frozenset({1, 10, 11, 16})
"""ONNX's numbers of the element types that training can change."""


def _is_floating(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def _is_grid(array: np.ndarray) -> bool:
    """Whether all numbers are multiples of one half, or infinite."""
    doubled = np.asarray(array, np.float64) * 2
    return bool(np.all(~np.isfinite(doubled) | (doubled == np.rint(doubled))))


def _tied(graph: Graph, found: Mapping[str, None]) -> Iterator[list[str]]:
    """Trained constants that are one: copies that un-sharing made of one constant, as long as they are equal.

    Zeros and ones are no sign of tying: exporters merge the first values of biases that have nothing in common.
    """
    groups: dict[str, list[list[str]]] = {}
    for name in found:
        array = graph.constants[name]
        same = groups.setdefault(graph.copies.get(name, name), [])
        uniform = array.size > 1 and bool((array == array.flat[0]).all())
        for group in same if not uniform else ():
            other = graph.constants[group[0]]
            if other is array or (other.shape == array.shape and other.tobytes() == array.tobytes()):
                group.append(name)
                break
        else:
            same.append([name])
    for origin, same in groups.items():
        for group in same:
            yield sorted(group, key=lambda name: name != origin)
