"""Operators that take axes together."""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.rules.base import rule
from onnxprune.rules.facts import (
    Fact,
    normalized,
    paired,
    pinned,
    same,
    untouched,
)
from onnxprune.rules.node import Node, Tensor


def _reduced(node: Node) -> tuple[Tensor, set[int]]:
    """The data and the axes that are reduced, which newer opsets give as an input."""
    x = node.input(0)
    axes = node.ints("axes", 1)
    if not axes:
        axes = [] if node.attr("noop_with_empty_axes", 0) else list(range(x.rank))
    return x, {axis % x.rank for axis in axes}


def _passed_on(node: Node, x: Tensor, axes: set[int]) -> Iterator[Fact]:
    """The axes that are not reduced."""
    passed = [i for i in range(x.rank) if i not in axes]
    for place, i in enumerate(passed):
        yield same(x.axis(i), node.output.axis(i if node.attr("keepdims", 1) == 1 else place))


@rule("ReduceMean", linear=True)
def reduce_mean(node: Node) -> Iterator[Fact]:
    """Y = mean of X over `axes`, of fewer positions where some are gone; a weight keeps its own."""
    x, axes = _reduced(node)
    yield from _passed_on(node, x, axes)
    for i in axes:
        yield (pinned if x.constant else normalized)(x.axis(i), "ReduceMean runs over this axis")


@rule("ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMin", "ReduceProd")
def reduce(node: Node) -> Iterator[Fact]:
    """Y = reduction of X over `axes`, which stay whole: a missing position would change the result."""
    x, axes = _reduced(node)
    yield from _passed_on(node, x, axes)
    for i in axes:
        yield pinned(x.axis(i), f"{node.op} runs over this axis")


@rule("ReduceSum", linear=True)
@rule("ReduceL1", "ReduceL2", "ReduceSumSquare")
def reduce_sum(node: Node) -> Iterator[Fact]:
    """Y = sum of f(X) over `axes` with f(0) = 0: masked positions add nothing, so activations may lose them.

    A weight keeps them: whoever masks activations alone would still see the norm of the whole weight.
    """
    x, axes = _reduced(node)
    yield from _passed_on(node, x, axes)
    for i in axes:
        if x.constant:
            yield pinned(x.axis(i), f"{node.op} of a weight runs over this axis")
        else:
            yield untouched(x.axis(i))


@rule("ArgMax", "ArgMin")
def arg(node: Node) -> Iterator[Fact]:
    """Y = index of the extreme value along one axis, which stays whole."""
    x = node.input(0)
    axis = node.attr("axis", 0) % x.rank
    yield from _passed_on(node, x, {axis})
    yield pinned(x.axis(axis), f"{node.op} gives positions on this axis")


@rule("Hardmax", "LogSoftmax", "Softmax", since=13)
def softmax(node: Node) -> Iterator[Fact]:
    """Y = exp(X) / sum over one axis(exp(X)); that axis stays whole, since exp(0) is not 0."""
    x = node.input(0)
    yield from paired(x, node.output)
    yield pinned(x.axis(node.attr("axis", -1)), f"{node.op} runs over this axis")


@rule("Hardmax", "LogSoftmax", "Softmax", since=1)
def softmax_flattened(node: Node) -> Iterator[Fact]:
    """Before opset 13: over all axes from `axis` on."""
    x = node.input(0)
    yield from paired(x, node.output)
    for i in range(node.attr("axis", 1) % x.rank, x.rank):
        yield pinned(x.axis(i), f"{node.op} runs over this axis")


@rule("CumSum")
def cumsum(node: Node) -> Iterator[Fact]:
    """Y = running sums along one axis, which stays whole."""
    x = node.input(0)
    yield from paired(x, node.output)
    for axis in node.ints(None, 1) or range(x.rank):
        yield pinned(x.axis(axis), "CumSum runs along this axis")
