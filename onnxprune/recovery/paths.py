"""The files that a recovery reads and writes, and what its own look like."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Sequence
from pathlib import Path

from onnxprune.errors import DataError, OutputError
from onnxprune.files import remove
from onnxprune.graph import Graph
from onnxprune.paths import Inputs, Output, check_paths
from onnxprune.records import Plan
from onnxprune.recovery.options import Augment, Execution, Training, Watch, is_script

HEADER = b"onnxprune.checkpoint/1 "
"""What a checkpoint begins with; its checksum and the end of the line follow."""


def state_of(path: Path | None) -> tuple[int, int] | None:
    """What changes when a file is written; None where there is none."""
    try:
        found = path.stat() if path else None
    except OSError:
        return None
    return (found.st_ino, found.st_mtime_ns) if found else None


def is_checkpoint(path: Path) -> bool:
    """Whether a file is a checkpoint of onnxprune, be it damaged or not."""
    try:
        with path.open("rb") as file:
            return file.read(len(HEADER)) == HEADER
    except OSError:
        return False


def remove_checkpoint(path: Path) -> None:
    """Removes a checkpoint that has served its turn; a file that is none stays."""
    if is_checkpoint(path):
        remove(path)


def step_of(line: bytes) -> int | None:
    """The step that a line of a log is of; None where it is no whole line of one."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return step if isinstance(step, int) else None


def is_log(path: Path) -> bool:
    """Whether a file is a log of losses: some line of it can be read, or it is empty."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return False
    return not lines or any(step_of(line) is not None for line in lines)


def files_read(
    model: Graph | Path | str,
    data: object,
    teacher: Graph | Path | str | None,
    plan: Plan | Path | None,
    augment: Augment | str | None,
    training: Training,
    watch: Watch | None,
    execution: Execution,
) -> Inputs:
    """What a recovery reads, by the options that name it; the outputs that it keeps for later runs are read, too."""
    models = {"the model": model, "--teacher": teacher}
    scripts = {"--task": training.task, "--metric": watch.metric if watch else None, "--augment": augment}
    return Inputs(
        {role: given.path if isinstance(given, Graph) else given for role, given in models.items()},
        {
            "--data": data,
            "--eval": watch.data if watch else None,
            "--plan": plan,
            **{option: text for option, text in scripts.items() if isinstance(text, str) and is_script(text)},
            "--cache": f"{glob.escape(str(execution.cache))}/teacher-*.npy" if execution.cache else None,
        },
    )


def check_files(inputs: Inputs, execution: Execution, outputs: Sequence[Output] = ()) -> None:
    """Makes sure before any work that a recovery can write what it shall, without harm to any other file.

    Args:
        inputs: what it reads.
        execution: what it keeps on disk.
        outputs: what else is written.

    Raises:
        DataError: there is no checkpoint to resume from.
        OutputError: two files are the same, one exists, or one cannot be written.
    """
    checkpoint, losses, resume = execution.checkpoint, execution.losses, execution.resume
    own = [Output("--checkpoint", checkpoint, free=False)] if checkpoint else []
    own += [Output("--losses", losses, free=not resume)] if losses else []
    check_paths([*outputs, *own], inputs, force=execution.force)
    there = checkpoint is not None and os.path.lexists(checkpoint)
    if checkpoint and there and not is_checkpoint(checkpoint):
        kind = DataError if resume else OutputError
        raise kind(f"{checkpoint} is no checkpoint of onnxprune; give another --checkpoint.")
    if checkpoint and resume and not there:
        raise DataError(f"there is no checkpoint {checkpoint} to resume from; start without --resume.")
    if there and not resume and not execution.force:
        raise OutputError(f"the checkpoint {checkpoint} exists already; --resume to go on, --force to start anew.")
    if losses and losses.exists() and resume and not execution.force and not is_log(losses):
        raise OutputError(f"{losses} is no log of losses; give another --losses or --force to replace it.")
