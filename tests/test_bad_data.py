"""Data and labels that are not what they say, kind by kind: one line, before any room is made for them."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.lib import format as npy

import onnxprune
from builders import Net
from commands import refused, run
from onnxprune import Budget, Method, Training, Watch
from onnxprune.data import load_data
from onnxprune.errors import DataError
from onnxprune.graph import Graph
from onnxprune.labels import classes
from onnxprune.numpyfiles import read_arrays
from onnxprune.runtime import Session

X = np.random.default_rng(0).standard_normal((12, 3)).astype(np.float32)


def graph() -> Graph:
    net = Net()
    return net.output(net.dense(net.op("Relu", net.dense(net.input("N", 3), 3, 8)), 8, 4)).graph()


def header(shape: tuple[int, ...], dtype: str, data: bytes = b"") -> bytes:
    """A .npy file that declares a shape, whatever follows."""
    file = io.BytesIO()
    npy.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue() + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header((1 << 46, 3), "<f4"), r"declares 844,424,930,131,968 bytes, and there are \d+; it was cut off"),
        (header((4, 3), "<f4", bytes(8)), "declares 48 bytes, and there are"),
        (header((1 << 60, 0), "<f4"), "declares 1,152,921,504,606,846,976 samples of no size"),
        (header((1 << 60,), "|S0"), "declares 1,152,921,504,606,846,976 samples of no size"),
        (header((2,), "|O", bytes(40)), "objects are not accepted"),
        (header((-5, 3), "<f4", bytes(40)), "cannot be read as numpy data"),
        (b"\x93NUMPY\x01\x00\xff\xff{'descr'", "cannot be read as numpy data"),
        (b"\x93NUMPY\x07\x00", "cannot be read as numpy data"),
        (b"", "cannot be read as numpy data"),
        (b"\x80\x04K\x01.", "cannot be read as numpy data"),
    ],
)
def test_files_that_declare_more_than_they_hold(tmp_path: Path, content: bytes, message: str) -> None:
    session = Session(graph().message(), device="cpu")
    (tmp_path / "d.npy").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "d.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x0.npy", content)
    for name in ("d.npy", "d.npz"):
        with pytest.raises(DataError, match=message) as caught:
            list(load_data(tmp_path / name, session).batches())
        assert "\n" not in str(caught.value) and name in str(caught.value)


def test_archives_that_are_not_what_they_say(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez_compressed(path, x0=X)
    whole = bytearray(path.read_bytes())
    at = whole.rindex(b"PK\x01\x02")  # the directory, where the size stands that a member is said to have
    huge = bytearray(whole)
    huge[at + 24 : at + 28] = (0xFFFFFF00).to_bytes(4, "little")
    path.write_bytes(huge)
    with pytest.raises(DataError, match=r"'x0.npy' declares more than it holds; write it again"):
        read_arrays(path)
    for i in range(0, len(whole), 7):
        flipped = bytearray(whole)
        flipped[i] ^= 0x55
        path.write_bytes(flipped)
        try:
            read_arrays(path)
        except DataError as error:
            assert "\n" not in str(error)


def test_other_files_in_an_archive_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, x0=X)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("readme.txt", "hello")
    assert list(read_arrays(path)) == ["x0"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(12) % 5, "the label 4 is none of the 4 classes of the output; give whole numbers from 0 to 3"),
        (np.arange(12) % 4 - 1, "the label -1 is none of the 4 classes"),
        (np.full(12, 1.5), "the label 1.5 is none of the 4 classes"),
        (np.full(12, np.nan), "the labels have NaN or infinite values; remove those samples"),
        (np.array(["cat"] * 12), "the labels are <U3; give numbers, such as that of the class, from 0"),
        (np.zeros(12, np.complex64), "the labels are complex64; give numbers"),
        (np.array(3), "the labels are one value for all samples; give one for each sample"),
        (np.zeros((12, 2), int), r"labels of shape \(\d+, 2\) do not fit (classes|the first output)"),
    ],
)  # fmt: skip
def test_labels_that_are_no_classes(tmp_path: Path, labels: np.ndarray, message: str) -> None:
    data = {"x0": X, "labels": labels}
    with pytest.raises(DataError, match=message):
        onnxprune.evaluate(graph(), data)
    with pytest.raises(DataError, match=message):
        onnxprune.recover(graph(), data, training=Training(epochs=1, batch=4, label_weight=1.0))
    with pytest.raises(DataError, match=message):
        good = {"x0": X, "labels": np.arange(12) % 4}
        training = Training(epochs=1, batch=4, label_weight=1.0)
        onnxprune.recover(graph(), good, training=training, watch=Watch(data, "top1"))
    np.savez(tmp_path / "d.npz", **data)
    (tmp_path / "m.onnx").write_bytes(graph().proto().SerializeToString())
    assert "label" in refused("eval", tmp_path / "m.onnx", "--data", tmp_path / "d.npz")


def test_labels_of_any_number_type_and_shape_are_classes() -> None:
    for kind in (np.uint8, np.uint16, np.int32, np.float32, np.uint64, bool):
        labels = np.arange(12).astype(kind)[:, None] % 4 if kind is not bool else np.arange(12) % 2 == 0
        right, count = onnxprune.evaluate(graph(), {"x0": X, "labels": labels})
        assert count == 12 and 0 <= right <= 1
        onnxprune.recover(graph(), {"x0": X, "labels": labels}, training=Training(epochs=1, label_weight=1.0))
    assert classes(np.array([1.0, -100]), (2,), 4).tolist() == [1, -100]


def test_what_does_not_count_is_left_out_of_the_accuracy() -> None:
    everything = onnxprune.evaluate(graph(), {"x0": X[:6], "labels": np.arange(6) % 4})
    labels = np.where(np.arange(12) < 6, np.arange(12) % 4, -100)
    assert onnxprune.evaluate(graph(), {"x0": X, "labels": labels}) == everything
    with pytest.raises(DataError, match="nothing in the data counts: all labels are -100"):
        onnxprune.evaluate(graph(), {"x0": X, "labels": np.full(12, -100)})


def test_labels_of_another_task_are_said_and_pruning_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    """They are not needed for it."""
    data = {"x0": X, "labels": np.arange(12)}
    pruned = onnxprune.prune(graph(), Budget("units", 0.5), data, method=Method(rounds=1, latency=False))
    assert pruned.report.quality is not None and pruned.report.quality.top1 is None
    assert pruned.report.quality.agreement is not None
    assert [r.message for r in caplog.records if "no top-1 accuracy: the label" in r.message] == [
        "no top-1 accuracy: the label 4 is none of the 4 classes of the output; give whole numbers from 0 to 3, and "
        "-100 for what does not count."
    ]


@pytest.mark.parametrize("code", ["0", "", "3", "'bye'"])
def test_scripts_that_end_the_program(tmp_path: Path, code: str) -> None:
    """Exit code 0 and nothing written would look like success."""
    model = tmp_path / "m.onnx"
    model.write_bytes(graph().proto().SerializeToString())
    for body in (f"import sys\nsys.exit({code})\n", f"def load_data():\n    raise SystemExit({code})\n"):
        (tmp_path / "data.py").write_text(body)
        words = refused("prune", model, "--ratio", 0.2, "--data", tmp_path / "data.py")
        assert "the script" in words and "ends the program with sys.exit(" in words and "let it return" in words
    assert not (tmp_path / "m.pruned.onnx").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"x0": [[1.0, 2.0], [3.0]]}, "making an array of a list in the data fails: ValueError"),
        ([{"x0": [[1.0, 2.0], [3.0]]}], "making an array of a list in the data fails: ValueError"),
        ([None], "'x0' (is object|has shape)"),
        ({"x0": object()}, "'x0' (is object|has shape)"),
        ([(X, [1, 2])], "the numbers of samples differ"),
    ],
)
def test_samples_that_are_no_arrays(source: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(load_data(source, Session(graph().message(), device="cpu")).batches())


def test_texts_are_taken_whatever_their_length() -> None:
    net = Net()
    words = net.input("N", 2, kind=8)
    chosen = net.op("Cast", net.op("Equal", words, net.constant(np.array(["yes"]))), to=1)
    session = Session(net.output(net.dense(chosen, 2, 2)).model().SerializeToString(), device="cpu")
    batch = next(load_data({"x0": np.array([["yes", "no, never"]])}, session).batches())
    assert session.run(batch.feeds)[0].shape == (1, 2)


def test_what_is_refused_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(graph().proto().SerializeToString())
    (tmp_path / "d.npy").write_bytes(header((1 << 46, 3), "<f4"))
    result = run("prune", tmp_path / "m.onnx", "--ratio", 0.2, "--data", tmp_path / "d.npy")
    assert result.exit_code == 1 and {path.name for path in tmp_path.iterdir()} == {"m.onnx", "d.npy"}
