"""Files that are never lost: names of data, whose they are, and writers that die, meet, or run out of room."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from builders import Net
from dying import tracer
from onnxprune import graph as graph_module
from onnxprune import journal as journal_module
from onnxprune.checksums import checksum, checksum_of
from onnxprune.errors import OutputError
from onnxprune.files import Results, remove, write
from onnxprune.graph import Graph, load
from onnxprune.references import data_of, mentioned

TESTS = Path(__file__).parent
HERE = {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}", "PATH": os.environ["PATH"]}


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_module, "EXTERNAL_MINIMUM", 64)


def network(seed: int) -> onnx.ModelProto:
    net = Net(seed=seed)
    return net.output(net.dense(net.op("Relu", net.dense(net.input("N", 8), 8, 16)), 16, 4)).model()


def model(path: Path, seed: int, data: str | None = None) -> Graph:
    """A model in a file, its weights in another one where that is named."""
    outside = {"save_as_external_data": True, "size_threshold": 64, "location": data} if data else {}
    onnx.save(network(seed), path, **outside)
    return load(path)


def weights(path: Path) -> list[bytes]:
    """The values of all weights of a model, which needs all its data."""
    return [onnx.numpy_helper.to_array(tensor).tobytes() for tensor in onnx.load(path).graph.initializer]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# whose data they are --------------------------------------------------------------------------------------------------


def test_data_never_take_the_name_of_another_file(tmp_path: Path) -> None:
    """The original's weights lie where those of the result would go by default."""
    graph = model(tmp_path / "orig.onnx", 0, "model.onnx.data")
    before = weights(tmp_path / "orig.onnx")
    graph.save(tmp_path / "model.onnx")
    (data,) = data_of(tmp_path / "model.onnx")
    assert data.name.startswith("model.onnx.") and data.name != "model.onnx.data" and len(data.name) == 24
    assert weights(tmp_path / "orig.onnx") == weights(tmp_path / "model.onnx") == before


def test_the_same_model_over_itself_gives_the_same_bytes(tmp_path: Path) -> None:
    for taken in (False, True):
        path = tmp_path / f"{taken}.onnx"
        if taken:
            Path(f"{path}.data").write_bytes(b"somebody's")
        graph = model(tmp_path / "new.onnx", 0, "new.bin")
        graph.save(path)
        first, found = path.read_bytes(), names(tmp_path)
        graph.save(path)
        assert path.read_bytes() == first and names(tmp_path) == found
        assert not taken or Path(f"{path}.data").read_bytes() == b"somebody's"


def test_data_follow_their_model(tmp_path: Path) -> None:
    """External over external, inline over external, external over inline: nothing is left of what was replaced."""
    one, two = (model(tmp_path / f"{i}.onnx", i, f"{i}.bin") for i in (1, 2))
    inline = model(tmp_path / "3.onnx", 3)
    path = tmp_path / "out" / "model.onnx"
    path.parent.mkdir()
    for source, graph, left in (
        (1, one, 2),
        (2, two, 2),
        (3, inline, 1),
        (1, one, 2),
        (1, load(tmp_path / "1.onnx"), 2),
    ):
        graph.save(path)
        assert len(names(path.parent)) == left
        assert weights(path) == weights(tmp_path / f"{source}.onnx")


