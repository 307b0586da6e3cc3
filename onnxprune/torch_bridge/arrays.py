"""Arrays to tensors and back; bfloat16 and the 8-bit floats, which numpy lacks, go through their bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from onnxprune.errors import BridgeError, DataError
from onnxprune.torch_bridge.base import Tensor

FOREIGN = {
    "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e4m3fnuz": torch.float8_e4m3fnuz,
    "float8_e5m2": torch.float8_e5m2,
    "float8_e5m2fnuz": torch.float8_e5m2fnuz,
}
"""Element types that numpy knows by extension only."""


def tensor_of(array: np.ndarray, name: str = "") -> Tensor:
    """A copy of an array as a tensor on the CPU.

    Raises:
        BridgeError: PyTorch has no such element type.
    """
    if array.dtype.name in FOREIGN:
        bits = np.array(array, order="C").view(np.uint8 if array.dtype.itemsize == 1 else np.int16)
        return torch.from_numpy(bits).view(FOREIGN[array.dtype.name])
    try:
        return torch.tensor(array)
    except TypeError as error:
        raise BridgeError(
            f"constant '{name}' has element type {array.dtype}, which PyTorch lacks; cast it to another type"
        ) from error


def array_of(tensor: Tensor, like: np.ndarray | None = None) -> np.ndarray:
    """A tensor as an array, in the element type of another array if given."""
    tensor = tensor.detach().cpu()
    if like is not None:
        wanted = FOREIGN.get(like.dtype.name)
        tensor = tensor.to(wanted if wanted is not None else torch.from_numpy(np.empty(0, like.dtype)).dtype)
    if like is not None and like.dtype.name in FOREIGN:
        bits = tensor.contiguous().view(torch.uint8 if like.dtype.itemsize == 1 else torch.int16)
        return np.array(bits.numpy()).view(like.dtype)
    if tensor.dtype in FOREIGN.values():
        tensor = tensor.to(torch.float32)
    return np.array(tensor.numpy())


def inputs_of(
    names: Sequence[str], feeds: Mapping[str, np.ndarray], device: torch.device | str = "cpu"
) -> list[Tensor]:
    """A batch as the arguments of a module that takes the named inputs in this order.

    Raises:
        DataError: an input is missing.
    """
    missing = [name for name in names if name not in feeds]
    if missing:
        raise DataError(f"the batch lacks the input '{missing[0]}': it has {sorted(feeds)}; give all of {list(names)}")
    return [tensor_of(feeds[name], name).to(device) for name in names]
