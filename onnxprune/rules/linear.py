"""Operators that contract their data with a weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from onnxprune.axes import Layout, dim
from onnxprune.rules.base import MICROSOFT, rule
from onnxprune.rules.facts import (
    CHANNEL,
    HEAD,
    Fact,
    called,
    contracted,
    counts,
    met,
    paired,
    pinned,
    produced,
    product,
    same,
    untouched,
    work,
)
from onnxprune.rules.node import Node, Refusal, Tensor


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


@rule("FusedMatMul", domain=MICROSOFT, linear=True)
@rule("MatMul", linear=True)
def matmul(node: Node) -> Iterator[Fact]:
    """Y[..,N,M] = A[..,N,K] @ B[..,K,M], leading axes broadcast; vectors lack N or M. FusedMatMul transposes first.

    Where two activations are multiplied, that is attention: each head by itself, on a leading axis.
    """
    a, b, y = _turned(node, 0, "A"), _turned(node, 1, "B"), node.output
    n, m = (-2 if a.rank > 1 else None), (-1 if b.rank > 1 else None)
    yield from _multiplied(a, b, y, n, -1, -2 if b.rank > 1 else -1, m)
    matrix_axes = (a.rank > 1) + (b.rank > 1)
    for operand in (a, b):
        for i in range(3, operand.rank + 1):
            j = i - 2 + matrix_axes  # the same leading axis, counted from the end of the result
            if operand.shape[-i] == y.shape[-j]:
                yield same(operand.axis(-i), y.axis(-j))
    if not a.weight and not b.weight:
        yield met(a.axis(-1), b.axis(-2 if b.rank > 1 else -1), a.axis(-1))
        for axis in y.axes[: y.rank - matrix_axes]:
            yield called(axis, HEAD)


def _turned(node: Node, index: int, which: str) -> Tensor:
    """An operand of FusedMatMul as MatMul has it: transBatch says that the first axis comes after the leading ones."""
    x = node.input(index)
    if x.rank < 2:
        return x
    axes = x.axes
    if node.attr(f"transBatch{which}", 0):
        axes = (*axes[1:-1], axes[0], axes[-1])
    if node.attr(f"trans{which}", 0):
        axes = (*axes[:-2], axes[-1], axes[-2])
    return replace(x, axes=axes)


@rule("MatMulNBits", domain=MICROSOFT)
def matmul_n_bits(node: Node) -> Iterator[Fact]:
    """Y[..,M] = X[..,K] @ W[K,M], whose numbers are stored in blocks along K, several to a byte."""
    x, y = node.input(0), node.output
    yield from paired(x, y, skip=(-1,))
    for axis in (x.axis(-1), y.axis(-1)):
        yield pinned(axis, "its weight is stored in blocks of few bits")


def _multiplied(a: Tensor, b: Tensor, y: Tensor, n: int | None, k_a: int, k_b: int, m: int | None) -> Iterator[Fact]:
    """The equations of a matrix product; the weight is the constant operand, or else one picked from a constant."""
    rows = y.axis(-2 if m is not None else -1) if n is not None else None
    columns = y.axis(-1) if m is not None else None
    if b.constant or not a.weight or (b.picked and not a.constant):
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


@rule("Einsum", linear=True)
def einsum(node: Node) -> Iterator[Fact]:
    """Y = sum over the letters that Y lacks of the product of all operands; axes of size 1 broadcast."""
    operands = [node.input(i) for i in range(len(node.inputs))]
    *terms, result = _terms(node, operands)
    repeated = {letter for term in terms for letter, times in Counter(term).items() if times > 1}
    made = dict(zip(result, node.output.axes, strict=True))
    places: dict[str, list[tuple[Tensor, Layout]]] = {}
    for term, operand in zip(terms, operands, strict=True):
        for letter, axis in zip(term, operand.axes, strict=True):
            places.setdefault(letter, []).append((operand, axis))
    for letter, found in places.items():
        if letter in repeated:
            for _, axis in found:
                yield pinned(axis, "Einsum takes a diagonal of this axis")
        elif letter in made:
            yield from _given_out(found, made[letter])
            if len(places) > len(made) and sum(not operand.constant for operand, _ in found) > 1:
                yield called(made[letter], HEAD)
        else:
            yield from _summed(found)
    if len(operands) == 2:
        yield work(*(max((axis for _, axis in found), key=lambda axis: axis.size) for found in places.values()))


def _terms(node: Node, operands: list[Tensor]) -> list[list[str]]:
    """The letters of each operand and of the result; the axes of an ellipsis are numbered from its right end."""
    inputs, arrow, given = str(node.attr("equation", "")).replace(" ", "").partition("->")
    terms = inputs.split(",")
    hidden = [t.rank - len(term.replace("...", "")) for t, term in zip(operands, terms, strict=True) if "..." in term]
    ellipsis = [f"...{i}" for i in range(max(hidden, default=0), 0, -1)]
    if not arrow:
        letters = Counter(inputs.replace("...", "").replace(",", ""))
        given = "..." * bool(hidden) + "".join(sorted(letter for letter, times in letters.items() if times == 1))
    ranks = [*(operand.rank for operand in operands), node.output.rank]
    out = []
    for term, rank in zip((*terms, given), ranks, strict=True):
        before, dots, after = term.partition("...")
        covered = rank - len(before) - len(after)
        out.append([*before, *(ellipsis[len(ellipsis) - covered :] if dots else ()), *after])
    if len(set(out[-1])) < len(out[-1]) or any(len(term) != rank for term, rank in zip(out, ranks, strict=True)):
        raise Refusal(f"Einsum has an equation that does not fit its operands: {node.attr('equation', '')}")
    return out


def _given_out(found: list[tuple[Tensor, Layout]], y: Layout) -> Iterator[Fact]:
    """An axis of the result: made by weights, unless an activation has it too."""
    whole = [(operand, axis) for operand, axis in found if axis.size == y.size]
    weights = all(operand.constant for operand, _ in whole)
    for _, axis in whole:
        yield produced(axis, y) if weights else same(axis, y)


def _summed(found: list[tuple[Tensor, Layout]]) -> Iterator[Fact]:
    """An axis that is summed over: masked activations add nothing, and whatever meets them reads them."""
    size = max(axis.size for _, axis in found)
    data = next((axis for operand, axis in found if axis.size == size and not operand.constant), None)
    for operand, axis in found:
        if axis.size != size:
            continue
        if data is None:
            yield pinned(axis, "Einsum sums over this axis of weights alone")
        elif axis is data:
            yield untouched(axis)
        else:
            yield contracted(data, axis)
            if not operand.constant:
                yield met(data, axis, axis)
