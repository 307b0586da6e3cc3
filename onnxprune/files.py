"""Writing results so that nothing is lost or half-written: to temporary names first, then renamed.

Why a model's data never take the name of a file that exists: two files cannot be renamed at once, and between the two
the old model would read new weights. Under a fresh name they are there before the model that refers to them, which is
renamed last; then the old ones go. `journal` says what becomes of a run that dies in between.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeVar

import numpy as np

from onnxprune.checksums import Summed, checksum_of
from onnxprune.errors import OutputError
from onnxprune.journal import Folder, Journal, finish, settle, sync_folder, synced
from onnxprune.references import belongs, data_names, data_of, may_be_data, mentioned

P = TypeVar("P", bound="Pending")

STREAMS = re.compile(r"/dev|/dev/fd|/proc/.*")
"""Folders whose entries are streams of processes, also where these lead to files, as `/dev/stdout` may."""

log = logging.getLogger(__name__)


class Results:
    """Files that are written together: none gets its name before all of them are on disk.

    They are renamed in the order in which they were opened: open the one that refers to the others last. When the block
    ends with an exception, interruption included, the paths stay as they were.

    Attributes:
        written: the paths that got their files, and the name of the file with the weights of each, or "".
    """

    def __init__(self, *, force: bool = True, models: Sequence[Path] = ()) -> None:
        """Opens nothing yet.

        Args:
            force: whether files that exist are replaced.
            models: models that the run reads; their data stay, whoever else used them.
        """
        self.written: dict[Path, str] = {}
        self._force, self._models = force, tuple(models)
        self._pending: list[Pending] = []

    def open(self, path: Path) -> BinaryIO:
        """Begins a file.

        Raises:
            OutputError: it cannot be written.
        """
        return self._begin(Pending(path)).file

    def open_model(self, path: Path, source: Path | None) -> PendingModel:
        """Begins a model, whose weights may come to lie in a file beside it.

        Args:
            path: where to.
            source: the file that it was read from.

        Raises:
            OutputError: it cannot be written, or weights of its source or of another model lie in that very file.
        """
        read = [model for model in (*self._models, source) if model is not None and not is_same(model, path)]
        for model in read if os.path.lexists(path) else ():
            if any(is_same(data, path) for data in data_of(model)):
                raise OutputError(f"{path} holds the weights of {model}; give another name.")
        return self._begin(PendingModel(path, read))

    def _begin(self, pending: P) -> P:
        check_kind(pending.path)
        for other in self._pending:
            if is_same(other.path, pending.path) or meet(other.path, pending.path) or meet(pending.path, other.path):
                raise OutputError(f"{other.path} and {pending.path} would replace each other; give another name.")
        self._pending.append(pending)  # before anything is created, so that it is removed whatever happens
        try:
            pending.start()
        except OSError as error:
            raise self._failed(pending.path, error) from error
        return pending

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Renames all files, or removes what was written of them.

        Raises:
            OutputError: a file cannot be written, or came to be in the meantime and shall not be replaced.
        """
        latest = self._pending[-1].path if self._pending else Path()
        try:
            if error is None:
                for pending in self._pending:
                    latest = pending.path
                    pending.close()
                    check_kind(pending.path, free=not self._force)
                for pending in self._pending:
                    latest = pending.path
                    pending.commit(free=not self._force)
        except OSError as failure:
            raise self._failed(latest, failure) from failure
        finally:
            for pending in self._pending:  # all of them first: the folder of one may be that of another
                pending.leave()
            for pending in self._pending:
                pending.discard()
            self.written = {pending.path: pending.beside for pending in self._pending if pending.arrived}
        if isinstance(error, OSError):
            raise self._failed(latest, error) from error

    def _failed(self, path: Path, error: OSError) -> OutputError:
        there = [str(pending.path) for pending in self._pending if pending.arrived]
        also = f"; {', '.join(there)} was written" if there else ""
        return OutputError(f"{path} cannot be written: {error.strerror or error}{also}.")


