"""What is known of a model's axes: the layout of each one, and what hangs on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from onnxprune import sizes
from onnxprune.axes import Layout
from onnxprune.graph import Graph, first_output
from onnxprune.rules.node import Entry

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


@dataclass(frozen=True, slots=True)
class Use:
    """A weight that reads or writes units.

    Attributes:
        role: "reads" or "writes".
        node: the name of the node.
        op: its operator.
        output: its first output.
        weight: the weight tensor, a constant or computed from constants.
        axis: the axis of the weight.
        part: the layout of the units concerned.
        data: the tensor that is contracted with the weight, or made by it.
        data_axis: the axis of that tensor.
    """

    role: str
    node: str
    op: str
    output: str
    weight: str
    axis: int
    part: Layout
    data: str
    data_axis: int


@dataclass(frozen=True, slots=True, eq=False)
class Meeting:
    """Two activations that are summed over axes of theirs.

    Attributes:
        output: the first output of the node.
        sides: the two tensors and their axes.
        part: the layout of the units concerned.
    """

    output: str
    sides: tuple[tuple[str, int], tuple[str, int]]
    part: Layout


@dataclass(frozen=True, slots=True)
class Number:
    """A number of the model that holds a size or a position, or that would follow one and must not.

    Attributes:
        node: the first output of the node that is steered.
        entry: where the node has it.
        place: where it must be written, if the node has it from an input; None there where a number has to be put in
            on the way to the node.
        axis: the layout whose positions it counts; None where it keeps its value.
        upto: how many of them, all when None.
        when: axes that make it necessary to write it, although it has the same value: the model computes it from
            their sizes, or implies it by them.
    """

    node: str
    entry: Entry
    place: sizes.Place | None
    axis: Layout | None
    upto: int | None
    when: tuple[Layout, ...] = ()


@dataclass(slots=True)
class Structure:
    """What is known of a model's axes.

    Attributes:
        graph: the model.
        axes: the layout of each axis of each tensor.
        uses: weights that read or write units.
        meetings: activations that read each other's units.
        numbers: integers that follow sizes.
        work: per node, the layouts whose sizes multiply to its multiply-accumulates for one batch.
        kinds: what units of an axis are, in the reader's words.
        normalized: per node by its first output, the layouts that its statistics run over, where that pins nothing.
        constant: tensors that are constants or computed from constants alone.
        linear: first outputs of nodes whose operator is linear in its data.
        computed: values of tensors that are computed but the same for all inputs, so that they could be constants.
        values: tensors that use sizes as values; they become constants when one of these axes loses positions.
        varying: the (tensor, axis) pairs whose size depends on the sizes of the inputs.
        omitted: first outputs of nodes, an optional input of theirs that is zero everywhere, and the layouts that make
            it necessary to leave it out.
        batch: samples in the observed batch, by which `work` is divided.
    """

    graph: Graph
    axes: dict[str, tuple[Layout, ...]]
    uses: list[Use] = field(default_factory=list)
    meetings: list[Meeting] = field(default_factory=list)
    numbers: list[Number] = field(default_factory=list)
    work: dict[str, tuple[Layout, ...]] = field(default_factory=dict)
    kinds: list[tuple[Layout, str]] = field(default_factory=list)
    normalized: dict[str, tuple[Layout, ...]] = field(default_factory=dict)
    constant: set[str] = field(default_factory=set)
    linear: set[str] = field(default_factory=set)
    computed: dict[str, np.ndarray] = field(default_factory=dict)
    values: dict[str, list[Layout]] = field(default_factory=dict)
    varying: frozenset[tuple[str, int]] = frozenset()
    omitted: list[tuple[str, int, tuple[Layout, ...]]] = field(default_factory=list)
    batch: int = 1


def label(node: gs.Node) -> str:
    """The name of a node for people: its own, or its first output's."""
    return str(node.name or first_output(node) or node.op)
