"""The law for recurrent layers, whose hidden units read each other inside the operator."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import strategies as st
from onnx import numpy_helper

from builders import Net
from laws import compare, sizes
from onnxprune import grouping, masking, surgery
from onnxprune.grouping import find_units
from onnxprune.observation import Observation
from onnxprune.runtime import Session
from rules.cases import CASES, Draw, case, check_case, opset, size

GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}
BATCH = 3


def layer(net: Net, op: str, x: str, inputs: int, hidden: int, given: str = "", **attrs: object) -> list[str]:
    """A recurrent layer with all its results; `given` holds the optional inputs that it has, as B, L, H, C and P."""
    d = 2 if attrs.get("direction") == "bidirectional" else 1
    g = GATES[op]
    states = (BATCH, d, hidden) if attrs.get("layout") else (d, BATCH, hidden)
    optional = {
        "B": lambda: net.weight(d, 2 * g * hidden),
        "L": lambda: net.constant(np.array([4, 2, 3], np.int32)),
        "H": lambda: net.weight(*states),
        "C": lambda: net.weight(*states),
        "P": lambda: net.weight(d, 3 * hidden),
    }
    extra = [make() if letter in given else "" for letter, make in optional.items()][: 5 if op == "LSTM" else 3]
    while extra and not extra[-1]:  # the reference evaluator takes "" for the name of a result that was left out
        extra.pop()
    weights = [net.weight(d, g * hidden, inputs), net.weight(d, g * hidden, hidden)]
    attrs["hidden_size"] = hidden
    return net.ops(op, x, *weights, *extra, outputs=3 if op == "LSTM" else 2, **attrs)


def last_step(net: Net, y: str, directions: int, hidden: int) -> tuple[str, int]:
    """The last step of Y[T,D,N,h] as vectors, and their width."""
    y = net.op("Gather", y, net.constant(np.array(-1)), axis=0)
    y = net.op("Transpose", y, perm=[1, 0, 2])
    return net.op("Reshape", y, net.ints(-1, directions * hidden)), directions * hidden


@case("LSTM", "GRU", "RNN")
def layers(draw: Draw, op: str) -> tuple[Net, list[int]]:
    """Two layers, in any direction, with any of the optional inputs, the second one read at its last step."""
    net = Net(opset(draw, 7, 14, 22), seed=draw(st.integers(0, 99)))
    x = net.input(4, BATCH, 2)
    width = 2
    given = "".join(draw(st.sets(st.sampled_from("BHCP"))))
    attrs = {"linear_before_reset": draw(st.integers(0, 1))} if op == "GRU" else {}
    hidden = []
    for _ in range(2):
        direction = draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
        d, h = 1 + (direction == "bidirectional"), size(draw)
        y = layer(net, op, x, width, h, given, direction=direction, **attrs)[0]
        hidden.append(h)
        x = net.op("Transpose", y, perm=[0, 2, 1, 3])
        x, width = net.op("Reshape", x, net.ints(0, 0, d * h)), d * h
    y, width = last_step(net, y, d, h)
    return net.output(net.op("Gemm", y, net.weight(width, 2), net.weight(2))), hidden


@case("LSTM/last states", "GRU/last states", "RNN/last states")
def last_states(draw: Draw, op: str) -> tuple[Net, list[int]]:
    """An encoder hands its last states over to a decoder, the only way in which they are read; Y is left out."""
    net = Net(14, seed=draw(st.integers(0, 99)))
    h = size(draw)
    layer(net, op, net.input(4, BATCH, 2), 2, h, "B")
    net.nodes[-1].output[0] = ""
    states = list(net.nodes[-1].output[1:])
    layer(net, op, net.input(4, BATCH, 2), 2, h, "B" + "HC"[: len(states)])
    net.nodes[-1].input[5 : 5 + len(states)] = states
    y = net.op("Squeeze", net.nodes[-1].output[1], net.ints(0))
    return net.output(net.op("Gemm", net.op("Relu", y), net.weight(h, 2), net.weight(2))), [h]


@case("LSTM/cell states")
def cell_states(draw: Draw) -> tuple[Net, list[int]]:
    """The last cell states alone are read."""
    net, h = Net(14, seed=draw(st.integers(0, 99))), size(draw)
    c = layer(net, "LSTM", net.input(4, BATCH, 2), 2, h, "BP")[2]
    return net.output(net.dense(net.op("Squeeze", c, net.ints(0)), h, 2)), [h]


@case("LSTM/lengths", "GRU/lengths", "RNN/lengths")
def lengths(draw: Draw, op: str) -> tuple[Net, list[int]]:
    """Sequences of their own lengths, other activations, clipped: a unit is masked, not silenced by its weights."""
    net, h = Net(14, seed=draw(st.integers(0, 99))), size(draw)
    names = {"LSTM": ["HardSigmoid", "Softsign", "Softplus"], "GRU": ["HardSigmoid", "Softplus"], "RNN": ["Sigmoid"]}
    attrs: dict[str, object] = {"clip": 2.0} | ({"input_forget": 1} if op == "LSTM" else {})
    y = layer(net, op, net.input(4, BATCH, 2), 2, h, "BLH", activations=names[op], **attrs)[0]
    y, width = last_step(net, y, 1, h)
    return net.output(net.dense(y, width, 2)), [h]


@case("LSTM/sizes in the graph")
def computed_states(draw: Draw) -> tuple[Net, list[int]]:
    """Initial zeros of a computed shape, gates that the graph puts in order: exports without constant folding."""
    net, h = Net(13, seed=draw(st.integers(0, 99))), size(draw)
    x = net.input("T", "N", 3)
    batch = net.op("Gather", net.op("Shape", x), net.ints(1), axis=0)
    shape = net.op("Concat", net.ints(1), batch, net.ints(h), axis=0)
    zeros = net.op("ConstantOfShape", shape, value=numpy_helper.from_array(np.zeros(1, "f")))

    def ordered(*shape: int) -> str:
        """ONNX's order of gates from PyTorch's."""
        parts = net.ops("Split", net.weight(*shape), net.ints(*[h] * 4), axis=0, outputs=4)
        return net.op("Concat", *(parts[i] for i in (0, 3, 1, 2)), axis=0)

    weights = [net.op("Unsqueeze", ordered(4 * h, n), net.ints(0)) for n in (3, h)]
    bias = net.op("Unsqueeze", net.op("Concat", ordered(4 * h), ordered(4 * h), axis=0), net.ints(0))
    y = net.op("LSTM", x, *weights, bias, "", zeros, zeros, hidden_size=h)
    y, width = last_step(net, y, 1, h)
    return net.output(net.dense(y, width, 2)), [h]


def stacked(net: Net, form: str, h: int) -> str:
    """Two layers of one width, whose initial states are cut from one tensor of zeros, as exporters write it."""
    x = net.input("T", "N" if form != "initializer" else BATCH, 2)
    if form == "initializer":
        zeros = net.constant(np.zeros((1, BATCH, h), np.float32), "zeros")
    else:
        batch = net.op("Gather", net.op("Shape", x), net.ints(1), axis=0)
        shape, zero = net.op("Concat", net.ints(2), batch, net.ints(h), axis=0), np.zeros(1, np.float32)
        made = net.op("Expand", net.constant(zero[0]), shape) if form == "Expand" else ""
        made = made or net.op("ConstantOfShape", shape, value=numpy_helper.from_array(zero))
        zeros = net.op("Slice", made, net.ints(0), net.ints(1), net.ints(0))
    for inputs in (2, h):
        layer(net, "LSTM", x, inputs, h, "B")
        net.nodes[-1].input.extend(["", zeros, zeros])
        x = net.op("Squeeze", net.nodes[-1].output[0], net.ints(1))
    y = net.op("Gather", x, net.constant(np.array(-1)), axis=0)
    return net.dense(y, h, 2)


@case("LSTM/zeros of several layers")
def zeros(draw: Draw) -> tuple[Net, list[int]]:
    """They tie no layers together."""
    net, h = Net(13, seed=draw(st.integers(0, 99))), size(draw)
    return net.output(stacked(net, draw(st.sampled_from(["initializer", "ConstantOfShape", "Expand"])), h)), [h, h]


@case("GRU/state of the caller")
def fed_state(draw: Draw) -> tuple[Net, list[int]]:
    """An initial state that is an input of the model keeps the units whole; the layer below may lose some."""
    net, h, n = Net(14, seed=draw(st.integers(0, 99))), size(draw), size(draw)
    x = net.op("MatMul", net.input(4, BATCH, 2), net.weight(2, n))
    layer(net, "GRU", net.op("Relu", x), n, h, "BH")
    net.nodes[-1].input[5] = net.input(1, BATCH, h)
    y, width = last_step(net, net.nodes[-1].output[0], 1, h)
    return net.output(net.dense(y, width, 2)), [n]


@pytest.mark.parametrize("op", GATES)
def test_batch_in_front(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime lacks layout=1, so that shapes come from inference and the law from the reference evaluator."""
    net = Net(22)
    h, given = net.op("Relu", net.op("MatMul", net.input(BATCH, 4, 2), net.weight(2, 4))), "BHCP"
    y, h = layer(net, op, h, 4, 5, given, direction="bidirectional", layout=1)[:2]
    y = net.op("Reshape", y, net.ints(BATCH * 4, 10))
    h = net.op("Squeeze", net.op("Split", h, net.ints(1, 1), axis=1, outputs=2), net.ints(1))
    graph = net.output(net.op("MatMul", y, net.weight(10, 2)), net.op("MatMul", h, net.weight(5, 2))).graph()
    inferred = onnx.shape_inference.infer_shapes(graph.proto()).graph
    infos = (*inferred.input, *inferred.value_info, *inferred.output)
    shapes = {x.name: tuple(d.dim_value for d in x.type.tensor_type.shape.dim) for x in infos}
    shapes |= {name: array.shape for name, array in graph.constants.items()}
    monkeypatch.setattr(grouping, "observe", lambda *_: Observation(shapes, frozenset(), {}))
    units = find_units(graph)
    assert sizes(units) == [4, 5]
    compare(units, units.plan({name: np.arange(group.size) % 3 > 0 for name, group in units.groups.items()}))


