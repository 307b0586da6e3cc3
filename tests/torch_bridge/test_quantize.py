"""Quantized weights."""

from __future__ import annotations

import numpy as np
import pytest

from builders import Net
from onnxprune.torch_bridge import untouched_parameters
from torch_bridge.parity import Case, X, array, assert_case, assert_parity, case, positive

BYTES = np.arange(-6, 6, dtype=np.int8).reshape(3, 4)

CASES = [
    case("DequantizeLinear", BYTES, array(0.5), opset=10, fed=(0,)),
    case("DequantizeLinear", BYTES, array(0.5), np.array(3, np.int8), fed=(0,)),
    case("DequantizeLinear", BYTES, positive(4), np.arange(4, dtype=np.int8), fed=(0,)),
    case("DequantizeLinear", BYTES, positive(3), axis=-2, opset=13, fed=(0,)),
    case("DequantizeLinear", BYTES, positive(3, 2), np.ones((3, 2), np.int8), axis=1, block_size=2, fed=(0,)),
]


@pytest.mark.parametrize("given", CASES, ids=str)
def test_equals_onnxruntime(given: Case) -> None:
    assert_case(given)


def test_what_is_not_quantized_is_trained() -> None:
    net = Net()
    weight = net.op("DequantizeLinear", net.constant(BYTES.T.copy()), net.constant(positive(3)), axis=1)
    h = net.op("Add", net.op("MatMul", net.input("N", 4), weight), net.weight(3, name="bias"))
    graph = net.output(net.op("MatMul", net.op("Relu", h), net.weight(3, 2, name="last"))).graph()
    module = assert_parity(graph, {"x0": X})
    assert {"bias", "last"} <= {name for name, _ in module.named_parameters()}
    assert untouched_parameters(module, {"x0": X}) == []
