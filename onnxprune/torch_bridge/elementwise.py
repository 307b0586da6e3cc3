"""Operators that work on each element by itself, alone or with broadcasting."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F

from onnxprune.torch_bridge.base import (
    DTYPES,
    MICROSOFT,
    Factor,
    Number,
    Summand,
    Tensor,
    Weight,
    dtype_of,
    operator,
)

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz)

OVERFLOW = 464.0
"""Above that, float8_e4m3fn rounds to 480, which it lacks."""

UNARY: dict[str, Callable[..., Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}
"""Operators that one function of torch computes."""

BINARY: dict[str, Callable[..., Tensor]] = {
    "And": torch.logical_and,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
}
"""The same with two operands."""

for _name, _function in UNARY.items():
    operator(_name)(_function)
for _name, _function in BINARY.items():
    operator(_name)(_function)
operator("Where")(torch.where)


@operator("Identity")
def identity(x: Tensor) -> Tensor:
    """Y = X."""
    return x


def _unknown_type(attrs: dict[str, Any]) -> str | None:
    return None if attrs["to"] in DTYPES else f"element type {attrs['to']}"


@operator("Cast", lacks=_unknown_type)
def cast(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """Y = X in another element type."""
    return _cast(x, dtype_of(to), saturate)


@operator("CastLike")
def cast_like(x: Tensor, target: Tensor, *, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """Y = X in the element type of another tensor."""
    return _cast(x, target.dtype, saturate)


def _cast(x: Tensor, dtype: torch.dtype, saturate: int) -> Tensor:
    """X in another element type; in one with eight bits its largest number stands for all that are larger, or none."""
    if dtype in FLOAT8:
        largest = torch.finfo(dtype).max
        if saturate:
            x = x.float().clamp(-largest, largest)
        elif dtype == torch.float8_e4m3fn:  # PyTorch always saturates there
            x = x.float()
            x = x.masked_fill(x.abs() > OVERFLOW, math.nan)
    return x.to(dtype)


@operator("Dropout", since=12)
def dropout(
    x: Tensor,
    ratio: Number = 0.5,
    training_mode: Number = 0,
    *,
    seed: int = 0,
    training: bool,
    dropout: bool,
    outputs: int,
) -> tuple[Tensor, ...]:
    """Y = X, and in training with dropout switched on, X with elements zeroed at random and the rest scaled up."""
    active = training and dropout
    y = F.dropout(x, float(ratio), training=True) if active else x
    return (y, (y != 0) if active else torch.ones_like(x, dtype=torch.bool))[:outputs]


@operator("Dropout", since=7)
def dropout_7(
    x: Tensor, *, ratio: float = 0.5, training: bool, dropout: bool, outputs: int, opset: int
) -> tuple[Tensor, ...]:
    """The same, with the ratio as an attribute; the mask is not filled."""
    y = F.dropout(x, ratio, training=training and dropout)
    return (y, torch.zeros_like(x, dtype=torch.bool if opset >= 10 else x.dtype))[:outputs]


@operator("Celu")
def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Y = max(0, X) + min(0, alpha * (exp(X / alpha) - 1))."""
    return F.celu(x, alpha)


@operator("Clip", since=11)
def clip(x: Tensor, low: Number | None = None, high: Number | None = None) -> Tensor:
    """Y = min(max(X, low), high)."""
    if low is not None:
        x = torch.maximum(x, low) if isinstance(low, Tensor) else torch.clamp_min(x, low)
    if high is not None:
        x = torch.minimum(x, high) if isinstance(high, Tensor) else torch.clamp_max(x, high)
    return x


@operator("Clip")
def clip_6(x: Tensor, *, min: float = -math.inf, max: float = math.inf) -> Tensor:
    """The same, with attributes."""
    return torch.clamp(x, min, max)


