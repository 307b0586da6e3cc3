"""Names of a model that are those of the tool's own helpers: nothing collides, and the result is the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxprune
from builders import Net
from onnxprune import Budget, Limits, Method
from onnxprune.graph import Graph, from_proto

DATA = {"x0": np.random.default_rng(0).standard_normal((32, 3, 4, 4)).astype(np.float32)}

TAKEN = (
    *("onnxprune.moments:axis", "onnxprune.moments:zero", "onnxprune.moments:states:relu1:1"),
    *("onnxprune.moments:second:relu1:1", "onnxprune.shape:x0", "onnxprune.shape:relu1", "onnxprune.original:x0"),
    *("onnxprune.original:relu1", "onnxprune.refit:states", "onnxprune.refit:gram", "onnxprune.refit:turned"),
    *("split2.input1", "split2.input1.places", "gemm9.input2", "c0.2", "relu1:keep", "relu1:whole", "relu1:kept"),
)


def network() -> onnx.ModelProto:
    """A network to which surgery adds inputs, whose biases are shared, and whose statistics are taken."""
    net = Net(20)
    zero = net.constant(np.zeros(6, np.float32))
    h = net.op("Relu", net.op("Conv", net.input("N", 3, 4, 4), net.weight(6, 3, 1, 1), zero))
    parts = net.ops("Split", h, outputs=2, axis=1, num_outputs=2)
    h = net.op("Conv", net.op("Concat", *parts, axis=1), net.weight(6, 6, 1, 1), zero)
    h = net.op("Flatten", net.op("GlobalAveragePool", net.op("Relu", h)))
    for _ in range(3):
        h = net.op("Tanh", net.dense(h, 6, 6))
    return net.output(net.op("Gemm", h, net.weight(6, 2))).model()


def renamed(model: onnx.ModelProto, names: dict[str, str]) -> onnx.ModelProto:
    """The same model with other names of tensors."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    for node in out.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for tensor in (*out.graph.initializer, *out.graph.output):
        tensor.name = names.get(tensor.name, tensor.name)
    return out


def pruned(graph: Graph) -> onnxprune.Pruned:
    method = Method(rounds=2, refit=True, latency=False, limits=Limits(round_to=1))
    return onnxprune.prune(graph, Budget("units", 0.5), DATA, method=method)


def test_names_of_helpers_may_be_taken() -> None:
    model = network()
    inner = [name for node in model.graph.node for name in node.output][1:]
    free = [name for name in inner if name not in ("split2", "split2_1")]
    usual = pruned(from_proto(renamed(model, {})))
    for start in range(0, len(TAKEN), len(free)):
        names = dict(zip(free, TAKEN[start : start + len(free)], strict=False))
        found = pruned(from_proto(renamed(model, names)))
        for ours, theirs in zip(usual.graph.constants.values(), found.graph.constants.values(), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
        onnx.checker.check_model(found.graph.proto(), full_check=True)


@pytest.mark.parametrize("taken", ["c0.2", "split2.input1"])
def test_names_inside_of_bodies_are_taken_too(taken: str) -> None:
    """A name may not be given twice, whichever is inside."""
    net = Net(20)
    zero = net.constant(np.zeros(6, np.float32))
    h = net.op("Gemm", net.input(4, 6), net.weight(6, 6), zero)
    h = net.op("Gemm", net.op("Relu", h), net.weight(6, 6), zero)
    parts = net.ops("Identity", h, outputs=1)
    inside = onnx.helper.make_node("Neg", [parts[0]], [taken])
    declared = onnx.helper.make_tensor_value_info(taken, 1, None)
    body = onnx.helper.make_graph([inside], "body", [], [declared])
    h = net.op("If", net.constant(np.array(True)), then_branch=body, else_branch=body)
    graph = from_proto(net.output(net.dense(h, 6, 2)).model())
    assert taken not in graph.constants
    assert graph.fresh("split2.input1") == ("split2.input1'" if taken == "split2.input1" else "split2.input1")
