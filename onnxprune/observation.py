"""The shape of every tensor, seen by running the model.

Static shape inference gives up on real exports, so the model runs with a `Shape` node behind every tensor. Where the
inputs have symbolic axes it runs twice with different sizes; an axis that changed depends on them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from onnxprune.errors import DataError, ModelError, Overrun
from onnxprune.graph import Graph
from onnxprune.reading import inferred_types
from onnxprune.records import MASK
from onnxprune.runtime import Bound, Feeds, Session, own_memory

PREFIX = "onnxprune.shape:"
"""In front of the name of a tensor: its shape."""

FEATURE_MAPS = (
    ((37, 41), (53, 59)),
    ((40, 56), (72, 88)),
    ((64, 96), (96, 128)),
    ((64, 64), (128, 128)),
    ((224, 256), (256, 288)),
    ((224, 448), (448, 672)),
)
"""Heights and widths tried in turn for symbolic image axes, a pair for each of the two runs: primes first, since equal
sizes hide which axis is which, then multiples of 8 and 32, as networks with skip connections ask for, squares, and
multiples of 7, as windows of attention ask for."""


def _multiples(of: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Lengths for two runs that a number divides, no two of them equal."""
    return tuple(of * i for i in (1, 3, 5, 7, 9, 11)), tuple(of * i for i in (13, 15, 17, 19, 21, 23))


LENGTHS = (
    ((5, 7, 11, 13, 17, 19), (23, 29, 31, 43, 47, 61)),
    _multiples(8),
    _multiples(16),
    _multiples(32),
    ((64, 128, 256, 512, 1024, 2048), (128, 256, 512, 1024, 2048, 4096)),
    ((840, 2520, 4200, 5880, 7560, 9240), (1680, 3360, 5040, 6720, 8400, 10080)),
    ((401, 419, 431, 443, 457, 461), (503, 521, 541, 547, 557, 569)),
    ((16001, 16007, 16033, 16057, 16061, 16063), (17011, 17021, 17027, 17029, 17033, 17041)),
    ((16384, 32768, 65536, 131072, 262144, 524288), (32768, 65536, 131072, 262144, 524288, 1048576)),
)
"""Sizes tried in the same way for other symbolic axes: tokens first, also such as 8, 16, 32, 64 and all numbers up to 8
divide, then frames and samples of sound."""

STEERING = 64
"""Elements of a constant that may steer shapes."""

MADE_UP = 1 << 30
"""The most bytes of tensors that are spent on sizes which are made up."""

SHARE = 4
"""The part of the machine's memory, one in so many, that the analysis takes at the most."""

PATIENCE = 30
"""Seconds that a run with made-up inputs takes at the most."""

PACE = 50_000_000
"""Bytes of weights for which a run has a second more."""

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
    bound = None if sample is not None else _bound(graph)
    prefix = graph.fresh(PREFIX)
    session, types = _watched(graph, prefix, bound)
    tensors = [name.removeprefix(prefix) for name, _, _ in session.outputs if name.startswith(prefix)]
    failure: ModelError | None = None
    for pair in sizes_to_try(session, sample):
        try:
            runs = [_run(session, prefix, tensors, _inputs(session, sizes, sample, bound)) for sizes in pair]
        except Overrun as error:  # what comes next is larger
            if failure is None:
                raise Overrun(_overrun(session, pair[-1], error)) from error
            break
        except ModelError as error:
            failure = failure or error
            continue
        first, second = runs[0], runs[-1]
        moved = {(n, i) for n in first for i, size in enumerate(first[n]) if second[n][i : i + 1] != (size,)}
        constants = {name: array.shape for name, array in graph.constants.items()}
        return Observation(first | constants, frozenset(moved), types)
    if sample is None and _is_open(session):
        raise DataError(f"no sizes tried for the symbolic axes let the model run; give --data. {failure}")
    raise ModelError(str(failure))


def _overrun(session: Session, sizes: Mapping[tuple[str, int], int], error: Overrun) -> str:
    """What to say of a model that takes more than is spent on made-up inputs."""
    shapes = ", ".join(f"{name} {tuple(shape)}" for name, shape in list(_shapes(session, sizes).items())[:3])
    return (
        f"with made-up inputs of the shapes {shapes} {error}; no more than {PATIENCE} s and a quarter of the memory "
        f"are spent on them, {MADE_UP / 1e9:.1f} GB where sizes are made up; give --data, which has no bounds."
    )


def _bound(graph: Graph) -> Bound:
    """What a run of a model with made-up inputs may take."""
    memory = own_memory() // SHARE
    sizes = [size for tensor in graph.gs.inputs for size in (tensor.shape or ())[1:]]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        memory = min(memory, MADE_UP)
    return Bound(memory, PATIENCE + graph.nbytes / PACE)


