"""Networks with trained weights: a sentiment encoder that we train, and a Llama that is loaded with its tokenizer."""

from __future__ import annotations

import itertools
import re
import struct
from functools import cache

import numpy as np
import torch
from torch import nn
from torch.nn import functional

LONGEST = 64
"""Most words that the encoder takes."""

PADDING, UNKNOWN = 0, 1
"""Words of the encoder that are none."""


class EncoderLayer(nn.Module):
    """Attention and feed-forward, each behind a normalization and beside the stream."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        normal = self.before(x)
        q, k, v = (
            f(normal).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        x = x + self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.down(functional.gelu(self.up(self.after(x)))))


class Encoder(nn.Module):
    """Words in, two logits out; the padding is found from the words and takes no part."""

    def __init__(self, words: int, *, width: int = 128, layers: int = 4, heads: int = 8, inner: int = 512) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(LONGEST, width)
        nn.init.normal_(self.words.weight, std=0.1)
        nn.init.normal_(self.places.weight, std=0.02)
        self.dropout = nn.Dropout(0.3)
        self.layers = nn.ModuleList(EncoderLayer(width, heads, inner, 0.1) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 2)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        mask = words != PADDING  # (batch, words)
        places = torch.arange(words.shape[1], device=words.device)
        x = self.dropout(self.words(words) + self.places(places))
        for layer in self.layers:
            x = layer(x, mask)
        weight = mask.unsqueeze(-1).to(x.dtype)
        return self.head(self.dropout((self.norm(x) * weight).sum(1) / weight.sum(1)))


class Tokenizer:
    """Pieces of text and their scores; the best-scored pair of neighbours merges first."""

    def __init__(self, data: bytes, size: int) -> None:
        self.score: dict[bytes, tuple[float, int]] = {}
        at = 4
        for token in range(size):
            score, length = struct.unpack_from("<fi", data, at)
            self.score.setdefault(data[at + 8 : at + 8 + length], (score, token))
            at += 8 + length

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, behind the token that starts one; no token goes on behind a space."""
        return [1, *(token for word in re.findall(" [^ ]*", " " + text) for token in self._word(word))]

    @cache  # noqa: B019  (there is one tokenizer, and it lives as long as the program)
    def _word(self, word: str) -> list[int]:
        pieces = [character.encode() for character in word]
        while pairs := [
            (self.score[p + q][0], -i) for i, (p, q) in enumerate(itertools.pairwise(pieces)) if p + q in self.score
        ]:
            i = -max(pairs)[1]
            pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
        return [t for p in pieces for t in ([self.score[p][1]] if p in self.score else [byte + 3 for byte in p])]


class Norm(nn.Module):
    """Division by the root mean square; spelled out, as PyTorch's older exporter does not know it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * self.weight


class DecoderLayer(nn.Module):
    """Attention with grouped queries and a gated feed-forward, each behind a normalization and beside the stream."""

    def __init__(self, width: int, heads: int, groups: int, inner: int) -> None:
        super().__init__()
        self.size = width // heads
        self.shared = heads // groups
        self.attention_norm, self.ffn_norm = Norm(width), Norm(width)
        self.q, self.out = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.k, self.v = (nn.Linear(width, groups * self.size, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        normal = self.attention_norm(x)
        q, k, v = (f(normal).unflatten(-1, (-1, self.size)).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k = _turned(q, cosine, sine), _turned(k, cosine, sine)
        k, v = (t.repeat_interleave(self.shared, 1) for t in (k, v))
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        normal = self.ffn_norm(x)
        return x + self.down(functional.silu(self.gate(normal)) * self.up(normal))


def _turned(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Neighbouring pairs of a head turned by an angle that grows with the position."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cosine - b * sine, a * sine + b * cosine), -1).flatten(-2)


class Llama(nn.Module):
    """Tokens in, logits of the next ones out."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        width, inner, layers, heads, groups, words, length = struct.unpack("<7i", data[:28])
        self.embedding = nn.Embedding(words, width)
        self.layers = nn.ModuleList(DecoderLayer(width, heads, groups, inner) for _ in range(layers))
        self.norm = Norm(width)
        self.register_buffer("cosine", torch.empty(length, width // heads // 2))
        self.register_buffer("sine", torch.empty(length, width // heads // 2))
        names = ("attention_norm", "q", "k", "v", "out", "ffn_norm", "gate", "down", "up")
        stored = [self.embedding.weight, *(getattr(layer, n).weight for n in names for layer in self.layers)]
        at = 28
        for tensor in [*stored, self.norm.weight, self.cosine, self.sine]:
            values = np.frombuffer(data, "<f4", tensor.numel(), at)
            tensor.data.copy_(torch.from_numpy(values.copy()).view_as(tensor))
            at += values.nbytes
        assert at == len(data)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        length = tokens.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, self.cosine[:length], self.sine[:length], mask)
        return functional.linear(self.norm(x), self.embedding.weight)

    @torch.inference_mode()
    def tell(self, beginnings: torch.Tensor, length: int, generator: torch.Generator) -> torch.Tensor:
        """Rows of tokens (rows, length) that go on from beginnings (rows, some) as the network expects."""
        layers = [layer for layer in self.layers if isinstance(layer, DecoderLayer)]
        size = layers[0].size
        groups = layers[0].k.out_features // size
        tokens = torch.zeros(len(beginnings), length, dtype=torch.long)
        tokens[:, : beginnings.shape[1]] = beginnings
        caches = torch.empty(len(layers), 2, len(tokens), groups, length, size)
        for t in range(length - 1):
            x = self.embedding(tokens[:, t])
            for layer, (keys, values) in zip(layers, caches, strict=True):
                normal = layer.attention_norm(x)
                q, k, v = (f(normal).unflatten(-1, (groups, -1, size)) for f in (layer.q, layer.k, layer.v))
                q, k = _turned(q, self.cosine[t], self.sine[t]), _turned(k, self.cosine[t], self.sine[t])
                keys[:, :, t], values[:, :, t] = k[:, :, 0], v[:, :, 0]
                mixed = functional.scaled_dot_product_attention(q, keys[:, :, : t + 1], values[:, :, : t + 1])
                x = x + layer.out(mixed.flatten(1))
                normal = layer.ffn_norm(x)
                x = x + layer.down(functional.silu(layer.gate(normal)) * layer.up(normal))
            if t + 1 >= beginnings.shape[1]:
                chances = (self.norm(x) @ self.embedding.weight.T).softmax(-1)
                tokens[:, t + 1] = torch.multinomial(chances, 1, generator=generator)[:, 0]
        return tokens
