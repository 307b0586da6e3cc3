"""What a run keeps beside a file while it writes it, and what the next run makes of that if the first one died.

Whoever writes NAME has, in the same folder,

- `.NAME.<token>.tmp`, the journal, locked for as long as the process lives,
- `.NAME.<token>.file.tmp`, the new file, and
- `.NAME.<token>.data.tmp`, for weights outside of it.

The journal says before it happens which name new data get, and when the model is renamed which old data are to go:

| killed | the folder then has | the next run |
| --- | --- | --- |
| while anything is written | temporary files | removes them |
| after the data got their name | new data beside the old model | removes the new data |
| after the model got its name | old data beside the new model | removes the old data |
| after the old data went | a journal | removes it |

Which of these it was follows from the checksum of the model at NAME. Data are removed only if they still are what the
journal says, and neither that model nor another one of the folder refers to them. Where a lock cannot be had (Windows,
some network file systems) nobody can tell the dead from the living, and leftovers stay.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

from onnxprune.checksums import checksum_of
from onnxprune.references import belongs, data_of, mentioned, stem

if sys.platform != "win32":
    import fcntl

UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}
"""What file systems say that cannot flush a file."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a journal says.

    Attributes:
        new: checksums of the data that were given a name, by name.
        old: names of the data of the model that is replaced, which are to go.
        model: checksum of the model that is to replace it; "" before that is known.
    """

    new: Mapping[str, str] = field(default_factory=dict)
    old: tuple[str, ...] = ()
    model: str = ""


class Folder:
    """A folder in which one run at a time names and removes files, where the file system has locks for that.

    Why the lock is kept here and not by the block that needs it: a signal may end the block between any two steps, and
    who then cleans up takes the lock again instead of waiting for himself.
    """

    _descriptor: int | None = None

    def __init__(self, path: Path) -> None:
        """Locks nothing yet."""
        self._path = path

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Waits until no other run is in here."""
        if sys.platform != "win32":
            with contextlib.suppress(OSError):
                if self._descriptor is None:
                    self._descriptor = os.open(self._path, os.O_RDONLY)
                fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            self.leave()

    def leave(self) -> None:
        """Lets others in."""
        if sys.platform == "win32" or self._descriptor is None:
            return
        with contextlib.suppress(OSError):
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # first of all, in case of a signal before the next line
        descriptor, self._descriptor = self._descriptor, None
        os.close(descriptor)

    __del__ = leave


class Journal:
    """The journal of one file in the making.

    Attributes:
        path: the file.
        entry: what the journal says.
        ended: whether it is gone.
        folder: where it is.
    """

    def __init__(self, path: Path) -> None:
        """Picks a name, creates nothing."""
        self.path, self.entry, self.ended = path, Entry(), False
        self.folder = Folder(path.parent)
        self._start = f".{stem(path.name)}.{secrets.token_hex(4)}"
        self._file: BinaryIO | None = None

    def name(self, part: str = "") -> Path:
        """The journal itself, or another temporary file of the same run, `file` or `data`."""
        return self.path.with_name(f"{self._start}.{part}.tmp" if part else f"{self._start}.tmp")

    def start(self) -> None:
        """Creates and locks it. The caller is alone in the folder.

        Raises:
            OSError: that is not possible.
        """
        self._file = self.name().open("xb")
        locked(self._file)

    def say(self, entry: Entry) -> None:
        """Writes an entry, which takes the place of earlier ones, and waits until it is on disk."""
        assert self._file is not None
        self.entry = entry
        self._file.write(json.dumps(asdict(entry)).encode() + b"\n")
        synced(self._file)
        sync_folder(self.path.parent)

    def end(self) -> None:
        """Removes it and the other temporary files, the journal last."""
        for part in ("file", "data"):
            self.name(part).unlink(missing_ok=True)
        if sys.platform == "win32":  # where no open file can be removed, and elsewhere no lock be given up before
            self._close()
        self.name().unlink(missing_ok=True)
        self._close()
        self.ended = True

    def _close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # what it would still say is of no interest
                self._file.close()


def settle(path: Path) -> None:
    """Cleans up what dead runs left of writing a file. The caller is alone in the folder."""
    if sys.platform == "win32":
        return
    pattern = re.compile(rf"\.{re.escape(stem(path.name))}\.([0-9a-f]{{8}})(?:\.file|\.data)?\.tmp")
    found: dict[str, list[Path]] = {}
    with contextlib.suppress(OSError):  # a folder that may be written and not listed
        for entry in path.parent.iterdir():
            if match := pattern.fullmatch(entry.name):
                found.setdefault(match[1], []).append(entry)
    for token, files in found.items():
        journal = path.with_name(f".{stem(path.name)}.{token}.tmp")
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            if journal in files:
                file = stack.enter_context(journal.open("r+b"))
                if not locked(file):
                    continue
                finish(path, _read(file))
            for name in sorted(files, key=journal.__eq__):  # the journal last
                name.unlink(missing_ok=True)


def finish(path: Path, entry: Entry) -> None:
    """Removes the data that the model at a path does not need: the old ones if it is the new model, else the new ones.

    The caller is alone in the folder.
    """
    if not entry.new and not entry.old:
        return
    arrived = bool(entry.model) and path.is_file() and checksum_of(path) == entry.model
    needed = {data.name for data in data_of(path)}
    for name in entry.old if arrived else entry.new:
        data = path.parent / Path(name).name
        if data.name != name or not belongs(name, path.name) or name in needed or not data.is_file():
            continue
        ours = arrived or not data.stat().st_size or checksum_of(data) == entry.new[name]
        if ours and not mentioned(name, path.parent, path):
            with contextlib.suppress(OSError):  # a file of somebody else's, or one that is in use on Windows
                data.unlink()


def _read(file: BinaryIO) -> Entry:
    """The last whole entry; one that was cut off says of something that did not happen."""
    found = Entry()
    for line in file.read().splitlines():
        try:
            read = json.loads(line)
            new = {str(name): str(checksum) for name, checksum in read["new"].items()}
            found = Entry(new, tuple(map(str, read["old"])), str(read["model"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            break
    return found


def locked(file: BinaryIO) -> bool:
    """Locks an open file; False where another process has done so, or nobody can."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def synced(file: BinaryIO) -> None:
    """Waits until what was written to a file is on disk.

    Raises:
        OSError: it could not be written.
    """
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on disk, where the file system can say so."""
    if sys.platform == "win32":
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
