"""ONNX's own cases of single nodes: every operator at every opset, with what it gives."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from onnxprune.errors import BridgeError, OnnxPruneError
from onnxprune.graph import from_proto
from onnxprune.grouping import find_units
from onnxprune.torch_bridge import inputs_of, to_torch
from onnxprune.torch_bridge.arrays import array_of

DEVICE = "cpu"
"""Where PyTorch computes them; see second_device.py."""

AS_ONNX_RUNTIME = {
    "test_maxunpool_export_with_output_shape",
    "test_resize_downsample_scales_linear_align_corners",
    "test_resize_downsample_scales_cubic_align_corners",
}
"""Where ONNX Runtime gives something else, and the bridge what ONNX Runtime gives."""

UNSIGNED = "not implemented for 'UInt"
"""What PyTorch says of arithmetic of whole numbers without a sign that have more than eight bits."""


@pytest.fixture(scope="module")
def cases() -> dict[str, Any]:
    """By name: the model, and inputs and outputs of a run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numbers without end, on purpose
        from onnx.backend.test.case.node import collect_testcases

        found = {case.name: case for case in collect_testcases(None)}
    return {name: case for name, case in found.items() if "training_dropout" not in name}  # random numbers


def arrays(values: Any) -> list[Any]:
    """Arrays, where a case has protobufs of them; sequences and what is left out stay what they are."""
    return [onnx.numpy_helper.to_array(v) if isinstance(v, onnx.TensorProto) else v for v in values]


def test_every_case_is_understood_or_refused_in_words(cases: dict[str, Any]) -> None:
    """No rule says of axes of different sizes that they are one, and nothing else fails either."""
    understood = 0
    for case in cases.values():
        feeds = dict(zip((info.name for info in case.model.graph.input), arrays(case.data_sets[0][0]), strict=False))
        try:
            find_units(from_proto(case.model), feeds)
            understood += 1
        except OnnxPruneError:  # most of them need a newer ONNX Runtime
            continue
    assert understood > 1300


def outcome(case: Any) -> str:
    """What comes of a case in PyTorch: "equal", "refused", "unsigned", or how it differs."""
    graph = from_proto(case.model)
    given, wanted = map(arrays, case.data_sets[0])
    if not all(isinstance(value, np.ndarray | np.generic) for value in [*given, *wanted]):
        return "sequence"
    feeds = dict(zip((info.name for info in case.model.graph.input), given, strict=False))
    try:
        module = to_torch(graph, check=False).to(DEVICE)
        with torch.no_grad():
            found = module(*inputs_of(graph.inputs, feeds, DEVICE))
        assert all(output.device.type == DEVICE for output in found), case.name
        outputs = [array_of(output) for output in found]
    except BridgeError:
        return "refused"
    except NotImplementedError as error:
        return "unsigned" if UNSIGNED in str(error) else str(error)
    for ours, theirs in zip(outputs, map(np.asarray, wanted), strict=True):
        few = "float8" in theirs.dtype.name or theirs.dtype.name == "bfloat16"  # which `array_of` gives as float32
        right = theirs.astype(np.float32) if few else theirs
        if (ours.dtype, ours.shape) != (right.dtype, right.shape):
            return f"{ours.dtype} {ours.shape} instead of {right.dtype} {right.shape}"
        if right.dtype.kind not in "fc":
            if not (ours == right).all():
                return "other values"
        elif not np.allclose(ours, right, rtol=2**-6 if few else max(case.rtol, 1e-3), atol=1e-4, equal_nan=True):
            return f"differs by {np.abs(ours - right).max()}"
    return "equal"


def test_every_case_that_the_bridge_takes_gives_what_onnx_says(cases: dict[str, Any]) -> None:
    found = {name: outcome(case) for name, case in cases.items()}
    odd = {name: said for name, said in found.items() if said not in ("equal", "refused", "sequence", "unsigned")}
    assert odd.keys() <= AS_ONNX_RUNTIME, odd
    unsigned = {name for name, said in found.items() if said == "unsigned"}
    assert all("_uint" in name for name in unsigned - {"test_bitwise_not_3d"}), unsigned
    assert Counter(found.values())["equal"] > 1400
