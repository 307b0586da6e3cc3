"""Which units are the same number for every input, as far as the weights alone say so.

A unit is still at a tensor where all its positions hold one number, whatever the inputs are. A row of zeros makes such
a unit: what is left of it is its bias. It stays still through operators that work on each element by itself, as long as
everything else that they read is a constant too, and through those that only move, repeat or pool numbers.

What no rule here speaks of is taken for varying: ignorance costs compression, never correctness. That data hold a unit
still is no proof at all, and is none of this module's business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.axes import Dim, leaves
from onnxprune.graph import first_output
from onnxprune.precision import is_floating
from onnxprune.rules import find_rule
from onnxprune.structure import Structure, Use
from onnxprune.units import units_along

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

Still = Mapping[str, Mapping[Dim, np.ndarray]]
"""What is still, by tensor and dim: (size of the dim,) bool, the positions that hold one number for every input."""

CONTRACTING = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2, "MatMul": -1}
"""Operators whose weights make units, and the input that is their bias."""

MOVING = frozenset(
    {"Expand", "Flatten", "Gather", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "ReduceMax", "ReduceMean"}
    | {"ReduceMin", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)
"""Operators that move, repeat or pool what their first input holds."""

PLAIN = ("", "ai.onnx", None)


def find_still(structure: Structure, dims: Collection[Dim]) -> Still:
    """Follows numbers that the weights alone decide through a model.

    Args:
        structure: its layouts.
        dims: the dims whose positions are of interest.
    """
    tables = _Tables(structure, frozenset(dims))
    for node in structure.graph.nodes:
        for output in node.outputs:
            for dim, _ in tables.places(output.name):
                mask = tables.after(node, dim)
                if mask is not None and mask.any():
                    tables.found.setdefault(output.name, {})[dim] = mask
    return tables.found


class _Tables:
    """What is known so far."""

    def __init__(self, structure: Structure, dims: frozenset[Dim]) -> None:
        self.structure, self.dims = structure, dims
        self.found: dict[str, dict[Dim, np.ndarray]] = {}
        self.writers: dict[str, list[Use]] = {}
        for use in structure.uses:
            if use.role == "writes":
                self.writers.setdefault(use.output, []).append(use)

    def places(self, tensor: str) -> Iterator[tuple[Dim, int]]:
        """The dims of interest that a tensor has once, and on which axis."""
        axes = self.structure.axes.get(tensor, ())
        every = [(leaf, i) for i, axis in enumerate(axes) for leaf in leaves(axis) if leaf in self.dims]
        count = Counter(leaf for leaf, _ in every)
        yield from ((leaf, i) for leaf, i in every if count[leaf] == 1)

    def after(self, node: gs.Node, dim: Dim) -> np.ndarray | None:
        """The positions of a dim that are still behind a node; None where nothing is known."""
        names = [tensor.name for tensor in node.inputs]
        if node.domain not in PLAIN or not names:
            return None
        if node.op in CONTRACTING:
            return self._made(node, names, dim)
        if node.op == "BatchNormalization":
            return None if node.attrs.get("training_mode", 0) else self._together(names, dim)
        if node.op == "Concat":
            return self._together([name for name in names if self._has(name, dim)], dim)
        if node.op in MOVING:
            return self._still(names[0], dim)
        registered = find_rule("", node.op, self.structure.graph.opset())
        if registered is not None and registered.elementwise and not (node.op == "Dropout" and len(names) > 2):
            return self._together(names, dim)
        return None

    def _made(self, node: gs.Node, names: list[str], dim: Dim) -> np.ndarray | None:
        """Units whose rows are zero are their bias."""
        uses = [use for use in self.writers.get(first_output(node), ()) if dim in leaves(use.part)]
        if len(uses) != 1 or uses[0].weight not in self.structure.graph.constants:
            return None
        mask = self._spans(uses[0].weight, uses[0].axis, dim, lambda low, high: (low == 0) & (high == 0))
        at = CONTRACTING[node.op]
        if not 0 < at < len(names) or not names[at]:
            return mask
        bias = self._together([names[at]], dim)
        return None if bias is None else mask & bias

    def _together(self, names: list[str], dim: Dim) -> np.ndarray | None:
        """Where several operands are all still; one without the dim must be one number."""
        mask = None
        for name in filter(None, names):
            mine = self._still(name, dim) if self._has(name, dim) else None
            if mine is None:
                array = self.structure.graph.constants.get(name)
                if self._has(name, dim) or array is None or not array.size or np.any(array != array.flat[0]):
                    return None
            else:
                mask = mine if mask is None else mask & mine
        return mask

    def _still(self, name: str, dim: Dim) -> np.ndarray | None:
        """Where a tensor is still: one that a node made, or a constant."""
        if name in self.structure.graph.constants:
            axis = next((axis for leaf, axis in self.places(name) if leaf is dim), None)
            return None if axis is None else self._spans(name, axis, dim, np.equal)
        return self.found.get(name, {}).get(dim)

    def _has(self, name: str, dim: Dim) -> bool:
        return any(dim in leaves(axis) for axis in self.structure.axes.get(name, ()))

    def _spans(
        self, name: str, axis: int, dim: Dim, holds: Callable[[np.ndarray, np.ndarray], np.ndarray]
    ) -> np.ndarray:
        """Where the smallest and the largest number that a constant has for each position of a dim are as wanted."""
        array = self.structure.graph.constants[name]
        if not array.size or not (array.dtype.kind in "iub" or is_floating(array.dtype)):
            return np.zeros(dim.size, bool)
        others = tuple(i for i in range(array.ndim) if i != axis)
        unit_of = units_along(self.structure.axes[name][axis], (dim,))
        here = unit_of >= 0
        low, high = np.full(dim.size, np.inf), np.full(dim.size, -np.inf)
        np.minimum.at(low, unit_of[here], array.min(axis=others)[here].astype(np.float64))
        np.maximum.at(high, unit_of[here], array.max(axis=others)[here].astype(np.float64))
        return holds(low, high)
