"""Runs whose files are in each other's way: refused before any work, in one line, and no file is touched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from builders import Net
from commands import refused, run
from onnxprune.errors import OutputError
from onnxprune.graph import load
from onnxprune.journal import Journal
from onnxprune.recovery import Execution, Training, recover

READ = {
    "model.onnx": "the model",
    "weights.bin": "the external data of the model",
    "teacher.onnx": "--teacher",
    "teacher.onnx.data": "the external data of --teacher",
    "d.npz": "--data",
    "e.npz": "--eval",
    "plan.json": "--plan",
    "augment.py": "--augment",
    "task.py": "--task",
    "metric.py": "--metric",
}
"""Files that a recovery reads, and what they are to it."""

RECOVER = ("recover", "model.onnx", "--teacher", "teacher.onnx", "--data", "d.npz", "--eval", "e.npz")
RECOVER += ("--plan", "plan.json", "--match-hidden", 1, "--augment", "augment.py", "--task", "task.py:loss")
RECOVER += ("--metric", "metric.py", "--label-weight", 0.5, "--export", "torch", "--force")
PRUNE = ("prune", "model.onnx", "--ratio", 0.4, "--data", "d.npz", "--force")
SCORE = ("score", "model.onnx", "--data", "d.npz", "--force")
STUDY = ("study", "model.onnx", "--data", "d.npz", "--eval", "e.npz", "--force")


@pytest.fixture(autouse=True)
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that a command works in; whatever it does, no file may change."""
    monkeypatch.chdir(tmp_path)
    outside = {"save_as_external_data": True, "size_threshold": 64}
    for name, data in {"model": "weights.bin", "teacher": "teacher.onnx.data"}.items():
        net = Net()
        onnx.save(
            net.output(net.dense(net.op("Relu", net.dense(net.input("N", 8), 8, 16)), 16, 4)).model(),
            f"{name}.onnx",
            location=data,
            **outside,
        )
    arrays = {"x0": np.zeros((4, 8), "f"), "labels": np.zeros(4, "i8")}
    for folder in ("shards", "cache", "there"):
        (tmp_path / folder).mkdir()
    for name in ("d.npz", "e.npz", "shards/a.npz", "shards/b.npz"):
        np.savez(name, **arrays)
    for name in ("plan.json", "augment.py", "task.py", "metric.py"):
        Path(name).write_text("def load_data():\n    raise ValueError\n")
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "linked.onnx").symlink_to("model.onnx")
    (tmp_path / "again.bin").hardlink_to("weights.bin")
    before = contents(tmp_path)
    yield tmp_path
    assert contents(tmp_path) == before


