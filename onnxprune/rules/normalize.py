"""Normalization: a channel by itself passes on; what is averaged over stays whole, unless inexact groups are wanted."""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.axes import dim
from onnxprune.rules.base import rule
from onnxprune.rules.facts import (
    Fact,
    broadcast,
    counts,
    normalized,
    paired,
    pinned,
    product,
    same,
)
from onnxprune.rules.node import Node


@rule("BatchNormalization", linear=True)
def batch_normalization(node: Node) -> Iterator[Fact]:
    """Y[N,C,..] = (X[N,C,..] - mean[C]) / sqrt(var[C] + epsilon) * scale[C] + bias[C]."""
    x, y = node.input(0), node.output
    yield from paired(x, y)
    if not node.attr("spatial", 1):
        yield pinned(x.axis(1), "BatchNormalization with spatial=0 has its own statistics at every position")
        return
    channels = y.axis(1 if y.rank > 1 else 0)
    for parameter in node.inputs[1:]:
        if parameter is not None:
            yield same(parameter.axis(0), channels)
    for statistic in node.outputs[1:]:
        if statistic is not None and statistic.rank == 1:
            yield same(statistic.axis(0), channels)
    if node.attr("training_mode", 0) or (node.version < 14 and any(node.outputs[1:])):
        for i in range(x.rank):  # as exported for weights that are standardized on the way
            if i != 1:
                yield pinned(x.axis(i), "normalized over this axis")


@rule("InstanceNormalization")
def instance_normalization(node: Node) -> Iterator[Fact]:
    """Y[N,C,..] = normalized over positions(X[N,C,..]) * scale[C] + bias[C]."""
    x, y = node.input(0), node.output
    yield same(x.axis(0), y.axis(0))
    yield same(x.axis(1), y.axis(1))
    yield same(node.input(1).axis(0), y.axis(1))
    yield same(node.input(2).axis(0), y.axis(1))
    for i in range(2, x.rank):
        yield same(x.axis(i), y.axis(i))
        yield pinned(x.axis(i), "normalized over these positions")


@rule("GroupNormalization")
def group_normalization(node: Node) -> Iterator[Fact]:
    """Y[N,(g,c),..] = normalized over c and positions(X) * scale + bias; whole groups may go, parts of one may not."""
    x, y = node.input(0), node.output
    entries = node.entries("num_groups")
    g = dim(int(entries[0].value or 1))
    c = dim(x.shape[1] // g.size)
    yield same(x.axis(0), y.axis(0))
    yield same(x.axis(1), product(g, c))
    yield same(x.axis(1), y.axis(1))
    yield pinned(c, "normalized over the channels of a group")
    for parameter in (node.input(1), node.input(2)):
        yield same(parameter.axis(0), g if node.version < 21 else y.axis(1))
    yield counts(entries[0], g)
    for i in range(2, x.rank):
        yield same(x.axis(i), y.axis(i))
        yield pinned(x.axis(i), "normalized over these positions")


@rule("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
def layer_normalization(node: Node) -> Iterator[Fact]:
    """Y = normalized over the last axes(X) * scale + bias, which broadcast to X."""
    x, y = node.input(0), node.output
    axis = node.attr("axis", -1) % x.rank
    yield from paired(x, y)
    for i in range(axis, x.rank):
        yield normalized(x.axis(i), "normalized over this axis")
    for parameter in filter(None, node.inputs[1:]):
        yield from broadcast(parameter, y)
    for statistic in node.outputs[1:]:
        if statistic is not None:
            for i in range(axis):
                yield same(statistic.axis(i), x.axis(i))


@rule("LpNormalization")
def lp_normalization(node: Node) -> Iterator[Fact]:
    """Y = X / norm over one axis(X): masked positions add nothing to a norm, those of a weight do."""
    x, y = node.input(0), node.output
    yield from paired(x, y)
    if x.constant:
        yield pinned(x.axis(node.attr("axis", -1)), "LpNormalization of a weight runs over this axis")


@rule("MeanVarianceNormalization")
def mean_variance_normalization(node: Node) -> Iterator[Fact]:
    """Y = (X - mean) / deviation, both over `axes`."""
    x, y = node.input(0), node.output
    yield from paired(x, y)
    for i in node.ints("axes") or (0, 2, 3):
        yield normalized(x.axis(i), "normalized over this axis")


@rule("LRN")
def lrn(node: Node) -> Iterator[Fact]:
    """Y[N,C,..] = X / (bias + alpha * sum over neighbouring channels(X^2))^beta; channels have neighbours."""
    x, y = node.input(0), node.output
    yield from paired(x, y)
    yield pinned(x.axis(1), "normalized over neighbouring channels")
