"""Closed-form refit: the weights that read pruned units make up for the missing ones. No labels, no gradients.

A reader with rows W saw the states x of the original model and now sees the states y of the pruned one. The rows V that
minimise `E |W^T x - V^T y|^2 + ridge |V - W_kept|^2` are `(E[y y^T] + ridge)^-1 (E[y x^T] W + ridge W_kept)`. For a
convolution that mixes channels tap by tap. Readers are refit in the order of the graph, each from the states that the
readers before it leave, against the states of the original model, so that errors do not pile up over depth.

Sources: GRAIL, arXiv 2602.23795; the optimal brain surgeon family of ZipLM, OSSCAR and SlimGPT. The paper of the
spectral criterion has no such step. It can hurt where more than about 60 % of the units of a layer are gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from scipy import linalg

from onnxprune.graph import Graph
from onnxprune.padding import shown_nodes
from onnxprune.precision import is_floating
from onnxprune.records import Plan, Site, Weight
from onnxprune.runtime import Feeds, Session
from onnxprune.sharing import captured_by
from onnxprune.states import by_feature, kept_features, state_nodes
from onnxprune.structure import label
from onnxprune.units import Units
from onnxprune.writing import Message

if TYPE_CHECKING:
    import onnx

RIDGE = 1e-3
"""Relative to the mean of the diagonal of the second moments."""

PREFIX = "onnxprune.original:"
"""In front of the names of the original's tensors, beside those of the compact model."""

STATES = "onnxprune.refit:"
"""In front of what is computed from both."""

Batches = Callable[[], Iterable[tuple[Feeds, int]]]
"""Gives the calibration batches anew each time it is called."""

Progress = Callable[[int, int], None]
"""Called with readers done and readers in all."""


def refit(
    units: Units,
    plan: Plan,
    compact: Graph,
    batches: Batches,
    *,
    device: str = "auto",
    progress: Progress | None = None,
) -> tuple[Graph, list[str]]:
    """Refits every reader of pruned units.

    Args:
        units: the original model.
        plan: what was removed.
        compact: the model without it.
        batches: calibration samples; padding of the last batch counts as samples here, which only weighs them.
        device: where to run.
        progress: called after each reader.

    Returns:
        The refit model, of the same shapes, and the nodes that were refit.
    """
    readers = _readers(units, plan)
    for i, reader in enumerate(readers):
        gram, cross = _moments(units, plan, compact, reader.site, batches, device)
        compact = compact.with_constants({reader.tensor: _solved(units, plan, compact, reader, gram, cross)})
        if progress:
            progress(i + 1, len(readers))
    return compact, [reader.node for reader in readers]


def _readers(units: Units, plan: Plan) -> list[Weight]:
    """The readers that lost something and whose weight is a constant of its own, in the order of the graph.

    Not one that reads the results of its own node, as a recurrent layer does: they would move with it.
    """
    found: dict[tuple[str, int], Weight] = {}
    uses: dict[str, set[str]] = {}
    results = {label(node): {tensor.name for tensor in node.outputs} for node in units.graph.nodes}
    takes = {label(node): {tensor.name for tensor in node.inputs} for node in units.graph.nodes}
    for group in units.groups.values():
        for reader in group.readers:
            uses.setdefault(reader.tensor, set()).add(reader.node)
            itself = reader.site.tensor in results[reader.node]
            if not itself and not kept_features(reader.site, plan).all():
                found[reader.tensor, reader.axis] = reader
    order = {label(node): i for i, node in enumerate(units.graph.nodes)}
    constants = units.graph.constants
    plain = [r for r in found.values() if r.tensor in constants and is_floating(constants[r.tensor].dtype)]
    own = [r for r in plain if len(uses[r.tensor]) == 1 and r.tensor in takes[r.node]]  # not one that data pick
    return sorted((reader for reader in own if _parts(reader)), key=lambda reader: order[reader.node])


def _parts(reader: Weight) -> int:
    """Into how many parts a reader cuts its states, each read by outputs of its own: the groups of a convolution.

    0 where the weight lies in a way that is not known, as in a grouped transposed convolution.
    """
    site = reader.site
    parts, rest = divmod(site.outer * site.features * site.inner, len(reader.unit_of))
    known = parts == 1 or (reader.op == "Conv" and reader.axis == 1)
    return parts if known and not rest else 0


def _moments(
    units: Units, plan: Plan, compact: Graph, site: Site, batches: Batches, device: str
) -> tuple[np.ndarray, np.ndarray]:
    """E[y y^T] (kept, kept) and E[y x^T] (kept, features), y of the compact model, x of the original."""
    kept = np.flatnonzero(kept_features(site, plan))
    session = Session(_side_by_side(units.graph, compact, site, len(kept)), device=device)
    gram, cross, count = np.zeros((len(kept),) * 2), np.zeros((len(kept), site.features)), 0.0
    for feeds, _ in batches():
        both, mixed, shape = session.run(feeds)
        gram += both.astype(np.float64)
        cross += mixed.astype(np.float64)
        count += float(shape[1])
    return gram / count, cross / count


