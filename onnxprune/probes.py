"""Inputs for the proof: varied, and others than those of the calibration.

Real samples are picked by how much they differ from each other. Made-up ones use the whole range of what the model
takes: indices up to the size of the table that they index, both values of booleans, masks that hide, another length
where lengths are open, and numbers of the size of the data, or of a normal distribution.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.data import Data
from onnxprune.graph import Graph
from onnxprune.observation import dtype_of, sizes_to_try
from onnxprune.records import MASK, rows_of, take
from onnxprune.runtime import Feeds, Session

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

REAL, MADE_UP = 8, 4
"""Samples of each kind in a batch, where the model does not fix how many there are."""

BATCHES = 4
"""The most batches of real samples, where the model fixes that there are few in each."""

POOL = 256
"""Real samples that are picked from."""

FEATURES = 4096
"""Numbers of a sample that are compared to pick it."""

PASSING = frozenset(
    {"Cast", "Concat", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
)
"""Operators behind which an index is an index still."""

TABLES = {"Gather": {1: 0}, "EmbedLayerNormalization": {0: 2, 1: 4}, "OneHot": {0: -1}}
"""For operators that look something up: the inputs that hold indices, and the input that they are looked up in."""


def index_ranges(graph: Graph) -> dict[str, int]:
    """How many rows the tables have that inputs of a model index: by input, the fewest where there are several."""
    readers: dict[str, list[tuple[gs.Node, int]]] = defaultdict(list)
    for node in graph.nodes:
        for i, tensor in enumerate(node.inputs):
            readers[tensor.name].append((node, i))
    found: dict[str, int] = {}
    for name in graph.inputs:
        seen, queue = {name}, [name]
        while queue:
            for node, i in readers[queue.pop()]:
                rows = _rows(graph, node, i)
                if rows is not None:
                    found[name] = min(rows, found.get(name, rows))
                elif node.op in PASSING:
                    queue += [tensor.name for tensor in node.outputs if tensor.name not in seen]
                    seen.update(tensor.name for tensor in node.outputs)
    return found


def _rows(graph: Graph, node: gs.Node, place: int) -> int | None:
    """How many rows an input of a node is an index into; None where it is no index, or into what data make."""
    if place not in TABLES.get(node.op, {}):
        return None
    if node.op == "OneHot":
        depth = graph.constants.get(node.inputs[1].name)
        return int(depth.ravel()[0]) if depth is not None and depth.size else None
    table = graph.constants.get(node.inputs[TABLES[node.op][place]].name)
    return None if table is None else int(table.shape[node.attrs.get("axis", 0)])


def find_probes(
    session: Session, data: Data, shapes: Mapping[str, tuple[int, ...]], ranges: Mapping[str, int], *, seed: int = 0
) -> Iterator[Feeds]:
    """Batches for the proof, of which the model may be unable to run all but the first.

    Args:
        session: the model.
        data: what it is calibrated on.
        shapes: of each input, at which it is known to run.
        ranges: for inputs that are indices, how many rows there are.
        seed: of what is made up.
    """
    fixed = next((x.shape[0] for x in data.inputs if x.shape and x.shape[0] is not None), None)
    like: Feeds | None = None
    if data.made_up:
        yield data.first(REAL).feeds
    else:
        for like in _picked(data, fixed):
            yield like
    generator = np.random.default_rng(seed)
    known = {name: array.shape for name, array in like.items()} if like is not None else dict(shapes)
    others = list(_others(session, known, made_up=data.made_up)) or [known]  # twice, so that both branches are taken
    for i, wanted in enumerate((known, *others)):
        rows = {name: (fixed or MADE_UP, *shape[1:]) if shape else () for name, shape in wanted.items()}
        yield {
            name: _made_up(name, dtype_of(name, kind), rows[name], i, ranges, like, generator)
            for name, kind, _ in session.inputs
        }


def _others(
    session: Session, known: Mapping[str, tuple[int, ...]], *, made_up: bool
) -> Iterator[dict[str, tuple[int, ...]]]:
    """Other sizes for the axes of the inputs that have none: shorter ones of data, else those that were tried first."""
    loose = [
        (name, axis)
        for name, _, shape in session.inputs
        for axis, size in enumerate(shape)
        if axis and not isinstance(size, int)
    ]
    if not loose:
        return
    sizes = {(name, axis): max(1, known[name][axis] * 2 // 3) for name, axis in loose}
    if made_up:
        tried = (pair for pair in sizes_to_try(session) if all(known[n][i] == pair[0][n, i] for n, i in loose))
        sizes = next(tried, ({}, sizes))[-1]
    yield {
        name: tuple(sizes.get((name, axis), size) for axis, size in enumerate(shape)) for name, shape in known.items()
    }


def _made_up(
    name: str,
    dtype: type,
    shape: tuple[int, ...],
    which: int,
    ranges: Mapping[str, int],
    like: Feeds | None,
    generator: np.random.Generator,
) -> np.ndarray:
    """One input: what is known of its range is used, and what is not known comes from the data or is zero."""
    kind = np.dtype(dtype).kind
    if kind == "b":
        single = np.prod(shape, dtype=int) <= 1
        return np.full(shape, bool(which % 2)) if single else generator.integers(0, 2, shape).astype(dtype)
    if "mask" in name.lower() and len(shape) > 1 and (kind in "iu" or name == MASK):
        lengths = generator.integers(1, shape[-1] + 1, (*shape[:-1], 1))
        lengths[:1] = shape[-1]
        return (np.arange(shape[-1]) < lengths).astype(dtype)
    if name in ranges:
        return generator.integers(0, ranges[name], shape).astype(dtype)
    if kind == "f":
        sample = like[name].astype(np.float64) if like is not None else np.array([-1.0, 1.0])
        size = float(sample.std()) or float(np.abs(sample).max(initial=0)) or 1.0
        return (sample.mean() + size * generator.standard_normal(shape)).astype(dtype)
    if like is not None:
        return np.resize(like[name], shape)
    return np.zeros(shape, dtype)


def _picked(data: Data, fixed: int | None) -> Iterator[Feeds]:
    """Real samples that differ, and some of another shape where there are any."""
    pools: dict[tuple[tuple[int, ...], ...], list[Feeds]] = defaultdict(list)
    seen = 0
    for batch in data.batches():
        feeds = take(batch.feeds, slice(0, batch.real))
        pools[tuple(array.shape[1:] for array in feeds.values())].append(feeds)
        seen += batch.real
        if seen >= POOL:
            break
    size = fixed or REAL
    for i, parts in enumerate(list(pools.values())[:2]):
        pool = {
            name: np.concatenate([p[name] for p in parts]) if first.ndim else first for name, first in parts[0].items()
        }
        order = _spread(pool, size if i or size >= REAL else BATCHES * size)
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            if fixed:
                chosen = np.resize(chosen, fixed)
            yield take(pool, chosen)
        if i and not fixed:
            return


def _spread(pool: Feeds, count: int) -> np.ndarray:
    """Samples of which each is as far as can be from those before it: (count or fewer,) int."""
    rows = rows_of(pool)
    columns = [array.reshape(rows, -1) for array in pool.values() if array.ndim and array.dtype.kind in "iufb"]
    columns = [array[:, :: max(1, array.shape[1] // FEATURES)].astype(np.float64) for array in columns]
    points = np.concatenate([x / (x.std() or 1.0) for x in columns] or [np.zeros((rows, 1))], axis=1)
    chosen = [0]
    nearest = np.full(rows, np.inf)
    while len(chosen) < min(count, rows):
        nearest = np.minimum(nearest, np.square(points - points[chosen[-1]]).sum(axis=1))
        nearest[chosen] = -1.0
        chosen.append(int(nearest.argmax()))
    return np.array(chosen)