def contents(folder: Path) -> dict[Path, bytes | str]:
    return {
        path: str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def test_each_result_beside_each_file_that_is_read() -> None:
    for option in ("-o", "--checkpoint", "--losses"):
        for path, role in READ.items():
            for more in ((), ("--resume",)):
                said = refused(*RECOVER, option, path, *more)
                assert said == f"error: {option} and {role} are the same file {path}; give another one."


@pytest.mark.parametrize(
    ("command", "arguments", "roles"),
    [
        (PRUNE, ("-o", "model.onnx"), "-o and the model"),
        (PRUNE, ("-o", "./model.onnx"), "-o and the model"),
        (PRUNE, ("-o", "link/model.onnx"), "-o and the model"),
        (PRUNE, ("-o", "linked.onnx"), "-o and the model"),
        (PRUNE, ("-o", "there/../weights.bin"), "-o and the external data of the model"),
        (PRUNE, ("-o", "again.bin"), "-o and the external data of the model"),
        (PRUNE, ("-o", "d.npz"), "-o and --data"),
        (PRUNE, ("--plan", "weights.bin"), "--plan and the external data of the model"),
        (PRUNE, ("--plan", "model.onnx"), "--plan and the model"),
        (PRUNE, ("--plan", "d.npz"), "--plan and --data"),
        (PRUNE, ("--plan", "x", "-o", "x"), "-o and --plan"),
        (PRUNE, ("--plan", "x", "-o", "link/x"), "-o and --plan"),
        (PRUNE, ("--plan", "model.pruned.onnx"), "-o and --plan"),
        (SCORE, ("-o", "model.onnx"), "-o and the model"),
        (SCORE, ("-o", "weights.bin"), "-o and the external data of the model"),
        (SCORE, ("-o", "d.npz"), "-o and --data"),
        (SCORE, ("--moments", "d.npz"), "--moments and --data"),
        (SCORE, ("--moments", "model.onnx"), "--moments and the model"),
        (SCORE, ("-o", "x", "--moments", "x"), "-o and --moments"),
        (SCORE, ("-o", "shards/a.npz", "--data", "shards"), "-o and --data"),
        (SCORE, ("-o", "shards/a.npz", "--data", "shards/*.npz"), "-o and --data"),
        (SCORE, ("-o", "augment.py", "--data", "augment.py"), "-o and --data"),
        (SCORE, ("-o", "augment.py", "--data", "augment.py:load_data"), "-o and --data"),
        (STUDY, ("-o", "model.onnx"), "-o and the model"),
        (STUDY, ("-o", "weights.bin"), "-o and the external data of the model"),
        (STUDY, ("-o", "d.npz"), "-o and --data"),
        (STUDY, ("-o", "e.npz"), "-o and --eval"),
        (RECOVER, ("-o", "x", "--losses", "x"), "-o and --losses"),
        (RECOVER, ("-o", "x", "--checkpoint", "x"), "-o and --checkpoint"),
        (RECOVER, ("--checkpoint", "x", "--losses", "x"), "--checkpoint and --losses"),
        (RECOVER, ("-o", "x.onnx", "--losses", "x.onnx.ckpt"), "--checkpoint and --losses"),
        (RECOVER, ("-o", "x.onnx", "--losses", "x.torch.onnx"), "--export and --losses"),
        (RECOVER, ("-o", "x.onnx", "--checkpoint", "x.torch.onnx"), "--export and --checkpoint"),
        (RECOVER, ("--losses", "model.recovered.onnx"), "-o and --losses"),
        (RECOVER, ("--losses", "model.recovered.onnx.ckpt"), "--checkpoint and --losses"),
    ],
)
def test_files_that_are_the_same(command: tuple[object, ...], arguments: tuple[object, ...], roles: str) -> None:
    assert f"error: {roles} are the same file" in refused(*command, *arguments)


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        (
            PRUNE,
            ("-o", "x.onnx", "--plan", "x.onnx.data"),
            "--plan x.onnx.data has a name that the weights of -o may get",
        ),
        (PRUNE, ("-o", "x.onnx", "--plan", "x.onnx.0123abcd.data"), "has a name that the weights of -o may get"),
        (PRUNE, ("-o", "there/x", "--plan", "link/there/x.data"), "has a name that the weights of -o may get"),
        (RECOVER, ("-o", "x.onnx", "--losses", "x.onnx.data"), "has a name that the weights of -o may get"),
        (RECOVER, ("-o", "x.onnx", "--losses", "x.torch.onnx.data"), "has a name that the weights of --export may get"),
        (RECOVER, ("-o", "x.onnx", "--checkpoint", "x.onnx.data"), "has a name that the weights of -o may get"),
        (SCORE, ("-o", "shards/new.npz", "--data", "shards"), "-o shards/new.npz would be among the files of --data"),
        (SCORE, ("-o", "shards/new.npz", "--data", "shards/*"), "-o shards/new.npz would be among the files of --data"),
    ],
)
def test_files_that_would_come_to_be_in_the_way(
    command: tuple[object, ...], arguments: tuple[object, ...], said: str
) -> None:
    assert said in refused(*command, *arguments)


OPTIONS = [
    (SCORE, "-o"),
    (SCORE, "--moments"),
    (PRUNE, "-o"),
    (PRUNE, "--plan"),
    (STUDY, "-o"),
    (RECOVER, "-o"),
    (RECOVER, "--losses"),
    (RECOVER, "--checkpoint"),
]


def gentle(command: tuple[object, ...]) -> list[object]:
    return [argument for argument in command if argument != "--force"]


