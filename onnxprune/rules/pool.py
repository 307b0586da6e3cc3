"""Pooling: samples and channels pass, positions are worked on as a whole."""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.rules.base import rule
from onnxprune.rules.facts import Fact, same
from onnxprune.rules.node import Node


@rule("AveragePool", "GlobalAveragePool", linear=True)
@rule("GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool")
def pool(node: Node) -> Iterator[Fact]:
    """Y[N,C,..] = pooled over windows of X[N,C,..]; indices of MaxPool count through channels, so they pin them."""
    x, y = node.input(0), node.output
    if len(node.outputs) > 1 and node.outputs[1] is not None:
        return
    yield same(x.axis(0), y.axis(0))
    yield same(x.axis(1), y.axis(1))
