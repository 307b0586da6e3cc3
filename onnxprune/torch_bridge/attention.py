"""Attention as one operator, and the rotation of queries and keys.

Queries, keys and values are brought to [batch, heads, tokens, width], and torch's own attention does the rest, but
where the scores are wanted or capped. Masks become numbers that are added to the scores, as ONNX Runtime has it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from onnxprune.errors import BridgeError
from onnxprune.torch_bridge.base import MICROSOFT, Number, Summand, Tensor, Weight, integer, operator


def _heads(x: Tensor, number: int) -> Tensor:
    """[B,S,(h,w)] as [B,h,S,w]; what has four axes has them already."""
    return x if x.dim() == 4 else x.reshape(*x.shape[:2], number, -1).transpose(1, 2)


def _flat(x: Tensor) -> Tensor:
    """[B,h,S,w] as [B,S,(h,w)]."""
    return x.transpose(1, 2).flatten(2)


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _causal(q: Tensor, k: Tensor, past: int | Tensor, value: float) -> Tensor:
    """What is added to scores [..,S,T] where a key comes after its query, which has `past` keys before it."""
    rows, columns = (torch.arange(x.shape[2], device=q.device) for x in (q, k))
    first = past.reshape(-1, 1, 1, 1) if isinstance(past, Tensor) else past
    return _added(columns <= rows[:, None] + first, q, value)


def _added(keep: Tensor, like: Tensor, value: float) -> Tensor:
    """0 where a mask is true, elsewhere a value."""
    return torch.zeros_like(keep, dtype=like.dtype).masked_fill(~keep, value)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    scale: float,
    *,
    cap: float = 0.0,
    sink: Tensor | None = None,
    mode: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Attention of grouped heads, and where `mode` is given the scores: 0 raw, 1 capped, 2 masked, 3 after softmax.

    A sink is a score [h] of a key without a value: what it draws is lost.
    """
    group = q.shape[1] // k.shape[1]
    if group > 1:
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    if mode is None and not cap and sink is None:
        return F.scaled_dot_product_attention(q, k, v, bias, scale=scale), None
    raw = scale * q @ k.transpose(2, 3)
    capped = cap * torch.tanh(raw / cap) if cap else raw
    masked = capped if bias is None else capped + bias
    if sink is None:
        hidden = masked.amax(-1, keepdim=True) == -math.inf  # a query that sees no key draws from none
        weights = torch.softmax(masked.masked_fill(hidden, 0), -1).masked_fill(hidden, 0)
    else:
        drawn = sink.reshape(-1, 1, 1).expand(*masked.shape[:-1], 1)
        weights = torch.softmax(torch.cat([masked, drawn], -1), -1)[..., :-1]
    return weights @ v, None if mode is None else (raw, capped, masked, weights)[mode]


@operator("Attention", since=23)
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Summand | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    nonpad_kv_seqlen: Tensor | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int = 0,
    q_num_heads: int = 0,
    qk_matmul_output_mode: int = 0,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int = 1,
    outputs: int,
) -> tuple[Tensor | None, ...]:
    """Y = softmax(scale * Q @ K + mask) @ V by heads, behind cached keys and values; also caches and scores."""
    flat = q.dim() == 3
    q, k, v = _heads(q, q_num_heads), _heads(k, kv_num_heads), _heads(v, kv_num_heads)
    past: int | Tensor = 0
    if past_key is not None and past_value is not None:
        past = past_key.shape[2]
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    bias = None
    if attn_mask is not None:
        bias = _added(attn_mask, q, -math.inf) if attn_mask.dtype == torch.bool else attn_mask
        bias = F.pad(bias, (0, k.shape[2] - bias.shape[-1]), value=-math.inf)
    if nonpad_kv_seqlen is not None:
        past = nonpad_kv_seqlen - q.shape[2]
        known = torch.arange(k.shape[2], device=q.device) < nonpad_kv_seqlen[:, None, None, None]
        bias = _plus(bias, _added(known, q, -math.inf))
    if is_causal:
        bias = _plus(bias, _causal(q, k, past, -math.inf))
    mode = qk_matmul_output_mode if outputs > 3 else None
    y, scores = _attend(q, k, v, bias, q.shape[3] ** -0.5 if scale is None else scale, cap=softcap, mode=mode)
    return (_flat(y) if flat else y, k, v, scores)[:outputs]


def _padding(mask: Tensor, q: Tensor, k: Tensor, value: float) -> Tensor:
    """ONNX Runtime's masks, for scores [B,h,S,T]: how many keys, from which to which, or which ones [B,T], [B,S,T].

    Behind how many there are, [3B+2] numbers in all, may stand where rows begin in a batch without padding.

    Raises:
        BridgeError: it is one of its other masks.
    """
    columns, batch = torch.arange(k.shape[2], device=q.device), q.shape[0]
    if mask.dim() == 1 and mask.shape[0] in (batch, 2 * batch, 3 * batch + 2):
        keep = columns < mask[:batch, None]
        if mask.shape[0] == 2 * batch:
            keep = keep & (columns >= mask[batch:, None])
        return _added(keep[:, None, None], q, value)
    if mask.dim() in (2, 3):
        return _added((mask > 0).reshape(batch, 1, -1, mask.shape[-1]), q, value)
    raise BridgeError(f"the bridge knows no attention mask of shape {tuple(mask.shape)}")


