"""Attention as one operator, and the operators that ONNX Runtime fuses around it.

Dims of attention are `k` key-value heads, `g` query heads that share one of them, `d` the width of a query or key and
`e` the width of a value. Softmax runs over tokens, so heads never meet: a head that is masked in the result can go from
queries, keys and values. Tokens are not mentioned anywhere, and stay.

The width of queries and keys can go where they are tensors of the graph; the scale of the scores, which the operator
would derive from it, is then written down. Where the operator itself makes queries and keys or adds a bias to them, no
mask outside shows what the rest of it would do, and the width stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from onnxprune.axes import Layout, dim
from onnxprune.rules.base import MICROSOFT, rule
from onnxprune.rules.facts import (
    HEAD,
    Fact,
    broadcast,
    cached,
    called,
    concat,
    contracted,
    counts,
    met,
    normalized,
    paired,
    pinned,
    produced,
    product,
    same,
    stated,
    work,
)
from onnxprune.rules.node import (
    Entry,
    Node,
    Refusal,
    Tensor,
)

INSIDE = "queries and keys of this width are made inside the operator"


@dataclass(frozen=True, slots=True)
class Heads:
    """The dims of attention.

    Attributes:
        shared: key-value heads.
        each: query heads for one key-value head.
        width: the width of a query and of a key.
        values: the width of a value.
    """

    shared: Layout
    each: Layout
    width: Layout
    values: Layout

    @property
    def queries(self) -> Layout:
        """The query heads."""
        return product(self.shared, self.each)


@rule("Attention")
def attention(node: Node) -> Iterator[Fact]:
    """Y[..,(k,g),e] = softmax(scale * Q[..,(k,g),d] @ K[..,k,d] + mask) @ V[..,k,e], behind cached keys and values."""
    q, k, v = (node.input(i) for i in range(3))
    queries, shared = node.entries("q_num_heads"), node.entries("kv_num_heads")
    heads = _heads(_count(queries, q), _count(shared, k), q, v)
    yield from _attended(node, heads, (q, k, v), past=4)
    yield from _scores(node.optional(3), heads)
    if "scale" not in node.attrs:
        yield stated("scale", heads.width.size**-0.5, heads.width)
    for entry in queries:
        yield counts(entry, heads.queries)
    for entry in shared:
        yield counts(entry, heads.shared)


@rule("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention(node: Node) -> Iterator[Fact]:
    """The same with as many key-value heads as query heads, and with a bias [(k,d) + (k,d) + (k,e)]."""
    q, k, v = node.input(0), node.optional(1), node.optional(2)
    if k is None or v is None or q.rank != 3:
        raise Refusal("MultiHeadAttention has queries, keys and values in one tensor")
    number = node.entries("num_heads")
    heads = _heads(_count(number, q), _count(number, q), q, v)
    yield from _attended(node, heads, (q, k, v), past=6)
    yield from _scores(node.optional(5), heads)
    if (bias := node.optional(3)) is not None:
        keys = product(heads.shared, heads.width)
        yield same(bias.axis(0), concat(keys, keys, product(heads.shared, heads.values)))
        yield pinned(heads.width, INSIDE)
    if k.rank == 4:  # as ONNX Runtime wants it
        yield same(heads.width, heads.values)
    if not node.attr("scale", 0.0):
        yield stated("scale", heads.width.size**-0.5, heads.width)
    yield counts(number[0], heads.shared)


@rule("GroupQueryAttention", domain=MICROSOFT)
def group_query_attention(node: Node) -> Iterator[Fact]:
    """The same with e = d, and with queries, keys and values in one tensor [(k,g,d) + (k,d) + (k,d)] or in three.

    The width stays: ONNX Runtime takes none but certain multiples.
    """
    x, k, v, y = node.input(0), node.optional(1), node.optional(2), node.output
    queries, shared = node.entries("num_heads"), node.entries("kv_num_heads")
    heads = _heads(_count(queries, x), _count(shared, x), y, y)
    yield same(heads.width, heads.values)
    if k is None or v is None:
        keys = product(heads.shared, heads.width)
        yield same(x.axis(2), concat(product(heads.queries, heads.width), keys, keys))
        yield from _attended(node, heads, (), past=3)
    else:
        yield from _attended(node, heads, (x, k, v), past=3)
    yield pinned(heads.width, "ONNX Runtime takes certain multiples as the width of a head only")
    yield from _scores(node.optional(10), heads)
    if (sink := node.optional(11)) is not None:
        yield same(sink.axis(0), heads.queries)
    yield counts(queries[0], heads.queries)
    yield counts(shared[0], heads.shared)


@rule("Attention", domain=MICROSOFT)
def fused_attention(node: Node) -> Iterator[Fact]:
    """Queries, keys and values are made inside: X[B,S,i] @ W[i,(h,d) + (h,d) + (h,e)] + B; Y[B,S,(h,e)]."""
    x, w, y = node.input(0), node.input(1), node.output
    number = node.entries("num_heads")
    entries = node.entries("qkv_hidden_sizes") or tuple(
        Entry(w.shape[1] // 3, True, "qkv_hidden_sizes", None, i, stated=False) for i in range(3)
    )
    h = dim(int(number[0].value or 1))
    d, e = (dim(int(entries[i].value or 0) // h.size) for i in (0, 2))
    keys, values = product(h, d), product(h, e)
    yield called(h, HEAD)
    yield contracted(x.axis(2), w.axis(0))
    yield same(y.axis(2), values)
    yield produced(w.axis(1), concat(keys, keys, y.axis(2)), part=values)
    yield pinned(d, INSIDE)
    if (bias := node.optional(2)) is not None:
        yield same(bias.axis(0), w.axis(1))
    for cache in (node.optional(4), *node.outputs[1:]):
        if cache is not None:  # keys and values in one tensor [2,B,h,P,d]
            yield same(cache.axis(2), h)
            yield cached(cache.axis(2))
            yield same(cache.axis(4), d)
            yield same(cache.axis(4), e)
    yield from _scores(node.optional(5), Heads(h, dim(1), d, e))
    yield counts(number[0], h)
    for entry, axis in zip(entries, (keys, keys, values), strict=True):
        yield counts(entry, axis)
    seen = x.axis(1) if node.optional(4) is None else node.tensor(node.outputs, 1).axis(3)
    yield work(x.axis(0), x.axis(1), concat(product(*w.axes), product(seen, h, concat(d, e))))


def _heads(queries: int, shared: int, q: Tensor, v: Tensor) -> Heads:
    """Fresh dims for so many heads, the widths taken from queries and from what has the width of values."""
    width = q.shape[3] if q.rank == 4 else q.shape[2] // queries
    of_values = v.shape[3] if v.rank == 4 else v.shape[2] // (shared if v is not q else queries)
    return Heads(dim(shared), dim(queries // shared), dim(width), dim(of_values))


def _count(entries: tuple[Entry, ...], x: Tensor) -> int:
    """The number of heads, in an attribute, or without it on an axis."""
    if not entries and x.rank != 4:
        raise Refusal("the number of heads is not stated")
    return int(entries[0].value or 1) if entries else x.shape[1]


def _attended(node: Node, heads: Heads, given: tuple[Tensor, ...], past: int) -> Iterator[Fact]:
    """What all forms share: queries, keys and values, the result, the caches, the scores, the work."""
    y = node.output
    for units in (heads.shared, heads.each):
        yield called(units, HEAD)
    widths = heads.width, heads.width, heads.values
    for x, count, width in zip(given, (heads.queries, heads.shared, heads.shared), widths, strict=False):
        yield from _laid(x, count, width)
    if given:
        q, k = (x.axis(3 if x.rank == 4 else 2) for x in given[:2])
        yield met(q, k, heads.width)
    yield from _laid(y, heads.queries, heads.values)
    caches = [(node.optional(past), heads.width), (node.optional(past + 1), heads.values)]
    caches += zip(node.outputs[1:3], (heads.width, heads.values), strict=False)
    for cache, width in caches:
        if cache is not None:
            yield from _laid(cache, heads.shared, width)
            yield cached(cache.axis(1))
    for scores in node.outputs[3:]:
        yield from _scores(scores, heads)
    seen = [cache.axis(2) for cache, _ in caches[:1] if cache is not None]
    seen.append(_tokens(given[1] if given else y))
    yield work(y.axis(0), _tokens(y), concat(*seen), heads.queries, concat(heads.width, heads.values))


def _laid(x: Tensor, heads: Layout, width: Layout) -> Iterator[Fact]:
    """Heads and their width are the last axis of [B,S,(h,w)], or two axes of [B,h,S,w]."""
    if x.rank == 4:
        yield same(x.axis(1), heads)
        yield same(x.axis(3), width)
    else:
        yield same(x.axis(2), product(heads, width))


def _tokens(x: Tensor) -> Layout:
    return x.axis(2 if x.rank == 4 else 1)


def _scores(x: Tensor | None, heads: Heads) -> Iterator[Fact]:
    """Masks, biases and scores are [B,(k,g),S,T], or lack leading axes, or repeat."""
    if x is not None and x.rank > 2 and x.shape[-3] == heads.queries.size:
        yield same(x.axis(-3), heads.queries)


@rule("RotaryEmbedding")
def rotary_embedding(node: Node) -> Iterator[Fact]:
    """Pairs (first half, second half), or neighbours, of the first positions of a head are turned by angles."""
    yield from _rotated(node, cosines=1)


@rule("RotaryEmbedding", domain=MICROSOFT)
def rotary_embedding_microsoft(node: Node) -> Iterator[Fact]:
    """The same, with positions before the tables."""
    yield from _rotated(node, cosines=2)


def _rotated(node: Node, cosines: int) -> Iterator[Fact]:
    """X[B,S,(h,w)] or X[B,h,S,w], where w is (2,r), interleaved (r,2), and what is not rotated; tables are [..,r]."""
    x, y, tables = node.input(0), node.output, (node.input(cosines), node.input(cosines + 1))
    rotated, number = 2 * tables[0].shape[-1], node.entries("num_heads")
    width = x.shape[3] if x.rank == 4 else x.shape[2] // int(number[0].value) if number and number[0].value else rotated
    heads, pair, angles = dim(x.shape[1] if x.rank == 4 else x.shape[2] // width), dim(2), dim(rotated // 2)
    turned = product(angles, pair) if node.attr("interleaved", 0) else product(pair, angles)
    yield from paired(x, y)
    yield from _laid(x, heads, concat(turned, dim(width - rotated)))
    yield pinned(pair, "rotated in pairs")
    for table in tables:
        yield same(table.axis(-1), angles)
    if number and number[0].value:
        yield counts(number[0], heads)
    for entry in node.entries("rotary_embedding_dim"):
        if entry.value:
            yield counts(entry, turned)


@rule("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_layer_normalization(node: Node) -> Iterator[Fact]:
    """Y = normalized(X + skip + bias) * gamma + beta, over the last axis, which stays whole; also gives the sum."""
    y = node.output
    for operand in filter(None, node.inputs):
        yield from broadcast(operand, y)
    yield normalized(y.axis(-1), "normalized over this axis")
    for output in node.outputs[1:]:
        if output is not None and output.shape == y.shape:
            yield from paired(output, y)


@rule("EmbedLayerNormalization", domain=MICROSOFT)
def embed_layer_normalization(node: Node) -> Iterator[Fact]:
    """Y[B,S,n] = normalized(sum of rows of tables [..,n]) * gamma[n] + beta[n]; n stays whole; also gives the sum."""
    y = node.output
    for i in (2, 3, 4):
        if (table := node.optional(i)) is not None:
            yield produced(table.axis(1), y.axis(2))
    for i in (5, 6):
        yield same(node.input(i).axis(0), y.axis(2))
    yield normalized(y.axis(2), "normalized over this axis")
    for output in node.outputs[2:]:
        if output is not None:
            yield from paired(output, y)
