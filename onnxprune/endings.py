"""How a command ends: with results that are whole and said, also where it is interrupted or nobody reads it."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from onnxprune.errors import OnnxPruneError, OutputError
from onnxprune.files import Results

if TYPE_CHECKING:
    from onnxprune.recovery import Execution

log = logging.getLogger(__name__)


@dataclass
class Outcome:
    """What a command has come to, for whoever has to be told when it ends early.

    Attributes:
        written: the results that are there.
        advice: says how to go on.
        close: ends the line of its progress.
    """

    written: list[Path] = field(default_factory=list)
    advice: Callable[[], str] = str
    close: Callable[[], object] = str

    def in_words(self, cause: str) -> str:
        """Why it ended, what is there, and what to do."""
        there = f"{', '.join(map(str, self.written))} {'were' if len(self.written) > 1 else 'was'} written"
        return "; ".join(filter(None, [cause, there if self.written else "", self.advice()]))


class Terminated(KeyboardInterrupt):
    """The signal by which systems ask a process to end."""


def outcome() -> Outcome:
    """Of the command that runs."""
    found: Outcome = click.get_current_context().find_root().meta.setdefault("onnxprune.outcome", Outcome())
    return found


class Commands(click.Group):
    """Turns what onnxprune raises on purpose, signals, and a stdout that takes no more into a line and an exit code.

    A pipe whose reader has gone ends a command in silence, with the exit code of those that its signal kills.
    """

    def main(self, *args: Any, **options: Any) -> Any:
        """Runs a command line."""
        while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:
            continue  # a standard stream was closed, and the next file would have taken its place
        os.close(opened)
        if sys.stderr is None:
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123  (as long as the process)
        if sys.stdout is None:
            click.echo("error: stdout is closed; send it to a file or to /dev/null.", err=True)
            sys.exit(1)
        return super().main(*args, **options)

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        """Parses a command line, which may end in help."""
        with _streams(Outcome):
            return super().make_context(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command."""
        with _streams(outcome), _terminable():
            try:
                return super().invoke(ctx)
            except OnnxPruneError as error:
                if ctx.params.get("verbose", 0) > 1:
                    traceback.print_exc()
                advice = outcome().advice() if isinstance(error, OutputError) else ""
                _end(f"error: {error}" + (f" Then {advice}." if advice else ""), error.exit_code)
            except KeyboardInterrupt as stop:
                said = outcome().in_words("interrupted")
                nothing = "; nothing was written" if said == "interrupted" else ""
                text = f"{said}{nothing}." if os.environ.get("RANK", "0") == "0" else ""
                _end(text, 143 if isinstance(stop, Terminated) else 1)


@contextlib.contextmanager
def _streams(found: Callable[[], Outcome]) -> Iterator[None]:
    """Ends the process where stdout takes no more."""
    try:
        yield
    except OSError as error:
        if not any(frame.f_code is click.echo.__code__ for frame, _ in traceback.walk_tb(error.__traceback__)):
            raise
        gone = error.errno == errno.EPIPE
        text = "the reader of stdout has gone" if gone else f"stdout cannot be written: {error.strerror}"
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in its buffer goes there
        _end("" if gone and not found().written else f"error: {found().in_words(text)}.", 141 if gone else 1)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Lets SIGTERM end the process as Ctrl-C does; torchrun has its own ways with its processes."""
    by_default = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not by_default or "RANK" in os.environ or threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def end(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if os.getpid() != owner:  # a process that was forked off
            os.kill(os.getpid(), number)
        raise Terminated

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end(text: str, code: int) -> NoReturn:
    """Ends the command with a line on stderr."""
    if click.get_current_context(silent=True):
        outcome().close()
    with contextlib.suppress(OSError):
        if text:
            click.echo(text, err=True)
    sys.exit(code)


def how_to_go_on(checkpoint: Path, execution: Execution) -> None:
    """Has whoever interrupts a recovery told what to do next.

    Args:
        checkpoint: where the recovery keeps its state.
        execution: says whether it was resumed, and where its log is.
    """
    from onnxprune.recovery import state_of

    files, found = (checkpoint, execution.losses), outcome()
    before = [state_of(path) for path in files]

    def advice() -> str:
        now = [state_of(path) for path in files]
        saved, logged = (state is not None and state != old for state, old in zip(now, before, strict=True))
        if saved or (execution.resume and now[0]):
            return f"go on with the same command and --resume{' --force' if found.written else ''}"
        return f"start again with --force, since {execution.losses} was begun" if logged else ""

    found.advice = advice


@contextlib.contextmanager
def saving(*, force: bool, models: Sequence[Path] = ()) -> Iterator[Results]:
    """Writes results together, and says which.

    Args:
        force: whether files that exist are replaced.
        models: what the run reads, whose data stay.
    """
    results = Results(force=force, models=models)
    try:
        with results:
            yield results
    finally:
        outcome().written += results.written
        for path, weights in results.written.items():
            log.info("wrote %s%s", path, f", its weights in {weights}" if weights else "")
