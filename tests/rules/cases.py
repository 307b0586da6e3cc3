"""One small model for every operator that has a rule, in every form that opsets and exporters give it.

A case is a function `draw -> (model, sizes of the groups that must be found)`. The operator stands between a weight
that writes units and one that reads them, so that it is asked to pass them on, to change them, or to keep them whole.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from builders import Net
from hypothesis import strategies as st
from onnx import TensorProto

Draw = Callable[[st.SearchStrategy], object]
Case = Callable[[Draw], tuple[Net, list[int]]]

CASES: dict[str, Case] = {}
"""Cases by `operator` or `operator/variant`."""

SINGLE = {
    "ConvTranspose/grouped": "the reference evaluator takes no groups",
    "GlobalLpPool": "the reference evaluator lacks it",
    "MeanVarianceNormalization": "the reference evaluator knows it in float32 alone",
    "Resize": "the reference evaluator lacks opset 10",
    "Shape": "the scale is a constant of the model's own precision once it is frozen",
    "Upsample": "the reference evaluator lacks it",
}
"""Cases compared in float32 on ONNX Runtime, as com.microsoft's are, and why."""


def case(*names: str) -> Callable[[Callable[..., tuple[Net, list[int]]]], Case]:
    """Registers a case; one function may serve several operators, and is then told which."""

    def register(function: Callable[..., tuple[Net, list[int]]]) -> Case:
        for name in names:
            assert name not in CASES, name
            op = name.split("/")[0].split(":")[-1]
            CASES[name] = (lambda draw, op=op: function(draw, op)) if len(names) > 1 else function
        return function

    return register


def size(draw: Draw, low: int = 2, high: int = 7) -> int:
    return draw(st.integers(low, high))


def opset(draw: Draw, *versions: int) -> int:
    return draw(st.sampled_from(versions))


def maps(draw: Draw, version: int = 21, *, hidden: int | None = None, edge: int = 4) -> tuple[Net, str, int]:
    """An image through a convolution: the net, the feature map, its channels."""
    channels = hidden or size(draw)
    net = Net(version, seed=draw(st.integers(0, 99)))
    x = net.input("N", 2, edge, edge)
    return net, net.conv(x, 2, channels), channels


def rows(draw: Draw, version: int = 21, *, hidden: int | None = None) -> tuple[Net, str, int]:
    """Vectors through a dense layer: the net, the hidden vectors, their width."""
    width = hidden or size(draw)
    net = Net(version, seed=draw(st.integers(0, 99)))
    return net, net.dense(net.input("N", 3), 3, width), width


def read(net: Net, x: str, channels: int) -> Net:
    """Contracts the channels of a feature map and gives out the result."""
    return net.output(net.conv(x, channels, 2))


# elementwise ----------------------------------------------------------------------------------------------------------

UNARY = [
    "Abs",
    "Asinh",
    "Atan",
    "Ceil",
    "Celu",
    "Cos",
    "Cosh",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "LeakyRelu",
    "Mish",
    "Neg",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
]
POSITIVE = ["Acosh", "Log", "Reciprocal", "Sqrt"]
UNIT = ["Acos", "Asin", "Atanh"]
NEWEST = {"Swish": 24}


@case(*UNARY)
def unary(draw: Draw, op: str) -> tuple[Net, list[int]]:
    net, h, n = maps(draw, NEWEST.get(op, 21))
    return read(net, net.op(op, h), n), [n]


@case(*POSITIVE)
def positive(draw: Draw, op: str) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    above_one = net.op("Add", net.op("Abs", h), net.constant(np.full((), 1.5, np.float32)))
    return read(net, net.op(op, above_one), n), [n]


@case(*UNIT)
def unit_interval(draw: Draw, op: str) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    return read(net, net.op(op, net.op("Sigmoid", h)), n), [n]


@case("Gelu", "Gelu/tanh")
def gelu(draw: Draw, op: str) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    return read(net, net.op(op, h, approximate=draw(st.sampled_from(["none", "tanh"]))), n), [n]


@case("Clip")
def clip(draw: Draw) -> tuple[Net, list[int]]:
    version = opset(draw, 9, 13)
    net, h, n = maps(draw, version)
    if version < 11:
        return read(net, net.op("Clip", h, min=-0.5, max=0.5), n), [n]
    low, high = (net.constant(np.array(v, np.float32)) for v in (-0.5, 0.5))
    return read(net, net.op("Clip", h, low, high), n), [n]


@case("Dropout")
def dropout(draw: Draw) -> tuple[Net, list[int]]:
    version = opset(draw, 9, 13)
    net, h, n = maps(draw, version)
    outputs = draw(st.integers(1, 2)) if version > 9 else 1  # the mask was no boolean then
    return read(net, net.op("Dropout", h, outputs=outputs), n), [n]


@case("Cast")
def cast(draw: Draw) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    whole = net.op("Cast", net.op("Round", h), to=TensorProto.INT32)
    return read(net, net.op("Cast", whole, to=TensorProto.FLOAT), n), [n]


