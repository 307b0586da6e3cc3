"""Masking positions: the side of the law that removal is held to.

`mask` leaves the model as it is and sets removed positions to zero behind every input and every node that holds some;
what it computes is what the compact model must compute. It shares nothing with `remove` but the plan.

Where statistics run over removed positions (`plan.inexact`), zeros would take part in them, and nothing that is masked
computes what the compact model does. There the reference is the original in which these nodes alone see the kept
positions: their inputs are gathered, their results put back between zeros, and everything else stays masked.

A recurrent layer reads its own results before a mask behind it can act, so there the weight that reads them is masked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.graph import Graph, first_output
from onnxprune.plans import check_units
from onnxprune.reading import inferred_types
from onnxprune.records import KeptIndices, Plan
from onnxprune.sharing import names_in, unused
from onnxprune.units import Units
from onnxprune.writing import shorten_domains

if TYPE_CHECKING:
    import onnx

OWN_READER = {"GRU": 2, "LSTM": 2, "RNN": 2}
"""For operators that read their own results: the input that holds the weight for it, along its last axis."""


def mask(units: Units, plan: Plan) -> onnx.ModelProto:
    """The whole model, with zeros behind every node at the positions that a plan gives up.

    Where a node reads its own results, zeros take the place of the weights that read these positions.

    Args:
        units: the model that the plan was made for; of its layouts only ranks and sizes are used.
        plan: what to keep.

    Raises:
        PlanError: the plan is for another model.
    """
    check_units(units, plan)
    model = units.graph.proto()
    _mask_nodes(model, units, plan)
    return model


def masked_parts(units: Units, plan: Plan) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """The same with references in the place of large weights, and those weights."""
    model, shared = units.graph.parts()
    _mask_nodes(model, units, plan)
    return model, shared


def _mask_nodes(model: onnx.ModelProto, units: Units, plan: Plan) -> None:
    """Puts a mask behind every input and every node of a message that holds removed positions."""
    from onnx import numpy_helper

    shorten_domains(model)
    masker = _Masker(model.graph, units, plan, inferred_types(model), unused(":", names_in(model.graph)))
    own = _own_readers(units.graph, plan)
    fills = _zero_points(model)
    nodes: list[onnx.NodeProto] = []
    mark = masker.mark
    hidden = {name: f"{name}{mark}kept" for name in units.graph.inputs if name in plan.activations}
    for name, kept in hidden.items():
        nodes += masker.masked(name, name, kept, "")
    for node in model.graph.node:
        node.input[:] = [hidden.get(name, name) for name in node.input]
        narrow = node.output[0] in plan.inexact
        nodes += [*(_gathered(node, units, plan, masker) if narrow else ()), node]
        for i, array in own.get(next(filter(None, node.output), ""), {}).items():
            node.input[i] = f"{node.input[i]}{mark}{len(model.graph.initializer)}"
            model.graph.initializer.append(numpy_helper.from_array(array, node.input[i]))
        for i, name in enumerate(node.output):
            if name not in plan.activations:
                continue
            node.output[i] = whole = f"{name}{mark}whole"
            if narrow and (static := masker.static(name)):
                node.output[i] = f"{name}{mark}kept"
                shape = masker.shape(name)
                spread = {axis: _spread(kept, shape[axis]) for axis, kept in static.items()}
                nodes += _taken(node.output[i], whole, spread, masker)
            nodes += masker.masked(name, whole, name, fills.get(name, ""))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


@dataclass(frozen=True, slots=True)
class _Masker:
    """Makes the nodes that mask tensors of a graph, of these element types; the names that it makes have the mark."""

    graph: onnx.GraphProto
    units: Units
    plan: Plan
    types: Mapping[str, int]
    mark: str

    def shape(self, name: str) -> list[int]:
        """The shape of a tensor in the observed run."""
        return [axis.size for axis in self.units.structure.axes[name]]

    def static(self, name: str) -> KeptIndices:
        """What is not masked of a tensor along axes whose size does not vary."""
        periods = self.plan.periods.get(name, {})
        return {axis: kept for axis, kept in unmasked(self.plan, name).items() if axis not in periods}

    def masked(self, name: str, source: str, result: str, fill: str) -> Iterator[onnx.NodeProto]:
        """Nodes that give a tensor without what a plan removes of it.

        Args:
            name: the tensor, as the plan knows it.
            source: where it is, whole.
            result: where it goes.
            fill: the tensor that holds the number which stands for zero; "" for zero itself.
        """
        from onnx import TensorProto, helper, numpy_helper

        kind = self.types.get(name, TensorProto.FLOAT)
        shape, periods = self.shape(name), self.plan.periods.get(name, {})
        mask = _mask_array(shape, self.static(name))
        if self.units.graph.opset() < 9:  # Where came with opset 9
            mask = mask.astype(helper.tensor_dtype_to_np_dtype(kind))
        keep = f"{name}{self.mark}keep"
        self.graph.initializer.append(numpy_helper.from_array(mask, keep))
        for axis, period in periods.items():
            repeated = _mask_array([period], {0: unmasked(self.plan, name)[axis]})
            made, constants = _repeated(repeated, source, f"{name}{self.mark}{axis}", axis, len(shape))
            yield from made
            yield helper.make_node("And", [keep, made[-1].output[0]], [f"{keep}{axis}"])
            self.graph.initializer.extend(constants)
            keep = f"{keep}{axis}"
        if self.units.graph.opset() < 9:
            yield helper.make_node("Mul", [source, keep], [result])
        elif kind == TensorProto.BOOL:
            yield helper.make_node("And", [source, keep], [result])
        else:  # not a product, in which 0 x inf would stay
            if not fill:
                fill = f"{name}{self.mark}zero"
                self.graph.initializer.append(helper.make_tensor(fill, kind, [], [0]))
            yield helper.make_node("Where", [keep, source, fill], [result])


ZERO_POINTS = {
    "QuantizeLinear": 2,
    **dict.fromkeys(("QLinearAdd", "QLinearConv", "QLinearMatMul", "QLinearMul"), 7),
    **dict.fromkeys(("QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearSigmoid"), 4),
    "QGemm": 8,
}
"""Where nodes that make quantized numbers have the number that stands for zero."""


def _zero_points(model: onnx.ModelProto) -> dict[str, str]:
    """For each quantized tensor of one zero point, the tensor that holds it; operators that move numbers pass it on."""
    single = {tensor.name for tensor in model.graph.initializer if np.prod(tensor.dims, dtype=np.int64) == 1}
    fills: dict[str, str] = {}
    for node in model.graph.node:
        index = ZERO_POINTS.get(node.op_type)
        if node.op_type == "DynamicQuantizeLinear":
            fills[node.output[0]] = node.output[2]
        elif index is not None and index < len(node.input) and node.input[index] in single:
            fills[node.output[0]] = node.input[index]
        elif node.op_type in MOVES and node.input[0] in fills:
            fills |= dict.fromkeys(node.output, fills[node.input[0]])
    return fills


MOVES = frozenset({"Concat", "Flatten", "MaxPool", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators that give out numbers as they found them."""


