"""Half precision: what of it runtimes and proofs need in float32.

Widening is exact: every float16 and bfloat16 number is a float32 number. So the law of a half-precision model is proved
in float32, where its tolerance means something, instead of among roundings of a thousandth or a hundredth. And since
ONNX Runtime has no bfloat16 kernels on the CPU, models with bfloat16 run in float32 for everything that onnxprune
computes. Files keep their types.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

FLOAT, HALF, BRAIN = 1, 10, 16
"""ONNX's numbers for float32, float16 and bfloat16."""

TYPED = frozenset({"to", "dtype", "output_dtype", "stash_type", "softmax_precision"})
"""Integer attributes that name an element type."""


def is_floating(dtype: np.dtype[np.generic]) -> bool:
    """Whether numbers of a type are floating-point; bfloat16 is none of numpy's own kinds."""
    return dtype.kind == "f" or dtype.name == "bfloat16"


def is_half(dtype: np.dtype[np.generic]) -> bool:
    """Whether a type is float16 or bfloat16."""
    return dtype.name in ("float16", "bfloat16")


def step(dtypes: Iterable[np.dtype[np.generic]]) -> float:
    """The relative distance of neighbouring numbers in the coarsest of floating-point types; 0 where there is none."""
    steps = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
    return max((steps.get(dtype.name, 0.0) for dtype in dtypes), default=0.0)


def mentions(model: onnx.ModelProto, kind: int) -> bool:
    """Whether a model has anything of an element type."""
    return any(_kind(thing) == kind for thing in _typed(model))


def widen(model: onnx.ModelProto, kinds: Iterable[int] = (HALF, BRAIN)) -> None:
    """Makes everything of some element types float32, in place; references to shared weights are left to the caller."""
    from onnx import AttributeProto, TensorProto, numpy_helper

    wanted = set(kinds)
    for thing in _typed(model):
        if _kind(thing) not in wanted:
            continue
        if isinstance(thing, TensorProto):
            if thing.data_location == TensorProto.EXTERNAL:
                thing.data_type = FLOAT
            else:
                array = numpy_helper.to_array(thing).astype(np.float32)
                thing.CopyFrom(numpy_helper.from_array(array, thing.name))
        elif isinstance(thing, AttributeProto):
            thing.i = FLOAT
        else:
            thing.elem_type = FLOAT


def _kind(thing: onnx.TensorProto | onnx.AttributeProto | onnx.TypeProto.Tensor) -> int:
    return int(getattr(thing, "data_type", 0) or getattr(thing, "elem_type", 0) or getattr(thing, "i", 0))


def _typed(model: onnx.ModelProto) -> Iterator[onnx.TensorProto | onnx.AttributeProto | onnx.TypeProto.Tensor]:
    """Everything in a model that has an element type."""
    yield from _typed_in(model.graph)
    for function in model.functions:
        yield from _typed_nodes(function.node)


def _typed_in(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto | onnx.AttributeProto | onnx.TypeProto.Tensor]:
    yield from graph.initializer
    for info in (*graph.input, *graph.output, *graph.value_info):
        if info.type.HasField("tensor_type"):
            yield info.type.tensor_type
        elif info.type.HasField("sequence_type"):
            yield info.type.sequence_type.elem_type.tensor_type
    yield from _typed_nodes(graph.node)


def _typed_nodes(
    nodes: Iterable[onnx.NodeProto],
) -> Iterator[onnx.TensorProto | onnx.AttributeProto | onnx.TypeProto.Tensor]:
    from onnx import AttributeProto

    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.INT and attribute.name in TYPED:
                yield attribute
            elif attribute.type == AttributeProto.TENSOR:
                yield attribute.t
            elif attribute.type == AttributeProto.GRAPH:
                yield from _typed_in(attribute.g)