@case("CastLike")
def cast_like(draw: Draw) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    whole = net.op("CastLike", net.op("Round", h), net.ints(1))
    return read(net, net.op("Cast", whole, to=TensorProto.FLOAT), n), [n]


@case("IsNaN", "IsInf", "Not")
def tests(draw: Draw, op: str) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    asked = net.op("Greater", h, net.constant(np.zeros((), np.float32))) if op == "Not" else h
    answer = net.op("Cast", net.op(op, asked), to=TensorProto.FLOAT)
    return read(net, net.op("Add", answer, h), n), [n]


@case("Add", "Div", "Mul", "Sub", "Max", "Min", "Sum", "Mean", "PRelu", "Pow")
def with_constant(draw: Draw, op: str) -> tuple[Net, list[int]]:
    """The second operand is a scalar, one number a channel, or a whole map; or another branch."""
    net, h, n = maps(draw)
    shape = draw(st.sampled_from([(), (n, 1, 1), (1, n, 1, 1), (n, 4, 4), (1, 4)]))
    other = net.constant(np.abs(net.random.standard_normal(shape)).astype(np.float32) + 0.5)
    base = net.op("Abs", h) if op == "Pow" else h
    return read(net, net.op(op, base, other), n), [n]


@case("Mod")
def mod(draw: Draw) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    other = net.constant(np.abs(net.random.standard_normal((n, 1, 1))).astype(np.float32) + 0.5)
    return read(net, net.op("Mod", h, other, fmod=1), n), [n]


@case("Add/branches", "Mul/branches")
def two_branches(draw: Draw, op: str) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    other = net.conv("x0", 2, n)
    return read(net, net.op(op, net.op("Relu", h), net.op("Sigmoid", other)), n), [n]


@case("Add/gate")
def squeezed_gate(draw: Draw) -> tuple[Net, list[int]]:
    """A squeeze-and-excitation gate: positions of size 1 are repeated."""
    net, h, n = maps(draw)
    gate = net.conv(net.op("GlobalAveragePool", h), n, n)
    return read(net, net.op("Mul", h, net.op("Sigmoid", gate)), n), [n]


