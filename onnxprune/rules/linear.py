"""Operators that contract their data with a weight."""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.rules.base import (
    CHANNEL,
    HEAD,
    MICROSOFT,
    Fact,
    Node,
    Tensor,
    called,
    contracted,
    counts,
    dim,
    paired,
    pinned,
    produced,
    product,
    rule,
    same,
    work,
)


@rule("FusedConv", domain=MICROSOFT)
@rule("Conv", linear=True)
def conv(node: Node) -> Iterator[Fact]:
    """Y[N,(g,o),..] = sum over i and taps of X[N,(g,i),..] * W[(g,o),i,..] + B[(g,o)] (+ Z, in FusedConv)."""
    x, w, y = node.input(0), node.input(1), node.output
    group = node.entries("group")
    g = dim(int(group[0].value or 1)) if group else dim(1)
    o = dim(y.shape[1] // g.size)
    yield same(x.axis(0), y.axis(0))
    yield contracted(x.axis(1), product(g, w.axis(1)), part=w.axis(1))
    yield same(w.axis(0), product(g, o))
    yield produced(w.axis(0), y.axis(1), part=o)
    yield called(y.axis(1), CHANNEL)
    yield from _biased(node, y)
    for entry in group:
        yield counts(entry, g)
    if (z := node.optional(3)) is not None:
        yield from paired(z, y)
    yield from _spatial(x, w, y)
    yield work(*y.axes, *w.axes[1:])


@rule("ConvTranspose", linear=True)
def conv_transpose(node: Node) -> Iterator[Fact]:
    """Y[N,(g,o),..] = sum over i and taps of X[N,(g,i),..] * W[(g,i),o,..] + B[(g,o)]."""
    x, w, y = node.input(0), node.input(1), node.output
    group = node.entries("group")
    g = dim(int(group[0].value or 1)) if group else dim(1)
    i = dim(x.shape[1] // g.size)
    yield same(x.axis(0), y.axis(0))
    yield same(w.axis(0), product(g, i))
    yield contracted(x.axis(1), w.axis(0), part=i)
    yield produced(product(g, w.axis(1)), y.axis(1), part=w.axis(1))
    yield called(y.axis(1), CHANNEL)
    yield from _biased(node, y)
    for entry in group:
        yield counts(entry, g)
    yield from _spatial(x, w, y)
    yield work(*x.axes, *w.axes[1:])


def _spatial(x: Tensor, w: Tensor, y: Tensor) -> Iterator[Fact]:
    for axis in w.axes[2:]:
        yield pinned(axis, "taps of a kernel")
    for axis in (*x.axes[2:], *y.axes[2:]):
        yield pinned(axis, "positions that a kernel slides over")


def _biased(node: Node, y: Tensor) -> Iterator[Fact]:
    if (bias := node.optional(2)) is not None:
        yield same(bias.axis(0), y.axis(1))


@rule("FusedGemm", domain=MICROSOFT)
@rule("Gemm", linear=True)
def gemm(node: Node) -> Iterator[Fact]:
    """Y[N,M] = alpha * A[N,K] @ B[K,M] + beta * C; transA and transB swap the stored axes."""
    a, b, y = node.input(0), node.input(1), node.output
    n, k_a = (1, 0) if node.attr("transA", 0) else (0, 1)
    k_b, m = (1, 0) if node.attr("transB", 0) else (0, 1)
    yield from _multiplied(a, b, y, n, k_a, k_b, m)
    if (c := node.optional(2)) is not None:
        for i in range(1, c.rank + 1):
            if c.shape[-i] == y.shape[-i]:
                yield same(c.axis(-i), y.axis(-i))


@rule("MatMul", linear=True)
def matmul(node: Node) -> Iterator[Fact]:
    """Y[..,N,M] = A[..,N,K] @ B[..,K,M], leading axes broadcast; vectors lack N or M.

    Where two activations are multiplied, that is attention: each head by itself, on a leading axis.
    """
    a, b, y = node.input(0), node.input(1), node.output
    n, m = (-2 if a.rank > 1 else None), (-1 if b.rank > 1 else None)
    yield from _multiplied(a, b, y, n, -1, -2 if b.rank > 1 else -1, m)
    matrix_axes = (a.rank > 1) + (b.rank > 1)
    for operand in (a, b):
        for i in range(3, operand.rank + 1):
            j = i - 2 + matrix_axes  # the same leading axis, counted from the end of the result
            if operand.shape[-i] == y.shape[-j]:
                yield same(operand.axis(-i), y.axis(-j))
    if not a.constant and not b.constant:
        for axis in y.axes[: y.rank - matrix_axes]:
            yield called(axis, HEAD)


def _multiplied(a: Tensor, b: Tensor, y: Tensor, n: int | None, k_a: int, k_b: int, m: int | None) -> Iterator[Fact]:
    """The equations of a matrix product; the operand that is constant is the weight."""
    rows = y.axis(-2 if m is not None else -1) if n is not None else None
    columns = y.axis(-1) if m is not None else None
    if b.constant or not a.constant:
        yield contracted(a.axis(k_a), b.axis(k_b))
        if rows is not None and n is not None:
            yield same(a.axis(n), rows)
        if columns is not None and m is not None:
            yield produced(b.axis(m), columns)
    else:
        yield contracted(b.axis(k_b), a.axis(k_a))
        if rows is not None and n is not None:
            yield produced(a.axis(n), rows)
        if columns is not None and m is not None:
            yield same(b.axis(m), columns)
    yield work(*y.axes, a.axis(k_a))
