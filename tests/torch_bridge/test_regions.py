"""Regions of images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from builders import Net
from onnxprune.torch_bridge import to_torch, untouched_parameters
from torch_bridge.parity import Case, array, assert_case, assert_parity, case, weight, whole

IMAGES = (2, 3, 9, 11)
ROIS = array(
    [0, 0, 8, 6], [2.5, 1.2, 9.7, 7.9], [-3, -2, 30, 4], [4, 5, 4.2, 5.1], [6, 6, 2, 3], [5, 5, 5, 5], [12, 11, 14, 13]
)
IMAGE = whole(0, 1, 1, 0, 1, 0, 1)


def align(opset: int = 16, **attrs: Any) -> Case:
    """A case of RoiAlign, with regions inside and outside of the image, tiny, empty, and turned around."""
    sizes = {"output_height": 3, "output_width": 2}
    return case("RoiAlign", IMAGES, ROIS, IMAGE, opset=opset, **{**sizes, **attrs})


def suppress(*more: Any, opset: int = 11, boxes: np.ndarray | None = None, **attrs: Any) -> Case:
    """A case of NonMaxSuppression for two images, two classes, and boxes of which many overlap."""
    random = np.random.default_rng(0)
    given = random.random((2, 12, 4), np.float32) if boxes is None else boxes
    scores = random.random((2, 2, 12), np.float32).round(1)
    return case("NonMaxSuppression", given, scores, *more, opset=opset, fed=(0, 1), **attrs)


CASES = [
    *(align(opset) for opset in (10, 16)),
    align(sampling_ratio=2, spatial_scale=0.5),
    align(coordinate_transformation_mode="output_half_pixel"),
    align(mode="max"),
    align(mode="max", sampling_ratio=2),
    align(10, mode="max", spatial_scale=0.7),
    case("RoiAlign", IMAGES, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), opset=16, fed=(1, 2)),
    *(
        case("MaxRoiPool", IMAGES, np.concatenate([IMAGE[:, None], ROIS], 1).astype(np.float32), **attrs)
        for attrs in ({"pooled_shape": [3, 2]}, {"pooled_shape": [2, 5], "spatial_scale": 0.5})
    ),
    suppress(whole(5), array(0.3), array(0.2)),
    suppress(whole(2), array(0.0), opset=10),
    suppress(np.array(20), np.array(0.5, np.float32), center_point_box=1),
    suppress(whole(20), array(0.4), array(2.0)),
    suppress(whole(20), None, array(0.5)),
    suppress(
        whole(20),
        array(0.0),
        boxes=np.repeat(array([[1, 1, 1, 3], [0, 0, 2, 2], [2, 2, 0, 0]]), 8, 0).reshape(2, 12, 4),
    ),
    suppress(),
]


@pytest.mark.parametrize("given", CASES, ids=str)
def test_equals_onnxruntime(given: Case) -> None:
    assert_case(given)


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_regions_teach_the_image_and_themselves(mode: str) -> None:
    net = Net(16)
    h, rois = net.conv(net.input(2, 3, 9, 11), 3, 4), net.op("Add", net.constant(ROIS), net.weight(4))
    y = net.op("RoiAlign", h, rois, net.constant(IMAGE), output_height=2, output_width=2, sampling_ratio=2, mode=mode)
    graph, feeds = net.output(y).graph(), {"x0": weight(*IMAGES)}
    assert untouched_parameters(assert_parity(graph, feeds), feeds) == []


def test_a_detector_learns_what_it_keeps() -> None:
    net = Net(17)
    boxes = net.op("Sigmoid", net.op("MatMul", net.input(1, 6, 5), net.weight(5, 4)))
    scores = net.op("Transpose", net.op("Sigmoid", net.op("MatMul", "x0", net.weight(5, 2))), perm=[0, 2, 1])
    kept = net.op("NonMaxSuppression", boxes, scores, net.ints(4), net.constant(array(0.3)))
    places = net.op("Gather", kept, net.ints(0, 2), axis=1)
    graph = net.output(net.op("GatherND", boxes, places), net.op("GatherND", scores, kept)).graph()
    feeds = {"x0": weight(1, 6, 5)}
    module = to_torch(graph, feeds)
    assert untouched_parameters(module, feeds) == []
    assert len(module(torch.from_numpy(feeds["x0"]))[0]) > 2
