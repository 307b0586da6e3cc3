"""Fourier transforms; real and imaginary parts are the last axis, which has one position where all are real."""

from __future__ import annotations

import torch

from onnxprune.torch_bridge.base import Number, Tensor, integer, operator


def _complex(x: Tensor) -> Tensor:
    """[..,1] as [..], [..,2] as complex numbers [..]."""
    return x[..., 0] if x.shape[-1] == 1 else torch.view_as_complex(x.contiguous())


def _transformed(x: Tensor, length: Number | None, axis: int, inverse: int, onesided: int) -> Tensor:
    """The transform of [..,1] or [..,2] along an axis that is cut or filled with zeros to a length, as [..,2].

    From the first half of it comes a real signal, as [..,1].
    """
    axis = axis % x.dim()
    if inverse and onesided:
        return torch.fft.irfft(_complex(x), None if length is None else integer(length), axis).unsqueeze(-1)
    y = (torch.fft.ifft if inverse else torch.fft.fft)(_complex(x), None if length is None else integer(length), axis)
    return torch.view_as_real(y.narrow(axis, 0, y.shape[axis] // 2 + 1) if onesided else y)


@operator("DFT", since=20)
def dft(
    x: Tensor, dft_length: Number | None = None, axis: Number = -2, *, inverse: int = 0, onesided: int = 0
) -> Tensor:
    """The discrete Fourier transform along one axis, or the first half of it, and back."""
    return _transformed(x, dft_length, integer(axis), inverse, onesided)


@operator("DFT", since=17)
def dft_17(
    x: Tensor, dft_length: Number | None = None, *, axis: int = 1, inverse: int = 0, onesided: int = 0
) -> Tensor:
    """The same, with the axis as an attribute."""
    return _transformed(x, dft_length, axis, inverse, onesided)


@operator("STFT", since=17)
def stft(
    signal: Tensor,
    frame_step: Number,
    window: Tensor | None = None,
    frame_length: Number | None = None,
    *,
    onesided: int = 1,
) -> Tensor:
    """Y[B,frames,frequencies,2]: the transform of frames of [B,L], [B,L,1] or [B,L,2], weighted by a window.

    ONNX knows no signal [B,L]; PyTorch's older exporter writes it, and ONNX Runtime takes it.
    """
    signal = signal.unsqueeze(2) if signal.dim() == 2 else signal
    length = len(window) if window is not None else integer(signal.shape[1] if frame_length is None else frame_length)
    frames = signal.unfold(1, length, integer(frame_step)).transpose(2, 3)
    if window is not None:
        frames = frames * window[:, None]
    return _transformed(frames, None, 2, 0, onesided)
