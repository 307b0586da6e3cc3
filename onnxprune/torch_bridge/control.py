"""Operators that contain graphs of their own."""

from __future__ import annotations

from typing import Any

import torch

from onnxprune.torch_bridge.base import Tensor, number, operator


@operator("If")
def if_(
    condition: Tensor, *captured: Tensor, then_branch: torch.nn.Module, else_branch: torch.nn.Module, outputs: int
) -> tuple[Any, ...]:
    """The results of one of two graphs, which read the same tensors from outside."""
    return tuple((then_branch if bool(number(condition)) else else_branch)(*captured))
