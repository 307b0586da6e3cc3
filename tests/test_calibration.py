"""Moments, criteria and refit against numpy."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from builders import Net
from onnxprune import scoring
from onnxprune.criteria import CRITERIA
from onnxprune.errors import DataError, PlanError
from onnxprune.graph import Graph
from onnxprune.grouping import find_units
from onnxprune.moments import calibrate, merge, spread
from onnxprune.records import Moments, Site
from onnxprune.refit import refit
from onnxprune.runtime import Session
from onnxprune.scoring import _inverse_diagonal, score
from onnxprune.spectral import SpectralOptions, node_scores, squared_distances
from onnxprune.surgery import remove
from onnxprune.units import Units

X = np.random.default_rng(0).standard_normal((50, 10)).astype("f")


@cache
def dense() -> Units:
    net = Net()
    h = net.op("Relu", net.dense(net.input("N", 10), 10, 12))
    return find_units(net.output(net.dense(h, 12, 5)).graph())


def batches(x: np.ndarray, size: int) -> list[tuple[dict[str, np.ndarray], int]]:
    """Batches of one size, the last filled up with its first sample."""
    out = []
    for start in range(0, len(x), size):
        part = x[start : start + size]
        filled = np.concatenate([part, np.repeat(part[:1], size - len(part), axis=0)])
        out.append(({"x0": filled}, len(part)))
    return out


def sites(units: Units) -> list[Site]:
    return list({s.site.key: s.site for g in units.groups.values() for s in (*g.pre, *g.post)}.values())


def tensors(graph: Graph, names: list[str], x: np.ndarray) -> list[np.ndarray]:
    return [a.astype(np.float64) for a in Session(graph.message(outputs=names), device="cpu").run({"x0": x}, names)]


def test_moments_are_numpys() -> None:
    units = dense()
    moments = calibrate(units.graph, sites(units), batches(X, 50))
    for site, states in zip(sites(units), tensors(units.graph, [s.tensor for s in sites(units)], X), strict=True):
        assert moments.count[site.key] == 50
        np.testing.assert_allclose(moments.total[site.key], states.sum(0), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(moments.second[site.key], states.T @ states, rtol=1e-5, atol=1e-4)
        np.testing.assert_array_equal(moments.low[site.key], states.min(0))
        np.testing.assert_array_equal(moments.high[site.key], states.max(0))


@pytest.mark.parametrize("size", [1, 7, 32, 50])
def test_the_batch_size_makes_no_difference(size: int) -> None:
    """Also where it does not divide the number of samples, so that the last batch has padding."""
    units = dense()
    whole, parts = (calibrate(units.graph, sites(units), batches(X, n)) for n in (50, size))
    assert whole.count == pytest.approx(parts.count)
    for key in whole.count:
        np.testing.assert_allclose(parts.second[key], whole.second[key], rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(parts.total[key], whole.total[key], rtol=1e-5, atol=1e-4)


def test_moments_of_parts_add_up(tmp_path: Path) -> None:
    units = dense()
    parts = [calibrate(units.graph, sites(units), batches(x, 10), source="part") for x in (X[:20], X[20:])]
    for i, part in enumerate(parts):
        part.save(tmp_path / f"{i}.npz")
    together = merge([Moments.load(tmp_path / f"{i}.npz") for i in (0, 1)])
    whole = calibrate(units.graph, sites(units), batches(X, 50))
    for key in whole.count:
        assert together.count[key] == 50
        np.testing.assert_allclose(together.second[key], whole.second[key], rtol=1e-5, atol=1e-4)
        np.testing.assert_array_equal(together.low[key], whole.low[key])
    (tmp_path / "x.npz").write_bytes(b"no")
    with pytest.raises(DataError, match="holds no moments"):
        Moments.load(tmp_path / "x.npz")


def convolutional(channels_last: bool) -> Units:
    """A feature map flattened in front of a dense layer, in PyTorch's order or in TensorFlow's."""
    net = Net()
    h = net.op("Relu", net.conv(net.input("N", 2, 3, 3), 2, 6, kernel=3, pads=[1, 1, 1, 1]))
    h = net.op("Transpose", h, perm=[0, 2, 3, 1]) if channels_last else h
    return find_units(net.output(net.dense(net.op("Flatten", h), 54, 4)).graph())


@pytest.mark.parametrize("channels_last", [False, True])
def test_pixels_are_samples_of_a_channel(channels_last: bool) -> None:
    """Wherever they stand on the axis, and for every tensor on the way the same."""
    units = convolutional(channels_last)
    (group,) = units.groups.values()
    assert group.kind == "channel" and len(group.post) == 1
    site = group.post[0].site
    assert (site.features, site.outer, site.inner) == ((6, 9, 1) if channels_last else (6, 1, 9))
    x = np.random.default_rng(1).standard_normal((20, 2, 3, 3)).astype("f")
    moments = calibrate(units.graph, sites(units), batches(x, 8))
    (relu,) = tensors(units.graph, [next(n for n in units.graph.nodes if n.op == "Relu").outputs[0].name], x)
    states = relu.transpose(1, 0, 2, 3).reshape(6, -1)
    assert moments.count[site.key] == pytest.approx(states.shape[1])
    np.testing.assert_allclose(moments.second[site.key], states @ states.T, rtol=1e-5, atol=1e-4)


def test_stride_takes_every_which_sample() -> None:
    units = dense()
    site = sites(units)[0]
    moments = calibrate(units.graph, [site], batches(X, 50), stride=3)
    (states,) = tensors(units.graph, [site.tensor], X)
    np.testing.assert_allclose(moments.second[site.key], states[::3].T @ states[::3], rtol=1e-5, atol=1e-4)


def test_states_that_are_not_finite_are_refused() -> None:
    net = Net()
    h = net.op("Exp", net.dense(net.input("N", 10), 10, 12))
    units = find_units(net.output(net.dense(h, 12, 5)).graph())
    with pytest.raises(DataError, match=r"the states of tensor '.*' are not finite on these data; check their scale"):
        calibrate(units.graph, sites(units), batches(100 * X, 50))
    with pytest.raises(DataError, match="there are no samples to calibrate on"):
        calibrate(units.graph, sites(units), [])


def evidence(units: Units, x: np.ndarray = X) -> tuple[Moments, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Moments, the states before and after the ReLU, and the weights around them."""
    before, after = tensors(units.graph, [n.outputs[0].name for n in units.graph.nodes[:2]], x)
    constants = units.graph.constants
    return calibrate(units.graph, sites(units), batches(x, 25)), before, after, constants["c0"], constants["c2"]


