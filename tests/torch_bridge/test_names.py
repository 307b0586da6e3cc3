"""Names of parameters, ties between weights, and what is computed from constants."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from builders import Net
from onnxprune.graph import Graph
from onnxprune.torch_bridge import to_onnx, untouched_parameters
from torch_bridge.parity import X, assert_parity, perturb, weight


def named(*names: str) -> tuple[Graph, dict[str, np.ndarray]]:
    """A chain of MatMul whose weights have these names."""
    net = Net()
    y = net.input("batch", 4)
    for name in names:
        y = net.op("MatMul", y, net.weight(4, 4, name=name))
    return net.output(y).graph(), {"x0": X}


@pytest.mark.parametrize(
    "names",
    [
        ["layer1.0.conv.weight", "layer1.1.conv.weight", "weight"],
        ["onnx::MatMul_12", "/encoder/Constant_output_0", "a b-c"],
    ],
)
def test_parameters_have_the_names_of_initializers(names: list[str]) -> None:
    graph, feeds = named(*names)
    module = assert_parity(graph, feeds)
    assert sorted(name for name, _ in module.named_parameters()) == sorted(names)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["training", "graph", "x.training", "dropout"], ["training_", "graph_", "x.training_", "dropout_"]),
        (["a..b", ".c", "d."], ["a._.b", "_.c", "d._"]),
        (["a", "a.b"], ["a", "a_.b"]),
        (["a.b", "a"], ["a.b", "a_"]),
        (['say "x"', "say _x_", "back\\slash"], ["say _x_", "say _x__", "back_slash"]),
    ],
)
def test_names_that_torch_cannot_take_are_changed_and_known(names: list[str], expected: list[str]) -> None:
    graph, feeds = named(*names)
    module = assert_parity(graph, feeds)
    assert sorted(name for name, _ in module.named_parameters()) == sorted(expected)
    perturb(module)
    trained = to_onnx(module, graph, feeds)
    assert all((trained.constants[name] != graph.constants[name]).any() for name in names)


def test_awkward_input_names() -> None:
    net = Net()
    names = ["input.1", "input_1", "1", "class", "self"]
    total = None
    for name in names:
        net.inputs.append(onnx.helper.make_tensor_value_info(name, 1, ["batch", 4]))
        total = name if total is None else net.op("Add", total, name)
    graph = net.output(net.op("Relu", str(total))).graph()
    assert_parity(graph, {name: X * i for i, name in enumerate(names)})


def test_a_weight_used_twice_is_one_parameter() -> None:
    graph, feeds = tied()
    module = assert_parity(graph, feeds)
    assert [name for name, _ in module.named_parameters()] == ["w", "b"]
    perturb(module)
    trained = to_onnx(module, graph, feeds)
    assert {x.name for x in trained.proto().graph.initializer} == {"w", "b"}
    assert graph.copies  # the bias is un-shared in the graph


def tied() -> tuple[Graph, dict[str, np.ndarray]]:
    """A matrix used three times, once transposed, and a bias used twice."""
    net = Net()
    w, b = net.weight(4, 4, name="w"), net.weight(4, name="b")
    y = net.op("Add", net.op("MatMul", net.input("batch", 4), w), b)
    y = net.op("Relu", net.op("Add", net.op("MatMul", y, net.op("Transpose", w)), b))
    return net.output(net.op("Gemm", y, w, transB=1)).graph(), {"x0": X}


def test_copies_that_differ_are_parameters_of_their_own() -> None:
    graph, feeds = tied()
    (copied,) = graph.copies
    module = assert_parity(graph.with_constants({copied: weight(4)}), feeds)
    assert [name for name, _ in module.named_parameters()] == ["w", "b", "b_.2"]  # `b` cannot be a module as well
    assert copied == "b.2"


@pytest.mark.parametrize("chain", ["Transpose", "Identity", "Reshape", "Cast", "Mul"])
def test_a_weight_behind_other_nodes_is_the_leaf(chain: str) -> None:
    net = Net()
    w = net.weight(4, 4, name="w")
    extra = {"Reshape": [net.ints(4, 4)], "Mul": [net.constant(np.array(0.5, np.float32))]}.get(chain, [])
    made = net.op("Identity", net.op(chain, w, *extra, **({"to": 1} if chain == "Cast" else {})))
    graph = net.output(net.op("MatMul", net.input("batch", 4), made)).graph()
    module = assert_parity(graph, {"x0": X})
    assert [name for name, _ in module.named_parameters()] == ["w"]
    assert untouched_parameters(module, {"x0": X}) == []
    perturb(module)
    to_onnx(module, graph, {"x0": X})


def test_what_constants_alone_make_is_computed_once() -> None:
    net = Net()
    scale = net.op("Exp", net.op("Neg", net.constant(np.array(0.5, np.float32))))
    table = net.op("Range", *(net.constant(np.array(n, np.float32)) for n in (0, 4, 1)))
    y = net.op("Mul", net.op("Where", net.op("Greater", net.input("batch", 4), table), table, scale), scale)
    module = assert_parity(net.output(y).graph(), {"x0": X})
    calls = [node.meta["onnx"][1] for node in module.graph.nodes if "onnx" in node.meta]
    assert calls == ["Greater", "Where", "Mul"]
    assert not list(module.parameters())


def test_a_state_with_repeated_constants_can_be_loaded() -> None:
    net = Net()
    table = net.op("Expand", net.constant(np.array(0.5, np.float32)), net.ints(3, 4))
    module = assert_parity(net.output(net.op("Mul", net.input("batch", 3, 4), table)).graph(), {"x0": X[None]})
    module.load_state_dict({name: tensor + 1 for name, tensor in module.state_dict().items()})
    assert [buffer.shape for buffer in module.buffers()] == [(3, 4)]


def test_constants_that_sizes_repeat_are_buffers() -> None:
    """On a GPU they are repeated there; only arithmetic on sizes belongs to the CPU."""
    net = Net()
    x = net.input("batch", 4)
    ones = net.op("Expand", net.constant(np.array([1], np.float32), "one"), net.op("Shape", x))
    module = assert_parity(net.output(net.op("Add", x, ones)).graph(), {"x0": X})
    assert [name for name, _ in module.named_buffers()] == ["one"]


def test_an_output_that_is_a_constant() -> None:
    net = Net()
    x, c = net.input("batch", 4), net.op("Neg", net.weight(3))
    assert_parity(net.output(net.op("Relu", x), c).graph(), {"x0": X})
    net = Net()
    assert_parity(
        net.output(net.op("Relu", net.input("batch", 4)), net.op("Identity", net.weight(3))).graph(), {"x0": X}
    )
