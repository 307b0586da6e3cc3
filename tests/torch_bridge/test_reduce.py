"""Operators that take axes together."""

from __future__ import annotations

import numpy as np
import pytest

from torch_bridge.parity import Case, assert_case, case, positive, whole

DATA = (2, 3, 4)
WHOLE = np.arange(-11, 13).reshape(2, 3, 4)
TIES = np.array([[1, 3, 3], [2, 2, 1], [0, 0, 0]], np.float32)
PLAIN = ("ReduceSum", "ReduceMean", "ReduceProd", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare")
LOGS = ("ReduceLogSum", "ReduceLogSumExp")
RECENT = 18

CASES = [
    *(case(op, DATA, axes=[1], opset=7) for op in (*PLAIN, "ReduceLogSumExp")),
    *(case(op, DATA, axes=[-1, 0], keepdims=0, opset=11) for op in (*PLAIN, "ReduceLogSumExp")),
    *(case(op, DATA, opset=12) for op in (*PLAIN, "ReduceLogSumExp")),
    *(case(op, DATA, whole(1, -1), opset=RECENT) for op in PLAIN),
    *(case(op, DATA, whole(0), keepdims=0, opset=RECENT) for op in PLAIN),
    *(case(op, DATA, opset=RECENT, keepdims=0) for op in PLAIN),
    *(case(op, DATA, opset=RECENT, noop_with_empty_axes=1) for op in PLAIN),
    *(case(op, DATA, whole(), opset=RECENT, noop_with_empty_axes=1) for op in PLAIN),
    *(case(op, positive(*DATA), whole(1), opset=RECENT, fed=(0,)) for op in LOGS),
    *(case(op, positive(*DATA), opset=RECENT, fed=(0,), noop_with_empty_axes=1) for op in LOGS),
    case("ReduceLogSum", positive(*DATA), opset=7, axes=[1], fed=(0,)),
    case("ReduceSum", DATA, whole(1), opset=13),
    *(case(op, WHOLE, whole(1), opset=RECENT, fed=(0,)) for op in ("ReduceSum", "ReduceMax", "ReduceMin")),
    *(case(op, WHOLE.astype(np.int32), whole(1), opset=RECENT, fed=(0,)) for op in ("ReduceMean", "ReduceL1")),
    *(case(op, WHOLE.astype(np.int32), whole(1), opset=RECENT, fed=(0,)) for op in ("ReduceProd", "ReduceL2")),
    *(
        case(op, TIES, fed=(0,), axis=axis, keepdims=k)
        for op in ("ArgMax", "ArgMin")
        for axis in (0, -1)
        for k in (0, 1)
    ),
    *(case(op, TIES, fed=(0,), axis=1, select_last_index=1) for op in ("ArgMax", "ArgMin")),
    *(case(op, DATA, opset=7) for op in ("ArgMax", "ArgMin")),
    *(case(op, DATA, opset=13) for op in ("Softmax", "LogSoftmax", "Hardmax")),
    *(case(op, DATA, opset=13, axis=1) for op in ("Softmax", "LogSoftmax", "Hardmax")),
    *(case(op, DATA, opset=11) for op in ("Softmax", "LogSoftmax", "Hardmax")),
    *(case(op, DATA, opset=7, axis=2) for op in ("Softmax", "LogSoftmax", "Hardmax")),
    *(case(op, DATA, opset=11, axis=-2) for op in ("Softmax", "LogSoftmax")),
    case("Hardmax", TIES, fed=(0,)),
    *(case("CumSum", DATA, np.array(1), exclusive=e, reverse=r) for e in (0, 1) for r in (0, 1)),
    case("CumSum", DATA, np.array([-1]), opset=11),
    *(case("CumProd", DATA, np.array(1), opset=26, exclusive=e, reverse=r) for e in (0, 1) for r in (0, 1)),
    case("CumSum", WHOLE.astype(np.int32), np.array(0), fed=(0,)),
    case("TopK", DATA, opset=7, outputs=2, k=2),
    case("TopK", DATA, whole(2), opset=10, outputs=2, axis=1),
    *(case("TopK", TIES, whole(2), fed=(0,), outputs=2, largest=n, sorted=1) for n in (0, 1)),
    case("TopK", DATA, whole(3), opset=24, outputs=2, axis=0 - 1),
]


@pytest.mark.parametrize("given", CASES, ids=str)
def test_equals_onnxruntime(given: Case) -> None:
    assert_case(given)
