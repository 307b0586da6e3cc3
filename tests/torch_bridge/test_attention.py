"""Attention as one operator, and the operators that ONNX Runtime fuses around it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from builders import Net
from onnxprune.errors import BridgeError
from onnxprune.runtime import Session
from onnxprune.torch_bridge import inputs_of, missing_operators, to_onnx, to_torch, untouched_parameters
from onnxprune.torch_bridge.base import MICROSOFT
from onnxprune.torch_bridge.parity import difference
from torch_bridge.parity import TIGHT, Case, assert_case, assert_parity, case, weight

TOKENS = (2, 3, 8)
MASK = np.tril(np.ones((3, 3), bool))
IDS = np.array([[0, 1, 2], [3, 0, 1]], np.int64)


def ints(*values: Any) -> np.ndarray:
    """A constant of 32-bit integers."""
    return np.array(values, np.int32)


def microsoft(op: str, *inputs: Any, **attrs: Any) -> Case:
    """A case of ONNX Runtime's own operators."""
    return case(op, *inputs, domain=MICROSOFT, **attrs)


def heads(op: str, *inputs: Any, kv: int = 2, opset: int = 23, **attrs: Any) -> Case:
    """A case of ONNX's Attention with heads in the last axis."""
    return case(op, *inputs, opset=opset, q_num_heads=4, kv_num_heads=kv, **attrs)


GROUPED = TOKENS, (2, 5, 4), (2, 5, 6)
CACHED = (2, 3, 8), (2, 3, 4), (2, 3, 6), None, (2, 2, 4, 2), (2, 2, 4, 3)
ROTARY = weight(5, 2), weight(5, 2, seed=8)

