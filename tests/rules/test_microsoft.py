"""The law for ONNX Runtime's own operators."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from builders import Net
from laws import check_law
from onnxprune.axes import leaves
from onnxprune.grouping import find_units
from onnxprune.inference import infer
from onnxprune.observation import Observation
from rules.cases import CASES, Draw, case, check_case, maps, read, rows, size


def fused(net: Net) -> Net:
    """The same net, importing ONNX Runtime's operators."""
    net.imports.append(helper.make_opsetid("com.microsoft", 1))
    return net


@case("com.microsoft:Gelu", "com.microsoft:FastGelu", "com.microsoft:QuickGelu")
def microsoft_gelu(draw: Draw, op: str) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    return read(fused(net), net.op(op, h, domain="com.microsoft"), n), [n]


@case("com.microsoft:FusedConv")
def fused_conv(draw: Draw) -> tuple[Net, list[int]]:
    """A convolution with its activation, and with a branch that is added before it."""
    net, h, n = maps(draw)
    m = size(draw)
    h = net.op("Relu", h)
    sides = [net.conv("x0", 2, m)] if draw(st.booleans()) else []
    w, b = net.weight(m, n, 1, 1), net.weight(m)
    h = net.op("FusedConv", h, w, b, *sides, domain="com.microsoft", activation="Relu", kernel_shape=[1, 1])
    return read(fused(net), h, m), [n, m]


@case("com.microsoft:FusedGemm")
def fused_gemm(draw: Draw) -> tuple[Net, list[int]]:
    net, h, n = rows(draw)
    m = size(draw)
    h = net.op("FusedGemm", h, net.weight(n, m), net.weight(m), domain="com.microsoft", activation="Relu")
    return fused(net).output(net.dense(h, m, 2)), [n, m]


@case("com.microsoft:BiasGelu", "com.microsoft:FastGelu/bias")
def biased_gelu(draw: Draw, op: str) -> tuple[Net, list[int]]:
    """The bias goes with what it is added to."""
    net, h, n = rows(draw)
    h = net.op(op, h, net.weight(n), domain="com.microsoft")
    return fused(net).output(net.dense(h, n, 2)), [n]


@case("com.microsoft:FusedMatMul")
def fused_matmul(draw: Draw) -> tuple[Net, list[int]]:
    """A weight that is stored transposed, behind an activation that is."""
    n, m, trans_a, trans_b = size(draw), size(draw), draw(st.integers(0, 1)), draw(st.integers(0, 1))
    net = Net(seed=draw(st.integers(0, 99)))
    h = net.op("MatMul", net.input(2, 3, 4), net.weight(4, n))
    h = net.op("Transpose", h, perm=[0, 2, 1]) if trans_a else h
    w = net.weight(*((m, n) if trans_b else (n, m)))
    h = net.op("FusedMatMul", h, w, domain="com.microsoft", transA=trans_a, transB=trans_b, alpha=0.5)
    return fused(net).output(net.op("MatMul", h, net.weight(m, 2))), [n, m]


@case("com.microsoft:FusedMatMul/heads")
def fused_matmul_heads(draw: Draw) -> tuple[Net, list[int]]:
    """Heads in front, where one operand has its rows in front of them: the scores of attention, whose width can go."""
    h, width = size(draw, 2, 5), size(draw, 2, 5)
    net = Net(seed=draw(st.integers(0, 99)))
    x = net.input(2, 3, 4)
    q, k = (net.op("MatMul", x, net.weight(4, h * width)) for _ in "qk")
    q, k = (net.op("Reshape", t, net.ints(2, 3, h, width)) for t in (q, k))
    turned = net.op("Transpose", q, perm=[1, 0, 2, 3]), net.op("Transpose", k, perm=[0, 2, 1, 3])
    scores = net.op("FusedMatMul", *turned, domain="com.microsoft", transBatchA=1, transB=1)
    return fused(net).output(scores), [width]


