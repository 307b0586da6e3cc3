"""Models that fix how many samples a run has, often one: they are trained with as many as a step takes.

A normalization over the batch makes nothing of a sample or two, and many small runs are slow. Where such a model
computes the same for several batches at once, which is tried before it is believed, it is trained so; its weights go
back into the graph as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.errors import ModelError
from onnxprune.graph import Graph
from onnxprune.recovery.samples import Samples
from onnxprune.runtime import Session

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

TRIED = 3
"""Batches that an opened model computes at once to show that it can."""

TOLERANCE = 1e-4
"""Largest difference between them and the same batches one by one, relative to the largest output."""


def opened(graph: Graph, samples: Samples) -> Graph | None:
    """A model that fixes its batch, for any number of samples; None where it computes something else then.

    Sizes that reshapes have as constants begin with the samples, alone or merged with what follows, so there the first
    one is left to be found out. Constants that are joined to one sample, such as a class token, are repeated. Where
    that is not enough and no axis is open, the sizes that reshapes compute become constants as well.

    Args:
        graph: the model.
        samples: in batches of `samples.fixed`.
    """
    apart = Session(graph.message(), device="cpu")
    shapes = {name: shape for name, _, shape in apart.inputs if shape}
    if any(shape[0] != samples.fixed for shape in shapes.values()) or len(samples) < 2 * samples.fixed:
        return None
    still = all(isinstance(size, int) for shape in shapes.values() for size in shape)
    for free in _candidates(_repeated(graph, samples) if samples.fixed == 1 else graph, samples, still=still):
        loose = free.with_shapes({name: {0: None} for name in (*shapes, *graph.outputs)})
        loose.source.graph.ClearField("value_info")
        if _same(apart, Session(loose.message(), device="cpu"), samples):
            return loose
    return None


def _candidates(graph: Graph, samples: Samples, *, still: bool) -> Iterator[Graph]:
    """The model with its reshapes left open: those of constant sizes, and then all, if no other axis may change."""
    reshapes = _reshapes(graph)
    names = {node.inputs[1].name for node in reshapes} & graph.constants.keys()
    values = {name: graph.constants[name] for name in names if graph.constants[name].size}
    yield graph.with_constants({name: _loose(target, samples.fixed) for name, target in values.items()})
    if still and reshapes:
        yield _with_known_sizes(graph, samples)


def _reshapes(graph: Graph) -> list[gs.Node]:
    """Those that have their target as an input."""
    return [node for node in graph.nodes if node.op == "Reshape" and len(node.inputs) > 1]


def _loose(target: np.ndarray, fixed: int) -> np.ndarray:
    """The target of a reshape, its first size left open; as that of its input where another one is open already."""
    loose = target.copy()
    if target[0] > 0 and -1 not in target:
        loose[0] = -1
    elif target[0] == fixed:
        loose[0] = 0
    return loose


def _repeated(graph: Graph, samples: Samples) -> Graph:
    """The model, with what is the same for all inputs and a Concat joins to one sample repeated for each sample."""
    import onnx_graphsurgeon as gs

    out = graph.copy()
    same, found = set(out.constants), []
    for node in out.nodes:
        if node.inputs and all(tensor.name in same for tensor in node.inputs):
            same |= {tensor.name for tensor in node.outputs}
        data = [tensor for tensor in node.inputs if tensor.name not in same]
        if node.op == "Concat" and node.attrs["axis"] and data:
            found += [(node, i, data[0]) for i, tensor in enumerate(node.inputs) if tensor.name in same]
    if not found:
        return graph
    names = list(dict.fromkeys(data.name for _, _, data in found))
    known = Session(graph.message(outputs=names), device="cpu").run(samples.take(np.arange(1))[0], names)
    ranks = {name: array.ndim for name, array in zip(names, known, strict=True)}
    added: dict[int, list[gs.Node]] = {}
    for node, i, data in found:
        name = graph.fresh(f"{node.outputs[0].name}.input.{i}")
        first = (np.arange(ranks[data.name]) == 0).astype(np.int64)
        out.constants |= {f"{name}.first": first, f"{name}.others": 1 - first}
        first, others = (gs.Constant(key, out.constants[key]) for key in (f"{name}.first", f"{name}.others"))
        sizes, count, target, whole = (gs.Variable(f"{name}.{key}") for key in ("sizes", "count", "target", "all"))
        added.setdefault(id(node), []).extend(
            [
                gs.Node("Shape", f"{name}.shape", inputs=[data], outputs=[sizes]),
                gs.Node("Mul", f"{name}.mul", inputs=[sizes, first], outputs=[count]),
                gs.Node("Add", f"{name}.add", inputs=[count, others], outputs=[target]),
                gs.Node("Expand", f"{name}.expand", inputs=[node.inputs[i], target], outputs=[whole]),
            ]
        )
        node.inputs[i] = whole
    out.gs.nodes = [one for node in out.nodes for one in (*added.get(id(node), ()), node)]
    return out


def _with_known_sizes(graph: Graph, samples: Samples) -> Graph:
    """The model, each reshape with the sizes that it has with one batch, the first one left to be found out."""
    import onnx_graphsurgeon as gs

    out = graph.copy()
    nodes = _reshapes(out)
    names = [node.outputs[0].name for node in nodes]
    made = Session(graph.message(outputs=names), device="cpu").run(samples.take(np.arange(samples.fixed))[0], names)
    for node, name, array in zip(nodes, names, made, strict=True):
        if array.size and array.ndim:
            sizes = graph.fresh(f"{name}.sizes")
            out.constants[sizes] = np.array([-1, *array.shape[1:]])
            node.inputs[1] = gs.Constant(sizes, out.constants[sizes])
    return out


def _same(one: Session, many: Session, samples: Samples) -> bool:
    """Whether several batches at once give what they give one by one."""
    rows = np.arange(min(TRIED, len(samples) // samples.fixed) * samples.fixed)
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
