"""Reading .npy and .npz files that somebody else wrote: what they declare is held against the bytes that are there.

numpy makes room for what a header declares before it reads, and a header of a hundred bytes can declare any size.
"""

from __future__ import annotations

import contextlib
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from onnxprune.errors import DataError

DEFLATED = 1032
"""How many bytes one compressed byte can become at the most."""

EMPTY_ROWS = 1 << 31
"""Samples without any numbers that are too many to be meant."""


def read_arrays(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    """The array of a .npy file, or those of a .npz file by name.

    Raises:
        DataError: it is neither, is cut off, declares more than it holds, or has objects, which are never read.
    """
    with _reading(path):
        if not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                _check(file, path.stat().st_size, str(path))
            return np.load(path, allow_pickle=False)
        with zipfile.ZipFile(path) as archive:
            for entry in (entry for entry in archive.infolist() if entry.filename.endswith(".npy")):
                if entry.file_size > DEFLATED * max(entry.compress_size, 1):
                    raise DataError(f"{path}: '{entry.filename}' declares more than it holds; write it again.")
                with archive.open(entry) as member:
                    _check(member, entry.file_size, f"{path}: '{entry.filename}'")
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
            return {name: array for name, array in found.items() if isinstance(array, np.ndarray)}


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Makes one error of whatever numpy and zipfile raise at a file that is not what it says."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        said = f"{error}" or type(error).__name__
        raise DataError(f"{path} cannot be read as numpy data ({said}); objects are not accepted.") from error


def _check(file: IO[bytes], size: int, what: str) -> None:
    """Holds the header of an array against what there is behind it.

    Args:
        file: opened at its beginning.
        size: of the file.
        what: it is, in words.
    """
    version = npy.read_magic(file)
    shape, _, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(file)
    if dtype.hasobject:
        raise ValueError("it holds objects")
    needed, size = math.prod(shape) * dtype.itemsize, size - file.tell()
    if needed > size:
        raise DataError(f"{what} declares {needed:,} bytes, and there are {size:,}; it was cut off, so write it again.")
    if not needed and shape and shape[0] > EMPTY_ROWS:
        raise DataError(f"{what} declares {shape[0]:,} samples of no size; write it again.")
