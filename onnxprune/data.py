"""Data from files, scripts and arrays, as batches that fit a model.

Nothing is transposed or scaled, and pickles are never read.

Each kind of source becomes a function that yields chunks, `(arrays by input, labels or None)`, anew each time the data
are needed. Chunks are checked against the model's inputs and cut into batches. A batch never mixes chunks of different
shapes: texts may come sorted by length, without padding.
"""

from __future__ import annotations

import difflib
import glob
import importlib.util
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.errors import DataError, blames
from onnxprune.labels import numbers
from onnxprune.numpyfiles import read_arrays
from onnxprune.observation import dtype_of, sizes_to_try, synthetic
from onnxprune.records import Batch, rows_of, take
from onnxprune.runtime import Session

log = logging.getLogger(__name__)

Chunk = tuple[dict[str, np.ndarray], np.ndarray | None]
"""Arrays by input, axis 0 the samples, and labels where there are any."""

LABELS = ("label", "labels")
CASTS = {("int32", "int64"), ("float64", "float32"), ("float32", "float16"), ("float64", "float16")}
BATCH = 32
SYNTHETIC_SAMPLES = 32


@dataclass(frozen=True, slots=True)
class Input:
    """What a model wants for one input: name, numpy type, and shape, None where any size will do."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Data:
    """Samples that fit a model, as often as they are asked for.

    Attributes:
        source: where they come from, in words.
        inputs: what the model wants.
        chunks: yields all samples anew.
        limit: the most samples to take.
        size: samples in a batch, where the model does not fix it.
        made_up: whether they are random numbers.
        whole: whether there is one chunk alone, so that it costs little to count the samples.
    """

    source: str
    inputs: tuple[Input, ...]
    chunks: Callable[[], Iterable[Chunk]]
    limit: int | None = None
    size: int = BATCH
    made_up: bool = False
    whole: bool = False
    _noted: set[str] = field(default_factory=set)

    def batches(self) -> Iterator[Batch]:
        """The samples, in batches.

        Raises:
            DataError: they do not fit the model, are not finite, or there are none.
        """
        fixed = next((x.shape[0] for x in self.inputs if x.shape and x.shape[0] is not None), None)
        size = fixed or self.size
        waiting: list[Chunk] = []
        for chunk in self._limited():
            if waiting and _shapes(chunk) != _shapes(waiting[0]):
                yield from _rest(waiting, fixed)
                waiting = []
            waiting.append(chunk)
            if sum(map(_rows, waiting)) >= size:
                whole = _joined(waiting)
                full = _rows(whole) // size * size
                for start in range(0, full, size):
                    feeds, labels = _cut(whole, start, start + size)
                    yield Batch(feeds, labels, size)
                waiting = [_cut(whole, full, _rows(whole))]
        yield from _rest(waiting, fixed)

    @property
    def total(self) -> int:
        """How many samples there are, -1 where only reading them all would tell."""
        if not self.whole:
            return -1
        rows = _rows(next(iter(self.chunks())))
        return rows if self.limit is None else min(rows, self.limit)

    def first(self, rows: int) -> Batch:
        """The first samples, fewer when there are no more."""
        taken = replace(self, limit=rows, size=rows)
        return next(taken.batches())

    def _limited(self) -> Iterator[Chunk]:
        seen = 0
        for arrays, labels in self.chunks():
            chunk = self._fitting(arrays, labels)
            rows = _rows(chunk) if self.limit is None else min(_rows(chunk), self.limit - seen)
            seen += rows
            yield _cut(chunk, 0, rows)
            if seen == self.limit:
                return
        if not seen:
            raise DataError(f"{self.source} holds no samples; give data with at least one.")

    def _fitting(self, arrays: Mapping[str, np.ndarray], labels: np.ndarray | None) -> Chunk:
        """A chunk with just the model's inputs, in their types."""
        feeds = {x.name: self._array(x, arrays) for x in self.inputs}
        rows = {name: len(array) for name, array in feeds.items() if array.ndim}
        if labels is not None:
            labels = numbers(labels, self.source)
            rows["labels"] = len(labels)
        if len(set(rows.values())) > 1:
            raise DataError(f"{self.source}: the numbers of samples differ: {rows}; axis 0 must be the samples.")
        return feeds, labels

    def _array(self, wanted: Input, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        if wanted.name not in arrays:
            near = difflib.get_close_matches(wanted.name, arrays, 1)
            hint = f"; did you mean '{near[0]}' to be '{wanted.name}'?" if near else ""
            have = ", ".join(map(repr, arrays)) or "nothing"
            raise DataError(f"{self.source} has no array for the input '{wanted.name}', it has {have}{hint}")
        array = np.asarray(arrays[wanted.name])
        if array.dtype != wanted.dtype and not array.dtype.kind == wanted.dtype.kind == "U":
            if (str(array.dtype), str(wanted.dtype)) not in CASTS:
                raise DataError(
                    f"{self.source}: '{wanted.name}' is {array.dtype}, the model wants {wanted.dtype}; "
                    "convert and scale it as the model was trained."
                )
            if wanted.name not in self._noted:
                self._noted.add(wanted.name)
                log.warning("%s: '%s' is cast from %s to %s", self.source, wanted.name, array.dtype, wanted.dtype)
            array = array.astype(wanted.dtype)
        fits = array.ndim == len(wanted.shape) and all(
            want in (None, have) for have, want in zip(array.shape[1:], wanted.shape[1:], strict=True)
        )
        if not fits:
            shape = "(" + ", ".join("any" if size is None else str(size) for size in wanted.shape) + ")"
            raise DataError(f"{self.source}: '{wanted.name}' has shape {array.shape}, the model wants {shape}.")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(f"{self.source}: '{wanted.name}' has NaN or infinite values; remove those samples.")
        return array


def _rows(chunk: Chunk) -> int:
    return rows_of(chunk[0])


def _cut(chunk: Chunk, start: int, stop: int) -> Chunk:
    arrays, labels = chunk
    return take(arrays, slice(start, stop)), None if labels is None else labels[start:stop]


def _joined(chunks: list[Chunk]) -> Chunk:
    if len(chunks) == 1:
        return chunks[0]
    labels = [labels for _, labels in chunks if labels is not None]
    arrays = {
        name: np.concatenate([arrays[name] for arrays, _ in chunks]) if first.ndim else first
        for name, first in chunks[0][0].items()
    }
    return arrays, np.concatenate(labels) if labels else None


def _shapes(chunk: Chunk) -> list[tuple[Any, ...]]:
    """The shapes of samples, and of their labels; numbers that all samples share count themselves."""
    arrays, labels = chunk
    every = (*arrays.values(), *(() if labels is None else (np.asarray(labels),)))
    return [array.shape[1:] if array.ndim else (array.item(),) for array in every]


def _rest(waiting: list[Chunk], fixed: int | None) -> Iterator[Batch]:
    """The last batch of a shape, filled up where the model fixes how many samples there are."""
    feeds, labels = _joined(waiting) if waiting else ({}, None)
    if real := _rows((feeds, labels)):
        if fixed:
            feeds = take(feeds, np.arange(fixed) * (np.arange(fixed) < real))  # the first sample again
        yield Batch(feeds, labels, real)


def model_inputs(session: Session) -> tuple[Input, ...]:
    """What a loaded model wants to be fed."""
    return tuple(
        Input(name, np.dtype(dtype_of(name, kind)), tuple(size if isinstance(size, int) else None for size in shape))
        for name, kind, shape in session.inputs
    )


def load_data(
    source: object,
    session: Session,
    *,
    limit: int | None = None,
    size: int = BATCH,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    ranges: Mapping[str, int] | None = None,
) -> Data:
    """Finds out what kind of data a source is.

    Args:
        source: a path (.npz, .npy, a folder or glob of .npz, script.py or script.py:function), arrays by input, or an
            iterable such as a torch DataLoader; None for synthetic inputs.
        session: the model that the data are for.
        limit: the most samples to take.
        size: samples in a batch.
        shapes: of each input, for symbolic axes of synthetic inputs.
        ranges: for synthetic inputs that are indices, how many rows there are.

    Raises:
        DataError: the source does not exist or is of no known kind.
    """
    if limit is not None and limit < 1:
        raise DataError(f"{limit} samples are too few; at least one is needed.")
    if size < 1:
        raise DataError(f"a batch of {size} is too small; at least one sample is needed.")
    inputs = model_inputs(session)
    if source is None:
        chunks = partial(_synthetic, session, shapes or {}, ranges or {}, limit or SYNTHETIC_SAMPLES)
        return Data("synthetic inputs", inputs, chunks, limit, size, made_up=True, whole=True)
    if isinstance(source, str | Path):
        whole = Path(source).is_file() and Path(source).suffix in (".npz", ".npy")
        return Data(str(source), inputs, _from_path(str(source), inputs), limit, size, whole=whole)
    if isinstance(source, Mapping):
        arrays = {str(name): _numpy(array) for name, array in source.items()}
        return Data("the arrays given", inputs, lambda: [_labelled(arrays, inputs)], limit, size, whole=True)
    if isinstance(source, Iterable):
        return Data("the samples given", inputs, lambda: (_item(item, inputs) for item in source), limit, size)
    raise DataError(f"data cannot be taken from {type(source).__name__}; give a path, arrays by input, or an iterable.")


def _from_path(source: str, inputs: tuple[Input, ...]) -> Callable[[], Iterable[Chunk]]:
    """How to read a path."""
    script, _, function = source.partition(".py:")
    if source.endswith(".py") or function:
        return partial(_script, Path(script + ".py" if function else source), function or "load_data", inputs)
    path = Path(source)
    shards = sorted(path.glob("*.npz")) if path.is_dir() else [Path(name) for name in sorted(glob.glob(source))]  # noqa: PTH207  (a pattern may be absolute)
    if not shards:
        what = "has no .npz file in it" if path.is_dir() else "does not exist"
        raise DataError(f"{source} {what}; give a .npz or .npy file, a folder of .npz files, or a script.")
    unknown = [shard for shard in shards if shard.suffix not in (".npz", ".npy")]
    if unknown:
        raise DataError(f"{unknown[0]} is of no known kind; give .npz, .npy, a folder of .npz, or script.py:function.")
    return lambda: (_file(shard, inputs) for shard in shards)


def _file(path: Path, inputs: tuple[Input, ...]) -> Chunk:
    found = read_arrays(path)
    if not isinstance(found, np.ndarray):
        return _labelled(found, inputs)
    if len(inputs) != 1:
        names = ", ".join(x.name for x in inputs)
        raise DataError(f"{path} holds one array, the model has the inputs {names}; give a .npz with them.")
    return {inputs[0].name: found}, None


def _labelled(arrays: dict[str, np.ndarray], inputs: tuple[Input, ...]) -> Chunk:
    """Takes labels out of arrays, unless the model has an input of that name."""
    names = {x.name for x in inputs}
    key = next((key for key in LABELS if key in arrays and key not in names), None)
    return {n: a for n, a in arrays.items() if n != key}, None if key is None else arrays[key]


def _script(path: Path, function: str, inputs: tuple[Input, ...]) -> Iterator[Chunk]:
    """Runs a function of a script; it may give dicts, (inputs, labels), a DataLoader, or an object with get_next()."""
    with blames(f"the script {path}"):
        found = load_function(path, function)()
        if hasattr(found, "get_next"):
            found = iter(found.get_next, None)
        if isinstance(found, Mapping):
            found = [found]
        for item in found:
            yield _item(item, inputs)


def load_function(path: Path, name: str) -> Callable[..., Any]:
    """A function of a Python file.

    Raises:
        DataError: there is no such file or function, or the file fails.
    """
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise DataError(f"there is no script {path}.")
    module = importlib.util.module_from_spec(spec)
    with blames(f"the script {path}"):
        spec.loader.exec_module(module)
    if not callable(getattr(module, name, None)):
        raise DataError(f"the script {path} has no function {name}(); write one, or name another as {path}:function.")
    return getattr(module, name)


def _item(item: Any, inputs: tuple[Input, ...]) -> Chunk:
    """One yield of a script or DataLoader: arrays by input, an array for the only input, or either with labels."""
    if isinstance(item, Mapping):
        return _labelled({name: _numpy(value) for name, value in item.items()}, inputs)
    if isinstance(item, tuple | list) and len(item) == 2:
        return _item(item[0], inputs)[0], _numpy(item[1])
    if isinstance(item, tuple | list) or len(inputs) != 1:
        names = ", ".join(x.name for x in inputs)
        kind = type(item).__name__
        raise DataError(f"the data yield a {kind}; yield a dict with the keys {names}, or (dict, labels).")
    return {inputs[0].name: _numpy(item)}, None


def _numpy(value: Any) -> np.ndarray:
    """An array or a tensor as an array.

    Raises:
        DataError: it is neither, such as rows of different lengths.
    """
    with blames(f"making an array of a {type(value).__name__} in the data"):
        return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)


def _synthetic(
    session: Session, shapes: Mapping[str, tuple[int, ...]], ranges: Mapping[str, int], samples: int
) -> Iterator[Chunk]:
    """Random inputs; symbolic axes have sizes at which the model is known to run, fixed batches are many."""
    sizes = next(sizes_to_try(session))[0]
    sizes |= {(name, axis): size for name, shape in shapes.items() for axis, size in enumerate(shape)}
    wanted = {key: samples if key[1] == 0 else size for key, size in sizes.items()}
    fixed = {shape[0] for _, _, shape in session.inputs if shape}
    several = len(fixed) == 1 and isinstance(next(iter(fixed)), int)
    yield dict(synthetic(session, wanted, ranges=ranges, rows=samples if several else None)), None