@case("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
def compared(draw: Draw, op: str) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    answer = net.op(op, h, net.weight(n, 1, 1))
    return read(net, net.op("Add", net.op("Cast", answer, to=TensorProto.FLOAT), h), n), [n]


@case("And", "Or", "Xor")
def logic(draw: Draw, op: str) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    zero = net.constant(np.zeros((), np.float32))
    answer = net.op(op, net.op("Greater", h, zero), net.constant(net.random.random((n, 1, 1)) > 0.5))
    return read(net, net.op("Add", net.op("Cast", answer, to=TensorProto.FLOAT), h), n), [n]


@case("BitShift")
def bit_shift(draw: Draw) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    whole = net.op("Cast", net.op("Abs", h), to=TensorProto.UINT32)
    by = net.constant(net.random.integers(0, 3, (n, 1, 1)).astype(np.uint32))
    shifted = net.op("Cast", net.op("BitShift", whole, by, direction="LEFT"), to=TensorProto.FLOAT)
    return read(net, shifted, n), [n]


@case("Where")
def where(draw: Draw) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    condition = net.constant(net.random.random(draw(st.sampled_from([(n, 1, 1), (4, 4)]))) > 0.5)
    return read(net, net.op("Where", condition, h, net.weight(n, 1, 1)), n), [n]


# linear ---------------------------------------------------------------------------------------------------------------


@case("Conv")
def conv(draw: Draw) -> tuple[Net, list[int]]:
    """One, two and three dimensions, strides, dilations, pads, with and without bias."""
    rank, kernel = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    n, m = size(draw), size(draw)
    net = Net(opset(draw, 9, 11, 22), seed=draw(st.integers(0, 99)))
    h = net.op("Conv", net.input("N", 2, *[5] * rank), net.weight(n, 2, *[1] * rank))
    attrs = {"strides": [draw(st.integers(1, 2))] * rank, "pads": [draw(st.integers(0, 2))] * (2 * rank)}
    h = net.conv(net.op("Relu", h), n, m, kernel=kernel, rank=rank, **attrs)
    return net.output(net.conv(h, m, 2, rank=rank)), [n, m]


@case("Conv/grouped")
def grouped_conv(draw: Draw) -> tuple[Net, list[int]]:
    """Of the two ways to cut the channels of a grouped convolution, the finer one is the default."""
    g, i, o = size(draw, 2, 3), size(draw, 1, 4), size(draw, 1, 4)
    net, h, _ = maps(draw, hidden=g * i)
    h = net.conv(net.op("Relu", h), g * i, g * o, kernel=3, group=g, pads=[1, 1, 1, 1])
    expected = [g] if g >= max(i, o) else [x for x in (i, o) if x > 1]
    return read(net, h, g * o), expected


@case("Conv/depthwise")
def depthwise(draw: Draw) -> tuple[Net, list[int]]:
    n, multiplier = size(draw, 3, 6), draw(st.integers(1, 2))
    net, h, _ = maps(draw, hidden=n)
    h = net.conv(net.op("Relu", h), n, n * multiplier, kernel=3, group=n, pads=[1, 1, 1, 1])
    return read(net, h, n * multiplier), [n]


@case("Conv/computed weight")
def conv_computed_weight(draw: Draw) -> tuple[Net, list[int]]:
    """Weight normalization: the norm runs over the inputs, which stay; the outputs go."""
    net, h, n = maps(draw)
    m = size(draw)
    v = net.weight(m, n, 1, 1)
    norm = net.op("ReduceL2", v, net.ints(1, 2, 3))
    w = net.op("Mul", net.op("Div", v, norm), net.weight(m, 1, 1, 1))
    return read(net, net.op("Conv", net.op("Relu", h), w), m), [m]


@case("ConvTranspose")
def conv_transpose(draw: Draw) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    m = size(draw)
    h = net.op("ConvTranspose", net.op("Relu", h), net.weight(n, m, 2, 2), net.weight(m), strides=[2, 2])
    return read(net, h, m), [n, m]


@case("ConvTranspose/grouped")
def grouped_conv_transpose(draw: Draw) -> tuple[Net, list[int]]:
    g = size(draw, 4, 6)
    net, h, _ = maps(draw, hidden=2 * g)
    h = net.op("ConvTranspose", net.op("Relu", h), net.weight(2 * g, 1, 2, 2), net.weight(g), group=g)
    return read(net, h, g), [g]


@case("Gemm")
def gemm(draw: Draw) -> tuple[Net, list[int]]:
    version = opset(draw, 9, 13)
    net, h, n = rows(draw, version)
    m, trans_b, form = size(draw), draw(st.integers(0, 1)), draw(st.sampled_from(["vector", "row", "scalar", "none"]))
    bias = {"vector": (m,), "row": (1, m), "scalar": (1,)}.get(form, ())
    inputs = [net.weight(m, n) if trans_b else net.weight(n, m)]
    inputs += [net.weight(*bias)] if bias or version < 11 else []
    h = net.op("Gemm", net.op("Relu", h), *inputs, alpha=0.5, beta=2.0, transB=trans_b)
    return net.output(net.dense(net.op("Tanh", h), m, 2)), [n, m]


@case("Gemm/transposed data")
def gemm_transposed(draw: Draw) -> tuple[Net, list[int]]:
    net, h, n = rows(draw)
    turned = net.op("Transpose", net.op("Relu", h), perm=[1, 0])
    return net.output(net.op("Gemm", turned, net.weight(n, 2), transA=1)), [n]


@case("MatMul")
def matmul(draw: Draw) -> tuple[Net, list[int]]:
    """Tokens through two weights, leading axes or none."""
    n = size(draw)
    leading = draw(st.sampled_from([(), ("N",), ("N", 3), ("N", 2, 3)]))
    net = Net(seed=draw(st.integers(0, 99)))
    h = net.op("Add", net.op("MatMul", net.input(*leading, 4), net.weight(4, n)), net.weight(n))
    return net.output(net.op("MatMul", net.op("Relu", h), net.weight(n, 3))), [n]


@case("MatMul/weight on the left")
def matmul_left(draw: Draw) -> tuple[Net, list[int]]:
    n = size(draw)
    net = Net(seed=draw(st.integers(0, 99)))
    h = net.op("MatMul", net.weight(n, 4), net.input("N", 4, 5))
    return net.output(net.op("MatMul", net.weight(3, n), net.op("Relu", h))), [n]


@case("MatMul/two activations")
def matmul_activations(draw: Draw) -> tuple[Net, list[int]]:
    """Scores of queries and keys: the width that they share goes from both."""
    n = size(draw)
    net = Net(seed=draw(st.integers(0, 99)))
    x = net.input("N", 5, 4)
    q, k = (net.op("MatMul", x, net.weight(4, n)) for _ in "qk")
    scores = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 2, 1]))
    read_too = net.op("MatMul", k, net.weight(n, 5))
    return net.output(net.op("Add", scores, read_too)), [n]


# normalization --------------------------------------------------------------------------------------------------------


@case("BatchNormalization")
def batch_normalization(draw: Draw) -> tuple[Net, list[int]]:
    net, h, n = maps(draw, opset(draw, 9, 14, 15))
    positive = net.constant(net.random.random(n).astype(np.float32) + 0.5)
    h = net.op("BatchNormalization", h, net.weight(n), net.weight(n), net.weight(n), positive)
    return read(net, h, n), [n]


@case("InstanceNormalization")
def instance_normalization(draw: Draw) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    return read(net, net.op("InstanceNormalization", h, net.weight(n), net.weight(n)), n), [n]