def test_criteria_are_what_they_say() -> None:
    units = dense()
    moments, before, after, w_in, w_out = evidence(units)
    rms, reads = np.sqrt((after**2).mean(0)), np.linalg.norm(w_out, axis=1)
    covariance = np.cov(after.T, bias=True)
    ridged = covariance + 1e-3 * np.diag(covariance).mean() * np.eye(12)
    expected = {
        "magnitude": np.linalg.norm(w_in, axis=0),
        "magnitude-l1": np.abs(w_in).sum(0),
        "activation": rms,
        "wanda": rms * reads,
        "variance": after.var(0) * reads**2,
        "reconstruction": reads**2 / np.diag(np.linalg.inv(ridged)),
        "spectral": node_scores(*(squared_distances(s.T @ s / 50) for s in (before, after))),
    }
    for criterion in CRITERIA:
        (found,) = score(units, moments, units.graph.constants, {}, criterion=criterion).by_group.values()
        if criterion in expected:
            np.testing.assert_allclose(found, expected[criterion], rtol=2e-3)
        again = score(units, moments, units.graph.constants, {}, criterion=criterion).by_group
        np.testing.assert_array_equal(found, *again.values())


@pytest.mark.parametrize("seed", range(3))
def test_of_equal_spectral_scores_the_smaller_state_is_lower(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the processor makes of the last bits."""
    units = dense()
    moments, _, after, *_ = evidence(units)
    rounding = 1 + 1e-14 * np.random.default_rng(seed).standard_normal(12)
    exact = np.repeat([3.0, 1e-5, 2.0], 4)
    monkeypatch.setattr(scoring, "node_scores", lambda *_: exact * rounding)
    found = score(units, moments, units.graph.constants, {}).by_group["c0"]
    np.testing.assert_allclose(found, exact, rtol=1e-8)
    assert list(np.argsort(found)) == list(np.lexsort([(after**2).mean(0), exact]))


def test_reversed_scores_rank_the_other_way() -> None:
    units = dense()
    moments = evidence(units)[0]
    plain, back = (
        score(units, moments, units.graph.constants, {}, criterion="wanda", reverse=r).by_group["c0"] for r in (0, 1)
    )
    assert (np.argsort(plain) == np.argsort(back)[::-1]).all() and back.min() >= 0


def test_units_that_are_gone_have_no_score_and_no_influence() -> None:
    """Scores of the compact model are those of its own states, in the numbering of the original."""
    units = dense()
    keep = {"c0": np.arange(12) % 3 > 0}
    compact = remove(units.graph, units.plan(keep))
    masks = {site.key: keep["c0"] for site in sites(units)}
    small = [Site(s.tensor, s.axis, s.rank, 8) for s in sites(units)]
    moments = spread(calibrate(compact, small, batches(X, 50)), masks)
    whole = evidence(units)[0]
    for criterion in ("spectral", "reconstruction", "wanda"):
        (found,) = score(units, moments, units.graph.constants, keep, criterion=criterion).by_group.values()
        assert np.isnan(found[~keep["c0"]]).all() and np.isfinite(found[keep["c0"]]).all()
        if criterion == "wanda":
            (full,) = score(units, whole, units.graph.constants, {}, criterion=criterion).by_group.values()
            np.testing.assert_allclose(found[keep["c0"]], full[keep["c0"]], rtol=1e-5)


def test_linear_groups_are_ranked_by_reconstruction_and_say_so() -> None:
    net = Net()
    h = net.dense(net.input("N", 10), 10, 8)
    units = find_units(net.output(net.dense(h, 8, 5)).graph())
    moments = calibrate(units.graph, sites(units), batches(X, 50))
    scores = score(units, moments, units.graph.constants, {}, criterion="spectral")
    assert "no nonlinearity between its writers and readers" in scores.notes["c0"]
    other = score(units, moments, units.graph.constants, {}, criterion="reconstruction")
    np.testing.assert_array_equal(scores.by_group["c0"], other.by_group["c0"])


def test_unknown_criteria_are_refused() -> None:
    units = dense()
    with pytest.raises(PlanError, match="there is no criterion 'best'; use one of spectral, random"):
        score(units, evidence(units)[0], units.graph.constants, {}, criterion="best")


def test_options_reach_the_spectral_criterion() -> None:
    units = dense()
    moments = evidence(units)[0]
    ways = [SpectralOptions(), SpectralOptions(s="all"), SpectralOptions(k=2), SpectralOptions(metric="correlation")]
    ways += [SpectralOptions(weights="inverse"), SpectralOptions(ridge=0.5)]
    found = [score(units, moments, units.graph.constants, {}, options=o).by_group["c0"] for o in ways]
    assert len({tuple(np.round(f, 9)) for f in found}) == len(ways)


def test_refit_of_a_grouped_convolution_stays_within_its_groups() -> None:
    """Each group is a least-squares problem of its own, against numpy."""
    net = Net()
    h = net.op("Relu", net.conv(net.input("N", 2, 4, 4), 2, 12))
    h = net.op("Relu", net.conv(h, 12, 8, group=2))
    units = find_units(net.output(net.conv(h, 8, 3)).graph())
    name = next(name for name, group in units.groups.items() if group.size == 6)
    plan = units.plan({name: np.array([1, 0, 1, 1, 0, 1], bool)})
    compact = remove(units.graph, plan)
    x = np.random.default_rng(3).standard_normal((30, 2, 4, 4)).astype("f")
    better, nodes = refit(units, plan, compact, lambda: batches(x, 30), device="cpu")
    assert len(nodes) == 1
    (states,) = tensors(units.graph, [units.graph.nodes[1].outputs[0].name], x)
    flat = states.transpose(1, 0, 2, 3).reshape(12, -1)
    (reader,) = units.groups[name].readers
    w = units.graph.constants[reader.tensor].astype(np.float64)[:, :, 0, 0]  # (8, 6)
    for part in (0, 1):
        block, kept = flat[6 * part : 6 * part + 6], [0, 2, 3, 5]
        gram, cross = block[kept] @ block[kept].T / flat.shape[1], block[kept] @ block.T / flat.shape[1]
        ridge = 1e-3 * np.trace(gram) / 4
        mine = w[4 * part : 4 * part + 4]
        expected = np.linalg.solve(gram + ridge * np.eye(4), cross @ mine.T + ridge * mine[:, kept].T).T
        found = better.constants[reader.tensor][4 * part : 4 * part + 4, :, 0, 0]
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("make", [dense, lambda: convolutional(False), lambda: convolutional(True)])
def test_refit_is_least_squares(make) -> None:
    """The refit reader of one layer is the ridge solution, against numpy; errors get smaller."""
    units = make()
    (name,) = units.groups
    size = units.groups[name].size
    keep = {name: np.arange(size) % 2 == 0}
    plan = units.plan(keep)
    compact = remove(units.graph, plan)
    shape = (200, 10) if make is dense else (200, 2, 3, 3)
    x = np.random.default_rng(2).standard_normal(shape).astype("f")
    better, nodes = refit(units, plan, compact, lambda: batches(x, 100), device="cpu")
    assert len(nodes) == 1
    target, plain, after = (
        Session(g.message(), device="cpu").run({"x0": x})[0] for g in (units.graph, compact, better)
    )
    assert np.mean((after - target) ** 2) < 0.8 * np.mean((plain - target) ** 2)
    (reader,) = units.groups[name].readers
    if make is dense:
        _, before_reader = tensors(units.graph, [n.outputs[0].name for n in units.graph.nodes[:2]], x)
        y = before_reader[:, keep[name]]
        gram, cross = y.T @ y / 200, y.T @ before_reader / 200
        ridge = 1e-3 * np.trace(gram) / len(gram)
        w = units.graph.constants[reader.tensor].astype(np.float64)
        expected = np.linalg.solve(gram + ridge * np.eye(len(gram)), cross @ w + ridge * w[keep[name]])
        np.testing.assert_allclose(better.constants[reader.tensor], expected, rtol=1e-3, atol=1e-4)
    unchanged = {n for n, a in better.constants.items() if a.tobytes() == compact.constants[n].tobytes()}
    assert set(better.constants) - unchanged == {reader.tensor}


def test_rounding_errors_of_a_covariance_leave_positive_costs() -> None:
    """What states that never change leave beside their mean: numbers around zero, not a positive definite matrix."""
    noise = np.random.default_rng(0).standard_normal((6, 6))
    diagonal = _inverse_diagonal(noise + noise.T)
    assert np.isfinite(diagonal).all() and (diagonal > 0).all()
    definite = noise @ noise.T + np.eye(6)
    np.testing.assert_allclose(_inverse_diagonal(definite), np.diag(np.linalg.inv(definite)))


def test_groups_of_a_convolution_that_stay_are_no_positions() -> None:
    """Three groups because the image has three channels: their states are features, and refit keeps to each group."""
    net = Net()
    h = net.op("Relu", net.conv(net.input("N", 3, 4, 4), 3, 12, group=3))
    units = find_units(net.output(net.conv(h, 12, 9, group=3)).graph())
    (group,) = units.groups.values()
    assert group.size == 4 and not group.linear
    (reader,) = group.readers
    assert (reader.site.features, reader.site.outer) == (12, 1)
    x = np.random.default_rng(3).standard_normal((30, 3, 4, 4)).astype("f")
    moments = calibrate(units.graph, sites(units), batches(x, 30))
    scores = {
        criterion: score(units, moments, units.graph.constants, {}, criterion=criterion).by_group[group.name]
        for criterion in CRITERIA
    }
    assert all(np.isfinite(found).all() for found in scores.values())
    plan = units.plan({group.name: np.array([1, 0, 1, 1], bool)})
    compact = remove(units.graph, plan)
    better, nodes = refit(units, plan, compact, lambda: batches(x, 30), device="cpu")
    target, plain, after = (
        Session(g.message(), device="cpu").run({"x0": x})[0] for g in (units.graph, compact, better)
    )
    assert nodes and np.mean((after - target) ** 2) < 0.9 * np.mean((plain - target) ** 2)
    (states,) = tensors(units.graph, [reader.site.tensor], x)
    flat = states.transpose(1, 0, 2, 3).reshape(12, -1)
    squares = np.square(flat).mean(axis=1).reshape(3, 4).sum(axis=0)  # a unit is one channel of every group
    np.testing.assert_allclose(scores["activation"], np.sqrt(squares), rtol=1e-5)
    w = units.graph.constants[reader.tensor].astype(np.float64)[:, :, 0, 0]  # (9, 4)
    for part in range(3):
        here, kept = flat[4 * part : 4 * part + 4], flat[4 * part + np.array([0, 2, 3])]
        gram = kept @ kept.T / kept.shape[1]
        ridge = 1e-3 * np.trace(gram) / 3 * np.eye(3)
        rows = w[3 * part : 3 * part + 3]
        expected = np.linalg.solve(gram + ridge, kept @ here.T / kept.shape[1] @ rows.T + ridge @ rows[:, [0, 2, 3]].T)
        found = better.constants[reader.tensor][3 * part : 3 * part + 3, :, 0, 0]
        np.testing.assert_allclose(found, expected.T, rtol=1e-3, atol=1e-4)
