"""Weights as they are kept, averaged and stored, whether a process has them whole or shares them with others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from onnxprune.recovery.options import Training
from onnxprune.recovery.parallel import whole


def optimizer_for(module: torch.nn.Module, training: Training) -> torch.optim.Optimizer:
    """The optimizer; weight decay acts on weights, not on biases and normalizations."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": training.decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=training.rate or 0.05, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=training.rate or 1e-3)


class Average:
    """A moving average of tensors, which follows quickly at first.

    Attributes:
        values: the averages by name.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], decay: float) -> None:
        self.values = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self._decay = decay

    def update(self, tensors: Mapping[str, torch.Tensor], step: int) -> None:
        """Moves towards the tensors."""
        decay = min(self._decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, value in self.values.items():
                value.lerp_(tensors[name].detach(), 1 - decay)


def full(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies of tensors on the CPU, whole; all processes have to call this."""
    values = whole(list(tensors.values()))
    return {name: value.cpu().clone() for name, value in zip(tensors, values, strict=True)}


def put(tensors: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
    """Writes values into tensors; a process that shares a tensor takes its part."""
    with torch.no_grad():
        for name, tensor in tensors.items():
            value = values[name]
            if hasattr(tensor, "placements") and not hasattr(value, "placements"):
                from torch.distributed.tensor import DTensor, distribute_tensor

                assert isinstance(tensor, DTensor)
                value = distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements)
            tensor.copy_(value)


def shed(module: torch.nn.Module) -> None:
    """Lets a process that shares weights forget those that it gathered to run the module.

    Training does so after each backward pass; after a pass without one, weights that are changed would stay stale.
    """
    reshard = getattr(module, "reshard", None)
    if callable(reshard):
        reshard()


def optimizer_state(module: torch.nn.Module, optimizer: torch.optim.Optimizer, *, shared: bool) -> dict[str, Any]:
    """The state of an optimizer, whole; all processes have to call this where they share it."""
    if not shared:
        return optimizer.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_optimizer_state_dict(module, optimizer, options=options)


def load_optimizer(
    module: torch.nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], *, shared: bool
) -> None:
    """Puts back what `optimizer_state` gave."""
    if not shared:
        optimizer.load_state_dict(state)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    set_optimizer_state_dict(module, optimizer, state, options=StateDictOptions(full_state_dict=True))
