"""Graphs inside nodes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, ValueInfoProto, helper, numpy_helper

from builders import Net
from onnxprune.errors import BridgeError
from onnxprune.graph import Graph
from onnxprune.torch_bridge import missing_operators, to_onnx, to_torch, untouched_parameters
from onnxprune.torch_bridge.control import loop
from torch_bridge.parity import assert_parity


def branches(inner: str = "Relu") -> Graph:
    """X @ w in one branch, dropped out, and inner(x) with a constant of its own in the other; w also lies outside."""
    net = Net(13)
    x, flag = net.input("batch", 4), net.input(kind=TensorProto.BOOL)
    w = net.weight(4, 4, name="layer.w")
    info = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    then = helper.make_graph(
        [helper.make_node("MatMul", [x, w], ["m"]), helper.make_node("Dropout", ["m"], ["y"], "drop")],
        "then",
        [],
        [info],
    )
    two = numpy_helper.from_array(np.full(1, 2, np.float32), "two")
    other = helper.make_graph(
        [helper.make_node(inner, [x], ["r"], "inner"), helper.make_node("Mul", ["r", "two"], ["y"])],
        "else",
        [],
        [info],
        [two],
    )
    y = net.op("If", flag, then_branch=then, else_branch=other)
    net.output(net.op("MatMul", y, w))
    return net.graph()


X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)


@pytest.mark.parametrize("flag", [True, False])
def test_each_branch_equals_onnxruntime(flag: bool) -> None:
    module = assert_parity(branches(), {"x0": X, "x1": np.array(flag)})
    assert [name for name, _ in module.named_parameters()] == ["layer.w"]
    assert untouched_parameters(module, {"x0": X, "x1": np.array(flag)}) == []


def test_dropout_inside_a_branch_follows_the_module() -> None:
    module = to_torch(branches())
    arguments = torch.from_numpy(X), torch.tensor(True)
    plain = module(*arguments)[0]
    module.train()
    torch.testing.assert_close(module(*arguments)[0], plain)
    module.dropout = True
    assert not torch.equal(module(*arguments)[0], plain)


def test_a_branch_is_trained_and_written_back() -> None:
    graph = branches()
    module = to_torch(graph)
    with torch.no_grad():
        module.layer.w.mul_(2)
    feeds = {"x0": X, "x1": np.array(True)}
    np.testing.assert_array_equal(to_onnx(module, graph, feeds).constants["layer.w"], 2 * graph.constants["layer.w"])


def test_operators_inside_branches_are_looked_at() -> None:
    assert missing_operators(branches("Bernoulli")) == {"Bernoulli": ["inner"]}


def test_sizes_pass_through_branches() -> None:
    net = Net(13)
    x = net.input("batch", 4)
    size = net.op("Shape", x)
    info = helper.make_tensor_value_info("s", TensorProto.INT64, None)
    same = helper.make_graph([helper.make_node("Identity", [size], ["s"])], "same", [], [info])
    flat = helper.make_graph(
        [helper.make_node("Constant", [], ["s"], value=numpy_helper.from_array(np.array([-1]), "v"))],
        "flat",
        [],
        [info],
    )
    equal = net.op("Equal", net.op("Gather", size, net.constant(np.array([0])), axis=0), net.ints(3))
    target = net.op("If", net.op("Squeeze", equal), then_branch=same, else_branch=flat)
    net.output(net.op("Reshape", x, target))
    for batch in (2, 3):
        module = assert_parity(net.graph(), {"x0": np.resize(X, (batch, 4))})
        assert not list(module.buffers())


def sizes_or_not(*, weight: bool) -> Graph:
    """X + (1 by 4 ones, or their number everywhere); the second branch is made of sizes alone."""
    net = Net(13)
    x, flag = net.input("batch", 4), net.input(kind=TensorProto.BOOL)
    size = net.op("Cast", net.op("Shape", x), to=TensorProto.FLOAT)
    info = helper.make_tensor_value_info("s", TensorProto.FLOAT, None)
    data = helper.make_graph([helper.make_node("ReduceMax", [x], ["s"], axes=[0])], "data", [], [info])
    made = helper.make_graph([helper.make_node("Concat", [size, size], ["s"], axis=0)], "made", [], [info])
    y = net.op("If", flag, then_branch=data, else_branch=made)
    return net.output(net.op("Mul", y, net.weight(4, name="scale")) if weight else net.op("Add", x, y)).graph()


@pytest.mark.parametrize("flag", [True, False])
def test_branches_give_results_where_the_data_are(flag: bool) -> None:
    graph = sizes_or_not(weight=False)
    feeds = {"x0": X, "x1": np.array(flag)}
    module = assert_parity(graph, feeds)
    (result,) = module(torch.from_numpy(X).to("meta"), torch.tensor(flag))
    assert result.device.type == "meta"


def test_weights_that_meet_the_result_of_a_branch_are_trained() -> None:
    module = to_torch(sizes_or_not(weight=True))
    assert [name for name, _ in module.named_parameters()] == ["scale"]


def value(name: str, kind: int = TensorProto.FLOAT) -> ValueInfoProto:
    """A tensor of any shape, or a number that says where a loop is."""
    return helper.make_tensor_value_info(name, kind, None if kind == TensorProto.FLOAT else [])


def recurrent(op: str) -> Graph:
    """The last H = tanh(X_t @ w + H @ u) times a weight, and all of them; X is [batch,T,4], and Scan goes backwards."""
    net = Net(17)
    x = net.input("batch", "T", 4)
    w, u = net.weight(4, 3, name="w"), net.weight(3, 3, name="u")
    first = net.op(
        "MatMul", net.op("Gather", x, net.constant(np.array(0)), axis=1), net.constant(np.zeros((4, 3), "f"))
    )
    step = [
        helper.make_node("MatMul", ["x_t", w], ["a"], "a"),
        helper.make_node("MatMul", ["h", u], ["b"], "b"),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Tanh", ["c"], ["h_next"]),
        helper.make_node("Identity", ["h_next"], ["row"]),
    ]
    results = [value("h_next"), value("row")]
    if op == "Scan":
        body = helper.make_graph(step, "body", [value("h"), value("x_t")], results)
        axes = {"scan_input_axes": [1], "scan_output_axes": [1]}
        turned = {"scan_input_directions": [1], "scan_output_directions": [1]}
        made = net.ops("Scan", first, x, body=body, num_scan_inputs=1, outputs=2, **axes, **turned)
    else:
        taken = helper.make_node("Gather", [x, "i"], ["x_t"], "taken", axis=1)
        goes_on = helper.make_node("Identity", ["go"], ["go_next"])
        inputs = [value("i", TensorProto.INT64), value("go", TensorProto.BOOL), value("h")]
        outputs = [value("go_next", TensorProto.BOOL), *results]
        body = helper.make_graph([taken, goes_on, *step], "body", inputs, outputs)
        trips = net.op("Gather", net.op("Shape", x), net.constant(np.array(1)), axis=0)
        made = net.ops("Loop", trips, "", first, body=body, outputs=2)
    last, rows = made
    net.output(net.op("MatMul", last, net.weight(3, 2)))
    return net.output(rows).graph()


@pytest.mark.parametrize("op", ["Loop", "Scan"])
def test_what_runs_again_and_again_equals_onnxruntime_and_is_trained(op: str) -> None:
    feeds = {"x0": np.random.default_rng(0).standard_normal((2, 5, 4)).astype("f")}
    graph = recurrent(op)
    module = assert_parity(graph, feeds)
    assert {"w", "u"} < {name for name, _ in module.named_parameters()}
    assert untouched_parameters(module, feeds) == []
    with torch.no_grad():
        module.u.mul_(2)
    np.testing.assert_array_equal(to_onnx(module, graph, feeds).constants["u"], 2 * graph.constants["u"])


def doubled(trips: int | None) -> Graph:
    """X doubled until its sum is above 100, or so many times."""
    net = Net(17)
    x, limit = net.input(4), net.constant(np.array(100, "f"))
    nodes = [
        helper.make_node("Add", ["y", "y"], ["twice"]),
        helper.make_node("ReduceSum", ["twice"], ["sum"], keepdims=0),
        helper.make_node("Less", ["sum", limit], ["below"]),
    ]
    inputs = [value("i", TensorProto.INT64), value("go", TensorProto.BOOL), value("y")]
    body = helper.make_graph(nodes, "body", inputs, [value("below", TensorProto.BOOL), value("twice")])
    start = net.op("Less", net.op("ReduceSum", x, keepdims=0), limit)
    most = "" if trips is None else net.constant(np.array(trips))
    return net.output(net.op("Loop", most, start, x, body=body)).graph()


@pytest.mark.parametrize("trips", [None, 2])
@pytest.mark.parametrize("size", [1.0, 30.0])
def test_data_decide_how_often_a_graph_runs(trips: int | None, size: float) -> None:
    assert_parity(doubled(trips), {"x0": np.full(4, size, "f")})


def test_results_of_a_graph_that_never_ran_have_no_shape() -> None:
    with pytest.raises(BridgeError, match="ran not once"):
        loop(0, captured=[torch.zeros(1)], body=torch.nn.Identity(), outputs=1)