def test_a_graph_goes_on_after_its_own_file_was_replaced(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    graph = model(path, 0, "model.onnx.data")
    whole = {name: array.copy() for name, array in graph.constants.items()}
    graph.with_constants({name: 2 * array for name, array in whole.items()}).save(path)
    assert len(names(tmp_path)) == 2 and "model.onnx.data" not in names(tmp_path)
    for name, array in graph.constants.items():
        np.testing.assert_array_equal(array, whole[name])
    graph.save(path)
    assert names(tmp_path) == {"model.onnx", "model.onnx.data"}


@pytest.mark.parametrize("case", ["another model", "a model that is read", "a link", "two names", "another name"])
def test_data_stay_that_others_may_need(case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="onnxprune")
    path, other = tmp_path / "model.onnx", tmp_path / "other.onnx"
    data = "weights.bin" if case == "another name" else "model.onnx.data"
    model(path, 0, data)
    before, read = weights(path), []
    if case == "another model":
        other = Path(shutil.copy(path, other))
    elif case == "a model that is read":
        other = Path(shutil.copy(path, tmp_path / "teacher"))
        read = [other]
    elif case == "a link":
        other.symlink_to(path)
        path, other = other, path
    elif case == "two names":
        other.hardlink_to(path)
    with Results(models=read) as results:
        from_elsewhere(tmp_path).save(path, results)
    assert (tmp_path / data).is_file() and data not in {found.name for found in data_of(path)}
    assert other.is_symlink() or case == "another name" or weights(other) == before
    said = f"{tmp_path / data} is no longer used by {path} and stays" in caplog.text
    assert said == (case in ("another model", "a model that is read", "another name"))


def from_elsewhere(tmp_path: Path) -> Graph:
    folder = tmp_path / "elsewhere"
    folder.mkdir(exist_ok=True)
    return model(folder / "new.onnx", 9, "new.bin")


def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    model(real / "model.onnx", 0, "model.onnx.data")
    before, path = weights(real / "model.onnx"), tmp_path / "model.onnx"
    path.symlink_to(real / "model.onnx")
    from_elsewhere(tmp_path).save(path)
    assert not path.is_symlink() and weights(real / "model.onnx") == before != weights(path)


def test_names_of_other_data_may_end_alike(tmp_path: Path) -> None:
    """`max.onnx.data` is not mistaken for `x.onnx.data`."""
    model(tmp_path / "x.onnx", 0, "x.onnx.data")
    model(tmp_path / "max.onnx", 1, "max.onnx.data")
    from_elsewhere(tmp_path).save(tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx.data").exists() and (tmp_path / "max.onnx.data").exists()


@pytest.mark.parametrize(
    ("name", "found"),
    [
        *((name, True) for name in ("a.onnx", "a.onnx.bak", "a.onnx.1", "a.b.onnx~", "a.onnx\n")),
        *((name, False) for name in ("a.onnx.data", "a.onnx_data", "a.onnx_data_1", ".a.onnx.0123abcd.file.tmp")),
        *((name, False) for name in ("a.onnx.0123abcd.data", "a.txt", "onnx")),
    ],
)
def test_where_other_models_are_looked_for(name: str, found: bool, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"...model.onnx.data...")
    assert mentioned("model.onnx.data", tmp_path, tmp_path / "model.onnx") == found


def test_data_are_found_wherever_a_model_has_tensors(tmp_path: Path) -> None:
    """In initializers, sparse ones, attributes, bodies and functions; what is no model has none."""
    found = network(0)
    tensors = [onnx.TensorProto(name=name, data_type=1, dims=[1]) for name in "abcde"]
    for tensor in tensors:
        tensor.external_data.add(key="location", value=f"{tensor.name}.bin")
    body = onnx.helper.make_graph([onnx.helper.make_node("Constant", [], ["b"], value=tensors[1])], "body", [], [])
    found.graph.initializer.append(tensors[0])
    found.graph.node.append(onnx.helper.make_node("If", ["x0"], ["y"], then_branch=body, else_branch=body))
    found.graph.sparse_initializer.append(onnx.SparseTensorProto(values=tensors[2], indices=tensors[3]))
    nodes = [onnx.helper.make_node("Constant", [], ["e"], value=tensors[4])]
    found.functions.append(onnx.helper.make_function("d", "f", [], ["e"], nodes, []))
    path = tmp_path / "model.onnx"
    path.write_bytes(found.SerializeToString())
    assert [data.name for data in data_of(path)] == [f"{name}.bin" for name in "abcde"]
    (tmp_path / "text").write_bytes(b"the location of nothing")
    (tmp_path / "empty").touch()
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 32)
    assert not any(data_of(tmp_path / name) for name in ("text", "empty", "large", "none", "."))


def test_a_model_is_not_written_over_its_own_weights(tmp_path: Path) -> None:
    graph = model(tmp_path / "model.onnx", 0, "weights.onnx")
    before = weights(tmp_path / "model.onnx")
    with pytest.raises(OutputError, match=r"weights.onnx holds the weights of .*model.onnx; give another name"):
        graph.save(tmp_path / "weights.onnx")
    assert weights(tmp_path / "model.onnx") == before


def test_weights_of_every_type_go_outside(tmp_path: Path) -> None:
    """Numbers of four bits, two to a byte; strings, which cannot."""
    import ml_dtypes

    source, values = model(tmp_path / "new.onnx", 0, "new.bin").source, np.random.default_rng(0).integers(-8, 8, 300)
    graph = load(tmp_path / "new.onnx")
    kinds = (ml_dtypes.int4, ml_dtypes.bfloat16, np.float16, np.bool_, ml_dtypes.float8_e4m3fn)
    arrays = {np.dtype(kind).name: values.astype(kind) for kind in kinds}
    arrays["words"] = np.array(["a", "bc"] * 100, object)
    for name, array in arrays.items():
        source.graph.initializer.append(onnx.TensorProto(name=name, dims=array.shape))
        graph.constants[name] = array
    graph.source = source
    graph.save(tmp_path / "model.onnx")
    written = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph.initializer
    outside = {t.name for t in written if t.data_location == onnx.TensorProto.EXTERNAL}
    assert outside >= set(arrays) - {"words"} and "words" not in outside
    for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer:
        if tensor.name in arrays:
            np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), arrays[tensor.name])