def _side_by_side(original: Graph, compact: Graph, site: Site, kept: int) -> bytes:
    """One model of both, up to a site, that gives its moments: states are (features, samples) there."""
    from onnx import ModelProto, compose, helper, numpy_helper

    prefix, own = compact.fresh(PREFIX), original.fresh(compact.fresh(STATES))
    model, shared = compact.parts()
    whole, others = original.parts()
    other: ModelProto = compose.add_prefix(whole, prefix, rename_inputs=False)
    shared |= {prefix + name: array for name, array in others.items()}
    model.graph.node.extend(other.graph.node)
    model.graph.initializer.extend(other.graph.initializer)
    del model.graph.output[:]
    model.graph.ClearField("value_info")
    states: dict[str, str] = {}
    for name, features in (("", kept), (prefix, site.features)):
        tensor = site.tensor if site.tensor in original.inputs else name + site.tensor
        base = f"{own}{name}"
        nodes, constants = state_nodes(replace(site, features=features), f"{base}states", tensor)
        states[name], more, needed = shown_nodes(site, f"{base}states")
        nodes += [*more, helper.make_node("Transpose", [states[name]], [f"{base}turned"], perm=[1, 0])]
        model.graph.node.extend(nodes)
        values = {**constants, **needed}
        model.graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in values.items())
    names = [f"{own}{part}" for part in ("gram", "cross", "shape")]
    model.graph.node.extend(
        [
            helper.make_node("MatMul", [states[""], f"{own}turned"], names[:1]),
            helper.make_node("MatMul", [states[""], f"{own}{prefix}turned"], names[1:2]),
            helper.make_node("Shape", [states[""]], names[2:]),
        ]
    )
    for name in names:
        model.graph.output.add(name=name)
    _drop_unneeded(model)
    return Message.of(model, shared)


def _drop_unneeded(model: onnx.ModelProto) -> None:
    """Removes the nodes that no output depends on."""
    needed = {output.name for output in model.graph.output}
    for i in range(len(model.graph.node) - 1, -1, -1):
        node = model.graph.node[i]
        if needed.isdisjoint(node.output):
            del model.graph.node[i]
        else:
            needed.update(node.input, captured_by(node))


def _solved(
    units: Units, plan: Plan, compact: Graph, reader: Weight, gram: np.ndarray, cross: np.ndarray
) -> np.ndarray:
    """The refit weight, in the shape that it has in the compact model."""
    old = compact.constants[reader.tensor]
    target = _selected(units.graph.constants[reader.tensor], plan, reader)
    features = np.flatnonzero(kept_features(reader.site, plan))
    width = reader.site.features // _parts(reader)
    parts = sorted(set(features // width))
    weights = []
    for part, before, now in zip(parts, np.split(target, len(parts)), np.split(old, len(parts)), strict=True):
        here = np.flatnonzero(features // width == part)  # of the kept features, those that this part reads
        whole = np.arange(part * width, (part + 1) * width)
        weights.append(_least_squares(gram[np.ix_(here, here)], cross[np.ix_(here, whole)], before, now, reader))
    return np.ascontiguousarray(np.concatenate(weights)).astype(old.dtype)


def _least_squares(
    gram: np.ndarray, cross: np.ndarray, target: np.ndarray, now: np.ndarray, reader: Weight
) -> np.ndarray:
    """The ridge solution for one weight, or for one group of it: in the shape of `now`."""
    rows, current = (_as_rows(weight, reader) for weight in (target, now))
    ridge = RIDGE * max(float(np.trace(gram)) / len(gram), 1e-300)
    new = linalg.solve(gram + ridge * np.eye(len(gram)), cross @ rows + ridge * current, assume_a="pos")
    moved = np.moveaxis(now, reader.axis, 0).shape
    apart = new.reshape(len(gram), reader.site.outer, reader.site.inner, *moved[1:])
    return np.moveaxis(np.swapaxes(apart, 0, 1).reshape(moved), 0, reader.axis)


def _selected(weight: np.ndarray, plan: Plan, reader: Weight) -> np.ndarray:
    """The original weight without the outputs that are gone, its inputs whole."""
    for axis, kept in plan.initializers.get(reader.tensor, {}).items():
        if axis != reader.axis:
            weight = np.take(weight, kept, axis)
    return weight


def _as_rows(weight: np.ndarray, reader: Weight) -> np.ndarray:
    """A weight as (features, positions of a feature x everything else), in float64."""
    arranged = by_feature(np.moveaxis(weight, reader.axis, 0).astype(np.float64), reader.site)
    return arranged.reshape(len(arranged), -1)
