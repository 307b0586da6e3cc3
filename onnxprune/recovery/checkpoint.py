"""What a training leaves on disk while it runs: checkpoints, whole or not at all, and a log of losses."""

from __future__ import annotations

import io
import json
import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from onnxprune.checksums import checksum
from onnxprune.errors import DataError, OutputError
from onnxprune.files import write
from onnxprune.recovery.paths import HEADER, state_of, step_of

log = logging.getLogger(__name__)


class Checkpoint:
    """The state of a training, in one file."""

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Names the file and what tells one run from another."""
        self.path, self._identity = path, dict(identity)
        self._known = state_of(path)

    def save(self, state: Mapping[str, Any]) -> None:
        """Writes everything that the next step depends on, the state of torch's random numbers included.

        Raises:
            OutputError: it cannot be written, or another run writes it, too.
        """
        if state_of(self.path) not in (None, self._known):
            raise OutputError(f"another run writes the checkpoint {self.path}; give another --checkpoint.")
        random = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            random["cuda"] = torch.cuda.get_rng_state()
        buffer = io.BytesIO()
        torch.save({**state, "identity": self._identity, "random": random}, buffer)
        content = buffer.getvalue()
        write(self.path, HEADER + checksum(content).encode() + b"\n" + content)
        self._known = state_of(self.path)

    def load(self) -> dict[str, Any]:
        """Reads the state.

        Raises:
            DataError: there is no checkpoint, or it is damaged or of another run.
        """
        if not self.path.is_file():
            raise DataError(f"there is no checkpoint {self.path} to resume from; start without --resume.")
        header, _, content = self.path.read_bytes().partition(b"\n")
        if not header.startswith(HEADER):
            raise DataError(f"{self.path} is no checkpoint of onnxprune; give another --checkpoint.")
        if header != HEADER + checksum(content).encode():
            raise DataError(f"the checkpoint {self.path} is damaged; start anew with --force instead of --resume.")
        try:
            state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            identity = state["identity"]
        except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
            raise DataError(f"the checkpoint {self.path} is of another release; start without --resume.") from error
        if identity != self._identity:
            raise DataError(f"{self.path} is of another run: model, data or options differ; use the same ones.")
        torch.set_rng_state(state["random"]["cpu"])
        if torch.cuda.is_available() and "cuda" in state["random"]:
            torch.cuda.set_rng_state(state["random"]["cuda"])
        return state


class Log:
    """JSON lines: `{"step", "loss", "rate"}` for each step, `{"step", "epoch", "metric", "value"}` for each value."""

    def __init__(self, path: Path | None, *, after: int = 0) -> None:
        """Opens the file; on resuming, lines of steps that will be done again are dropped.

        Raises:
            OutputError: it cannot be written.
        """
        self._path = path
        if path is None:
            return
        kept, damaged = [], 0
        if after and path.is_file():
            for line in path.read_bytes().splitlines(keepends=True):
                step = step_of(line)
                damaged += step is None and line.endswith(b"\n")  # one without an end was cut off, as a kill does
                kept += [line] if step is not None and step <= after else []
        if damaged:
            log.warning("%s had %d damaged lines, which are left out", path, damaged)
        write(path, b"".join(line.rstrip(b"\r\n") + b"\n" for line in kept))

    def add(self, **entry: object) -> None:
        """Appends a line."""
        if self._path is None:
            return
        try:
            with self._path.open("a") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise OutputError(f"{self._path} cannot be written: {error.strerror}.") from error
