"""Residual width under normalization: off unless asked for, marked, and held to a reference of its own.

The reference is the original whose normalizations see the kept positions alone; everything else in it is masked. It is
held to numpy's idea of a normalization below.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builders import Net
from laws import check_law, compare, sizes
from onnxprune import cli, report
from onnxprune.errors import VerificationError
from onnxprune.exact import find_exact
from onnxprune.graph import Graph, from_proto
from onnxprune.grouping import find_units
from onnxprune.masking import mask
from onnxprune.moments import calibrate
from onnxprune.pipeline import Method, Pruned, prune
from onnxprune.proof import verify
from onnxprune.records import Plan
from onnxprune.runtime import Session
from onnxprune.selection import Budget, Limits
from onnxprune.surgery import remove
from onnxprune.units import Units

WIDTH, HIDDEN = 6, 5

Norm = Callable[[Net, str], str]


def layer_norm(net: Net, x: str) -> str:
    return net.op("LayerNormalization", x, net.weight(WIDTH), net.weight(WIDTH), epsilon=1e-3)


def rms_norm(net: Net, x: str) -> str:
    return net.op("RMSNormalization", x, net.weight(WIDTH), epsilon=1e-3)


def mean(net: Net, x: str) -> str:
    return net.op("ReduceMean", x, net.ints(-1)) if net.opset >= 18 else net.op("ReduceMean", x, axes=[-1])


def number(net: Net, value: float) -> str:
    return net.constant(np.array(value, np.float32))


def spelled_layer_norm(net: Net, x: str) -> str:
    """As exported before opset 17."""
    centred = net.op("Sub", x, mean(net, x))
    variance = mean(net, net.op("Pow", centred, number(net, 2)))
    y = net.op("Div", centred, net.op("Sqrt", net.op("Add", variance, number(net, 1e-3))))
    return net.op("Add", net.op("Mul", y, net.weight(WIDTH)), net.weight(WIDTH))


def spelled_rms_norm(net: Net, x: str) -> str:
    """As exported before opset 23."""
    power = mean(net, net.op("Pow", x, number(net, 2)))
    scale = net.op("Reciprocal", net.op("Sqrt", net.op("Add", power, number(net, 1e-3))))
    return net.op("Mul", net.weight(WIDTH), net.op("Mul", x, scale))


def unit_norm(net: Net, x: str) -> str:
    """Without a mean: exact."""
    return net.op("LpNormalization", x, axis=-1)


def deviation(net: Net, x: str) -> str:
    return net.op("MeanVarianceNormalization", x, axes=[1])


FORMS: dict[str, tuple[Norm, tuple[int, ...]]] = {
    "LayerNormalization": (layer_norm, (17, 23)),
    "RMSNormalization": (rms_norm, (23,)),
    "LayerNormalization in primitives": (spelled_layer_norm, (11, 17, 21)),
    "RMSNormalization in primitives": (spelled_rms_norm, (11, 17, 21)),
    "MeanVarianceNormalization": (deviation, (13,)),
}


def stream(norm: Norm, version: int = 17, seed: int = 0) -> Net:
    """A residual stream with one normalized block and a normalized head: WIDTH channels, HIDDEN neurons."""
    net = Net(version, seed=seed)
    x = net.op("Add", net.op("MatMul", net.input("N", 3), net.weight(3, WIDTH)), net.weight(1, WIDTH))
    h = net.op("Relu", net.op("MatMul", norm(net, x), net.weight(WIDTH, HIDDEN)))
    x = net.op("Add", x, net.op("MatMul", h, net.weight(HIDDEN, WIDTH)))
    return net.output(net.op("MatMul", norm(net, x), net.weight(WIDTH, 2)))


def some(units: Units) -> Plan:
    """A plan that keeps every other unit."""
    return units.plan({name: np.arange(group.size) % 2 == 0 for name, group in units.groups.items()})


@pytest.mark.parametrize("form", FORMS)
def test_law(form: str) -> None:
    """Without the option the stream stays; with it the compact model equals the reference."""
    norm, versions = FORMS[form]
    single = norm is deviation  # the reference evaluator knows it in float32 alone

    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        net = stream(norm, data.draw(st.sampled_from(versions)), data.draw(st.integers(0, 99)))
        residual = data.draw(st.booleans())
        expected = [HIDDEN, WIDTH] if residual else [HIDDEN]
        check_law(net.graph(), data, expected, single=single, residual=residual)

    holds()


@pytest.mark.parametrize("form", FORMS)
def test_the_marks(form: str) -> None:
    """The group of the stream is marked, and the plan names the nodes that average over kept positions alone."""
    norm, versions = FORMS[form]
    graph = stream(norm, versions[0]).graph()
    units = find_units(graph, residual=True)
    assert {group.size: group.exact for group in units.groups.values()} == {WIDTH: False, HIDDEN: True}
    averaging = ("LayerNormalization", "RMSNormalization", "ReduceMean", "MeanVarianceNormalization")
    nodes = [node.outputs[0].name for node in graph.nodes if node.op in averaging]
    assert some(units).inexact == tuple(sorted(nodes))
    hidden = {name: np.arange(HIDDEN) > 1 for name, group in units.groups.items() if group.exact}
    assert units.plan(hidden).inexact == ()
    assert some(find_units(graph)).inexact == ()


def test_what_is_marked_is_not_the_masked_original() -> None:
    units = find_units(stream(layer_norm).graph(), residual=True)
    plan = some(units)
    compare(units, plan)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        compare(units, replace(plan, inexact=()))


def normalized(x: np.ndarray, scale: np.ndarray, bias: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """LayerNormalization whose mean and variance run over kept positions; zeros elsewhere."""
    count = keep.sum()
    mean = (x * keep).sum(-1, keepdims=True) / count
    variance = (keep * (x - mean) ** 2).sum(-1, keepdims=True) / count
    return ((x - mean) / np.sqrt(variance + 1e-3) * scale + bias) * keep


def test_the_reference_is_what_an_outsider_would_do() -> None:
    """Numpy alone, from the plan alone."""
    units = find_units(stream(layer_norm).graph(), residual=True)
    plan = some(units)
    w, b, g1, b1, up, down, g2, b2, head = (units.graph.constants[f"c{i}"].astype(np.float64) for i in range(9))
    first = units.graph.nodes[0].outputs[0].name
    keep = np.isin(np.arange(WIDTH), plan.activations[first][1])
    hidden = np.isin(np.arange(HIDDEN), plan.initializers["c4"][1])
    assert 0 < keep.sum() < WIDTH and 0 < hidden.sum() < HIDDEN
    feed = np.random.default_rng(0).standard_normal((7, 3))
    x = (feed @ w + b) * keep
    x = (x + np.maximum(normalized(x, g1, b1, keep) @ up, 0) * hidden @ down) * keep
    expected = normalized(x, g2, b2, keep) @ head
    for model in (mask(units, plan).SerializeToString(), remove(units.graph, plan).message()):
        found = Session(model, device="cpu").run({"x0": feed.astype("f")})[0]
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_norm_is_exact() -> None:
    """Masked positions add nothing to it, so the width goes without being asked for."""
    units = find_units(stream(unit_norm).graph())
    assert sizes(units) == [HIDDEN, WIDTH] and all(group.exact for group in units.groups.values())
    compare(units, some(units))


def test_convolutional_streams_are_exact_and_always_found() -> None:
    net = Net()
    x = net.conv(net.input("N", 2, 4, 4), 2, WIDTH)
    x = net.op("Add", x, net.conv(net.op("Relu", net.conv(net.op("Relu", x), WIDTH, HIDDEN)), HIDDEN, WIDTH))
    graph = net.output(net.dense(net.op("Flatten", net.op("GlobalAveragePool", x)), WIDTH, 2)).graph()
    for residual in (False, True):
        units = find_units(graph, residual=residual)
        assert sizes(units) == [HIDDEN, WIDTH] and all(group.exact for group in units.groups.values())
        assert some(units).inexact == ()


def test_a_mean_of_a_weight_stays() -> None:
    """A standardized weight: whoever masks activations would still see the mean of the whole weight."""
    net = Net()
    x = net.op("MatMul", net.input("N", 3), net.weight(3, WIDTH))
    w = net.weight(WIDTH, HIDDEN)
    w = net.op("Sub", w, net.op("ReduceMean", w, net.ints(0)))
    h = net.op("Relu", net.op("MatMul", net.op("Relu", x), w))
    units = find_units(net.output(net.op("MatMul", h, net.weight(HIDDEN, 2))).graph(), residual=True)
    assert sizes(units) == [HIDDEN]
    compare(units, some(units))


def test_exact_groups_come_first() -> None:
    """Heads that are normalized each by itself: whole heads go rather than positions of every head, though fewer."""
    net = Net(23)
    h = net.op("Reshape", net.op("MatMul", net.input("N", 3), net.weight(3, 12)), net.ints(0, 2, 6))
    h = net.op("Reshape", rms_norm(net, h), net.ints(0, 12))
    graph = net.output(net.op("MatMul", h, net.weight(12, 2))).graph()
    units = find_units(graph, residual=True)
    assert [(g.size, g.exact, bool(g.instead_of)) for g in units.groups.values()] == [
        (2, True, False),
        (6, False, True),
    ]
    compare(units, some(units))


def test_no_unit_of_a_normalized_stream_goes_without_a_trace() -> None:
    """A channel that is always zero takes part in mean and variance."""
    graph = stream(layer_norm).graph()
    weights = {name: np.array(graph.constants[name]) for name in ("c0", "c1", "c2", "c3", "c5", "c6", "c7")}
    for array in weights.values():
        array[..., 0] = 0
    graph = graph.with_constants(weights)
    feeds = {"x0": np.random.default_rng(0).standard_normal((9, 3)).astype("f")}
    units = find_units(graph, residual=True)
    sites = [s.site for group in units.groups.values() for s in (*group.pre, *group.post)]
    moments = calibrate(graph, sites, [(feeds, 9)], device="cpu")
    stream_name = next(name for name, group in units.groups.items() if not group.exact)
    assert all(moments.high[s.site.key][0] == 0 for s in units.groups[stream_name].post)
    assert stream_name not in find_exact(units, feeds)


class Transformer(torch.nn.Module):
    """Tokens, positions, one block with both kinds of normalization, and a head that reads the token table."""

    def __init__(self, width: int = 16, vocabulary: int = 11) -> None:
        super().__init__()
        self.tokens, self.positions = torch.nn.Embedding(vocabulary, width), torch.nn.Embedding(8, width)
        self.first = torch.nn.Parameter(torch.randn(1, 1, width))
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(width) for _ in range(2))
        self.scale = torch.nn.Parameter(torch.rand(width))
        self.q, self.k, self.v, self.o = (torch.nn.Linear(width, width) for _ in range(4))
        self.up, self.down = torch.nn.Linear(width, 24), torch.nn.Linear(24, width)
        for norm in self.norms:
            torch.nn.init.normal_(norm.weight)
            torch.nn.init.normal_(norm.bias)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        x = torch.cat([self.first.expand(ids.shape[0], -1, -1), x], 1)
        h = self.norms[0](x)
        mixed = torch.softmax(self.q(h) @ self.k(h).transpose(1, 2) / 4, -1)
        x = x + self.o(mixed @ self.v(h))
        h = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.scale
        x = x + self.down(torch.nn.functional.gelu(self.up(h)))
        return self.norms[1](x) @ self.tokens.weight.T


def exported(options: dict[str, object]) -> Graph:
    torch.manual_seed(0)
    file = io.BytesIO()
    axes = {"dynamic_shapes": ({0: "batch"},)} if options["dynamo"] else {"dynamic_axes": {"ids": {0: "batch"}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ids = torch.arange(10).reshape(2, 5)
        torch.onnx.export(Transformer().eval(), (ids,), file, input_names=["ids"], verbose=False, **axes, **options)
    return from_proto(onnx.load_from_string(file.getvalue()))


@pytest.mark.parametrize(
    "options",
    [{"dynamo": False, "opset_version": 13}, {"dynamo": False, "opset_version": 17}, {"dynamo": True}],
    ids=["torchscript, opset 13", "torchscript, opset 17", "dynamo"],
)
def test_a_transformer(options: dict[str, object]) -> None:
    """From both exporters: the stream is one group over tables, constants, projections, norms and the tied head."""
    graph = exported(options)
    assert all(group.exact for group in find_units(graph).groups.values())
    units = find_units(graph, residual=True)
    (found,) = (group for group in units.groups.values() if not group.exact)
    tables = 1 if options["dynamo"] else 2  # dynamo folds the positions into a constant
    assert found.size == 16 and len(found.writers) == tables + 2 and len(found.readers) == 5
    plan = some(units)
    assert (
        units.cost({name: np.arange(g.size) % 2 == 0 for name, g in units.groups.items()})[0] < 0.4 * units.cost({})[0]
    )
    verify(units, plan, remove(graph, plan), {"ids": np.arange(10).reshape(2, 5)})


# what people read -----------------------------------------------------------------------------------------------------


def pruned(**options: object) -> Pruned:
    x = np.random.default_rng(0).standard_normal((64, 3)).astype("f")
    method = Method(rounds=2, limits=Limits(round_to=1), latency=False, **options)
    return prune(stream(layer_norm).graph(), Budget("units", 0.5), {"x0": x}, method=method)


@pytest.mark.parametrize("refit", [False, True])
def test_prune_says_what_is_not_exact(refit: bool, tmp_path: Path) -> None:
    result = pruned(residual=True, refit=refit)
    shown = report.summary(result.report)
    assert "Verified: equal to the masked original whose normalizations run over what is kept in" in shown
    assert "The residual width is pruned: normalizations run over fewer channels, so the compact model is not" in shown
    assert ("; refit it with --refit, and train it with onnxprune recover." in shown) is not refit
    assert ("; train it with onnxprune recover." in shown) is refit
    rows = {row.units: row for row in result.report.groups}
    assert (rows[WIDTH].kept, rows[WIDTH].exact, rows[WIDTH].kind) == (3, False, "channel")
    assert "not exact: normalizations run over it" in rows[WIDTH].note
    assert rows[HIDDEN].exact and "not exact" not in rows[HIDDEN].note
    assert result.plan.settings["residual"] is True
    assert len(result.plan.inexact) == 2
    result.plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json").inexact == result.plan.inexact


def test_nothing_of_it_without_the_option() -> None:
    result = pruned()
    shown = report.summary(result.report) + report.groups(result.report.groups)
    assert "Verified: equal to the masked original in" in shown
    assert "residual" not in shown and "not exact" not in shown
    assert [row.units for row in result.report.groups] == [HIDDEN]
    assert result.plan.inexact == () and result.plan.settings["residual"] is False


def test_a_refit_makes_up_for_channels_that_normalizations_miss() -> None:
    found = pruned(residual=True, refit=True).report
    assert found.quality.agreement > found.unrefit.agreement + 0.2


def test_a_wrong_compact_model_is_refused_in_words() -> None:
    units = find_units(stream(layer_norm).graph(), residual=True)
    plan = some(units)
    compact = remove(units.graph, plan)
    wrong = compact.with_constants({"c2": compact.constants["c2"] * 2})
    feeds = {"x0": np.ones((2, 3), np.float32)}
    message = "differs from the masked original whose normalizations run over what is kept, first in tensor 'layernorm"
    with pytest.raises(VerificationError, match=message):
        verify(units, plan, wrong, feeds)


def test_commands_take_the_option(tmp_path: Path) -> None:
    model, out = tmp_path / "model.onnx", tmp_path / "small.onnx"
    graph = stream(layer_norm).graph()
    graph.save(model)

    def run(*arguments: object) -> str:
        result = CliRunner().invoke(cli.main, [str(a) for a in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    assert "not exact" not in run("inspect", model)
    assert "not exact: normalizations run over it" in run("inspect", model, "--residual")
    found = json.loads(run("inspect", model, "--residual", "--json"))["groups"]
    assert sorted((group["units"], group["exact"]) for group in found.values()) == [(HIDDEN, True), (WIDTH, False)]
    assert len(json.loads(run("score", model, "--residual", "--json"))["scores"]) == 2
    assert len(json.loads(run("score", model, "--json"))["scores"]) == 1
    run("prune", model, "--units", 0.5, "--round-to", 1, "--residual", "--no-latency", "-o", out)
    assert {tensor.name: list(tensor.dims) for tensor in onnx.load(out).graph.initializer}["c2"] == [3]
    np.savez(tmp_path / "x.npz", x0=np.random.default_rng(0).standard_normal((32, 3)).astype("f"))
    arguments = ("--data", tmp_path / "x.npz", "--eval", tmp_path / "x.npz", "--criterion", "random", "--rounds", 1)
    removed = [
        json.loads(run("study", model, *arguments, "--ratio", 0.3, "--json", *option))["trials"][0]["removed"]
        for option in (["--residual"], [])
    ]
    assert all(share >= 0.3 for share in removed) and removed[0] != removed[1]