def _hidden(
    bias: Tensor | None, mask: Tensor | None, q: Tensor, k: Tensor, past: int, unidirectional: int, value: float
) -> Tensor | None:
    """What ONNX Runtime adds to scores: a bias, and a value where a mask or the order of tokens hides a key."""
    if mask is not None:
        bias = _plus(bias, _padding(mask, q, k, value))
    return _plus(bias, _causal(q, k, past, value)) if unidirectional else bias


def _rotary(attrs: dict[str, Any]) -> str | None:
    return "do_rotary" if attrs.get("do_rotary", 0) else None


@operator("Attention", domain=MICROSOFT, lacks=_rotary)
def fused_attention(
    x: Tensor,
    weights: Weight,
    bias: Weight | None = None,
    mask_index: Tensor | None = None,
    past: Tensor | None = None,
    attention_bias: Summand | None = None,
    *,
    num_heads: int,
    do_rotary: int = 0,
    mask_filter_value: float = -10000.0,
    qkv_hidden_sizes: Sequence[int] = (),
    rotary_embedding_dim: int = 0,
    scale: float = 0.0,
    unidirectional: int = 0,
    outputs: int,
) -> tuple[Tensor, ...]:
    """Attention of X @ W + bias, where W has queries, keys and values side by side; also the new cache [2,B,h,T,w]."""
    made = x @ weights if bias is None else x @ weights + bias
    sizes = list(qkv_hidden_sizes) or [weights.shape[1] // 3] * 3
    q, k, v = (_heads(part, num_heads) for part in torch.split(made, sizes, 2))
    before = 0 if past is None else past.shape[3]
    if past is not None:
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
    added = _hidden(attention_bias, mask_index, q, k, before, unidirectional, mask_filter_value)
    y, _ = _attend(q, k, v, added, scale or q.shape[3] ** -0.5)
    return (_flat(y),) if outputs == 1 else (_flat(y), torch.stack([k, v]))


def _apart(x: Tensor) -> list[Tensor]:
    """Tensors [B,S,(h,w)] that are one tensor [B,S,h,n,w]."""
    return [part.flatten(2) for part in x.unbind(3)]


@operator("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention(
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    bias: Weight | None = None,
    key_padding_mask: Tensor | None = None,
    attention_bias: Summand | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    *,
    num_heads: int,
    mask_filter_value: float = -10000.0,
    scale: float = 0.0,
    unidirectional: int = 0,
    outputs: int,
) -> tuple[Tensor | None, ...]:
    """Attention of queries, keys and values, each with its part of the bias; also the new caches, the scores.

    All three may be one tensor [B,S,h,3,w], or keys and values one [B,T,h,2,w].
    """
    parts = _apart(query) if key is None else [query, *(_apart(key) if value is None else [key, value])]
    if bias is not None:
        width = parts[0].shape[-1]
        pieces = torch.split(bias, [width, width, len(bias) - 2 * width])
        parts = [x + piece if x.dim() == 3 else x for x, piece in zip(parts, pieces, strict=True)]
    q, k, v = (_heads(x, num_heads) for x in parts)
    before = 0 if past_key is None else past_key.shape[2]
    if past_key is not None and past_value is not None:
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    added = _hidden(attention_bias, key_padding_mask, q, k, before, unidirectional, mask_filter_value)
    y, scores = _attend(q, k, v, added, scale or q.shape[3] ** -0.5, mode=0 if outputs > 3 else None)
    return (_flat(y), k, v, scores)[:outputs]


def _special(attrs: dict[str, Any]) -> str | None:
    usual = {"kv_cache_bit_width": 0, "k_quant_type": "NONE", "v_quant_type": "NONE", "sliding_window_cache": 0}
    return next((name for name, value in usual.items() if attrs.get(name, value) != value), None)


@operator("GroupQueryAttention", domain=MICROSOFT, lacks=_special)
def group_query_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    seqlens_k: Tensor,
    total_sequence_length: Number,
    cos_cache: Tensor | None = None,
    sin_cache: Tensor | None = None,
    position_ids: Tensor | None = None,
    attention_bias: Summand | None = None,
    head_sink: Weight | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    q_norm_weight: Weight | None = None,
    k_norm_weight: Weight | None = None,
    *,
    kv_num_heads: int,
    num_heads: int,
    causal: int = 1,
    do_rotary: int = 0,
    k_quant_type: str = "NONE",
    kv_cache_bit_width: int = 0,
    local_window_size: int = -1,
    qk_norm_epsilon: float = 1e-6,
    qk_output: int = 0,
    rotary_interleaved: int = 0,
    scale: float = 0.0,
    sliding_window_cache: int = 0,
    smooth_softmax: int = 0,
    softcap: float = 0.0,
    v_quant_type: str = "NONE",
    outputs: int,
) -> tuple[Tensor | None, ...]:
    """Causal attention of grouped heads, normalized and rotated first, with `seqlens_k` + 1 keys per row.

    Also the new caches, and the scores before softmax, where those of hidden keys are 0, or after it.
    """
    if key is None or value is None:
        width = query.shape[2] // (num_heads + 2 * kv_num_heads)
        query, key, value = torch.split(query, [num_heads * width, kv_num_heads * width, kv_num_heads * width], 2)
    q, k, v = _heads(query, num_heads), _heads(key, kv_num_heads), _heads(value, kv_num_heads)
    if q_norm_weight is not None and k_norm_weight is not None:
        q, k = (F.rms_norm(x, w.shape, w, qk_norm_epsilon) for x, w in ((q, q_norm_weight), (k, k_norm_weight)))
    total, tokens = seqlens_k.reshape(-1).long() + 1, q.shape[2]
    whole = integer(total_sequence_length)
    past = torch.zeros_like(total) if past_key is None or tokens == whole else total - tokens
    places = past[:, None] + torch.arange(tokens, device=q.device)
    if do_rotary and cos_cache is not None and sin_cache is not None:
        ids = places if position_ids is None else position_ids
        q, k = (_rotate(x, cos_cache[ids], sin_cache[ids], rotary_interleaved) for x in (q, k))
    k, v = _cached(k, past_key, places, whole), _cached(v, past_value, places, whole)
    columns = torch.arange(k.shape[2], device=q.device)
    keep = (columns < total[:, None])[:, None, None]
    if causal:
        keep = keep & (columns <= places[:, None, :, None])
    if local_window_size > 0:
        keep = keep & (columns > places[:, None, :, None] - local_window_size)
    added = _added(keep, q, -math.inf)
    if attention_bias is not None:
        added = added + F.pad(attention_bias, (0, k.shape[2] - attention_bias.shape[-1]))
    sink = q.new_zeros(num_heads) if smooth_softmax and head_sink is None else head_sink
    mode = (None, 2, 3)[qk_output]
    y, scores = _attend(q, k, v, added, scale or q.shape[3] ** -0.5, cap=softcap, sink=sink, mode=mode)
    if scores is not None and qk_output == 1:
        scores = scores.masked_fill(~keep, 0)
    return (_flat(y), k, v, scores)[:outputs]


