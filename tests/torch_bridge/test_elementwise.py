"""Operators that work on each element by itself."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.torch_bridge.base import MICROSOFT
from torch_bridge.parity import Case, array, assert_case, case, positive, weight, whole

SIGNED = (2, 3, 4)
UNIT = (np.random.default_rng(0).random((3, 4)).astype(np.float32) * 1.8 - 0.9,)
FLAGS = np.array([[True, False, True], [False, False, True]])
OTHER = np.array([True, True, False])
NUMBERS = np.array([[7, -7, 4], [-9, 3, 12]], np.int64)
DIVISORS = np.array([2, 2, -5], np.int64)
ODD = np.array([np.inf, -np.inf, np.nan, 0.0, -1.5, 2.5], np.float32)

CASES = [
    *(case(op, SIGNED) for op in ("Abs", "Atan", "Ceil", "Cos", "Erf", "Exp", "Floor", "Identity", "Neg", "Relu")),
    *(case(op, SIGNED) for op in ("Asinh", "Cosh", "HardSwish", "Mish", "Reciprocal", "Round", "Sigmoid", "Sign")),
    *(case(op, SIGNED) for op in ("Sin", "Sinh", "Softplus", "Softsign", "Tan", "Tanh", "Dropout")),
    *(case(op, *UNIT, fed=(0,)) for op in ("Acos", "Asin", "Atanh")),
    *(case(op, positive(3, 4) + 1, fed=(0,)) for op in ("Acosh", "Log", "Sqrt")),
    *(case(op, ODD, fed=(0,)) for op in ("IsNaN", "IsInf")),
    case("IsInf", ODD, fed=(0,), detect_negative=0),
    case("IsInf", ODD, fed=(0,), detect_positive=0),
    case("Not", FLAGS, fed=(0,)),
    case("Round", array(0.5, 1.5, 2.5, -0.5, -1.5), fed=(0,)),
    *(case(op, FLAGS, OTHER, fed=(0,)) for op in ("And", "Or", "Xor")),
    *(case(op, NUMBERS, DIVISORS, fed=(0,)) for op in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")),
    *(case(op, (2, 3, 4), weight(3, 1)) for op in ("Add", "Sub", "Mul", "Div", "Equal", "Greater", "Less")),
    *(case(op, (2, 3), (2, 3), opset=7) for op in ("Add", "Sub", "Mul", "Div", "Greater", "Less")),
    *(case(op, (2, 3, 4), weight(4), weight(3, 1)) for op in ("Max", "Min", "Sum", "Mean")),
    *(case(op, (2, 3)) for op in ("Max", "Min", "Sum", "Mean")),
    case("Max", NUMBERS, DIVISORS, fed=(0,)),
    case("Div", NUMBERS, DIVISORS, fed=(0,)),
    case("Mod", NUMBERS, DIVISORS, fed=(0,)),
    case("Mod", NUMBERS, DIVISORS, fed=(0,), fmod=1),
    case("Mod", (2, 3), weight(3), fmod=1),
    case("Pow", positive(2, 3), weight(3), fed=(0,)),
    case("Pow", (2, 3), array(2.0), opset=7),
    case("Pow", (2, 3), whole(2, 3, 1), opset=15),
    case("Pow", NUMBERS, np.array(2, np.float32), fed=(0,)),
    case("Where", OTHER, (2, 3), weight(2, 1), fed=(0,)),
    case("BitShift", np.array([1, 200, 3], np.uint8), np.array([1, 2, 0], np.uint8), fed=(0,), direction="LEFT"),
    case("BitShift", np.array([1, 200, 3], np.uint8), np.array([1, 2, 0], np.uint8), fed=(0,), direction="RIGHT"),
    case("BitShift", np.array([9, 2**63], np.uint64), np.array([1, 2], np.uint64), fed=(0,), direction="RIGHT"),
    *(case("Cast", (2, 3), to=to) for to in (1, 6, 7, 9, 10, 11)),
    case("Cast", NUMBERS, fed=(0,), to=1, opset=9),
    case("Cast", FLAGS, fed=(0,), to=1, opset=13),
    case("CastLike", (2, 3), whole(1)),
    *(case("Celu", SIGNED, **attrs) for attrs in ({}, {"alpha": 2.0})),
    *(case("Elu", SIGNED, **attrs) for attrs in ({}, {"alpha": 0.5})),
    *(case("Gelu", SIGNED, **attrs) for attrs in ({}, {"approximate": "tanh"})),
    *(case("HardSigmoid", SIGNED, **attrs) for attrs in ({}, {"alpha": 0.3, "beta": 0.4})),
    *(case("LeakyRelu", SIGNED, **attrs) for attrs in ({}, {"alpha": 0.3})),
    *(case("Selu", SIGNED, **attrs) for attrs in ({}, {"alpha": 0.3, "gamma": 2.0})),
    *(case("Shrink", SIGNED, **attrs) for attrs in ({}, {"lambd": 0.3, "bias": 0.2})),
    *(case("ThresholdedRelu", SIGNED, **attrs) for attrs in ({}, {"alpha": 0.3})),
    *(case("Swish", SIGNED, opset=24, **attrs) for attrs in ({}, {"alpha": 0.3})),
    case("Clip", SIGNED, array(-0.5).reshape(()), array(0.7).reshape(())),
    case("Clip", SIGNED, None, array(0.7).reshape(())),
    case("Clip", SIGNED, array(-0.5).reshape(()), opset=11),
    case("Clip", SIGNED),
    case("Clip", NUMBERS, np.array(-3), np.array(5), fed=(0,)),
    case("Clip", SIGNED, opset=6 + 1, min=-0.5, max=0.5),
    case("Clip", SIGNED, opset=10, max=0.5),
    case("PRelu", (2, 3, 4), weight(3, 1)),
    case("PRelu", (2, 3, 4), weight(1), opset=7),
    case("PRelu", (2, 3, 4), weight(2, 3, 4), opset=9),
    case("Dropout", SIGNED, opset=7, ratio=0.3),
    case("Dropout", SIGNED, outputs=2, opset=10, ratio=0.3),
    case("Dropout", SIGNED, np.array(0.3, np.float32), np.array(False), outputs=2, opset=13),
    case("Gelu", SIGNED, domain=MICROSOFT),
    case("BiasGelu", SIGNED, weight(4), domain=MICROSOFT),
    case("FastGelu", SIGNED, domain=MICROSOFT),
    case("FastGelu", SIGNED, weight(4), domain=MICROSOFT),
    case("QuickGelu", SIGNED, domain=MICROSOFT),
    case("QuickGelu", SIGNED, domain=MICROSOFT, alpha=1.1),
    *(case(f"Bitwise{op}", np.array([5, 12, -3]), np.array([3, 10, 6]), fed=(0,)) for op in ("And", "Or", "Xor")),
    case("BitwiseNot", np.array([5, 12, -3]), fed=(0,)),
]


@pytest.mark.parametrize("given", CASES, ids=str)
def test_equals_onnxruntime(given: Case) -> None:
    assert_case(given)
