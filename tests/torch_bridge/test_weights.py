"""Which constants are trained where the operator leaves it open."""

from __future__ import annotations

import numpy as np
import pytest

from builders import Net
from onnxprune.torch_bridge import to_torch
from onnxprune.torch_bridge.weights import find_weights
from torch_bridge.parity import weight


def trained(net: Net, *outputs: str) -> set[str]:
    """Names of the parameters of a model."""
    return {name for name, _ in to_torch(net.output(*outputs).graph()).named_parameters()}


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("shape", [(4,), (1, 4), (3, 1, 1)])
def test_constants_along_one_axis_are_trained(op: str, shape: tuple[int, ...]) -> None:
    net = Net()
    assert trained(net, net.op(op, net.input("batch", 3, 5, 4), net.weight(*shape, name="w"))) == {"w"}
    net = Net()
    assert trained(net, net.op(op, net.weight(*shape, name="w"), net.input("batch", 3, 5, 4))) == {"w"}


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Pow", "Max"])
def test_numbers_are_not_trained(op: str) -> None:
    net = Net()
    assert trained(net, net.op(op, net.input("batch", 4), net.constant(np.array(2.5, np.float32)))) == set()
    net = Net()
    assert trained(net, net.op(op, net.input("batch", 4), net.constant(np.array([[2.5]], np.float32)))) == set()


def test_position_embeddings_are_trained_and_masks_are_not() -> None:
    net = Net()
    x = net.input("batch", 3, 4)
    assert trained(net, net.op("Add", x, net.weight(1, 3, 4, name="positions"))) == {"positions"}
    for mask in (np.triu(np.full((3, 4), -np.inf)), np.triu(np.full((3, 4), -1e9)), np.indices((3, 4))[0] + 0.5):
        net = Net()
        x = net.input("batch", 3, 4)
        assert trained(net, net.op("Add", x, net.constant(mask.astype(np.float32)))) == set()


def test_constants_whose_sizes_alone_are_used_are_not_trained() -> None:
    net = Net()
    size = net.op("Cast", net.op("Shape", net.weight(4, 3)), to=1)
    assert find_weights(net.output(net.op("Add", net.input("batch", 2), size)).graph()).parameters == {}


def test_tables_of_sines_are_not_trained() -> None:
    net = Net()
    assert trained(net, net.op("Mul", net.input("batch", 3, 4), net.weight(3, 4))) == set()


def test_frequencies_that_meet_positions_are_not_trained() -> None:
    net = Net()
    positions = net.op("Cast", net.input("batch", 1, 5, kind=7), to=1)
    angles = net.op("MatMul", net.weight(1, 8, 1, name="frequencies"), positions)
    scaled = net.op("Mul", positions, net.weight(5))
    assert trained(net, net.op("Sin", angles), net.op("Cos", scaled)) == set()


def test_a_matrix_is_trained_whatever_it_meets() -> None:
    net = Net()
    pixels = net.op("Cast", net.input("batch", 6, kind=2), to=1)
    assert trained(
        net, net.op("Add", net.op("MatMul", pixels, net.weight(6, 3, name="w")), net.weight(3, name="b"))
    ) == {
        "w",
        "b",
    }


def test_class_tokens_are_trained_and_zeros_are_not() -> None:
    net = Net()
    x = net.input("batch", 3, 4)
    batch = net.op("Slice", net.op("Shape", x), net.ints(0), net.ints(1))
    token = net.op("Expand", net.weight(1, 1, 4, name="token"), net.op("Concat", batch, net.ints(1, 4), axis=0))
    assert trained(net, net.op("Concat", token, x, axis=1)) == {"token"}
    net = Net()
    zeros = net.constant(np.zeros((2, 1, 4), np.float32))
    assert trained(net, net.op("Concat", net.input(2, 3, 4), zeros, axis=1)) == set()


def test_embeddings_are_trained_and_looked_up_constants_are_not() -> None:
    net = Net()
    tokens = net.input("batch", 5, kind=7)
    assert trained(net, net.op("Gather", net.weight(9, 4, name="table"), tokens)) == {"table"}
    net = Net()
    tokens = net.input("batch", 5, kind=7)
    assert trained(net, net.op("Gather", net.weight(9, name="line"), tokens)) == set()


def test_positions_cut_from_a_table_are_trained() -> None:
    net = Net()
    x = net.input("batch", "length", 4)
    length = net.op("Slice", net.op("Shape", x), net.ints(1), net.ints(2))
    cut = net.op("Slice", net.weight(9, 4, name="positions"), net.ints(0), length, net.ints(0))
    module = to_torch(net.output(net.op("Add", x, cut)).graph(), {"x0": weight(2, 5, 4)})
    assert {name for name, _ in module.named_parameters()} == {"positions"}


def test_weight_normalization_trains_direction_and_length() -> None:
    net = Net(17)
    v, g = net.weight(6, 3, 3, 3, name="v"), net.weight(6, 1, 1, 1, name="g")
    w = net.op("Mul", net.op("Div", v, net.op("ReduceL2", v, axes=[1, 2, 3])), g)
    y = net.op("Conv", net.input("batch", 3, 5, 5), w, net.weight(6, name="b"))
    assert trained(net, y) == {"v", "g", "b"}


def test_a_single_weight_is_a_weight_and_what_scales_it_is_not() -> None:
    net = Net(17)
    b = net.op("Identity", net.constant(np.array([0.5], np.float32), "b"))
    w = net.op("Mul", net.weight(4, 1, name="w"), net.constant(np.array([2.0], np.float32), "twice"))
    assert trained(net, net.op("Gemm", net.input("batch", 4), w, b)) == {"w", "b"}
