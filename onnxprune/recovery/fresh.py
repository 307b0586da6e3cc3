"""A fresh graph from PyTorch's exporter, for those who want one instead of the graph the model came in.

Carried over are names, order and symbolic sizes of inputs and outputs, names of weights, metadata, producer's domain
and version, and doc strings. Nodes and intermediate tensors are the exporter's.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.data import load_data
from onnxprune.errors import BridgeError
from onnxprune.files import Results
from onnxprune.graph import Graph, from_proto
from onnxprune.records import take
from onnxprune.recovery.options import Arrays
from onnxprune.runtime import Session, first_line

if TYPE_CHECKING:
    import onnx
    from onnxscript import ir
    from torch import fx

OWN = "weights"
"""The submodule that holds the weights of a module while it is exported."""

OLDEST_OPSET = 18
"""PyTorch's exporter writes this opset or a newer one."""


def export_fresh(graph: Graph, path: Path, data: object, results: Results | None = None) -> Path:
    """Writes what `torch.onnx.export` makes of a model, once it is known to compute the same.

    Args:
        graph: the model.
        path: where to.
        data: samples to compare on.
        results: others that are written together with it.

    Raises:
        BridgeError: PyTorch cannot export the model, or the result computes something else.
    """
    import torch

    from onnxprune.torch_bridge import inputs_of, to_torch
    from onnxprune.torch_bridge.parity import check

    feeds = load_data(data, Session(graph.message(), device="cpu")).first(3).feeds
    module = to_torch(graph, feeds)
    axes = _symbolic(graph)
    auto = torch.export.Dim.DYNAMIC
    shapes = tuple({axis: auto for axis in axes[name]} for name in graph.inputs)
    for noisy in ("torch.onnx", "torch.fx"):  # which packages it can do without, and where code comes from
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # where it fails it prints the code
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _apart(module),
                tuple(inputs_of(graph.inputs, feeds)),
                dynamo=True,
                input_names=graph.inputs,
                output_names=graph.outputs,
                dynamic_shapes=shapes,
                opset_version=max(graph.opset(), OLDEST_OPSET),
                verbose=False,
            )
    except ImportError as error:
        raise BridgeError(f"--export torch needs onnxscript ({error}); pip install onnxscript.") from error
    except Exception as error:  # torch raises a dozen unrelated classes
        cause = error
        while isinstance(cause.__cause__, Exception):  # the outermost message is advice on the exporter
            cause = cause.__cause__
        raise BridgeError(f"torch.onnx.export fails: {first_line(cause)}; the graph without it is written.") from error
    assert program is not None
    _name(program.model.graph)
    fresh = from_proto(_dressed(program.model_proto, graph, axes))
    for batch in (feeds, _one(feeds)) if all(0 in dims for dims in axes.values()) else (feeds,):
        check(module, fresh, batch)
    return fresh.save(path, results)


def _apart(module: fx.GraphModule) -> fx.GraphModule:
    """The same module with its weights in a submodule.

    The exporter calls its own tensors val_0, val_1 and so on, and so may the weights of a graph be called that it wrote
    earlier: it stops where the two meet.
    """
    import torch
    from torch import fx

    from onnxprune.torch_bridge.base import SWITCHES

    root = torch.nn.Module()
    root.add_module(OWN, module)
    root.dropout = False  # type: ignore[assignment]
    calls = fx.Graph()
    calls.output(calls.graph_copy(module.graph, {}))
    for node in calls.nodes:
        if node.op == "get_attr" and node.target not in SWITCHES:
            node.target = f"{OWN}.{node.target}"
    return fx.GraphModule(root, calls).eval()


def _name(graph: ir.Graph) -> None:
    """Gives weights their own names back; a tensor of the exporter that is called the same gets another name."""
    weights = {name: value for name, value in graph.initializers.items() if name.startswith(f"{OWN}.")}
    own = {name.removeprefix(f"{OWN}.") for name in weights}
    made = [value for node in graph.all_nodes() for value in node.outputs]
    for value in [*made, *(value for name, value in graph.initializers.items() if name not in weights)]:
        while value.name in own:
            value.name += "_"
    for name, value in weights.items():
        value.name = name.removeprefix(f"{OWN}.")


def _one(feeds: Arrays) -> Arrays:
    """The first sample of a batch."""
    return {name: np.asarray(array, order="C") for name, array in take(feeds, slice(1)).items()}


def _symbolic(graph: Graph) -> dict[str, dict[int, str]]:
    """The axes of each input whose size is not stated, with their names."""
    found: dict[str, dict[int, str]] = {}
    for info in graph.source.graph.input:
        if info.name in graph.inputs:
            sizes = enumerate(info.type.tensor_type.shape.dim)
            found[info.name] = {axis: size.dim_param for axis, size in sizes if not size.HasField("dim_value")}
    return found


def _dressed(model: onnx.ModelProto, graph: Graph, axes: dict[str, dict[int, str]]) -> onnx.ModelProto:
    """The exporter's model with what it cannot know."""
    source = graph.source
    names: dict[str, str] = {}
    for info in model.graph.input:
        for axis, name in axes[info.name].items():
            if name:
                names[info.type.tensor_type.shape.dim[axis].dim_param] = name
    tables: list[Iterable[onnx.ValueInfoProto]] = [model.graph.input, model.graph.output, model.graph.value_info]
    for info in (info for table in tables for info in table):
        for size in info.type.tensor_type.shape.dim:
            if size.dim_param in names:
                size.dim_param = names[size.dim_param]
    for field in ("domain", "model_version", "doc_string"):
        setattr(model, field, getattr(source, field))
    del model.metadata_props[:]
    model.metadata_props.extend(source.metadata_props)
    model.graph.name, model.graph.doc_string = source.graph.name, source.graph.doc_string
    return model
