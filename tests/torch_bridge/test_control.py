"""Graphs inside nodes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from builders import Net
from onnxprune.graph import Graph
from onnxprune.torch_bridge import missing_operators, to_onnx, to_torch, untouched_parameters
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