class Pending:
    """A file in the making.

    Attributes:
        path: its name in the end.
        arrived: whether it is there.
        beside: the name of the file that holds the weights of a model; "" where they are in it.
    """

    def __init__(self, path: Path) -> None:
        """Creates nothing."""
        self.path, self.arrived, self.beside = path, False, ""
        self._journal = Journal(path)
        self._file: BinaryIO | None = None
        self._committing = False

    @property
    def file(self) -> BinaryIO:
        """What is written, under a temporary name."""
        assert self._file is not None
        return self._file

    def start(self) -> None:
        """Creates the temporary file, after what dead runs left of theirs is gone."""
        with self._journal.folder.alone():
            settle(self.path)
            self._journal.start()
        self._file = self._journal.name("file").open("xb")

    def close(self) -> None:
        """Waits until the file is on disk."""
        synced(self.file)
        self.file.close()

    def commit(self, *, free: bool) -> None:
        """Gives the file its name.

        Args:
            free: whether no other file may have it.
        """
        with self._journal.folder.alone():
            settle(self.path)  # here too, for a run that died after this one began
            check_kind(self.path, free=free)
            self._prepare()
            self._committing = True
            self._journal.name("file").replace(self.path)
            self.arrived = True
            sync_folder(self.path.parent)
            self._end()

    def leave(self) -> None:
        """Lets others into the folder, whatever a signal has broken off."""
        self._journal.folder.leave()

    def discard(self) -> None:
        """Removes what is there only until the file has its name; after `commit` that is nothing."""
        if self._journal.ended:
            return
        self.arrived = self.arrived or (self._committing and not self._journal.name("file").exists())
        with contextlib.suppress(OSError):  # what stays is the next run's to remove
            if self._file is not None:
                self._file.close()
        with contextlib.suppress(OSError), self._journal.folder.alone():
            self._end()

    def _prepare(self) -> None:
        """Does what has to be done before the file gets its name."""

    def _end(self) -> None:
        finish(self.path, self._journal.entry)
        self._journal.end()


class PendingModel(Pending):
    """A model in the making."""

    def __init__(self, path: Path, models: Sequence[Path]) -> None:
        """Creates nothing.

        Args:
            path: its name in the end.
            models: others whose data stay.
        """
        super().__init__(path)
        self._models = models
        self._weights: Summed | None = None
        self._used: Path | None = None

    @property
    def weights(self) -> Summed:
        """What is written of the weights, under a temporary name."""
        if self._weights is None:
            self._weights = Summed(self._journal.name("data").open("xb"))
        return self._weights

    def place(self) -> str:
        """Gives the weights a name beside the model that no file had, and returns it.

        Where the model that is replaced has the same ones, they are used again, so that the same run twice gives the
        same bytes.

        Raises:
            OSError: they cannot be written.
            OutputError: there is no name for them.
        """
        synced(self.weights.file)
        self.weights.file.close()
        with self._journal.folder.alone():
            for data in self._replaced():
                if self._is_mine(data) and self._equal(data):
                    self._used, self.beside = data, data.name
                    return data.name
            for name in data_names(self.path.name, self.weights.checksum()):
                if self._take(self.path.with_name(name)):
                    self.beside = name
                    return name
        raise OutputError(f"the names for the weights of {self.path} are taken; give another name.")

    def discard(self) -> None:
        """Removes what is there only until the model has its name."""
        if self._weights is not None:
            with contextlib.suppress(OSError):
                self._weights.file.close()
        super().discard()

    def _take(self, data: Path) -> bool:
        """Gives the weights a name, unless a file has it."""
        if os.path.lexists(data):
            return False
        try:
            data.name.encode()
        except UnicodeEncodeError as error:
            raise OutputError(f"{self.path} is no UTF-8, as names of external data must be.") from error
        self._journal.say(replace(self._journal.entry, new={data.name: self.weights.checksum()}))
        try:
            data.touch(exist_ok=False)  # nobody can take it from here on
        except FileExistsError:
            return False
        self._journal.name("data").replace(data)
        sync_folder(data.parent)
        return True

    def _prepare(self) -> None:
        """Says which data go when the model has its name: those that only the model before it needed."""
        used = self._used  # which another run may have removed in the meantime
        if used is not None and not self._take(used) and not self._equal(used):
            raise OutputError(f"another run writes {self.path} at the same time; run this one again.")
        before = [data for data in self._replaced() if data != used]
        mine = [data for data in before if self._is_mine(data)]
        for data in before:
            if data not in mine and data.is_file():
                log.info("%s is no longer used by %s and stays, since it may have other uses", data, self.path)
        if mine or self._journal.entry.new:
            names = tuple(data.name for data in mine)
            model = checksum_of(self._journal.name("file"))
            self._journal.say(replace(self._journal.entry, old=names, model=model))

    def _replaced(self) -> list[Path]:
        """The data of the model that has the name now; none where that is a link, whose model stays."""
        is_link = self.path.is_symlink() or not self.path.is_file() or self.path.stat().st_nlink > 1
        return [] if is_link else data_of(self.path)

    def _is_mine(self, data: Path) -> bool:
        """Whether data of the model that has the name now are needed by it alone, to judge by their name and place."""
        return (
            data.parent == self.path.parent
            and data.is_file()
            and belongs(data.name, self.path.name)
            and not any(is_same(data, other) for model in self._models for other in data_of(model))
            and not mentioned(data.name, data.parent, self.path)
        )

    def _equal(self, data: Path) -> bool:
        """Whether a file holds the same weights."""
        return data.stat().st_size == self.weights.size and checksum_of(data) == self.weights.checksum()


