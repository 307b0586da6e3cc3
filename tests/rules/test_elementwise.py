"""The law for elementwise operators, alone and with broadcasting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st
from onnx import TensorProto

from builders import Net
from rules.cases import CASES, Draw, case, check_case, maps, opset, read

UNARY = [
    "Abs",
    "Asinh",
    "Atan",
    "Ceil",
    "Celu",
    "Cos",
    "Cosh",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "LeakyRelu",
    "Mish",
    "Neg",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
]
POSITIVE = ["Acosh", "Log", "Reciprocal", "Sqrt"]
UNIT = ["Acos", "Asin", "Atanh"]
NEWEST = {"Swish": 24}


@case(*UNARY)
def unary(draw: Draw, op: str) -> tuple[Net, list[int]]:
    net, h, n = maps(draw, NEWEST.get(op, 21))
    return read(net, net.op(op, h), n), [n]


@case(*POSITIVE)
def positive(draw: Draw, op: str) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    above_one = net.op("Add", net.op("Abs", h), net.constant(np.full((), 1.5, np.float32)))
    return read(net, net.op(op, above_one), n), [n]


@case(*UNIT)
def unit_interval(draw: Draw, op: str) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    return read(net, net.op(op, net.op("Sigmoid", h)), n), [n]


@case("Gelu", "Gelu/tanh")
def gelu(draw: Draw, op: str) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    return read(net, net.op(op, h, approximate=draw(st.sampled_from(["none", "tanh"]))), n), [n]


@case("Clip")
def clip(draw: Draw) -> tuple[Net, list[int]]:
    version = opset(draw, 9, 13)
    net, h, n = maps(draw, version)
    if version < 11:
        return read(net, net.op("Clip", h, min=-0.5, max=0.5), n), [n]
    low, high = (net.constant(np.array(v, np.float32)) for v in (-0.5, 0.5))
    return read(net, net.op("Clip", h, low, high), n), [n]


@case("Dropout")
def dropout(draw: Draw) -> tuple[Net, list[int]]:
    version = opset(draw, 9, 13)
    net, h, n = maps(draw, version)
    outputs = draw(st.integers(1, 2)) if version > 9 else 1  # the mask was no boolean then
    return read(net, net.op("Dropout", h, outputs=outputs), n), [n]


@case("Cast")
def cast(draw: Draw) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    whole = net.op("Cast", net.op("Round", h), to=TensorProto.INT32)
    return read(net, net.op("Cast", whole, to=TensorProto.FLOAT), n), [n]


@case("CastLike")
def cast_like(draw: Draw) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    whole = net.op("CastLike", net.op("Round", h), net.ints(1))
    return read(net, net.op("Cast", whole, to=TensorProto.FLOAT), n), [n]


@case("IsNaN", "IsInf", "Not")
def asked(draw: Draw, op: str) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    asked = net.op("Greater", h, net.constant(np.zeros((), np.float32))) if op == "Not" else h
    answer = net.op("Cast", net.op(op, asked), to=TensorProto.FLOAT)
    return read(net, net.op("Add", answer, h), n), [n]


@case("Add", "Div", "Mul", "Sub", "Max", "Min", "Sum", "Mean", "PRelu", "Pow")
def with_constant(draw: Draw, op: str) -> tuple[Net, list[int]]:
    """The second operand is a scalar, one number a channel, or a whole map; or another branch."""
    net, h, n = maps(draw)
    shape = draw(st.sampled_from([(), (n, 1, 1), (1, n, 1, 1), (n, 4, 4), (1, 4)]))
    other = net.constant(np.abs(net.random.standard_normal(shape)).astype(np.float32) + 0.5)
    base = net.op("Abs", h) if op == "Pow" else h
    return read(net, net.op(op, base, other), n), [n]


@case("Mod")
def mod(draw: Draw) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    other = net.constant(np.abs(net.random.standard_normal((n, 1, 1))).astype(np.float32) + 0.5)
    return read(net, net.op("Mod", h, other, fmod=1), n), [n]


@case("Add/branches", "Mul/branches")
def two_branches(draw: Draw, op: str) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    other = net.conv("x0", 2, n)
    return read(net, net.op(op, net.op("Relu", h), net.op("Sigmoid", other)), n), [n]


@case("Add/gate")
def squeezed_gate(draw: Draw) -> tuple[Net, list[int]]:
    """A squeeze-and-excitation gate: positions of size 1 are repeated."""
    net, h, n = maps(draw)
    gate = net.conv(net.op("GlobalAveragePool", h), n, n)
    return read(net, net.op("Mul", h, net.op("Sigmoid", gate)), n), [n]


@case("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
def compared(draw: Draw, op: str) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    answer = net.op(op, h, net.weight(n, 1, 1))
    return read(net, net.op("Add", net.op("Cast", answer, to=TensorProto.FLOAT), h), n), [n]


@case("And", "Or", "Xor")
def logic(draw: Draw, op: str) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    zero = net.constant(np.zeros((), np.float32))
    answer = net.op(op, net.op("Greater", h, zero), net.constant(net.random.random((n, 1, 1)) > 0.5))
    return read(net, net.op("Add", net.op("Cast", answer, to=TensorProto.FLOAT), h), n), [n]


@case("BitShift")
def bit_shift(draw: Draw) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    whole = net.op("Cast", net.op("Abs", h), to=TensorProto.UINT32)
    by = net.constant(net.random.integers(0, 3, (n, 1, 1)).astype(np.uint32))
    shifted = net.op("Cast", net.op("BitShift", whole, by, direction="LEFT"), to=TensorProto.FLOAT)
    return read(net, shifted, n), [n]


@case("Where/known")
def where_known(draw: Draw) -> tuple[Net, list[int]]:
    """A condition that is known beside numbers that are not, as in the distances of relative positions."""
    net, h, n = maps(draw)
    condition = net.constant(np.array([True, False, True, False]))
    choice = [h, net.constant(np.ones(1, np.float32))]
    return read(net, net.op("Where", condition, *draw(st.permutations(choice))), n), [n]


@case("BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot")
def bits(draw: Draw, op: str) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    whole = net.op("Cast", net.op("Mul", h, net.constant(np.float32(9))), to=TensorProto.INT32)
    others = [] if op == "BitwiseNot" else [net.constant(net.random.integers(0, 9, (n, 1, 1)).astype(np.int32))]
    return read(net, net.op("Cast", net.op(op, whole, *others), to=TensorProto.FLOAT), n), [n]


@case("Where")
def where(draw: Draw) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    condition = net.constant(net.random.random(draw(st.sampled_from([(n, 1, 1), (4, 4)]))) > 0.5)
    return read(net, net.op("Where", condition, h, net.weight(n, 1, 1)), n), [n]


@pytest.mark.parametrize("name", CASES[__name__])
def test_law(name: str) -> None:
    check_case(__name__, name)
