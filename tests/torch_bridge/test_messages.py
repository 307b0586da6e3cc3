"""What the bridge says when it cannot go on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from builders import Net
from onnxprune.errors import BridgeError, DataError
from onnxprune.graph import from_proto
from onnxprune.torch_bridge import base, missing_operators, to_onnx, to_torch, untouched_parameters
from onnxprune.torch_bridge.parity import difference
from torch_bridge.parity import X, case, network


def test_missing_operators_end_before_any_work() -> None:
    net = Net(17)
    x = net.input("batch", 3, 3)
    once = net.op("RandomNormalLike", net.op("Relu", x))
    twice = [net.op("Bernoulli", net.op("Bernoulli", x)), once]
    graph = net.output(*twice).graph()
    assert missing_operators(graph) == {
        "RandomNormalLike": ["randomnormallike1_node"],
        "Bernoulli": ["bernoulli2_node", "bernoulli3_node"],
    }
    with pytest.raises(BridgeError) as raised:
        to_torch(graph, {"wrong": X})
    assert str(raised.value) == (
        "the bridge to PyTorch lacks RandomNormalLike (1 node, 'randomnormallike1_node') and Bernoulli (2 nodes, first "
        "'bernoulli2_node'); "
        "export the model without these operators, or do without training: refit needs no PyTorch"
    )


def test_an_attribute_that_is_not_known_is_missing() -> None:
    graph, _ = case("Relu", (2, 3)).model()
    graph.nodes[0].attrs["surprise"] = 1
    assert missing_operators(graph) == {"Relu with attribute surprise": ["relu0_node"]}
    graph, _ = case("Cast", (2, 3), to=8).model()
    assert missing_operators(graph) == {"Cast with element type 8": ["cast0_node"]}


def test_a_difference_names_the_first_node(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, feeds = network()
    wrong = replace(base._REGISTRY["", "Sigmoid"][0], function=torch.tanh)
    monkeypatch.setitem(base._REGISTRY, ("", "Sigmoid"), [wrong])
    with pytest.raises(
        BridgeError,
        match=r"output 'gemm10' differs from ONNX Runtime by \d\.\de[+-]\d\d of its scale, more than 1e-04 may pass; "
        r"the first node that differs is 'sigmoid9_node' \(Sigmoid, opset 17\), by \d\.\de[+-]\d\d\. Leave that",
    ):
        to_torch(graph, feeds)
    to_torch(graph, feeds, check=False)


def test_a_node_that_torch_cannot_run_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, feeds = network()
    wrong = replace(base._REGISTRY["", "Sigmoid"][0], function=torch.det)
    monkeypatch.setitem(base._REGISTRY, ("", "Sigmoid"), [wrong])
    with pytest.raises(
        BridgeError, match=r"^PyTorch cannot run node 'sigmoid9_node' \(Sigmoid\): linalg.det: A must be"
    ):
        to_torch(graph, feeds)


def test_a_constant_node_that_torch_cannot_compute_is_named() -> None:
    net = Net(17)
    square = net.op("Cast", net.op("Reshape", net.ints(1, 2, 3), net.ints(2, 2)), to=1)
    net.output(net.op("Add", net.input("batch", 2), square))
    wrong = onnx.helper.make_graph(net.nodes, "wrong", net.inputs, net.outputs, net.initializers)
    graph = from_proto(onnx.helper.make_model(wrong, opset_imports=net.imports))
    with pytest.raises(BridgeError, match=r"^PyTorch cannot compute node 'reshape0_node' \(Reshape\): shape '\[2,"):
        to_torch(graph)


def test_results_that_cannot_be_compared_are_different() -> None:
    assert difference(np.zeros(3), np.zeros(4)) == np.inf
    assert difference(np.array([1]), np.array([2])) == np.inf
    assert difference(np.array([np.nan, 1.0]), np.array([np.nan, 1.0])) == 0
    assert difference(np.array([np.inf, 1.0]), np.array([2.0, 1.0])) == np.inf
    assert difference(np.array([np.inf, 1.0]), np.array([-np.inf, 1.0])) == np.inf
    assert difference(np.array([2.0, 4.0]), np.array([2.0, 5.0])) == pytest.approx(0.2)
    assert difference(np.zeros(3), np.zeros(3)) == 0


def test_a_batch_that_lacks_an_input() -> None:
    graph, _ = network()
    with pytest.raises(DataError, match=r"^the batch lacks the input 'x0': it has \['image'\]; give all of \['x0'\]$"):
        untouched_parameters(to_torch(graph), {"image": X})


def test_what_cannot_be_written_back() -> None:
    graph, feeds = network()
    with pytest.raises(
        BridgeError, match=r"^a Linear cannot be written to ONNX; pass the module that to_torch returned$"
    ):
        to_onnx(torch.nn.Linear(2, 2), graph)
    other, _ = case("Abs", (2, 3)).model()
    with pytest.raises(
        BridgeError, match=r"^parameter 'c0' has shape \(6, 3, 3, 3\) and the graph's constant 'c0' none; w"
    ):
        to_onnx(to_torch(graph), other)
    module = to_torch(graph)
    with torch.no_grad():
        module.c1[:2] = torch.nan
    with pytest.raises(
        BridgeError,
        match=r"^parameter 'c1' has 2 of 6 values that are not finite; training diverged, lower the learning",
    ):
        to_onnx(module, graph)
    module = to_torch(graph)
    with torch.no_grad():  # a change that no initializer takes: the module computes something else
        next(node for node in module.graph.nodes if "relu" in node.name).target = torch.sigmoid
    module.recompile()
    with pytest.raises(BridgeError, match=r"the first node that differs is 'relu1_node' \(Relu, opset 17\)"):
        to_onnx(module, graph, feeds)


def test_strings_are_no_tensors() -> None:
    net = Net()
    text = onnx.helper.make_tensor("text", onnx.TensorProto.STRING, [1], [b"a"])
    net.initializers.append(text)
    same = net.op("Equal", net.op("Identity", "text"), "text")
    graph = net.output(net.op("Relu", net.input("batch", 4))).output(same, kind=onnx.TensorProto.BOOL).graph()
    with pytest.raises(BridgeError, match=r"^constant 'text.*' has element type .*, which PyTorch lacks; cast it to"):
        to_torch(graph)
