"""Which files a model refers to: its external data, which nobody who looks at the model's name alone would think of."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from onnxprune.checksums import checksum

if TYPE_CHECKING:
    import onnx
    from google.protobuf.message import Message

MODELS = re.compile(r".*\.onnx(?![._-]data)(?!.*\.(data|tmp)$).*", re.DOTALL)
"""Names of models and their copies, such as `model.onnx.bak`, but not of their data."""

KEY = "location"
"""Under which a tensor names the file with its data."""

LARGEST = 1 << 31
"""Bytes that a model has less than."""

LONGEST = 220
"""Bytes of a file's name to which others can be added that are put beside it; names end at 255 bytes."""


def stem(name: str) -> str:
    """The name of a file, or a part of it and its checksum where nothing could be added to the whole."""
    encoded = name.encode(errors="surrogateescape")
    if len(encoded) <= LONGEST:
        return name
    return f"{encoded[: LONGEST - 20].decode(errors='ignore')}~{checksum(encoded)[:8]}"


def belongs(name: str, model: str) -> bool:
    """Whether a file beside a model is named after it, as in `model.onnx.data` or `model.onnx_data`."""
    return any(name.startswith(start) and name[len(start) :][:1] in tuple("._-") for start in {model, stem(model)})


def data_names(model: str, checksum: str) -> Iterator[str]:
    """Names for the data of a model, the plain one first, then some that nobody else is likely to have taken."""
    start = stem(model)
    yield f"{start}.data"
    for digits in (8, 16):
        yield f"{start}.{checksum[:digits]}.data"


def may_be_data(name: str, model: str) -> bool:
    """Whether the data of a model may come to have a name."""
    start = stem(model)
    return name.startswith(f"{start}.") and name.endswith(".data")


def locations(model: onnx.ModelProto) -> set[str]:
    """Where the data lie that a model keeps outside, as it says itself: relative to its folder."""
    return {
        entry.value
        for tensor in _tensors(model)
        for entry in tensor.external_data
        if entry.key == KEY and entry.value and "\0" not in entry.value
    }


def data_of(path: Path) -> list[Path]:
    """The files that hold the external data of the model in a file; none where that is no model."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        if not _holds(path, KEY.encode()):  # most models say so without being parsed
            return []
        model = onnx.ModelProto.FromString(path.read_bytes())
    except (OSError, DecodeError):
        return []
    return [path.parent / location for location in sorted(locations(model))]


def _holds(path: Path, text: bytes) -> bool:
    """Whether some bytes are somewhere in a file that is small enough for a model."""
    if not path.is_file() or not 0 < path.stat().st_size < LARGEST:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(text) >= 0


def _tensors(message: Message) -> Iterator[onnx.TensorProto]:
    """All tensors of a message: of initializers, attributes, subgraphs, functions."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for part in (value,) if hasattr(value, "ListFields") else value:
            if field.message_type.name == "TensorProto":
                yield part
            else:
                yield from _tensors(part)


def mentioned(name: str, folder: Path, besides: Path) -> bool:
    """Whether a model of a folder may refer to a file, to judge by whether it holds its name somewhere.

    Args:
        name: of the file.
        folder: where both are.
        besides: the model that does not count.
    """
    try:
        for entry in folder.iterdir():
            if not MODELS.fullmatch(entry.name) or entry.name in (name, besides.name):
                continue
            found = _holds(entry, name.encode(errors="surrogateescape"))
            theirs = {data.name for data in data_of(entry)} if found else set()
            if found and (name in theirs or not theirs):  # names of other files may end alike
                return True
    except OSError:
        return True  # what cannot be read may say anything
    return False
