"""Data of every kind, and what is said when they do not fit."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto

from builders import Net
from onnxprune.data import Data, load_data
from onnxprune.errors import DataError
from onnxprune.runtime import Session


def session(batch: int | str = "N") -> Session:
    net = Net()
    return Session(net.output(net.dense(net.input(batch, 3), 3, 2)).model().SerializeToString(), device="cpu")


def two_inputs() -> Session:
    net = Net()
    a, b = net.input("N", 3), net.input("N", 4, kind=TensorProto.INT64)
    summed = net.op("Add", net.op("ReduceSum", a), net.op("ReduceSum", net.op("Cast", b, to=TensorProto.FLOAT)))
    return Session(net.output(summed).model().SerializeToString(), device="cpu")


X = np.arange(30, dtype=np.float32).reshape(10, 3)
Y = np.arange(10) % 2


def all_rows(data: Data) -> tuple[np.ndarray, np.ndarray | None]:
    """The real samples of all batches together."""
    batches = list(data.batches())
    labels = [b.labels for b in batches if b.labels is not None]
    return np.concatenate([b.feeds["x0"][: b.real] for b in batches]), np.concatenate(labels) if labels else None


@pytest.mark.parametrize("labels", ["label", "labels"])
def test_npz(tmp_path: Path, labels: str) -> None:
    np.savez(tmp_path / "d.npz", x0=X, **{labels: Y})
    data = load_data(str(tmp_path / "d.npz"), session(), size=4)
    assert [b.real for b in data.batches()] == [4, 4, 2]
    rows, found = all_rows(data)
    np.testing.assert_array_equal(rows, X)
    np.testing.assert_array_equal(found, Y)


def test_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", X)
    np.testing.assert_array_equal(all_rows(load_data(tmp_path / "d.npy", session()))[0], X)
    with pytest.raises(DataError, match=r"holds one array, the model has the inputs x0, x1; give a .npz with them"):
        list(load_data(tmp_path / "d.npy", two_inputs()).batches())


@pytest.mark.parametrize("pattern", ["", "/*.npz"])
def test_shards_are_streamed_in_order(tmp_path: Path, pattern: str) -> None:
    for i in (2, 0, 1):
        np.savez(tmp_path / f"part{i}.npz", x0=X[3 * i : 3 * i + 3], labels=Y[3 * i : 3 * i + 3])
    rows, labels = all_rows(load_data(str(tmp_path) + pattern, session(), size=2))
    np.testing.assert_array_equal(rows, X[:9])
    np.testing.assert_array_equal(labels, Y[:9])


HEAD = """
import numpy as np
X = np.arange(30, dtype=np.float32).reshape(10, 3)
Y = np.arange(10) % 2
"""

SCRIPTS = {
    "dicts": """
def load_data():
    for i in range(10):
        yield {"x0": X[i : i + 1]}
""",
    "with labels": """
def load_data():
    yield {"x0": X[:6]}, Y[:6]
    yield {"x0": X[6:]}, Y[6:]
""",
    "arrays": """
def load_data():
    return [X[:5], X[5:]]
""",
    "one dict": """
def load_data():
    return {"x0": X, "label": Y}
""",
    "reader": """
class Reader:
    i = 0

    def get_next(self):
        self.i += 1
        return {"x0": X[self.i - 1 : self.i]} if self.i <= 10 else None

def load_data():
    return Reader()
""",
    "torch": """
import torch

def load_data():
    data = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    return torch.utils.data.DataLoader(data, batch_size=4)