def test_the_mask_reaches_into_the_recurrence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the node alone it comes too late: other units have read the removed ones by then."""
    net = Net(14)
    y, width = last_step(net, layer(net, "LSTM", net.input(4, BATCH, 3), 3, 6)[0], 1, 6)
    units = find_units(net.output(net.dense(y, width, 2)).graph())
    plan = units.plan({name: np.arange(6) % 2 > 0 for name in units.groups})
    compare(units, plan)
    monkeypatch.setattr(masking, "OWN_READER", {})
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        compare(units, plan)


def test_initial_zeros_are_left_out_where_they_do_not_fit() -> None:
    net = Net(13)
    units = find_units(net.output(stacked(net, "Expand", 6)).graph())
    first, second = (node.outputs[0].name for node in units.graph.nodes if node.op == "LSTM")
    groups = list(units.groups)
    one = units.plan({groups[0]: np.arange(6) < 3})
    assert one.omitted == {first: (5, 6)}
    assert "Expand" in {node.op for node in surgery.remove(units.graph, one).nodes}
    both = units.plan({name: np.arange(6) < 3 for name in groups})
    assert both.omitted == {first: (5, 6), second: (5, 6)}
    written = surgery.remove(units.graph, both).proto().graph
    assert "Expand" not in {node.op_type for node in written.node}
    assert {x.name for x in written.initializer} <= {name for node in written.node for name in node.input}
    assert units.plan({}).omitted == {}


def test_an_outsider_can_check_it() -> None:
    """Numpy alone, from the plan alone: h = tanh(x W + h R), with R zero at the removed positions of its last axis."""
    net = Net(14)
    layer(net, "RNN", net.input(4, BATCH, 3), 3, 6)
    y = net.op("Squeeze", net.nodes[-1].output[1], net.ints(0))
    units = find_units(net.output(net.op("MatMul", y, net.weight(6, 2))).graph())
    plan = units.plan({name: np.arange(6) % 2 > 0 for name in units.groups})
    assert [(g.kind, g.linear) for g in units.groups.values()] == [("hidden unit", True)]
    w, r, _, out = (units.graph.constants[f"c{i}"].astype(np.float64) for i in range(4))
    assert plan.initializers == {"c0": {1: (1, 3, 5)}, "c1": {1: (1, 3, 5), 2: (1, 3, 5)}, "c3": {0: (1, 3, 5)}}
    keep = np.isin(np.arange(6), plan.initializers["c1"][2])
    h, x = np.zeros((BATCH, 6)), np.random.default_rng(0).standard_normal((4, BATCH, 3))
    for step in x:
        h = np.tanh(step @ w[0].T + h @ (r[0] * keep).T)
    found = Session(surgery.remove(units.graph, plan).message(), device="cpu").run({"x0": x.astype("f")})[0]
    np.testing.assert_allclose(found, (h * keep) @ out, atol=1e-5)


def test_work_and_parameters() -> None:
    """Every step of every sequence costs gates x h x (I + h) in each direction."""
    net = Net(14)
    y = layer(net, "GRU", net.input("T", BATCH, 3), 3, 6, "B", direction="bidirectional")[0]
    y, width = last_step(net, y, 2, 6)
    units = find_units(net.output(net.dense(y, width, 2)).graph())
    (steps,) = (axis.size for axis in units.structure.axes["x0"][:1])
    for keep, h in (({}, 6), ({name: np.arange(6) < 2 for name in units.groups}, 2)):
        parameters = 2 * (3 * h * (3 + h) + 6 * h) + 2 * h * 2 + 2
        macs = (steps * BATCH * 2 * 3 * h * (3 + h) + BATCH * 2 * h * 2) // steps
        assert units.cost(keep) == (parameters, macs)


@pytest.mark.parametrize("name", CASES[__name__])
def test_law(name: str) -> None:
    check_case(__name__, name)
