"""Writes what was trained back into the graph it came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from torch import fx

from onnxprune.errors import BridgeError
from onnxprune.graph import Graph
from onnxprune.torch_bridge.arrays import array_of
from onnxprune.torch_bridge.parity import check

META = "onnxprune"
"""Where a module keeps the names of its inputs, and of the constants that its parameters and statistics stand for."""


def to_onnx(module: torch.nn.Module, graph: Graph, feeds: Mapping[str, np.ndarray] | None = None) -> Graph:
    """The graph with the module's weights and running statistics in place of its own.

    Element types and shapes stay, and constants that training did not change are not touched.

    Args:
        module: from `to_torch`, trained, on any device; what `torch.compile` makes of it will do.
        graph: the graph that the module was made from.
        feeds: one batch; where given, module and result are compared on it in ONNX Runtime.

    Returns:
        A new graph.

    Raises:
        BridgeError: the module is none of `to_torch`'s or belongs to another graph, a weight is not finite any more,
            or module and result differ.
        DataError: the batch lacks an input.
    """
    module = cast(torch.nn.Module, getattr(module, "_orig_mod", module))
    if not isinstance(module, fx.GraphModule) or META not in module.meta:
        raise BridgeError(
            f"a {type(module).__name__} cannot be written to ONNX; pass the module that to_torch returned"
        )
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    values = {}
    for path, constants in module.meta[META]["names"].items():
        for name in constants:
            before = graph.constants.get(name)
            if path not in tensors or before is None or before.shape != tuple(tensors[path].shape):
                raise BridgeError(
                    f"parameter '{path}' has shape {_shape(tensors.get(path))} and the graph's constant '{name}' "
                    f"{_shape(before)}; write a module into the graph that it was made from"
                )
            after = array_of(tensors[path], before)
            if after.tobytes() == before.tobytes():
                continue
            lost = int(np.size(after) - np.isfinite(after.astype(np.float64)).sum())
            if lost:
                raise BridgeError(
                    f"parameter '{path}' has {lost} of {np.size(after)} values that are not finite; training diverged, "
                    "lower the learning rate"
                )
            values[name] = after
    result = graph.with_constants(values)
    if feeds is not None:
        check(module, result, feeds)
    return result


def _shape(tensor: torch.Tensor | np.ndarray | None) -> str:
    return "none" if tensor is None else str(tuple(tensor.shape))
