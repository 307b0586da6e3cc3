"""Fourier transforms."""

from __future__ import annotations

import numpy as np
import pytest

from builders import Net
from onnxprune.torch_bridge import untouched_parameters
from torch_bridge.parity import Case, assert_case, assert_parity, case, weight

REAL, COMPLEX, SIGNAL = (2, 9, 3, 1), (2, 9, 3, 2), (2, 20, 1)

CASES = [
    *(case("DFT", shape, opset=17) for shape in (REAL, COMPLEX)),
    *(case("DFT", shape, None, np.array(1), opset=20) for shape in (REAL, COMPLEX)),
    case("DFT", REAL, opset=20),
    case("DFT", REAL, opset=17, axis=2, onesided=1),
    case("DFT", REAL, np.array(6), opset=17, onesided=1),
    case("DFT", COMPLEX, np.array(16), np.array(-3), opset=20),
    case("DFT", COMPLEX, None, np.array(1), opset=20, inverse=1),
    case("DFT", COMPLEX, None, np.array(1), opset=20, inverse=1, onesided=1),
    *(case("STFT", SIGNAL, np.array(3), window, np.array(8), opset=17) for window in (None, weight(8))),
    case("STFT", SIGNAL, np.array(4), weight(5), opset=17, onesided=0),
    case("STFT", SIGNAL, np.array(4), None, np.array(6), opset=22),
    case("STFT", (2, 20), np.array(4), weight(8), opset=17),
    case("STFT", (2, 20, 2), np.array(4), weight(8), opset=17, onesided=0),
]


@pytest.mark.parametrize("given", CASES, ids=str)
def test_equals_onnxruntime(given: Case) -> None:
    assert_case(given)


def test_what_stands_before_a_spectrum_learns() -> None:
    net = Net(17)
    h = net.op("Unsqueeze", net.dense(net.input(2, 4), 4, 20), net.ints(2))
    h = net.op("STFT", h, net.constant(np.array(4)), net.weight(8))
    graph, feeds = net.output(net.op("ReduceSumSquare", h, axes=[3], keepdims=0)).graph(), {"x0": weight(2, 4)}
    assert untouched_parameters(assert_parity(graph, feeds), feeds) == []
