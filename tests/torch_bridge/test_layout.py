"""Operators that move, cut, join or repeat positions."""

from __future__ import annotations

import numpy as np
import pytest

from builders import Net
from torch_bridge.parity import Case, assert_case, assert_parity, case, weight, whole

DATA = (2, 3, 4)
IMAGE = (2, 3, 5, 4)
FAR = 2**63 - 1
PADS = [0, 1, 2, 1, 0, 2]

CASES = [
    *(case("Reshape", DATA, whole(*target)) for target in ((6, 4), (-1,), (0, -1), (0, 3, 2, -1))),
    case("Reshape", DATA, whole(3, 2, 4), opset=7),
    case("Reshape", (2, 0, 4), whole(0, 0, 2), allowzero=1),
    *(case("Flatten", DATA, axis=axis) for axis in (0, 1, 2, 3, -1)),
    case("Flatten", DATA, opset=7),
    case("Transpose", DATA, opset=7),
    case("Transpose", DATA, perm=[1, 2, 0]),
    case("Squeeze", (1, 3, 1, 2), opset=11),
    case("Squeeze", (1, 3, 1, 2), opset=7, axes=[0]),
    case("Squeeze", (1, 3, 1, 2), whole(-2), opset=13),
    case("Squeeze", (1, 3, 1, 2), whole(0, 2)),
    case("Unsqueeze", DATA, opset=7, axes=[0, 3]),
    case("Unsqueeze", DATA, whole(-1, 0), opset=13),
    case("Concat", DATA, weight(2, 2, 4), (2, 1, 4), axis=1, opset=7),
    case("Concat", DATA, DATA, axis=-1),
    case("Split", (2, 6), outputs=3, axis=1, opset=7),
    case("Split", (2, 6), outputs=2, axis=1, split=[4, 2], opset=11),
    case("Split", (2, 6), whole(1, 5), outputs=2, axis=-1, opset=13),
    case("Split", (2, 6), outputs=2, axis=1, opset=13),
    case("Split", (2, 7), outputs=3, axis=1, num_outputs=3, opset=18),
    case("Slice", DATA, opset=7, starts=[1, -3], ends=[FAR, -1], axes=[0, 2]),
    case("Slice", DATA, opset=7, starts=[0, 1], ends=[1, 2]),
    case("Slice", DATA, whole(1), whole(3), opset=10),
    case("Slice", (9, 8), whole(1, -7), whole(FAR, -1), whole(0, 1), whole(3, 2)),
    case("Slice", (9, 8), whole(-1, 20), whole(-FAR, 2), whole(0, -1), whole(-1, -3)),
    case("Slice", (9, 8), whole(5), whole(5), whole(0)),
    case("Slice", (9, 8), whole(7), whole(3), whole(1), whole(-2)),
    case("Expand", (3, 1), whole(2, 1, 4), opset=8),
    case("Expand", (3, 1), whole(4)),
    case("Expand", (1, 3), whole(2, 1)),
    case("Tile", (2, 3), whole(2, 3), opset=7),
    *(case("Pad", DATA, opset=7, pads=PADS, mode=mode) for mode in ("constant", "reflect", "edge")),
    case("Pad", DATA, opset=9, pads=[0, -1, 2, 0, -1, 0], value=1.5),
    *(case("Pad", DATA, whole(*PADS), opset=11, mode=mode) for mode in ("constant", "reflect", "edge")),
    case("Pad", DATA, whole(*PADS), np.array(2.5, np.float32), opset=13),
    case("Pad", DATA, whole(1, 2, -1, 1), np.array(2.5, np.float32), whole(2, -2), opset=18),
    case("Pad", DATA, whole(*PADS), opset=19, mode="wrap"),
    case("Pad", np.arange(6).reshape(2, 3), whole(1, 0, 0, 1), np.array(7), fed=(0,)),
    case("Pad", IMAGE, whole(0, 0, 2, 3, 0, 0, 4, 1), mode="reflect"),
    case("DepthToSpace", (2, 12, 3, 2), opset=7, blocksize=2),
    *(case("DepthToSpace", (2, 12, 3, 2), opset=13, blocksize=2, mode=mode) for mode in ("DCR", "CRD")),
    case("SpaceToDepth", (2, 3, 4, 6), blocksize=2),
    case("CenterCropPad", (2, 3, 5, 4), whole(2, 7), axes=[2, -1]),
    case("CenterCropPad", (2, 5), whole(3, 4)),
    case("Col2Im", (2, 12, 9), whole(4, 4), whole(2, 2)),
    case("Col2Im", (2, 12, 3), whole(8), whole(4), strides=[2]),
    case("Col2Im", (2, 16, 12), whole(3, 4, 3), whole(2, 2, 2), pads=[0, 0, 0, 0, 0, 0]),
    case("Col2Im", (2, 12, 6), whole(5, 4), whole(2, 2), pads=[1, 0, 0, 2], strides=[2, 2], dilations=[1, 2]),
]


@pytest.mark.parametrize("given", CASES, ids=str)
def test_equals_onnxruntime(given: Case) -> None:
    assert_case(given)


@pytest.mark.parametrize("opset", [10, 13])
def test_targets_computed_from_sizes_follow_the_batch(opset: int) -> None:
    net = Net(opset)
    x = net.input("batch", 6, 4)
    length = net.op("Gather", net.op("Shape", x), net.ints(0), axis=0)
    halves = net.op("Div", net.op("Mul", length, net.ints(2)), net.ints(2))
    y = net.op("Reshape", x, net.op("Concat", halves, net.ints(3, 2), net.ints(-1), axis=0))
    graph = net.output(net.op("Slice", y, net.ints(0), halves, net.ints(1))).graph()
    for batch in (2, 3):
        module = assert_parity(
            graph, {"x0": np.random.default_rng(0).standard_normal((batch, 6, 4)).astype(np.float32)}
        )
        assert not list(module.buffers())  # constants that meet sizes are written into the code
