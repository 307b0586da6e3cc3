"""The shape of every tensor, seen by running the model.

Static shape inference gives up on real exports, so the model runs with a `Shape` node behind every tensor. Where the
inputs have symbolic axes it runs twice with different sizes; an axis that changed depends on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from onnxprune.errors import DataError, ModelError
from onnxprune.graph import Graph
from onnxprune.records import MASK
from onnxprune.runtime import Feeds, Session

PREFIX = "onnxprune.shape:"

FEATURE_MAPS = ((37, 41), (53, 59)), ((64, 96), (96, 128)), ((224, 256), (256, 288))
"""Heights and widths tried in turn for symbolic image axes, a pair for each of the two runs: primes first, since equal
sizes hide which axis is which, then the multiples of 32 that networks with skip connections ask for."""

LENGTHS = (
    ((5, 7, 11, 13, 17, 19), (23, 29, 31, 43, 47, 61)),
    ((401, 419, 431, 443, 457, 461), (503, 521, 541, 547, 557, 569)),
    ((16001, 16007, 16033, 16057, 16061, 16063), (17011, 17021, 17027, 17029, 17033, 17041)),
)
"""Sizes tried in the same way for other symbolic axes: tokens first, then frames and samples of sound."""

BATCHES = 2, 3


@dataclass(frozen=True, slots=True)
class Observation:
    """What was seen.

    Attributes:
        shapes: the shape of every tensor of the main graph, constants included, in the first run.
        varying: the (tensor, axis) pairs whose size depends on the sizes of the inputs.
        types: the element types of the tensors that nodes make, where numpy has them.
    """

    shapes: Mapping[str, tuple[int, ...]]
    varying: frozenset[tuple[str, int]]
    types: Mapping[str, type]


def observe(graph: Graph, sample: Feeds | None = None) -> Observation:
    """Runs the model and notes the shape of every tensor.

    Args:
        graph: the model.
        sample: an array for each input; where given, sizes of symbolic axes other than the first come from it.

    Raises:
        ModelError: ONNX Runtime cannot load the model.
        DataError: no sizes tried for symbolic axes let it run.
    """
    try:
        session = _exposed(graph, _made(graph))
    except ModelError:  # a sequence has no shape, and only ONNX Runtime knows which values are sequences
        plain = Session(graph.message(outputs=_made(graph)), device="cpu", optimize=False)
        session = _exposed(graph, [name for name, kind, _ in plain.outputs if kind.startswith("tensor(")])
    tensors = [name.removeprefix(PREFIX) for name, _, _ in session.outputs if name.startswith(PREFIX)]
    types = {name: DTYPES[kind] for name, kind, _ in session.outputs if kind in DTYPES and not name.startswith(PREFIX)}
    if session.widened:  # what runs in float32 may be bfloat16 in the file
        types = {name: kind for name, kind in types.items() if kind is not np.float32}
    failure: ModelError | None = None
    for pair in sizes_to_try(session, sample):
        try:
            runs = [_run(session, tensors, synthetic(session, sizes, sample)) for sizes in pair]
        except ModelError as error:
            failure = failure or error
            continue
        first, second = runs[0], runs[-1]
        moved = {(n, i) for n in first for i, size in enumerate(first[n]) if second[n][i : i + 1] != (size,)}
        constants = {name: array.shape for name, array in graph.constants.items()}
        return Observation(first | constants, frozenset(moved), types)
    if sample is None and any(not isinstance(size, int) for _, _, shape in session.inputs for size in shape):
        raise DataError(f"no sizes tried for the symbolic axes let the model run; give --data. {failure}")
    raise ModelError(str(failure))


def _exposed(graph: Graph, tensors: list[str]) -> Session:
    """A session that gives out tensors, and the shape of each, which alone is fetched."""
    from onnx import helper

    nodes = [helper.make_node("Shape", [name], [PREFIX + name]) for name in tensors]
    model = graph.message(nodes=nodes, outputs=[*tensors, *(PREFIX + name for name in tensors)])
    return Session(model, device="cpu", optimize=False)


def dtype_of(name: str, kind: str) -> type:
    """The type of an input's arrays.

    Args:
        name: of the input.
        kind: ONNX Runtime's name of its type.

    Raises:
        ModelError: no array can be fed there, as into a sequence.
    """
    if kind not in DTYPES:
        raise ModelError(f"the input '{name}' is a {kind}, which no array can fill; give a model with other inputs.")
    return DTYPES[kind]


def synthetic(
    session: Session,
    sizes: Mapping[tuple[str, int], int],
    sample: Feeds | None = None,
    ranges: Mapping[str, int] | None = None,
    rows: int | None = None,
) -> Feeds:
    """One batch of inputs of given sizes: rows of the sample repeated, or else normal numbers, indices and trues.

    Nothing is hidden by a mask: of what is hidden everywhere, attention makes no numbers.

    Args:
        session: says which inputs there are.
        sizes: the size of each symbolic axis, by (input, axis).
        sample: rows to repeat.
        ranges: for inputs that are indices, how many rows their table has; others are zero.
        rows: how many samples there shall be, where the inputs fix it, for batches to be cut from.
    """
    generator = np.random.default_rng(0)
    feeds: dict[str, np.ndarray] = {}
    for name, kind, shape in session.inputs:
        full = tuple(size if isinstance(size, int) else sizes[name, axis] for axis, size in enumerate(shape))
        full = (rows, *full[1:]) if rows and full else full
        dtype = dtype_of(name, kind)
        if sample is not None:
            feeds[name] = np.resize(sample[name], full)
        elif "bool" in kind or name == MASK:
            feeds[name] = np.ones(full, dtype)
        elif "float" in kind or "double" in kind:
            feeds[name] = generator.standard_normal(full).astype(dtype)
        else:
            feeds[name] = generator.integers(0, (ranges or {}).get(name, 1), full).astype(dtype)
    return feeds


DTYPES: dict[str, type] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(bool)": np.bool_,
    "tensor(string)": np.str_,
    **{f"tensor({sign}int{bits})": getattr(np, f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
"""numpy types of ONNX Runtime's type names."""


