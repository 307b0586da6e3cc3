"""Transformers that look at images, from transformers' own configurations and code."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from zoo.base import Input, Model

HIDDEN, INNER, HEADS, LAYERS = 48, 80, 4, 2
BOTH = ("eager", "sdpa")


class Pixels(nn.Module):
    """An image in, one tensor out."""

    def __init__(self, net: nn.Module, output: str) -> None:
        super().__init__()
        self.net, self.output = net, output

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return getattr(self.net(pixel_values=pixel_values), self.output)


def _image(
    build: Callable[[], tuple[type, object]], size: int, output: str, attention: tuple[str, ...] = BOTH
) -> Model:
    def make(attention: str = "eager") -> nn.Module:
        net, config = build()
        return Pixels(net._from_config(config, attn_implementation=attention), output)

    return Model(make, {"pixel_values": Input(("batch", 3, size, size))}, attention)


def _vit() -> tuple[type, object]:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification, ViTConfig(
        image_size=24, patch_size=8, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=INNER, num_labels=7,
    )  # fmt: skip


def _clip_vision() -> tuple[type, object]:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    return CLIPVisionModel, CLIPVisionConfig(
        image_size=24, patch_size=8, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=INNER,
    )  # fmt: skip


def _segformer() -> tuple[type, object]:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    return SegformerForSemanticSegmentation, SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[24, 36], patch_sizes=[7, 3],
        strides=[4, 2], num_attention_heads=[2, 3], mlp_ratios=[2, 2], decoder_hidden_size=20, num_labels=5,
    )  # fmt: skip


def _swin() -> tuple[type, object]:
    from transformers import SwinConfig, SwinForImageClassification

    return SwinForImageClassification, SwinConfig(
        image_size=32, patch_size=2, embed_dim=24, depths=[2, 1], num_heads=[2, 4], window_size=4, num_labels=7,
        mlp_ratio=2.5,
    )  # fmt: skip


def _convnext() -> tuple[type, object]:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    return ConvNextForImageClassification, ConvNextConfig(
        num_stages=2, hidden_sizes=[12, 20], depths=[1, 2], patch_size=4, image_size=32, num_labels=7,
    )  # fmt: skip


def _mobilevit() -> tuple[type, object]:
    from transformers import MobileViTConfig, MobileViTForImageClassification

    return MobileViTForImageClassification, MobileViTConfig(
        image_size=64, hidden_sizes=[24, 36, 48], neck_hidden_sizes=[8, 12, 16, 20, 24, 28, 56], num_attention_heads=3,
        mlp_ratio=2.0, expand_ratio=2.0, num_labels=7,
    )  # fmt: skip


def models() -> dict[str, Model]:
    """Classifiers, encoders and a segmentation net."""
    return {
        "vit": _image(_vit, 24, "logits"),
        "clip_vision": _image(_clip_vision, 24, "last_hidden_state"),
        "segformer": _image(_segformer, 32, "logits", ()),
        "swin": _image(_swin, 32, "logits", ()),
        "convnext": _image(_convnext, 32, "logits", ()),
        "mobilevit": _image(_mobilevit, 64, "logits", ()),
    }
