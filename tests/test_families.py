"""The law on one small network of each family, as exporters write them, and the groups that must be found in it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest

from onnxprune import find_units, remove, verify
from onnxprune.graph import from_proto
from outsider import check_constants
from zoo.base import DYNAMO, NEWEST, TORCHSCRIPT, feeds, member, zoo
from zoo.halving import Halved, halve

HEADS, FORWARD = {(4, "head"): 2, (80, "feed-forward unit"): 2}, {(80, "feed-forward unit"): 2}
GROUPED = {(3, "key-value head"): 2, **FORWARD}
RECURRENT = {(24, "hidden unit"): 2, (14, "neuron"): 1}

FOUND: dict[str, tuple[float, dict[tuple[int, str], int]]] = {
    "bert": (0.42, HEADS),
    "distilbert": (0.42, HEADS),
    "albert": (0.37, {(4, "head"): 1, (80, "feed-forward unit"): 1}),  # one layer, used twice
    "gpt2": (0.40, HEADS),
    "opt": (0.39, HEADS),
    "gpt_neox": (0.41, HEADS),
    "llama": (0.37, GROUPED),
    "qwen3": (0.37, GROUPED),
    "gemma": (0.37, GROUPED),
    "gemma3": (0.36, GROUPED),
    "mixtral": (0.43, GROUPED),
    "phi": (0.42, HEADS),
    "phi3": (0.43, {(2, "key-value head"): 2, **FORWARD}),
    "falcon": (0.37, HEADS),
    "falcon_grouped": (0.34, GROUPED),
    "olmo2": (0.34, {(10, "value width of each head"): 2, **FORWARD}),
    "bloom": (0.44, {(4, "head"): 1, (192, "feed-forward unit"): 2}),  # one table of slopes for both layers
    "modernbert": (0.46, HEADS),
    "deberta": (0.43, HEADS),
    "t5_encoder": (0.45, {(4, "head"): 1, (80, "feed-forward unit"): 2}),  # one table of biases for both layers
    "clip_text": (0.43, HEADS),
    "vit": (0.38, HEADS),
    "clip_vision": (0.38, HEADS),
    "segformer": (0.26, {(2, "head"): 1, (3, "head"): 1, (48, "channel"): 1, (72, "channel"): 1, (20, "channel"): 1}),
    "swin": (0.38, {(2, "head"): 2, (4, "head"): 1, (60, "feed-forward unit"): 2, (120, "feed-forward unit"): 1}),
    "convnext": (0.31, {(48, "feed-forward unit"): 1, (80, "feed-forward unit"): 2}),
    "mobilevit": (0.52, {(3, "head"): 9, (48, "feed-forward unit"): 2, (72, "feed-forward unit"): 4}),
    "whisper_encoder": (0.48, {(48, "channel"): 1, **HEADS}),
    "wav2vec2": (0.43, {(20, "channel"): 1, **HEADS}),
    "torch_encoder": (0.49, HEADS),
    "lstm": (0.71, RECURRENT),
    "lstm_bidirectional": (0.72, RECURRENT),
    "gru": (0.70, RECURRENT),
    "gru_bidirectional": (0.72, RECURRENT),
    "fused_attention": (0.48, {(4, "head"): 1, (80, "feed-forward unit"): 1}),
    "swiglu": (0.50, {(40, "feed-forward unit"): 1}),
    "swiglu_fused": (0.50, {(40, "feed-forward unit"): 1}),
    "experts": (0.48, {(width, "feed-forward unit"): 1 for width in (28, 32, 36)}),
    "experts_stacked": (0.49, {(40, "feed-forward unit"): 1}),
    "resnet20": (0.74, {(16, "channel"): 4, (32, "channel"): 4, (64, "channel"): 4}),
    "resnet50": (0.72, {(8, "channel"): 7, (256, "channel"): 1}),
    "mobilenet_v2": (0.65, {(640, "channel"): 1, (320, "channel"): 3}),
    "inception": (0.68, {(10, "channel"): 1, (11, "channel"): 2, (6, "channel"): 2}),
    "yolo": (0.73, {(22, "channel"): 1, (14, "channel"): 2, (15, "channel"): 2}),
    "tcn": (0.71, {(14, "channel"): 2, (18, "channel"): 2}),
}
"""The least share of parameters that must go with half of every group, and groups that must be among them."""

AGREE = (
    "bert",
    "gpt2",
    "llama",
    "falcon",
    "vit",
    "fused_attention",
    "torch_encoder",
    "lstm_bidirectional",
    "gru",
    "swiglu_fused",
)
"""Networks that are also exported by the slower exporter."""

OPERATORS = {
    "gpt2": {"Attention"},
    "vit": {"Attention"},
    "llama_placed": {"Attention", "RMSNormalization", "RotaryEmbedding"},
}
"""Networks that are also exported at an opset with operators for attention, and these operators."""

BOUND = {("torch_encoder", TORCHSCRIPT)}
"""Exports that run with the sizes of their example alone, which data must say."""


def halved(name: str, export: str = TORCHSCRIPT, attention: str = "") -> Halved:
    model = zoo()[name]
    chosen = attention or next(iter(model.attention), "")
    given = feeds(model)
    file = member(name, export, chosen)
    found = halve(file, given, sample=given if (name, export) in BOUND else None)
    check_constants(onnx.load_from_string(file), found.compact.proto(), found.plan.to_json())
    return found


@pytest.mark.parametrize("name", FOUND)
def test_half_of_every_group(name: str) -> None:
    share, groups = FOUND[name]
    found = halved(name)
    assert found.groups >= Counter(groups), found.groups
    assert found.removed >= share
    assert found.moved > 1e-3  # a result that equals the original would prove nothing


@pytest.mark.parametrize("name", AGREE)
def test_exporters_agree(name: str) -> None:
    """Also about which form of attention it has; figures may differ by a few constants."""
    forms = [(export, attention) for export in (TORCHSCRIPT, DYNAMO) for attention in zoo()[name].attention or ("",)]
    if len(forms) > 2:
        forms.remove((DYNAMO, "eager"))
    found = [halved(name, *form) for form in forms]
    assert all(other.groups == found[0].groups for other in found[1:])
    assert max(x.removed for x in found) - min(x.removed for x in found) < 0.01


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_for_attention_make_no_difference(name: str) -> None:
    model = onnx.load_from_string(member(name, NEWEST, "sdpa"))
    assert {node.op_type for node in model.graph.node} >= OPERATORS[name]
    found, spelled = halved(name, NEWEST, "sdpa"), halved(name, TORCHSCRIPT, "sdpa")
    assert found.groups == spelled.groups
    assert abs(found.removed - spelled.removed) < 0.01


@pytest.mark.parametrize("export", [TORCHSCRIPT, DYNAMO])
def test_heads_go_from_caches_of_a_plain_graph(export: str) -> None:
    graph = from_proto(onnx.load_from_string(member("decoder_cached", export)))
    assert "key-value head" not in {group.kind for group in find_units(graph).groups.values()}
    units = find_units(graph, allow_io=["head"])
    keep = {name: np.arange(group.size) != 1 for name, group in units.groups.items() if not group.instead_of}
    assert {(units.groups[name].size, units.groups[name].kind) for name in keep} == {*GROUPED}
    plan = units.plan(keep)
    compact = remove(graph, plan)
    given = feeds(zoo()["decoder_cached"], {"past": 6})
    assert verify(units, plan, compact, given) < 1e-5
    proto = compact.proto().graph
    shapes = [[axis.dim_value for axis in info.type.tensor_type.shape.dim] for info in (*proto.input, *proto.output)]
    assert [shape[1] for shape in shapes if len(shape) == 4] == [2, 2, 2, 2]
    assert {name: by[1] for name, by in plan.activations.items() if name in graph.inputs} == dict.fromkeys(
        ("past_key", "past_value"), (0, 2)
    )


@pytest.mark.parametrize("name, share", [("bert", 0.65), ("gpt2", 0.60), ("llama", 0.60), ("vit", 0.65)])
def test_residual_width(name: str, share: float) -> None:
    model = zoo()[name]
    found = halve(member(name, TORCHSCRIPT, "eager"), feeds(model), residual=True)
    assert found.groups[48, "channel"] == 1 and found.groups >= Counter(FOUND[name][1])
    assert found.removed >= share