@operator("Elu")
def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Y = X where X > 0, else alpha * (exp(X) - 1)."""
    return F.elu(x, alpha)


@operator("Gelu")
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """Y = X * P(Z < X), Z normal; or its approximation by tanh."""
    return F.gelu(x, approximate=approximate)


@operator("Gelu", domain=MICROSOFT)
def gelu_microsoft(x: Tensor) -> Tensor:
    """Y = X * P(Z < X), Z normal."""
    return F.gelu(x)


@operator("BiasGelu", domain=MICROSOFT)
def bias_gelu(x: Tensor, bias: Weight) -> Tensor:
    """Gelu of X + bias."""
    return F.gelu(x + bias)


@operator("FastGelu", domain=MICROSOFT)
def fast_gelu(x: Tensor, bias: Weight | None = None) -> Tensor:
    """Gelu of X + bias, approximated by tanh."""
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


@operator("QuickGelu", domain=MICROSOFT)
def quick_gelu(x: Tensor, *, alpha: float = 1.702) -> Tensor:
    """Y = X * sigmoid(alpha * X)."""
    return x * torch.sigmoid(alpha * x)


@operator("HardSigmoid")
def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """Y = alpha * X + beta, kept within 0 and 1."""
    return torch.clamp(alpha * x + beta, 0, 1)


@operator("HardSwish")
def hard_swish(x: Tensor) -> Tensor:
    """Y = X * hard_sigmoid(X) with alpha 1/6 and beta 1/2."""
    return F.hardswish(x)


@operator("IsInf")
def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    """Where X is infinite, of the signs asked for."""
    return torch.isinf(x) & (((x > 0) & bool(detect_positive)) | ((x < 0) & bool(detect_negative)))


@operator("LeakyRelu")
def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    """Y = X where X > 0, else alpha * X."""
    return F.leaky_relu(x, alpha)


@operator("Mish")
def mish(x: Tensor) -> Tensor:
    """Y = X * tanh(softplus(X))."""
    return F.mish(x)


@operator("Selu")
def selu(x: Tensor, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Tensor:
    """Y = gamma * elu(X)."""
    return gamma * F.elu(x, alpha)


@operator("Shrink")
def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    """Y = X + bias below -lambd, X - bias above lambd, 0 between."""
    outside = torch.where(x < -lambd, x + bias, x - bias)
    return torch.where(x.abs() > lambd, outside, torch.zeros_like(x)).to(x.dtype)


@operator("Softplus")
def softplus(x: Tensor) -> Tensor:
    """Y = log(1 + exp(X))."""
    return F.softplus(x)


@operator("Softsign")
def softsign(x: Tensor) -> Tensor:
    """Y = X / (1 + |X|)."""
    return F.softsign(x)


@operator("Swish")
def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Y = X * sigmoid(alpha * X)."""
    return F.silu(x) if alpha == 1 else x * torch.sigmoid(alpha * x)


@operator("ThresholdedRelu")
def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Y = X where X > alpha, else 0."""
    return F.threshold(x, alpha, 0.0)


@operator("PRelu", since=7)
def p_relu(x: Tensor, slope: Weight) -> Tensor:
    """Y = X where X > 0, else slope * X; the slope is broadcast."""
    return torch.where(x < 0, slope * x, x)


@operator("Add")
def add(a: Summand, b: Summand) -> Tensor:
    """Y = A + B."""
    return a + b


@operator("Sub")
def sub(a: Summand, b: Summand) -> Tensor:
    """Y = A - B."""
    return a - b


@operator("Mul")
def mul(a: Factor, b: Factor) -> Tensor:
    """Y = A * B."""
    return a * b


@operator("Div")
def div(a: Factor, b: Factor) -> Tensor:
    """Y = A / B; integers are divided as in C."""
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


@operator("Mod")
def mod(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    """The rest of A / B, with the sign of B, or of A when fmod."""
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


@operator("Pow")
def pow_(a: Tensor, b: Tensor) -> Tensor:
    """Y = A to the power B, in the element type of A."""
    return torch.pow(a, b).to(a.dtype)


@operator("BitShift", lacks=lambda attrs: None if attrs["direction"] in ("LEFT", "RIGHT") else "direction")
def bit_shift(a: Tensor, b: Tensor, *, direction: str) -> Tensor:
    """The bits of A moved by B places, by as many as there are or by fewer than none until all are gone."""
    wide, places = a.to(torch.int64), b.to(torch.int64)  # torch shifts few of the unsigned types
    bits = torch.iinfo(a.dtype).bits
    far = (places < 0) | (places >= bits)
    if direction == "RIGHT" and a.dtype.is_signed:
        return (wide >> places.masked_fill(far, bits - 1)).to(a.dtype)
    places = places.masked_fill(far, 0)
    if direction == "LEFT":
        moved = wide << places
    else:  # uint64 must not take its highest bit for a sign
        moved = torch.where(places > 0, ((wide >> 1) & torch.iinfo(torch.int64).max) >> (places - 1), wide)
    return moved.masked_fill(far, 0).to(a.dtype)


operator("BitwiseAnd")(torch.bitwise_and)
operator("BitwiseNot")(torch.bitwise_not)
operator("BitwiseOr")(torch.bitwise_or)
operator("BitwiseXor")(torch.bitwise_xor)


@operator("Max")
def max_(*operands: Tensor) -> Tensor:
    """The largest of the operands, element by element."""
    return reduce(torch.maximum, operands)


@operator("Min")
def min_(*operands: Tensor) -> Tensor:
    """The smallest of the operands, element by element."""
    return reduce(torch.minimum, operands)


@operator("Sum")
def sum_(*operands: Summand) -> Tensor:
    """The sum of the operands, element by element."""
    return reduce(torch.add, operands)


@operator("Mean")
def mean(*operands: Tensor) -> Tensor:
    """The mean of the operands, element by element."""
    return reduce(torch.add, operands) / len(operands)
