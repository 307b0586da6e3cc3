"""Quantized weights as the numbers they stand for. What rounds activations has no gradient, so it is not here."""

from __future__ import annotations

from onnxprune.torch_bridge.base import Tensor, dtype_of, operator


@operator("DequantizeLinear")
def dequantize_linear(
    x: Tensor, scale: Tensor, zero: Tensor | None = None, *, axis: int = 1, block_size: int = 0, output_dtype: int = 0
) -> Tensor:
    """Y = (X - zero point) * scale, one for all, for each position of an axis, or for blocks of it."""

    def along(given: Tensor) -> Tensor:
        if block_size:
            return given.repeat_interleave(block_size, axis).narrow(axis, 0, x.shape[axis])
        if given.dim() == 1 and given.numel() > 1:
            return given.reshape([-1 if i == axis % x.dim() else 1 for i in range(x.dim())])
        return given

    kind = scale.dtype
    shifted = x.to(kind) if zero is None else x.to(kind) - along(zero).to(kind)
    return (shifted * along(scale)).to(dtype_of(output_dtype) if output_dtype else kind)
