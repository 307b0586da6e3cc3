"""Resize and Upsample in every mode."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from onnxprune.torch_bridge import missing_operators, to_torch
from onnxprune.torch_bridge.interpolation import COORDINATES, ROUNDINGS
from torch_bridge.parity import Case, array, assert_case, case, weight, whole

IMAGE = (1, 2, 5, 4)
UP, DOWN, ODD = array(1, 1, 2, 3), array(1, 1, 0.7, 0.5), array(1, 1, 1.3, 2.7)
SIZES = whole(1, 2, 8, 3)
PLAIN = tuple(name for name in COORDINATES if name != "tf_crop_and_resize")
HALF_PIXELS = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")


def resize(scales: np.ndarray | None, sizes: np.ndarray | None = None, opset: int = 19, **attrs: object) -> Case:
    """A case without a region of interest."""
    return case("Resize", IMAGE, None, scales, *([] if sizes is None else [sizes]), opset=opset, **attrs)


def named(name: str, **attrs: object) -> dict[str, object]:
    """Attributes with a coordinate transformation."""
    return {"coordinate_transformation_mode": name, **attrs}


CASES = [
    *(
        resize(
            scales, mode="nearest", opset=11 if name == "tf_half_pixel_for_nn" else 19, **named(name, nearest_mode=r)
        )
        for name, r, scales in itertools.product(PLAIN, ROUNDINGS, (UP, DOWN, ODD))
        if name != "tf_half_pixel_for_nn"
    ),
    *(
        resize(scales, mode=mode, **named(name))
        for name, mode, scales in itertools.product(HALF_PIXELS, ("linear", "cubic"), (UP, DOWN, ODD))
    ),
    *(resize(None, SIZES, mode=mode, **named(n)) for n in HALF_PIXELS for mode in ("nearest", "linear", "cubic")),
    *(resize(s, mode=mode, antialias=1) for s in (UP, DOWN, ODD) for mode in ("linear", "cubic")),
    *(resize(s, mode="cubic", exclude_outside=1, cubic_coeff_a=-0.5) for s in (UP, DOWN)),
    resize(DOWN, mode="cubic", exclude_outside=1, antialias=1),
    resize(None, whole(7, 6), opset=18, axes=[2, 3]),
    resize(array(2, 0.5), opset=18, axes=[-1, -2], mode="linear"),
    *(
        resize(None, whole(7, 9), opset=18, axes=[2, 3], keep_aspect_ratio_policy=policy)
        for policy in ("stretch", "not_larger", "not_smaller")
    ),
    *(
        case(
            "Resize", IMAGE, array(0, 0, 0.2, 0.1, 1, 1, 1.3, 0.8), None, SIZES, opset=13, mode=mode, **named(crop, **v)
        )
        for crop in ("tf_crop_and_resize",)
        for mode, v in (("nearest", {}), ("linear", {"extrapolation_value": 2.5}))
    ),
    case("Resize", IMAGE, array(), UP, opset=11, mode="linear"),
    case("Resize", IMAGE, array(), array(), SIZES, opset=11, fixed=True),
    case("Resize", IMAGE, array(), UP, opset=11, **named("tf_half_pixel_for_nn")),
    case("Resize", (2, 2, 7), None, array(1, 1, 1.5), mode="linear"),
    case("Resize", (1, 2, 3, 4, 3), None, array(1, 1, 2, 2, 2), mode="linear"),
    *(case("Resize", IMAGE, scales, opset=10, mode=mode) for scales in (UP, DOWN) for mode in ("nearest", "linear")),
    *(
        case("GridSample", IMAGE, weight(1, 3, 4, 2), mode=mode, padding_mode=padding, align_corners=corners)
        for mode, padding, corners in itertools.product(
            ("linear", "cubic", "nearest"), ("zeros", "border", "reflection"), (0, 1)
        )
    ),
    case("GridSample", IMAGE, weight(1, 3, 4, 2), opset=16, mode="bilinear"),
    case("GridSample", (1, 2, 3, 4, 3), weight(1, 2, 2, 3, 3), mode="linear"),
    *(case("AffineGrid", weight(2, 2, 3), whole(2, 5, 3, 4), fed=(0,), align_corners=c) for c in (0, 1)),
    case("AffineGrid", weight(1, 3, 4), whole(1, 2, 2, 3, 4), fed=(0,)),
    *(case("Upsample", IMAGE, UP, opset=9, mode=mode) for mode in ("nearest", "linear")),
    *(case("Upsample", IMAGE, opset=7, mode=mode, scales=[1.0, 1.0, 2.0, 3.0]) for mode in ("nearest", "linear")),
]


@pytest.mark.parametrize("given", CASES, ids=str)
def test_equals_onnxruntime(given: Case) -> None:
    assert_case(given)


def test_a_mode_that_onnx_lacks_is_missing() -> None:
    graph, _ = case("Resize", IMAGE, None, UP, mode="lanczos").model()
    assert missing_operators(graph) == {"Resize with mode lanczos": ["resize0_node"]}


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_gradients_reach_the_data(mode: str) -> None:
    graph, _ = case("Resize", IMAGE, None, UP, mode=mode).model()
    x = torch.randn(IMAGE, requires_grad=True)
    to_torch(graph)(x)[0].sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad.sum(), torch.tensor(2 * 5 * 4 * 6.0), rtol=1e-4, atol=0)
