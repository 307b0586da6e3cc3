"""The law: what surgery removes is what a mask hides. Shared by all rule tests and model tests."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxprune.graph import Graph
from onnxprune.grouping import find_units
from onnxprune.masking import mask
from onnxprune.records import Plan
from onnxprune.runtime import Session
from onnxprune.surgery import remove
from onnxprune.units import Units
from outsider import check_constants

EXACT = 1e-9
"""Tolerance in float64, relative to the largest output."""


def sizes(units: Units) -> list[int]:
    """The sizes of the groups that are pruned by default, sorted."""
    return sorted(group.size for group in units.groups.values() if not group.instead_of)


@st.composite
def keeps(draw: st.DrawFn, units: Units) -> dict[str, np.ndarray]:
    """Random keep-masks that remove something from at least one group and never all of one."""
    keep = {}
    for name, group in units.groups.items():
        kept = draw(st.sets(st.integers(0, group.size - 1), min_size=1, max_size=group.size))
        keep[name] = np.isin(np.arange(group.size), sorted(kept))
    for places in units.vital():
        if not any(keep[name][unit] for name, unit in places):
            name, unit = places[0]
            keep[name][unit] = True
    if all(mask.all() for mask in keep.values()):
        first = next(iter(keep))
        keep[first] = np.arange(len(keep[first])) > 0
    return keep


def check_law(
    graph: Graph, draw: st.DataObject, expected: list[int], *, single: bool = False, residual: bool = False
) -> None:
    """Finds the units, removes some and compares with the mask.

    Args:
        graph: a float32 model.
        draw: where the removed units come from.
        expected: sizes of the groups that must be found.
        single: whether to compare in float32 on ONNX Runtime instead of in float64 on the reference evaluator.
        residual: whether groups that are not exact are wanted too.
    """
    units = find_units(graph, residual=residual)
    assert sizes(units) == sorted(expected), {name: group.size for name, group in units.groups.items()}
    if not units.groups:
        return  # what must be kept was kept; there is nothing to remove
    plan = units.plan(draw.draw(keeps(units)))
    (compare_single if single else compare)(units, plan)


def compare(units: Units, plan: Plan) -> None:
    """Asserts that the compact model equals the masked one in float64 on the reference evaluator."""
    compact = removed(units, plan)
    feeds = {n: x.astype(np.float64) if x.dtype == np.float32 else x for n, x in random_feeds(units).items()}
    with np.errstate(all="ignore"):  # zeros behind a mask may well be divided by before the next mask
        masked, small = (
            ReferenceEvaluator(as_double(model)).run(None, feeds) for model in (mask(units, plan), compact.proto())
        )
    equal(masked, small, EXACT)


def removed(units: Units, plan: Plan) -> Graph:
    """The compact model, smaller, all of whose constants follow from the original and the plan."""
    compact = remove(units.graph, plan)
    assert compact.nbytes < units.graph.nbytes
    check_constants(units.graph.proto(), compact.proto(), plan.to_json())
    return compact


def compare_single(units: Units, plan: Plan) -> None:
    """Asserts the same in float32 on ONNX Runtime, which also knows its own operators."""
    compact = removed(units, plan)
    models = mask(units, plan).SerializeToString(), compact.message()
    masked, small = (Session(model, device="cpu").run(random_feeds(units), units.graph.outputs) for model in models)
    equal(masked, small, 1e-4)


def equal(masked: list[np.ndarray], small: list[np.ndarray], tolerance: float) -> None:
    """Asserts that outputs are finite and equal, relative to the largest value."""
    for whole, part in zip(masked, small, strict=True):
        assert whole.shape == part.shape
        assert np.isfinite(whole).all()
        np.testing.assert_allclose(part, whole, rtol=0, atol=tolerance * max(1, np.abs(whole).max(initial=0)))


def random_feeds(units: Units) -> dict[str, np.ndarray]:
    """Normal numbers, or zeros for integers, of the shapes that the analysis saw."""
    generator = np.random.default_rng(1)
    feeds = {}
    for info in units.graph.source.graph.input:
        if info.name in units.graph.inputs:
            shape = [axis.size for axis in units.structure.axes[info.name]]
            floating = info.type.tensor_type.elem_type == TensorProto.FLOAT
            feeds[info.name] = generator.standard_normal(shape).astype("f") if floating else np.zeros(shape, np.int64)
    return feeds


def as_double(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every float32 replaced by float64."""
    out = onnx.ModelProto()
    out.CopyFrom(model)

    def widen(tensor: onnx.TensorProto) -> None:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))

    for tensor in out.graph.initializer:
        widen(tensor)
    for node in out.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                widen(attribute.t)
            elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
    for info in (*out.graph.input, *out.graph.output, *out.graph.value_info):
        if info.type.tensor_type.elem_type == TensorProto.FLOAT:
            info.type.tensor_type.elem_type = TensorProto.DOUBLE
    return out