@case("com.microsoft:MatMulNBits")
def matmul_n_bits(draw: Draw) -> tuple[Net, list[int]]:
    """A weight stored in blocks of 4 bits keeps its inputs and its outputs."""
    net, h, n = rows(draw, hidden=16)
    packed = net.constant(net.random.integers(0, 256, (4, 1, 8)).astype(np.uint8))
    attrs = {"K": n, "N": 4, "bits": 4, "block_size": 16}
    h = net.op("MatMulNBits", net.op("Relu", h), packed, net.weight(4), domain="com.microsoft", **attrs)
    return fused(net).output(net.dense(h, 4, 2)), []


def tokens(draw: Draw, width: int = 8) -> tuple[Net, str]:
    """A batch of tokens."""
    net = Net(seed=draw(st.integers(0, 99)), microsoft=True)
    return net, net.input(2, 3, width)


def projected(net: Net, y: str, width: int) -> Net:
    """Contracts the result of attention and gives it out."""
    return net.output(net.op("MatMul", y, net.weight(width, 2)))


@case("com.microsoft:Attention")
def fused_attention(draw: Draw) -> tuple[Net, list[int]]:
    """Queries, keys and values from one weight; parts stated or equal, causal or not, with a bias on the scores."""
    net, x = tokens(draw)
    h, d, stated = size(draw, 2, 5), size(draw, 1, 4), draw(st.booleans())
    e = size(draw, 1, 4) if stated else d
    (first,) = (net.op("Relu", net.op("MatMul", x, net.weight(8, n))) for n in (5,))
    attrs = {"num_heads": h, "unidirectional": draw(st.integers(0, 1))}
    attrs |= {"qkv_hidden_sizes": [h * d, h * d, h * e]} if stated else {}
    total = h * (2 * d + e)
    bias = ["", "", net.weight(2, h, 3, 3)] if draw(st.booleans()) else []
    w, b = net.weight(5, total), net.weight(total)
    y = net.op("Attention", first, w, b, *bias, domain="com.microsoft", **attrs)
    return projected(net, y, h * e), [5, h]


@case("com.microsoft:Attention/cached")
def fused_attention_cached(draw: Draw) -> tuple[Net, list[int]]:
    """Caches are inputs and outputs of the model, and keep the heads that they hold."""
    net, x = tokens(draw)
    past = net.input(2, 2, 3, 4, 5)
    inputs = x, net.weight(8, 45), net.weight(45), "", past
    y = net.ops("Attention", *inputs, domain="com.microsoft", num_heads=3, unidirectional=1, outputs=2)
    return projected(net, y[0], 15).output(y[1]), []


@case("com.microsoft:MultiHeadAttention")
def multi_head_attention(draw: Draw) -> tuple[Net, list[int]]:
    """Queries, keys and values apart; with a bias, which hides the width of queries and keys, or without."""
    net, x = tokens(draw)
    h, d, e, biased = size(draw, 2, 5), size(draw, 1, 4), size(draw, 1, 4), draw(st.booleans())
    q, k, v = (net.op("MatMul", x, net.weight(8, n)) for n in (h * d, h * d, h * e))
    bias = [net.weight(h * (2 * d + e))] if biased else []
    y = net.op("MultiHeadAttention", q, k, v, *bias, domain="com.microsoft", num_heads=h)
    return projected(net, y, h * e), [h]


@case("com.microsoft:MultiHeadAttention/width")
def multi_head_attention_width(draw: Draw) -> tuple[Net, list[int]]:
    """Keys that something else reads too, so that their width can go; the scale stays what it was."""
    net, x = tokens(draw)
    h, d, biased = 2, size(draw, 3, 6), draw(st.booleans())
    q, k, v = (net.op("MatMul", x, net.weight(8, n)) for n in (h * d, h * d, h))
    bias = [net.weight(h * (2 * d + 1))] if biased else []
    scale = draw(st.sampled_from([{}, {"scale": 0.0}, {"scale": 0.5}]))
    y = net.op("MultiHeadAttention", q, k, v, *bias, domain="com.microsoft", num_heads=h, **scale)
    projected(net, k, h * d)
    return projected(net, y, h), [2]


