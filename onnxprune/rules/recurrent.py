"""Recurrent layers: one hidden unit is a row in each gate of W, R, B and P, and a column of R, which reads it.

Both directions of a layer share one hidden size and one axis of the result, so a unit goes from both at once.
"""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.axes import Layout, dim
from onnxprune.rules.base import rule
from onnxprune.rules.facts import (
    HIDDEN,
    Fact,
    called,
    concat,
    contracted,
    counts,
    omitted,
    pinned,
    produced,
    product,
    same,
    untouched,
    work,
)
from onnxprune.rules.node import Node

GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}
"""Recurrent operators and how many gates their cells have."""


@rule(*GATES, since=7)
def recurrent(node: Node) -> Iterator[Fact]:
    """Y[T,D,N,h] from X[T,N,I], W[D,(gates,h),I], R[D,(gates,h),h], B[D,(2,gates,h)], P[D,(3,h)], states[D,N,h].

    Whatever the activations are, they work on each unit by itself: a unit meets the others through R alone.
    """
    x, w, r = node.input(0), node.input(1), node.input(2)
    t, n = (1, 0) if node.attr("layout", 0) else (0, 1)
    d, h = w.axis(0), dim(r.shape[2])
    gates = dim(GATES[node.op])
    yield pinned(d, "the directions of a recurrent layer")
    yield pinned(gates, "the gates of one cell")
    yield pinned(x.axis(t), "the steps of a sequence")
    yield same(r.axis(0), d)
    yield same(r.axis(1), product(gates, h))
    yield from _vectors(node, d, gates, h)
    yield from _states(node, x.axis(t), x.axis(n), d, h)
    yield contracted(x.axis(2), w.axis(2))
    for y in filter(None, node.outputs):
        yield called(y.axis(-1), HIDDEN)
        yield produced(w.axis(0), y.axis(_directions(node, y.rank)))
        yield produced(w.axis(1), product(gates, y.axis(-1)), part=h)
        yield produced(r.axis(1), product(gates, y.axis(-1)), part=h)
    states = next(filter(None, node.outputs))
    yield contracted(states.axis(-1), r.axis(2))
    for entry in node.entries("hidden_size"):
        yield counts(entry, h)
    yield work(*x.axes[:2], *w.axes[:2], concat(w.axis(2), r.axis(2)))


def _vectors(node: Node, d: Layout, gates: Layout, h: Layout) -> Iterator[Fact]:
    """Biases of W, then of R; peepholes of the input, output and forget gate."""
    biases, peepholes = dim(2), dim(3)
    yield pinned(biases, "the biases of W and of R")
    yield pinned(peepholes, "the peepholes of one cell")
    for index, layout in ((3, product(biases, gates, h)), (7, product(peepholes, h))):
        if (vector := node.optional(index)) is not None:
            yield same(vector.axis(0), d)
            yield same(vector.axis(1), layout)


def _states(node: Node, steps: Layout, batch: Layout, d: Layout, h: Layout) -> Iterator[Fact]:
    """Initial states, the last states, and the states of all steps."""
    if (lengths := node.optional(4)) is not None:
        yield same(lengths.axis(0), batch)
    given = []
    for index, state in enumerate(node.inputs[5:7], 5):
        if state is not None and index in node.zeros:  # exporters cut those of all layers from one tensor
            yield from map(untouched, state.axes)
            yield omitted(index, batch, h)
        else:
            given.append(state)
    for state in filter(None, (*given, *node.outputs)):
        time = (steps,) if state.rank == 4 else ()
        order = (batch, *time, d, h) if node.attr("layout", 0) else (*time, d, batch, h)
        for axis, layout in zip(state.axes, order, strict=True):
            yield same(axis, layout)


def _directions(node: Node, rank: int) -> int:
    """The axis of the directions in a result, which has the steps too where its rank is 4."""
    return rank - 2 if node.attr("layout", 0) else rank - 3