""",
}


@pytest.mark.parametrize("kind", SCRIPTS)
def test_scripts(tmp_path: Path, kind: str) -> None:
    script = tmp_path / "data.py"
    script.write_text(HEAD + SCRIPTS[kind])
    data = load_data(str(script), session(), size=3)
    for _ in range(2):  # anew each time
        np.testing.assert_array_equal(all_rows(data)[0], X)
    assert (all_rows(data)[1] is not None) == (kind in ("with labels", "one dict", "torch"))


def test_other_functions_of_scripts(tmp_path: Path) -> None:
    script = tmp_path / "data.py"
    script.write_text("import numpy as np\ndef mine():\n    yield {'x0': np.zeros((4, 3), np.float32)}")
    assert len(all_rows(load_data(f"{script}:mine", session()))[0]) == 4
    with pytest.raises(DataError, match=r"has no function load_data\(\); write one, or name another as .*:function"):
        all_rows(load_data(script, session()))
    script.write_text("import numpy as np\ndef load_data():\n    yield {'x0': np.zeros((4, 3), np.float32)}\n    1 / 0")
    with pytest.raises(DataError, match=r"the script .*data\.py fails: ZeroDivisionError: "):
        all_rows(load_data(script, session()))
    script.write_text("1 / 0")
    with pytest.raises(DataError, match="fails: ZeroDivisionError"):
        all_rows(load_data(script, session()))
    with pytest.raises(DataError, match="there is no script"):
        all_rows(load_data(tmp_path / "none.py", session()))


def test_arrays_and_loaders() -> None:
    np.testing.assert_array_equal(all_rows(load_data({"x0": X}, session()))[0], X)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y)), batch_size=4)
    rows, labels = all_rows(load_data(loader, session()))
    np.testing.assert_array_equal(rows, X)
    np.testing.assert_array_equal(labels, Y)
    with pytest.raises(DataError, match="data cannot be taken from int"):
        load_data(3, session())


def texts() -> Session:
    net = Net()
    summed = net.op("ReduceSum", net.op("Cast", net.input("N", "T", kind=TensorProto.INT64), to=TensorProto.FLOAT))
    return Session(net.output(summed).model().SerializeToString(), device="cpu")


def test_batches_may_have_lengths_of_their_own() -> None:
    parts = [(np.full((rows, length), rows), Y[:rows]) for rows, length in ((3, 5), (2, 5), (4, 6), (5, 4), (1, 6))]
    batches = list(load_data(parts, texts(), size=4).batches())
    shapes = [(b.real, b.feeds["x0"].shape) for b in batches]
    assert shapes == [(n, (n, t)) for n, t in ((4, 5), (1, 5), (4, 6), (4, 4), (1, 4), (1, 6))]
    np.testing.assert_array_equal(batches[0].labels, Y[[0, 1, 2, 0]])
    assert [b.real for b in load_data(parts, texts(), size=4, limit=6).batches()] == [4, 1, 1]


def test_limits() -> None:
    data = load_data({"x0": X}, session(), limit=7, size=4)
    assert [b.real for b in data.batches()] == [4, 3]
    assert len(data.first(5).feeds["x0"]) == 5
    with pytest.raises(DataError, match="0 samples are too few"):
        load_data({"x0": X}, session(), limit=0)


def test_a_fixed_batch_is_filled_with_its_first_sample() -> None:
    batches = list(load_data({"x0": X, "labels": Y}, session(batch=4)).batches())
    assert [b.real for b in batches] == [4, 4, 2] and all(len(b.feeds["x0"]) == 4 for b in batches)
    np.testing.assert_array_equal(batches[-1].feeds["x0"], X[[8, 9, 8, 8]])
    np.testing.assert_array_equal(batches[-1].labels, Y[8:])


def test_casts_are_noted_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        data = load_data({"x0": X.astype(np.float64)}, session(), size=2)
        assert all_rows(data)[0].dtype == np.float32
    assert [r.message for r in caplog.records] == ["the arrays given: 'x0' is cast from float64 to float32"]


def test_synthetic_inputs() -> None:
    data = load_data(None, session(), limit=20)
    assert data.made_up and len(all_rows(data)[0]) == 20
    np.testing.assert_array_equal(all_rows(data)[0], all_rows(data)[0])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X}, r"has no array for the input 'x0', it has 'x'; did you mean 'x' to be 'x0'\?"),
        ({"other": X}, "has no array for the input 'x0', it has 'other'$"),
        ({"x0": X[:, :2]}, r"'x0' has shape \(10, 2\), the model wants \(any, 3\)"),
        ({"x0": X[0]}, r"'x0' has shape \(3,\), the model wants \(any, 3\)"),
        ({"x0": X.astype(np.uint8)}, "'x0' is uint8, the model wants float32; convert and scale it as the model was"),
        ({"x0": np.where(X == 4, np.nan, X)}, "'x0' has NaN or infinite values; remove those samples"),
        ({"x0": np.where(X == 4, np.inf, X)}, "'x0' has NaN or infinite values"),
        ({"x0": X[:0]}, "holds no samples; give data with at least one"),
        ({"x0": X, "labels": Y[:4]}, r"the numbers of samples differ: \{'x0': 10, 'labels': 4\}"),
    ],
)
def test_what_does_not_fit_is_said(arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(load_data(arrays, session()).batches())


def test_paths_that_hold_no_data(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"does not exist; give a \.npz or .npy file, a folder of .npz files, or a script"
    ):
        load_data(tmp_path / "none.npz", session())
    with pytest.raises(DataError, match=r"has no \.npz file in it"):
        load_data(tmp_path, session())
    (tmp_path / "d.csv").write_text("1,2,3")
    with pytest.raises(DataError, match="is of no known kind"):
        load_data(tmp_path / "d.csv", session())
    (tmp_path / "d.npz").write_bytes(b"no zip")
    with pytest.raises(DataError, match="cannot be read as numpy data"):
        list(load_data(tmp_path / "d.npz", session()).batches())
    np.savez(tmp_path / "o.npz", x0=np.array([{"a": 1}], object))
    with pytest.raises(DataError, match="objects are not accepted"):
        list(load_data(tmp_path / "o.npz", session()).batches())


def test_labels_may_be_an_input() -> None:
    net = Net()
    x = net.input("N", 3)
    model = net.output(net.dense(x, 3, 2)).model()
    for node in model.graph.node:
        node.input[:] = ["labels" if name == "x0" else name for name in node.input]
    model.graph.input[0].name = "labels"
    data = load_data({"labels": X}, Session(model.SerializeToString(), device="cpu"))
    batch = next(data.batches())
    assert batch.labels is None and len(batch.feeds["labels"]) == 10
