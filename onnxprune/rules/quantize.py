"""Quantized numbers: scales and zero points of single channels go with their channel.

A removed position of an activation is one that a mask sets to zero, and zero is always among the quantized numbers: it
is the zero point. So the law holds for quantized models too, up to roundings that fall to the other side of a tie.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from onnxprune.rules.base import MICROSOFT, rule
from onnxprune.rules.facts import (
    Fact,
    broadcast,
    paired,
    pinned,
    same,
)
from onnxprune.rules.linear import conv, gemm, matmul
from onnxprune.rules.node import Node, Tensor


@rule("DequantizeLinear", "QuantizeLinear", linear=True)
def quantize(node: Node) -> Iterator[Fact]:
    """Y = X / scale + zero point or back; one scale for all, for each position of an axis, or for blocks of it."""
    x, scale = node.input(0), node.input(1)
    axis = node.attr("axis", 1)
    yield from paired(x, node.output)
    for steering in (scale, node.optional(2)):
        if steering is None or max(steering.shape, default=1) == 1:
            continue
        if steering.rank == 1:
            yield same(steering.axis(0), x.axis(axis))
        else:
            yield from paired(steering, x, skip=(axis,))
            yield pinned(x.axis(axis), "blocks of this axis share a scale")


@rule("DynamicQuantizeLinear", linear=True)
def dynamic_quantize(node: Node) -> Iterator[Fact]:
    """Y = X / scale + zero point, made of the range of X and of zero: positions that are zero do not widen it."""
    yield from paired(node.input(0), node.output)


@rule("QLinearConv", linear=True)
def qlinear_conv(node: Node) -> Iterator[Fact]:
    """Conv of inputs 0, 3 and 8; the weight may have a scale for each channel that it makes."""
    weight = node.input(3)
    yield from conv(replace(node, inputs=(node.input(0), weight, node.optional(8))))
    yield from _per_position(weight, 0, node.optional(4), node.optional(5))


@rule("ConvInteger", linear=True)
def conv_integer(node: Node) -> Iterator[Fact]:
    """Conv of inputs 0 and 1; the weight may have a zero point for each channel that it makes."""
    weight = node.input(1)
    yield from conv(replace(node, inputs=(node.input(0), weight)))
    yield from _per_position(weight, 0, node.optional(3))


@rule("QLinearMatMul", linear=True)
def qlinear_matmul(node: Node) -> Iterator[Fact]:
    """MatMul of inputs 0 and 3; either may have scales for its rows or columns."""
    a, b = node.input(0), node.input(3)
    yield from matmul(replace(node, inputs=(a, b)))
    yield from _per_position(a, -2, node.optional(1), node.optional(2))
    yield from _per_position(b, -1, node.optional(4), node.optional(5))


@rule("MatMulInteger", linear=True)
def matmul_integer(node: Node) -> Iterator[Fact]:
    """MatMul of inputs 0 and 1; either may have zero points for its rows or columns."""
    a, b = node.input(0), node.input(1)
    yield from matmul(replace(node, inputs=(a, b)))
    yield from _per_position(a, -2, node.optional(2))
    yield from _per_position(b, -1, node.optional(3))


@rule("QGemm", domain=MICROSOFT, linear=True)
def qgemm(node: Node) -> Iterator[Fact]:
    """Gemm of inputs 0, 3 and 6; the second may have a scale for each column that it makes."""
    b = node.input(3)
    yield from gemm(replace(node, inputs=(node.input(0), b, node.optional(6))))
    yield from _per_position(b, 0 if node.attr("transB", 0) else 1, node.optional(4), node.optional(5))


@rule("QLinearAdd", "QLinearMul", domain=MICROSOFT, linear=True)
def qlinear_binary(node: Node) -> Iterator[Fact]:
    """Y = f(inputs 0 and 3), axes aligned from the right."""
    for operand in (node.input(0), node.input(3)):
        yield from broadcast(operand, node.output)


@rule("QLinearAveragePool", "QLinearGlobalAveragePool", domain=MICROSOFT, linear=True)
def qlinear_pool(node: Node) -> Iterator[Fact]:
    """Y[N,C,..] = mean over positions of X[N,C,..], or of X[N,..,C]."""
    x, y = node.input(0), node.output
    yield same(x.axis(0), y.axis(0))
    channels = -1 if node.attr("channels_last", 0) else 1
    yield same(x.axis(channels), y.axis(channels))


@rule("QLinearLeakyRelu", "QLinearSigmoid", domain=MICROSOFT)
def qlinear_unary(node: Node) -> Iterator[Fact]:
    """Each element by itself."""
    yield from paired(node.input(0), node.output)


def _per_position(weight: Tensor, axis: int, *steering: Tensor | None) -> Iterator[Fact]:
    """Scales and zero points, one for each position of an axis, or one for all."""
    for tensor in steering:
        if tensor is not None and tensor.rank == 1 and tensor.shape[0] == weight.shape[axis] > 1:
            yield same(tensor.axis(0), weight.axis(axis))
