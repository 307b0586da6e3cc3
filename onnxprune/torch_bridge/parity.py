"""Compares a module with its graph in ONNX Runtime, and finds the first node that differs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import fx

from onnxprune.errors import BridgeError
from onnxprune.graph import Graph
from onnxprune.runtime import Session, first_line
from onnxprune.torch_bridge.arrays import array_of, inputs_of
from onnxprune.torch_bridge.base import Tensor, tensor

TOLERANCE = 1e-4
"""Largest difference that is let pass, relative to the largest element of the tensor."""


def check(module: fx.GraphModule, graph: Graph, feeds: Mapping[str, np.ndarray]) -> None:
    """Asserts that a module computes what its graph computes in ONNX Runtime.

    Args:
        module: from `to_torch`; it is run in evaluation mode.
        graph: the graph it was made from, or one with the module's weights.
        feeds: one batch.

    Raises:
        BridgeError: PyTorch cannot run the module, or an output differs by more than `TOLERANCE`.
        ModelError: ONNX Runtime cannot run the graph.
    """
    expected = Session(graph.message(), device="cpu").run(feeds)
    found = _outputs(module, graph, feeds)
    for name, ours, theirs in zip(graph.outputs, found, expected, strict=True):
        error = difference(ours, theirs)
        if error > tolerance(theirs):
            raise BridgeError(
                f"output '{name}' differs from ONNX Runtime by {error:.1e} of its scale, more than "
                f"{tolerance(theirs):.0e} may pass; {_first(module, graph, feeds)}. Leave that node out of the model, "
                "export it differently, or pass check=False to go on with a module that computes something else."
            )


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference of two arrays relative to the largest finite element.

    It is infinite where shapes differ, where integers differ, or where values that are not finite do.
    """
    if ours.shape != theirs.shape or theirs.dtype.kind in "OSU":
        return np.inf
    if theirs.dtype.kind in "biu":
        return 0.0 if np.array_equal(ours, theirs) else np.inf
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(a[finite]).all():
        return np.inf
    scale = np.abs(b[finite]).max(initial=0)
    return float(np.abs(a[finite] - b[finite]).max(initial=0) / (scale or 1.0))


def tolerance(array: np.ndarray) -> float:
    """What may pass: `TOLERANCE`, and more for types that cannot hold that precision."""
    halves = {"float16": 1e-2, "bfloat16": 8e-2}
    return halves.get(array.dtype.name, TOLERANCE)


def _outputs(module: fx.GraphModule, graph: Graph, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The results of the module in evaluation mode."""
    arguments = inputs_of(graph.inputs, feeds, device_of(module))
    recorder = _Recorder(module)
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            results = recorder.run(*arguments)
    except Exception as error:  # torch raises a dozen unrelated classes
        where, op, _ = recorder.running
        raise BridgeError(f"PyTorch cannot run node '{where}' ({op}): {first_line(error)}") from error
    finally:
        module.train(was_training)
    return [array_of(result) for result in results]


def device_of(module: torch.nn.Module) -> torch.device:
    """Where a module's tensors are; the CPU if it has none."""
    tensor: Tensor | None = next(iter([*module.parameters(), *module.buffers()]), None)
    return torch.device("cpu") if tensor is None else tensor.device


class _Recorder(fx.Interpreter):
    """Runs a module node by node; `wanted` tensors of the ONNX graph are kept."""

    def __init__(self, module: fx.GraphModule, wanted: frozenset[str] = frozenset()) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self.wanted = wanted
        self.running: tuple[str, str, list[str]] = ("", "", [])
        self.kept: dict[str, np.ndarray] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Runs a node and keeps its results."""
        self.running = n.meta.get("onnx", self.running)
        result = super().run_node(n)
        if "onnx" in n.meta:
            results = result if isinstance(result, tuple) else (result,)
            for name, value in zip(n.meta["onnx"][2], results, strict=True):
                if name in self.wanted:
                    self.kept[name] = array_of(tensor(value))
        return result


def _first(module: fx.GraphModule, graph: Graph, feeds: Mapping[str, np.ndarray]) -> str:
    """Says which node is the first whose results differ."""
    calls = [node.meta["onnx"] for node in module.graph.nodes if "onnx" in node.meta]
    names = [name for _, _, outputs in calls for name in outputs if name]
    session = Session(graph.message(outputs=names), device="cpu", optimize=False)
    theirs = dict(zip(names, session.run(feeds, names), strict=True))
    recorder = _Recorder(module, frozenset(names))
    was_training = module.training
    module.eval()
    with torch.no_grad():
        recorder.run(*inputs_of(graph.inputs, feeds, device_of(module)))
    module.train(was_training)
    for where, op, outputs in calls:
        errors = [difference(recorder.kept[name], theirs[name]) for name in outputs if name]
        if any(error > tolerance(theirs[name]) for error, name in zip(errors, filter(None, outputs), strict=True)):
            return f"the first node that differs is '{where}' ({op}, opset {graph.opset()}), by {max(errors):.1e}"
    return "no single node differs by that much"