# names ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["two words.onnx", "ä.onnx", "x" * 250 + ".onnx", "[*].onnx", "no_ending", "-o.onnx"])
def test_names_of_all_kinds(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    for seed in (1, 2, 2):
        graph = model(tmp_path / "new.onnx", seed, "new.bin")
        (tmp_path / f".{name[:100]}.tmp").touch()
        graph.save(path)
        assert weights(path) == weights(tmp_path / "new.onnx")
        assert len(names(tmp_path)) == 5
    remove(path)
    assert not path.exists()


def test_what_cannot_be_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "gone").symlink_to(tmp_path / "pipe")
    for name, message in {
        "pipe": "is a device or a pipe, which cannot be replaced",
        "gone": "is a device or a pipe, which cannot be replaced",
        ".": "is a folder; give the name of a file",
        "loop": "cannot be written: Too many levels of symbolic links",
        "x" * 256: "cannot be written: File name too long",
        "pipe/x": "cannot be written: Not a directory",
        "none/x": "cannot be written: No such file or directory",
    }.items():
        with pytest.raises(OutputError, match=message):
            from_elsewhere(tmp_path).save(tmp_path / name)
        with pytest.raises(OutputError, match=message):
            write(tmp_path / name, "text")
    assert names(tmp_path) == {"pipe", "loop", "gone", "elsewhere"}


@pytest.mark.parametrize("other", ["model.onnx", "./model.onnx", "model.onnx.data", "model.onnx.01234567.data"])
@pytest.mark.parametrize("model_first", [True, False])
def test_results_that_would_replace_each_other(other: str, model_first: bool, tmp_path: Path) -> None:
    graph = from_elsewhere(tmp_path)
    with pytest.raises(OutputError, match="would replace each other"), Results() as results:
        if model_first:
            graph.save(tmp_path / "model.onnx", results)
        write(Path(f"{tmp_path}/{other}"), "text", results)
        graph.save(tmp_path / "model.onnx", results)
    assert names(tmp_path) == {"elsewhere"}


def test_results_are_written_together_or_not_at_all(tmp_path: Path) -> None:
    graph = from_elsewhere(tmp_path)
    paths = tmp_path / "plan.json", tmp_path / "model.onnx"
    with pytest.raises(ZeroDivisionError), Results() as results:
        write(paths[0], "text", results)
        graph.save(paths[1], results)
        raise ZeroDivisionError
    assert names(tmp_path) == {"elsewhere"} and not results.written
    paths[1].write_bytes(b"somebody's, made in the meantime")
    with pytest.raises(OutputError, match=r"model.onnx exists already"), Results(force=False) as results:
        write(paths[0], "text", results)
        graph.save(paths[1], results)
    assert names(tmp_path) == {"elsewhere", "model.onnx"} and paths[1].read_bytes().startswith(b"somebody's")
    with Results() as results:
        write(paths[0], "text", results)
        graph.save(paths[1], results)
    assert results.written == {paths[0]: "", paths[1]: "model.onnx.data"}
    assert names(tmp_path) == {"elsewhere", "plan.json", "model.onnx", "model.onnx.data"}


