"""Normalizations that are put behind convolutions for training: no change at the start, none of them at the end."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import Net
from onnxprune.errors import BridgeError
from onnxprune.graph import Graph
from onnxprune.recovery import Training, check, recover
from onnxprune.recovery.student import Student
from onnxprune.recovery.unfold import foldable, is_folded
from onnxprune.torch_bridge import to_torch

G = np.random.default_rng(0)


def images(count: int = 24) -> dict[str, np.ndarray]:
    return {"x0": G.standard_normal((count, 3, 6, 6)).astype("f")}


def network(*, group: int = 1, kernel: int = 3, seed: int = 0) -> Graph:
    """Three convolutions with biases, a residual, and a dense layer."""
    net = Net(seed=seed)
    h = net.op("Relu", net.conv(net.input("N", 3, 6, 6), 3, 4))
    deep = net.op("Relu", net.conv(h, 4, 4, kernel=kernel, group=group, pads=[kernel // 2] * 4))
    h = net.op("Relu", net.op("Add", h, net.conv(deep, 4, 4)))
    return net.output(net.dense(net.op("Flatten", net.op("GlobalAveragePool", h)), 4, 2)).graph()


@settings(max_examples=10, deadline=None)
@given(group=st.sampled_from([1, 2, 4]), kernel=st.sampled_from([1, 3]), seed=st.integers(0, 99))
def test_nothing_changes_at_the_start(group: int, kernel: int, seed: int) -> None:
    """In evaluation mode the module equals the graph, and folded back at once it is the graph."""
    graph, feeds = network(group=group, kernel=kernel, seed=seed), images()
    student = Student(graph, feeds, [feeds], unfolded=True)
    x = torch.from_numpy(feeds["x0"])
    start = {name: tensor.detach().clone() for name, tensor in student.trained().items()}
    with torch.no_grad():
        plain, ours = to_torch(graph)(x)[0], student.module(x)[0]
        batch = student.module.train()(x)[0]
    scale = plain.abs().max()
    assert (ours - plain).abs().max() < 1e-5 * scale
    assert (batch - plain).abs().max() < 1e-4 * scale  # the statistics are those of this batch
    back = student.export(start)
    for name, array in graph.constants.items():
        np.testing.assert_allclose(back.constants[name], array, rtol=1e-5, atol=1e-5)


def test_the_graph_is_the_same_afterwards() -> None:
    """Weights and biases of all convolutions change, and nothing else does."""
    graph, feeds = network(), images(64)
    training = Training(epochs=2, batch=32, unfold_batchnorm=True, rate=1e-2, ema=0.5)
    final = recover(graph, feeds, teacher=network(seed=1), training=training)
    assert [(n.op, [t.name for t in n.inputs]) for n in final.nodes] == [
        (n.op, [t.name for t in n.inputs]) for n in graph.nodes
    ]
    changed = {n for n, a in final.constants.items() if a.tobytes() != graph.constants[n].tobytes()}
    assert changed == {t.name for n in graph.nodes for t in n.inputs[1:] if n.op in ("Conv", "Gemm")}


@pytest.mark.parametrize(("batch", "unfolds"), [(32, True), (8, False)])
def test_it_is_done_unasked_where_a_batch_says_enough(
    batch: int, unfolds: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="onnxprune")
    recover(network(), images(64), teacher=network(seed=1), training=Training(epochs=1, batch=batch))
    assert ("3 convolutions train with a normalization, which is folded back" in caplog.text) is unfolds


def test_trained_normalizations_fold_back() -> None:
    """Whatever the tensors have become, graph and module compute the same in evaluation mode."""
    graph, feeds = network(group=2), images()
    student = Student(graph, feeds, [feeds], unfolded=True)
    values = {n: t * (1 + 0.3 * torch.rand_like(t)) + 0.01 for n, t in student.trained().items()}
    with torch.no_grad():
        for name, tensor in student.trained().items():
            tensor.copy_(values[name])
        x = torch.from_numpy(feeds["x0"])
        expected, found = student.module(x)[0], student.plain(values)(x)[0]
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_which_convolutions_get_one() -> None:
    """Not those without a bias, in front of a normalization, or at the end of the model."""
    net = Net()
    h = net.conv(net.input("N", 3, 6, 6), 3, 4)
    h = net.op("BatchNormalization", h, *(net.constant(np.ones(4, "f")) for _ in range(4)))
    h = net.op("Relu", net.op("Conv", h, net.weight(4, 4, 1, 1)))
    h = net.op("Relu", net.conv(h, 4, 4))
    graph = net.output(net.conv(h, 4, 2)).graph()
    module = to_torch(graph)
    assert [node.meta["onnx"][1] for node in foldable(module)] == ["Conv"]
    assert foldable(module)[0].meta["onnx"][2] == [graph.nodes[4].outputs[0].name]
    assert not is_folded(module) and is_folded(to_torch(network()))
    assert check(graph).unfolded == 1 and check(network()).unfolded == 3


def test_models_without_such_convolutions() -> None:
    net = Net()
    graph = net.output(net.dense(net.input("N", 3), 3, 2)).graph()
    with pytest.raises(BridgeError, match="--unfold-batchnorm finds no convolution with a bias of its own"):
        recover(graph, {"x0": np.ones((4, 3), "f")}, teacher=graph, training=Training(unfold_batchnorm=True))


def test_frozen_normalizations_keep_their_statistics() -> None:
    net = Net()
    h = net.op("Conv", net.input("N", 3, 6, 6), net.weight(4, 3, 1, 1))
    ones = [net.constant(np.ones(4, "f"), name) for name in ("scale", "shift", "mean", "variance")]
    h = net.op("Relu", net.op("BatchNormalization", h, *ones))
    graph = net.output(net.dense(net.op("Flatten", net.op("GlobalAveragePool", h)), 4, 2)).graph()
    teacher = graph.with_constants({"scale": np.full(4, 3, "f")})
    for frozen in (False, True):
        training = Training(epochs=1, batch=8, freeze_batchnorm=frozen)
        final = recover(graph, images(), teacher=teacher, training=training)
        kept = [name for name in ("scale", "mean", "variance") if np.all(final.constants[name] == 1)]
        assert kept == (["mean", "variance"] if frozen else [])
