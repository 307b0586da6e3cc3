"""Networks over sequences in plain PyTorch: recurrent ones, and pieces of transformers as people write them by hand."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from zoo.base import Input, Model


class Recurrent(nn.Module):
    """Embedding, two recurrent layers, a classifier on the last step."""

    def __init__(self, layer: type[nn.LSTM] | type[nn.GRU], bidirectional: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(61, 14)
        self.body = layer(14, 24, 2, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(48 if bidirectional else 24, 5)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.embedding(input_ids))[0][:, -1])


class SwiGlu(nn.Module):
    """A gated feed-forward block, gate and up in one matrix or in two."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.gate, self.up = nn.Linear(18, 80 if fused else 40, bias=False), nn.Linear(18, 40, bias=False)
        self.down = nn.Linear(40, 18, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate(x).chunk(2, -1) if self.fused else (self.gate(x), self.up(x))
        return x + self.down(functional.silu(gate) * up)


class Experts(nn.Module):
    """A mixture of experts as a plain graph: all run, the gate weighs them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(18, 3, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(18, width), nn.GELU(), nn.Linear(width, 18)) for width in (28, 32, 36)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self.gate(x).softmax(-1)
        return x + sum(weights[..., i : i + 1] * expert(x) for i, expert in enumerate(self.experts))


class StackedExperts(nn.Module):
    """A mixture of experts whose weights are stacked and multiplied in one batch, as sparse models store them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(18, 3, bias=False)
        self.up, self.down = nn.Parameter(torch.randn(3, 18, 40)), nn.Parameter(torch.randn(3, 40, 18))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.reshape(-1, 18)
        hidden = functional.silu(torch.matmul(tokens.unsqueeze(0), self.up))
        weights = self.gate(tokens).softmax(-1).t().unsqueeze(-1)
        return x + (torch.matmul(hidden, self.down) * weights).sum(0).view_as(x)


class Encoder(nn.Module):
    """PyTorch's own encoder layers: one matrix for queries, keys and values, heads joined with the batch."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(48, 4, 80, dropout=0.0, batch_first=True, norm_first=True, activation="gelu")
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


class FusedAttention(nn.Module):
    """Self-attention as vision libraries write it: one matrix, taken apart on five axes; biases for positions."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(48) for _ in range(2))
        self.qkv, self.proj = nn.Linear(48, 3 * 4 * 12), nn.Linear(48, 48)
        self.up, self.down = nn.Linear(48, 80), nn.Linear(80, 48)
        self.scale = nn.Parameter(torch.ones(48))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norms[0](x)).reshape(batch, tokens, 3, 4, 12).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        weights = (q * 12**-0.5 @ k.transpose(-2, -1)).softmax(-1)
        x = x + self.scale * self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(functional.gelu(self.up(self.norms[1](x)), approximate="tanh"))


class Decoder(nn.Module):
    """A layer of a decoder that keeps keys and values, as serving stacks export it; two queries for each of 3 heads."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(48, width, bias=False) for width in (60, 30, 30))
        self.o, self.up, self.down = nn.Linear(60, 48, bias=False), nn.Linear(48, 80), nn.Linear(80, 48)
        self.norms = nn.ModuleList(nn.LayerNorm(48) for _ in range(2))

    def forward(self, x: torch.Tensor, past_key: torch.Tensor, past_value: torch.Tensor) -> tuple[torch.Tensor, ...]:
        batch, tokens, _ = x.shape
        h = self.norms[0](x)
        q, k, v = (layer(h).view(batch, tokens, -1, 10).transpose(1, 2) for layer in (self.q, self.k, self.v))
        key, value = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
        known = key.shape[2]
        k, v = (c[:, :, None].expand(batch, 3, 2, known, 10).reshape(batch, 6, known, 10) for c in (key, value))
        weights = (q @ k.transpose(-2, -1) * 10**-0.5).softmax(-1)
        x = x + self.o((weights @ v).transpose(1, 2).reshape(batch, tokens, 60))
        return x + self.down(functional.gelu(self.up(self.norms[1](x)))), key, value


def models() -> dict[str, Model]:
    """Inputs are tokens, or states of 18 or 48 features."""
    tokens, states = {"input_ids": Input(("batch", "tokens"), 61)}, {"x": Input(("batch", "tokens", 18))}
    return {
        "lstm": Model(lambda: Recurrent(nn.LSTM, False), tokens),
        "lstm_bidirectional": Model(lambda: Recurrent(nn.LSTM, True), tokens),
        "gru": Model(lambda: Recurrent(nn.GRU, False), tokens),
        "gru_bidirectional": Model(lambda: Recurrent(nn.GRU, True), tokens),
        "swiglu": Model(lambda: SwiGlu(False), states),
        "swiglu_fused": Model(lambda: SwiGlu(True), states),
        "experts": Model(Experts, states),
        "experts_stacked": Model(StackedExperts, states),
        "fused_attention": Model(FusedAttention, {"x": Input(("batch", "tokens", 48))}),
        "decoder_cached": Model(
            Decoder,
            {
                "x": Input(("batch", "tokens", 48)),
                "past_key": Input(("batch", 3, "past", 10)),
                "past_value": Input(("batch", 3, "past", 10)),
            },
        ),
        "torch_encoder": Model(Encoder, {"x": Input(("batch", "tokens", 48))}),
    }
