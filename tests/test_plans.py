"""Plans that were edited, or are of another model: refused in one line before anything is done."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

import onnxprune
from builders import Net
from commands import refused
from onnxprune import Plan, Training, Units
from onnxprune.errors import OnnxPruneError, PlanError
from onnxprune.grouping import find_units
from seeds import BUILT

DATA = {"x0": np.random.default_rng(0).standard_normal((8, 3, 4, 4)).astype(np.float32)}


def model() -> Units:
    net = Net(20)
    h = net.op("Relu", net.conv(net.input("N", 3, 4, 4), 3, 6))
    parts = net.ops("Split", h, net.ints(3, 3), outputs=2, axis=1)
    h = net.op("Relu", net.conv(net.op("Concat", *parts, axis=1), 6, 8))
    h = net.op("Flatten", net.op("GlobalAveragePool", h))
    return find_units(net.output(net.dense(h, 8, 2)).graph())


def written(units: Units, path: Path) -> dict[str, Any]:
    """The plan that removes every other unit, as JSON."""
    plan = units.plan({name: np.arange(group.size) % 2 == 0 for name, group in units.groups.items()})
    plan.save(path)
    return json.loads(path.read_text())


FIRST = "c0[0:3]"
"""A group of the model."""

EDITS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another model": (lambda p: p.update(model="0" * 64), "the plan was made for another model"),
    "a position that is not there": (
        lambda p: p["initializers"]["c0"]["0"].append(99),
        r"it keeps positions up to 99 of axis 0 of 'c0', which has the shape \[6, 3, 1, 1\]; it was edited, so make",
    ),
    "positions in disorder": (
        lambda p: p["initializers"]["c0"]["0"].reverse(), r"initializers\['c0'\]\[0\] \(5, .* indices from 0 that rise",
    ),
    "a position twice": (
        lambda p: p["initializers"]["c0"].update({"0": [0, 2, 2]}), r"the plan's initializers\['c0'\]\[0\] \(0, 2, 2\)",
    ),
    "a position from the end": (lambda p: p["activations"]["relu1"].update({"1": [-1, 2]}), r"\['relu1'\]\[1\]"),
    "a position that is no number": (
        lambda p: p["activations"]["relu1"].update({"1": [0, "2"]}), "'2' does not do; give a whole number",
    ),
    "half a position": (lambda p: p["activations"]["relu1"].update({"1": [0, 2.5]}), "2.5 does not do; give a whole"),
    "true": (lambda p: p["groups"][FIRST].update(kept=[True]), r"groups\['c0\[0:3\]'\] True does not do; give a whole"),
    "an axis that is not there": (
        lambda p: p["initializers"]["c1"].update({"1": [0]}), "positions up to 0 of axis 1 of 'c1', which has",
    ),
    "an axis of an activation": (
        lambda p: p["activations"]["relu1"].update({"7": [0]}), r"axis 7 of 'relu1', which has the shape \[2, 6,",
    ),
    "a position of an activation": (
        lambda p: p["activations"]["relu1"].update({"1": [0, 6]}), "keeps positions up to 6 of axis 1 of 'relu1'",
    ),
    "a constant that is not there": (
        lambda p: p["initializers"].update(other={"0": [0]}), "names the constant 'other', which it has not",
    ),
    "a tensor that is not there": (
        lambda p: p["activations"].update(other={"0": [0]}), "names the tensor 'other', which it has not",
    ),
    "a group of another size": (
        lambda p: p["groups"][FIRST].update(units=5, kept=[0]), r"speaks of 5 units of 'c0\[0:3\]', which has 3",
    ),
    "a group that is not there": (
        lambda p: p["groups"].update(other={"units": 3, "kept": [0]}), "3 units of 'other', which is no group of this",
    ),
    "a unit that is not there": (
        lambda p: p["groups"][FIRST].update(kept=[6]), r"the plan keeps unit 6 of group 'c0\[0:3\]', which has 3",
    ),
    "a group without units": (lambda p: p["groups"][FIRST].update(kept=[]), r"groups\['c0\[0:3\]'\] \(\) is out"),
    "a number of another node": (
        lambda p: p["numbers"][0].update(node="other"), "names a node that makes 'other', which it has not",
    ),
    "a number behind the last": (
        lambda p: p["numbers"][0].update(index=40), "writes number 40 of 'c2' for 'split2', which has 2",
    ),
    "a number in another constant": (lambda p: p["numbers"][0].update(constant="nothing"), "number 0 of 'nothing'"),
    "a number without end": (lambda p: p["numbers"][0].update(value=float("inf")), "the value of a number of the plan"),
    "a frozen tensor": (
        lambda p: p["frozen"].update(relu1={"dtype": "int64", "shape": [3], "values": [1]}), r"\[3\] and 1 numbers",
    ),
    "a frozen type": (
        lambda p: p["frozen"].update(relu1={"dtype": "O", "shape": [1], "values": [1]}), "dtype of a frozen .* unknown",
    ),
    "an input to leave out": (lambda p: p["omitted"].update(relu1=[5]), r"leaves out the inputs \[5\] of the node"),
    "a node of statistics": (lambda p: p["inexact"].append("other"), "names the tensor 'other', which no node makes"),
    "a copy": (lambda p: p["copies"].update(c0="c1"), "calls 'c0' a copy of 'c1', which it is not"),
    "a table that is a list": (lambda p: p.update(activations=[]), "is no plan of onnxprune"),
    "an unknown key": (lambda p: p.update(extra=1), "is no plan of onnxprune"),
}  # fmt: skip


@pytest.mark.parametrize("kind", EDITS)
def test_edited_plans_are_refused(tmp_path: Path, kind: str) -> None:
    units = model()
    content = written(units, tmp_path / "plan.json")
    change, message = EDITS[kind]
    change(content)
    (tmp_path / "plan.json").write_text(json.dumps(content))
    with pytest.raises(PlanError, match=message) as caught:
        onnxprune.mask(units, Plan.load(tmp_path / "plan.json"))
    assert "\n" not in str(caught.value)


def test_recover_refuses_them_too(tmp_path: Path) -> None:
    units = model()
    content = written(units, tmp_path / "plan.json")
    compact = onnxprune.remove(units.graph, Plan.load(tmp_path / "plan.json"))
    content["activations"]["conv4"]["1"][-1] = 99
    (tmp_path / "plan.json").write_text(json.dumps(content))
    with pytest.raises(PlanError, match=r"the plan keeps positions of 'conv4' that are not there, its shape is \(2, 8"):
        onnxprune.recover(
            compact, DATA, teacher=units.graph, plan=tmp_path / "plan.json", training=Training(match_hidden=1.0)
        )
    for name, graph in (("original", units.graph), ("compact", compact)):
        graph.save(tmp_path / f"{name}.onnx")
    np.savez(tmp_path / "d.npz", **DATA)
    content["initializers"]["c0"]["0"] = [5, 4]
    (tmp_path / "plan.json").write_text(json.dumps(content))
    files = [tmp_path / "compact.onnx", "--data", tmp_path / "d.npz", "--teacher", tmp_path / "original.onnx"]
    words = refused("recover", *files, "--match-hidden", 1, "--plan", tmp_path / "plan.json")
    assert f"{tmp_path}/plan.json: the plan's initializers['c0'][0] (5, 4) is out of range; give indices" in words


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    units = model()
    plan = units.plan({name: np.arange(group.size) % 2 == 0 for name, group in units.groups.items()}, {"why": "test"})
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{", "[" * 100_000, '{"schema": "onnxprune.plan/1"}', "\xff", "1e999"]
)
def test_files_that_are_no_plans(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(PlanError, match="is no plan of onnxprune; make one with"):
        Plan.load(tmp_path / "plan.json")


VALUES: tuple[Any, ...] = (
    -1,
    0,
    1,
    3,
    7,
    99,
    1 << 40,
    1 << 70,
    0.5,
    float("nan"),
    float("inf"),
    True,
    None,
    "",
    "c0",
    "x",
    [],
    {},
)


def mutate(value: Any, random: Random) -> Any:
    """Changes something somewhere in a table."""
    if isinstance(value, dict) and value and random.random() < 0.9:
        key = random.choice(sorted(value))
        deed = random.random()
        if deed < 0.1:
            return {name: x for name, x in value.items() if name != key}
        if deed < 0.2:
            return {
                str(random.choice([*value, "x", "7", "-1", "1.5"])) if name == key else name: x
                for name, x in value.items()
            }
        return {**value, key: mutate(value[key], random)}
    if isinstance(value, list) and value and random.random() < 0.9:
        at = random.randrange(len(value))
        deed = random.random()
        if deed < 0.15:
            return value[:at] + value[at + 1 :]
        if deed < 0.3:
            return [*value, value[at]]
        if deed < 0.4:
            return value[::-1]
        return [*value[:at], mutate(value[at], random), *value[at + 1 :]]
    if isinstance(value, int) and random.random() < 0.5:
        return value + random.choice((-1, 1, 2))
    return random.choice(VALUES)


@pytest.mark.parametrize("name", ["", "transformer", "fused", "recurrent", "positions", "quantized"])
def test_a_mutated_plan_is_refused_or_gives_what_its_mask_gives(tmp_path: Path, name: str) -> None:
    """Nothing but a refusal comes of it, or a model that the proof finds right."""
    from onnxprune.graph import from_proto

    units = find_units(from_proto(BUILT[name]())) if name else model()
    content = written(units, tmp_path / "plan.json")
    feeds = {}
    for tensor in units.graph.source.graph.input:
        if tensor.name in units.graph.inputs:
            shape = [axis.size for axis in units.structure.axes[tensor.name]]
            whole = tensor.type.tensor_type.elem_type == 7
            feeds[tensor.name] = np.zeros(shape, np.int64) if whole else np.ones(shape, np.float32)
    random, outcomes = Random(0), []
    for _ in range(150):
        changed = mutate(content, random)
        (tmp_path / "plan.json").write_text(json.dumps(changed))
        try:
            plan = Plan.load(tmp_path / "plan.json")
            onnxprune.verify(units, plan, onnxprune.remove(units.graph, plan), feeds)
            outcomes.append("equal")
        except OnnxPruneError as error:
            assert "\n" not in str(error)
            outcomes.append(type(error).__name__)
    assert outcomes.count("PlanError") > 75, outcomes
