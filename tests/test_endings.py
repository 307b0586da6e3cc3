"""How commands end early: interrupted, terminated, and with a stdout that takes nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FULL = Path("/dev/full")
SLOW = """
import time
def augment(arrays, generator):
    time.sleep(0.05)
    return arrays
"""


def start(*arguments: object, **options: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "onnxprune", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    usual = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment}
    listens = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # behind a shell it would be deaf
    return subprocess.Popen(command, **{**usual, **listens, **options})  # type: ignore[call-overload]


def stopped(process: subprocess.Popen[bytes], by: int, when: Callable[[], bool]) -> tuple[int, str]:
    """The exit code and the last line of a process that got a signal."""
    while not when() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(by)
    _, said = process.communicate(timeout=60)
    assert b"Traceback" not in said
    return process.returncode, said.decode().splitlines()[-1]


@pytest.mark.parametrize(("by", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, 143)])
def test_stopped_at_work(by: int, code: int, model: Path, train_data: Path, tmp_path: Path) -> None:
    given = ("--data", train_data, "-o", tmp_path / "small.onnx", "--plan", tmp_path / "plan.json", "--rounds", 500)
    process = start("prune", model, "--ratio", 0.4, *given)
    assert process.stderr is not None
    while b"calibration" not in process.stderr.readline():
        pass
    assert stopped(process, by, lambda: True) == (code, "interrupted; nothing was written.")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(("by", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, 143)])
def test_stopped_while_training(by: int, code: int, model: Path, train_data: Path, tmp_path: Path) -> None:
    """Before the first checkpoint, after it, after it was gone on from; and what is said then works."""
    (tmp_path / "slow.py").write_text(SLOW)
    out, losses, checkpoint = tmp_path / "out.onnx", tmp_path / "l.jsonl", tmp_path / "out.onnx.ckpt"
    given = ("recover", model, "--data", train_data, "--label-weight", 1, "--batch", 144, "--epochs", 2, "-o", out)
    given += ("--augment", tmp_path / "slow.py", "--losses", losses, "--save-every", 8)

    def steps(count: int) -> Callable[[], bool]:
        return lambda: losses.exists() and losses.read_text().count("loss") >= count

    early = stopped(start(*given), by, steps(1))
    assert early == (code, f"interrupted; start again with --force, since {losses} was begun.")
    late = stopped(start(*given, "--force"), by, checkpoint.exists)
    assert late == (code, "interrupted; go on with the same command and --resume.")
    number = losses.read_text().count("loss")
    again = stopped(start(*given, "--resume"), by, steps(number + 1))
    assert again == (code, "interrupted; go on with the same command and --resume.")
    last = start(*given, "--resume")
    assert last.communicate()[1].decode().endswith(f"wrote {out}\n") and last.returncode == 0
    assert losses.read_text().count("loss") == 20
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "slow.py", "l.jsonl", "out.onnx"}


def test_stopped_after_a_result_was_written(model: Path, train_data: Path, tmp_path: Path) -> None:
    """Between the result and what `--export` adds to it."""
    code = (
        "import onnxprune.recovery as r, time\n"
        "def slow(*given): print('now', flush=True); time.sleep(60)\n"
        "r.export_fresh = slow\n"
        "from onnxprune.cli import main; main()"
    )
    out = tmp_path / "out.onnx"
    given = ("recover", model, "--data", train_data, "--label-weight", 1, "--epochs", 1, "-o", out, "--export", "torch")
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, given)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    process.stdout.readline()
    code_, said = stopped(process, signal.SIGINT, lambda: True)
    assert code_ == 1
    assert said == f"interrupted; {out} was written; go on with the same command and --resume --force."


@pytest.mark.skipif(not FULL.exists(), reason="there is no device that is always full")
@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("--version",), ("prune", "--help"), ("inspect", "model.onnx"), ("inspect", "model.onnx", "--json")],
)
def test_stdout_is_full(arguments: tuple[str, ...], model: Path) -> None:
    with FULL.open("wb") as full:
        process = start(*arguments, stdout=full, cwd=model.parent)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.decode() == "error: stdout cannot be written: No space left on device.\n"


@pytest.mark.skipif(not FULL.exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("quiet", [(), ("-q",)])
def test_stdout_is_full_after_a_result_was_written(quiet: tuple[str, ...], model: Path, train_data: Path) -> None:
    given = ("prune", model, "--ratio", 0.4, "--data", train_data, "--samples", 64, "--no-latency", "-o", "o.onnx")
    with FULL.open("wb") as full:
        process = start(*quiet, *given, stdout=full, cwd=model.parent)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1 and (model.parent / "o.onnx").is_file()
    last = said.decode().splitlines()[-1]
    assert last == "error: stdout cannot be written: No space left on device; o.onnx was written."


@pytest.mark.parametrize("arguments", [("--help",), ("inspect", "model.onnx"), ("inspect", "model.onnx", "--json")])
def test_the_reader_of_stdout_has_gone(arguments: tuple[str, ...], model: Path) -> None:
    """As in `| true`: silence, and the exit code of what the signal of a broken pipe kills."""
    reading, writing = os.pipe()
    os.close(reading)
    process = start(*arguments, stdout=writing, cwd=model.parent)
    os.close(writing)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (141, b"")


@pytest.mark.parametrize("closed", ["stdout", "stderr", "both"])
def test_standard_streams_are_closed(closed: str, model: Path) -> None:
    """Nothing that is meant for a stream may end in the next file that is opened."""
    redirection = {"stdout": ">&-", "stderr": "2>&-", "both": ">&- 2>&-"}[closed]
    given = "prune model.onnx --ratio 0.4 --samples 64 --no-latency -o o.onnx"
    command = f'"{sys.executable}" -m onnxprune {given} <&- {redirection}'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, shell=True, cwd=model.parent, env=environment, capture_output=True, text=True)
    if closed == "stderr":
        assert done.returncode == 0 and "parameters" in done.stdout and (model.parent / "o.onnx").is_file()
    else:
        assert done.returncode == 1 and not (model.parent / "o.onnx").exists()
        assert done.stderr == (
            "" if closed == "both" else "error: stdout is closed; send it to a file or to /dev/null.\n"
        )


@pytest.mark.skipif(not FULL.exists(), reason="there is no device that is always full")
def test_progress_that_nobody_sees_ends_nothing(model: Path) -> None:
    with FULL.open("wb") as full:
        process = start("score", model, "--samples", 64, stderr=full)
        shown, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and b"fc1.weight" in shown
