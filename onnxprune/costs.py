"""What a model costs as a polynomial in how many positions each dim keeps, so that a budget needs no new analysis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from onnxprune.axes import Dim, Layout, product
from onnxprune.extents import Extent, extent


@dataclass(frozen=True, slots=True)
class Polynomial:
    """A sum of products of kept counts.

    Attributes:
        factors: (terms,) what each product is multiplied by.
        leaves: (terms, degree) indices of the counts in each product; the index after the last count stands for 1.
    """

    factors: np.ndarray
    leaves: np.ndarray

    def __call__(self, counts: np.ndarray) -> int:
        """The value at (leaves,) kept positions of each leaf."""
        return round(float(self.factors @ np.append(counts, 1.0)[self.leaves].prod(axis=1)))


@dataclass(frozen=True, slots=True)
class Costs:
    """Parameters and multiply-accumulates of a model.

    Attributes:
        params: floating-point elements of all constants.
        macs: multiply-accumulates for the observed batch.
    """

    params: Polynomial
    macs: Polynomial


def polynomial(tensors: Iterable[tuple[Layout, ...]], order: Mapping[Dim, int]) -> Polynomial:
    """The sum over tensors of the product of their sizes, in the kept counts of the leaves of `order`."""
    place = {id(leaf): i for leaf, i in order.items()}
    total: Extent = Counter()
    for axes in tensors:
        total.update(extent(product(*axes), order))
    degree = max(map(len, total), default=0)
    rows = [[place[key] for key in which] + [len(order)] * (degree - len(which)) for which in total]
    return Polynomial(np.array(list(total.values()), float), np.array(rows, int).reshape(len(total), degree))
