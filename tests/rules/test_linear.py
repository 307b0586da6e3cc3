"""The law for operators that contract their data with a weight."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st

from builders import Net
from onnxprune.axes import dim
from onnxprune.grouping import find_units
from onnxprune.rules import find_rule
from onnxprune.rules.node import Node, Refusal, Tensor
from rules.cases import CASES, Draw, case, check_case, maps, opset, read, rows, size


@case("Conv")
def conv(draw: Draw) -> tuple[Net, list[int]]:
    """One, two and three dimensions, strides, dilations, pads, with and without bias."""
    rank, kernel = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    n, m = size(draw), size(draw)
    net = Net(opset(draw, 9, 11, 22), seed=draw(st.integers(0, 99)))
    h = net.op("Conv", net.input("N", 2, *[5] * rank), net.weight(n, 2, *[1] * rank))
    attrs = {"strides": [draw(st.integers(1, 2))] * rank, "pads": [draw(st.integers(0, 2))] * (2 * rank)}
    h = net.conv(net.op("Relu", h), n, m, kernel=kernel, rank=rank, **attrs)
    return net.output(net.conv(h, m, 2, rank=rank)), [n, m]


@case("Conv/grouped")
def grouped_conv(draw: Draw) -> tuple[Net, list[int]]:
    """Of the two ways to cut the channels of a grouped convolution, the finer one is the default."""
    g, i, o = size(draw, 2, 3), size(draw, 1, 4), size(draw, 1, 4)
    net, h, _ = maps(draw, hidden=g * i)
    h = net.conv(net.op("Relu", h), g * i, g * o, kernel=3, group=g, pads=[1, 1, 1, 1])
    expected = [g] if g >= max(i, o) else [x for x in (i, o) if x > 1]
    return read(net, h, g * o), expected


@case("Conv/depthwise")
def depthwise(draw: Draw) -> tuple[Net, list[int]]:
    n, multiplier = size(draw, 3, 6), draw(st.integers(1, 2))
    net, h, _ = maps(draw, hidden=n)
    h = net.conv(net.op("Relu", h), n, n * multiplier, kernel=3, group=n, pads=[1, 1, 1, 1])
    return read(net, h, n * multiplier), [n]


@case("Conv/computed weight")
def conv_computed_weight(draw: Draw) -> tuple[Net, list[int]]:
    """Weight normalization: the norm runs over the inputs, which stay; the outputs go."""
    net, h, n = maps(draw)
    m = size(draw)
    v = net.weight(m, n, 1, 1)
    norm = net.op("ReduceL2", v, net.ints(1, 2, 3))
    w = net.op("Mul", net.op("Div", v, norm), net.weight(m, 1, 1, 1))
    return read(net, net.op("Conv", net.op("Relu", h), w), m), [m]


@case("ConvTranspose")
def conv_transpose(draw: Draw) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    m = size(draw)
    h = net.op("ConvTranspose", net.op("Relu", h), net.weight(n, m, 2, 2), net.weight(m), strides=[2, 2])
    return read(net, h, m), [n, m]


@case("ConvTranspose/grouped")
def grouped_conv_transpose(draw: Draw) -> tuple[Net, list[int]]:
    g = size(draw, 4, 6)
    net, h, _ = maps(draw, hidden=2 * g)
    h = net.op("ConvTranspose", net.op("Relu", h), net.weight(2 * g, 1, 2, 2), net.weight(g), group=g)
    return read(net, h, g), [g]


@case("Gemm")
def gemm(draw: Draw) -> tuple[Net, list[int]]:
    version = opset(draw, 9, 13)
    net, h, n = rows(draw, version)
    m, trans_b, form = size(draw), draw(st.integers(0, 1)), draw(st.sampled_from(["vector", "row", "scalar", "none"]))
    bias = {"vector": (m,), "row": (1, m), "scalar": (1,)}.get(form, ())
    inputs = [net.weight(m, n) if trans_b else net.weight(n, m)]
    inputs += [net.weight(*bias)] if bias or version < 11 else []
    h = net.op("Gemm", net.op("Relu", h), *inputs, alpha=0.5, beta=2.0, transB=trans_b)
    return net.output(net.dense(net.op("Tanh", h), m, 2)), [n, m]


@case("Gemm/transposed data")
def gemm_transposed(draw: Draw) -> tuple[Net, list[int]]:
    net, h, n = rows(draw)
    turned = net.op("Transpose", net.op("Relu", h), perm=[1, 0])
    return net.output(net.op("Gemm", turned, net.weight(n, 2), transA=1)), [n]


@case("MatMul")
def matmul(draw: Draw) -> tuple[Net, list[int]]:
    """Tokens through two weights, leading axes or none."""
    n = size(draw)
    leading = draw(st.sampled_from([(), ("N",), ("N", 3), ("N", 2, 3)]))
    net = Net(seed=draw(st.integers(0, 99)))
    h = net.op("Add", net.op("MatMul", net.input(*leading, 4), net.weight(4, n)), net.weight(n))
    return net.output(net.op("MatMul", net.op("Relu", h), net.weight(n, 3))), [n]


@case("MatMul/weight on the left")
def matmul_left(draw: Draw) -> tuple[Net, list[int]]:
    n = size(draw)
    net = Net(seed=draw(st.integers(0, 99)))
    h = net.op("MatMul", net.weight(n, 4), net.input("N", 4, 5))
    return net.output(net.op("MatMul", net.weight(3, n), net.op("Relu", h))), [n]


@case("MatMul/two activations")
def matmul_activations(draw: Draw) -> tuple[Net, list[int]]:
    """Scores of queries and keys: the width that they share goes from both."""
    n = size(draw)
    net = Net(seed=draw(st.integers(0, 99)))
    x = net.input("N", 5, 4)
    q, k = (net.op("MatMul", x, net.weight(4, n)) for _ in "qk")
    scores = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 2, 1]))
    read_too = net.op("MatMul", k, net.weight(n, 5))
    return net.output(net.op("Add", scores, read_too)), [n]


@case("Einsum")
def einsum(draw: Draw) -> tuple[Net, list[int]]:
    """Dense layers over the last axis, in every spelling of the equation."""
    n, m = size(draw), size(draw)
    net = Net(opset(draw, 12, 22), seed=draw(st.integers(0, 99)))
    x = net.input("N", 3, 4)
    first = draw(st.sampled_from(["btd,df->btf", "...d,df->...f", "...ij,jk", "i j d, d f -> i j f"]))
    h = net.op("Relu", net.op("Einsum", x, net.weight(4, n), equation=first))
    swapped = draw(st.booleans())  # the weight in front, and stored the other way round
    second, shape = ("Fd,...d->...F", (m, n)) if swapped else ("btd,dF->btF", (n, m))
    weight = net.weight(*shape)
    h = net.op("Einsum", *((weight, h) if swapped else (h, weight)), equation=second)
    return net.output(net.op("MatMul", net.op("Tanh", h), net.weight(m, 2))), [n, m]


@case("Einsum/heads")
def einsum_attention(draw: Draw) -> tuple[Net, list[int]]:
    """Attention whose weights have an axis for the heads: heads, widths of queries and keys, widths of values."""
    n, h = size(draw, 2, 4), size(draw, 2, 3)
    d, e = size(draw, 2, 5), size(draw, 2, 5)
    net = Net(17, seed=draw(st.integers(0, 99)))
    x = net.input("N", 5, 4)
    q, k, v = (net.op("Einsum", x, net.weight(4, h, w), equation="btc,chd->bhtd") for w in (d, d, e))
    scores = net.op("Softmax", net.op("Einsum", q, k, equation="bhqd,bhkd->bhqk"), axis=-1)
    mixed = net.op("Einsum", scores, v, equation="bhqk,bhke->bqhe")
    y = net.op("Einsum", mixed, net.weight(h, e, n), equation="bqhe,hen->bqn")
    y = net.op("MatMul", net.op("Relu", y), net.weight(n, 2))
    return net.output(y), [n, h, d, e]


@case("Einsum/whole axes")
def einsum_whole(draw: Draw) -> tuple[Net, list[int]]:
    """A diagonal and a sum over weights alone need their axes whole; what broadcasts and what is scaled passes."""
    net, h, n = rows(draw, 17)
    h = net.op("Relu", h)
    scaled = net.op("Einsum", h, net.weight(n), equation="bi,i->bi")
    broadcast = net.op("Einsum", scaled, net.weight(3, 1), equation="bi,ki->bi")
    diagonal = net.op("Einsum", net.op("Unsqueeze", h, net.ints(1)), net.weight(5, 4, 4), equation="bxi,jkk->bji")
    y = net.op("Einsum", diagonal, net.weight(5, n, 2), equation="bji,jic->bc")
    return net.output(net.op("Add", net.op("Einsum", broadcast, net.weight(n, 2), equation="bi,ic"), y)), [n, 5]


@case("Einsum/one operand")
def einsum_alone(draw: Draw) -> tuple[Net, list[int]]:
    """A transposition, and a sum to which masked units add nothing."""
    net, h, n = rows(draw, 17)
    h = net.op("Relu", h)
    turned = net.op("Einsum", h, equation="ba")
    total = net.op("Unsqueeze", net.op("Einsum", h, equation="bi->b"), net.ints(1))
    y = net.op("Gemm", turned, net.weight(n, 2), transA=1)
    return net.output(net.op("Add", y, total)), [n]


@pytest.mark.parametrize("equation", ["bi->bii", "b->b", "bi->"])
def test_equations_that_do_not_fit_are_refused(equation: str) -> None:
    x, y = (Tensor(name, (dim(3), dim(4)), constant=False) for name in "xy")
    with pytest.raises(Refusal, match=f"^Einsum has an equation that does not fit its operands: {equation}$"):
        list(find_rule("", "Einsum", 12).rule(Node("Einsum", 12, (x,), (y,), {"equation": equation})))


def test_einsum_counts_its_work() -> None:
    net = Net(17)
    h = net.op("Relu", net.op("Einsum", net.input(2, 5, 4), net.weight(4, 6), equation="...c,cd->...d"))
    units = find_units(net.output(net.op("Einsum", h, net.weight(6, 3), equation="btd,de")).graph())
    assert [units.cost(keep)[1] for keep in ({}, {"c0": np.arange(6) < 2})] == [5 * (4 + 3) * d for d in (6, 2)]


@pytest.mark.parametrize("name", CASES[__name__])
def test_law(name: str) -> None:
    check_case(__name__, name)
