"""Calibration: second moments of hidden states, computed inside the graph and summed in float64.

Per site a few nodes are appended: features in front, everything else flattened to samples, one matrix product. Fetched
are n x n numbers a batch, never the states themselves.

Extremes are of all positions, since what is the same everywhere can go without a trace. All else leaves out those
that a mask hides.

Moments add over batches, so a batch that is filled up to a fixed size is corrected by subtraction: its padding repeats
its first sample, and a batch of nothing but that sample says what the padding contributed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.errors import DataError
from onnxprune.graph import Graph
from onnxprune.padding import shown_nodes
from onnxprune.records import MASK, Moments, Site, rows_of, take
from onnxprune.runtime import Feeds, Session
from onnxprune.states import state_nodes

if TYPE_CHECKING:
    import onnx

Progress = Callable[[int], None]
"""Called with the number of samples done so far."""

PREFIX = "onnxprune.moments:"
"""In front of the name of everything that is added to a model."""

KINDS = ("second", "total", "low", "high", "shape")


def calibrate(
    graph: Graph,
    sites: Sequence[Site],
    batches: Iterable[tuple[Feeds, int]],
    *,
    device: str = "auto",
    stride: int = 1,
    source: str = "",
    second: bool = True,
    progress: Progress | None = None,
) -> Moments:
    """Runs a model over batches and sums the moments of its states.

    Args:
        graph: the model.
        sites: where to record; `features` as in this graph.
        batches: arrays for each input, and how many of their samples are real; the others repeat the first sample.
        device: where to run, as in `runtime.Session`.
        stride: every which position or token counts; 1 takes all.
        source: what the batches are, for the report.
        second: whether to sum second moments, which alone take memory; without them the result has none.
        progress: called after each batch.

    Raises:
        DataError: there are no samples, a mask hides all of them, or the states are not finite.
        ModelError: ONNX Runtime cannot run the model.
    """
    prefix = graph.fresh(PREFIX)
    nodes, constants = _nodes(graph, prefix, sites, stride, second)
    kinds = [kind for kind in KINDS if second or kind != "second"]
    keys = [f"{kind}:{site.key}" for site in sites for kind in kinds]
    names = [prefix + key for key in keys]
    session = Session(graph.message(nodes=nodes, outputs=names, initializers=constants), device=device)
    sums: dict[str, np.ndarray] = {}
    done = 0
    for feeds, real in batches:
        rows = rows_of(feeds)
        _add(sums, dict(zip(keys, session.run(feeds, names), strict=True)), 1.0)
        if real < rows:
            padding = take(feeds, np.zeros(rows, int))
            _add(sums, dict(zip(keys, session.run(padding, names), strict=True)), (real - rows) / rows)
        done += real
        if progress:
            progress(done)
    if not done:
        raise DataError("there are no samples to calibrate on; give --data with at least one.")
    for site in sites:
        if not np.isfinite(sums[f"{kinds[0]}:{site.key}"]).all():
            raise DataError(f"the states of tensor '{site.tensor}' are not finite on these data; check their scale.")
    if any(site.repeats and not sums[f"shape:{site.key}"][1] for site in sites):
        raise DataError(f"the input {MASK} is 0 everywhere, so that no token counts; give 1 for each token.")
    by_kind = {kind: {site.key: sums[f"{kind}:{site.key}"] for site in sites} for kind in kinds}
    count = {key: float(shape[1]) for key, shape in by_kind["shape"].items()}
    return Moments(count, by_kind["total"], by_kind.get("second", {}), by_kind["low"], by_kind["high"], source)


def _add(sums: dict[str, np.ndarray], results: Mapping[str, np.ndarray], factor: float) -> None:
    """Adds one batch; extremes are kept instead of added."""
    for name, result in results.items():
        value = result.astype(np.float64)
        kind = name.split(":", 1)[0]
        if kind in ("low", "high"):
            merge = np.minimum if kind == "low" else np.maximum
            sums[name] = merge(sums[name], value) if name in sums else value
        else:
            value *= factor
            sums[name] = np.add(sums[name], value, out=sums[name]) if name in sums else value


def _nodes(
    graph: Graph, prefix: str, sites: Sequence[Site], stride: int, second: bool
) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """The nodes that compute the moments of sites, and the constants that they need; names begin with the prefix."""
    from onnx import helper

    nodes: list[onnx.NodeProto] = []
    zero, end, axis, step = (f"{prefix}{part}" for part in ("zero", "end", "axis", "stride"))
    constants: dict[str, np.ndarray] = {axis: np.array([1]), zero: np.array([0])}
    constants |= {end: np.array([np.iinfo(np.int64).max]), step: np.array([stride])}
    opset = graph.opset()

    def node(op: str, inputs: list[str], output: str, **attrs: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], **attrs))
        return output

    def reduce(op: str, data: str, output: str) -> None:
        if opset >= (13 if op == "ReduceSum" else 18):
            node(op, [data, axis], output, keepdims=0)
        else:
            node(op, [data], output, axes=[1], keepdims=0)

    def strided(states: str) -> str:
        return node("Slice", [states, zero, end, axis, step], f"{states}.strided") if stride > 1 else states

    for site in sites:
        states = f"{prefix}states:{site.key}"
        made, needed = state_nodes(site, states, site.tensor)
        counted, more, wanted = shown_nodes(site, states)
        nodes += [*made, *more]
        constants |= {**needed, **wanted}
        whole = strided(states)
        shown = strided(counted) if site.repeats else whole
        if second:
            turned = node("Transpose", [shown], f"{prefix}turned:{site.key}", perm=[1, 0])
            node("MatMul", [shown, turned], f"{prefix}second:{site.key}")
        reduce("ReduceSum", shown, f"{prefix}total:{site.key}")
        reduce("ReduceMin", whole, f"{prefix}low:{site.key}")
        reduce("ReduceMax", whole, f"{prefix}high:{site.key}")
        node("Shape", [shown], f"{prefix}shape:{site.key}")
    return nodes, {name: array.astype(np.int64) for name, array in constants.items()}


def spread(moments: Moments, keep: Mapping[str, np.ndarray]) -> Moments:
    """Moments of a compact model in the numbering of the original, zero where features are gone.

    Args:
        moments: of the compact model.
        keep: (features,) bool for each site, features as in the original.
    """
    if all(mask.all() for mask in keep.values()):
        return moments

    def vector(key: str, array: np.ndarray) -> np.ndarray:
        out = np.zeros(len(keep[key]))
        out[keep[key]] = array
        return out

    def matrix(key: str, array: np.ndarray) -> np.ndarray:
        out = np.zeros((len(keep[key]),) * 2)
        out[np.ix_(keep[key], keep[key])] = array
        return out

    total, low, high = (
        {key: vector(key, array) for key, array in table.items()}
        for table in (moments.total, moments.low, moments.high)
    )
    second = {key: matrix(key, array) for key, array in moments.second.items()}
    return Moments(moments.count, total, second, low, high, moments.source)


def merge(parts: Sequence[Moments]) -> Moments:
    """The moments of all samples together, from several processes or machines.

    Raises:
        DataError: they are of different models.
    """
    first = parts[0]
    for part in parts[1:]:
        if {k: v.shape for k, v in part.total.items()} != {k: v.shape for k, v in first.total.items()}:
            raise DataError("these moments were taken at different tensors; merge only moments of one model.")

    def together(table: str, combine: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> dict[str, np.ndarray]:
        out = dict(getattr(first, table))
        for part in parts[1:]:
            out = {key: combine(value, getattr(part, table)[key]) for key, value in out.items()}
        return out

    count = {key: sum(part.count[key] for part in parts) for key in first.count}
    total, second = together("total", np.add), together("second", np.add)
    return Moments(count, total, second, together("low", np.minimum), together("high", np.maximum), first.source)
