"""The law for quantized numbers: masked positions are zero, which is the zero point."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st
from onnx import TensorProto

from builders import Net
from rules.cases import CASES, Draw, case, check_case, maps, opset, read, rows, size


def integers(net: Net, *shape: int, kind: type = np.int8) -> str:
    return net.constant(net.random.integers(1, 100, shape).astype(kind))


def scalar(net: Net, value: float, kind: type = np.float32) -> str:
    return net.constant(np.array(value, kind))


@case("QuantizeLinear")
def activations(draw: Draw) -> tuple[Net, list[int]]:
    """Activations rounded, by one scale for all or by one for each channel."""
    version = opset(draw, 10, 13, 21)
    net, h, n = maps(draw, version)
    h = net.op("Relu", h)
    if version >= 13 and draw(st.booleans()):
        scales = net.constant(net.random.uniform(0.02, 0.05, n).astype(np.float32)), integers(net, n, kind=np.uint8)
        attrs = {"axis": draw(st.sampled_from([1, -3]))}
    else:
        scales, attrs = (scalar(net, 0.04), scalar(net, 3, np.uint8)), {}
    h = net.op("DequantizeLinear", net.op("QuantizeLinear", h, *scales, **attrs), *scales, **attrs)
    return read(net, h, n), [n]


@case("DequantizeLinear")
def weights(draw: Draw) -> tuple[Net, list[int]]:
    """Integer weights and biases with a scale for each channel that they make or read, or for all."""
    net = Net(opset(draw, 13, 21), seed=draw(st.integers(0, 99)))
    n = size(draw)
    x = net.input("N", 2, 4, 4)
    scales = net.constant(net.random.uniform(0.01, 0.02, n).astype(np.float32))
    zeros = [net.constant(np.zeros(n, np.int8))] if draw(st.booleans()) else []
    made = net.op("DequantizeLinear", integers(net, n, 2, 1, 1), scales, *zeros, axis=0)
    bias = net.op("DequantizeLinear", integers(net, n, kind=np.int32), scales, axis=0)
    h = net.op("Relu", net.op("Conv", x, made, bias))
    if draw(st.booleans()):
        reads = net.op("DequantizeLinear", integers(net, 3, n, 1, 1), scalar(net, 0.02))
    else:
        reads = net.op("DequantizeLinear", integers(net, 3, n, 1, 1), scales, axis=1)
    return net.output(net.op("Conv", h, reads)), [n]


@case("DequantizeLinear/blocked")
def blocked(draw: Draw) -> tuple[Net, list[int]]:
    """Blocks of an axis share a scale: that axis stays, the other one goes."""
    n = size(draw)
    net, h, _ = rows(draw, hidden=8)
    scales = net.constant(net.random.uniform(0.01, 0.02, (2, n)).astype(np.float32))
    weight = net.op("DequantizeLinear", integers(net, 8, n), scales, axis=0, block_size=4)
    h = net.op("MatMul", net.op("Relu", h), weight)
    return net.output(net.dense(net.op("Relu", h), n, 2)), [n]


@case("DynamicQuantizeLinear", "MatMulInteger")
def dynamic(draw: Draw, op: str) -> tuple[Net, list[int]]:
    """A dense layer as dynamic quantization leaves it, read by another such layer."""
    net, h, n = rows(draw)
    m = size(draw)
    for width, result in ((n, m), (m, 3)):
        h, scale, zero = net.ops("DynamicQuantizeLinear", net.op("Relu", h), outputs=3)
        point = net.constant(np.zeros(result, np.int8)) if draw(st.booleans()) else scalar(net, 0, np.int8)
        total = net.op("MatMulInteger", h, integers(net, width, result), zero, point)
        scale = net.op("Mul", scale, net.constant(net.random.uniform(0.01, 0.02, result).astype(np.float32)))
        h = net.op("Mul", net.op("Cast", total, to=TensorProto.FLOAT), scale)
    return net.output(h), [n, m]


@case("ConvInteger")
def conv_integer(draw: Draw) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    m = size(draw)
    h, scale, zero = net.ops("DynamicQuantizeLinear", net.op("Relu", h), outputs=3)
    total = net.op("ConvInteger", h, integers(net, m, n, 1, 1), zero)
    h = net.op("Mul", net.op("Cast", total, to=TensorProto.FLOAT), scale)
    return read(net, net.op("Relu", h), m), [n, m]


@case("QLinearConv", "QLinearMatMul")
def stays_quantized(draw: Draw, op: str) -> tuple[Net, list[int]]:
    """Integers from layer to layer, through operators that move them; zero is another number in each layer."""
    net, h, n = maps(draw, edge=2) if op == "QLinearConv" else rows(draw)
    m = size(draw)
    given = scalar(net, 0.04), scalar(net, 7, np.uint8)
    made = scalar(net, 0.9), scalar(net, 11, np.uint8)
    weight = net.constant(net.random.uniform(0.01, 0.02, m).astype(np.float32)), net.constant(np.zeros(m, np.int8))
    h = net.op("QuantizeLinear", net.op("Relu", h), *given)
    if op == "QLinearConv":
        h = net.op("MaxPool", h, kernel_shape=[1, 1])
        h = net.op(op, h, *given, integers(net, m, n, 1, 1), *weight, *made, integers(net, m, kind=np.int32))
        h = net.op("Reshape", h, net.ints(0, -1))
        m *= 4
    else:
        h = net.op(op, h, *given, integers(net, n, m), *weight, *made)
    h = net.op("QLinearMatMul", h, *made, integers(net, m, 3), scalar(net, 0.02), scalar(net, 0, np.int8), *made)
    return net.output(net.op("DequantizeLinear", h, *made)), [n, m // 4 if op == "QLinearConv" else m]


@case("com.microsoft:QGemm")
def qgemm(draw: Draw) -> tuple[Net, list[int]]:
    """Between layers its zero is some number, at the end it may give floating-point numbers."""
    net = Net(17, seed=draw(st.integers(0, 99)), microsoft=True)
    n = size(draw)
    given, made = (scalar(net, 0.04), scalar(net, 7, np.uint8)), (scalar(net, 0.9), scalar(net, 11, np.uint8))
    scales = net.constant(net.random.uniform(0.01, 0.02, n).astype(np.float32)), net.constant(np.zeros(n, np.int8))
    one = scalar(net, 0.02), scalar(net, 0, np.int8)
    turned = draw(st.integers(0, 1))
    weight = integers(net, *((n, 3) if turned else (3, n)))
    bias = integers(net, n, kind=np.int32)
    h = net.op("QuantizeLinear", net.input("N", 3), *given)
    h = net.op("QGemm", h, *given, weight, *scales, bias, *made, transB=turned, domain="com.microsoft")
    return net.output(net.op("QGemm", h, *made, integers(net, n, 2), *one, domain="com.microsoft")), [n]


@case(*(f"com.microsoft:{op}" for op in ("QLinearAdd", "QLinearMul", "QLinearLeakyRelu", "QLinearSigmoid")))
def elementwise(draw: Draw, op: str) -> tuple[Net, list[int]]:
    net, h, n = quantized(draw)
    first, second = (scalar(net, 0.04), scalar(net, 7, np.uint8)), (scalar(net, 0.05), scalar(net, 90, np.uint8))
    others = [integers(net, n, 1, 1, kind=np.uint8), *first] if op in ("QLinearAdd", "QLinearMul") else []
    h = net.op(op, h, *first, *others, *second, domain="com.microsoft")
    return read(net, net.op("DequantizeLinear", h, *second), n), [n]


@case("com.microsoft:QLinearGlobalAveragePool", "com.microsoft:QLinearAveragePool")
def pools(draw: Draw, op: str) -> tuple[Net, list[int]]:
    net, h, n = quantized(draw)
    first, second = (scalar(net, 0.04), scalar(net, 7, np.uint8)), (scalar(net, 0.05), scalar(net, 90, np.uint8))
    last = op != "QLinearAveragePool" and draw(st.booleans())
    h = net.op("Transpose", h, perm=[0, 2, 3, 1]) if last else h
    attrs = {"kernel_shape": [2, 2]} if op == "QLinearAveragePool" else {"channels_last": int(last)}
    h = net.op("DequantizeLinear", net.op(op, h, *first, *second, domain="com.microsoft", **attrs), *second)
    return read(net, net.op("Transpose", h, perm=[0, 3, 1, 2]) if last else h, n), [n]


def quantized(draw: Draw) -> tuple[Net, str, int]:
    """A feature map as integers."""
    net = Net(17, seed=draw(st.integers(0, 99)), microsoft=True)
    n = size(draw)
    h = net.op("Relu", net.conv(net.input("N", 2, 4, 4), 2, n))
    return net, net.op("QuantizeLinear", h, scalar(net, 0.04), scalar(net, 7, np.uint8)), n


@pytest.mark.parametrize("name", CASES[__name__])
def test_law(name: str) -> None:
    check_case(__name__, name)
