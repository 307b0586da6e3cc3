"""Pooling over windows and over all positions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from onnxprune.torch_bridge import to_torch
from torch_bridge.parity import Case, assert_case, case, weight, whole

IMAGE = (2, 3, 9, 7)
LINE = (2, 3, 11)
VOLUME = (1, 2, 5, 6, 5)
GRID = [
    {"kernel_shape": [3, 2], "strides": strides, "ceil_mode": ceil, "pads": pads}
    for strides, ceil, pads in itertools.product(([1, 1], [2, 3]), (0, 1), ([0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, 1]))
]
SAME = [{"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": p} for p in ("SAME_UPPER", "SAME_LOWER", "VALID")]

CASES = [
    *(case("MaxPool", IMAGE, opset=12, **attrs) for attrs in (*GRID, *SAME)),
    case("MaxPool", IMAGE, opset=7, kernel_shape=[2, 2]),
    case("MaxPool", IMAGE, opset=8, outputs=2, kernel_shape=[2, 2], pads=[1, 1, 1, 1]),
    case("MaxPool", IMAGE, opset=10, kernel_shape=[2, 2], dilations=[2, 3], strides=[2, 1]),
    case("MaxPool", IMAGE, opset=22, outputs=2, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 0, 1]),
    case("MaxPool", IMAGE, outputs=2, kernel_shape=[3, 3], storage_order=1, ceil_mode=1, strides=[2, 2]),
    case("MaxPool", LINE, outputs=2, kernel_shape=[3], strides=[2], pads=[1, 2]),
    case("MaxPool", VOLUME, outputs=2, kernel_shape=[2, 2, 3], strides=[2, 1, 2], pads=[1, 0, 0, 0, 0, 1]),
    case("MaxPool", np.arange(-20, 28, dtype=np.int8).reshape(1, 1, 8, 6), fed=(0,), kernel_shape=[2, 2]),
    *(case("AveragePool", IMAGE, count_include_pad=n, **attrs) for attrs in (*GRID, *SAME) for n in (0, 1)),
    case("AveragePool", IMAGE, opset=7, kernel_shape=[2, 2], pads=[0, 1, 1, 0]),
    case("AveragePool", IMAGE, opset=10, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    case("AveragePool", IMAGE, opset=11, kernel_shape=[3, 3], count_include_pad=1, pads=[2, 2, 2, 2]),
    *(
        case(
            "AveragePool",
            IMAGE,
            opset=22,
            kernel_shape=[2, 2],
            dilations=[2, 3],
            pads=[1, 1, 1, 1],
            count_include_pad=n,
        )
        for n in (0, 1)
    ),
    case("AveragePool", LINE, kernel_shape=[4], strides=[3], pads=[2, 1]),
    case("AveragePool", VOLUME, kernel_shape=[2, 2, 2], strides=[2, 2, 2], ceil_mode=1),
    *(
        case(
            "MaxUnpool",
            (2, 3, 4, 3),
            np.random.default_rng(0).permutation(size)[:72].reshape(2, 3, 4, 3),
            *shape,
            **attrs,
        )
        for size, shape, attrs in (
            (288, (), {"kernel_shape": [2, 2], "strides": [2, 2]}),
            (252, (), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 0, 1, 0]}),
            (120, (), {"kernel_shape": [2, 2], "opset": 11}),
            (360, (whole(2, 3, 10, 6),), {"kernel_shape": [2, 2], "strides": [2, 2], "opset": 9}),
        )
    ),
    *(case("LpPool", IMAGE, p=p, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 1, 1, 0]) for p in (1, 2, 3)),
    case("LpPool", IMAGE, opset=11, kernel_shape=[2, 2]),
    case("LpPool", IMAGE, opset=18, kernel_shape=[2, 2], dilations=[2, 2], ceil_mode=1, strides=[2, 2]),
    case("LpPool", LINE, kernel_shape=[3], auto_pad="SAME_UPPER"),
    *(case(f"Global{kind}Pool", shape) for kind in ("Average", "Max", "Lp") for shape in (LINE, IMAGE, VOLUME)),
    case("GlobalLpPool", IMAGE, p=1),
    case("GlobalAveragePool", IMAGE, opset=7),
]


@pytest.mark.parametrize("given", CASES, ids=str)
def test_equals_onnxruntime(given: Case) -> None:
    assert_case(given)


@pytest.mark.parametrize("op", ["LpPool", "GlobalLpPool"])
def test_a_norm_of_zeros_has_a_finite_gradient(op: str) -> None:
    attrs = {"kernel_shape": [2, 2]} if op == "LpPool" else {}
    graph, _ = case(op, IMAGE, **attrs).model()
    x = torch.zeros(IMAGE, requires_grad=True)
    (y,) = to_torch(graph)(x)
    y.sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_weights_are_not_made_of_pooled_constants() -> None:
    graph, _ = case("GlobalAveragePool", weight(*IMAGE)).model()
    assert not list(to_torch(graph).parameters())
