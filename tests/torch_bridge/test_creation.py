"""Operators that make tensors out of numbers and sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from builders import Net
from onnxprune.torch_bridge import to_torch
from torch_bridge.parity import Case, array, assert_case, assert_parity, case, whole

DATA = (2, 3, 4)
SPARSE = np.array([[0, 1.5, 0], [2, 0, -1]], np.float32)
SEVEN = numpy_helper.from_array(np.array([7], np.int64), "seven")

CASES = [
    case("Constant", opset=9, value=SEVEN),
    case("ConstantOfShape", whole(2, 3), opset=9),
    case("ConstantOfShape", whole(2, 3), value=SEVEN),
    case("ConstantOfShape", whole(0)),
    case("Range", np.array(1), np.array(7), np.array(2)),
    case("Range", np.array(5), np.array(0), np.array(-2)),
    case("Range", np.array(5), np.array(0), np.array(2)),
    case("Range", *(np.array(n, np.float32) for n in (0, 1, 0.25))),
    case("Shape", DATA, opset=7),
    case("Shape", DATA, start=1, end=-1),
    case("Size", DATA),
    case("NonZero", SPARSE, fed=(0,)),
    case("NonZero", np.array(3.0, np.float32), fed=(0,)),
    case("OneHot", whole(0, 2, -1, 5), np.array(4), array(0.5, 2), opset=9, fed=(0,)),
    case("OneHot", whole(0, 2, 1).reshape(1, 3), np.array([4]), array(0, 1), fed=(0,), axis=0),
    case("OneHot", whole(0, 2, 1).reshape(1, 3), np.array(4), whole(0, 1), fed=(0,), axis=1),
    case("Trilu", DATA),
    case("Trilu", DATA, np.array(1), upper=0),
    case("Trilu", DATA, np.array(-1), opset=14),
    *(
        case(op, np.array(size), opset=17, periodic=p)
        for op in ("HannWindow", "HammingWindow", "BlackmanWindow")
        for size in (7, 8)
        for p in (0, 1)
    ),
    case("HannWindow", np.array(8), opset=17, output_datatype=11),
    case("EyeLike", (3, 4)),
    case("EyeLike", (3, 4), k=1, dtype=7),
    case("EyeLike", (3, 4), k=-1),
]


@pytest.mark.parametrize("given", CASES, ids=str)
def test_equals_onnxruntime(given: Case) -> None:
    assert_case(given)


@pytest.mark.parametrize(
    ("attrs", "expected"),
    [
        ({"value_int": 3}, 3),
        ({"value_ints": [3, 4]}, [3, 4]),
        ({"value_float": 0.5}, 0.5),
        ({"value_floats": [0.5, 2.0]}, [0.5, 2.0]),
    ],
)
def test_constants_in_the_body_of_an_if(attrs: dict[str, object], expected: object) -> None:
    """In the main graph they are constants already; see also test_control."""
    net = Net(13)
    body = helper.make_graph([helper.make_node("Constant", [], ["c"], **attrs)], "body", [], [_untyped("c")])
    flag = net.input(kind=TensorProto.BOOL)
    net.output(net.op("If", flag, then_branch=body, else_branch=body))
    model = net.model()
    model.graph.output[0].ClearField("type")
    from onnxprune.graph import from_proto

    module = assert_parity(from_proto(model), {"x0": np.array(True)})
    assert module(torch.tensor(True))[0].tolist() == expected


def _untyped(name: str) -> object:
    info = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    info.ClearField("type")
    return info


def test_sizes_of_a_weight_are_known_when_the_module_is_built() -> None:
    net = Net()
    x, w = net.input("batch", 6), net.weight(6, 4, name="w")
    size = net.op("Cast", net.op("Gather", net.op("Shape", w), net.constant(np.array([0])), axis=0), to=1)
    graph = net.output(net.op("Div", net.op("MatMul", x, w), net.op("Sqrt", size))).graph()
    module = assert_parity(graph, {"x0": np.ones((2, 6), np.float32)})
    assert [name for name, _ in module.named_buffers()] == [net.nodes[-2].output[0]]
    assert not any("shape" in node.name for node in to_torch(graph).graph.nodes)
