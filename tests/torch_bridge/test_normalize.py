"""Normalization, with running statistics and without."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from builders import Net
from onnxprune.graph import Graph
from onnxprune.torch_bridge import to_onnx, to_torch
from torch_bridge.parity import Case, assert_case, assert_parity, case, positive, weight

IMAGE = (4, 6, 5, 3)
STATISTICS = (weight(6), weight(6), weight(6), positive(6))
SPATIAL = tuple(f(3, 2) for f in (weight, weight, weight, positive))
NORMS = ("InstanceNormalization", "GroupNormalization")

CASES = [
    *(case("BatchNormalization", IMAGE, *STATISTICS, opset=opset) for opset in (7, 9, 14, 15)),
    case("BatchNormalization", (4, 6), *STATISTICS, epsilon=1e-2),
    case("BatchNormalization", (4, 6, 5), *STATISTICS, opset=9, momentum=0.7),
    case("BatchNormalization", (2, 6, 3, 4, 2), *STATISTICS),
    case("BatchNormalization", (4, 3, 2), *SPATIAL, opset=7, spatial=0),
    case("BatchNormalization", IMAGE, *STATISTICS, outputs=3, opset=15, training_mode=1, momentum=0.8),
    case("BatchNormalization", IMAGE, *STATISTICS, outputs=3, opset=14, training_mode=1),
    *(case("InstanceNormalization", shape, weight(6), weight(6)) for shape in (IMAGE, (2, 6, 7), (2, 6, 1, 2))),
    case("InstanceNormalization", IMAGE, weight(6), weight(6), opset=7, epsilon=1e-2),
    case("GroupNormalization", IMAGE, weight(2), weight(2), opset=18, num_groups=2),
    case("GroupNormalization", IMAGE, weight(6), weight(6), opset=21, num_groups=3, epsilon=1e-2),
    *(case("LayerNormalization", (2, 3, 4), weight(4), weight(4), opset=opset) for opset in (17, 23)),
    case("LayerNormalization", (2, 3, 4), weight(3, 4), axis=1, epsilon=1e-2),
    case("LayerNormalization", (2, 3, 4), weight(4), weight(1, 4), axis=-2),
    case("LayerNormalization", (2, 3, 4), weight(4), weight(4), outputs=3),
    case("RMSNormalization", (2, 3, 4), weight(4), opset=23),
    case("RMSNormalization", (2, 3, 4), weight(3, 4), opset=23, axis=1, epsilon=1e-2),
    *(case("LpNormalization", (2, 3, 4), opset=opset, p=p, axis=1) for opset in (7, 22) for p in (1, 2)),
    case("LpNormalization", np.zeros((2, 3), np.float32), fed=(0,)),
    case("MeanVarianceNormalization", (2, 3, 4, 5), opset=9),
    case("MeanVarianceNormalization", (2, 3, 4), opset=13, axes=[1, -1]),
    *(case("LRN", IMAGE, size=size, opset=7) for size in (1, 3, 9)),
    case("LRN", IMAGE, size=3, alpha=0.5, beta=0.6, bias=2.0),
]


@pytest.mark.parametrize("given", CASES, ids=str)
def test_equals_onnxruntime(given: Case) -> None:
    assert_case(given)


def _normalized(momentum: float, opset: int = 15) -> tuple[Graph, torch.nn.BatchNorm2d]:
    """A convolution with BatchNormalization, and torch's own with the same numbers."""
    net = Net(opset)
    names = [net.constant(array, f"bn.{n}") for array, n in zip(STATISTICS, ("w", "b", "m", "v"), strict=True)]
    y = net.op("BatchNormalization", net.conv(net.input("batch", 2, 5, 3), 2, 6), *names, momentum=momentum)
    theirs = torch.nn.BatchNorm2d(6, momentum=1 - momentum)
    for tensor, array in zip(
        (theirs.weight, theirs.bias, theirs.running_mean, theirs.running_var), STATISTICS, strict=True
    ):
        tensor.data.copy_(torch.from_numpy(array))
    return net.output(y).graph(), theirs


@pytest.mark.parametrize("opset", [7, 15])
def test_batch_normalization_trains_as_in_torch(opset: int) -> None:
    graph, norm = _normalized(0.8, opset)
    module = to_torch(graph)
    weights = {name: tensor.detach().clone() for name, tensor in module.named_parameters()}
    conv = torch.nn.Conv2d(2, 6, 1)
    conv.weight.data.copy_(weights["c4"])
    conv.bias.data.copy_(weights["c5"])
    theirs = torch.nn.Sequential(conv, norm)
    module.train()
    ours_steps, their_steps = (torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (module, theirs))
    for step in range(4):
        x = torch.randn(8, 2, 5, 3, generator=torch.Generator().manual_seed(step))
        for model, optimizer in ((module, ours_steps), (theirs, their_steps)):
            optimizer.zero_grad()
            y = model(x)
            (y[0] if isinstance(y, tuple) else y).square().mean().backward()
            optimizer.step()
        torch.testing.assert_close(module.bn.m, norm.running_mean)
        torch.testing.assert_close(module.bn.v, norm.running_var)
        torch.testing.assert_close(module.bn.w, norm.weight)
        torch.testing.assert_close(module.bn.b, norm.bias)
    feeds = {"x0": np.random.default_rng(0).standard_normal((3, 2, 5, 3)).astype(np.float32)}
    assert_parity(to_onnx(module, graph, feeds), feeds)
    module.eval()
    theirs.eval()
    x = torch.from_numpy(feeds["x0"])
    torch.testing.assert_close(module(x)[0], theirs(x), rtol=1e-4, atol=1e-5)


def test_evaluation_leaves_the_statistics_alone() -> None:
    graph, _ = _normalized(0.9)
    module = to_torch(graph, {"x0": np.ones((2, 2, 5, 3), np.float32)})
    before = copy.deepcopy(dict(module.named_buffers()))
    assert set(before) == {"bn.m", "bn.v"}
    module(torch.randn(2, 2, 5, 3))
    torch.testing.assert_close(dict(module.named_buffers()), before, rtol=0, atol=0)


def test_statistics_behind_an_identity_are_the_constant() -> None:
    """The TorchScript exporter merges equal constants this way."""
    net = Net(13)
    mean = net.op("Identity", net.constant(np.zeros(6, np.float32), "mean"))
    names = [net.weight(6), net.weight(6), mean, net.constant(positive(6), "var")]
    graph = net.output(net.op("BatchNormalization", net.input("batch", 6, 4), *names)).graph()
    module = to_torch(graph)
    assert {name for name, _ in module.named_buffers()} == {"mean", "var"}
    module.train()
    module(torch.randn(5, 6, 4) + 3)
    assert not np.array_equal(to_onnx(module, graph).constants["mean"], np.zeros(6))


def test_training_mode_uses_the_batch_even_in_evaluation() -> None:
    graph, feeds = case("BatchNormalization", IMAGE, *STATISTICS, outputs=1, training_mode=1).model()
    module = to_torch(graph)
    (y,) = module(torch.from_numpy(feeds["x0"]))
    expected = torch.nn.functional.batch_norm(
        torch.from_numpy(feeds["x0"]), None, None, *map(torch.from_numpy, STATISTICS[:2]), training=True
    )
    torch.testing.assert_close(y, expected)
