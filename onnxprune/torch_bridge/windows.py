"""Where windows lie: padding, strides, dilations and `auto_pad` of convolution and pooling, in plain integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F

from onnxprune.errors import BridgeError
from onnxprune.torch_bridge.base import Tensor

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
"""Convolution by the number of spatial axes."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows over the spatial axes.

    Attributes:
        kernel: taps along each axis.
        strides: steps from window to window.
        dilations: steps from tap to tap.
        before: padding in front; ONNX's pads, which may be negative.
        after: padding behind, chosen so that the windows end where the padded axis ends.
        declared: padding behind that counts as part of the data; `after` may exceed it by what `ceil_mode` adds.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    declared: tuple[int, ...]

    @property
    def rank(self) -> int:
        """How many spatial axes there are."""
        return len(self.kernel)

    @property
    def even(self) -> bool:
        """Whether both sides of every axis are padded alike, as torch's own functions do it."""
        return self.before == self.after and min(self.before) >= 0

    @property
    def fits(self) -> bool:
        """Whether torch's pooling takes the padding, which may be half the kernel at most."""
        return self.even and all(n <= k // 2 for n, k in zip(self.before, self.kernel, strict=True))

    def pad(self, x: Tensor, value: float = 0.0) -> Tensor:
        """The data with their padding."""
        if not any(self.before) and not any(self.after):
            return x
        return F.pad(x, interleaved(self.before, self.after), value=value)


def interleaved(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Paddings in torch's order: last axis first, front and back in turn."""
    return [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]


def windows(
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    auto_pad: str,
    ceil_mode: int = 0,
) -> Windows:
    """Where the windows of a node lie on its data.

    Args:
        x: (N, C, ..) data.
        kernel: taps along each spatial axis.
        strides: ones when None.
        dilations: ones when None.
        pads: fronts, then backs; zeros when None.
        auto_pad: ONNX's word.
        ceil_mode: whether a last window may reach beyond the padding.

    Raises:
        BridgeError: the data have another number of spatial axes, or more than torch can take.
    """
    rank = len(kernel)
    if x.dim() != rank + 2 or not 1 <= rank <= 3:
        raise BridgeError(f"windows over {rank} axes of data of shape {tuple(x.shape)}: PyTorch takes 1 to 3 axes")
    steps, taps = list(strides or [1] * rank), list(dilations or [1] * rank)
    before, after, declared = [], [], []
    for i, size in enumerate(x.shape[2:]):
        span = (kernel[i] - 1) * taps[i] + 1
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            # ONNX Runtime leaves the dilation out of this sum when it pools, and convolves only without dilation
            total = max((-(-size // steps[i]) - 1) * steps[i] + kernel[i] - size, 0)
            front = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
            back = total - front
        elif auto_pad == "VALID" or pads is None:
            front, back = 0, 0
        else:
            front, back = pads[i], pads[i + rank]
        room = size + front + back - span
        count = room // steps[i] + 1
        if ceil_mode and room % steps[i] and count * steps[i] < size + front:  # else it would start in the padding
            count += 1
        before.append(front)
        after.append((count - 1) * steps[i] + span - size - front)
        declared.append(back)
    if not ceil_mode:  # positions behind the last window do no harm, and torch then pads both sides by itself
        after = declared
    return Windows(tuple(kernel), tuple(steps), tuple(taps), tuple(before), tuple(after), tuple(declared))
