"""A proof that sees: wrong weights behind outputs that hide them, whatever they are, and what it says it cannot see."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from builders import Net
from commands import run
from corruptions import WAYS, cases
from onnxprune import comparison
from onnxprune.differences import difference
from onnxprune.errors import VerificationError
from onnxprune.graph import Graph, from_proto
from onnxprune.grouping import find_units
from onnxprune.proof import prove, verify
from onnxprune.records import Plan
from onnxprune.report import unproved
from onnxprune.surgery import remove
from onnxprune.units import Units
from zoo.endings import networks
from zoo.halving import halves

ENDINGS = [name for name in networks() if name not in ("lstm", "bert")]


def cut(model: onnx.ModelProto) -> tuple[Units, Plan, Graph]:
    units = find_units(from_proto(onnx.load_from_string(model.SerializeToString())))
    plan = units.plan(halves(units))
    return units, plan, remove(units.graph, plan)


def inputs_of(units: Units) -> dict[str, np.ndarray]:
    """Normal numbers, indices, trues."""
    generator = np.random.default_rng(5)
    found = {}
    for info in units.graph.source.graph.input:
        shape = [axis.size for axis in units.structure.axes[info.name]]
        kind = info.type.tensor_type.elem_type
        if kind in (TensorProto.FLOAT, TensorProto.FLOAT16):
            found[info.name] = generator.standard_normal(shape).astype("f" if kind == TensorProto.FLOAT else "e")
        else:
            found[info.name] = np.ones(shape, bool if kind == TensorProto.BOOL else np.int64)
    return found


@pytest.mark.parametrize("name", ENDINGS)
def test_a_wrong_weight_is_noticed_whatever_hides_it(name: str) -> None:
    """One weight of each network in each way, another weight for each way; benchmarks/corruptions.py tries all."""
    units, plan, compact = cut(networks()[name]())
    found = prove(units, plan, compact, [inputs_of(units)])
    assert not found.unseen and found.weights > 2
    wrong = {way: [(n, array) for n, w, array in cases(units.graph, plan, compact) if w == way] for way in WAYS}
    for i, choice in enumerate(wrong.values()):
        weight, array = choice[i % len(choice)]
        with pytest.raises(VerificationError, match="the compact model differs from the masked original, first in"):
            prove(units, plan, compact.with_constants({weight: array}), [inputs_of(units)])


def test_what_cannot_be_seen_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With activations as they are alone, a layer that no input reaches hides what reads it."""
    monkeypatch.setattr(comparison, "_moved", lambda array, *_: array)
    units, plan, compact = cut(networks()["a dead layer"]())
    found = prove(units, plan, compact, [inputs_of(units)])
    assert found.unseen == {"w2": "it reads nothing but zeros"}
    notes = unproved(found)
    assert notes == [
        f"The proof did not see 1 of {found.weights} weights that were cut, since on its inputs it reads nothing but "
        "zeros: w2."
    ]


def test_a_node_that_surgery_should_have_left_alone_is_looked_at_too() -> None:
    units, plan, compact = cut(networks()["dense"]())
    last = next(name for name in units.graph.constants if name not in plan.initializers)
    broken = compact.with_constants({last: compact.constants[last] + np.float32(1e-3)})
    with pytest.raises(VerificationError):
        verify(units, plan, broken, inputs_of(units))


@pytest.mark.parametrize("seeded", [False, True])
def test_models_that_draw_numbers_are_proved_but_for_what_they_draw(seeded: bool) -> None:
    net = Net()
    h = net.op("Relu", net.dense(net.input("N", 6), 6, 12))
    h = net.dense(h, 12, 5)
    noise = net.op("RandomNormalLike", h, **({"seed": 3.0} if seeded else {}))
    units, plan, compact = cut(net.output(net.op("Add", h, noise)).model())
    found = prove(units, plan, compact, [inputs_of(units)])
    assert found.random == tuple(units.graph.outputs) and not found.unseen
    broken = compact.with_constants({"c2": compact.constants["c2"] * 2})
    with pytest.raises(VerificationError, match="first in tensor 'gemm2'"):
        prove(units, plan, broken, [inputs_of(units)])
    notes = unproved(found)
    assert notes == ["Outputs that are other numbers in every run could not be compared: add4."]


def test_outputs_that_are_no_numbers_give_a_report_that_is_json(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(networks()["dense, no number"](), path)
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(0).standard_normal((70, 12)).astype("f"))
    shown = run("prune", path, "--units", 0.5, "--data", tmp_path / "d.npz", "--no-latency", "--dry-run", "--json")
    assert shown.exit_code == 0, shown.output

    def refuse(word: str) -> None:
        raise AssertionError(word)

    found = json.loads(shown.stdout, parse_constant=refuse)
    assert found["verified"] == 0 and found["proof"]["unseen"] == {} and found["proof"]["weights"] == 5