# writers that die -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), [("x", "x"), ("x", ""), ("", "x"), ("other", "x")])
def test_killed_before_every_line(old: str, new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is the old or the new one, and after the next run nothing else is left."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    start = tmp_path / "start"
    start.mkdir()
    model(start / "model.onnx", 0, {"x": "model.onnx.data", "other": "weights.bin", "": None}[old])
    graph = model(tmp_path / "new.onnx", 1, "new.bin" if new else None)
    subprocess.run([sys.executable, TESTS / "dying.py", tmp_path], env=HERE, check=True)
    before, after = weights(start / "model.onnx"), weights(tmp_path / "new.onnx")
    scenes = sorted((path for path in tmp_path.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    found, kinds = [], set()
    for scene in scenes:
        found.append(weights(scene / "model.onnx"))
        kinds.add(frozenset(name[-9:] for name in names(scene)))
        graph.save(scene / "model.onnx")
        assert weights(scene / "model.onnx") == after
        left = names(scene) - {"model.onnx", "weights.bin"}
        assert len(left) == bool(new) and all(name.endswith(".data") for name in left), scene
    number = found.index(after)
    assert found == [before] * number + [after] * (len(found) - number)
    assert len(scenes) > 50 and len(kinds) >= (8 if old == new == "x" else 5)


# a file that was opened and is not yet known is closed by Python, which does not like that
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupted_before_every_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C leaves the old model or the new one, mostly nothing else, and nothing that the next run would keep."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    graph = from_elsewhere(tmp_path)
    assert graph.path is not None
    after, traced, clean = weights(graph.path), sys.gettrace(), 0

    def stop() -> None:
        raise KeyboardInterrupt

    for lines in range(10_000):
        path = tmp_path / str(lines) / "model.onnx"
        path.parent.mkdir()
        model(path, 0, "model.onnx.data")
        before, written = weights(path), False
        try:
            sys.settrace(tracer(lines, stop))
            graph.save(path)
            written = True
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(traced)
        assert weights(path) in ((after,) if written else (before, after))
        clean += len(names(path.parent)) == 2
        graph.save(path)
        assert len(names(path.parent)) == 2
        if written:
            break
    assert lines > 200 and clean > 0.8 * lines


def test_files_of_a_run_that_lives_stay(tmp_path: Path) -> None:
    """A second run writes the same path meanwhile; the first one then replaces what that wrote."""
    slow, quick = from_elsewhere(tmp_path), model(tmp_path / "quick.onnx", 1, "quick.bin")
    path = tmp_path / "out" / "model.onnx"
    path.parent.mkdir()
    with Results() as results:
        slow.save(path, results)
        assert len(names(path.parent)) == 3
        quick.save(path)
        assert len(names(path.parent)) == 5 and weights(path) == weights(tmp_path / "quick.onnx")
    assert len(names(path.parent)) == 2 and weights(path) == weights(tmp_path / "elsewhere" / "new.onnx")


def test_data_that_are_used_again_may_have_gone(tmp_path: Path) -> None:
    """The second run uses the data that the first one's model has, and which a third one removes in the meantime."""
    same, other = from_elsewhere(tmp_path), model(tmp_path / "other.onnx", 1, "other.bin")
    path = tmp_path / "out" / "model.onnx"
    path.parent.mkdir()
    same.save(path)
    with Results() as results:
        same.save(path, results)
        other.save(path)
        assert not Path(f"{path}.data").exists()
    assert weights(path) == weights(tmp_path / "elsewhere" / "new.onnx") and len(names(path.parent)) == 2
    with pytest.raises(OutputError, match=r"another run writes .*model.onnx at the same time"), Results() as results:
        same.save(path, results)
        Path(f"{path}.data").write_bytes(b"another run's")
    assert Path(f"{path}.data").read_bytes() == b"another run's"


def test_many_runs_at_once(tmp_path: Path) -> None:
    for i in range(3):
        model(tmp_path / f"{i}.onnx", i, f"{i}.bin")
    path = tmp_path / "out" / "model.onnx"
    path.parent.mkdir()
    code = (
        "import sys, onnxprune.graph as g; g.EXTERNAL_MINIMUM = 64; graph = g.load(sys.argv[1])\n"
        "for _ in range(30): graph.save(sys.argv[2])"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code, tmp_path / f"{i}.onnx", path], env=HERE) for i in range(3)]
    assert [run.wait() for run in runs] == [0, 0, 0]
    assert weights(path) in [weights(tmp_path / f"{i}.onnx") for i in range(3)]
    assert len(names(path.parent)) == 2


def test_a_journal_removes_nothing_but_what_it_made(tmp_path: Path) -> None:
    """Journals that say too much: files of other names, other content, or needed by a model."""
    from_elsewhere(tmp_path).save(tmp_path / "model.onnx")
    precious = ("model.onnx.7.data", "precious", "modelonnx.data", "model.onnx.data")
    for name in precious[:3]:
        (tmp_path / name).write_bytes(b"precious")
    digest = checksum((tmp_path / "model.onnx.data").read_bytes())
    same = checksum_of(tmp_path / "model.onnx")
    entries = [
        {"new": {name: "0" * 32 for name in precious} | {precious[3]: digest}, "old": [], "model": ""},
        {"new": {}, "old": [precious[1], precious[2], precious[3], "../precious"], "model": same},
        {"new": {}, "old": list(precious), "model": "0" * 32},
        {"new": [], "old": 7},
        [],
    ]
    for i, entry in enumerate(entries):
        (tmp_path / f".model.onnx.0000000{i}.tmp").write_text(json.dumps(entry))
    (tmp_path / ".model.onnx.0000000f.tmp").write_bytes(b'{"new": {"model.onnx.7.data": "')
    (tmp_path / ".model.onnx.not_ours.tmp").touch()
    journal_module.settle(tmp_path / "model.onnx")
    assert names(tmp_path) == {*precious, "elsewhere", "model.onnx", ".model.onnx.not_ours.tmp"}


@pytest.mark.skipif(sys.platform == "win32", reason="limits are those of POSIX")
def test_no_room(tmp_path: Path) -> None:
    """Files may have 1,000 bytes here, in the model as in its data; the old ones stay."""
    import resource

    model(tmp_path / "new.onnx", 1, "new.bin")
    code = (
        "import sys, onnxprune.graph as g; g.EXTERNAL_MINIMUM = int(sys.argv[3]); g.load(sys.argv[1]).save(sys.argv[2])"
    )
    for old, minimum in (("model.onnx.data", 64), (None, 64), ("model.onnx.data", 10**9)):
        folder = tmp_path / f"{old}{minimum}"
        folder.mkdir()
        model(folder / "model.onnx", 0, old)
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        run = subprocess.run(
            [sys.executable, "-c", code, tmp_path / "new.onnx", folder / "model.onnx", str(minimum)],
            env=HERE,
            capture_output=True,
            text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600)),
        )
        assert "model.onnx cannot be written: File too large." in run.stderr
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_file_systems_without_locks_or_syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There nobody knows whether the owner of a temporary file lives, so that it stays; all else is the same."""

    def unsupported(*arguments: object) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(journal_module.fcntl, "flock", unsupported)
    monkeypatch.setattr(os, "fsync", unsupported)
    graph = from_elsewhere(tmp_path)
    (tmp_path / ".model.onnx.01234567.tmp").touch()
    for _ in range(2):
        graph.save(tmp_path / "model.onnx")
    assert names(tmp_path) == {"elsewhere", "model.onnx", "model.onnx.data", ".model.onnx.01234567.tmp"}


def test_a_disk_that_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    graph = from_elsewhere(tmp_path)
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OutputError, match=r"model.onnx cannot be written: Input/output error"):
        graph.save(tmp_path / "model.onnx")
    assert names(tmp_path) == {"elsewhere"}
