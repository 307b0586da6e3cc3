"""Recurrent layers along the whole path: units that go without a trace, scores, refit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from builders import Net
from onnxprune.exact import find_exact, recorded
from onnxprune.graph import Graph
from onnxprune.grouping import find_units
from onnxprune.moments import calibrate
from onnxprune.proof import verify
from onnxprune.records import Moments
from onnxprune.refit import refit
from onnxprune.report import inspection
from onnxprune.runtime import Session
from onnxprune.scoring import score
from onnxprune.surgery import remove
from onnxprune.units import Units
from rules.test_recurrent import last_step, layer

X = np.random.default_rng(0).standard_normal((5, 40, 3)).astype("f")
"""Five steps of forty sequences."""


def classifier(op: str) -> Graph:
    """Two layers, the first one in both directions."""
    net = Net(14)
    y = layer(net, op, net.input(5, 40, 3), 3, 6, "B", direction="bidirectional")[0]
    y = net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3]), net.ints(0, 0, 12))
    y, width = last_step(net, layer(net, op, y, 12, 8, "B")[0], 1, 8)
    return net.output(net.dense(y, width, 4)).graph()


def batches() -> Iterator[tuple[dict[str, np.ndarray], int]]:
    yield {"x0": X}, 5


def moments(units: Units) -> Moments:
    sites = {s.site.key: s.site for group in units.groups.values() for s in (*group.pre, *group.post)}
    return calibrate(units.graph, list(sites.values()), batches(), device="cpu")


def outputs(graph: Graph) -> np.ndarray:
    result: np.ndarray = Session(graph.message(), device="cpu").run({"x0": X})[0]
    return result


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_a_unit_that_equals_another_one_goes_without_a_trace(op: str) -> None:
    """Its rows are equal in both directions; the columns of R and of the next layer's W that read it need not be."""
    graph = classifier(op)
    w, r, b = (np.array(graph.constants[name]) for name in ("c1", "c2", "c0"))
    for array in (w, r, b):
        gates = array.reshape(2, -1, 6, *array.shape[2:])  # a view, gates and halves of the bias in one axis
        gates[:, :, 4] = gates[:, :, 1]
    units = find_units(graph.with_constants({"c1": w, "c2": r, "c0": b}))
    exact = find_exact(units, {"x0": X})
    assert {name: dict(found.twin) for name, found in exact.items()} == {"c1": {4: 1}}
    keep = {"c1": np.arange(6) != 4}
    plan = recorded(units, units.plan(keep), keep, exact)
    compact = remove(units.graph, plan)
    verify(units, plan, compact, {"x0": X})
    np.testing.assert_allclose(outputs(compact), outputs(units.graph), atol=1e-5)


def test_equal_units_stay_where_a_weight_that_reads_them_is_computed() -> None:
    """The reader's rows cannot be added up in a constant."""
    net = Net(14)
    w = np.random.default_rng(0).standard_normal((3, 6)).astype("f")
    w[:, 4] = w[:, 1]
    h = net.op("Relu", net.op("MatMul", net.input(5, 40, 3), net.constant(w)))
    units = find_units(net.output(net.op("MatMul", h, net.op("Abs", net.constant(np.ones((6, 2), "f"))))).graph())
    assert [group.size for group in units.groups.values()] == [6]
    assert not any(found.twin for found in find_exact(units, {"x0": X}).values())


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_refit_leaves_the_recurrence_alone_and_helps(op: str) -> None:
    """What a layer reads of itself moves with every change, so only the next layer's W and the head are solved for."""
    units = find_units(classifier(op))
    plan = units.plan({name: np.arange(group.size) >= group.size // 3 for name, group in units.groups.items()})
    compact = remove(units.graph, plan)
    better, nodes = refit(units, plan, compact, batches, device="cpu")
    _, second, head = (node for node in units.graph.nodes if node.op in (op, "Gemm"))
    assert nodes == [second.name, head.name]
    changed = {
        name for name in compact.constants if not np.array_equal(compact.constants[name], better.constants[name])
    }
    assert changed == {second.inputs[1].name, head.inputs[1].name}
    before, after = (np.square(outputs(graph) - outputs(units.graph)).mean() for graph in (compact, better))
    assert after < before


def test_gates_cannot_be_recorded_and_the_scores_say_so() -> None:
    units = find_units(classifier("LSTM"))
    used = {weight.tensor for group in units.groups.values() for weight in (*group.writers, *group.readers)}
    weights = {name: units.graph.constants[name] for name in used}
    scores = score(units, moments(units), weights, {})
    assert set(scores.notes.values()) == {
        "its gates are inside one operator and cannot be recorded: ranked by reconstruction cost"
    }
    assert inspection(units).count("its gates are inside one operator and cannot be recorded") == 2
    assert all(np.isfinite(values).all() and (values > 0).all() for values in scores.by_group.values())