def _repeated(
    mask: np.ndarray, tensor: str, name: str, axis: int, rank: int
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes that repeat a mask along an axis whose size only the run knows, and the constants that they need.

    Args:
        mask: (period,) bool.
        tensor: the tensor.
        name: what the names of the nodes begin with.
        axis: the axis.
        rank: how many axes the tensor has; the last node gives a mask that broadcasts over the others.
    """
    from onnx import helper, numpy_helper

    shape = [-1 if i == axis else 1 for i in range(rank)]
    values = {"mask": mask, "axis": axis, "zero": 0, "one": 1, "period": len(mask), "shape": shape}
    constants = [
        numpy_helper.from_array(np.asarray(value, bool if key == "mask" else np.int64), f"{name}:{key}")
        for key, value in values.items()
    ]
    steps = [
        ("Shape", [tensor], "sizes"),
        ("Gather", [f"{name}:sizes", f"{name}:axis"], "size"),
        ("Range", [f"{name}:zero", f"{name}:size", f"{name}:one"], "positions"),
        ("Mod", [f"{name}:positions", f"{name}:period"], "places"),
        ("Gather", [f"{name}:mask", f"{name}:places"], "flat"),
        ("Reshape", [f"{name}:flat", f"{name}:shape"], "kept"),
    ]
    return [helper.make_node(op, inputs, [f"{name}:{made}"]) for op, inputs, made in steps], constants


def _gathered(node: onnx.NodeProto, units: Units, plan: Plan, masker: _Masker) -> list[onnx.NodeProto]:
    """Lets a node read the kept positions of its inputs alone; gives the nodes that take them."""
    nodes = []
    twin = next(n for n in units.graph.nodes if n.outputs[0].name == node.output[0])
    for i, tensor in enumerate(twin.inputs):  # constants that the file shares have names of their own there
        kept = unmasked(plan, tensor.name)
        kept = {axis: positions for axis, positions in kept.items() if axis not in plan.periods.get(tensor.name, {})}
        if kept:
            name = f"{node.output[0]}{masker.mark}kept{i}"
            nodes += _taken(node.input[i], name, kept, masker)
            node.input[i] = name
    return nodes


def _taken(source: str, result: str, indices: KeptIndices, masker: _Masker) -> list[onnx.NodeProto]:
    """Nodes that take positions of a tensor, axis by axis."""
    from onnx import helper, numpy_helper

    nodes = []
    for i, (axis, positions) in enumerate(indices.items(), 1):
        at = f"{result}{masker.mark}{axis}"
        masker.graph.initializer.append(numpy_helper.from_array(np.array(positions, np.int64), at))
        output = result if i == len(indices) else f"{at}taken"
        nodes.append(helper.make_node("Gather", [source, at], [output], axis=axis))
        source = output
    return nodes


def _spread(kept: tuple[int, ...], size: int) -> tuple[int, ...]:
    """For each position of an axis where it lies among the kept ones; 0 for the others, which are masked anyway."""
    alive = np.isin(np.arange(size), kept)
    return tuple(np.maximum(np.cumsum(alive) - 1, 0).tolist())


def _own_readers(graph: Graph, plan: Plan) -> dict[str, dict[int, np.ndarray]]:
    """For nodes that read their own results, by first output and input: the weight that does, removed columns zero.

    One that the model computes is masked like any other result.
    """
    found: dict[str, dict[int, np.ndarray]] = {}
    for node in graph.nodes:
        index = OWN_READER.get(node.op)
        name = node.inputs[index].name if index is not None else ""
        axis = graph.constants[name].ndim - 1 if index is not None and name in graph.constants else -1
        if index is not None and axis in plan.initializers.get(name, {}):
            keep = _mask_array(list(graph.constants[name].shape), {axis: unmasked(plan, name)[axis]})
            masked = np.where(keep, graph.constants[name], graph.constants[name].dtype.type(0))
            found[first_output(node)] = {index: masked}
    return found


def unmasked(plan: Plan, name: str) -> KeptIndices:
    """The positions of a tensor that hold what they held: those that are kept, and those that go without a trace."""
    kept, spared = plan.activations.get(name) or plan.initializers.get(name, {}), plan.spared.get(name, {})
    return {axis: tuple(sorted({*positions, *spared.get(axis, ())})) for axis, positions in kept.items()}


def _mask_array(shape: list[int], kept: KeptIndices) -> np.ndarray:
    """True at kept positions; axes that lose nothing have size 1, so that they broadcast."""
    out = np.ones([n if axis in kept else 1 for axis, n in enumerate(shape)], bool)
    for axis, indices in kept.items():
        along = np.zeros(shape[axis], bool)
        along[list(indices)] = True
        out &= along.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return out
