"""The module that is trained, and how it becomes the graph again."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import fx

from onnxprune.errors import BridgeError
from onnxprune.graph import Graph
from onnxprune.recovery.modules import arguments, give_out, widen
from onnxprune.recovery.options import Arrays
from onnxprune.recovery.unfold import fold, is_folded, unfold
from onnxprune.torch_bridge import to_onnx, to_torch, untouched_parameters
from onnxprune.torch_bridge.export import META

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
        widen(self.module)
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
            give_out(self.module, hidden)

    def arguments(self, feeds: Mapping[str, np.ndarray], device: torch.device | str = "cpu") -> list[torch.Tensor]:
        """A batch as the arguments of the module."""
        return arguments(self.graph.inputs, feeds, device)

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
