"""The law for ONNX Runtime's own operators."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from onnx import helper

from builders import Net
from rules.cases import CASES, Draw, case, check_case, maps, read, rows, size


def fused(net: Net) -> Net:
    """The same net, importing ONNX Runtime's operators."""
    net.imports.append(helper.make_opsetid("com.microsoft", 1))
    return net


@case("com.microsoft:Gelu", "com.microsoft:FastGelu", "com.microsoft:QuickGelu")
def microsoft_gelu(draw: Draw, op: str) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    return read(fused(net), net.op(op, h, domain="com.microsoft"), n), [n]


@case("com.microsoft:FusedConv")
def fused_conv(draw: Draw) -> tuple[Net, list[int]]:
    """A convolution with its activation, and with a branch that is added before it."""
    net, h, n = maps(draw)
    m = size(draw)
    h = net.op("Relu", h)
    sides = [net.conv("x0", 2, m)] if draw(st.booleans()) else []
    w, b = net.weight(m, n, 1, 1), net.weight(m)
    h = net.op("FusedConv", h, w, b, *sides, domain="com.microsoft", activation="Relu", kernel_shape=[1, 1])
    return read(fused(net), h, m), [n, m]


@case("com.microsoft:FusedGemm")
def fused_gemm(draw: Draw) -> tuple[Net, list[int]]:
    net, h, n = rows(draw)
    m = size(draw)
    h = net.op("FusedGemm", h, net.weight(n, m), net.weight(m), domain="com.microsoft", activation="Relu")
    return fused(net).output(net.dense(h, m, 2)), [n, m]


@pytest.mark.parametrize("name", CASES[__name__])
def test_law(name: str) -> None:
    check_case(__name__, name)
