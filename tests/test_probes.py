"""Inputs for the proof, and for models that are pruned without data."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import onnxprune
from builders import Net
from onnxprune.data import load_data
from onnxprune.graph import Graph, from_proto
from onnxprune.grouping import find_units
from onnxprune.probes import REAL, find_probes, index_ranges
from onnxprune.runtime import Session
from zoo import language
from zoo.base import TORCHSCRIPT, feeds, member, zoo


def probes(graph: Graph, data: dict[str, np.ndarray] | None = None) -> list[dict[str, np.ndarray]]:
    session, units = Session(graph.message(), device="cpu"), find_units(graph)
    shapes = {name: tuple(axis.size for axis in units.structure.axes[name]) for name in graph.inputs}
    ranges = index_ranges(graph)
    taken = load_data(data, session, shapes=shapes, ranges=ranges)
    return [dict(batch) for batch in find_probes(session, taken, shapes, ranges)]


def texts() -> Graph:
    """Words of 9 pieces and 2 segments, shifted, hidden by a mask and chosen by a boolean for each sample."""
    net = Net()
    ids, segments = (net.input("N", "T", kind=TensorProto.INT64) for _ in range(2))
    mask = net.input("N", "T", kind=TensorProto.INT64)
    chosen = net.input("N", 1, 1, kind=TensorProto.BOOL)
    h = net.op("Gather", net.weight(9, 8), net.op("Squeeze", net.op("Unsqueeze", ids, net.ints(2)), net.ints(2)))
    h = net.op("Add", h, net.op("Gather", net.weight(2, 8), net.op("Cast", segments, to=TensorProto.INT32)))
    shown = net.op("Unsqueeze", net.op("Cast", mask, to=TensorProto.FLOAT), net.ints(2))
    h = net.op("Relu", net.op("MatMul", net.op("Mul", h, shown), net.weight(8, 12)))
    y = net.op("MatMul", h, net.weight(12, 3))
    model = net.output(net.op("Where", chosen, y, net.op("Neg", y))).model()
    for node in model.graph.node:
        node.input[:] = ["attention_mask" if name == mask else name for name in node.input]
    model.graph.input[2].name = "attention_mask"
    return from_proto(model)


def test_indices_reach_as_far_as_their_tables() -> None:
    assert index_ranges(texts()) == {"x0": 9, "x1": 2}


def test_what_is_made_up_uses_the_whole_range() -> None:
    _, *made = probes(texts())
    assert {len(batch["x0"][0]) for batch in made} == {5, 23}  # both lengths that the model was tried with
    together = {name: np.concatenate([batch[name].ravel() for batch in made]) for name in made[0]}
    assert set(together["x0"].tolist()) == set(range(9))
    assert set(together["x1"].tolist()) == set(together["attention_mask"].tolist()) == {0, 1}
    assert set(together["x3"].tolist()) == {False, True}
    assert all(batch["attention_mask"].max(1).all() and batch["attention_mask"][0].all() for batch in made)


def test_real_samples_differ_as_much_as_can_be() -> None:
    """Blank ones first, then eight that are far apart among many that are not."""
    graph = from_proto(onnx.load("models/digits_mlp.onnx"))
    rare = np.eye(REAL - 1, 64, dtype="f").reshape(-1, 1, 8, 8)
    images = np.concatenate([np.zeros((100, 1, 8, 8), "f"), rare, np.zeros((50, 1, 8, 8), "f")])
    first, *made = probes(graph, {"image": images})
    assert len(first["image"]) == REAL and set(first["image"].reshape(REAL, -1).argmax(1)) == set(range(REAL - 1))
    assert all(np.isfinite(batch["image"]).all() and batch["image"].std() > 0 for batch in made)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_fixed_batch_is_filled(batch: int) -> None:
    net = Net()
    h = net.op("Relu", net.dense(net.input(batch, 6), 6, 16))
    graph = net.output(net.dense(h, 16, 3)).graph()
    data = {"x0": np.random.default_rng(0).standard_normal((10, 6)).astype("f")}
    found = probes(graph, data)
    assert {given["x0"].shape for given in found} == {(batch, 6)} and len(found) > 3
    assert len({given["x0"].tobytes() for given in found}) == len(found)
    assert len(probes(graph)) > 1


def test_lengths_of_data_are_tried_and_shorter_ones() -> None:
    graph = texts()
    generator = np.random.default_rng(0)
    data = {name: generator.integers(0, 2, (20, 12)) for name in ("x0", "x1", "attention_mask")}
    data["x3"] = generator.integers(0, 2, (20, 1, 1)).astype(bool)
    assert [batch["x0"].shape[1] for batch in probes(graph, data)] == [12, 12, 8]


def test_both_branches_are_taken() -> None:
    from zoo.endings import branch

    assert {bool(batch["flag"]) for batch in probes(from_proto(branch(True)))} == {False, True}


@pytest.mark.parametrize("name", language.models())
def test_texts_without_data(name: str) -> None:
    """The outputs still depend on the input, and equal those of the masked original on random words."""
    model = zoo()[name]
    graph = from_proto(onnx.load_from_string(member(name, TORCHSCRIPT, next(iter(model.attention), ""))))
    limits, ranking = onnxprune.Limits(round_to=1), onnxprune.Ranking("activation")
    method = onnxprune.Method(1, limits, latency=False)
    pruned = onnxprune.prune(graph, onnxprune.Budget("units", 0.5), ranking=ranking, method=method)
    assert not pruned.plan.biases and not pruned.plan.joined
    masked = Session(onnxprune.mask(find_units(graph), pruned.plan).SerializeToString(), device="cpu")
    compact = Session(pruned.graph.message(), device="cpu")
    seen = []
    for seed in range(3):
        given = feeds(model, seed=seed)
        expected, found = masked.run(given, graph.outputs), compact.run(given, graph.outputs)
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * abs(a).max())
        seen.append(found[0])
    assert all(np.abs(seen[0] - other).max() > 1e-3 * np.abs(seen[0]).max() for other in seen[1:])