CASES = [
    *(heads("Attention", TOKENS, TOKENS, (2, 3, 4), kv=4, opset=opset) for opset in (23, 24)),
    heads("Attention", *GROUPED, scale=0.3),
    heads("Attention", TOKENS, TOKENS, TOKENS, kv=4, is_causal=1),
    heads("Attention", TOKENS, TOKENS, TOKENS, MASK, kv=4),
    heads("Attention", TOKENS, TOKENS, TOKENS, weight(4, 3, 3), kv=4, softcap=1.5),
    heads("Attention", *CACHED, outputs=3, is_causal=1),
    *(heads("Attention", TOKENS, TOKENS, TOKENS, kv=4, outputs=4, qk_matmul_output_mode=mode) for mode in (0, 3)),
    heads("Attention", TOKENS, TOKENS, TOKENS, None, None, None, np.array([3, 1]), kv=4, opset=24),
    case("Attention", (2, 4, 3, 5), (2, 2, 6, 5), (2, 2, 6, 7), opset=23),
    case("RotaryEmbedding", (2, 3, 8), *ROTARY, IDS, opset=23, num_heads=2),
    case("RotaryEmbedding", (2, 2, 3, 7), *ROTARY, IDS, opset=23, interleaved=1, rotary_embedding_dim=4),
    case("RotaryEmbedding", (2, 2, 3, 4), weight(2, 3, 2), weight(2, 3, 2), opset=23),
    microsoft("Attention", TOKENS, weight(8, 24), weight(24), num_heads=4),
    microsoft("Attention", TOKENS, weight(8, 20), weight(20), num_heads=2, qkv_hidden_sizes=[8, 8, 4], scale=0.3),
    microsoft("Attention", TOKENS, weight(8, 24), weight(24), ints(3, 1), num_heads=2),
    microsoft("Attention", TOKENS, weight(8, 24), weight(24), ints(3, 2, 1, 0), num_heads=2),
    microsoft("Attention", TOKENS, weight(8, 24), weight(24), ints([1, 1, 0], [1, 1, 1]), num_heads=2),
    microsoft("Attention", TOKENS, weight(8, 24), weight(24), None, None, weight(2, 2, 3, 3), num_heads=2),
    microsoft(
        *("Attention", TOKENS, weight(8, 24), weight(24), None, (2, 2, 4, 5, 2)),
        **{"num_heads": 4, "unidirectional": 1, "outputs": 2},
    ),
    microsoft("MultiHeadAttention", TOKENS, (2, 5, 8), (2, 5, 4), num_heads=2),
    microsoft("MultiHeadAttention", TOKENS, TOKENS, TOKENS, weight(24), num_heads=2, outputs=3, scale=0.3),
    microsoft("MultiHeadAttention", TOKENS, (2, 2, 5, 4), (2, 2, 5, 4), num_heads=2),
    microsoft("MultiHeadAttention", TOKENS, TOKENS, TOKENS, None, ints([1, 1, 0], [1, 1, 1]), num_heads=2),
    microsoft("MultiHeadAttention", TOKENS, TOKENS, TOKENS, None, ints(3, 1, 0, 3, 6, 0, 3, 6), num_heads=2),
    microsoft(
        *("MultiHeadAttention", TOKENS, TOKENS, TOKENS, None, None, weight(1, 2, 3, 3)),
        **{"num_heads": 2, "unidirectional": 1},
    ),
    microsoft(
        *("MultiHeadAttention", TOKENS, TOKENS, TOKENS, None, None, None, (2, 2, 5, 4), (2, 2, 5, 4)),
        **{"num_heads": 2, "outputs": 3},
    ),
    microsoft(
        *(
            "GroupQueryAttention",
            (2, 3, 32),
            (2, 3, 16),
            (2, 3, 16),
            None,
            None,
            ints(2, 1),
            np.array(3, np.int32),
        ),
        **{"num_heads": 4, "kv_num_heads": 2, "outputs": 1},
    ),
    microsoft(
        *("GroupQueryAttention", (2, 3, 128), None, None, None, None, ints(2, 2), np.array(3, np.int32)),
        *(weight(9, 8), weight(9, 8, seed=8)),
        **{"num_heads": 4, "kv_num_heads": 2, "outputs": 3, "do_rotary": 1, "local_window_size": 2},
    ),
    microsoft(
        *("GroupQueryAttention", (2, 1, 128), None, None, (2, 2, 4, 16), (2, 2, 4, 16), ints(4, 4)),
        *(np.array(5, np.int32), weight(9, 8), weight(9, 8, seed=8)),
        **{"num_heads": 4, "kv_num_heads": 2, "outputs": 3, "do_rotary": 1, "rotary_interleaved": 1, "softcap": 2.0},
    ),
    microsoft(
        *("GroupQueryAttention", (2, 3, 64), None, None, None, None, ints(2, 2), np.array(3, np.int32)),
        *(None, None, None, weight(1, 4, 3, 3), weight(4)),
        **{"num_heads": 4, "kv_num_heads": 2, "outputs": 1, "softcap": 2.0},
    ),
    microsoft(
        *("GroupQueryAttention", (2, 3, 64), None, None, None, None, ints(2, 2), np.array(3, np.int32)),
        **{"num_heads": 4, "kv_num_heads": 2, "outputs": 3, "smooth_softmax": 1},
    ),
    *(
        microsoft(
            *("GroupQueryAttention", (2, 3, 64), None, None, None, None, ints(2, 2), np.array(3, np.int32)),
            *(None, None, None, weight(1, 4, 3, 3), weight(4)),
            **{"num_heads": 4, "kv_num_heads": 2, "outputs": 4, "softcap": 2.0, "qk_output": which},
        )
        for which in (1, 2)
    ),
    microsoft("RotaryEmbedding", (2, 3, 8), IDS, *ROTARY),
    microsoft("RotaryEmbedding", (2, 3, 10), np.array([1]), *ROTARY, num_heads=2, rotary_embedding_dim=4),
    microsoft("RotaryEmbedding", (2, 2, 3, 4), IDS, *ROTARY, interleaved=1),
    case("SimplifiedLayerNormalization", TOKENS, weight(8), epsilon=1e-2),
    microsoft("SkipLayerNormalization", TOKENS, TOKENS, weight(8), weight(8)),
    microsoft("SkipSimplifiedLayerNormalization", TOKENS, TOKENS, weight(8), weight(8), epsilon=1e-2),
    microsoft(
        "EmbedLayerNormalization",
        *(ints([0, 1, 2], [2, 1, 0]), ints([0, 0, 1], [1, 1, 1])),
        *(weight(4, 8), weight(5, 8), weight(2, 8), weight(8), weight(8), ints([1, 1, 0], [1, 1, 1])),
        outputs=3,
        fed=(0, 1, 7),
    ),
    microsoft(
        "EmbedLayerNormalization",
        ints([0, 1, 2], [2, 1, 0]),
        None,
        weight(4, 8),
        weight(5, 8),
        None,
        weight(8),
        weight(8),
        outputs=2,
        fed=(0,),
    ),
]


