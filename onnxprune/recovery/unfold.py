"""A trainable normalization behind each convolution of a model whose own was folded into the weights.

With mean m and variance v of a convolution's outputs y, `(y - m) / sqrt(v + e) * g + s` with g = sqrt(v + e) and s = m
is y itself: the model starts unchanged. It trains as BatchNormalization does, with the statistics of each batch, and
folds back into weight and bias: w * g / sqrt(v + e), and s - m * g / sqrt(v + e).

Why the bias itself becomes s, and the convolution goes without: a shift in front of a normalization has no effect.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from onnxprune.torch_bridge.export import META
from onnxprune.torch_bridge.names import register

EPSILON = 1e-5
MOMENTUM = 0.1
NORMALIZATIONS = frozenset(
    {"BatchNormalization", "InstanceNormalization", "GroupNormalization", "LayerNormalization", "RMSNormalization"}
    | {"LpNormalization", "MeanVarianceNormalization", "LRN"}
)


@dataclass(frozen=True, slots=True)
class Unfolded:
    """The tensors of one convolution, by their names in the module.

    Attributes:
        weight: of the convolution.
        shift: of the normalization; the convolution's bias by name.
        scale: of the normalization.
        mean: running mean.
        variance: running variance.
    """

    weight: str
    shift: str
    scale: str
    mean: str
    variance: str


def normalized(
    y: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    training: bool,
) -> torch.Tensor:
    """BatchNormalization."""
    return functional.batch_norm(y, mean, variance, scale, shift, training, MOMENTUM, EPSILON)


def foldable(module: fx.GraphModule) -> list[fx.Node]:
    """Convolutions with a weight and a bias of their own, and no output or normalization behind them."""
    return [node for node in module.graph.nodes if _op(node) == "Conv" and _is_free(module, node)]


def is_folded(module: fx.GraphModule) -> bool:
    """Whether a model looks like one whose normalizations were folded: several convolutions and none left."""
    ops = {_op(node) for node in module.graph.nodes}
    return not ops & NORMALIZATIONS and len(foldable(module)) > 1


def _is_free(module: fx.GraphModule, node: fx.Node) -> bool:
    parameters = dict(module.named_parameters())
    tensors = node.args[1:3]
    if len(tensors) < 2 or not all(isinstance(t, fx.Node) and t.target in parameters for t in tensors):
        return False
    alone = all(isinstance(t, fx.Node) and len(t.users) == 1 for t in tensors)
    return alone and not any(user.op == "output" or _op(user) in NORMALIZATIONS for user in node.users)


def _op(node: fx.Node) -> str:
    return node.meta["onnx"][1] if "onnx" in node.meta else ""


class _Statistics(fx.Interpreter):
    """Runs a module and sums what some of its nodes give out, by channel."""

    def __init__(self, module: fx.GraphModule, nodes: list[fx.Node]) -> None:
        super().__init__(module)
        self.sums: dict[fx.Node, torch.Tensor] = {}
        self.wanted = set(nodes)

    def run_node(self, n: fx.Node) -> Any:
        """Runs a node and adds up its results."""
        result = super().run_node(n)
        if n in self.wanted:
            channels = result.double().movedim(1, 0).flatten(1)  # (channels, samples x positions)
            count = torch.full((len(channels),), float(channels.shape[1]), dtype=torch.float64)
            sums = torch.stack([count, channels.sum(1), channels.square().sum(1)])
            self.sums[n] = self.sums.get(n, torch.zeros_like(sums)) + sums
        return result


def unfold(module: fx.GraphModule, batches: Iterable[list[torch.Tensor]]) -> list[Unfolded]:
    """Puts a normalization behind each convolution that can have one. Edits the module.

    Args:
        module: from `to_torch`, on the CPU.
        batches: arguments of the module, for the statistics.
    """
    nodes = foldable(module)
    statistics = _Statistics(module, nodes)
    module.eval()
    with torch.no_grad():
        for arguments in batches:
            statistics.run(*arguments)
    graph = module.graph
    with graph.inserting_before(next(iter(graph.nodes))):
        flag = graph.create_node("get_attr", "training")
    done = []
    for number, node in enumerate(nodes):
        count, total, squares = statistics.sums[node]
        mean, weight, bias = total / count, node.args[1], node.args[2]
        variance = (squares / count - mean.square()).clamp_min(0)
        assert isinstance(weight, fx.Node) and isinstance(bias, fx.Node)
        shift = module.get_parameter(str(bias.target))
        dtype = shift.dtype
        scale = torch.nn.Parameter((variance + EPSILON).sqrt().to(dtype))
        paths = Unfolded(
            str(weight.target),
            str(bias.target),
            register(module, f"unfolded.{number}.scale", scale),
            register(module, f"unfolded.{number}.mean", (mean - shift.detach()).to(dtype)),
            register(module, f"unfolded.{number}.variance", variance.to(dtype)),
        )
        shift.data = mean.to(dtype)
        node.args = (node.args[0], weight)
        with graph.inserting_after(node):
            made = graph.create_node("call_function", normalized, name=f"{node.name}_normalized")
        node.replace_all_uses_with(made)
        with graph.inserting_before(made):
            tensors = [graph.get_attr(path) for path in (paths.mean, paths.variance, paths.scale)]
            # the bias may have been fetched behind this place
            made.args = (node, *tensors, graph.get_attr(paths.shift), flag)
        made.meta["onnx"] = node.meta.pop("onnx")
        graph.erase_node(bias)
        done.append(paths)
    graph.lint()
    module.recompile()
    names = module.meta[META]["names"]
    names.update({path: [] for u in done for path in (u.scale, u.mean, u.variance)})
    return done


def fold(unfolded: Iterable[Unfolded], values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of the module as it was before `unfold`, with the normalizations folded in.

    Args:
        unfolded: what `unfold` gave.
        values: tensors by name.
    """
    plain = dict(values)
    for paths in unfolded:
        factor = plain.pop(paths.scale).double() / (plain.pop(paths.variance).double() + EPSILON).sqrt()
        mean, weight, shift = plain.pop(paths.mean).double(), values[paths.weight], values[paths.shift]
        wide = factor.reshape(-1, *[1] * (weight.dim() - 1))
        plain[paths.weight] = (weight.double() * wide).to(weight.dtype)
        plain[paths.shift] = (shift.double() - mean * factor).to(shift.dtype)
    return plain
