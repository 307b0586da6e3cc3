"""A device that is not the CPU, for machines without a GPU: its tensors are the CPU's, and cannot meet those.

Loaded as a plugin of pytest it makes recovery train there (`pytest -p second_device`). Tensors of two devices may meet
where CUDA lets them: copies, numbers without axes in pointwise operators, and indices. PyTorch's support for devices
written in Python is experimental, and stays as it is for the whole process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "second"
ATEN = torch.ops.aten
COPIES = (ATEN.copy_.default, ATEN._to_copy.default)
INDEXED = (ATEN.index, ATEN._unsafe_index, ATEN.index_put, ATEN.index_put_, ATEN._index_put_impl_)


class Backend(_DummyBackendModule):
    """What PyTorch asks a device for."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


class Second(torch.Tensor):
    """A tensor of the second device.

    Attributes:
        inner: the tensor of the CPU that holds its data.
    """

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Second:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        made.inner = inner
        return made

    def __repr__(self, **_: object) -> str:
        return f"Second({self.inner})"

    def tolist(self) -> Any:
        return self.inner.tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.inner.__reduce_ex__(protocol)  # checkpoints are read to the CPU

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(op, *args, **(kwargs or {}))


def lstm_cell(x: Any, h: Any, cell: Any, *biases: Any) -> tuple[torch.Tensor, ...]:
    """What PyTorch computes at once on other devices than the CPU: the next state and cell, and the gates."""
    gates = sum((bias for bias in biases if bias is not None), x + h)
    i, f, g, o = gates.chunk(4, 1)
    after = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * after.tanh(), after, gates


def gru_cell(x: Any, h: Any, before: Any, x_bias: Any = None, h_bias: Any = None) -> tuple[torch.Tensor, ...]:
    """The same of a GRU: the next state, and the gates."""
    x, h = (gates if bias is None else gates + bias for gates, bias in ((x, x_bias), (h, h_bias)))
    (reset, update, new), (h_reset, h_update, h_new) = x.chunk(3, 1), h.chunk(3, 1)
    new = (new + (reset + h_reset).sigmoid() * h_new).tanh()
    return new + (update + h_update).sigmoid() * (before - new), torch.cat([x, h[:, : 2 * new.shape[1]]], 1)


FUSED = {ATEN._thnn_fused_lstm_cell.default: lstm_cell, ATEN._thnn_fused_gru_cell.default: gru_cell}


def computed(op: Any, *args: Any, **kwargs: Any) -> Any:
    """The results of an operator, on the device that PyTorch would have them on."""
    tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    ours = any(isinstance(x, Second) for x in tensors)
    if ours and op not in COPIES:
        for i, x in enumerate(tensors):
            number = not x.dim() and torch.Tag.pointwise in op.tags
            index = op.overloadpacket in INDEXED and i > 0 and not x.is_floating_point()
            if not (isinstance(x, Second) or number or index):
                raise RuntimeError(f"{op}: argument {i} is on another device")
    if kwargs.get("device") is not None:
        ours, kwargs = torch.device(kwargs["device"]).type == NAME, {**kwargs, "device": "cpu"}
    if op is ATEN._local_scalar_dense.default:
        ours = False
    inner_args, inner_kwargs = pytree.tree_map_only(Second, lambda x: x.inner, (args, kwargs))
    results = FUSED.get(op, op)(*inner_args, **inner_kwargs)
    if op._schema.is_mutable and op.name().split(".")[0].endswith("_"):
        return args[0]
    return pytree.tree_map_only(torch.Tensor, Second, results) if ours else results


def _kernel(op: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: computed(op, *args, **kwargs)


_setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
_everything, _made = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
_everything.fallback(computed, "PrivateUse1")
_everything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")  # it computes in float32
for _op in (ATEN.empty.memory_format, ATEN.empty_strided.default, ATEN.copy_.default):  # where Python's key is left out
    _made.impl(_op.name().removeprefix("aten::"), _kernel(_op), "PrivateUse1")


@pytest.fixture(autouse=True)
def _trains_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxprune.recovery.parallel import Processes

    @contextlib.contextmanager
    def processes(device: str) -> Iterator[Processes]:
        yield Processes(0, 1, f"{NAME}:0", "cpu")

    monkeypatch.setattr("onnxprune.recovery.training.processes", processes)
    for module in ("test_onnx_cases", "torch_bridge.parity"):
        monkeypatch.setattr(f"{module}.DEVICE", NAME)