def test_texts_and_sequences_are_compared_element_by_element() -> None:
    net = Net(17)
    h = net.op("Relu", net.dense(net.input("N", 6), 6, 12))
    y = net.dense(h, 12, 4)
    labels = net.constant(np.array(["red", "green", "blue", "black"], object))
    names = net.op("Gather", labels, net.op("ArgMax", y, axis=1, keepdims=0))
    parts = net.op("SplitToSequence", y, axis=1)
    net.outputs = [helper.make_tensor_value_info(names, TensorProto.STRING, None)]
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    net.outputs.append(helper.make_value_info(parts, helper.make_sequence_type_proto(tensor)))
    graph = helper.make_graph(net.nodes, "test", net.inputs, net.outputs, net.initializers)
    units, plan, compact = cut(helper.make_model(graph, opset_imports=net.imports, ir_version=8))
    assert verify(units, plan, compact, inputs_of(units)) < 1e-5
    with pytest.raises(VerificationError):
        verify(units, plan, compact.with_constants({"c2": -compact.constants["c2"]}), inputs_of(units))


def test_nodes_of_the_domain_by_its_long_name_are_treated_alike() -> None:
    """Masks, constants and quantized numbers included."""
    model = networks()["convolutions, QDQ"]()
    plain = cut(model)[0]
    for node in model.graph.node:
        node.domain = node.domain or "ai.onnx"
    units, plan, compact = cut(model)
    assert {g.size for g in units.groups.values()} == {g.size for g in plain.groups.values()}
    assert not prove(units, plan, compact, [inputs_of(units)]).unseen


def test_helpers_of_the_mask_take_names_that_are_free() -> None:
    units, plan, compact = cut(networks()["dense"]())
    hidden = next(iter(plan.activations))
    model = units.graph.proto()
    for node in model.graph.node:  # the last layer's output is called what the mask of the first one would be
        node.output[:] = [f"{hidden}:keep" if name == "gemm4" else name for name in node.output]
    model.graph.output[0].name = f"{hidden}:keep"
    units, plan, compact = cut(model)
    assert f"{hidden}:keep" in units.graph.outputs
    assert verify(units, plan, compact, inputs_of(units)) < 1e-5
    with pytest.raises(VerificationError):
        verify(units, plan, compact.with_constants({"w0": 2 * compact.constants["w0"]}), inputs_of(units))


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1.0, np.nan], [1.0, np.nan], 0),
        ([1.0, np.nan], [np.nan, 1.0], np.inf),
        ([np.inf, 2.0], [np.inf, 2.5], 0.25),
        ([np.inf], [-np.inf], np.inf),
        ([1, 2], [1, 3], np.inf),
        ([True], [True], 0),
        (["a"], ["b"], np.inf),
        ([1.0], [[1.0]], np.inf),
        ([1.0], [1], np.inf),
        ([0.0, 0.0], [0.0, 1e-9], 1e291),
        ([-3e38, 1.0, 1.0, 1.0], [-3e38, 1.0, 1.0, 1.5], 0.5 / 12),
    ],
)
def test_differences(a: list, b: list, expected: float) -> None:
    arrays = [np.array(x, object if isinstance(x[0], str) else None) for x in (a, b)]
    assert difference(*arrays) == pytest.approx(expected)


@pytest.mark.parametrize("kind", [TensorProto.INT4, TensorProto.UINT4, TensorProto.INT8])
def test_what_optimizations_alone_change_is_said_and_is_no_difference(kind: int) -> None:
    """ONNX Runtime 1.31.1 makes MatMulNBits of a dequantized weight and a MatMul, which rounds activations, too."""
    net = Net()
    x = net.input("N", 64)
    for inputs, outputs in ((64, 128), (128, 8)):
        values = net.random.integers(0, 8, inputs * outputs)
        net.initializers.append(helper.make_tensor(f"q{outputs}", kind, [inputs, outputs], values.tolist()))
        scale = net.constant(net.random.uniform(0.02, 0.06, outputs).astype("f"))
        weight = net.op("DequantizeLinear", f"q{outputs}", scale, axis=1)
        x = net.op("Relu", net.op("MatMul", x, weight))
    units, plan, compact = cut(net.output(x).model())
    found = prove(units, plan, compact, [inputs_of(units)])
    assert found.difference < 1e-5 and not found.unseen and set(found.moved) == set(units.graph.outputs)
    (note,) = unproved(found)
    assert note.startswith(f"ONNX Runtime's optimizations move output '{units.graph.outputs[0]}' by 0.00")
    broken = compact.with_constants({"q8": compact.constants["q8"][::-1].copy()})
    with pytest.raises(VerificationError):
        prove(units, plan, broken, [inputs_of(units)])
