"""Models that fix how many samples a run has, often one: they are trained with as many as a step takes.

A normalization over the batch makes nothing of a sample or two, and many small runs are slow. Where such a model
computes the same for several batches at once, which is tried before it is believed, it is trained so; its weights go
back into the graph as it was.
"""

from __future__ import annotations

import numpy as np

from onnxprune.errors import ModelError
from onnxprune.graph import Graph
from onnxprune.recovery.samples import Samples
from onnxprune.runtime import Session

TRIED = 3
"""Batches that an opened model computes at once to show that it can."""

TOLERANCE = 1e-4
"""Largest difference between them and the same batches one by one, relative to the largest output."""


def opened(graph: Graph, samples: Samples) -> Graph | None:
    """A model that fixes its batch, for any number of samples; None where it computes something else then.

    Sizes that reshapes have as constants begin with the samples, alone or merged with what follows, so there the first
    one is left to be found out.

    Args:
        graph: the model.
        samples: in batches of `samples.fixed`.
    """
    shapes = {name: shape for name, _, shape in Session(graph.message(), device="cpu").inputs if shape}
    if any(shape[0] != samples.fixed for shape in shapes.values()) or len(samples) < 2 * samples.fixed:
        return None
    values = {}
    for node in graph.nodes:
        name = node.inputs[1].name if node.op == "Reshape" and len(node.inputs) > 1 else ""
        if name in graph.constants and graph.constants[name].size:
            values[name] = _loose(graph.constants[name], samples.fixed)
    loose = graph.with_constants(values).with_shapes({name: {0: None} for name in (*shapes, *graph.outputs)})
    loose.source.graph.ClearField("value_info")
    return loose if _same(graph, loose, samples) else None


def _loose(target: np.ndarray, fixed: int) -> np.ndarray:
    """The target of a reshape, its first size left open; as that of its input where another one is open already."""
    loose = target.copy()
    if target[0] > 0 and -1 not in target:
        loose[0] = -1
    elif target[0] == fixed:
        loose[0] = 0
    return loose


def _same(graph: Graph, loose: Graph, samples: Samples) -> bool:
    """Whether several batches at once give what they give one by one."""
    rows = np.arange(min(TRIED, len(samples) // samples.fixed) * samples.fixed)
    one, many = (Session(model.message(), device="cpu") for model in (graph, loose))
    try:
        at_once = many.run(samples.take(rows)[0])
    except ModelError:  # a size that a reshape or a constant fixes
        return False
    parts = [one.run(samples.take(part)[0]) for part in np.split(rows, len(rows) // samples.fixed)]
    for whole, *apart in zip(at_once, *parts, strict=True):
        if not all(array.ndim for array in apart) or whole.shape != np.concatenate(apart).shape:
            return False
        wide = np.concatenate(apart).astype(np.float64)
        if not np.allclose(whole, wide, rtol=0, atol=TOLERANCE * max(1e-12, float(abs(wide).max(initial=0)))):
            return False
    return True


def closed(graph: Graph, trained: Graph) -> Graph:
    """The model as it was, with the weights of the opened one."""
    floating = {name: array for name, array in trained.constants.items() if array.dtype.kind not in "iub"}
    return graph.with_constants({name: array for name, array in floating.items() if name in graph.constants})