def write(path: Path, data: bytes | str, results: Results | None = None) -> None:
    """Writes one file whole or not at all.

    Args:
        path: the file.
        data: what it shall hold.
        results: others that are written together with it.

    Raises:
        OutputError: it cannot be written.
    """
    if results is None:
        with Results() as results:
            write(path, data, results)
    else:
        results.open(path).write(data.encode() if isinstance(data, str) else data)


def write_arrays(path: Path, arrays: Mapping[str, Any], results: Results | None = None) -> None:
    """Writes arrays as an .npz file.

    Raises:
        OutputError: it cannot be written.
    """
    if results is None:
        with Results() as results:
            write_arrays(path, arrays, results)
    else:
        np.savez(results.open(path), **arrays)


def remove(path: Path) -> None:
    """Removes a file, and what dead runs left of writing it."""
    with Folder(path.parent).alone():
        settle(path)
        path.unlink(missing_ok=True)


def check_kind(path: Path, *, free: bool = False) -> None:
    """Makes sure that a file can be put at a path.

    Args:
        path: the path.
        free: whether nothing may be there.

    Raises:
        OutputError: a folder or a device is there, or what shall not be replaced.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG  # nothing, or a link to nothing
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}.") from error
    if stat.S_ISDIR(mode):
        raise OutputError(f"{path} is a folder; give the name of a file.")
    if not stat.S_ISREG(mode) or STREAMS.fullmatch(os.path.realpath(path.parent)):
        raise OutputError(f"{path} is a device or a pipe, which cannot be replaced; give the name of a file.")
    if free and os.path.lexists(path):
        raise OutputError(f"{path} exists already; give another name or --force to replace it.")


def meet(model: Path, other: Path) -> bool:
    """Whether a file has a name that the weights of a model may come to have."""
    return may_be_data(other.name, model.name) and is_same(model.parent, other.parent)


def is_same(a: Path, b: Path) -> bool:
    """Whether two paths lead to the same file, through links and other ways; it need not exist yet."""
    if os.path.realpath(a) == os.path.realpath(b):
        return True
    try:
        return a.samefile(b)
    except OSError:
        return False
