"""What a model costs as a polynomial in how many positions each dim keeps, so that a budget needs no new analysis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from onnxprune.axes import Dim, Extent, Layout, extent, product

Polynomial = tuple[tuple[int, tuple[int, ...]], ...]
"""Coefficients and, for each, the leaves whose kept counts it is multiplied by, as indices."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Parameters and multiply-accumulates of the model as functions of how many positions each leaf keeps.

    Attributes:
        params: floating-point elements of all constants.
        macs: multiply-accumulates for one sample.
    """

    params: Polynomial
    macs: Polynomial


def evaluate(terms: Polynomial, counts: np.ndarray) -> int:
    """The value of a polynomial.

    Args:
        terms: the polynomial.
        counts: (leaves,) kept positions of each leaf.
    """
    return round(sum(count * float(np.prod(counts[list(which)])) for count, which in terms))


def polynomial(tensors: Iterable[tuple[Layout, ...]], order: Mapping[Dim, int]) -> Polynomial:
    """The sum over tensors of the product of their sizes, in the kept counts of the leaves of `order`."""
    place = {id(leaf): i for leaf, i in order.items()}
    total: Extent = Counter()
    for axes in tensors:
        total.update(extent(product(*axes), order))
    return tuple((count, tuple(place[key] for key in which)) for which, count in total.items())
