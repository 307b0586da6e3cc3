"""What the trained model and the original have in common as modules of PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import fx

from onnxprune.errors import BridgeError
from onnxprune.torch_bridge import inputs_of

HALVES = (torch.float16, torch.bfloat16)
HALF_KINDS = (10, 16)
"""ONNX's numbers for them; that of float32 is 1."""


def computes_in_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether to compute in bfloat16 what autocast allows, with `Execution.precision` on a device."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision == "bfloat16"


def arguments(
    names: Sequence[str], feeds: Mapping[str, np.ndarray], device: torch.device | str = "cpu"
) -> list[torch.Tensor]:
    """A batch as the arguments of a widened module; images lie in memory as convolutions are fastest."""
    inputs = [x.float() if x.dtype in HALVES else x for x in inputs_of(names, feeds, device)]
    return [x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for x in inputs]


def lay_out(module: fx.GraphModule) -> None:
    """Lays weights out in memory as convolutions are fastest."""
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def widen(module: fx.GraphModule) -> None:
    """Makes a module compute in float32 what its graph computes in half the bits, which are too few to train in."""
    tensors = [*module.parameters(), *module.buffers()]
    for tensor in tensors:
        if tensor.dtype in HALVES:
            tensor.data = tensor.data.float()
    for node in module.graph.nodes:
        kinds = {key: 1 for key in ("to", "dtype") if node.kwargs.get(key) in HALF_KINDS}
        node.kwargs = {**node.kwargs, **kinds}
        node.args = tuple(torch.float32 if argument in HALVES else argument for argument in node.args)
    module.recompile()


def give_out(module: fx.GraphModule, names: Sequence[str]) -> None:
    """Appends tensors of the ONNX graph to the outputs.

    Raises:
        BridgeError: PyTorch computes none of that name.
    """
    made = {name: node for node in module.graph.nodes if "onnx" in node.meta for name in node.meta["onnx"][2]}
    lacking = [name for name in names if name not in made]
    if lacking:
        raise BridgeError(f"the hidden state '{lacking[0]}' is a constant in PyTorch; train without --match-hidden.")
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    (results,) = output.args
    assert isinstance(results, tuple)
    output.args = ((*results, *(made[name] for name in names)),)
    module.recompile()
