"""From an ONNX graph to a torch.fx module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import fx

from onnxprune.errors import BridgeError
from onnxprune.graph import Graph
from onnxprune.torch_bridge.arrays import inputs_of
from onnxprune.torch_bridge.assembly import Assembly, label
from onnxprune.torch_bridge.base import FLAGS, Operator, find_operator
from onnxprune.torch_bridge.export import META
from onnxprune.torch_bridge.parity import check as check_module
from onnxprune.torch_bridge.parity import device_of
from onnxprune.torch_bridge.weights import find_weights

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


def to_torch(graph: Graph, feeds: Mapping[str, np.ndarray] | None = None, *, check: bool = True) -> fx.GraphModule:
    """A PyTorch module that computes what the graph computes, its weights as parameters that keep their names.

    The module takes the graph's inputs in order and returns a tuple of its outputs. It starts in evaluation mode, in
    which it equals the graph; `train()` makes BatchNormalization use and follow the statistics of the batch, and
    `module.dropout = True` lets Dropout nodes drop in training. Sizes are integers inside, so that torch.compile and
    torch.export keep symbolic axes.

    Args:
        graph: the model.
        feeds: one real batch, on which the module is compared with ONNX Runtime.
        check: whether to compare where there is a batch.

    Returns:
        The module. A name that PyTorch cannot take is changed a little; `to_onnx` knows the original one.

    Raises:
        BridgeError: the bridge lacks an operator of the model, or the module differs from ONNX Runtime.
        DataError: the batch lacks an input.
        ModelError: ONNX Runtime cannot run the model.
    """
    missing = missing_operators(graph)
    if missing:
        listed = [
            f"{op} ({len(nodes)} nodes, first '{nodes[0]}')" if len(nodes) > 1 else f"{op} (1 node, '{nodes[0]}')"
            for op, nodes in missing.items()
        ]
        raise BridgeError(
            f"the bridge to PyTorch lacks {_enumerated(listed)}; export the model without these operators, or do "
            "without training: refit needs no PyTorch"
        )
    assembly = Assembly(graph, find_weights(graph))
    module = assembly.module()
    module.meta[META] = {"inputs": graph.inputs, "names": assembly.names}
    module.eval()
    if check and feeds is not None:
        check_module(module, graph, feeds)
    return module


def missing_operators(graph: Graph) -> dict[str, list[str]]:
    """The operators of a model that the bridge lacks, and the names of the nodes that need them.

    Operators of other domains than ONNX's own are written domain.operator; an operator that is known, but not with
    the attributes or so many inputs as a node has, is followed by what is not known.
    """
    missing: dict[str, list[str]] = {}
    for node in _nodes(graph.gs):
        domain = node.domain or ""
        name = node.op if domain in ("", "ai.onnx") else f"{domain}.{node.op}"
        operator = find_operator(domain, node.op, graph.opset(domain))
        if operator is None:
            missing.setdefault(name, []).append(label(node))
            continue
        if reason := _unserved(node, operator):
            missing.setdefault(f"{name} with {reason}", []).append(label(node))
    return missing


def _unserved(node: gs.Node, operator: Operator) -> str | None:
    """What of a node its operator cannot serve, None where it can."""
    if unknown := sorted(node.attrs.keys() - (operator.keywords - FLAGS)):
        return f"attribute {unknown[0]}"
    given = max((i for i, tensor in enumerate(node.inputs, 1) if tensor.name), default=0)
    if operator.most is not None and given > operator.most:
        return f"more than {operator.most} inputs"
    attributes = {key: value for key, value in node.attrs.items() if not hasattr(value, "nodes")}
    return operator.lacks(attributes) if operator.lacks else None


def untouched_parameters(module: fx.GraphModule, feeds: Mapping[str, np.ndarray]) -> list[str]:
    """Names of the parameters that no gradient of the outputs reaches.

    Args:
        module: from `to_torch`; its gradients and its mode stay as they are.
        feeds: one batch, with the inputs by name.
    """
    parameters = dict(module.named_parameters())
    was_training = module.training
    module.eval()
    with torch.enable_grad():
        outputs = module(*inputs_of(module.meta[META]["inputs"], feeds, device_of(module)))
        loss = sum(output.square().sum() for output in outputs if output.is_floating_point() and output.requires_grad)
    module.train(was_training)
    if not isinstance(loss, torch.Tensor):  # no output depends on a parameter
        return list(parameters)
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None]


def _enumerated(parts: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def _nodes(body: gs.Graph) -> Iterator[gs.Node]:
    """All nodes, those of graphs inside nodes included."""
    for node in body.nodes:
        yield node
        for value in node.attrs.values():
            if hasattr(value, "nodes"):
                yield from _nodes(value)