@pytest.mark.parametrize("given", CASES, ids=str)
def test_equals_onnxruntime(given: Case) -> None:
    assert_case(given)


def test_scores_of_multi_head_attention() -> None:
    net = Net(microsoft=True)
    x = net.input(*TOKENS)
    net.output(*net.ops("MultiHeadAttention", x, x, x, outputs=4, domain=MICROSOFT, num_heads=2))
    assert_parity(net.graph(), {"x0": weight(*TOKENS)})


def test_rows_of_different_lengths_go_on_behind_their_own_caches() -> None:
    net = Net(microsoft=True)
    inputs = net.input(2, 1, 64), "", "", net.input(2, 2, 6, 8), net.input(2, 2, 6, 8)
    lengths = net.constant(np.array([4, 3], np.int32)), net.constant(np.array(5, np.int32))
    attrs = {"num_heads": 4, "kv_num_heads": 2, "outputs": 3}
    net.output(net.op("GroupQueryAttention", *inputs, *lengths, domain=MICROSOFT, **attrs))
    assert_parity(net.graph(), {"x0": weight(2, 1, 64), "x1": weight(2, 2, 6, 8), "x2": weight(2, 2, 6, 8, seed=8)})


@pytest.mark.parametrize(
    ("op", "trained"),
    [
        ("Attention", {"c1", "c2"}),
        ("MultiHeadAttention", {"c3"}),
        ("RotaryEmbedding", set()),
        ("SimplifiedLayerNormalization", {"c1"}),
        ("SkipLayerNormalization", {"c2", "c3"}),
        ("SkipSimplifiedLayerNormalization", {"c2", "c3"}),
        ("EmbedLayerNormalization", {"c2", "c3", "c4", "c5", "c6"}),
    ],
)
def test_weights_are_parameters_under_their_names(op: str, trained: set[str]) -> None:
    cases = [c for c in CASES if c.op == op and (c.domain or op.startswith("Simplified"))]
    given = next(c for c in cases if c.op != "MultiHeadAttention" or isinstance(c.inputs[-1], np.ndarray))
    graph, feeds = given.model()
    module = to_torch(graph, feeds)
    assert {name for name, _ in module.named_parameters()} == trained
    assert untouched_parameters(module, feeds) == []


def test_normalized_queries_and_keys_equal_those_of_the_normalization_alone() -> None:
    """ONNX Runtime normalizes inside of attention on the GPU only."""
    attrs = {"num_heads": 4, "kv_num_heads": 2, "do_rotary": 1}
    gammas = weight(16), weight(16, seed=9)

    def net(*, inside: bool) -> Net:
        made = Net(microsoft=True)
        q, k, v = (made.input(2, 3, n) for n in (64, 32, 32))
        scales = [made.constant(gamma) for gamma in gammas]
        lengths = made.constant(ints(2, 2)), made.constant(np.array(3, np.int32))
        tables = made.constant(weight(9, 8)), made.constant(weight(9, 8, seed=8))

        def normalized(x: str, scale: str) -> str:
            each = made.op("Reshape", x, made.ints(2, 3, -1, 16))
            each = made.op("SimplifiedLayerNormalization", each, scale, epsilon=1e-6)
            return made.op("Reshape", each, made.ints(2, 3, -1))

        if not inside:
            q, k = normalized(q, scales[0]), normalized(k, scales[1])
        behind = ["", "", "", "", "", *scales] if inside else []
        inputs = q, k, v, "", "", *lengths, *tables, *behind
        return made.output(*made.ops("GroupQueryAttention", *inputs, domain=MICROSOFT, outputs=3, **attrs))

    feeds = {"x0": weight(2, 3, 64), "x1": weight(2, 3, 32, seed=8), "x2": weight(2, 3, 32, seed=9)}
    assert_same(net(inside=True), net(inside=False), feeds)
    module = to_torch(net(inside=True).graph())
    assert len(list(module.parameters())) == 2
    assert untouched_parameters(module, feeds) == []


