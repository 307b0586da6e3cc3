"""Writing results so that nothing is lost or half-written: to a temporary name first, then renamed."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from onnxprune.errors import OutputError


def check_output(path: Path, *, force: bool = False) -> None:
    """Finds out before any work starts whether a result can be written.

    Raises:
        OutputError: the file exists and `force` is not set, or the folder is missing or not writable.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder; give the name of a file.")
    if path.exists() and not force:
        raise OutputError(f"{path} exists already; give another name or --force to replace it.")
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(f"the folder {folder} does not exist; create it or give another output path.")
    try:
        probe = _temporary(path, f".{secrets.token_hex(4)}")
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise OutputError(f"{folder} is not writable ({error.strerror}); give another output path.") from error


@contextlib.contextmanager
def replacing(*paths: Path, again: bool = False) -> Iterator[tuple[BinaryIO, ...]]:
    """Opens a temporary file for each path and renames all of them when the block ends without an error.

    On any exception, interruption included, the temporary files are removed and the paths stay as they were. The
    last path is renamed last: give the file that refers to the others last.

    Args:
        paths: the files.
        again: whether one run writes them many times. Their temporary names are then always the same, so that the next
            write uses up what a killed process left under them; otherwise no two processes share a name.

    Raises:
        OutputError: a file cannot be written.
    """
    temporary = [_temporary(path, "" if again else f".{secrets.token_hex(4)}") for path in paths]
    try:
        try:
            with contextlib.ExitStack() as stack:
                yield tuple(stack.enter_context(name.open("wb" if again else "xb")) for name in temporary)
            for name, path in zip(temporary, paths, strict=True):
                name.replace(path)
        except OSError as error:
            raise OutputError(f"{paths[-1]} cannot be written: {error.strerror or error}.") from error
    finally:
        for name in temporary:
            name.unlink(missing_ok=True)


def write(path: Path, data: bytes | str, *, again: bool = False) -> None:
    """Writes one file whole or not at all; `again` as in `replacing`."""
    with replacing(path, again=again) as (file,):
        file.write(data.encode() if isinstance(data, str) else data)


def _temporary(path: Path, mark: str) -> Path:
    return path.with_name(f".{path.name}{mark}.tmp")
