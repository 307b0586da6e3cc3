"""Operators that work on each element by itself, alone or with broadcasting."""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.rules.base import MICROSOFT, carries, rule
from onnxprune.rules.facts import Fact, broadcast
from onnxprune.rules.node import Node

carries("Identity", "Cast", "CastLike", "Neg", "Dropout", linear=True)
carries(
    "Abs",
    "BitwiseNot",
    "Ceil",
    "Erf",
    "Exp",
    "Floor",
    "IsInf",
    "IsNaN",
    "Log",
    "Not",
    "Reciprocal",
    "Round",
    "Sign",
    "Sqrt",
)
carries("Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cos", "Cosh", "Sin", "Sinh", "Tan", "Tanh")
carries("Celu", "Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Relu", "Selu", "Shrink")
carries("Sigmoid", "Softplus", "Softsign", "Swish", "ThresholdedRelu")
carries("Gelu", "QuickGelu", domain=MICROSOFT)


@rule("Add", "Div", "Mean", "Mul", "Sub", "Sum", linear=True, elementwise=True)
@rule(
    "And",
    "BitShift",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Or",
    "Xor",
    elementwise=True,
)
@rule("Max", "Min", "Mod", "Pow", "PRelu", "Where", elementwise=True)
@rule("BiasGelu", "FastGelu", elementwise=True, domain=MICROSOFT)
def broadcasting(node: Node) -> Iterator[Fact]:
    """Y = f(A, B, ..), axes aligned from the right; an axis of size 1 is repeated and says nothing."""
    for operand in filter(None, node.inputs):
        yield from broadcast(operand, node.output)