@case("com.microsoft:MultiHeadAttention/crossed")
def multi_head_attention_crossed(draw: Draw) -> tuple[Net, list[int]]:
    """Keys and values with heads on their own axis, as decoders keep those of the encoder."""
    net, x = tokens(draw)
    h, d = size(draw, 3, 5), 2
    q, k, v = (net.op("MatMul", x, net.weight(8, h * d)) for _ in "qkv")
    k, v = (net.op("Reshape", t, net.ints(2, 3, h, d)) for t in (k, v))
    k, v = (net.op("Transpose", t, perm=[0, 2, 1, 3]) for t in (k, v))
    y = net.op("MultiHeadAttention", q, k, v, domain="com.microsoft", num_heads=h)
    return projected(net, y, h * d), [h]


@case("com.microsoft:GroupQueryAttention")
def group_query_attention(draw: Draw) -> tuple[Net, list[int]]:
    """Key-value heads and the query heads that share one; packed or apart, rotated or not, with a sink or without."""
    net, x = tokens(draw)
    k, g, packed, rotated = size(draw, 2, 4), size(draw, 1, 4), draw(st.booleans()), draw(st.booleans())
    d = 16 if rotated else 8  # ONNX Runtime wants multiples of these
    widths = (k * g * d, k * d, k * d)
    weights = [net.op("MatMul", x, net.weight(8, n)) for n in ([sum(widths)] if packed else widths)]
    weights += ["", ""] if packed else []
    lengths = net.constant(np.full(2, 2, np.int32)), net.constant(np.array(3, np.int32))
    tables = [net.weight(5, d // 2), net.weight(5, d // 2)] if rotated else ["", ""]
    sink = ["", "", net.weight(k * g)] if draw(st.booleans()) else []
    attrs = {"num_heads": k * g, "kv_num_heads": k, "do_rotary": int(rotated)}
    inputs = *weights, "", "", *lengths, *tables, *sink
    y = net.op("GroupQueryAttention", *inputs, domain="com.microsoft", **attrs, outputs=3)
    return projected(net, y, k * g * d), [k]


@case("com.microsoft:RotaryEmbedding")
def rotary_embedding(draw: Draw) -> tuple[Net, list[int]]:
    """Pairs of queries and keys; the number of heads stated or implied by the tables."""
    net, x = tokens(draw)
    h, pairs, interleaved, stated = size(draw, 3, 5), 2, draw(st.integers(0, 1)), draw(st.booleans())
    rest = draw(st.sampled_from([0, 3])) if stated else 0
    width = 2 * pairs + rest
    q, k, v = (net.op("MatMul", x, net.weight(8, n)) for n in (h * width, h * width, h))
    attrs = {"interleaved": interleaved, **({"num_heads": h} if stated else {})}
    attrs |= {"rotary_embedding_dim": 2 * pairs} if rest else {}
    ids = net.constant(np.array([[0, 1, 2], [2, 0, 1]], np.int64))
    tables = net.weight(5, pairs), net.weight(5, pairs)
    q, k = (net.op("RotaryEmbedding", t, ids, *tables, domain="com.microsoft", **attrs) for t in (q, k))
    y = net.op("MultiHeadAttention", q, k, v, domain="com.microsoft", num_heads=h)
    return projected(net, y, h), [h]


@case("com.microsoft:RotaryEmbedding/angles")
def rotary_embedding_angles(draw: Draw) -> tuple[Net, list[int]]:
    """Pairs go as one, with their angles; what is not rotated goes by itself."""
    net, x = tokens(draw)
    h, pairs, rest, interleaved = 2, size(draw, 3, 5), draw(st.sampled_from([0, 4])), draw(st.integers(0, 1))
    width = 2 * pairs + rest
    attrs = {"num_heads": h, "interleaved": interleaved, **({"rotary_embedding_dim": 2 * pairs} if rest else {})}
    ids = net.constant(np.array([[0, 1, 2], [2, 0, 1]], np.int64))
    q = net.op("MatMul", x, net.weight(8, h * width))
    q = net.op("RotaryEmbedding", q, ids, net.weight(5, pairs), net.weight(5, pairs), domain="com.microsoft", **attrs)
    return projected(net, net.op("Relu", q), h * width), [pairs, *([rest] if rest else [])]


@case("com.microsoft:SkipLayerNormalization", "com.microsoft:SkipSimplifiedLayerNormalization")
def skip_layer_normalization(draw: Draw, op: str) -> tuple[Net, list[int]]:
    """The width that is normalized over stays; the sum comes out too."""
    net, x = tokens(draw)
    n, m = size(draw), size(draw)
    h = net.op("MatMul", net.op("Relu", net.op("MatMul", x, net.weight(8, m))), net.weight(m, n))
    beta = [net.weight(n)] if op == "SkipLayerNormalization" else []
    skip = net.op("MatMul", x, net.weight(8, n))
    y = net.ops(op, h, skip, net.weight(n), *beta, net.weight(n), domain="com.microsoft", outputs=4)
    return projected(net, y[0], n).output(net.op("MatMul", y[3], net.weight(n, 2))), [m]


@case("com.microsoft:EmbedLayerNormalization")
def embed_layer_normalization(draw: Draw) -> tuple[Net, list[int]]:
    """Rows of tables, summed and normalized over their width, which stays."""
    net = Net(seed=draw(st.integers(0, 99)), microsoft=True)
    n = size(draw)
    ids = [net.constant(np.array([[0, 1, 2]], np.int32)), net.constant(np.array([[0, 1, 1]], np.int32))]
    tables = net.weight(4, n), net.weight(3, n), net.weight(2, n)
    y = net.op(
        "EmbedLayerNormalization", *ids, *tables, net.weight(n), net.weight(n), domain="com.microsoft", outputs=2
    )
    y = net.op("Add", y, net.op("MatMul", net.input(1, 3, 2), net.weight(2, n)))
    return projected(net, y, n), []


@pytest.mark.parametrize("name", CASES[__name__])
def test_law(name: str) -> None:
    check_case(__name__, name)


def test_packed_queries_keys_and_values_stay_whole() -> None:
    net = Net(microsoft=True)
    qkv = net.op("Reshape", net.op("MatMul", net.input(2, 3, 8), net.weight(8, 24)), net.ints(2, 3, 4, 3, 2))
    graph = net.output(net.op("MultiHeadAttention", qkv, domain="com.microsoft", num_heads=4)).graph()
    shapes = {"x0": (2, 3, 8), "matmul0": (2, 3, 24), "reshape1": (2, 3, 4, 3, 2), "multiheadattention2": (2, 3, 8)}
    shapes |= {name: array.shape for name, array in graph.constants.items()}
    axis = infer(graph, Observation(shapes, frozenset(), {})).axes["matmul0"][2]
    reasons = {leaf.kept.because if leaf.kept else "" for leaf in leaves(axis)}
    assert reasons == {"MultiHeadAttention has queries, keys and values in one tensor"}


def residual(op: str) -> Net:
    """A stream of width 6 under each of the fused normalizations."""
    net = Net(microsoft=True)
    x = net.input(2, 3, 4)
    h, gamma, beta = net.op("MatMul", x, net.weight(4, 6)), net.weight(6), net.weight(6)
    if op == "EmbedLayerNormalization":
        ids = net.constant(np.array([[0, 1, 2], [3, 0, 1]], np.int32))
        tables = net.weight(4, 6), net.weight(3, 6)
        y = net.op(op, ids, "", *tables, "", gamma, beta, domain="com.microsoft", outputs=2)
        y = net.op("Add", y, h)
    elif op == "SimplifiedLayerNormalization":
        y = net.op(op, h, gamma)
    else:
        skip = net.op("MatMul", x, net.weight(4, 6))
        inputs = [h, skip, gamma, *([beta] if op == "SkipLayerNormalization" else [])]
        y = net.op(op, *inputs, net.weight(6), domain="com.microsoft")
    return projected(net, y, 6)


@pytest.mark.parametrize(
    "op",
    [
        "EmbedLayerNormalization",
        "SimplifiedLayerNormalization",
        "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
    ],
)
def test_residual_width_under_fused_normalization(op: str) -> None:
    @settings(max_examples=4, deadline=None, derandomize=True)
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        check_law(residual(op).graph(), data, [6], single=True, residual=True)

    assert not find_units(residual(op).graph()).groups
    holds()
