"""What goes without a trace because the weights say so, and what data only suggest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxprune
from builders import Net
from onnxprune import report
from onnxprune.exact import Exact, find_exact, recorded
from onnxprune.graph import Graph, from_proto
from onnxprune.grouping import find_units
from onnxprune.hints import ENOUGH, find_hints
from onnxprune.proof import verify
from onnxprune.records import Plan, Scores
from onnxprune.runtime import Session
from onnxprune.surgery import remove
from onnxprune.units import Units
from outsider import check_constants
from test_calibration import batches, calibrate, sites

X = np.random.default_rng(0).standard_normal((100, 10)).astype("f")


def spoiled(kind: str, activation: str = "Relu") -> Graph:
    """A dense network with a dead, a constant or a duplicate neuron, the fifth."""
    net = Net()
    h = net.op(activation, net.dense(net.input("N", 10), 10, 6))
    graph = net.output(net.dense(h, 6, 5)).graph()
    w, b = (np.array(graph.constants[name]) for name in ("c0", "c1"))
    if kind == "duplicate":
        w[:, 4], b[4] = w[:, 1], b[1]
    else:
        w[:, 4], b[4] = 0, -1 if kind == "dead" else 2
    return graph.with_constants({"c0": w, "c1": b})


def outputs(graph: Graph, x: np.ndarray = X) -> np.ndarray:
    result: np.ndarray = Session(graph.message(), device="cpu").run({"x0": x})[0]
    return result


def without(units: Units, keep: dict[str, np.ndarray], feeds: dict[str, np.ndarray]) -> tuple[Graph, Plan]:
    """The compact model, proved and rebuilt by an outsider from the plan as it is on disk."""
    plan = recorded(units, units.plan(keep), keep, find_exact(units, feeds))
    compact = remove(units.graph, plan)
    verify(units, plan, compact, {name: np.flip(array, 0) for name, array in feeds.items()})
    check_constants(units.graph.proto(), compact.proto(), plan.to_json())
    return compact, plan


@pytest.mark.parametrize("activation", ["Relu", "Sigmoid"])
@pytest.mark.parametrize("kind", ["dead", "constant", "duplicate"])
def test_units_go_without_a_trace(kind: str, activation: str, tmp_path: Path) -> None:
    """Whatever the input: the weights say so."""
    units = find_units(spoiled(kind, activation))
    found = find_exact(units, {"x0": X[:3]})["c0"]
    assert found.units == {4}
    dead = kind == "dead" and activation == "Relu"  # a sigmoid of -1 is a constant
    assert {"dead": found.dead, "constant": found.constant, "duplicate": found.twin}[
        "duplicate" if kind == "duplicate" else "dead" if dead else "constant"
    ]
    compact, plan = without(units, {"c0": np.arange(6) != 4}, {"x0": X})
    np.testing.assert_allclose(outputs(compact, 100 * X), outputs(units.graph, 100 * X), rtol=1e-5, atol=1e-3)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert bool(plan.merged) is (kind == "duplicate") and bool(plan.constant) is (kind != "duplicate" and not dead)


@pytest.mark.parametrize("kind", ["constant", "duplicate"])
def test_nothing_changes_where_such_units_stay(kind: str) -> None:
    units = find_units(spoiled(kind))
    compact, plan = without(units, {"c0": np.arange(6) != 0}, {"x0": X})
    assert not (plan.merged or plan.constant or plan.joined or plan.biases or plan.spared)
    np.testing.assert_array_equal(compact.constants["c2"], units.graph.constants["c2"][1:])
    np.testing.assert_array_equal(compact.constants["c3"], units.graph.constants["c3"])


def test_of_equal_units_the_first_that_stays_takes_over() -> None:
    graph = spoiled("duplicate")
    w, b = (np.array(graph.constants[name]) for name in ("c0", "c1"))
    w[:, 5], b[5] = w[:, 1], b[1]
    units = find_units(graph.with_constants({"c0": w, "c1": b}))
    kept = {"c0": np.array([1, 0, 1, 1, 0, 1], bool)}
    compact, plan = without(units, kept, {"x0": X})
    assert plan.merged == {"c0": {1: 5, 4: 5}}
    np.testing.assert_allclose(outputs(compact), outputs(units.graph), atol=1e-4)
    _, plan = without(units, {"c0": np.array([1, 0, 1, 1, 0, 0], bool)}, {"x0": X})
    assert plan.merged == {}  # none stays, so they are masked like any others


def test_constants_reach_a_convolution_without_bias_but_not_through_padding() -> None:
    for pads, taken in (([0, 0, 0, 0], True), ([1, 1, 1, 1], False)):
        net = Net()
        h = net.op("Relu", net.conv(net.input("N", 2, 4, 4), 2, 6))
        h = net.op("Relu", net.op("Conv", h, net.weight(5, 6, 3, 3), pads=pads))
        graph = net.output(net.conv(h, 5, 2)).graph()
        w, b = (np.array(graph.constants[name]) for name in ("c0", "c1"))
        w[3], b[3] = 0, 2
        units = find_units(graph.with_constants({"c0": w, "c1": b}))
        x = np.random.default_rng(0).standard_normal((9, 2, 4, 4)).astype("f")
        found = find_exact(units, {"x0": x}).get("c0", Exact())
        assert (3 in found.constant) is taken
        if taken:
            compact, _ = without(units, {"c0": np.arange(6) != 3}, {"x0": x})
            np.testing.assert_allclose(outputs(compact, x), outputs(units.graph, x), atol=1e-5)
            second = list(units.groups)[1]
            without(units, {"c0": np.arange(6) != 3, second: np.arange(5) < 2}, {"x0": x})  # its new bias is cut


def test_units_of_pieces_that_go_different_ways_are_not_equal() -> None:
    """The same rows, but one is squared on the way to its reader."""
    net = Net()
    h = net.dense(net.input("N", 10), 10, 8)
    left, right = net.ops("Split", h, net.ints(4, 4), outputs=2, axis=1)
    h = net.op("Concat", net.op("Relu", left), net.op("Mul", right, right), axis=1)
    graph = net.output(net.dense(h, 8, 3)).graph()
    w, b = (np.array(graph.constants[name]) for name in ("c0", "c1"))
    w[:, 6], b[6] = w[:, 1], b[1]
    units = find_units(graph.with_constants({"c0": w, "c1": b}))
    assert not any(found.twin for found in find_exact(units, {"x0": X}).values())


def test_equal_units_stay_where_others_read_the_weight_too_or_sums_would_be_rounded() -> None:
    for half in (False, True):
        net = Net()
        w, reader = net.weight(10, 6), net.weight(6, 6)
        h = net.op("MatMul", net.op("Relu", net.op("MatMul", net.input("N", 10), w)), reader)
        h = net.op("Relu", h) if half else net.op("MatMul", net.op("Relu", h), reader)
        model = net.output(net.op("MatMul", h, net.weight(6, 2))).model()
        weight = np.array(onnx.numpy_helper.to_array(model.graph.initializer[0]))
        weight[:, 4] = weight[:, 1]
        model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, w))
        if half:
            for tensor in model.graph.initializer:
                array = onnx.numpy_helper.to_array(tensor).astype(np.float16)
                tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
            for info in (*model.graph.input, *model.graph.output):
                info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
        units = find_units(from_proto(model))
        assert units.groups
        assert not find_exact(units, {"x0": X.astype(np.float16 if half else np.float32)})


def test_a_constant_that_differs_by_position_is_none() -> None:
    """A table of positions is added behind the row of zeros."""
    net = Net()
    h = net.op("MatMul", net.input("N", 7, 10), net.weight(10, 6))
    h = net.op("Relu", net.op("Add", h, net.weight(7, 6)))
    graph = net.output(net.op("MatMul", h, net.weight(6, 3))).graph()
    w = np.array(graph.constants["c0"])
    w[:, 2] = 0
    units = find_units(graph.with_constants({"c0": w}))
    assert [group.size for group in units.groups.values()] == [6]
    assert not find_exact(units, {"x0": np.zeros((3, 7, 10), "f")})


def flagged() -> tuple[Graph, dict[str, np.ndarray]]:
    """Two branches, of which one reads a flag that is 1 in all samples."""
    net = Net()
    x, flag = net.input("N", 10), net.input("N", 1)
    a = net.op("Relu", net.dense(x, 10, 8))
    b = net.op("Relu", net.dense(flag, 1, 8))
    graph = net.output(net.op("Add", net.dense(a, 8, 3), net.dense(b, 8, 3))).graph()
    return graph, {"x0": X, "x1": np.ones((len(X), 1), "f")}


def test_what_data_hold_still_changes_nothing_in_units_that_stay() -> None:
    graph, data = flagged()
    other = next(name for name in find_units(graph).groups if name != "c0")
    method = onnxprune.Method(1, onnxprune.Limits(skip=(other,)), latency=False)
    pruned = onnxprune.prune(graph, onnxprune.Budget("units", 0.5), data, method=method)
    assert set(pruned.plan.groups) == {"c0"}
    same = [name for name, array in graph.constants.items() if np.array_equal(array, pruned.graph.constants[name])]
    assert set(graph.constants) - set(same) == set(pruned.plan.initializers)
    note = next(row.note for row in pruned.report.groups if row.name == other)
    assert "8 stood still on 100 samples, as did all others" in note


@pytest.mark.parametrize(("samples", "believed"), [(1, False), (ENOUGH - 1, False), (ENOUGH, True)])
def test_few_samples_are_not_believed(samples: int, believed: bool) -> None:
    units = find_units(spoiled("none"))
    w = np.array(units.graph.constants["c0"])
    b = np.array(units.graph.constants["c1"])
    b[3] = -100  # alive far away from all of the data
    units = find_units(units.graph.with_constants({"c0": w, "c1": b}))
    moments = calibrate(units.graph, sites(units), batches(X, 50))
    assert 3 not in find_exact(units, {"x0": X}).get("c0", Exact()).units
    hint = find_hints(units, moments, {}, samples=samples, made_up=False)["c0"]
    assert 3 in hint.units and bool(hint.doubt) is not believed
    assert find_hints(units, moments, {}, samples=10_000, made_up=True)["c0"].doubt == "which were made up"
    feeding = onnxprune.Feeding(samples=samples)
    scores = onnxprune.score(units.graph, {"x0": X}, feeding=feeding).scores.by_group["c0"]
    assert bool(scores[3] == -np.inf) is believed


@pytest.mark.parametrize("rows", [1, 500])
def test_one_sample_again_and_again_ranks_by_the_criterion(rows: int, mlp_model: Path, test_data: Path) -> None:
    """All units stand still, which says nothing; the result equals the masked original."""
    data = {"image": np.repeat(np.load(test_data)["image"][:1], rows, axis=0)}
    ranking, method = onnxprune.Ranking("activation"), onnxprune.Method(1, latency=False)
    pruned = onnxprune.prune(mlp_model, onnxprune.Budget("units", 0.5), data, ranking=ranking, method=method)
    assert all(np.isfinite(scores).all() for scores in pruned.scores.by_group.values())
    assert not pruned.plan.biases and not pruned.plan.joined
    accuracy, _ = onnxprune.evaluate(pruned.graph, test_data)
    masked = Session(onnxprune.mask(onnxprune.find_units(onnxprune.load(mlp_model)), pruned.plan).SerializeToString())
    test = np.load(test_data)
    assert accuracy == np.mean(masked.run({"image": test["image"]})[0].argmax(1) == test["labels"])


def test_refit_puts_the_value_of_a_unit_that_stood_still_into_a_bias() -> None:
    net = Net()
    x, flag = net.input("N", 10), net.input("N", 1)
    h = net.op("Relu", net.dense(net.op("Concat", x, flag, axis=1), 11, 12))
    graph = net.output(net.dense(h, 12, 3)).graph()
    w = np.array(graph.constants["c0"])
    w[:10, 7], w[10, 7] = 0, 3  # reads the flag alone
    graph = graph.with_constants({"c0": w})
    data = {"x0": X, "x1": np.ones((len(X), 1), "f")}
    keep = onnxprune.Limits(floor=0.9)
    pruned = onnxprune.prune(
        graph, onnxprune.Budget("units", 0.1), data, method=onnxprune.Method(1, keep, refit=True, latency=False)
    )
    assert 7 not in pruned.plan.groups["c0"][1] and not pruned.plan.constant
    whole, compact = (Session(g.message(), device="cpu").run(data)[0] for g in (graph, pruned.graph))
    np.testing.assert_allclose(compact, whole, atol=1e-3)
    assert not np.array_equal(pruned.graph.constants["c3"], graph.constants["c3"])


def test_units_that_change_no_output_have_no_score_and_are_counted() -> None:
    scored = onnxprune.score(spoiled("dead"), {"x0": X})
    assert "1 change no output and go first" in report.scored(scored.units, scored.scores)
    gone = Scores("spectral", {"c0": np.full(6, -np.inf)})
    shown = report.scored(scored.units, gone)
    assert "6 change no output and go first" in shown and not {"nan", "inf", "-inf"} & set(shown.split())
