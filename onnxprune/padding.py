"""Tokens that an `attention_mask` hides are padding, and what a model makes of it says nothing about units.

Where a tensor holds the tokens follows from its layouts. They are compared with those of the inputs beside the mask,
since what a model makes of the mask itself often goes through comparisons that tie no axes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.axes import Layout, factors_of, leaves, resolve, same
from onnxprune.records import MASK, Repeats, Site
from onnxprune.structure import Structure

if TYPE_CHECKING:
    import onnx
    import torch

SAMPLES, TOKENS = "samples", "tokens"
"""The two axes of the mask."""

COMPRESS = 9
"""The opset from which states can be left out."""


def mask_of(inputs: Collection[str]) -> str | None:
    """`MASK` where the inputs have it.

    Beside a decoder's inputs it is of the encoder alone, and the tokens of the two cannot be told apart.
    """
    return MASK if MASK in inputs and not any(name.startswith("decoder") for name in inputs) else None


Part = int | str
"""A factor of an axis: `SAMPLES`, `TOKENS`, or how many positions it has, -1 where that may change."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where a tensor holds the tokens of a mask, or pairs of them, as attention does before its Softmax.

    Attributes:
        axes: what each axis is the row-major product of; without `SAMPLES` where there is one sample.
    """

    axes: tuple[tuple[Part, ...], ...]

    def shown(self, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """What a tensor holds of the tokens that are shown, (tokens or pairs, ...).

        Args:
            value: the tensor.
            mask: (samples, tokens) bool.
        """
        parts: list[Part] = [SAMPLES] if not any(SAMPLES in axis for axis in self.axes) else []
        sizes = [1] * len(parts)
        of_mask: dict[Part, int] = dict(zip((SAMPLES, TOKENS), mask.shape, strict=True))
        for size, axis in zip(value.shape, self.axes, strict=True):
            known = [of_mask[part] if part in of_mask else int(part) for part in axis]
            rest = size // abs(math.prod(known))
            parts += axis
            sizes += [rest if part == -1 else part for part in known]
        order = [parts.index(SAMPLES), *(i for i, part in enumerate(parts) if part == TOKENS)]
        grid = mask if len(order) == 2 else mask[:, :, None] & mask[:, None]
        return value.reshape(sizes).movedim(order, list(range(len(order))))[grid]

    @property
    def tokens(self) -> int:
        """How many factors hold tokens: 1, or 2 where it is pairs of them."""
        return sum(axis.count(TOKENS) for axis in self.axes)


class Tokens:
    """Where the tensors of a model hold the tokens of its mask."""

    def __init__(self, structure: Structure) -> None:
        self._axes = axes = structure.axes
        self._pairs: list[tuple[Layout, Layout]] = []
        self._varying: set[Layout] = set()
        self._left_out = structure.graph.opset() >= COMPRESS
        if not mask_of(structure.graph.inputs) or len(axes[MASK]) != 2:
            return
        sizes = [axis.size for axis in axes[MASK]]
        leading = [axes[name][:2] for name in structure.graph.inputs]
        self._pairs = [(pair[0], pair[1]) for pair in leading if [axis.size for axis in pair] == sizes]
        self._varying = {resolve(axes[name][axis]) for name, axis in structure.varying if name in axes}

    def places(self, tensor: str) -> Places | None:
        """Where a tensor holds tokens; None where it holds none, or not those of each sample."""
        for axes in self._axes_of(tensor):
            found = Places(tuple(tuple(_joined(axis)) for axis in axes))
            if 0 < found.tokens < 3 and all(axis.count(-1) < 2 for axis in found.axes):
                return found
        return None

    def repeats(self, tensor: str, axis: int, own: int) -> Repeats | None:
        """How often the samples of a site repeat each token; None where they do not hold all tokens in order.

        Args:
            tensor: the tensor.
            axis: the axis that holds the features.
            own: positions of that axis that count as samples.
        """
        for axes in self._axes_of(tensor) if self._left_out else ():
            parts = list(itertools.chain.from_iterable(axes[:axis] + axes[axis + 1 :]))
            if parts.count(TOKENS) != 1 or SAMPLES in axes[axis]:
                continue
            second = parts.index(TOKENS)
            first = parts.index(SAMPLES) if SAMPLES in parts else second
            pieces = [own, *parts[:first]], parts[first + 1 : second], parts[second + 1 :]
            before, between, behind = (-1 if -1 in piece else math.prod(map(int, piece)) for piece in pieces)
            if first <= second and (before, between, behind).count(-1) < 2:
                return before, between, behind
        return None

    def _axes_of(self, tensor: str) -> Iterator[tuple[tuple[Part, ...], ...]]:
        """What the axes of a tensor are made of, for each input that holds tokens, if it has their samples once."""
        for samples, tokens in self._pairs:
            single = samples.size == 1
            axes = tuple(
                tuple(self._part(factor, tokens, None if single else samples) for factor in factors_of(layout))
                for layout in self._axes.get(tensor, ())
            )
            if sum(axis.count(SAMPLES) for axis in axes) == 1 - single:
                yield axes

    def _part(self, factor: Layout, tokens: Layout, samples: Layout | None) -> Part:
        if same(factor, tokens):
            return TOKENS
        if samples is not None and same(factor, samples):
            return SAMPLES
        moves = factor in self._varying or any(not leaf.kept for leaf in leaves(factor))
        return -1 if moves else factor.size


def _joined(axis: tuple[Part, ...]) -> Iterator[Part]:
    """An axis with -1 for all that lies between the two of the mask: the tensor itself says how much that is."""
    for of_mask, run in itertools.groupby(axis, lambda part: part in (SAMPLES, TOKENS)):
        yield from run if of_mask else (-1,)


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
