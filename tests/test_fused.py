"""Transformers as ONNX Runtime's optimizer fuses them have the units of the unfused original, and obey the law."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
    ViTConfig,
    ViTModel,
)

from onnxprune import find_units, load, remove, verify
from onnxprune.units import Units

HEADS, SHARED, INNER = 4, 2, 48
SIZES: dict[str, Any] = {
    "attn_implementation": "eager",
    "hidden_size": 32,
    "intermediate_size": INNER,
    "num_attention_heads": HEADS,
    "num_hidden_layers": 2,
}
TOKENS: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0, "vocab_size": 50}

FUSED = {
    "bert": {"Attention", "BiasGelu", "EmbedLayerNormalization", "SkipLayerNormalization"},
    "gpt2": {"FastGelu", "SkipLayerNormalization"},
    "llama": {"SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"},
    "vit": {"BiasGelu", "SkipLayerNormalization"},
}
"""What the optimizer makes of each."""


def network(kind: str) -> PreTrainedModel:
    """A small model with random weights."""
    torch.manual_seed(0)
    match kind:
        case "bert":
            return BertModel(BertConfig(**SIZES, vocab_size=50, max_position_embeddings=64), add_pooling_layer=False)
        case "gpt2":
            return GPT2Model(GPT2Config(**SIZES, **TOKENS, n_inner=INNER, n_positions=64, use_cache=False))
        case "llama":
            shared = {"num_key_value_heads": SHARED, "max_position_embeddings": 64, "use_cache": False}
            return LlamaModel(LlamaConfig(**SIZES, **TOKENS, **shared))
        case _:
            return ViTModel(ViTConfig(**SIZES, image_size=16, patch_size=8), add_pooling_layer=False)


class States(torch.nn.Module):
    """The last hidden state of a model."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        mask = {} if attention_mask is None else {"attention_mask": attention_mask}
        return self.model(x, **mask).last_hidden_state


def exported(kind: str, folder: Path) -> tuple[Path, Path]:
    """The model as PyTorch exports it, and as ONNX Runtime fuses it."""
    plain, fused = folder / "plain.onnx", folder / "fused.onnx"
    names, axes = ["input", "mask"], {0: "batch", 1: "length"}
    inputs: tuple[torch.Tensor, ...] = torch.randint(0, 50, (2, 7)), torch.ones(2, 7, dtype=torch.long)
    if kind == "vit":
        names, axes, inputs = names[:1], {0: "batch"}, (torch.randn(2, 3, 16, 16),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, of exporters that are to be replaced
        from onnxruntime.transformers import optimizer

        torch.onnx.export(
            States(network(kind)).eval(),
            inputs,
            plain,
            input_names=names,
            dynamic_axes=dict.fromkeys(names, axes),
            opset_version=17,
            dynamo=False,
        )
        family = "gpt2" if kind == "llama" else kind
        model = optimizer.optimize_model(str(plain), family, num_heads=HEADS, hidden_size=32, opt_level=0)
    model.save_model_to_file(str(fused))
    return plain, fused


def feeds(units: Units) -> dict[str, np.ndarray]:
    """Pixels, token ids, and a mask that hides nothing, of the shapes that the analysis saw."""
    random = np.random.default_rng(0)
    made = {}
    for info in units.graph.source.graph.input:
        shape = [axis.size for axis in units.structure.axes[info.name]]
        if info.type.tensor_type.elem_type == TensorProto.FLOAT:
            made[info.name] = random.standard_normal(shape).astype(np.float32)
        else:
            kind = np.int32 if info.type.tensor_type.elem_type == TensorProto.INT32 else np.int64
            made[info.name] = (
                np.ones(shape, kind) if info.name == "mask" else random.integers(0, 50, shape).astype(kind)
            )
    return made


def found(units: Units) -> dict[int, int]:
    """How many groups there are of heads and of feed-forward units."""
    sizes = Counter(group.size for group in units.groups.values())
    return {size: sizes[size] for size in (SHARED, HEADS, INNER)}


@pytest.mark.parametrize("kind", FUSED)
def test_a_fused_model_has_the_units_of_the_original(kind: str, tmp_path: Path) -> None:
    plain, fused = map(load, exported(kind, tmp_path))
    assert {node.op for node in fused.nodes if node.domain or node.op.startswith("Simplified")} >= FUSED[kind]
    units = find_units(fused)
    assert found(units) == found(find_units(plain))
    assert found(units)[INNER] == 2
    if kind != "llama":
        assert found(units)[HEADS] == 2
    for chosen in (False, True):  # what is pruned by default, and what would be instead of it
        keep = {
            name: np.arange(group.size) % 2 == 0
            for name, group in units.groups.items()
            if bool(group.instead_of) == chosen
        }
        plan = units.plan(keep)
        assert verify(units, plan, remove(fused, plan), feeds(units)) < 1e-4
