"""The module that is trained, and how it becomes the graph again."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import fx

from onnxprune.errors import BridgeError
from onnxprune.graph import Graph
from onnxprune.recovery.options import Arrays
from onnxprune.recovery.unfold import fold, is_folded, unfold
from onnxprune.torch_bridge import inputs_of, to_onnx, to_torch, untouched_parameters
from onnxprune.torch_bridge.export import META

HALVES = (torch.float16, torch.bfloat16)
HALF_KINDS = (10, 16)
"""ONNX's numbers for them; that of float32 is 1."""

log = logging.getLogger(__name__)


class Student:
    """A model in PyTorch.

    Attributes:
        graph: the model.
        module: takes the inputs in order, gives the outputs and behind them hidden states.
    """

    def __init__(
        self,
        graph: Graph,
        proof: Arrays,
        statistics: Sequence[Arrays],
        *,
        hidden: Sequence[str] = (),
        unfolded: bool | None = False,
    ) -> None:
        """Builds the module.

        Args:
            graph: the model.
            proof: a batch on which it is compared with ONNX Runtime, before training and after.
            statistics: batches to measure the statistics of normalizations on.
            hidden: tensors to give out as well.
            unfolded: whether convolutions get a normalization; None decides by the model.

        Raises:
            BridgeError: the model has no weights to train, or the bridge lacks an operator.
        """
        self.graph, self._proof = graph, proof
        self.module = to_torch(graph, proof)
        untouched = untouched_parameters(self.module, proof)
        _widen(self.module)
        for name in untouched:
            self.module.get_parameter(name).requires_grad_(False)
        if not any(parameter.requires_grad for parameter in self.module.parameters()):
            raise BridgeError("the model has no floating-point weights to train.")
        if untouched:
            log.info("%d weights have no effect on the outputs and stay as they are", len(untouched))
        wanted = is_folded(self.module) if unfolded is None else unfolded
        batches = (self.arguments(feeds) for feeds in statistics)
        self._unfolded = unfold(self.module, batches) if wanted else []
        if unfolded and not self._unfolded:
            raise BridgeError(
                "--unfold-batchnorm finds no convolution with a bias of its own and no normalization behind it; "
                "train without."
            )
        if self._unfolded:
            log.info("%d convolutions train with a normalization, which is folded back", len(self._unfolded))
        if hidden:
            _give_out(self.module, hidden)

    def arguments(self, feeds: Mapping[str, np.ndarray], device: torch.device | str = "cpu") -> list[torch.Tensor]:
        """A batch as the arguments of the module."""
        inputs = inputs_of(self.graph.inputs, feeds, device)
        return [x.float() if x.dtype in HALVES else x for x in inputs]

    def trained(self) -> dict[str, torch.Tensor]:
        """Everything that training changes, by name: parameters and running statistics."""
        tensors = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        names: Mapping[str, object] = self.module.meta[META]["names"]
        return {name: tensors[name] for name in names}

    def plain(self, values: Mapping[str, torch.Tensor]) -> fx.GraphModule:
        """The module of the graph alone, without what training added, with some values of `trained`."""
        module = to_torch(self.graph, check=False)
        values = fold(self._unfolded, {name: value.detach().cpu() for name, value in values.items()})
        with torch.no_grad():
            tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
            for name, value in values.items():
                tensors[name].copy_(value)
        return module

    def export(self, values: Mapping[str, torch.Tensor]) -> Graph:
        """The graph with some values of `trained`, compared with the module in ONNX Runtime."""
        return to_onnx(self.plain(values), self.graph, self._proof)


def _widen(module: fx.GraphModule) -> None:
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


def _give_out(module: fx.GraphModule, names: Sequence[str]) -> None:
    """Appends tensors of the ONNX graph to the outputs."""
    made = {name: node for node in module.graph.nodes if "onnx" in node.meta for name in node.meta["onnx"][2]}
    lacking = [name for name in names if name not in made]
    if lacking:
        raise BridgeError(f"the hidden state '{lacking[0]}' is a constant in PyTorch; train without --match-hidden.")
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    (results,) = output.args
    assert isinstance(results, tuple)
    output.args = ((*results, *(made[name] for name in names)),)
    module.recompile()
