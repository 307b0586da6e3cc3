"""Recurrent layers, by PyTorch's kernels and step by step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from onnxprune.runtime import Session
from onnxprune.torch_bridge import inputs_of, missing_operators, to_onnx, to_torch, untouched_parameters
from onnxprune.torch_bridge.parity import difference
from torch_bridge.parity import Case, array, assert_case, assert_parity, case, perturb, run, weight

X = (5, 3, 4)
GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}
LENGTHS = array(5, 2, 3, dtype=np.int32)


def weights(op: str, directions: int = 1, hidden: int = 6) -> tuple[np.ndarray, ...]:
    """W, R and B, small enough that no gate is saturated."""
    rows = GATES[op] * hidden
    shapes = (directions, rows, 4), (directions, rows, hidden), (directions, 2 * rows)
    return tuple(weight(*shape, seed=i) / 2 for i, shape in enumerate(shapes))


def states(op: str, directions: int = 1, hidden: int = 6) -> tuple[np.ndarray, ...]:
    """Initial states."""
    return tuple(weight(directions, 3, hidden, seed=i) for i in range(1 + (op == "LSTM")))


def layer(op: str, *rest: object, directions: int = 1, opset: int = 14, **attrs: object) -> Case:
    """A layer with all its results."""
    attrs |= {"hidden_size": 6} | ({"direction": "bidirectional"} if directions == 2 else {})
    return case(op, X, *weights(op, directions), *rest, opset=opset, outputs=2 + (op == "LSTM"), **attrs)


CASES = [
    *(layer(op, opset=opset, directions=d) for op in GATES for opset, d in ((7, 1), (14, 2), (22, 1))),
    *(layer(op, None, *states(op), direction="reverse") for op in GATES),
    *(layer(op, None, *states(op, 2), directions=2) for op in GATES),
    *(layer(op, LENGTHS, *states(op, 2), directions=2) for op in GATES),
    *(layer(op, LENGTHS, direction="reverse") for op in GATES),
    *(case(op, X, *weights(op)[:2], hidden_size=6, opset=14) for op in GATES),
    *(layer("GRU", None, *states("GRU", d), directions=d, linear_before_reset=1) for d in (1, 2)),
    layer("GRU", LENGTHS, linear_before_reset=1, activations=["HardSigmoid", "Softsign"], clip=0.5),
    layer("LSTM", None, *states("LSTM", 2), weight(2, 18), directions=2),
    layer("LSTM", None, None, None, weight(1, 18), clip=0.5, input_forget=1),
    layer("LSTM", activations=["HardSigmoid", "Softplus", "Elu"], activation_alpha=[0.3], activation_beta=[0.4]),
    layer("LSTM", directions=2, activations=["Sigmoid", "Relu", "Tanh", "Sigmoid", "Softsign", "LeakyRelu"]),
    layer("RNN", activations=["Relu"]),
    *(
        layer("RNN", activations=[name], activation_alpha=[0.7], activation_beta=[0.2])
        for name in ("Affine", "LeakyRelu", "ScaledTanh", "ThresholdedRelu", "Elu", "HardSigmoid")
    ),
    layer("RNN", directions=2, activations=["ThresholdedRelu", "Affine"], activation_alpha=[0.3, 0.6], clip=2.0),
]


@pytest.mark.parametrize("given", CASES, ids=str)
def test_equals_onnxruntime(given: Case) -> None:
    assert_case(given)


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("attrs", [{}, {"clip": 9.0}], ids=["kernel", "steps"])
def test_weights_are_trained_under_their_names(op: str, attrs: dict[str, float]) -> None:
    graph, feeds = layer(op, None, *states(op), directions=1, **attrs).model()
    module = assert_parity(graph, feeds)
    assert {name for name, _ in module.named_parameters()} == set(graph.constants)
    assert untouched_parameters(module, feeds) == []
    perturb(module)
    trained = to_onnx(module, graph, feeds)
    (expected, *_) = Session(trained.message(), device="cpu").run(feeds)
    assert difference(run(module, graph, feeds), expected) < 1e-5


def test_zeros_as_initial_states_are_not_trained() -> None:
    zeros = np.zeros((1, 3, 6), np.float32)
    graph, _ = layer("LSTM", None, zeros, zeros).model()
    assert {name for name, _ in to_torch(graph).named_parameters()} == {"c1", "c2", "c3"}


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("rest", [(None,), (np.zeros(5, np.int32) + 3,)], ids=["kernel", "steps"])
def test_batch_in_front(op: str, rest: tuple[np.ndarray | None]) -> None:
    """ONNX Runtime lacks layout=1; X has 3 steps, so that the reference evaluator may ignore their number."""
    initial = tuple(np.swapaxes(weight(2, 5, 6, seed=i), 0, 1).copy() for i in range(1 + (op == "LSTM")))
    attrs = {"hidden_size": 6, "layout": 1, "direction": "bidirectional"}
    given = case(op, (5, 3, 4), *weights(op, 2), *rest, *initial, outputs=1 + len(initial), opset=14, **attrs)
    graph, feeds = given.model()
    expected = ReferenceEvaluator(graph.proto()).run(None, feeds)
    with torch.no_grad():
        found = to_torch(graph)(*inputs_of(graph.inputs, feeds))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert difference(ours.numpy(), theirs) < 1e-5


def test_an_unknown_activation_is_missing() -> None:
    graph, _ = layer("RNN", activations=["Mish"]).model()
    assert missing_operators(graph) == {"RNN with activation Mish": ["rnn0_node"]}