@pytest.mark.parametrize(("command", "option"), OPTIONS[:-1])
def test_nothing_is_replaced_without_force(command: tuple[object, ...], option: str, scene: Path) -> None:
    """Nor a link that leads nowhere, nor the result of a recovery that is resumed."""
    for name in ("there/a file", "gone"):
        Path(name).symlink_to("nowhere") if name == "gone" else Path(name).write_text("precious")
        said = refused(*gentle(command), option, name)
        assert said == f"error: {name} exists already; give another name or --force to replace it."
        if command is RECOVER and option == "-o":
            assert refused(*gentle(command), option, name, "--resume") == said
        Path(name).unlink()


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_what_no_result_can_be_put_to(command: tuple[object, ...], option: str) -> None:
    os.mkfifo("pipe")
    for name in ("pipe", os.devnull, "/dev/zero", "/dev/stdout", "/dev/fd/1", "/dev/new"):
        said = refused(*command, option, name)
        assert said == f"error: {name} is a device or a pipe, which cannot be replaced; give the name of a file."
    assert refused(*command, option, "there") == "error: there is a folder; give the name of a file."
    assert "the folder none does not exist; create it" in refused(*command, option, "none/x")
    assert f"error: {'x' * 300} cannot be written: File name too long." == refused(*command, option, "x" * 300)
    assert refused(*command, option, "d.npz/x") == "error: d.npz/x cannot be written: Not a directory."
    Path("pipe").unlink()


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_a_file_system_is_read_only(command: tuple[object, ...], option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*arguments: object, **options: object) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "start", read_only)
        patch.setattr(Path, "unlink", read_only)  # says so of files that are not there, too
        said = refused(*command, option, "there/x")
    assert " is not writable (Read-only file system); give another output path." in said


@pytest.mark.parametrize("option", ["-o", "--export", "--checkpoint"])
def test_default_names_are_checked_too(option: str) -> None:
    name = {"-o": "x.recovered.onnx", "--export": "x.recovered.torch.onnx", "--checkpoint": "x.recovered.onnx.ckpt"}[
        option
    ]
    Path("x.onnx").write_bytes(b"")
    Path(name).write_text("precious")
    said = refused(*gentle(("recover", "x.onnx", *RECOVER[2:])))
    assert name in said and ("exists already" in said or "is no checkpoint of onnxprune" in said)
    for model in (".", "/", ".."):
        assert f"{model} is a folder; give the file of a model." in refused("prune", model, "--ratio", 0.4)
    Path("x.onnx").unlink()
    Path(name).unlink()


def test_a_dry_run_needs_no_path(scene: Path) -> None:
    result = run(*gentle(PRUNE), "-o", "model.onnx", "--plan", "model.onnx", "--dry-run", "--no-latency")
    assert result.exit_code == 0, result.output


def test_checkpoints_and_logs_that_are_there(scene: Path) -> None:
    """A checkpoint is replaced with --force or gone on from; what is none never is, nor what is no log."""
    given = ("recover", "model.onnx", "--data", "d.npz", "--label-weight", 1)
    Path("c.ckpt").write_bytes(b"precious")
    Path("l.jsonl").write_bytes(b"precious\n")
    for more in ((), ("--force",), ("--resume",), ("--resume", "--force")):
        said = refused(*given, "--checkpoint", "c.ckpt", *more)
        assert said == "error: c.ckpt is no checkpoint of onnxprune; give another --checkpoint."
    assert "there is no checkpoint x.ckpt to resume from" in refused(*given, "--checkpoint", "x.ckpt", "--resume")
    Path("c.ckpt").write_bytes(b"onnxprune.checkpoint/1 and more")
    said = refused(*given, "--checkpoint", "c.ckpt")
    assert said == "error: the checkpoint c.ckpt exists already; --resume to go on, --force to start anew."
    said = refused(*given, "--checkpoint", "c.ckpt", "--resume", "--losses", "l.jsonl")
    assert said == "error: l.jsonl is no log of losses; give another --losses or --force to replace it."
    assert Path("l.jsonl").read_bytes() == b"precious\n"
    Path("c.ckpt").unlink()
    Path("l.jsonl").unlink()


@pytest.mark.parametrize("loaded", [False, True])
def test_the_same_in_python(loaded: bool, scene: Path) -> None:
    """Also where models are in memory, whose files are still there."""
    model, teacher = (load(name) if loaded else name for name in ("model.onnx", "teacher.onnx"))
    training = Training(epochs=1, batch=2)
    for name in ("model.onnx", "weights.bin", "teacher.onnx.data", "d.npz", "augment.py"):
        for kept in ("checkpoint", "losses"):
            execution = Execution(force=True, **{kept: scene / name})  # type: ignore[arg-type]
            with pytest.raises(OutputError, match=f"--{kept} and .* are the same file"):
                recover(model, "d.npz", teacher=teacher, training=training, augment="augment.py", execution=execution)
    (scene / "l.jsonl").write_text("")
    with pytest.raises(OutputError, match=r"l.jsonl exists already"):
        recover(model, "d.npz", teacher=teacher, training=training, execution=Execution(losses=scene / "l.jsonl"))
    (scene / "l.jsonl").unlink()
    if loaded:
        with pytest.raises(OutputError, match=r"weights.bin holds the weights of .*model.onnx; give another name"):
            model.save("weights.bin")
