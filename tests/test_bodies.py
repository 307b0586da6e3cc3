"""Graphs inside graphs, and operators that nobody knows: left whole, with a reason, and still computed."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import onnxprune
from builders import Net
from laws import sizes
from onnxprune.errors import DataError, ModelError
from onnxprune.graph import Graph, from_proto
from onnxprune.grouping import find_units
from onnxprune.proof import verify
from onnxprune.runtime import Session
from onnxprune.surgery import remove
from onnxprune.units import Units

FLOAT = TensorProto.FLOAT


def info(name: str, *shape: int | str, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape or None)


def halved(graph: Graph) -> tuple[Units, Graph]:
    """The model with half of the units of each group gone, held to the law."""
    units = find_units(graph)
    plan = units.plan({name: np.arange(group.size) % 2 == 0 for name, group in units.groups.items()})
    compact = remove(graph, plan)
    rows = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    verify(units, plan, compact, {name: rows for name in graph.inputs})
    return units, compact


def reasons(units: Units) -> set[str]:
    return {axis.kept.because for axis in units.kept}


def branches(net: Net, h: str, hidden: str) -> str:
    """An If whose bodies read a hidden tensor from outside."""
    bodies = [
        helper.make_graph([helper.make_node(op, [hidden], [f"{op}.y"])], op, [], [info(f"{op}.y")])
        for op in ("Relu", "Neg")
    ]
    total = net.op("ReduceSum", h, keepdims=0)
    return net.op(
        "If", net.op("Greater", total, net.constant(np.float32(0))), then_branch=bodies[0], else_branch=bodies[1]
    )


def loop(net: Net, h: str, hidden: str) -> str:
    """A Loop that adds a tensor from outside to its state."""
    nodes = [helper.make_node("Add", ["state", hidden], ["sum"]), helper.make_node("Identity", ["go"], ["on"])]
    steering = [("i", TensorProto.INT64), ("go", TensorProto.BOOL)]
    inputs = [*(helper.make_tensor_value_info(name, kind, []) for name, kind in steering), info("state")]
    body = helper.make_graph(nodes, "body", inputs, [info("on", kind=TensorProto.BOOL), info("sum")])
    return net.op("Loop", net.constant(np.array(3, np.int64)), "", h, body=body)


def scan(net: Net, h: str, hidden: str) -> str:
    """A Scan over the rows of a tensor that adds up, and reads a weight from outside."""
    nodes = [
        helper.make_node("Mul", ["row", "outer"], ["scaled"]),
        helper.make_node("Add", ["state", "scaled"], ["sum"]),
    ]
    nodes.append(helper.make_node("Identity", ["sum"], ["given"]))
    body = helper.make_graph(nodes, "body", [info("state", 5), info("row", 5)], [info("sum", 5), info("given", 5)])
    net.constant(np.full(5, 2, np.float32), "outer")
    return net.ops("Scan", net.constant(np.zeros(5, np.float32)), h, outputs=2, body=body, num_scan_inputs=1)[1]


@pytest.mark.parametrize("make", [branches, loop, scan])
def test_bodies_are_left_whole_and_what_they_read_too(make: object) -> None:
    net = Net(20)
    first = net.op("Relu", net.dense(net.input("N", 4), 4, 6))
    hidden = net.dense(first, 6, 5)
    h = make(net, hidden, hidden)
    units, compact = halved(net.output(net.dense(net.op("Relu", h), 5, 2)).graph())
    assert sizes(units) == [6]
    op = {"branches": "If", "loop": "Loop", "scan": "Scan"}[make.__name__]
    assert reasons(units) & {f"{op} has a body of its own, which is left whole", "a subgraph reads it"}
    assert [node.op_type for node in compact.proto().graph.node if node.op_type == op] == [op]


@pytest.mark.parametrize("make", [branches, loop, scan])
def test_refit_and_recovery_go_through_bodies(make: object) -> None:
    """What is made for a body alone is there when states behind it are refit."""
    net = Net(20)
    hidden = net.dense(net.op("Relu", net.dense(net.input("N", 4), 4, 6)), 6, 5)
    h = net.op("Relu", make(net, hidden, net.op("Neg", hidden)))
    graph = net.output(net.dense(net.op("Relu", net.dense(h, 5, 8)), 8, 2)).graph()
    data = {"x0": np.random.default_rng(0).standard_normal((64, 4)).astype("f")}

    def pruned(*, refit: bool) -> Graph:
        method = onnxprune.Method(refit=refit, latency=False, limits=onnxprune.Limits(round_to=1))
        return onnxprune.prune(graph, onnxprune.Budget("units", 0.5), data, method=method).graph

    def error(other: Graph) -> float:
        results = [Session(one.message(), device="cpu").run(data)[0] for one in (graph, other)]
        return float(np.square(results[0] - results[1]).sum())

    assert error(pruned(refit=True)) < error(pruned(refit=False))
    if make is not scan:  # which adds up over samples, so that their order counts
        training = onnxprune.Training(epochs=4, batch=16, rate=1e-3, loss="mse")
        recovered = onnxprune.recover(pruned(refit=True), data, teacher=graph, training=training)
        assert error(recovered) < error(pruned(refit=True))


def test_local_functions_are_left_whole_and_kept() -> None:
    net = Net(20)
    net.imports.append(helper.make_opsetid("local", 1))
    h = net.op("Relu", net.dense(net.input("N", 4), 4, 6))
    h = net.op("Twice", net.dense(h, 6, 5), domain="local")
    net.output(net.dense(net.op("Relu", h), 5, 2))
    nodes = [helper.make_node("Add", ["x", "x"], ["y"])]
    graph = helper.make_graph(net.nodes, "test", net.inputs, [info(net.outputs[0].name, "N", 2)], net.initializers)
    function = helper.make_function("local", "Twice", ["x"], ["y"], nodes, [helper.make_opsetid("", 20)])
    model = helper.make_model(graph, opset_imports=net.imports, functions=[function], ir_version=10)
    units, compact = halved(from_proto(model))
    assert sizes(units) == [6]
    assert "Twice of domain local is a local function, which is left whole" in reasons(units)
    assert [function.name for function in compact.proto().functions] == ["Twice"]


def test_an_operator_that_nothing_can_run_is_one_error() -> None:
    net = Net(20)
    net.imports.append(helper.make_opsetid("nobody", 1))
    x = net.input("N", 4)
    graph = helper.make_graph([helper.make_node("Riddle", [x], ["y"], domain="nobody")], "g", net.inputs, [info("y")])
    model = helper.make_model(graph, opset_imports=net.imports, ir_version=10)
    with pytest.raises(ModelError, match=r"ONNX Runtime cannot load the model: .*nobody.*Riddle"):
        find_units(from_proto(model))


def test_sizes_that_nothing_settles_are_one_error() -> None:
    net = Net(20)
    x = net.input("N", "width")
    net.output(net.op("MatMul", x, net.weight(6, 2)))
    with pytest.raises(DataError, match="no sizes tried for the symbolic axes let the model run; give --data"):
        onnxprune.inspect(net.graph())
    assert not onnxprune.inspect(net.graph(), {"x0": np.zeros((2, 6), np.float32)}).groups
