"""Operators that contract their data with a weight."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.errors import BridgeError
from onnxprune.torch_bridge import missing_operators, to_torch
from onnxprune.torch_bridge.base import MICROSOFT
from torch_bridge.parity import Case, array, assert_case, case, positive, weight

IMAGE = (2, 4, 7, 6)
LINE = (2, 4, 9)
VOLUME = (1, 4, 5, 4, 5)


def packed(bits: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """A weight of blocks of 16 numbers, and their scales."""
    blocks = -(-k // 16)
    numbers = np.random.default_rng(7).integers(0, 256, (n, blocks, 2 * bits)).astype(np.uint8)
    return numbers, positive(n, blocks)


CASES = [
    case("Conv", IMAGE, weight(6, 4, 3, 3), weight(6), opset=7),
    *(case("Conv", IMAGE, weight(6, 4, 3, 3), opset=opset, pads=[1, 1, 1, 1]) for opset in (9, 11, 22)),
    *(case("Conv", IMAGE, weight(6, 4, 3, 2), auto_pad=p, strides=[2, 3]) for p in ("SAME_UPPER", "SAME_LOWER")),
    case("Conv", IMAGE, weight(6, 4, 3, 2), auto_pad="VALID", kernel_shape=[3, 2]),
    case("Conv", IMAGE, weight(6, 4, 3, 3), pads=[0, 1, 2, 3], dilations=[2, 1]),
    case("Conv", IMAGE, weight(6, 2, 3, 3), weight(6), group=2, pads=[1, 1, 1, 1]),
    case("Conv", IMAGE, weight(8, 1, 3, 3), weight(8), group=4, strides=[2, 2]),
    case("Conv", LINE, weight(5, 4, 3), weight(5), pads=[2, 0], dilations=[2]),
    case("Conv", VOLUME, weight(3, 4, 2, 3, 2), weight(3), pads=[1, 0, 1, 0, 1, 0]),
    case("DeformConv", IMAGE, weight(6, 4, 3, 3), (2, 18, 7, 6), weight(6), pads=[1, 1, 1, 1]),
    case(
        "DeformConv",
        IMAGE,
        weight(6, 2, 3, 2),
        (2, 24, 4, 3),
        None,
        (2, 12, 4, 3),
        opset=22,
        pads=[2, 1, 1, 0],
        strides=[2, 2],
        group=2,
        offset_group=2,
    ),
    case("ConvTranspose", IMAGE, weight(4, 5, 3, 3), weight(5), opset=7),
    case("ConvTranspose", IMAGE, weight(4, 5, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
    case("ConvTranspose", IMAGE, weight(4, 5, 3, 3), weight(5), strides=[2, 3], pads=[0, 1, 1, 2]),
    case("ConvTranspose", IMAGE, weight(4, 3, 3, 3), weight(6), group=2, dilations=[2, 1], strides=[1, 2]),
    *(
        case("ConvTranspose", IMAGE, weight(4, 5, 3, 3), strides=[2, 2], auto_pad=p)
        for p in ("SAME_UPPER", "SAME_LOWER", "VALID")
    ),
    *(
        case("ConvTranspose", IMAGE, weight(4, 5, 3, 3), weight(5), strides=[2, 2], output_shape=[14, 12], auto_pad=p)
        for p in ("NOTSET", "SAME_UPPER", "SAME_LOWER")
    ),
    case("ConvTranspose", IMAGE, weight(4, 5, 4, 4), strides=[2, 2], output_shape=[13, 11]),
    case("ConvTranspose", LINE, weight(4, 5, 3), strides=[3], output_padding=[2], opset=11),
    case("ConvTranspose", VOLUME, weight(4, 2, 2, 2, 2), weight(2), strides=[2, 2, 2]),
    case("Gemm", (3, 4), weight(4, 5), weight(5), opset=7),
    case("Gemm", (3, 4), weight(5, 4), transB=1),
    case("Gemm", (4, 3), weight(4, 5), weight(3, 1), transA=1, alpha=0.5, beta=2.0),
    case("Gemm", (4, 3), weight(5, 4), weight(3, 5), transA=1, transB=1, alpha=2.0),
    case("Gemm", (3, 4), weight(4, 5), array(0.5), beta=0.5, opset=9),
    case("Gemm", (3, 4), weight(4, 5), array(0.5).reshape(()), opset=11),
    case("Gemm", weight(3, 4), (4, 5), weight(1, 5)),
    case("MatMul", (3, 4), weight(4, 5), opset=7),
    case("MatMul", (2, 3, 4), weight(4, 5)),
    case("MatMul", (2, 1, 3, 4), weight(6, 4, 5)),
    case("MatMul", (4,), weight(4, 5)),
    case("MatMul", (2, 3, 4), weight(4)),
    case("MatMul", (4,), weight(4)),
    case("MatMul", weight(5, 3), (2, 3, 4)),
    case("MatMul", (2, 3, 4), (2, 4, 3)),
    case("Einsum", (2, 3, 4), weight(4, 5), opset=12, equation="bik,kj->bij"),
    case("Einsum", (2, 3, 4), (2, 3, 4), equation="bij, bij"),
    case("Einsum", (2, 3, 4), equation="...i->..."),
    *(
        case("FusedConv", IMAGE, weight(6, 4, 3, 3), weight(6), domain=MICROSOFT, activation=a)
        for a in ("Relu", "Tanh")
    ),
    case("FusedConv", IMAGE, weight(6, 4, 3, 3), weight(6), domain=MICROSOFT, activation="Sigmoid", pads=[1, 0, 1, 1]),
    case("FusedConv", IMAGE, weight(6, 4, 3, 3), weight(6), (2, 6, 5, 4), domain=MICROSOFT, activation="Relu"),
    *(
        case("FusedConv", IMAGE, weight(6, 4, 1, 1), domain=MICROSOFT, activation=a, activation_params=params)
        for a, params in (("LeakyRelu", [0.1]), ("Clip", [0.1, 0.7]), ("HardSigmoid", [0.1, 0.7]))
    ),
    *(
        case("FusedGemm", (3, 4), weight(4, 5), weight(5), domain=MICROSOFT, activation=a, activation_alpha=0.2)
        for a in ("Relu", "Sigmoid", "Tanh", "LeakyRelu")
    ),
    case("FusedMatMul", (2, 3, 4), weight(5, 4), domain=MICROSOFT, transB=1, alpha=0.5),
    case("FusedMatMul", (3, 2, 6, 4), (2, 6, 5, 4), domain=MICROSOFT, transBatchA=1, transB=1),
    case("FusedMatMul", (4, 2, 3), weight(2, 4, 5), domain=MICROSOFT, transBatchA=1, transA=1),
    case("MatMulNBits", (3, 40), *packed(4, 5, 40), domain=MICROSOFT, bits=4, block_size=16, K=40, N=5),
    case(
        *("MatMulNBits", (3, 32), *packed(4, 5, 32), np.arange(5, dtype=np.uint8) * 17),
        **{"domain": MICROSOFT, "bits": 4, "block_size": 16, "K": 32, "N": 5},
    ),
    case("MatMulNBits", (3, 32), *packed(8, 5, 32), domain=MICROSOFT, bits=8, block_size=16, K=32, N=5),
    case("Det", (3, 3)),
    case("Det", (2, 4, 3, 3)),
]


@pytest.mark.parametrize("given", CASES, ids=str)
def test_equals_onnxruntime(given: Case) -> None:
    assert_case(given)


@pytest.mark.parametrize("given", [c for c in CASES if c.op not in ("Einsum", "MatMulNBits")], ids=str)
def test_constants_are_parameters(given: Case) -> None:
    graph, _ = given.model()
    module = to_torch(graph)
    assert {name for name, _ in module.named_parameters()} == set(graph.constants)
    assert not list(module.buffers())


def test_an_unknown_activation_is_missing() -> None:
    graph, _ = case("FusedConv", IMAGE, weight(6, 4, 3, 3), domain=MICROSOFT, activation="Gelu").model()
    assert missing_operators(graph) == {"com.microsoft.FusedConv with activation Gelu": ["fusedconv0_node"]}


def test_more_axes_than_torch_has() -> None:
    graph, feeds = case("Conv", (1, 2, 3, 3, 3, 3), weight(2, 2, 1, 1, 1, 1)).model()
    module = to_torch(graph)
    with pytest.raises(BridgeError, match=r"windows over 4 axes of data of shape \(1, 2, 3, 3, 3, 3\): PyTorch takes"):
        module(*map(__import__("torch").from_numpy, feeds.values()))


def test_unknown_bits_are_missing() -> None:
    graph, _ = case(
        "MatMulNBits", (3, 32), *packed(4, 5, 32), domain=MICROSOFT, bits=3, block_size=16, K=32, N=5
    ).model()
    assert missing_operators(graph) == {"com.microsoft.MatMulNBits with bits 3": ["matmulnbits0_node"]}
