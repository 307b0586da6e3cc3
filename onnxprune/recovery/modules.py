"""Models as modules of PyTorch: what the trained one and the original have in common, and the original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import fx

from onnxprune.errors import BridgeError
from onnxprune.graph import Graph
from onnxprune.recovery.options import Arrays
from onnxprune.torch_bridge import inputs_of, to_torch

HALVES = (torch.float16, torch.bfloat16)
HALF_KINDS = (10, 16)
"""ONNX's numbers for them; that of float32 is 1."""


def computes_in_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether to compute in bfloat16 what autocast allows, with `Execution.precision` on a device."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
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
    for part in (part for part in module.modules() if isinstance(part, fx.GraphModule)):  # also graphs inside nodes
        for node in part.graph.nodes:
            kinds = {key: 1 for key in ("to", "dtype") if node.kwargs.get(key) in HALF_KINDS}
            node.kwargs = {**node.kwargs, **kinds}
            node.args = tuple(torch.float32 if argument in HALVES else argument for argument in node.args)
        part.recompile()


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


class Frozen:
    """A model that is not trained.

    Attributes:
        half: whether it computes in bfloat16 what autocast allows.
    """

    def __init__(self, graph: Graph, proof: Arrays, hidden: Sequence[str], device: str, precision: str) -> None:
        """Builds the module.

        Args:
            graph: the model.
            proof: a batch on which it is compared with ONNX Runtime.
            hidden: tensors to give out behind the outputs.
            device: where it runs, as in torch.
            precision: as in `Execution`.

        Raises:
            BridgeError: the bridge lacks an operator, or the module differs.
        """
        self._inputs, self._device = graph.inputs, torch.device(device)
        self.half = computes_in_bfloat16(precision, self._device)
        self._module = to_torch(graph, proof)
        widen(self._module)
        give_out(self._module, hidden)
        self._module.eval().requires_grad_(False).to(self._device)
        lay_out(self._module)

    def run(self, arrays: Arrays) -> list[torch.Tensor]:
        """Outputs and hidden states for a batch, on the device."""
        inputs = arguments(self._inputs, arrays, self._device)
        with torch.no_grad(), torch.autocast(self._device.type, torch.bfloat16, enabled=self.half):
            outputs = self._module(*inputs)
        return [x.float() if x.dtype in HALVES else x for x in outputs]
