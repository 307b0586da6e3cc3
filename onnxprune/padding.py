"""Tokens that an `attention_mask` hides are padding, and what a model makes of it says nothing about units.

Where a tensor holds the tokens follows from its layouts. They are compared with those of the inputs beside the mask,
since what a model makes of the mask itself often goes through comparisons that tie no axes.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.axes import Layout, factors_of, leaves, resolve, same
from onnxprune.records import MASK, Repeats, Site
from onnxprune.structure import Structure

if TYPE_CHECKING:
    import onnx

COMPRESS = 9
"""The opset from which states can be left out."""


def mask_of(inputs: Collection[str]) -> str | None:
    """`MASK` where the inputs have it.

    Beside a decoder's inputs it is of the encoder alone, and the tokens of the two cannot be told apart.
    """
    return MASK if MASK in inputs and not any(name.startswith("decoder") for name in inputs) else None


class Tokens:
    """Where the tensors of a model hold the tokens of its mask."""

    def __init__(self, structure: Structure) -> None:
        self._axes = axes = structure.axes
        self._pairs: list[tuple[Layout, Layout]] = []
        self._varying: set[Layout] = set()
        if not mask_of(structure.graph.inputs) or len(axes[MASK]) != 2 or structure.graph.opset() < COMPRESS:
            return
        sizes = [axis.size for axis in axes[MASK]]
        leading = [axes[name][:2] for name in structure.graph.inputs]
        self._pairs = [(pair[0], pair[1]) for pair in leading if [axis.size for axis in pair] == sizes]
        self._varying = {resolve(axes[name][axis]) for name, axis in structure.varying if name in axes}

    def repeats(self, tensor: str, axis: int, own: int) -> Repeats | None:
        """How often the samples of a site repeat each token; None where they do not hold all tokens in order.

        Args:
            tensor: the tensor.
            axis: the axis that holds the features.
            own: positions of that axis that count as samples.
        """
        factors = [f for i, layout in enumerate(self._axes[tensor]) if i != axis for f in factors_of(layout)]
        for samples, tokens in self._pairs:
            places = [[i for i, f in enumerate(factors) if same(f, part)] for part in (samples, tokens)]
            if samples.size == 1:
                places[0] = places[1]
            if [len(place) for place in places] != [1, 1] or places[0] > places[1]:
                continue
            (first,), (second,) = places
            before = self._size(factors[:first], own)
            between, behind = self._size(factors[first + 1 : second]), self._size(factors[second + 1 :])
            if (before, between, behind).count(-1) < 2:
                return before, between, behind
        return None

    def _size(self, factors: list[Layout], own: int = 1) -> int:
        """How many positions factors have together, -1 where that may change."""
        moving = any(f in self._varying or any(not leaf.kept for leaf in leaves(f)) for f in factors)
        return -1 if moving else own * math.prod(factor.size for factor in factors)


def shown_nodes(site: Site, states: str) -> tuple[str, list[onnx.NodeProto], dict[str, np.ndarray]]:
    """Nodes that leave out the states of tokens that the mask hides, where a site holds tokens.

    Args:
        site: where.
        states: what `states.state_nodes` gave, (features, samples).

    Returns:
        The name of what is left, the nodes, and the constants that they need.
    """
    if not site.repeats:
        return states, [], {}
    from onnx import TensorProto, helper

    name = f"{states}.counted"
    before, between, behind = site.repeats
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
    return name, nodes, {f"{name}.{key}": np.array(value, np.int64) for key, value in constants.items()}
