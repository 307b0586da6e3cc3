"""The law for attention as one operator."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st
from onnx import TensorProto

from builders import Net
from laws import compare
from onnxprune.axes import leaves
from onnxprune.grouping import find_units
from onnxprune.inference import infer
from onnxprune.observation import Observation
from rules.cases import CASES, Draw, case, check_case, opset, size

WIDTH = 4
"""Width of the tokens."""

SQUARE = 16
"""Width of a head where it can go: the scale derived from it, and the root of that, are exact in any precision."""


def projected(net: Net, x: str, *widths: int) -> list[str]:
    """Tokens through a dense layer without bias for each width."""
    return [net.op("MatMul", x, net.weight(WIDTH, width)) for width in widths]


def tokens(draw: Draw, version: int) -> tuple[Net, str]:
    """A net and its input, a batch of tokens."""
    net = Net(version, seed=draw(st.integers(0, 99)))
    return net, net.input("N", 3, WIDTH)


def read(net: Net, y: str, width: int) -> Net:
    """Contracts the result of attention and gives it out."""
    return net.output(net.op("MatMul", y, net.weight(width, 2)))


@case("Attention")
def attention(draw: Draw) -> tuple[Net, list[int]]:
    """As many key-value heads as query heads, values as wide as one likes, causal or not."""
    net, x = tokens(draw, opset(draw, 23, 24))
    h, e = size(draw, 2, 5), size(draw, 1, 4)
    q, k, v = projected(net, x, h * SQUARE, h * SQUARE, h * e)
    attrs = {"q_num_heads": h, "kv_num_heads": h, "is_causal": draw(st.integers(0, 1))}
    return read(net, net.op("Attention", q, k, v, **attrs), h * e), [h]


@case("Attention/grouped queries")
def attention_grouped(draw: Draw) -> tuple[Net, list[int]]:
    """Key-value heads, the query heads that share one, and a mask with its own numbers for each query head."""
    net, x = tokens(draw, 23)
    k, g, e = size(draw, 2, 4), size(draw, 2, 4), size(draw, 1, 5)
    keys = projected(net, x, k * g * 3, k * 3, k * e)
    mask = [net.weight(k * g, 3, 3)] if draw(st.booleans()) else []
    y = net.op("Attention", *keys, *mask, q_num_heads=k * g, kv_num_heads=k, scale=0.5)
    return read(net, y, k * g * e), [k]


@case("Attention/heads on their own axis")
def attention_4d(draw: Draw) -> tuple[Net, list[int]]:
    """[B,h,S,w], the width of queries and keys among what can go: the scale that it implies is written down."""
    net, x = tokens(draw, 23)
    h = size(draw, 2, 3)
    q, k, v = projected(net, x, h * SQUARE, h * SQUARE, h * SQUARE)
    split = net.ints(0, 3, h, SQUARE)
    heads = [net.op("Transpose", net.op("Reshape", t, split), perm=[0, 2, 1, 3]) for t in (q, k, v)]
    y = net.op("Transpose", net.op("Attention", *heads), perm=[0, 2, 1, 3])
    read(net, net.op("Reshape", y, net.ints(0, 3, h * SQUARE)), h * SQUARE)
    return net.output(net.op("MatMul", k, net.weight(h * SQUARE, 2))), [h]


@case("Attention/cached")
def attention_cached(draw: Draw) -> tuple[Net, list[int]]:
    """Caches are inputs of the model, which pin what they hold; scores are given out."""
    net, x = tokens(draw, 23)
    q, k, v = projected(net, x, 8, 4, 6)
    past = net.input("N", 2, 2, 2), net.input("N", 2, 2, 3)
    y = net.ops("Attention", q, k, v, "", *past, q_num_heads=4, kv_num_heads=2, outputs=4)
    present = net.op("Identity", y[1]), net.op("Identity", y[2])
    return net.output(net.op("MatMul", y[0], net.weight(12, 2)), *present, net.op("Identity", y[3])), []


@case("RotaryEmbedding")
def rotary_embedding(draw: Draw) -> tuple[Net, list[int]]:
    """Halves and neighbours, a part of the width or all of it, heads in the axis or beside it."""
    net, x = tokens(draw, 23)
    h, pairs, rest, interleaved = size(draw, 2, 6), 2, draw(st.sampled_from([0, 3])), draw(st.integers(0, 1))
    width = 2 * pairs + rest
    q, k, v = projected(net, x, h * width, h * width, h)
    attrs = {"num_heads": h, "interleaved": interleaved, **({"rotary_embedding_dim": 2 * pairs} if rest else {})}
    ids, tables = net.input("N", 3, kind=TensorProto.INT64), [net.weight(5, pairs), net.weight(5, pairs)]
    q, k = (net.op("RotaryEmbedding", t, *tables, ids, **attrs) for t in (q, k))
    y = net.op("Attention", q, k, v, q_num_heads=h, kv_num_heads=h, scale=0.5)
    return read(net, y, h), [h]


@case("RotaryEmbedding/angles")
def rotary_embedding_angles(draw: Draw) -> tuple[Net, list[int]]:
    """Pairs go as one, with their angles; what is not rotated goes by itself."""
    net, x = tokens(draw, 23)
    h, pairs, rest, interleaved = 2, size(draw, 3, 5), draw(st.sampled_from([0, 4])), draw(st.integers(0, 1))
    width = 2 * pairs + rest
    (q,) = projected(net, x, h * width)
    attrs = {"num_heads": h, "interleaved": interleaved, **({"rotary_embedding_dim": 2 * pairs} if rest else {})}
    ids, tables = net.input("N", 3, kind=TensorProto.INT64), [net.weight(5, pairs), net.weight(5, pairs)]
    q = net.op("RotaryEmbedding", q, *tables, ids, **attrs)
    return read(net, net.op("Relu", q), h * width), [pairs, *([rest] if rest else [])]


@case("SimplifiedLayerNormalization")
def simplified_layer_normalization(draw: Draw) -> tuple[Net, list[int]]:
    """Normalized over the width, which stays."""
    net, x = tokens(draw, 21)
    n = size(draw)
    (h,) = projected(net, x, n)
    h = net.op("SimplifiedLayerNormalization", h, net.weight(n), epsilon=1e-5)
    return read(net, h, n), []


@pytest.mark.parametrize("name", CASES[__name__])
def test_law(name: str) -> None:
    check_case(__name__, name)


def scored(scale: float | None) -> Net:
    """Attention of two heads of width 16, whose keys are read by something else too."""
    net = Net(23)
    x = net.input("N", 3, 4)
    q, k, v = (net.op("MatMul", x, net.weight(4, n, name=f"w{name}")) for name, n in (("q", 32), ("k", 32), ("v", 2)))
    attrs = {} if scale is None else {"scale": scale}
    y = net.op("Attention", q, k, v, q_num_heads=2, kv_num_heads=2, **attrs)
    return net.output(net.op("MatMul", y, net.weight(2, 2)), net.op("MatMul", k, net.weight(32, 2)))


@pytest.mark.parametrize(("scale", "written"), [(None, 0.25), (0.5, None)])
def test_the_scale_stays_what_the_width_implied(scale: float | None, written: float | None) -> None:
    units = find_units(scored(scale).graph())
    (width,) = (name for name, group in units.groups.items() if group.size == 16)
    plan = units.plan({width: np.arange(16) % 3 > 0})
    assert [(n.attribute, n.value) for n in plan.numbers] == ([("scale", written)] if written else [])
    compare(units, plan)


def test_the_scale_is_not_written_when_only_heads_go() -> None:
    units = find_units(scored(None).graph())
    (heads,) = (name for name, group in units.groups.items() if group.size == 2)
    plan = units.plan({heads: np.array([False, True])})
    assert {(n.attribute, n.value) for n in plan.numbers} == {("q_num_heads", 1), ("kv_num_heads", 1)}


@pytest.mark.parametrize("stated", [False, True])
def test_heads_that_are_not_stated_pin(stated: bool) -> None:
    net = Net(23)
    q, k, v = projected(net, net.input("N", 3, WIDTH), 4, 4, 4)
    attrs = {"q_num_heads": 2, "kv_num_heads": 2} if stated else {}
    graph = read(net, net.op("Attention", q, k, v, **attrs), 4).graph()
    shapes = {tensor: (2, 3, 4) for tensor in ("x0", q, k, v, "attention3")} | {"matmul4": (2, 3, 2)}
    shapes |= {name: array.shape for name, array in graph.constants.items()}
    axes = infer(graph, Observation(shapes, frozenset(), {})).axes["attention3"]
    reasons = {leaf.kept.because for leaf in leaves(axes[2]) if leaf.kept}
    assert reasons == (set() if stated else {"the number of heads is not stated"})
