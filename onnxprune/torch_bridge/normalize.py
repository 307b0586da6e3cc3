"""Normalization, with running statistics and without, and as ONNX Runtime fuses it with sums around it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from onnxprune.torch_bridge.base import MICROSOFT, Statistic, Tensor, Weight, operator


@operator("BatchNormalization", since=7)
def batch_normalization(
    x: Tensor,
    scale: Weight,
    bias: Weight,
    mean: Statistic,
    var: Statistic,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    spatial: int = 1,
    training_mode: int = 0,
    training: bool,
    outputs: int,
) -> tuple[Tensor, ...]:
    """Y[N,C,..] = (X[N,C,..] - mean[C]) / sqrt(var[C] + epsilon) * scale[C] + bias[C].

    In training, mean and variance are the batch's, and the statistics move towards them as in torch: the variance
    unbiased, and torch's momentum is what ONNX's leaves. `training_mode` takes the batch's in every case.
    """
    shape = x.shape
    if not spatial:  # statistics of every position
        x = x.reshape(shape[0], -1)
        scale, bias, mean, var = scale.reshape(-1), bias.reshape(-1), mean.reshape(-1), var.reshape(-1)
    moved = [mean, var]
    if training_mode and outputs > 1:  # ONNX's running variance is the biased one
        axes = [i for i in range(x.dim()) if i != 1]
        batch = torch.var_mean(x, dim=axes, correction=0)
        moved = [s * momentum + b * (1 - momentum) for s, b in zip((mean, var), reversed(batch), strict=True)]
    y = F.batch_norm(
        x,
        mean if training or not training_mode else None,
        var if training or not training_mode else None,
        scale.to(mean.dtype),
        bias.to(mean.dtype),
        training or bool(training_mode),
        1 - momentum,
        epsilon,
    )
    return (y.reshape(shape), *moved, *moved)[:outputs]


@operator("InstanceNormalization")
def instance_normalization(x: Tensor, scale: Weight, bias: Weight, *, epsilon: float = 1e-5) -> Tensor:
    """Y[N,C,..] = normalized over positions(X[N,C,..]) * scale[C] + bias[C]."""
    return torch.group_norm(x, x.shape[1], scale, bias, epsilon)


@operator("GroupNormalization", since=21)
def group_normalization(
    x: Tensor, scale: Weight, bias: Weight, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """Y[N,(g,c),..] = normalized over c and positions(X) * scale[(g,c)] + bias[(g,c)]."""
    return torch.group_norm(x, num_groups, scale, bias, epsilon)


@operator("GroupNormalization", since=18)
def group_normalization_18(x: Tensor, scale: Weight, bias: Weight, *, num_groups: int, epsilon: float = 1e-5) -> Tensor:
    """The same with one scale and bias per group."""
    channels = x.shape[1] // num_groups
    scale, bias = scale.repeat_interleave(channels), bias.repeat_interleave(channels)
    return torch.group_norm(x, num_groups, scale, bias, epsilon)


@operator("LayerNormalization")
def layer_normalization(
    x: Tensor,
    scale: Weight,
    bias: Weight | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    outputs: int,
) -> tuple[Tensor, ...]:
    """Y = normalized over the last axes(X) * scale + bias; also the mean and one over the deviation."""
    axes = tuple(range(axis % x.dim(), x.dim()))
    shape = x.shape[axes[0] :]
    if scale.shape == shape and (bias is None or bias.shape == shape):
        y = F.layer_norm(x, shape, scale, bias, epsilon)
    else:
        y = F.layer_norm(x, shape, eps=epsilon) * scale
        y = y if bias is None else y + bias
    if outputs == 1:
        return (y,)
    var, mean = torch.var_mean(x, dim=axes, correction=0, keepdim=True)
    return (y, mean, torch.rsqrt(var + epsilon))[:outputs]


@operator("RMSNormalization")
def rms_normalization(
    x: Tensor, scale: Weight, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """Y = X / sqrt(mean over the last axes(X^2) + epsilon) * scale."""
    return F.rms_norm(x, x.shape[axis % x.dim() :], eps=epsilon) * scale


@operator("LpNormalization")
def lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """Y = X / norm over one axis(X); zeros stay zeros."""
    norm = torch.linalg.vector_norm(x, p, dim=axis, keepdim=True)
    return x / torch.where(norm == 0, torch.ones_like(norm), norm)


@operator("MeanVarianceNormalization")
def mean_variance_normalization(x: Tensor, *, axes: Sequence[int] = (0, 2, 3)) -> Tensor:
    """Y = (X - mean) / deviation, both over `axes`."""
    var, mean = torch.var_mean(x, dim=tuple(axes), correction=0, keepdim=True)
    return (x - mean) / (var.sqrt() + 1e-9)


@operator("LRN")
def lrn(x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Tensor:
    """Y[N,C,..] = X / (bias + alpha / size * sum over neighbouring channels(X^2))^beta."""
    squares = x.square().movedim(1, -1)
    neighbours = F.pad(squares, ((size - 1) // 2, size // 2)).unfold(-1, size, 1).sum(-1).movedim(-1, 1)
    return x / (bias + alpha / size * neighbours).pow(beta)


@operator("SimplifiedLayerNormalization")
def simplified_layer_normalization(
    x: Tensor, scale: Weight, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1, outputs: int
) -> tuple[Tensor, ...]:
    """Y = X / sqrt(mean over the last axes(X^2) + epsilon) * scale; also one over that root."""
    axes = tuple(range(axis % x.dim(), x.dim()))
    y = rms_normalization(x, scale, axis=axis, epsilon=epsilon)
    return (y, torch.rsqrt(x.square().mean(axes, keepdim=True) + epsilon))[:outputs]


@operator("SkipLayerNormalization", domain=MICROSOFT)
def skip_layer_normalization(
    x: Tensor,
    skip: Tensor,
    gamma: Weight,
    beta: Weight | None = None,
    bias: Weight | None = None,
    *,
    epsilon: float = 1e-12,
    outputs: int,
) -> tuple[Tensor, ...]:
    """Y = normalized(X + skip + bias) * gamma + beta over the last axis; also mean, one over the deviation, the sum."""
    total = x + skip if bias is None else x + skip + bias
    y = F.layer_norm(total, total.shape[-1:], gamma, beta, epsilon)
    if outputs == 1:
        return (y,)
    var, mean = torch.var_mean(total, dim=-1, correction=0, keepdim=True)
    return (y, mean, torch.rsqrt(var + epsilon), total)[:outputs]


@operator("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_simplified_layer_normalization(
    x: Tensor, skip: Tensor, gamma: Weight, bias: Weight | None = None, *, epsilon: float = 1e-12, outputs: int
) -> tuple[Tensor, ...]:
    """Y = S / sqrt(mean over the last axis(S^2) + epsilon) * gamma with S = X + skip + bias; also S."""
    total = x + skip if bias is None else x + skip + bias
    root = torch.rsqrt(total.square().mean(-1, keepdim=True) + epsilon)
    return (total * root * gamma, torch.zeros_like(root), root, total)[:outputs]


@operator("EmbedLayerNormalization", domain=MICROSOFT)
def embed_layer_normalization(
    input_ids: Tensor,
    segment_ids: Tensor | None,
    word: Weight,
    position: Weight,
    segment: Weight | None,
    gamma: Weight,
    beta: Weight,
    mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
    mask_index_type: int = 1,
    outputs: int,
) -> tuple[Tensor, ...]:
    """Y = normalized(sum of rows of tables) * gamma + beta; also the number of tokens that are no padding, the sum."""
    places = torch.arange(input_ids.shape[1], device=input_ids.device) if position_ids is None else position_ids
    total = word[input_ids] + position[places]
    if segment_ids is not None and segment is not None:
        total = total + segment[segment_ids]
    y = F.layer_norm(total, total.shape[-1:], gamma, beta, epsilon)
    count = input_ids.new_zeros(len(input_ids), dtype=torch.int32) if mask is None else mask.sum(1, dtype=torch.int32)
    return (y, count, total)[:outputs]