def _made(graph: Graph) -> list[str]:
    return [tensor.name for node in graph.nodes for tensor in node.outputs if tensor.name]


def _run(session: Session, tensors: list[str], feeds: Feeds) -> dict[str, tuple[int, ...]]:
    seen = session.run(feeds, [PREFIX + name for name in tensors])
    shapes = {name: tuple(map(int, shape)) for name, shape in zip(tensors, seen, strict=True)}
    return shapes | {name: array.shape for name, array in feeds.items()}


def sizes_to_try(session: Session, sample: Feeds | None = None) -> Iterator[list[dict[tuple[str, int], int]]]:
    """Sizes for the symbolic axes of the inputs, to be tried in turn; axes with one symbol have one size."""
    open_axes = [
        (name, axis, size or f"{name}.{axis}", len(shape))
        for name, _, shape in session.inputs
        for axis, size in enumerate(shape)
        if not isinstance(size, int)
    ]
    if not open_axes:
        yield [{}]
        return
    for maps, tokens in zip(FEATURE_MAPS, LENGTHS, strict=True):
        pair = []
        for run in (0, 1):
            lengths = iter(tokens[run])
            symbols: dict[str, int] = {}
            for name, axis, symbol, rank in open_axes:
                if symbol in symbols:
                    continue
                if axis == 0:
                    symbols[symbol] = BATCHES[run]
                elif sample is not None:
                    symbols[symbol] = sample[name].shape[axis]
                elif rank in (4, 5) and axis >= rank - 2:
                    symbols[symbol] = maps[run][axis - rank]
                else:
                    symbols[symbol] = next(lengths, 67)
            pair.append({(name, axis): symbols[symbol] for name, axis, symbol, _ in open_axes})
        yield pair
