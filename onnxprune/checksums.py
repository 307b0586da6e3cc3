"""Checksums of what lies on disk, which tell a whole file from a damaged one and one version of it from another."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

DIGITS = 32
"""Hexadecimal digits of a checksum."""

_hash: Callable[..., Any] = partial(hashlib.blake2b, digest_size=DIGITS // 2)


def checksum(data: bytes) -> str:
    """The checksum of some bytes."""
    return str(_hash(data).hexdigest())


def checksum_of(path: Path, size: int | None = None) -> str:
    """The checksum of a file, or of its first bytes.

    Args:
        path: the file.
        size: how many bytes count; all when None.

    Raises:
        OSError: it cannot be read.
    """
    found, left = _hash(), path.stat().st_size if size is None else size
    with path.open("rb") as file:
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            found.update(block)
            left -= len(block)
    return str(found.hexdigest())


class Summed:
    """A file that keeps the checksum of everything that is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        """Starts at the beginning of a file."""
        self.file, self.size, self._hash = file, 0, _hash()

    def write(self, data: bytes | memoryview) -> int:
        """Writes bytes."""
        self.file.write(data)
        self._hash.update(data)
        written = memoryview(data).nbytes
        self.size += written
        return written

    def checksum(self) -> str:
        """Of all that was written so far."""
        return str(self._hash.hexdigest())
