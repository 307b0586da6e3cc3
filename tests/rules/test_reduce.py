"""The law for reductions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st
from onnx import TensorProto

from builders import Net
from rules.cases import CASES, Draw, case, check_case, maps, opset, read

REDUCTIONS = [
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
]


def reduced(net: Net, op: str, x: str, axes: list[int], keepdims: int) -> str:
    """A reduction with its axes where the opset wants them."""
    if net.opset >= (13 if op == "ReduceSum" else 18):
        return net.op(op, x, net.ints(*axes), keepdims=keepdims)
    return net.op(op, x, axes=axes, keepdims=keepdims)


@case(*REDUCTIONS, "ReduceSumSquare")
def reduction(draw: Draw, op: str) -> tuple[Net, list[int]]:
    """Over positions: channels pass, with and without the axes that were reduced."""
    net, h, n = maps(draw, opset(draw, 11, 13, 18))
    keep = draw(st.integers(0, 1))
    h = reduced(net, op, net.op("Sigmoid", h), draw(st.sampled_from([[2, 3], [-1, -2]])), keep)
    return (read(net, h, n) if keep else net.output(net.dense(h, n, 2))), [n]


@case("ReduceMean/channels", "ReduceMax/channels")
def reduction_of_channels(draw: Draw, op: str) -> tuple[Net, list[int]]:
    """A mean over channels would change: they stay, what comes before goes."""
    net, h, n = maps(draw)
    h = net.conv(net.op("Relu", h), n, 5)
    attention = reduced(net, op, h, [1], 1)
    return read(net, net.op("Mul", h, net.op("Sigmoid", attention)), 5), [n]


@case("ReduceSum/channels", "ReduceL2/channels")
def sum_of_channels(draw: Draw, op: str) -> tuple[Net, list[int]]:
    """Zeros add nothing: channels go."""
    net, h, n = maps(draw)
    total = reduced(net, op, net.op("Relu", h), [1], 1)
    return net.output(net.op("Add", net.conv(net.op("Relu", h), n, 1), total)), [n]


@case("ArgMax", "ArgMin")
def extreme(draw: Draw, op: str) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    best = net.op("Cast", net.op(op, h, axis=2, keepdims=1), to=TensorProto.FLOAT)
    return read(net, net.op("Add", best, h), n), [n]


@case("Softmax", "LogSoftmax", "Hardmax")
def softmax(draw: Draw, op: str) -> tuple[Net, list[int]]:
    """Over positions channels pass, also in the flattened form of old opsets."""
    version = opset(draw, 9, 13)
    net, h, n = maps(draw, version)
    return read(net, net.op(op, h, axis=3 if version < 13 else draw(st.sampled_from([2, 3, -1]))), n), [n]


@case("Softmax/channels")
def softmax_of_channels(draw: Draw) -> tuple[Net, list[int]]:
    version = opset(draw, 9, 13)
    net, h, n = maps(draw, version)
    h = net.conv(net.op("Relu", h), n, 5)
    return read(net, net.op("Softmax", h, axis=1), 5), [n]


@case("CumSum")
def cumsum(draw: Draw) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    return read(net, net.op("CumSum", h, net.constant(np.array(draw(st.sampled_from([2, -1])), np.int64))), n), [n]


@pytest.mark.parametrize("name", CASES[__name__])
def test_law(name: str) -> None:
    check_case(__name__, name)
