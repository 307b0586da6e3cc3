"""Small real models of every kind that the package reads, as bytes: what mutations start from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from builders import Net
from conftest import MODELS, ROOT

FLOAT = TensorProto.FLOAT


@dataclass(frozen=True)
class Seed:
    """A model file and the files that lie beside it.

    Attributes:
        model: its bytes.
        files: external data by name.
    """

    model: bytes
    files: Mapping[str, bytes] = field(default_factory=dict)


def seeds() -> dict[str, Seed]:
    """All of them by name."""
    found = {name: Seed(build().SerializeToString()) for name, build in BUILT.items()}
    found |= {f"opset{opset}": Seed(network(opset).SerializeToString()) for opset in (7, 9, 11, 13, 17, 21, 24)}
    found["external"] = external()
    paths = [MODELS / "digits_mlp.onnx", *sorted((ROOT.parent / "shared" / "cases").glob("*.onnx"))]
    return found | {path.stem: Seed(path.read_bytes()) for path in paths if path.stat().st_size < 1 << 18}


def network(opset: int) -> onnx.ModelProto:
    """A small convolutional network."""
    net = Net(opset, ir_version={7: 3}.get(opset, 8))
    x = net.input("N", 3, 8, 8)
    h = net.conv(x, 3, 6, kernel=3, pads=[1] * 4)
    h = net.op(
        "Relu", net.op("BatchNormalization", h, *(net.weight(6) for _ in range(3)), net.constant(np.ones(6, "f")))
    )
    h = net.op("Add", h, net.conv(h, 6, 6))
    h = net.op("MaxPool", h, kernel_shape=[2, 2], strides=[2, 2])
    h = net.op("Concat", h, net.conv(h, 6, 4), axis=1)
    h = net.op("Flatten", net.op("GlobalAveragePool", h))
    model = net.output(net.dense(net.op("Relu", net.dense(h, 10, 8)), 8, 3)).model()
    if opset < 9:
        for tensor in model.graph.initializer:
            model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    model.metadata_props.add(key="author", value="someone")
    return onnx.shape_inference.infer_shapes(model)


def transformer() -> onnx.ModelProto:
    """One layer of attention as plain nodes, shapes computed as the older exporter does."""
    net = Net(17)
    ids = net.input("N", "T", kind=TensorProto.INT64)
    h = net.op("Gather", net.weight(11, 8), ids)
    h = net.op("LayerNormalization", h, net.weight(8), net.weight(8))
    shape = net.op("Shape", h)
    sizes = [net.op("Gather", shape, net.constant(np.array(i)), axis=0) for i in (0, 1)]
    parts = [net.op("Unsqueeze", size, net.ints(0)) for size in sizes]
    split = net.op("Concat", *parts, net.ints(2), net.ints(4), axis=0)

    def heads(perm: list[int]) -> str:
        projected = net.op("Add", net.op("MatMul", h, net.weight(8, 8)), net.weight(8))
        return net.op("Transpose", net.op("Reshape", projected, split), perm=perm)

    scores = net.op("MatMul", heads([0, 2, 1, 3]), heads([0, 2, 3, 1]))
    scores = net.op("Softmax", net.op("Div", scores, net.constant(np.float32(2))), axis=-1)
    mixed = net.op("Transpose", net.op("MatMul", scores, heads([0, 2, 1, 3])), perm=[0, 2, 1, 3])
    mixed = net.op("Reshape", mixed, net.op("Concat", *parts, net.ints(8), axis=0))
    h = net.op("Add", h, net.op("MatMul", mixed, net.weight(8, 8)))
    inner = net.op("Gelu", net.op("MatMul", h, net.weight(8, 12)), domain="com.microsoft")
    h = net.op("Add", h, net.op("MatMul", inner, net.weight(12, 8)))
    net.imports.append(helper.make_opsetid("com.microsoft", 1))
    return net.output(net.op("MatMul", h, net.weight(8, 11))).model()


def fused() -> onnx.ModelProto:
    """Attention as one node, with a mask as an input."""
    net = Net(23)
    x, mask = net.input("N", "T", 8), net.input("N", 1, "T", "T")
    q, k, v = (net.op("MatMul", x, net.weight(8, 8)) for _ in range(3))
    h = net.op("Attention", q, k, v, mask, q_num_heads=2, kv_num_heads=2)
    h = net.op("RMSNormalization", net.op("Add", x, net.op("MatMul", h, net.weight(8, 8))), net.weight(8))
    return net.output(net.op("MatMul", h, net.weight(8, 5))).model()


def recurrent() -> onnx.ModelProto:
    """An LSTM in both directions and a GRU."""
    net = Net(14)
    x = net.input("T", "N", 4)
    h = net.op(
        "LSTM",
        x,
        net.weight(2, 20, 4),
        net.weight(2, 20, 5),
        net.weight(2, 40),
        direction="bidirectional",
        hidden_size=5,
    )
    h = net.op("Reshape", net.op("Transpose", h, perm=[0, 2, 1, 3]), net.ints(0, 0, -1))
    h = net.op("Squeeze", net.op("GRU", h, net.weight(1, 18, 10), net.weight(1, 18, 6), hidden_size=6), net.ints(1))
    return net.output(net.op("MatMul", h, net.weight(6, 2))).model()


def quantized() -> onnx.ModelProto:
    """Weights and activations with quantization and dequantization around them."""
    net = Net(13)

    def through(x: str) -> str:
        scale, zero = net.constant(np.float32(0.05)), net.constant(np.uint8(128))
        return net.op("DequantizeLinear", net.op("QuantizeLinear", x, scale, zero), scale, zero)

    def weight(*shape: int) -> str:
        values = net.constant(net.random.integers(-100, 100, shape).astype(np.int8))
        scales = net.constant(net.random.random(shape[0]).astype("f") / 50)
        return net.op("DequantizeLinear", values, scales, net.constant(np.zeros(shape[0], np.int8)), axis=0)

    h = through(net.input("N", 3, 4, 4))
    h = through(net.op("Relu", net.op("Conv", h, weight(6, 3, 3, 3), net.weight(6))))
    h = net.op("Flatten", net.op("Conv", h, weight(4, 6, 1, 1)))
    return net.output(net.dense(h, 16, 2)).model()


def dynamic() -> onnx.ModelProto:
    """Integer arithmetic with scales that the data give."""
    net = Net(17)
    x = net.input("N", 6)
    for inputs, outputs in ((6, 8), (8, 4)):
        q, scale, zero = net.ops("DynamicQuantizeLinear", x, outputs=3)
        w = net.constant(net.random.integers(-99, 99, (inputs, outputs)).astype(np.int8))
        whole = net.op("Cast", net.op("MatMulInteger", q, w, zero), to=FLOAT)
        x = net.op("Relu", net.op("Mul", whole, net.op("Mul", scale, net.constant(np.float32(0.02)))))
    return net.output(x).model()


def constants() -> onnx.ModelProto:
    """Constant nodes of every kind."""
    net = Net(20)
    h = net.op(
        "MatMul",
        net.input("N", 4),
        net.op("Constant", value=numpy_helper.from_array(net.random.random((4, 8)).astype("f"))),
    )
    h = net.op("Mul", h, net.op("Constant", value_float=2.0))
    h = net.op("Add", h, net.op("Constant", value_floats=[float(i) for i in range(8)]))
    h = net.op("Reshape", h, net.op("Constant", value_ints=[-1, 2, 4]))
    h = net.op("Squeeze", net.op("Gather", h, net.op("Constant", value_int=1), axis=1))
    words = net.op("Constant", value_strings=["ab", "cd"])
    net.op("Equal", words, net.op("Constant", value_string="ab"))
    values = numpy_helper.from_array(np.array([1, 2], np.float32))
    places = numpy_helper.from_array(np.array([0, 3], np.int64))
    h = net.op("Add", h, net.op("Constant", sparse_value=helper.make_sparse_tensor(values, places, [4])))
    return net.output(net.dense(net.op("Relu", net.dense(h, 4, 6)), 6, 2)).model()


def info(name: str, *shape: int, kind: int = FLOAT) -> onnx.ValueInfoProto:
    """A tensor of a body."""
    return helper.make_tensor_value_info(name, kind, shape or None)


def bodies() -> onnx.ModelProto:
    """An If, a Loop and a Scan, which read from outside."""
    net = Net(20)
    hidden = net.dense(net.op("Relu", net.dense(net.input(2, 4), 4, 6)), 6, 5)
    branch = [
        helper.make_graph([helper.make_node(op, [hidden], [f"{op}.y"])], op, [], [info(f"{op}.y", 2, 5)])
        for op in ("Relu", "Neg")
    ]
    total = net.op("ReduceSum", hidden, keepdims=0)
    h = net.op(
        "If", net.op("Greater", total, net.constant(np.float32(0))), then_branch=branch[0], else_branch=branch[1]
    )
    nodes = [helper.make_node("Add", ["state", hidden], ["sum"]), helper.make_node("Identity", ["go"], ["on"])]
    steering = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("go", TensorProto.BOOL, []),
    ]
    body = helper.make_graph(
        nodes, "body", [*steering, info("state")], [info("on", kind=TensorProto.BOOL), info("sum")]
    )
    h = net.op("Loop", net.constant(np.array(3, np.int64)), "", h, body=body)
    nodes = [helper.make_node("Add", ["held", "row"], ["more"]), helper.make_node("Identity", ["more"], ["given"])]
    body = helper.make_graph(nodes, "body", [info("held", 5), info("row", 5)], [info("more", 5), info("given", 5)])
    h = net.ops("Scan", net.constant(np.zeros(5, "f")), h, outputs=2, body=body, num_scan_inputs=1)[1]
    out = net.op("MatMul", h, net.weight(5, 2))
    graph = helper.make_graph(net.nodes, "g", net.inputs, [info(out, 2, 2)], net.initializers)
    return helper.make_model(graph, opset_imports=net.imports, ir_version=10)


def functions() -> onnx.ModelProto:
    """A local function with an attribute, called twice."""
    net = Net(20)
    net.imports.append(helper.make_opsetid("local", 1))
    h = net.op("Relu", net.dense(net.input("N", 4), 4, 6))
    for _ in range(2):
        h = net.op("Leak", h, domain="local", alpha=0.1)
    out = net.dense(h, 6, 3)
    leak = helper.make_node("LeakyRelu", ["x"], ["t"])
    leak.attribute.add(name="alpha", ref_attr_name="alpha", type=onnx.AttributeProto.FLOAT)
    nodes = [leak, helper.make_node("Add", ["t", "x"], ["y"])]
    function = helper.make_function("local", "Leak", ["x"], ["y"], nodes, [helper.make_opsetid("", 20)], ["alpha"])
    graph = helper.make_graph(net.nodes, "g", net.inputs, [info(out)], net.initializers)
    return helper.make_model(graph, opset_imports=net.imports, functions=[function], ir_version=10)


def positions() -> onnx.ModelProto:
    """Operators that name positions and sizes."""
    net = Net(18)
    x = net.input("N", 3, "H", "W")
    h = net.conv(x, 3, 8, kernel=3, pads=[1] * 4)
    a, b = net.ops("Split", h, net.ints(4, 4), outputs=2, axis=1)
    h = net.op("Concat", net.op("Relu", a), net.op("Sigmoid", b), axis=1)
    h = net.op("Slice", h, net.ints(1), net.ints(7), net.ints(1), net.ints(1))
    h = net.op("Pad", h, net.ints(0, 1, 0, 0, 0, 1, 0, 0), net.constant(np.float32(0)))
    h = net.op("Resize", net.conv(h, 8, 6), "", net.constant(np.array([1, 1, 2, 2], "f")), mode="nearest")
    h = net.op("Reshape", h, net.ints(0, 2, 3, -1))
    h = net.op("Transpose", h, perm=[0, 2, 1, 3])
    h = net.op("ReduceMean", h, net.ints(2, 3), keepdims=0)
    return net.output(net.op("Gather", net.dense(h, 3, 4), net.ints(2, 0), axis=1)).model()


def halves() -> onnx.ModelProto:
    """Weights in float16 and bfloat16."""
    net = Net(22)
    h = net.op("Cast", net.input("N", 4), to=TensorProto.FLOAT16)
    for kind, to in ((np.float16, TensorProto.FLOAT16), (ml_dtypes.bfloat16, TensorProto.BFLOAT16)):
        h = net.op("Cast", h, to=to)
        w = net.random.standard_normal((4, 4)).astype(kind)
        h = net.op("Relu", net.op("MatMul", h, net.constant(w)))
    return net.output(net.op("MatMul", net.op("Cast", h, to=FLOAT), net.weight(4, 2))).model()


def microsoft() -> onnx.ModelProto:
    """Operators of ONNX Runtime."""
    net = Net(17, microsoft=True)
    x = net.input("N", "T", 8)
    own = {"domain": "com.microsoft"}
    h = net.op("Attention", x, net.weight(8, 24), net.weight(24), num_heads=2, **own)
    h = net.op("SkipLayerNormalization", h, x, net.weight(8), net.weight(8), **own)
    h = net.op("BiasGelu", net.op("MatMul", h, net.weight(8, 12)), net.weight(12), **own)
    return net.output(net.op("FusedMatMul", h, net.weight(12, 4), alpha=0.5, **own)).model()


BUILT: dict[str, Callable[[], onnx.ModelProto]] = {
    build.__name__: build
    for build in (
        *(transformer, fused, recurrent, quantized, dynamic, constants, bodies, functions, positions, halves),
        microsoft,
    )
}


def external() -> Seed:
    """Weights outside, in two files, one of them with an offset."""
    net = Net(17)
    h = net.op("Relu", net.dense(net.input("N", 6), 6, 8))
    model = net.output(net.dense(h, 8, 3)).model()
    files = {"weights.bin": b"", "more.bin": bytes(64)}
    for i, tensor in enumerate(model.graph.initializer):
        name = "more.bin" if i == 2 else "weights.bin"
        offset = len(files[name])
        files[name] += tensor.raw_data
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": name, "offset": offset, "length": len(tensor.raw_data)}.items():
            tensor.external_data.add(key=key, value=str(value))
        tensor.ClearField("raw_data")
    return Seed(model.SerializeToString(), files)
