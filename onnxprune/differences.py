"""How far two arrays that should be equal are apart, and how far they may be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NOISE = 2.0**-20
"""What may be left of sums that cancel, relative to the product of the largest operands: eight roundings."""

CONTRACTING = frozenset(
    {"Conv", "ConvTranspose", "Einsum", "FusedConv", "FusedGemm", "FusedMatMul", "Gemm", "MatMul", "MatMulNBits"}
)
"""Operators that sum over products of their first two inputs."""

SUMMING = frozenset(
    {"AveragePool", "GlobalAveragePool", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean"}
    | {"ReduceSum", "ReduceSumSquare"}
)
"""Operators that sum over their first input."""


def gap(expected: np.ndarray, found: np.ndarray) -> float:
    """The largest difference of two arrays; infinite where shapes, kinds, texts, integers or NaNs differ."""
    if expected.shape != found.shape or (expected.dtype.kind == "f") != (found.dtype.kind == "f"):
        return float("inf")
    if expected.dtype.kind != "f":
        return 0.0 if np.array_equal(expected, found) else float("inf")
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(found)):
        return float("inf")
    if not finite.all() and not np.array_equal(expected[~finite], found[~finite], equal_nan=True):
        return float("inf")
    wide = expected[finite].astype(np.float64)
    return float(np.max(np.abs(wide - found[finite]), initial=0.0))


def scale(array: np.ndarray) -> float:
    """The largest finite absolute value; 0 where there is none."""
    if array.dtype.kind != "f":
        return 1.0
    return float(np.max(np.abs(array[np.isfinite(array)].astype(np.float64)), initial=0.0))


def noise(op: str, operands: Sequence[np.ndarray]) -> float:
    """What sums of an operator may differ by although they are the same, because terms cancel.

    Args:
        op: the operator.
        operands: its inputs, floating-point ones at least.
    """
    if op in CONTRACTING and len(operands) > 1:
        return NOISE * scale(operands[0]) * scale(operands[1])
    return NOISE * scale(operands[0]) if op in SUMMING and operands else 0.0
