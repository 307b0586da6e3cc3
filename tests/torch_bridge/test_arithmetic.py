"""Size arithmetic on numbers equals the operators on tensors, and leaves modules in one piece."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch

from builders import Net
from onnxprune.graph import Graph
from onnxprune.torch_bridge import creation, elementwise, indexing, inputs_of, layout, reduce, to_torch
from onnxprune.torch_bridge.arithmetic import FORMS
from onnxprune.torch_bridge.base import DTYPES, ints, number, tensor
from torch_bridge.parity import assert_parity

GRID = [[1, 2, 3], [4, 5, 6]]

CASES: list[tuple[Any, list[Any], dict[str, Any]]] = [
    (elementwise.add, [[1, 2], 3], {}),
    (elementwise.add, [GRID, [1, 2, 3]], {}),
    (elementwise.add, [[[1], [2]], [[1, 2, 3]]], {}),
    (elementwise.sub, [5, [7]], {}),
    (elementwise.mul, [[], [2]], {}),
    (elementwise.div, [[7, -7, 7, -7, 0], [2, 2, -2, -2, -3]], {}),
    (elementwise.mod, [[7, -7, 7, -7], [3, 3, -3, -3]], {}),
    (elementwise.mod, [[7, -7, 7, -7], [3, 3, -3, -3]], {"fmod": 1}),
    (elementwise.max_, [[1, 5], 3, [4]], {}),
    (elementwise.max_, [[1, 5]], {}),
    (elementwise.min_, [[1, 5], 3], {}),
    (torch.abs, [[-1, 2]], {}),
    (torch.neg, [[-1, 2]], {}),
    (torch.eq, [[1, 2], -1], {}),
    (torch.gt, [[1, 2], 1], {}),
    (torch.ge, [[1, 2], 2], {}),
    (torch.lt, [[1, 2], 2], {}),
    (torch.le, [[1, 2], 1], {}),
    (torch.logical_and, [[True, True], [True, False]], {}),
    (torch.logical_or, [[True, False], [False, False]], {}),
    (torch.logical_not, [[True, False]], {}),
    (torch.where, [[True, False], [1, 2], [3]], {}),
    (elementwise.identity, [GRID], {}),
    (elementwise.cast, [[True, False]], {"to": 7}),
    (elementwise.cast, [[0, 2]], {"to": 9}),
    (creation.shape, [GRID], {}),
    (creation.shape, [5], {}),
    (creation.shape, [GRID], {"start": 1, "end": 2}),
    (creation.size, [GRID], {}),
    (indexing.gather, [[5, 6, 7], 1], {}),
    (indexing.gather, [[5, 6, 7], [2, -1]], {}),
    (indexing.gather, [GRID, [[0], [1]]], {}),
    (indexing.gather, [GRID, [2, 0]], {"axis": -1}),
    (indexing.scatter_elements, [[5, 6, 7], [0, -1], [8, 9]], {}),
    (indexing.scatter_elements, [GRID, [[0, 1, 0]], [[7, 8, 9]]], {}),
    (layout.concat, [[1], [2, 3], []], {"axis": 0}),
    (layout.concat, [GRID, [[7], [8]]], {"axis": 1}),
    (layout.reshape, [GRID, [3, -1]], {}),
    (layout.reshape, [GRID, [-1]], {}),
    (layout.reshape, [GRID, [0, 3, 1]], {}),
    (layout.reshape, [[4], []], {}),
    (layout.transpose, [GRID], {}),
    (layout.transpose, [GRID], {"perm": [0, 1]}),
    (layout.squeeze, [[[4]], [0]], {}),
    (layout.squeeze, [[[4]]], {}),
    (layout.squeeze, [[[4, 5]]], {"axes": [0]}),
    (layout.unsqueeze, [4, [0]], {}),
    (layout.unsqueeze, [[4, 5], [-1, 0]], {}),
    (layout.slice_, [[1, 2, 3, 4, 5], [1], [-1], [0], [2]], {}),
    (layout.slice_, [[1, 2, 3, 4, 5], [-1], [-(2**63)], [0], [-1]], {}),
    (layout.slice_, [[1, 2, 3, 4, 5], [-1], [2**63 - 1], [0], [-2]], {}),
    (layout.slice_, [[1, 2, 3], [2], [1]], {}),
    (layout.slice_, [GRID, [0, 1], [1, 9], [0, 1]], {}),
    (reduce.reduce_prod, [[2, 3, 4]], {}),
    (reduce.reduce_prod, [[2, 3, 4], [0]], {"keepdims": 0}),
    (reduce.reduce_prod, [GRID, [1]], {}),
]


STEERED = {layout.reshape, layout.squeeze, layout.unsqueeze, layout.slice_, reduce.reduce_prod}
"""Operators whose further inputs are no data."""


@pytest.mark.parametrize(("function", "values", "attrs"), CASES)
def test_a_form_equals_its_operator(function: Any, values: list[Any], attrs: dict[str, Any]) -> None:
    found = tensor(FORMS[function].function(*values, **attrs))
    data = 1 if function in STEERED else len(values)
    expected = tensor(function(*map(tensor, values[:data]), *values[data:], **attrs))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(("function", "values", "attrs"), CASES)
def test_a_form_takes_symbolic_sizes(function: Any, values: list[Any], attrs: dict[str, Any]) -> None:
    torch.compiler.reset()
    placed = {indexing.gather, indexing.scatter_elements}  # at places that are the same in every run
    data = 1 if function in STEERED | placed else len(values)

    def made(x: torch.Tensor) -> torch.Tensor:
        return tensor(
            FORMS[function].function(*(raised(v, x.shape[0] - 3) for v in values[:data]), *values[data:], **attrs)
        )

    x = torch.zeros(3)
    torch._dynamo.mark_dynamic(x, 0)
    compiled = torch.compile(made, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), tensor(FORMS[function].function(*values, **attrs)))


def raised(value: Any, by: int) -> Any:
    """Numbers plus a size; truth values stay."""
    if isinstance(value, list):
        return [raised(part, by) for part in value]
    return value if isinstance(value, bool) else value + by


def test_every_form_has_a_case() -> None:
    made = {creation.constant_of_shape, creation.range_}  # in the models below
    assert {function for function, _, _ in CASES} == FORMS.keys() - made


def spread() -> Graph:
    """Numbers are added to x (batch, length): how exporters write positions, expand(), a mask, and a padded length."""
    net = Net(17)
    x = net.input("batch", "length")
    sizes = net.op("Shape", x)
    length = net.op("Gather", sizes, net.constant(np.array(1)), axis=0)
    wanted = net.op("Concat", net.ints(-1), net.op("Unsqueeze", length, net.ints(0)), axis=0)
    one = onnx.numpy_helper.from_array(np.array([1]))
    ones = net.op("ConstantOfShape", net.op("Shape", wanted), value=one)
    kept = net.op("Where", net.op("Equal", wanted, net.op("Mul", ones, net.constant(np.array(-1)))), ones, wanted)
    places = net.op("Range", net.constant(np.array(0)), length, net.constant(np.array(1)))
    row = net.op("Expand", net.op("Cast", places, to=1), kept)
    table = net.constant(np.arange(40)[None])
    positions = net.op("Slice", table, net.ints(0), net.op("Unsqueeze", length, net.ints(0)), net.ints(1))
    row = net.op("Add", row, net.op("Cast", positions, to=1))
    mask = net.op("ConstantOfShape", net.op("Unsqueeze", length, net.ints(0)), value=one)
    y = net.op("Add", net.op("Add", x, row), net.op("Cast", mask, to=1))
    short = net.op("Mod", net.op("Neg", length), net.constant(np.array(4)))
    pads = net.op("Concat", net.ints(0, 0, 0), net.op("Unsqueeze", short, net.ints(0)), axis=0)
    y = net.op("Reshape", net.op("Flatten", net.op("Pad", y, pads), axis=0), net.op("Shape", net.op("Pad", y, pads)))
    return net.output(y).graph()


def test_sizes_are_numbers_and_stay_symbolic() -> None:
    graph = spread()
    module = to_torch(graph)
    compiled = torch.compile(module, backend="eager", fullgraph=True, dynamic=True)
    for batch, length in ((3, 5), (2, 8), (7, 6)):
        feeds = {"x0": np.random.default_rng(0).standard_normal((batch, length)).astype(np.float32)}
        assert_parity(graph, feeds)
        (x,) = inputs_of(graph.inputs, feeds)
        torch.testing.assert_close(compiled(x), module(x), rtol=0, atol=0)
    shapes = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)
    exported = torch.export.export(module, (torch.zeros(3, 5),), dynamic_shapes=shapes).module()
    x = torch.ones(4, 11)
    torch.testing.assert_close(exported(x), module(x), rtol=0, atol=0)


def test_a_count_made_of_sizes_stays_symbolic() -> None:
    net = Net(17)
    x = net.input("batch", "length")
    half = net.op("Div", net.op("Shape", x, start=1), net.ints(2))
    net.output(net.ops("TopK", x, half, outputs=2)[0])
    module = to_torch(net.graph())
    shapes = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)
    exported = torch.export.export(module, (torch.zeros(3, 6),), dynamic_shapes=shapes).module()
    x = torch.rand(4, 11)
    torch.testing.assert_close(exported(x), module(x), rtol=0, atol=0)
    assert_parity(net.graph(), {"x0": x.numpy()})


def test_sizes_that_are_no_whole_numbers_are_tensors() -> None:
    net = Net(17)
    x = net.input("batch", "length")
    size = net.op("Cast", net.op("Size", x), to=1)
    half = net.op("Cast", net.op("Floor", net.op("Div", size, net.constant(np.array(2, np.float32)))), to=7)
    flat = net.op("Reshape", x, net.ints(-1))
    last = net.op("Unsqueeze", half, net.ints(0))
    net.output(net.op("Slice", flat, net.ints(0), last))
    assert_parity(net.graph(), {"x0": np.arange(15, dtype=np.float32).reshape(3, 5)})


def test_numbers_and_tensors() -> None:
    assert ints(5) == ints([5]) == ints(torch.tensor(5)) == ints(torch.tensor([5])) == [5]
    assert number([[True]]) is True
    assert tensor([True]).dtype is torch.bool
    assert tensor([]).dtype is tensor([[3]]).dtype is DTYPES[7]