def _watched(graph: Graph, prefix: str, bound: Bound | None) -> tuple[Session, dict[str, type]]:
    """A session that gives the shape of each tensor that nodes make, and the types of these tensors.

    Types are what onnx infers. A tensor of which it knows none, as of operators of other domains, is given out too, so
    that ONNX Runtime says it; that costs memory, since what is given out is kept to the end of the run.
    """
    known = inferred_types(graph.without_weights(STEERING))
    made = _made(graph)
    tensors, unknown = [name for name in made if known.get(name) != 0], [name for name in made if name not in known]
    try:
        session = _exposed(graph, prefix, tensors, unknown, bound)
    except ModelError:  # a sequence has no shape, and only ONNX Runtime knows which values are sequences
        plain = Session(graph.message(outputs=unknown), device="cpu", optimize=False)
        sequences = {name for name, kind, _ in plain.outputs if not kind.startswith("tensor(")}
        tensors, unknown = ([name for name in names if name not in sequences] for names in (tensors, unknown))
        session = _exposed(graph, prefix, tensors, unknown, bound)
    own = {name: DTYPES[kind] for name, kind, _ in session.outputs if kind in DTYPES and not name.startswith(prefix)}
    if session.widened:  # what runs in float32 may be bfloat16 in the file
        own = {name: kind for name, kind in own.items() if kind is not np.float32}
    return session, own | {name: ELEMENTS[known[name]] for name in made if known.get(name) in ELEMENTS}


def _exposed(graph: Graph, prefix: str, tensors: list[str], unknown: list[str], bound: Bound | None) -> Session:
    """A session that gives out the shapes of tensors, and some tensors themselves."""
    from onnx import helper

    nodes = [helper.make_node("Shape", [name], [prefix + name]) for name in tensors]
    model = graph.message(nodes=nodes, outputs=[*unknown, *(prefix + name for name in tensors)])
    return Session(model, device="cpu", optimize=False, bound=bound, shapes_first=True)


def _is_open(session: Session) -> bool:
    return any(not isinstance(size, int) for _, _, shape in session.inputs for size in shape)


def _shapes(session: Session, sizes: Mapping[tuple[str, int], int]) -> dict[str, list[int]]:
    """The shapes of the inputs where symbolic axes have these sizes."""
    return {
        name: [size if isinstance(size, int) else sizes[name, axis] for axis, size in enumerate(shape)]
        for name, _, shape in session.inputs
    }


def _inputs(session: Session, sizes: Mapping[tuple[str, int], int], sample: Feeds | None, bound: Bound | None) -> Feeds:
    """Made-up inputs, if they fit into the memory that there is for them.

    Raises:
        Overrun: they do not.
    """
    if bound and sum(8 * math.prod(shape) for shape in _shapes(session, sizes).values()) > bound.memory:
        raise Overrun(f"the inputs alone take more than {bound.memory / 1e9:.1f} GB")
    return synthetic(session, sizes, sample)


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

ELEMENTS = {
    **{1: np.float32, 2: np.uint8, 3: np.int8, 4: np.uint16, 5: np.int16, 6: np.int32, 7: np.int64, 8: np.str_},
    **{9: np.bool_, 10: np.float16, 11: np.float64, 12: np.uint32, 13: np.uint64},
}
"""The same of ONNX's numbers."""


def _made(graph: Graph) -> list[str]:
    return [tensor.name for node in graph.nodes for tensor in node.outputs if tensor.name]


def _run(session: Session, prefix: str, tensors: list[str], feeds: Feeds) -> dict[str, tuple[int, ...]]:
    seen = session.run(feeds, [prefix + name for name in tensors])
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
    wanted = [_is_map(axis, rank) for _, axis, _, rank in open_axes if axis or sample is not None]
    choices = (
        list(enumerate(FEATURE_MAPS if any(wanted) else FEATURE_MAPS[:1])),
        list(enumerate(LENGTHS if not all(wanted) else LENGTHS[:1])),
    )
    for (_, maps), (_, tokens) in sorted(itertools.product(*choices), key=lambda pair: pair[0][0] + pair[1][0]):
        found = []
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
                elif _is_map(axis, rank):
                    symbols[symbol] = maps[run][axis - rank]
                else:
                    symbols[symbol] = next(lengths, 67)
            found.append({(name, axis): symbols[symbol] for name, axis, symbol, _ in open_axes})
        yield found


def _is_map(axis: int, rank: int) -> bool:
    """Whether an axis is the height or width of an image, or of the frames of a video."""
    return rank in (4, 5) and axis >= rank - 2
