"""Tokens that an `attention_mask` hides are padding, and what a model makes of it says nothing about units.

Where a tensor holds the tokens follows from its layouts. They are compared with those of the inputs beside the mask,
since what a model makes of the mask itself often goes through comparisons that tie no axes.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.axes import Layout, Product, leaves, resolve, same
from onnxprune.records import MASK
from onnxprune.structure import Structure

if TYPE_CHECKING:
    import onnx

COMPRESS = 9
"""The opset from which states can be left out."""

Repeats = tuple[int, int, int]
"""How often an entry of the mask occurs: in front of the samples, between samples and tokens, and behind these.

One of the three may be -1, so that it follows from the others: heads become fewer, and other sizes depend on data.
"""


def mask_of(inputs: Collection[str]) -> str | None:
    """`MASK` where the inputs have it.

    Beside a decoder's inputs it is of the encoder alone, and the tokens of the two cannot be told apart.
    """
    return MASK if MASK in inputs and not any(name.startswith("decoder") for name in inputs) else None


class Tokens:
    """Where the tensors of a model hold the tokens of its mask."""

    def __init__(self, structure: Structure) -> None:
        self._axes = structure.axes
        self._pairs: list[tuple[Layout, Layout]] = []
        known = mask_of(structure.graph.inputs) and structure.graph.opset() >= COMPRESS
        if known and len(structure.axes[MASK]) == 2:
            sizes = [axis.size for axis in structure.axes[MASK]]
            leading = [structure.axes[name][:2] for name in structure.graph.inputs]
            self._pairs = [(axes[0], axes[1]) for axes in leading if [axis.size for axis in axes] == sizes]
        self._varying = {resolve(structure.axes[name][axis]) for name, axis in structure.varying if name in self._axes}

    def repeats(self, tensor: str, axis: int) -> Repeats | None:
        """How often the other axes of a tensor repeat each token; None where they do not hold all tokens in order."""
        factors = [f for i, layout in enumerate(self._axes[tensor]) if i != axis for f in _factors(layout)]
        for samples, tokens in self._pairs:
            places = [[i for i, f in enumerate(factors) if same(f, part)] for part in (samples, tokens)]
            if samples.size == 1:
                places[0] = places[1]
            if [len(place) for place in places] != [1, 1] or places[0] > places[1]:
                continue
            (first,), (second,) = places
            parts = factors[:first], factors[first + 1 : second], factors[second + 1 :]
            before, between, behind = (self._size(part) for part in parts)
            if [before, between, behind].count(-1) < 2:
                return before, between, behind
        return None

    def _size(self, factors: list[Layout]) -> int:
        """How many positions factors have together, -1 where that may change."""
        moving = any(f in self._varying or any(not leaf.kept for leaf in leaves(f)) for f in factors)
        return -1 if moving else math.prod(factor.size for factor in factors)


def _factors(layout: Layout) -> tuple[Layout, ...]:
    layout = resolve(layout)
    return layout.factors if isinstance(layout, Product) else (layout,)


def shown_nodes(repeats: Repeats, name: str, states: str) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """Nodes that leave out the states of tokens that the mask hides.

    Args:
        repeats: how the states repeat tokens.
        name: of the result, and of what leads to it.
        states: what `states.state_nodes` gave, (features, samples).

    Returns:
        The nodes and the constants that they need.
    """
    from onnx import TensorProto, helper

    before, between, behind = repeats
    constants = {"zero": [0], "one": [1], "flat": [-1], "before": [before], "between": [between], "behind": [behind]}
    steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Cast", [MASK], "shown", {"to": TensorProto.BOOL}),
        ("Shape", [MASK], "size", {}),
        ("Gather", [".size", ".zero"], "samples", {}),
        ("Gather", [".size", ".one"], "tokens", {}),
        ("Concat", [".one", ".samples", ".one", ".tokens", ".one"], "target", {"axis": 0}),
        ("Reshape", [".shown", ".target"], "apart", {}),
        ("Gather", [states, ".zero"], "feature", {"axis": 0}),
        ("Concat", [".before", ".samples", ".between", ".tokens", ".behind"], "sizes", {"axis": 0}),
        ("Reshape", [".feature", ".sizes"], "all", {}),  # fails where states are not those of the tokens
        ("Shape", [".all"], "known", {}),
        ("Expand", [".apart", ".known"], "wide", {}),
        ("Reshape", [".wide", ".flat"], "row", {}),
    ]
    nodes = [
        helper.make_node(op, [name + i if i.startswith(".") else i for i in inputs], [f"{name}.{output}"], **attrs)
        for op, inputs, output, attrs in steps
    ]
    nodes.append(helper.make_node("Compress", [states, f"{name}.row"], [name], axis=1))
    return nodes, {f"{name}.{key}": np.array(value, np.int64) for key, value in constants.items()}
