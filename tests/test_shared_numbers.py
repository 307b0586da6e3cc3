"""Inputs without axes, such as a time or a length: one number for all samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import onnxprune
from builders import Net
from onnxprune.data import load_data
from onnxprune.errors import DataError
from onnxprune.graph import Graph, load
from onnxprune.recovery import export_fresh
from onnxprune.runtime import Session

X = np.random.default_rng(0).standard_normal((40, 4)).astype("f")


def scaled(batch: int | str = "N") -> Graph:
    """Neurons that a number scales before their nonlinearity."""
    net = Net(18)
    x, scale = net.input(batch, 4), net.input()
    h = net.op("Sigmoid", net.op("Mul", net.dense(x, 4, 12), scale))
    return net.output(net.dense(h, 12, 3)).graph()


def data(scale: float) -> dict[str, np.ndarray]:
    return {"x0": X, "x1": np.array(scale, "f")}


def result(graph: Graph, feeds: dict[str, np.ndarray]) -> np.ndarray:
    return Session(graph.message(), device="cpu").run(feeds)[0]


def test_batches_have_it_and_differ_where_it_does(tmp_path: Path) -> None:
    (tmp_path / "d.py").write_text(
        "import numpy as np\n"
        "def load_data():\n"
        "    for scale in (1, 1, 2):\n"
        "        yield {'x0': np.ones((3, 4), 'f'), 'x1': np.array(scale, 'f')}\n"
    )
    batches = list(load_data(tmp_path / "d.py", Session(scaled().message(), device="cpu")).batches())
    assert [(b.real, float(b.feeds["x1"])) for b in batches] == [(6, 1.0), (3, 2.0)]
    (filled,) = load_data({"x0": X[:2], "x1": X[0, 0]}, Session(scaled(3).message(), device="cpu")).batches()
    assert (filled.real, filled.rows) == (2, 3) and filled.feeds["x1"].shape == ()
    with pytest.raises(DataError, match=r"'x1' differs between samples, and training mixes them"):
        onnxprune.recover(scaled(), f"{tmp_path / 'd.py'}", teacher=scaled())


@pytest.mark.parametrize("batch", ["N", 16])
def test_from_score_to_a_fresh_graph(batch: int | str, tmp_path: Path) -> None:
    original = scaled(batch)
    budget, method = onnxprune.Budget("units", 0.5), onnxprune.Method(refit=True, latency=False)
    found = [onnxprune.prune(original, budget, data(scale), method=method) for scale in (0.1, 10.0)]
    assert not np.allclose(*(list(pruned.scores.by_group.values()) for pruned in found))
    compact = found[0].graph
    training = onnxprune.Training(epochs=3, batch=16, rate=1e-3, loss="mse")
    watch = onnxprune.Watch(data(0.1), "loss")
    final = onnxprune.recover(compact, data(0.1), teacher=original, training=training, watch=watch)
    feeds = data(0.1) | {"x0": X[:16]}
    errors = [np.square(result(graph, feeds) - result(original, feeds)).sum() for graph in (final, compact)]
    assert errors[0] < errors[1]
    fresh = load(export_fresh(final, tmp_path / "fresh.onnx", data(0.1)))
    np.testing.assert_allclose(result(fresh, feeds), result(final, feeds), rtol=1e-4, atol=1e-5)


def test_an_augmentation_keeps_it_one_number() -> None:
    def widened(arrays: dict[str, np.ndarray], generator: np.random.Generator) -> dict[str, np.ndarray]:
        return arrays | {"x1": np.ones(3, "f")}

    with pytest.raises(DataError, match=r"gives 'x1' of shape \(3,\) for a number that all samples share"):
        onnxprune.recover(scaled(), data(1), teacher=scaled(), augment=widened)
    onnxprune.recover(
        scaled(), data(1), teacher=scaled(), augment=lambda arrays, _: arrays, training=onnxprune.Training(epochs=1)
    )
