"""Transformers that listen, from transformers' own configurations and code."""

from __future__ import annotations

import torch
from torch import nn

from zoo.base import Input, Model

HIDDEN, INNER, HEADS, LAYERS = 48, 80, 4, 2
BOTH = ("eager", "sdpa")


class Spectrum(nn.Module):
    """A spectrogram in, one tensor out."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, input_features: torch.Tensor) -> torch.Tensor:
        return self.net(input_features).last_hidden_state


class Wave(nn.Module):
    """Samples in, one tensor out."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, input_values: torch.Tensor) -> torch.Tensor:
        return self.net(input_values).last_hidden_state


def _whisper(attention: str) -> nn.Module:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = WhisperConfig(
        num_mel_bins=20, d_model=HIDDEN, encoder_layers=LAYERS, encoder_attention_heads=HEADS, encoder_ffn_dim=INNER,
        max_source_positions=14, vocab_size=61, decoder_layers=1, decoder_attention_heads=4, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    return Spectrum(WhisperEncoder._from_config(config, attn_implementation=attention))


def _wav2vec2(attention: str) -> nn.Module:
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    config = Wav2Vec2Config(
        vocab_size=32, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=INNER,
        conv_dim=(20, 28), conv_stride=(5, 2), conv_kernel=(10, 3), num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=6, mask_time_prob=0.0, mask_feature_prob=0.0,
    )  # fmt: skip
    return Wave(Wav2Vec2Model._from_config(config, attn_implementation=attention))


def models() -> dict[str, Model]:
    """Encoders of speech."""
    return {
        "whisper_encoder": Model(_whisper, {"input_features": Input(("batch", 20, 28))}, BOTH),
        "wav2vec2": Model(_wav2vec2, {"input_values": Input(("batch", "samples"))}, BOTH),
    }
