"""Models that are not float32: halves, doubles and integers, from the file to the compact file."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import quantization

import onnxprune
from builders import Net
from laws import sizes
from onnxprune.graph import from_proto
from onnxprune.grouping import find_units
from onnxprune.precision import widen
from onnxprune.proof import verify
from onnxprune.surgery import remove

KINDS = {TensorProto.FLOAT16: np.float16, TensorProto.DOUBLE: np.float64, TensorProto.BFLOAT16: ml_dtypes.bfloat16}


def network(kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """A small convolutional network with a scale from a literal, in another element type."""
    net = Net(22)
    h = net.op("Relu", net.conv(net.input("N", 3, 8, 8), 3, 12, kernel=3))
    h = net.op("BatchNormalization", net.conv(h, 12, 16), *(net.constant(np.full(16, 1, "f")) for _ in range(4)))
    h = net.op("Flatten", net.op("GlobalAveragePool", net.op("Relu", h)))
    model = net.output(net.dense(net.op("Relu", net.dense(h, 16, 10)), 10, 4)).model()
    return model if kind == TensorProto.FLOAT else retyped(model, kind)


def dense(kind: int) -> onnx.ModelProto:
    """The same without convolutions, which ONNX Runtime lacks in double."""
    net = Net(22)
    h = net.op("Tanh", net.dense(net.op("Flatten", net.input("N", 3, 8, 8)), 192, 16))
    return retyped(net.output(net.dense(net.op("Cast", h, to=TensorProto.FLOAT), 16, 4)).model(), kind)


def retyped(model: onnx.ModelProto, kind: int) -> onnx.ModelProto:
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(KINDS[kind])
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "to":
                attribute.i = kind
    for info in (*model.graph.input, *model.graph.output):
        info.type.tensor_type.elem_type = kind
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_other_types_are_pruned_proved_and_kept(kind: int, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save((dense if kind == TensorProto.DOUBLE else network)(kind), path)
    data = {"x0": np.random.default_rng(0).standard_normal((32, 3, 8, 8)).astype(np.float32)}
    if kind == TensorProto.DOUBLE:
        data = {"x0": data["x0"].astype(np.float64)}
    method = onnxprune.Method(rounds=2, latency=False, refit=True)
    pruned = onnxprune.prune(path, onnxprune.Budget("units", 0.5), data, method=method)
    assert pruned.report.verified is not None
    assert pruned.report.verified < 1e-4
    written = onnx.load(pruned.graph.save(tmp_path / "compact.onnx"))
    onnx.checker.check_model(written, full_check=True)
    kinds = {tensor.data_type for tensor in written.graph.initializer}
    assert kinds == {kind} | (
        {TensorProto.DOUBLE} if any(t.data_type == 11 for t in written.graph.initializer) else set()
    )
    assert written.graph.input[0].type.tensor_type.elem_type == kind
    assert pruned.graph.nbytes < 0.6 * onnxprune.load(path).nbytes


def test_widening_reaches_every_place_that_names_a_type() -> None:
    net = Net(21)
    half = numpy_helper.from_array(np.ones(1, np.float16))
    x = net.input("N", 3, kind=TensorProto.FLOAT16)
    h = net.op("Add", x, net.op("ConstantOfShape", net.ints(3), value=half))
    h = net.op("Cast", net.op("Cast", h, to=TensorProto.FLOAT), to=TensorProto.FLOAT16)
    model = net.output(net.op("Mul", h, net.constant(np.ones(3, np.float16))), kind=TensorProto.FLOAT16).model()
    body = helper.make_graph([helper.make_node("Cast", [h], ["inner"], to=10)], "body", [], [onnx.ValueInfoProto()])
    model.graph.node.append(helper.make_node("If", ["condition"], ["y"], then_branch=body, else_branch=body))
    widen(model, [TensorProto.FLOAT16])
    assert b"\x10" not in model.graph.input[0].type.SerializeToString()
    types = [onnx.helper.get_attribute_value(a) for n in model.graph.node for a in n.attribute if a.name == "to"]
    assert set(types) == {TensorProto.FLOAT}
    assert model.graph.node[-1].attribute[0].g.node[0].attribute[0].i == TensorProto.FLOAT
    assert {tensor.data_type for tensor in model.graph.initializer} == {TensorProto.FLOAT, TensorProto.INT64}


class Reader(quantization.CalibrationDataReader):
    """Four random batches."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self.batches = iter([{"x0": random.standard_normal((4, 3, 8, 8)).astype(np.float32)} for _ in range(4)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch."""
        return next(self.batches, None)


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_statically_quantized_networks_lose_half_of_their_channels(
    form: str, per_channel: bool, tmp_path: Path
) -> None:
    source, path = tmp_path / "float.onnx", tmp_path / "model.onnx"
    onnx.save(network(), source)
    quantization.quantize_static(
        source, path, Reader(), quant_format=quantization.QuantFormat[form], per_channel=per_channel
    )
    graph = onnxprune.load(path)
    units = find_units(graph)
    assert sizes(units) == [10, 12, 16], units.kept
    assert units.cost({})[0] >= 3 * 12 * 9 + 12 * 16 + 16 * 10 + 10 * 4
    keep = {name: np.arange(group.size) % 2 == 0 for name, group in units.groups.items()}
    assert units.cost(keep)[0] < 0.6 * units.cost({})[0]
    plan = units.plan(keep)
    compact = remove(graph, plan)
    feeds = {"x0": np.random.default_rng(1).standard_normal((4, 3, 8, 8)).astype(np.float32)}
    verify(units, plan, compact, feeds)
    assert (
        units.cost({name: np.arange(g.size) % 2 == 0 for name, g in units.groups.items()})[0] < 0.6 * units.cost({})[0]
    )
    assert compact.nbytes < graph.nbytes


def test_dynamically_quantized_networks_are_pruned(tmp_path: Path) -> None:
    net = Net(20)
    h = net.op("Relu", net.op("Add", net.op("MatMul", net.input("N", 8), net.weight(8, 12)), net.weight(12)))
    h = net.op("Relu", net.op("MatMul", h, net.weight(12, 16)))
    onnx.save(net.output(net.op("MatMul", h, net.weight(16, 4))).model(), tmp_path / "float.onnx")
    quantization.quantize_dynamic(tmp_path / "float.onnx", tmp_path / "model.onnx", per_channel=True)
    data = {"x0": np.random.default_rng(0).standard_normal((32, 8)).astype(np.float32)}
    method = onnxprune.Method(rounds=1, latency=False)
    pruned = onnxprune.prune(tmp_path / "model.onnx", onnxprune.Budget("units", 0.5), data, method=method)
    assert [(row.units, row.kept) for row in pruned.report.groups] == [(12, 6), (16, 8)]
    assert pruned.report.after.parameters < 0.6 * pruned.report.before.parameters


def test_integers_that_are_no_weights_are_not_counted() -> None:
    net = Net()
    h = net.op("Reshape", net.dense(net.input("N", 4), 4, 6), net.ints(-1, 2, 3))
    units = find_units(from_proto(net.output(h).model()))
    assert units.cost({})[0] == 4 * 6 + 6
