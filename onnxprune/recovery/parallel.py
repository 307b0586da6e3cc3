"""Several processes, as `torchrun` starts them: PyTorch's own engine, and one process that writes.

Why every process reads all data: the order of samples is that of one process, so that a run does not depend on how
many processes share it. BatchNormalization is the exception: it normalizes over the samples of its own process, and
the running statistics kept are those of the first one. `--freeze-batchnorm` makes runs equal again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxprune.errors import DeviceError
from onnxprune.runtime import gpu_count

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes that train one model.

    Attributes:
        rank: which of them this one is.
        count: how many there are.
        device: where this one trains, "cpu" or "cuda:N".
        teacher: the device of its teacher, as in `runtime.Session`.
    """

    rank: int
    count: int
    device: str
    teacher: str

    def mean(self, value: torch.Tensor) -> float:
        """The sum over the processes of a number whose parts they hold."""
        if self.count > 1:
            import torch.distributed as dist

            dist.all_reduce(value)
        return float(value)

    def agree(self, value: float) -> float:
        """The first process's value, so that all decide alike."""
        if self.count == 1:
            return value
        import torch
        import torch.distributed as dist

        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.broadcast(tensor, 0)
        return float(tensor)

    def wrap(self, module: torch.nn.Module, *, fsdp: bool, several_outputs: bool) -> torch.nn.Module:
        """The module as it trains in this process.

        Raises:
            DeviceError: there is one process alone to share the weights.
        """
        if self.count == 1:
            if fsdp:
                raise DeviceError("--fsdp shares weights among processes; start with torchrun --nproc-per-node 2.")
            return module
        import torch

        if fsdp:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            fully_shard(module, mesh=init_device_mesh(self.device.partition(":")[0], (self.count,)))
            return module
        devices = [torch.device(self.device)] if self.device != "cpu" else None
        return torch.nn.parallel.DistributedDataParallel(
            module, device_ids=devices, find_unused_parameters=several_outputs
        )


def is_writer() -> bool:
    """Whether this process writes results: the first of those that torchrun started, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


@contextlib.contextmanager
def processes(device: str) -> Iterator[Processes]:
    """Joins the processes that torchrun started; a process on its own is alone.

    Args:
        device: as in `runtime.Session`.
    """
    import torch
    import torch.distributed as dist

    count, rank = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", "1"), ("RANK", "0")))
    on_gpu = device.partition(":")[0] not in ("cpu", "openvino") and gpu_count() > 0 and torch.cuda.is_available()
    place, teacher = "cpu", device
    if on_gpu:
        index = device.partition(":")[2] or (os.environ.get("LOCAL_RANK", "0") if count > 1 else "0")
        place = f"cuda:{index}"
        teacher = f"{device.partition(':')[0]}:{index}" if device != "auto" else place if count > 1 else device
        torch.cuda.set_device(place)
    if count == 1:
        yield Processes(0, 1, place, teacher)
        return
    ours = not dist.is_initialized()
    if ours:
        dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield Processes(rank, count, place, teacher)
    finally:
        if ours:
            dist.destroy_process_group()


def waits_for_gradients(module: torch.nn.Module, *, last: bool) -> contextlib.AbstractContextManager[Any]:
    """Inside this, gradients are exchanged for the last part of a step alone."""
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return contextlib.nullcontext()
    from torch.distributed.fsdp import FSDPModule

    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
    elif isinstance(module, torch.nn.parallel.DistributedDataParallel) and not last:
        return module.no_sync()
    return contextlib.nullcontext()


def whole(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors, those that processes share put together; all processes have to call this."""
    shared: list[Any] = [tensor.detach() for tensor in tensors]
    return [tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor for tensor in shared]