@case("GroupNormalization")
def group_normalization(draw: Draw) -> tuple[Net, list[int]]:
    """Whole groups go, parts of a group stay."""
    version = opset(draw, 18, 21)
    g, c = size(draw), size(draw, 1, 3)
    net, h, n = maps(draw, version, hidden=g * c)
    width = g if version < 21 else n
    h = net.op("GroupNormalization", h, net.weight(width), net.weight(width), num_groups=g)
    return read(net, h, n), [g]


@case("LayerNormalization", "RMSNormalization")
def layer_normalization(draw: Draw, op: str) -> tuple[Net, list[int]]:
    """What is normalized over stays; the hidden width before it goes."""
    n = size(draw)
    net, h, _ = rows(draw, 23, hidden=n)
    h = net.op("MatMul", net.op("Relu", h), net.weight(n, 5))
    parameters = [net.weight(5), net.weight(5)][: 2 if op == "LayerNormalization" else 1]
    return net.output(net.op("MatMul", net.op(op, h, *parameters), net.weight(5, 2))), [n]


@case("LpNormalization", "LRN", "MeanVarianceNormalization")
def other_norms(draw: Draw, op: str) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    attrs = {"LpNormalization": {"axis": 1}, "LRN": {"size": 3}, "MeanVarianceNormalization": {"axes": [1]}}[op]
    h = net.op(op, net.conv(net.op("Relu", h), n, 5), **attrs)
    return read(net, h, 5), [n]


# pooling --------------------------------------------------------------------------------------------------------------


@case("AveragePool", "MaxPool", "LpPool")
def windows(draw: Draw, op: str) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    attrs = {"kernel_shape": [2, 2], "strides": [draw(st.integers(1, 2))] * 2}
    return read(net, net.op(op, h, **attrs), n), [n]


