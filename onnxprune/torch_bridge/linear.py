"""Operators that contract their data with a weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from onnxprune.torch_bridge.base import MICROSOFT, Matrix, Tensor, Weight, operator
from onnxprune.torch_bridge.windows import CONV, interleaved, windows

CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}

ACTIVATIONS: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "": lambda y, alpha, beta: y,
    "Relu": lambda y, alpha, beta: torch.relu(y),
    "Sigmoid": lambda y, alpha, beta: torch.sigmoid(y),
    "Tanh": lambda y, alpha, beta: torch.tanh(y),
    "LeakyRelu": lambda y, alpha, beta: F.leaky_relu(y, alpha),
    "Clip": lambda y, alpha, beta: torch.clamp(y, alpha, beta),
    "HardSigmoid": lambda y, alpha, beta: torch.clamp(alpha * y + beta, 0, 1),
}
"""What the fused operators may end in, by ONNX Runtime's name, with its first two parameters."""


@operator("Conv")
def conv(
    x: Tensor,
    w: Weight,
    b: Weight | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Y[N,(g,o),..] = sum over i and taps of X[N,(g,i),..] * W[(g,o),i,..] + B[(g,o)]."""
    places = windows(x, w.shape[2:], strides, dilations, pads, auto_pad)
    padding = places.before if places.even else (0,) * places.rank
    data = x if places.even else places.pad(x)
    return CONV[places.rank](data, w, b, places.strides, padding, places.dilations, group)


@operator("DeformConv", since=19, lacks=lambda attrs: None if len(attrs.get("strides", [0, 0])) == 2 else "strides")
def deform_conv(
    x: Tensor,
    w: Weight,
    offset: Tensor,
    b: Weight | None = None,
    mask: Tensor | None = None,
    *,
    dilations: Sequence[int] = (1, 1),
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    offset_group: int = 1,
    pads: Sequence[int] = (0, 0, 0, 0),
    strides: Sequence[int] = (1, 1),
) -> Tensor:
    """A convolution of images, its taps moved by offsets [N,(f,taps,2),h,w] and weighted by a mask [N,(f,taps),h,w].

    Between pixels it takes what lies on the lines between them, and 0 outside.
    """
    batch, channels, *sizes = x.shape
    taps, out = w.shape[2] * w.shape[3], list(offset.shape[2:])
    moved = offset.reshape(batch, offset_group, w.shape[2], w.shape[3], 2, *out)
    places = []
    for i in (0, 1):
        tap = torch.arange(w.shape[2 + i], device=x.device) * dilations[i] - pads[i]
        start = torch.arange(out[i], device=x.device) * strides[i]
        still = tap.reshape([-1, 1, 1, 1] if i == 0 else [-1, 1, 1]) + start.reshape([-1, 1] if i == 0 else [-1])
        places.append((2 * (moved[:, :, :, :, i] + still) + 1) / sizes[i] - 1)  # as `grid_sample` counts
    grid = torch.stack(places[::-1], -1).reshape(batch * offset_group, taps * out[0], out[1], 2)
    apart = x.reshape(batch * offset_group, channels // offset_group, *sizes)
    taken = F.grid_sample(apart, grid, align_corners=False).reshape(batch, offset_group, -1, taps, *out)
    if mask is not None:
        taken = taken * mask.reshape(batch, offset_group, 1, taps, *out)
    columns = taken.reshape(batch, group, channels // group * taps, out[0] * out[1])
    y = (w.reshape(group, len(w) // group, -1) @ columns).reshape(batch, len(w), *out)
    return y if b is None else y + b[:, None, None]


@operator("ConvTranspose")
def conv_transpose(
    x: Tensor,
    w: Weight,
    b: Weight | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Y[N,(g,o),..] = sum over i and taps of X[N,(g,i),..] * W[(g,i),o,..] + B[(g,o)], borders cut off."""
    rank = x.dim() - 2
    steps, taps = list(strides or [1] * rank), list(dilations or [1] * rank)
    extra = list(output_padding or [0] * rank)
    full = [(n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(x.shape[2:], steps, w.shape[2:], taps, strict=True)]
    if output_shape is None and auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        output_shape = [min(n * s, f + e) for n, s, f, e in zip(x.shape[2:], steps, full, extra, strict=True)]
    if output_shape is not None:
        cuts = [n + e - m for n, e, m in zip(full, extra, output_shape[-rank:], strict=True)]
        front = [max(n // 2 if auto_pad == "SAME_UPPER" else n - n // 2, 0) for n in cuts]
        back = [n - f for n, f in zip(cuts, front, strict=True)]
    else:
        border = list(pads) if pads and auto_pad != "VALID" else [0] * 2 * rank
        front, back = border[:rank], border[rank:]
    same = front == back and min(front) >= 0 and all(e < max(s, d) for e, s, d in zip(extra, steps, taps, strict=True))
    if same:
        return CONV_TRANSPOSE[rank](x, w, b, steps, front, extra, group, taps)
    y = CONV_TRANSPOSE[rank](x, w, None, steps, [0] * rank, [0] * rank, group, taps)
    y = F.pad(y, interleaved([-n for n in front], [e - n for e, n in zip(extra, back, strict=True)]))
    return y if b is None else y + b.reshape(-1, *[1] * rank)


@operator("Gemm")
def gemm(
    a: Weight,
    b: Weight,
    c: Weight | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """Y[N,M] = alpha * A[N,K] @ B[K,M] + beta * C; transA and transB swap the stored axes."""
    a = a.T if transA else a
    b = b.T if transB else b
    if c is not None and a.is_floating_point():
        return torch.addmm(c, a, b, beta=beta, alpha=alpha)
    y = a @ b if alpha == 1 else alpha * (a @ b)
    return (y if c is None else y + beta * c).to(a.dtype)


@operator("MatMul")
def mat_mul(a: Matrix, b: Matrix) -> Tensor:
    """Y[..,N,M] = A[..,N,K] @ B[..,K,M], leading axes broadcast; vectors lack N or M."""
    return torch.matmul(a, b)


@operator("Einsum")
def einsum(*operands: Matrix, equation: str) -> Tensor:
    """Einstein's convention: letters that the result lacks are summed over."""
    return torch.einsum(equation, *operands)


def _unknown_activation(attrs: dict[str, Any]) -> str | None:
    name = attrs.get("activation", "")
    return None if name in ACTIVATIONS else f"activation {name}"


@operator("FusedConv", domain=MICROSOFT, lacks=_unknown_activation)
def fused_conv(
    x: Tensor,
    w: Weight,
    b: Weight | None = None,
    z: Tensor | None = None,
    *,
    activation: str = "",
    activation_params: Sequence[float] = (),
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Y = activation(Conv(X, W, B) + Z)."""
    y = conv(x, w, b, auto_pad=auto_pad, dilations=dilations, group=group, pads=pads, strides=strides)
    alpha, beta = (*activation_params, 0.0, 0.0)[:2]
    return ACTIVATIONS[activation](y if z is None else y + z, alpha, beta)


@operator("FusedGemm", domain=MICROSOFT, lacks=_unknown_activation)
def fused_gemm(
    a: Weight,
    b: Weight,
    c: Weight | None = None,
    *,
    activation: str = "",
    activation_alpha: float = 0.0,
    activation_beta: float = 0.0,
    activation_gamma: float = 0.0,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """Y = activation(Gemm(A, B, C))."""
    y = gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)
    return ACTIVATIONS[activation](y, activation_alpha, activation_beta)


def _turned(x: Tensor, batch: int, turn: int) -> Tensor:
    """An operand of FusedMatMul as MatMul has it."""
    if x.dim() < 2:
        return x
    x = x.movedim(0, -2) if batch else x
    return x.transpose(-1, -2) if turn else x


@operator("FusedMatMul", domain=MICROSOFT)
def fused_mat_mul(
    a: Matrix,
    b: Matrix,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    transBatchA: int = 0,
    transBatchB: int = 0,
) -> Tensor:
    """Y = alpha * A @ B; transBatch brings the first axis behind the leading ones, trans then swaps the last two."""
    y = torch.matmul(_turned(a, transBatchA, transA), _turned(b, transBatchB, transB))
    return y if alpha == 1 else alpha * y


def _unknown_bits(attrs: dict[str, Any]) -> str | None:
    return None if attrs.get("bits", 4) in (4, 8) else f"bits {attrs['bits']}"


@operator("MatMulNBits", domain=MICROSOFT, lacks=_unknown_bits)
def mat_mul_n_bits(
    a: Tensor,
    b: Tensor,
    scales: Tensor,
    zero_points: Tensor | None = None,
    *,
    K: int,
    N: int,
    bits: int = 4,
    block_size: int,
    accuracy_level: int = 0,
    weight_prepacked: int = 0,
) -> Tensor:
    """Y = A @ W, where W[k,n] = (B[n,k] - zero) * scale, zero and scale for each n and each block of k."""
    w = _unpacked(b, bits).reshape(N, -1, block_size)
    zero = torch.full_like(scales.reshape(N, -1), 2 ** (bits - 1))
    if zero_points is not None:
        zero = zero_points if zero_points.is_floating_point() else _unpacked(zero_points.reshape(N, -1), bits)
    blocks = w.shape[1]
    w = (w - zero.reshape(N, -1)[:, :blocks, None]) * scales.reshape(N, blocks, 1)
    return a @ w.reshape(N, -1)[:, :K].T.to(a.dtype)


def _unpacked(x: Tensor, bits: int) -> Tensor:
    """Bytes as numbers of 4 or 8 bits, the low ones first."""
    return x.float() if bits == 8 else torch.stack([x % 16, x // 16], -1).flatten(-2).float()


operator("Det")(torch.linalg.det)
