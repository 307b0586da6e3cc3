"""The law itself: a wrong rule must be caught, and both sides of the law must be what they claim."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from builders import Net
from laws import compare, sizes
from onnxprune.errors import PlanError, VerificationError
from onnxprune.grouping import find_units
from onnxprune.masking import mask
from onnxprune.proof import verify
from onnxprune.records import Plan
from onnxprune.rules import base
from onnxprune.rules.facts import Fact, paired, same
from onnxprune.rules.node import Node
from onnxprune.surgery import remove


def normalized() -> Net:
    """Two dense layers with a LayerNormalization between them."""
    net = Net(17)
    h = net.op("MatMul", net.input("N", 4), net.weight(4, 6))
    h = net.op("LayerNormalization", h, net.weight(6), net.weight(6))
    return net.output(net.op("MatMul", h, net.weight(6, 2)))


def small() -> Net:
    """Two dense layers."""
    net = Net()
    return net.output(net.dense(net.op("Relu", net.dense(net.input("N", 3), 3, 6)), 6, 2))


def test_a_wrong_rule_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A LayerNormalization that passes its axis on, as masks are let through it elsewhere."""

    def carries_its_axis(node: Node) -> Iterator[Fact]:
        yield from paired(node.input(0), node.output)
        for parameter in node.inputs[1:]:
            yield same(parameter.axis(0), node.output.axis(-1))

    graph = normalized().graph()
    assert sizes(find_units(graph)) == []
    wrong = [base.Registered(carries_its_axis, linear=False, since=1)]
    monkeypatch.setitem(base._REGISTRY, ("", "LayerNormalization"), wrong)
    units = find_units(graph)
    assert sizes(units) == [6]
    plan = units.plan({name: np.arange(6) > 2 for name in units.groups})
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        compare(units, plan)
    feeds = {"x0": np.random.default_rng(0).standard_normal((5, 4)).astype("f")}
    with pytest.raises(
        VerificationError, match="differs from the masked original, first in tensor 'layernormalization"
    ):
        verify(units, plan, remove(units.graph, plan), feeds)


def test_the_mask_is_what_an_outsider_would_do() -> None:
    """Numpy alone, from the plan alone: the masked model of a dense network."""
    units = find_units(small().graph())
    plan = units.plan({name: np.arange(6) % 2 == 0 for name in units.groups})
    w1, b1, w2, b2 = (units.graph.constants[f"c{i}"].astype(np.float64) for i in range(4))
    x = np.random.default_rng(0).standard_normal((7, 3))
    hidden = x @ w1 + b1
    ((axis, kept),) = plan.activations[units.graph.nodes[0].outputs[0].name].items()
    assert axis == 1 and kept == (0, 2, 4)
    keep = np.isin(np.arange(6), kept)
    expected = (np.maximum(hidden * keep, 0) * keep) @ w2 + b2
    from onnxprune.runtime import Session

    for model in (mask(units, plan).SerializeToString(), remove(units.graph, plan).message()):
        found = Session(model, device="cpu").run({"x0": x.astype("f")})[0]
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert plan.initializers == {"c0": {1: (0, 2, 4)}, "c1": {0: (0, 2, 4)}, "c2": {0: (0, 2, 4)}}


def test_remove_changes_nothing_it_is_given() -> None:
    graph = small().graph()
    before = graph.message()
    units = find_units(graph)
    remove(graph, units.plan({name: np.arange(6) < 3 for name in units.groups}))
    assert graph.message() == before


def test_a_plan_of_another_model_is_refused(tmp_path: object) -> None:
    units = find_units(small().graph())
    plan = units.plan({name: np.arange(6) < 3 for name in units.groups})
    other = normalized().graph()
    with pytest.raises(PlanError, match="the plan was made for another model"):
        remove(other, plan)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"nonsense": np.ones(6, bool)}, "there is no group 'nonsense' in this model"),
        ({"c0": np.ones(5, bool)}, "group 'c0' has 6 units, the plan speaks of 5"),
        ({"c0": np.zeros(6, bool)}, "group 'c0' would lose all its 6 units; at least 1 must stay"),
    ],
)
def test_impossible_plans_are_refused(keep: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        find_units(small().graph()).plan(keep)


def test_plans_survive_the_disk(tmp_path) -> None:
    units = find_units(small().graph())
    plan = units.plan({name: np.arange(6) < 3 for name in units.groups}, {"why": "a test"})
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    (tmp_path / "no.json").write_text('{"schema": "something else"}')
    with pytest.raises(PlanError, match="is no plan of onnxprune"):
        Plan.load(tmp_path / "no.json")