@pytest.mark.parametrize("number", [2, 3])
def test_packed_queries_keys_and_values_equal_those_apart(number: int) -> None:
    """ONNX Runtime takes them in one tensor on the GPU only."""

    def net(*, packed: bool) -> Net:
        made = Net(microsoft=True)
        x = made.input(2, 3, 4, number, 2)
        first = [made.input(2, 3, 8)] if number == 2 else []
        apart = made.ops("Split", x, outputs=number, axis=3, num_outputs=number)
        parts = [x] if packed else [made.op("Reshape", part, made.ints(2, 3, 8)) for part in apart]
        return made.output(made.op("MultiHeadAttention", *first, *parts, domain=MICROSOFT, num_heads=4))

    feeds = {"x0": weight(2, 3, 4, number, 2), **({"x1": weight(2, 3, 8, seed=8)} if number == 2 else {})}
    assert_same(net(packed=True), net(packed=False), feeds)


def assert_same(ours: Net, theirs: Net, feeds: dict[str, np.ndarray]) -> None:
    """Asserts that the module of one network gives what ONNX Runtime gives for another."""
    expected = Session(theirs.graph().message(), device="cpu").run(feeds)
    graph = ours.graph()
    with torch.no_grad():
        found = to_torch(graph)(*inputs_of(graph.inputs, feeds))
    assert all(difference(a.numpy(), b) <= TIGHT for a, b in zip(found, expected, strict=True))


def test_sinks_are_parameters() -> None:
    graph, feeds = next(c for c in CASES if c.op == "GroupQueryAttention" and len(c.inputs) == 12).model()
    module = to_torch(graph, feeds)
    assert "c11" in dict(module.named_parameters())
    assert untouched_parameters(module, feeds) == []


def test_fused_attention_learns_and_goes_back() -> None:
    graph, feeds = CASES[[str(c) for c in CASES].index("Attention-21-num_heads=4")].model()
    module = to_torch(graph, feeds)
    module(*inputs_of(graph.inputs, feeds))[0].square().sum().backward()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter -= 0.01 * parameter.grad
    back = to_onnx(module, graph, feeds)
    assert not np.allclose(back.constants["c1"], graph.constants["c1"])
    assert_parity(back, feeds)


@pytest.mark.parametrize(
    ("op", "attrs", "reason"),
    [
        ("Attention", {"num_heads": 2, "do_rotary": 1}, "do_rotary"),
        ("GroupQueryAttention", {"num_heads": 2, "kv_num_heads": 2, "k_quant_type": "PER_TENSOR"}, "k_quant_type"),
    ],
)
def test_what_the_bridge_lacks_is_said(op: str, attrs: dict[str, Any], reason: str) -> None:
    net = Net(microsoft=True)
    x = net.input(*TOKENS)
    graph = net.output(net.op(op, x, x, domain=MICROSOFT, **attrs)).graph()
    assert missing_operators(graph) == {f"com.microsoft.{op} with {reason}": [f"{op.lower()}0_node"]}


def test_inputs_that_the_bridge_does_not_know_are_said() -> None:
    net = Net(microsoft=True)
    x = net.input(*TOKENS)
    past = ["" for _ in range(5)] + [net.constant(ints(2))]
    graph = net.output(net.op("MultiHeadAttention", x, x, x, *past, domain=MICROSOFT, num_heads=1)).graph()
    reason = "com.microsoft.MultiHeadAttention with more than 8 inputs"
    assert missing_operators(graph) == {reason: ["multiheadattention0_node"]}


def test_an_unknown_mask_is_refused() -> None:
    net = Net(microsoft=True)
    x = net.input(*TOKENS)
    mask = net.constant(np.ones((2, 1, 3, 3), np.int32))
    y = net.op("Attention", x, net.weight(8, 24), net.weight(24), mask, domain=MICROSOFT, num_heads=2)
    module = to_torch(net.output(y).graph())
    with pytest.raises(BridgeError, match=r"^the bridge knows no attention mask of shape \(2, 1, 3, 3\)$"):
        module(torch.zeros(TOKENS))