@case("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def global_pool(draw: Draw, op: str) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    return read(net, net.op(op, h), n), [n]


@case("MaxPool/indices")
def max_pool_indices(draw: Draw) -> tuple[Net, list[int]]:
    """Indices count through the channels, so those stay."""
    net, h, n = maps(draw)
    m = size(draw)
    h = net.conv(net.op("Relu", h), n, m)
    y, indices = net.ops("MaxPool", h, outputs=2, kernel_shape=[2, 2])
    out = net.op("Add", net.conv(y, m, 2), net.op("Cast", net.op("ReduceMax", indices), to=TensorProto.FLOAT))
    return net.output(out), [n]


# reductions -----------------------------------------------------------------------------------------------------------


REDUCTIONS = [
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
]


def reduced(net: Net, op: str, x: str, axes: list[int], keepdims: int) -> str:
    """A reduction with its axes where the opset wants them."""
    if net.opset >= (13 if op == "ReduceSum" else 18):
        return net.op(op, x, net.ints(*axes), keepdims=keepdims)
    return net.op(op, x, axes=axes, keepdims=keepdims)


@case(*REDUCTIONS, "ReduceSumSquare")
def reduction(draw: Draw, op: str) -> tuple[Net, list[int]]:
    """Over positions: channels pass, with and without the axes that were reduced."""
    net, h, n = maps(draw, opset(draw, 11, 13, 18))
    keep = draw(st.integers(0, 1))
    h = reduced(net, op, net.op("Sigmoid", h), draw(st.sampled_from([[2, 3], [-1, -2]])), keep)
    return (read(net, h, n) if keep else net.output(net.dense(h, n, 2))), [n]


@case("ReduceMean/channels", "ReduceMax/channels")
def reduction_of_channels(draw: Draw, op: str) -> tuple[Net, list[int]]:
    """A mean over channels would change: they stay, what comes before goes."""
    net, h, n = maps(draw)
    h = net.conv(net.op("Relu", h), n, 5)
    attention = reduced(net, op, h, [1], 1)
    return read(net, net.op("Mul", h, net.op("Sigmoid", attention)), 5), [n]


@case("ReduceSum/channels", "ReduceL2/channels")
def sum_of_channels(draw: Draw, op: str) -> tuple[Net, list[int]]:
    """Zeros add nothing: channels go."""
    net, h, n = maps(draw)
    total = reduced(net, op, net.op("Relu", h), [1], 1)
    return net.output(net.op("Add", net.conv(net.op("Relu", h), n, 1), total)), [n]


@case("ArgMax", "ArgMin")
def extreme(draw: Draw, op: str) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    best = net.op("Cast", net.op(op, h, axis=2, keepdims=1), to=TensorProto.FLOAT)
    return read(net, net.op("Add", best, h), n), [n]


@case("Softmax", "LogSoftmax", "Hardmax")
def softmax(draw: Draw, op: str) -> tuple[Net, list[int]]:
    """Over positions channels pass, also in the flattened form of old opsets."""
    version = opset(draw, 9, 13)
    net, h, n = maps(draw, version)
    return read(net, net.op(op, h, axis=3 if version < 13 else draw(st.sampled_from([2, 3, -1]))), n), [n]


@case("Softmax/channels")
def softmax_of_channels(draw: Draw) -> tuple[Net, list[int]]:
    version = opset(draw, 9, 13)
    net, h, n = maps(draw, version)
    h = net.conv(net.op("Relu", h), n, 5)
    return read(net, net.op("Softmax", h, axis=1), 5), [n]


@case("CumSum")
def cumsum(draw: Draw) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    return read(net, net.op("CumSum", h, net.constant(np.array(draw(st.sampled_from([2, -1])), np.int64))), n), [n]


# layout ---------------------------------------------------------------------------------------------------------------


@case("Reshape")
def reshape(draw: Draw) -> tuple[Net, list[int]]:
    """Channels apart and together again, the batch copied, inferred or stated."""
    a, b = size(draw, 2, 3), size(draw, 4, 6)
    net, h, n = maps(draw, hidden=a * b)
    split = draw(st.sampled_from([(0, a, b, 4, 4), (-1, a, b, 4, 4), (0, a, b, 16), (0, a, -1, 4, 4)]))
    h = net.op("Reshape", net.op("Relu", h), net.ints(*split), allowzero=0)
    h = net.op("Reshape", net.op("Tanh", h), net.ints(draw(st.sampled_from([0, -1])), n, 4, 4))
    return read(net, h, n), [b]


@case("Reshape/flatten")
def reshape_flatten(draw: Draw) -> tuple[Net, list[int]]:
    """Channels times positions in front of a dense layer, the width stated or inferred."""
    net, h, n = maps(draw)
    h = net.op("Reshape", net.op("Relu", h), net.ints(*draw(st.sampled_from([(-1, 16 * n), (0, -1), (0, 16 * n)]))))
    return net.output(net.dense(h, 16 * n, 3)), [n]


@case("Reshape/computed target")
def reshape_computed(draw: Draw) -> tuple[Net, list[int]]:
    """The target is put together from Shape and a literal width, or from sizes alone."""
    net, h, n = maps(draw)
    h = net.op("Relu", h)
    shape = net.op("Shape", h)
    pick = lambda i: net.op("Unsqueeze", net.op("Gather", shape, net.constant(np.array(i, np.int64))), net.ints(0))  # noqa: E731
    literal = net.op("Unsqueeze", net.constant(np.array(16 * n, np.int64)), net.ints(0))
    product = net.op("Mul", pick(1), net.op("Mul", pick(2), pick(3)))
    halves = net.op("Mul", net.op("Div", pick(1), net.ints(2)), net.ints(32))
    choices = [literal, product, net.ints(-1)] + ([halves] if n % 2 == 0 else [])
    target = net.op("Concat", pick(0), draw(st.sampled_from(choices)), axis=0)
    return net.output(net.dense(net.op("Reshape", h, target), 16 * n, 3)), [n]


@case("Reshape/channel shuffle")
def channel_shuffle(draw: Draw) -> tuple[Net, list[int]]:
    """Two groups of channels are interleaved: a channel goes from both."""
    n = 2 * size(draw, 3, 5)
    net, h, _ = maps(draw, hidden=n)
    h = net.op("Reshape", net.op("Relu", h), net.ints(-1, 2, n // 2, 4, 4))
    h = net.op("Reshape", net.op("Transpose", h, perm=[0, 2, 1, 3, 4]), net.ints(-1, n, 4, 4))
    return read(net, h, n), [n // 2]


@case("Reshape/shuffled halves")
def shuffled_halves(draw: Draw) -> tuple[Net, list[int]]:
    """As in ShuffleNetV2: the shuffled channels are halved, also where half of them is odd."""
    n = size(draw, 3, 7)
    net, h, _ = maps(draw, hidden=n)
    both = net.op("Concat", net.op("Relu", h), net.conv("x0", 2, n), axis=1)
    both = net.op("Reshape", both, net.ints(-1, 2, n, 4, 4))
    both = net.op("Reshape", net.op("Transpose", both, perm=[0, 2, 1, 3, 4]), net.ints(-1, 2 * n, 4, 4))
    left, right = net.ops("Split", both, net.ints(n, n), outputs=2, axis=1)
    out = net.op("Add", net.conv(left, n, 2), net.conv(net.op("Relu", right), n, 2))
    return net.output(out), [n] if n % 2 else [n // 2, n // 2]


@case("Flatten")
def flatten(draw: Draw) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    h = net.op("Flatten", net.op("Relu", h), axis=draw(st.sampled_from([1, -3])))
    return net.output(net.dense(h, 16 * n, 3)), [n]


@case("Transpose")
def transpose(draw: Draw) -> tuple[Net, list[int]]:
    """Channels to the end for a dense layer at each position, as in networks of tf2onnx."""
    net, h, n = maps(draw)
    h = net.op("Transpose", net.op("Relu", h), perm=[0, 2, 3, 1])
    return net.output(net.op("MatMul", h, net.weight(n, 3))), [n]


@case("Squeeze", "Squeeze/all")
def squeeze(draw: Draw, op: str) -> tuple[Net, list[int]]:
    version = opset(draw, 9, 13)
    net, h, n = maps(draw, version)
    h = net.op("GlobalAveragePool", h)
    if version < 13:
        h = net.op("Squeeze", h, axes=[2, -1] if version >= 11 else [2, 3])
    else:
        h = net.op("Squeeze", h, *([net.ints(2, -1)] if draw(st.booleans()) else []))
    return net.output(net.dense(h, n, 3)), [n]


@case("Unsqueeze")
def unsqueeze(draw: Draw) -> tuple[Net, list[int]]:
    version = opset(draw, 9, 13)
    net, h, n = rows(draw, version)
    h = net.op("Unsqueeze", h, axes=[2, 3]) if version < 13 else net.op("Unsqueeze", h, net.ints(2, -1))
    return read(net, net.op("Relu", h), n), [n]


@case("Concat")
def concat(draw: Draw) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    m = size(draw)
    both = net.op("Concat", net.op("Relu", h), net.conv("x0", 2, m), axis=draw(st.sampled_from([1, -3])))
    return read(net, both, n + m), [n, m]


@case("Concat/flattened")
def concat_flattened(draw: Draw) -> tuple[Net, list[int]]:
    """A concatenation inside a product: two maps joined, then flattened."""
    net, h, n = maps(draw, edge=2)
    m = size(draw)
    both = net.op("Concat", net.op("Relu", h), net.conv("x0", 2, m), axis=1)
    return net.output(net.dense(net.op("Flatten", both), 4 * (n + m), 3)), [n, m]


@case("Split")
def split(draw: Draw) -> tuple[Net, list[int]]:
    """Equal parts implied, stated by attribute or by input, unequal parts."""
    version = opset(draw, 9, 13, 18)
    a = size(draw)
    b = draw(st.sampled_from([a, size(draw)]))
    net, h, _ = maps(draw, version, hidden=a + b)
    h = net.op("Relu", h)
    if a == b and draw(st.booleans()):
        attrs = {"num_outputs": 2} if version >= 18 else {}
        left, right = net.ops("Split", h, outputs=2, axis=1, **attrs)
    elif version < 13:
        left, right = net.ops("Split", h, outputs=2, axis=1, split=[a, b])
    else:
        left, right = net.ops("Split", h, net.ints(a, b), outputs=2, axis=1)
    return net.output(net.op("Add", net.conv(left, a, 2), net.conv(right, b, 2))), [a, b]


@case("Slice")
def slice_(draw: Draw) -> tuple[Net, list[int]]:
    """A range of channels, counted from either end; what is cut off has no reader and stays."""
    version = opset(draw, 9, 10, 13)
    n = size(draw, 5, 8)
    net, h, _ = maps(draw, version, hidden=n)
    start = draw(st.integers(0, 2))
    stop = draw(st.sampled_from([n - 1, n, -1, 2**31 - 1]))
    taken = len(range(n)[start:stop])
    h = net.op("Relu", h)
    if version < 10:
        part = net.op("Slice", h, axes=[1], starts=[start], ends=[stop])
    else:
        part = net.op("Slice", h, net.ints(start), net.ints(stop), net.ints(1))
    return read(net, part, taken), [taken]


@case("Slice/both parts")
def sliced_apart(draw: Draw) -> tuple[Net, list[int]]:
    """Two slices of one axis, as `chunk` is exported."""
    a, b = size(draw), size(draw)
    net, h, _ = maps(draw, hidden=a + b)
    h = net.op("Relu", h)
    left = net.op("Slice", h, net.ints(0), net.ints(a), net.ints(1), net.ints(1))
    right = net.op("Slice", h, net.ints(a), net.ints(2**63 - 1), net.ints(1), net.ints(1))
    return net.output(net.op("Add", net.conv(left, a, 2), net.conv(right, b, 2))), [a, b]


@case("Slice/strided")
def slice_strided(draw: Draw) -> tuple[Net, list[int]]:
    """Every which channel, from any start: those that are read form groups."""
    n, step, start = size(draw, 6, 11), draw(st.integers(2, 3)), draw(st.integers(0, 2))
    net, h, _ = maps(draw, hidden=n)
    part = net.op("Slice", net.op("Relu", h), net.ints(start), net.ints(n), net.ints(1), net.ints(step))
    taken = len(range(start, n, step))
    whole = (n - start) // step
    return read(net, part, taken), [whole] if whole > 1 else []


@case("Slice/positions")
def slice_positions(draw: Draw) -> tuple[Net, list[int]]:
    """Every second pixel, as in option-A shortcuts."""
    net, h, n = maps(draw)
    h = net.op("Slice", h, net.ints(0, 0), net.ints(2**63 - 1, 2**63 - 1), net.ints(2, 3), net.ints(2, 2))
    return read(net, h, n), [n]


@case("Slice/reversed")
def slice_reversed(draw: Draw) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    h = net.op("Slice", net.op("Relu", h), net.ints(-1), net.ints(-(2**63) + 1), net.ints(1), net.ints(-1))
    return read(net, h, n), [n]


@case("Gather")
def gather_table(draw: Draw) -> tuple[Net, list[int]]:
    """A table read by data writes its columns; its rows stay."""
    n = size(draw)
    net = Net(seed=draw(st.integers(0, 99)))
    h = net.op("Gather", net.weight(9, n), net.input("N", 4, kind=TensorProto.INT64))
    return net.output(net.op("MatMul", net.op("Relu", h), net.weight(n, 3))), [n]


@case("Gather/positions")
def gather_position(draw: Draw) -> tuple[Net, list[int]]:
    """One position of the image; channels pass."""
    net, h, n = maps(draw)
    index = net.constant(np.array(draw(st.sampled_from([0, 2, -1])), np.int64))
    h = net.op("Gather", net.op("Gather", net.op("Relu", h), index, axis=3), index, axis=2)
    return net.output(net.dense(h, n, 3)), [n]


@case("Gather/channels")
def gather_channels(draw: Draw) -> tuple[Net, list[int]]:
    """Channels in another order, some twice, some not at all."""
    net, h, n = maps(draw)
    picks = draw(st.lists(st.integers(-n, n - 1), min_size=2, max_size=8))
    used = len({pick % n for pick in picks})
    out = net.op("Gather", net.op("Relu", h), net.ints(*picks), axis=1)
    return read(net, out, len(picks)), [used] if used > 1 else []


@case("GatherElements", "ScatterElements", "GatherND", "ScatterND")
def indexed(draw: Draw, op: str) -> tuple[Net, list[int]]:
    """Positions that data decide: everything there stays, what comes before goes."""
    net, h, n = maps(draw, edge=2)
    h = net.conv(net.op("Relu", h), n, 2)
    index = net.constant(np.zeros((2, 2, 2, 2) if "Elements" in op else (2, 1), np.int64))
    updates = [net.weight(2, 2, 2, 2)] if op.startswith("Scatter") else []
    h = net.op(op, h, index, *updates, **({"axis": 0} if "Elements" in op else {}))
    return read(net, h, 2), [n]


@case("Expand")
def expand(draw: Draw) -> tuple[Net, list[int]]:
    """Pooled features are spread over positions again; channels pass, stated or as 1."""
    net, h, n = maps(draw)
    h = net.op("Expand", net.op("GlobalAveragePool", h), net.ints(1, draw(st.sampled_from([1, n])), 4, 4))
    return read(net, h, n), [n]


@case("Expand/channels")
def expand_channels(draw: Draw) -> tuple[Net, list[int]]:
    """One channel is repeated to as many as another branch has."""
    net, h, n = maps(draw)
    one = net.op("Expand", net.conv("x0", 2, 1), net.ints(1, n, 1, 1))
    return read(net, net.op("Add", net.op("Relu", h), one), n), [n]


@case("Tile")
def tile(draw: Draw) -> tuple[Net, list[int]]:
    """Channels repeated as a whole, positions repeated."""
    net, h, n = maps(draw)
    times = draw(st.integers(1, 3))
    h = net.op("Tile", net.op("Relu", h), net.ints(1, times, 2, 1))
    return read(net, h, times * n), [n]


@case("Pad")
def pad(draw: Draw) -> tuple[Net, list[int]]:
    """Positions, by attribute or input, also with axes."""
    version = opset(draw, 9, 13, 21)
    net, h, n = maps(draw, version)
    if version < 11:
        h = net.op("Pad", h, pads=[0, 0, 1, 1, 0, 0, 0, 2])
    elif version < 18:
        h = net.op("Pad", h, net.ints(0, 0, 1, 1, 0, 0, 0, 2), mode=draw(st.sampled_from(["constant", "reflect"])))
    else:
        h = net.op("Pad", h, net.ints(1, 1, 0, 2), "", net.ints(2, -1))
    return read(net, h, n), [n]


@case("Pad/channels")
def pad_channels(draw: Draw) -> tuple[Net, list[int]]:
    """An option-A shortcut: channels of zeros on both sides, added to a wider branch."""
    net, h, n = maps(draw)
    a, b = draw(st.integers(0, 3)), draw(st.integers(2, 3))
    wide = net.op("Pad", net.op("Relu", h), net.ints(0, a, 0, 0, 0, b, 0, 0))
    h = net.op("Add", wide, net.conv("x0", 2, a + n + b))
    return read(net, net.op("Relu", h), a + n + b), [x for x in (a, n, b) if x > 1]


@case("Resize")
def resize(draw: Draw) -> tuple[Net, list[int]]:
    """By scales, by sizes with the channels in them, and by both since opset 18 for some axes alone."""
    version = opset(draw, 10, 13, 19)
    net, h, n = maps(draw, version)
    scales = net.constant(np.array([1, 1, 2, 2], np.float32))
    if version == 10:
        h = net.op("Resize", h, scales, mode="nearest")
    elif draw(st.booleans()) and version >= 18:
        h = net.op("Resize", h, "", "", net.ints(8, 6), axes=[2, 3], mode="linear")
    elif draw(st.booleans()):
        whole = net.op("Shape", h)
        batch = net.op("Slice", whole, net.ints(0), net.ints(1))
        h = net.op("Resize", h, "", "", net.op("Concat", batch, net.ints(n, 8, 6), axis=0), mode="linear")
    else:
        h = net.op("Resize", h, "", scales, mode="nearest")
    return read(net, h, n), [n]


@case("Upsample")
def upsample(draw: Draw) -> tuple[Net, list[int]]:
    version = opset(draw, 7, 9)
    net, h, n = maps(draw, version)
    if version < 9:
        h = net.op("Upsample", h, scales=[1.0, 1.0, 2.0, 2.0])
    else:
        h = net.op("Upsample", h, net.constant(np.array([1, 1, 2, 2], np.float32)))
    return read(net, h, n), [n]


@case("DepthToSpace")
def depth_to_space(draw: Draw) -> tuple[Net, list[int]]:
    """The pixels of a block stay, whole channels of the result go."""
    n = size(draw)
    net, h, _ = maps(draw, hidden=4 * n)
    h = net.op("DepthToSpace", net.op("Relu", h), blocksize=2, mode=draw(st.sampled_from(["DCR", "CRD"])))
    return read(net, h, n), [n]


@case("SpaceToDepth")
def space_to_depth(draw: Draw) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    return read(net, net.op("SpaceToDepth", net.op("Relu", h), blocksize=2), 4 * n), [n]


@case("Shape")
def shape(draw: Draw) -> tuple[Net, list[int]]:
    """A size that is used as a value keeps its value: here the number of channels scales the result."""
    net, h, n = maps(draw)
    channels = net.op("Gather", net.op("Shape", h), net.constant(np.array(1, np.int64)))
    scale = net.op("Sqrt", net.op("Cast", channels, to=TensorProto.FLOAT))
    return read(net, net.op("Div", net.op("Relu", h), scale), n), [n]


@case("Size")
def size_(draw: Draw) -> tuple[Net, list[int]]:
    """The number of elements is used as a value, and would not keep it: the channels that it counts stay."""
    net, h, n = maps(draw)
    h = net.conv(net.op("Relu", h), n, 3)
    count = net.op("Cast", net.op("Size", h), to=TensorProto.FLOAT)
    return read(net, net.op("Div", h, count), 3), [n]


@case("ConstantOfShape")
def constant_of_shape(draw: Draw) -> tuple[Net, list[int]]:
    """Ones of as many channels as another branch has, their number literal or from Shape."""
    net, h, n = maps(draw)
    h = net.op("Relu", h)
    channels = net.op("Slice", net.op("Shape", h), net.ints(1), net.ints(2))
    target = net.op("Concat", net.ints(1), draw(st.sampled_from([channels, net.ints(n)])), net.ints(1, 1), axis=0)
    one = np.ones(1, np.float32)
    from onnx import numpy_helper

    ones = net.op("ConstantOfShape", target, value=numpy_helper.from_array(one))
    return read(net, net.op("Add", h, ones), n), [n]


# com.microsoft --------------------------------------------------------------------------------------------------------


def fused(net: Net) -> Net:
    """The same net, importing ONNX Runtime's operators."""
    from onnx import helper

    net.imports.append(helper.make_opsetid("com.microsoft", 1))
    return net


@case("com.microsoft:Gelu", "com.microsoft:FastGelu", "com.microsoft:QuickGelu")
def microsoft_gelu(draw: Draw, op: str) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    return read(fused(net), net.op(op, h, domain="com.microsoft"), n), [n]


@case("com.microsoft:FusedConv")
def fused_conv(draw: Draw) -> tuple[Net, list[int]]:
    """A convolution with its activation, and with a branch that is added before it."""
    net, h, n = maps(draw)
    m = size(draw)
    h = net.op("Relu", h)
    sides = [net.conv("x0", 2, m)] if draw(st.booleans()) else []
    w, b = net.weight(m, n, 1, 1), net.weight(m)
    h = net.op("FusedConv", h, w, b, *sides, domain="com.microsoft", activation="Relu", kernel_shape=[1, 1])
    return read(fused(net), h, m), [n, m]


@case("com.microsoft:FusedGemm")
def fused_gemm(draw: Draw) -> tuple[Net, list[int]]:
    net, h, n = rows(draw)
    m = size(draw)
    h = net.op("FusedGemm", h, net.weight(n, m), net.weight(m), domain="com.microsoft", activation="Relu")
    return fused(net).output(net.dense(h, m, 2)), [n, m]