def _cached(x: Tensor, past: Tensor | None, places: Tensor, whole: int) -> Tensor:
    """A cache of `whole` tokens or more with new ones written to their places."""
    held = x.new_zeros(x.shape[0], x.shape[1], 0, x.shape[3]) if past is None else past
    held = F.pad(held, (0, 0, 0, max(whole - held.shape[2], 0)))
    return held.scatter(2, places[:, None, :, None].expand_as(x), x)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: int) -> Tensor:
    """Turns pairs among the first positions of [B,h,S,w]; the tables are [B,S,r] for r pairs."""
    turned, rest = torch.split(x, [2 * cos.shape[-1], x.shape[-1] - 2 * cos.shape[-1]], -1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    a, b = (turned[..., 0::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    real, imaginary = cos * a - sin * b, sin * a + cos * b
    both = torch.stack([real, imaginary], -1).flatten(-2) if interleaved else torch.cat([real, imaginary], -1)
    return torch.cat([both, rest], -1)


@operator("RotaryEmbedding", since=23)
def rotary_embedding(
    x: Tensor,
    cos_cache: Tensor,
    sin_cache: Tensor,
    position_ids: Tensor | None = None,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Tensor:
    """Turns pairs of positions of each head by angles, from tables [B,S,r] or, by the ids of positions, [P,r]."""
    cos, sin = (table if position_ids is None else table[position_ids] for table in (cos_cache, sin_cache))
    y = _rotate(_heads(x, num_heads), cos, sin, interleaved)
    return y if x.dim() == 4 else _flat(y)


@operator("RotaryEmbedding", domain=MICROSOFT)
def rotary_embedding_microsoft(
    x: Tensor,
    position_ids: Tensor,
    cos_cache: Tensor,
    sin_cache: Tensor,
    *,
    interleaved: int = 0,
    is_packed_batching: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
    scale: float = 1.0,
) -> Tensor:
    """The same; ids of positions are [B,S], or the first one of all rows, and the tables may imply the width."""
    heads = _heads(x, num_heads or x.shape[-1] // (2 * cos_cache.shape[1]))
    ids = position_ids
    if ids.numel() == 1:
        ids = (ids.reshape(1, 1) + torch.arange(heads.shape[2], device=x.device)).expand(x.shape[0], -1)
    y = _rotate(heads, cos_cache[ids], sin_cache[ids], interleaved)
    return y if x.dim() == 4 else _flat(y)
