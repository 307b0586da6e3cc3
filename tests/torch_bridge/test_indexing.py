"""Operators that read or write positions that an index names."""

from __future__ import annotations

import numpy as np
import pytest

from builders import Net
from onnxprune.torch_bridge import untouched_parameters
from torch_bridge.parity import Case, array, assert_case, assert_parity, case, weight, whole

DATA = (3, 4)
PAIRS = np.array([[0, 1], [2, -1]])
ELEMENTS = np.array([[0, -1, 2], [1, 1, 0]])

CASES = [
    *(case("Unique", array(3, 1, 3, 2, 1, 3), outputs=4, fed=(0,), opset=11, **attrs) for attrs in ({}, {"sorted": 0})),
    *(
        case("Unique", whole(2, 1, 2, 0, 2, 1, 5, 2, 2, 0).reshape(5, 2), outputs=4, fed=(0,), axis=axis, sorted=order)
        for axis in (0, -1)
        for order in (0, 1)
    ),
    case("Gather", DATA, np.array(1), opset=7),
    case("Gather", DATA, np.array(-1), axis=1),
    case("Gather", DATA, whole(2, 0, -1), axis=-1, opset=11),
    case("Gather", np.array([1.0, 2.0, 3.0], np.float32), np.array(-1)),
    case("Gather", (2, 3, 4), PAIRS, axis=1),
    case("Gather", DATA, PAIRS.astype(np.int32)),
    case("GatherElements", DATA, ELEMENTS, opset=11),
    case("GatherElements", DATA, PAIRS, axis=-1),
    case("GatherND", DATA, PAIRS, opset=11),
    case("GatherND", DATA, PAIRS[:, :1]),
    case("GatherND", np.array([1.0, 2.0, 3.0], np.float32), np.array([-1])),
    case("GatherND", (2, 3, 4), np.array([[[1], [0]], [[2], [-1]]]), batch_dims=1),
    case("ScatterND", DATA, PAIRS, weight(2), opset=11),
    case("ScatterND", (2, 3, 4), whole(1, 0).reshape(2, 1), weight(2, 3, 4)),
    *(
        case("ScatterND", DATA, np.array([[0, 1], [0, 1]]), weight(2), reduction=r)
        for r in ("add", "mul", "max", "min")
    ),
    case("ScatterElements", DATA, ELEMENTS, weight(2, 3), opset=11),
    case("ScatterElements", DATA, ELEMENTS, weight(2, 3), axis=1),
    *(case("ScatterElements", DATA, ELEMENTS, weight(2, 3), reduction=r) for r in ("add", "mul", "max", "min")),
    case("TensorScatter", (2, 3, 6, 4), (2, 3, 2, 4), whole(1, 4), opset=24),
    case("TensorScatter", (2, 6, 4), (2, 2, 4), whole(5, 1), opset=24, axis=1, mode="circular"),
    case("TensorScatter", (2, 6, 4), (2, 2, 4), opset=24),
    case("Compress", DATA, np.array([True, False, True]), axis=1),
    case("Compress", DATA, np.array([True, False, True])),
    case("ReverseSequence", (4, 3, 2), whole(4, 1, 3)),
    case("ReverseSequence", (3, 4, 2), whole(4, 1, 3), batch_axis=0, time_axis=1),
    case("Scatter", DATA, np.abs(ELEMENTS), weight(2, 3), opset=9),
]


@pytest.mark.parametrize("given", CASES, ids=str)
def test_equals_onnxruntime(given: Case) -> None:
    assert_case(given)


def test_a_table_that_data_index_is_trained() -> None:
    net = Net()
    tokens = net.input("batch", 5, kind=7)
    graph = net.output(net.op("Gather", net.weight(11, 4, name="embedding"), tokens)).graph()
    feeds = {"x0": np.arange(10).reshape(2, 5)}
    module = assert_parity(graph, feeds)
    assert [name for name, _ in module.named_parameters()] == ["embedding"]
    assert untouched_parameters(module, feeds) == []
