"""Attention as plain graphs: heads, what they are called, and the shapes that many nodes share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto

import onnxprune
from builders import Net
from laws import compare, compare_single, keeps
from onnxprune.graph import Graph, from_proto
from onnxprune.grouping import find_units
from onnxprune.moments import calibrate
from onnxprune.proof import verify
from onnxprune.records import Plan
from onnxprune.runtime import Session
from onnxprune.scoring import score
from onnxprune.surgery import remove
from onnxprune.units import Units

WIDTH, HEADS, ROWS = 6, 3, 4


def attention(net: Net, x: str, sizes: str, *, groups: int = 1, merged: bool = False, packed: bool = False) -> str:
    """Multi-head attention of a stream.

    `groups` query heads read each key-value head, `merged` folds batch x heads, `packed` has one dense layer.
    """
    heads = (HEADS * groups, HEADS, HEADS)
    widths = [number * ROWS for number in heads]
    made = [
        net.op("Add", net.op("MatMul", x, net.weight(WIDTH, width)), net.weight(width))
        for width in ([sum(widths)] if packed else widths)
    ]
    if packed:
        made = net.ops("Split", made[0], net.ints(*widths), axis=-1, outputs=3)
    targets = {number: net.op("Concat", sizes, net.ints(number, ROWS), axis=0) for number in sorted(set(heads))}
    q, k, v = (
        net.op("Transpose", net.op("Reshape", h, targets[number]), perm=[0, 2, 1, 3])
        for h, number in zip(made, heads, strict=True)
    )
    if groups > 1:  # key-value heads are repeated as Llama does it
        wide = net.op("Concat", net.op("Slice", sizes, net.ints(0), net.ints(1)), net.ints(HEADS, groups), axis=0)
        wide = net.op("Concat", wide, net.op("Slice", sizes, net.ints(1), net.ints(2)), net.ints(ROWS), axis=0)
        flat = net.op("Concat", net.op("Slice", sizes, net.ints(0), net.ints(1)), net.ints(HEADS * groups), axis=0)
        flat = net.op("Concat", flat, net.op("Slice", sizes, net.ints(1), net.ints(2)), net.ints(ROWS), axis=0)
        k, v = (
            net.op("Reshape", net.op("Expand", net.op("Unsqueeze", part, net.ints(2)), wide), flat) for part in (k, v)
        )
    shape = net.op("Shape", q)
    if merged:
        three = net.op("Concat", net.ints(-1), net.op("Slice", shape, net.ints(2), net.ints(4)), axis=0)
        q, k, v = (net.op("Reshape", part, three) for part in (q, k, v))
    turned = net.op("Transpose", k, perm=[0, 2, 1] if merged else [0, 1, 3, 2])
    scores = net.op("Softmax", net.op("Mul", net.op("MatMul", q, turned), net.constant(np.float32(0.5))), axis=-1)
    mixed = net.op("MatMul", scores, v)
    if merged:
        mixed = net.op("Reshape", mixed, shape)
    width = HEADS * groups * ROWS
    context = net.op("Reshape", net.op("Transpose", mixed, perm=[0, 2, 1, 3]), net.ints(0, 0, width))
    return net.op("MatMul", context, net.weight(width, WIDTH))


def block(*, layers: int = 1, groups: int = 1, merged: bool = False, packed: bool = False, seed: int = 0) -> Graph:
    """Layers of attention and feed-forward on one stream; all of them read the same sizes."""
    net = Net(21, seed=seed)
    x = net.input("N", "T", WIDTH)
    sizes = net.op("Slice", net.op("Shape", x), net.ints(0), net.ints(2))
    for _ in range(layers):
        x = net.op("Add", x, attention(net, x, sizes, groups=groups, merged=merged, packed=packed))
        h = net.op("Relu", net.op("MatMul", x, net.weight(WIDTH, 10)))
        x = net.op("Add", x, net.op("MatMul", h, net.weight(10, WIDTH)))
    return net.output(x).graph()


def kinds(units: Units) -> list[tuple[int, str, bool]]:
    return [(group.size, group.kind, bool(group.instead_of)) for group in units.groups.values()]


def test_heads_go_as_a_whole() -> None:
    assert kinds(find_units(block(layers=2))) == 2 * [
        (HEADS, "head", False),
        (ROWS, "query-key width of each head", True),
        (ROWS, "value width of each head", True),
        (10, "feed-forward unit", False),
    ]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("groups", [2, HEADS + 1])
def test_grouped_queries(groups: int, packed: bool) -> None:
    assert kinds(find_units(block(groups=groups, packed=packed))) == [
        (HEADS, "key-value head", False),
        (groups, "query head of each key-value head", True),
        (ROWS, "query-key width of each head", True),
        (ROWS, "value width of each head", True),
        (10, "feed-forward unit", False),
    ]


def turned(net: Net, q: str, angles: str, interleaved: bool) -> str:
    """Rotary positions: each half of the width, or every second row, is mixed with the other by angles."""
    if interleaved:
        pairs = net.op("Reshape", q, net.ints(0, 0, 0, ROWS, 2))
        a, b = (net.op("Gather", pairs, net.constant(np.int64(i)), axis=4) for i in (0, 1))
        cosine, sine = net.op("Cos", angles), net.op("Sin", angles)
        real = net.op("Sub", net.op("Mul", a, cosine), net.op("Mul", b, sine))
        other = net.op("Add", net.op("Mul", a, sine), net.op("Mul", b, cosine))
        both = net.op("Concat", *(net.op("Unsqueeze", part, net.ints(4)) for part in (real, other)), axis=4)
        return net.op("Reshape", both, net.ints(0, 0, 0, 2 * ROWS))
    first, second = (net.op("Slice", q, net.ints(a), net.ints(b), net.ints(3)) for a, b in ((0, ROWS), (ROWS, 99)))
    half = net.op("Concat", net.op("Neg", second), first, axis=3)
    both = net.op("Concat", angles, angles, axis=1)
    return net.op("Add", net.op("Mul", q, net.op("Cos", both)), net.op("Mul", half, net.op("Sin", both)))


def rotary(layers: int = 2, *, interleaved: bool = False) -> Graph:
    """Attention whose layers share one table of rotary angles, computed from positions."""
    net = Net(21)
    x = net.input("N", 5, WIDTH)
    positions = net.constant(np.arange(5, dtype="f").reshape(5, 1))
    angles = net.op("Mul", positions, net.constant(np.array([[1, 0.3, 0.1, 0.03]], "f")))
    for _ in range(layers):
        parts = []
        for _ in "qkv":
            h = net.op("Reshape", net.op("MatMul", x, net.weight(WIDTH, HEADS * 2 * ROWS)), net.ints(0, 0, HEADS, -1))
            parts.append(net.op("Transpose", h, perm=[0, 2, 1, 3]))
        q, k = (turned(net, part, angles, interleaved) for part in parts[:2])
        scores = net.op("Softmax", net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
        mixed = net.op("Transpose", net.op("MatMul", scores, parts[2]), perm=[0, 2, 1, 3])
        merged = net.op("Reshape", mixed, net.ints(0, 0, -1))
        x = net.op("Add", x, net.op("MatMul", merged, net.weight(HEADS * 2 * ROWS, WIDTH)))
    return net.output(x).graph()


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_pairs_go_from_all_layers_that_share_their_angles(interleaved: bool) -> None:
    units = find_units(rotary(interleaved=interleaved))
    (pairs,) = (group for group in units.groups.values() if group.kind == "rotary pair of each head")
    assert pairs.size == ROWS and len({weight.tensor for weight in pairs.writers}) == 4 and not pairs.readers
    plan = units.plan({pairs.name: np.array([True, False, True, False])})
    compact = remove(units.graph, plan)
    compare(units, plan)
    shapes = [array.shape for array in compact.constants.values()]
    assert shapes.count((WIDTH, HEADS * ROWS)) == 4 and (1, 2) in shapes


def test_query_key_widths_are_ranked_by_what_they_add_to_the_scores() -> None:
    units = find_units(block())
    (width,) = (group for group in units.groups.values() if not group.readers)
    sides = [states.site for states in width.post]
    sites = {s.site.key: s.site for group in units.groups.values() for s in (*group.pre, *group.post)}
    feeds = np.random.default_rng(0).standard_normal((4, 5, WIDTH)).astype("f")
    moments = calibrate(units.graph, list(sites.values()), [({"x0": feeds}, 4)], device="cpu")
    names = [site.tensor for site in sides]
    q, k = Session(units.graph.message(outputs=names), device="cpu").run({"x0": feeds}, names)
    energy = np.square(q).mean(axis=(0, 1, 2)) * np.square(k).mean(axis=(0, 1, 3))  # keys are turned already
    for criterion in ("spectral", "wanda", "variance", "reconstruction"):
        scores = score(units, moments, units.graph.constants, {}, criterion=criterion)
        np.testing.assert_allclose(scores.by_group[width.name], energy, rtol=1e-4)
        assert "ranked by what a unit adds to the attention scores" in scores.notes[width.name]


@pytest.mark.parametrize(("groups", "merged"), [(1, False), (1, True), (2, False), (2, True)])
def test_law(groups: int, merged: bool) -> None:
    @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        packed, seed = data.draw(st.booleans()), data.draw(st.integers(0, 99))
        units = find_units(block(layers=2, groups=groups, merged=merged, packed=packed, seed=seed))
        compare(units, units.plan(data.draw(keeps(units))))

    holds()


def halved(units: Units) -> Plan:
    return units.plan({name: np.arange(g.size) > 0 for name, g in units.groups.items() if not g.instead_of})


def test_batch_times_heads_is_masked_for_any_batch(tmp_path: Path) -> None:
    """The plan says after how many positions the kept heads repeat."""
    units = find_units(block(merged=True))
    plan = halved(units)
    assert plan.periods and {n for by in plan.periods.values() for n in by.values()} == {HEADS}
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert json.loads((tmp_path / "plan.json").read_text())["periods"]
    for batch in (1, 5):
        x = np.random.default_rng(0).standard_normal((batch, 7, WIDTH)).astype("f")
        assert verify(units, plan, remove(units.graph, plan), {"x0": x}) < 1e-5


def shared_target(opset: int) -> Graph:
    """A Reshape whose target serves two layers of equal width, and whose sizes nobody knows beforehand."""
    net = Net(opset)
    x = net.input("N", "T", 5)
    shape = net.op("Shape", x)
    sizes = net.op("Concat", net.op("Slice", shape, net.ints(0), net.ints(2)), net.ints(6), axis=0)
    for width in (5, 6):
        h = net.op("Reshape", net.op("MatMul", x, net.weight(width, 6)), sizes)
        x = net.op("Relu", h)
    return net.output(net.op("MatMul", x, net.weight(6, 2))).graph()


def test_a_shared_number_is_put_in_for_one_reader_alone() -> None:
    units = find_units(shared_target(13))
    assert [group.size for group in units.groups.values()] == [6, 6]
    first, second = units.groups
    plan = units.plan({first: np.arange(6) < 2, second: np.arange(6) < 5})
    compact = remove(units.graph, plan)
    compare_single(units, plan)
    proto = compact.proto()
    added = [node for node in proto.graph.node if node.op_type == "ScatterElements"]
    assert [node.name for node in added] == [f"{node.output[0]}" for node in added] and len(added) == 2
    assert len(from_proto(proto).nodes) == len(units.graph.nodes) + 2


def test_before_opset_11_a_shared_number_pins() -> None:
    units = find_units(shared_target(10))
    assert not units.groups
    assert "Reshape shares a number with another node" in {kept.kept.because for kept in units.kept}


def computed_product(layers: int = 1, opset: int = 17, *, real: bool = False) -> Graph:
    """Batch x heads as PyTorch's own attention writes it: a size times a number, in the middle of a computed target.

    The newer exporter computes it once for all layers. With `real` it does so in floating-point numbers.
    """
    net = Net(opset)
    x = net.input("N", "T", WIDTH)
    shape = net.op("Shape", x)
    batch, steps = (net.op("Slice", shape, net.ints(i), net.ints(i + 1)) for i in (0, 1))
    if real:
        times = net.op("Mul", net.op("Cast", batch, to=TensorProto.FLOAT), net.constant(np.array([HEADS], "f")))
        product = net.op("Cast", times, to=TensorProto.INT64)
    else:
        product = net.op("Mul", batch, net.ints(HEADS))
    target = net.op("Concat", steps, product, net.ints(ROWS), axis=0)
    for _ in range(layers):
        turned = net.op("Transpose", x, perm=[1, 0, 2])  # tokens, batch, width
        made = [net.op("MatMul", turned, net.weight(WIDTH, 12)) for _ in "qkv"]
        q, k, v = (net.op("Transpose", net.op("Reshape", h, target), perm=[1, 0, 2]) for h in made)
        scores = net.op("Softmax", net.op("MatMul", q, net.op("Transpose", k, perm=[0, 2, 1])), axis=-1)
        mixed = net.op("Transpose", net.op("MatMul", scores, v), perm=[1, 0, 2])
        context = net.op("Reshape", mixed, net.op("Concat", steps, batch, net.ints(HEADS * ROWS), axis=0))
        made = net.op("MatMul", context, net.weight(12, WIDTH))
        x = net.op("Add", x, net.op("Transpose", made, perm=[1, 0, 2]))
    return net.output(net.op("MatMul", x, net.weight(WIDTH, 2))).graph()


def test_of_a_product_with_a_varying_size_the_number_follows() -> None:
    units = find_units(computed_product())
    assert [(g.size, g.kind) for g in units.groups.values() if not g.instead_of] == [(HEADS, "head")]
    compare(units, halved(units))


def test_of_a_product_that_layers_share_each_has_its_own(tmp_path: Path) -> None:
    """Batch x 4 is divided by 4 and multiplied by what the layer keeps; beside it the width of values is replaced."""
    units = find_units(computed_product(layers=2))
    assert kinds(units) == 2 * [
        (HEADS, "head", False),
        (ROWS, "query-key width of each head", True),
        (ROWS, "value width of each head", True),
    ]
    first, _, width, second, *_ = units.groups
    keep = {first: np.arange(HEADS) > 0, width: np.arange(ROWS) < 3, second: np.arange(HEADS) < 1}
    plan = units.plan(keep)
    assert {(number.value, number.part) for number in plan.numbers if number.part} == {(2, HEADS), (1, HEADS)}
    compact = remove(units.graph, plan)
    compare(units, plan)
    for batch in (1, 3):
        x = np.random.default_rng(0).standard_normal((batch, 5, WIDTH)).astype("f")
        assert verify(units, plan, compact, {"x0": x}) < 1e-5
    read = from_proto(compact.proto())
    assert len(read.nodes) == len(units.graph.nodes) + 6 * 4 + 1
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


@pytest.mark.parametrize("opset, real", [(10, False), (17, True)])
def test_a_product_of_other_numbers_or_before_opset_11_pins(opset: int, real: bool) -> None:
    units = find_units(computed_product(2, opset, real=real))
    assert not any(group.kind == "head" for group in units.groups.values())
    assert "Reshape shares a number with another node" in {kept.kept.because for kept in units.kept}


def test_widths_are_called_so_where_heads_stay() -> None:
    units = find_units(computed_product(2, real=True))
    assert kinds(units) == 2 * [
        (ROWS, "query-key width of each head", False),
        (ROWS, "value width of each head", False),
    ]


def test_a_question_about_minus_one_is_answered() -> None:
    """TorchScript asks whether a size is -1 before it expands to it; no size is, whatever the input."""
    net = Net(17)
    x = net.input("N", "T", WIDTH)
    h = net.op("Unsqueeze", net.op("MatMul", x, net.weight(WIDTH, 5)), net.ints(2))
    sizes = net.op("Slice", net.op("Shape", x), net.ints(0), net.ints(2))
    target = net.op("Concat", sizes, net.ints(3, 5), axis=0)
    ones = net.ints(1, 1, 1, 1)
    asked = net.op("Equal", target, net.op("Mul", ones, net.ints(-1)))
    h = net.op("Expand", h, net.op("Where", asked, ones, target))
    units = find_units(net.output(net.op("MatMul", h, net.weight(5, 2))).graph())
    assert [group.size for group in units.groups.values()] == [5]
    compare(units, units.plan({name: np.arange(5) < 2 for name in units.groups}))


def test_a_weight_that_is_stored_twice_is_pruned_alike() -> None:
    """PyTorch's newer exporter folds the transpose of a shared weight once for each use."""
    net = Net(17)
    up, down = net.random.standard_normal((2, WIDTH, WIDTH)).astype("f")
    x = net.input("N", WIDTH)
    for _ in range(2):
        h = net.op("Relu", net.op("MatMul", x, net.constant(up.copy())))
        x = net.op("Add", x, net.op("MatMul", h, net.constant(down.copy())))
    units = find_units(net.output(x).graph())
    assert [group.size for group in units.groups.values()] == [WIDTH]
    compare(units, units.plan({name: np.arange(WIDTH) < 2 for name in units.groups}))


@pytest.mark.parametrize("groups", [1, 2])
def test_heads_are_compared_in_what_the_projection_makes_of_them(groups: int) -> None:
    """The root mean square of what a head adds to the stream, computed from the states themselves."""
    graph = block(groups=groups)
    units = find_units(graph)
    name, group = next(iter(units.groups.items()))
    assert len(group.pre) == 1 and not group.linear  # of queries, keys and values the values alone
    x = np.random.default_rng(3).standard_normal((4, 5, WIDTH)).astype("f")
    scored = onnxprune.score(graph, {"x0": x}, ranking=onnxprune.Ranking("activation"))
    (post,) = group.post
    session = Session(graph.message(outputs=[post.site.tensor]), device="cpu")
    context = session.run({"x0": x}, [post.site.tensor])[0].astype(np.float64).reshape(20, HEADS, -1)
    weight = graph.constants[group.readers[0].tensor].astype(np.float64).reshape(HEADS, -1, WIDTH)
    added = np.einsum("thf,hfw->thw", context, weight)
    np.testing.assert_allclose(scored.scores.by_group[name], np.sqrt((added**2).sum(2).mean(0)), rtol=1e-4)
