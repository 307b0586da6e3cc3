"""The law for pooling."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from onnx import TensorProto

from builders import Net
from rules.cases import CASES, Draw, case, check_case, maps, read, size


@case("AveragePool", "MaxPool", "LpPool")
def windows(draw: Draw, op: str) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    attrs = {"kernel_shape": [2, 2], "strides": [draw(st.integers(1, 2))] * 2}
    return read(net, net.op(op, h, **attrs), n), [n]


@case("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def global_pool(draw: Draw, op: str) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    return read(net, net.op(op, h), n), [n]


@case("MaxPool/indices")
def max_pool_indices(draw: Draw) -> tuple[Net, list[int]]:
    """Indices count through the channels, so those stay."""
    net, h, n = maps(draw)
    m = size(draw)
    h = net.conv(net.op("Relu", h), n, m)
    y, indices = net.ops("MaxPool", h, outputs=2, kernel_shape=[2, 2])
    out = net.op("Add", net.conv(y, m, 2), net.op("Cast", net.op("ReduceMax", indices), to=TensorProto.FLOAT))
    return net.output(out), [n]


@pytest.mark.parametrize("name", CASES[__name__])
def test_law(name: str) -> None:
    check_case(__name__, name)
