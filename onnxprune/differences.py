"""How far two arrays that should be equal are apart, and how far they may be."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

NOISE = 2.0**-20
"""What may be left of sums that cancel, relative to the product of the largest operands: eight roundings."""

SAMPLED = 50_000
"""Values of an array that are enough to say what is usual."""

CONTRACTING = frozenset(
    {"Conv", "ConvTranspose", "Einsum", "FusedConv", "FusedGemm", "FusedMatMul", "Gemm", "MatMul", "MatMulNBits"}
)
"""Operators that sum over products of their first two inputs."""

RECURRENT = frozenset({"GRU", "LSTM", "RNN"})
"""Operators that go on from their own results, which are no larger than one."""

MANY_STEPS = RECURRENT | {"Attention", "DecoderMaskedMultiHeadAttention", "GroupQueryAttention", "MultiHeadAttention"}
"""Operators that compute with sums of their own, so that roundings add up inside."""

AROUND_ONE = frozenset({"Celu", "Elu", "Erf", "Gelu", "Mish", "Selu", "Sigmoid", "Softplus", "Swish", "Tanh"})
"""Functions that are computed from numbers around one, however small they are; vectors and remainders differ."""

SUMMING = frozenset(
    {"AveragePool", "GlobalAveragePool", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean"}
    | {"ReduceSum", "ReduceSumSquare"}
)
"""Operators that sum over their first input."""


def difference(expected: np.ndarray, found: np.ndarray, *, noise: float = 0.0) -> float:
    """The largest difference of two arrays, each element relative to itself or to what is usual in its array.

    Relative to the largest value of an array it would hide everything beside the huge numbers that hide tokens.

    Args:
        expected: an array.
        found: another one.
        noise: an absolute difference that is added to what differences are relative to.

    Returns:
        0 where they are equal; infinite where shapes, kinds, texts, integers, or what is not finite differ.
    """
    if expected.shape != found.shape or (expected.dtype.kind == "f") != (found.dtype.kind == "f"):
        return float("inf")
    if expected.dtype.kind != "f":
        return 0.0 if np.array_equal(expected, found) else float("inf")
    if np.array_equal(expected, found):
        return 0.0
    finite = np.isfinite(expected)
    if not finite.all():
        if not np.array_equal(expected[~finite], found[~finite], equal_nan=True):
            return float("inf")
        expected, found = expected[finite], found[finite]
    if not np.isfinite(found).all():
        return float("inf")
    by = np.abs(expected - found)
    if not by.any():
        return 0.0
    size = np.maximum(np.abs(expected), usual(expected)).astype(np.float64) + noise
    return float(np.max(by / np.maximum(size, 1e-300), initial=0.0))


def usual(array: np.ndarray) -> float:
    """How large the larger values of an array usually are: twelve times the lower quartile of what is not zero.

    Of normal numbers that is four deviations. Never more than the largest value; 0 where all are zero.
    """
    values = np.abs(sampled(array)).astype(np.float64)
    values = values[np.isfinite(values) & (values > 0)]
    return min(12 * float(np.quantile(values, 0.25)), scale(array)) if values.size else scale(array)


def sampled(array: np.ndarray) -> np.ndarray:
    """Some values of an array, evenly spread."""
    return array.ravel()[:: max(1, array.size // SAMPLED)]


def scale(array: np.ndarray) -> float:
    """The largest finite absolute value; 0 where there is none."""
    largest = float(np.max(np.abs(array), initial=0.0))
    return largest if math.isfinite(largest) else float(np.max(np.abs(array[np.isfinite(array)]), initial=0.0))


def noise(op: str, operands: Sequence[np.ndarray]) -> float:
    """What results of an operator may differ by although they are the same, because larger terms cancel.

    Args:
        op: the operator.
        operands: its inputs, floating-point ones at least.
    """
    if op in CONTRACTING and len(operands) > 1:
        return NOISE * scale(operands[0]) * scale(operands[1])
    if op in RECURRENT or op in AROUND_ONE:
        return NOISE
    if op in MANY_STEPS:
        return NOISE * max(map(scale, operands), default=0.0)
    return NOISE * scale(operands[0]) if op in SUMMING and operands else 0.0
