"""Heads in caches that are inputs and outputs of a model: whole by default, gone from both where that is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from builders import Net
from onnxprune import cli, find_units, pipeline, remove, verify
from onnxprune.graph import load
from onnxprune.run import Feeding
from onnxprune.runtime import Session
from onnxprune.selection import Budget, Limits
from onnxprune.surgery import fed

HEADS, WIDTH = 4, 16


def run(*arguments: object) -> Result:
    """A command."""
    return CliRunner().invoke(cli.main, [str(a) for a in arguments], catch_exceptions=False)


def onnx_attention() -> Net:
    """ONNX's operator, two query heads for each head of the cache."""
    net = Net(23)
    x = net.input(2, 3, 8)
    q, k, v = (net.op("MatMul", x, net.weight(8, n * WIDTH)) for n in (2 * HEADS, HEADS, HEADS))
    past = net.input(2, HEADS, 5, WIDTH), net.input(2, HEADS, 5, WIDTH)
    made = net.ops("Attention", q, k, v, "", *past, q_num_heads=2 * HEADS, kv_num_heads=HEADS, outputs=3)
    return net.output(net.op("MatMul", made[0], net.weight(2 * HEADS * WIDTH, 2)), *made[1:])


def grouped() -> Net:
    """ONNX Runtime's operator as its model builder writes it: packed, rotated, one token behind a cache."""
    net = Net(microsoft=True)
    qkv = net.op("MatMul", net.input(2, 1, 8), net.weight(8, 3 * HEADS * WIDTH))
    past = net.input(2, HEADS, 5, WIDTH), net.input(2, HEADS, 5, WIDTH)
    lengths = net.constant(np.full(2, 5, np.int32)), net.constant(np.array(6, np.int32))
    tables = net.weight(9, WIDTH // 2), net.weight(9, WIDTH // 2)
    attrs = {"num_heads": HEADS, "kv_num_heads": HEADS, "do_rotary": 1, "outputs": 3}
    made = net.ops("GroupQueryAttention", qkv, "", "", *past, *lengths, *tables, domain="com.microsoft", **attrs)
    return net.output(net.op("MatMul", made[0], net.weight(HEADS * WIDTH, 2)), *made[1:])


def fused() -> Net:
    """ONNX Runtime's operator with keys and values in one cache."""
    net = Net(microsoft=True)
    inputs = net.input(2, 3, 8), net.weight(8, 3 * HEADS * WIDTH), net.weight(3 * HEADS * WIDTH), ""
    past = net.input(2, 2, HEADS, 5, WIDTH)
    attrs = {"num_heads": HEADS, "unidirectional": 1, "outputs": 2}
    made = net.ops("Attention", *inputs, past, domain="com.microsoft", **attrs)
    return net.output(net.op("MatMul", made[0], net.weight(HEADS * WIDTH, 2)), made[1])


def plain(width: int = 3, groups: int = 2) -> Net:
    """The same in plain operators: two query heads for each head of the caches, which Concat makes longer.

    What the caches hold is also added up over all heads, so that a head which is gone must be gone there, too.
    """
    net = Net(17)
    x = net.input(2, 3, 8)
    heads = net.ints(0, 0, HEADS, width), net.ints(0, 0, HEADS * groups, width)
    parts = [
        net.op("Transpose", net.op("Reshape", net.op("MatMul", x, net.weight(8, n * width)), target), perm=[0, 2, 1, 3])
        for n, target in ((HEADS * groups, heads[1]), (HEADS, heads[0]), (HEADS, heads[0]))
    ]
    past = net.input(2, HEADS, 5, width), net.input(2, HEADS, 5, width)
    caches = [net.op("Concat", *pair, axis=-2) for pair in zip(past, parts[1:], strict=True)]
    given = [net.op("Identity", caches[0]), caches[1]]
    k, v = (
        net.op(
            "Reshape",
            net.op("Expand", net.op("Unsqueeze", cache, net.ints(2)), net.ints(2, HEADS, groups, 8, width)),
            net.ints(2, HEADS * groups, 8, width),
        )
        for cache in caches
    )
    scores = net.op("Softmax", net.op("MatMul", parts[0], net.op("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    mixed = net.op("Transpose", net.op("MatMul", scores, v), perm=[0, 2, 1, 3])
    y = net.op("MatMul", net.op("Reshape", mixed, net.ints(0, 0, -1)), net.weight(HEADS * groups * width, 2))
    return net.output(y, *given, net.op("ReduceSum", past[1], net.ints(1), keepdims=0))


@pytest.mark.parametrize("build", [onnx_attention, grouped, fused, plain])
def test_heads_go_from_caches_where_that_is_asked_for(build: Callable[[], Net]) -> None:
    graph = build().graph()
    assert HEADS not in {group.size for group in find_units(graph).groups.values()}
    units = find_units(graph, allow_io=["head"])
    (heads,) = (name for name, group in units.groups.items() if group.size == HEADS)
    plan = units.plan({heads: np.array([True, False, False, True])})
    compact = remove(graph, plan)
    random = np.random.default_rng(0)
    shapes = {name: [axis.size for axis in units.structure.axes[name]] for name in graph.inputs}
    feeds = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    assert verify(units, plan, compact, feeds) < 1e-5
    declared = [[axis.dim_value for axis in info.type.tensor_type.shape.dim] for info in compact.proto().graph.input]
    assert declared == [[2 if n == HEADS else n for n in shape] for shape in shapes.values()]
    assert [x.shape for x in fed(plan, feeds).values()] == [tuple(shape) for shape in declared]
    whole, small = (
        Session(model.message(), device="cpu").run(given)
        for model, given in ((graph, feeds), (compact, fed(plan, feeds)))
    )
    kept = np.take(whole[1], [0, 3], whole[1].ndim - 3)  # what a cache holds does not depend on other heads
    np.testing.assert_allclose(small[1], kept, atol=1e-5)


def test_other_axes_of_inputs_stay() -> None:
    units = find_units(onnx_attention().graph(), allow_io=["head"])
    plan = units.plan({name: np.arange(group.size) > 0 for name, group in units.groups.items()})
    assert {name: list(plan.activations[name]) for name in units.graph.inputs if name in plan.activations} == {
        "x1": [1],
        "x2": [1],
    }


@pytest.mark.parametrize("build", [onnx_attention, plain])
def test_heads_that_stay_say_what_would_let_them_go(build: Callable[[], Net]) -> None:
    reasons = [{kept.kept.because for kept in find_units(build().graph(), allow_io=io).kept} for io in ([], ["head"])]
    because = "a cache of the model holds it, whose heads go with --allow-io head alone"
    assert because in reasons[0] and because not in reasons[1]


def test_what_goes_in_and_comes_out_otherwise_is_no_cache() -> None:
    """Heads of keys that come in alone, or come out with other widths, stay."""
    net = Net(17)
    q = net.op("Reshape", net.op("MatMul", net.input(2, 3, 8), net.weight(8, 12)), net.ints(2, 3, HEADS, 3))
    keys = net.op("Transpose", net.input(2, HEADS, 5, 3), perm=[0, 1, 3, 2])
    scores = net.op("MatMul", net.op("Transpose", q, perm=[0, 2, 1, 3]), keys)
    mixed = net.op("MatMul", net.op("Softmax", scores), net.op("Transpose", keys, perm=[0, 1, 3, 2]))
    flat = net.op("Reshape", net.op("Transpose", mixed, perm=[0, 2, 1, 3]), net.ints(2, 3, 12))
    graph = net.output(net.op("MatMul", flat, net.weight(12, 2)), scores).graph()
    units = find_units(graph, allow_io=["head"])
    assert not units.groups
    assert "it is an input of the model" in {kept.kept.because for kept in units.kept}


@pytest.fixture(params=[onnx_attention, plain])
def model(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return request.param().graph().save(tmp_path / "model.onnx")


def test_prune_lets_caches_shrink_and_says_so(model: Path) -> None:
    method = pipeline.Method(2, Limits(round_to=1, floor=0.0), latency=True, allow_io=("head",))
    pruned = pipeline.prune(model, Budget("units", 0.5), method=method, feeding=Feeding(samples=4, batch=2))
    assert pruned.report.verified is not None
    assert pruned.report.verified < 1e-5
    assert pruned.plan.settings["allow_io"] == ["head"]
    changed = [note for note in pruned.report.notes if note.startswith("Inputs and outputs changed shape: ")]
    names = "x1", "x2", *load(model).outputs[1:3]
    said = "; ".join(f"{name} axis 1 now has 2 positions" for name in names)
    assert changed == [f"Inputs and outputs changed shape: {said}. Whoever runs the model must feed it accordingly."]


def test_the_command_line_lets_caches_shrink(model: Path) -> None:
    assert "it is an input of the model" in run("inspect", model, "--json").stdout
    shown = json.loads(run("inspect", model, "--json", "--allow-io", "head").stdout)
    assert HEADS in [group["units"] for group in shown["groups"].values()]
    options = "--units", 0.5, "--round-to", 1, "--rounds", 1, "--batch", 2, "--samples", 4, "--no-latency"
    result = run("prune", model, *options, "--allow-io", "head", "-o", model.with_name("small.onnx"))
    assert result.exit_code == 0, result.output
    assert "Inputs and outputs changed shape" in result.output
    assert run("score", model, "--batch", 2, "--samples", 4, "--allow-io", "head").exit_code == 0


def test_refit_and_changed_inputs_do_not_go_together(model: Path) -> None:
    result = run("prune", model, "--units", 0.5, "--allow-io", "head", "--refit")
    assert result.exit_code == 1
    assert "--refit runs both models on the same inputs, which --allow-io changes; leave one out." in result.output
