"""The law for what real exports are made of: small models of each hard pattern, none of which has a rule of its own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from builders import Net
from laws import check_law
from onnxprune.grouping import find_units

WIDTH, HIDDEN = 6, 10


def whole(net: Net, values: object) -> str:
    return net.constant(np.array(values, np.int64))


def linear(net: Net, x: str, inputs: int, outputs: int) -> str:
    """MatMul and Add, as dense layers over tokens are exported."""
    return net.op("Add", net.op("MatMul", x, net.weight(inputs, outputs)), net.weight(outputs))


def part(net: Net, x: str, index: int) -> str:
    """One size of a tensor as a vector, as exporters take it."""
    return net.op("Unsqueeze", net.op("Gather", net.op("Shape", x), whole(net, index)), net.ints(0))


def window_partition() -> tuple[Net, list[int]]:
    """Windows of an image by a 6-D Reshape and Transpose, a layer in each window, and back."""
    net = Net(20)
    h = net.op("Relu", linear(net, net.input("N", 8, 8, 3), 3, WIDTH))
    h = net.op("Transpose", net.op("Reshape", h, net.ints(-1, 2, 4, 2, 4, WIDTH)), perm=[0, 1, 3, 2, 4, 5])
    h = linear(net, net.op("Reshape", h, net.ints(-1, 16, WIDTH)), WIDTH, HIDDEN)
    h = net.op("Reshape", net.op("Relu", h), net.ints(-1, 2, 2, 4, 4, HIDDEN))
    h = net.op("Reshape", net.op("Transpose", h, perm=[0, 1, 3, 2, 4, 5]), net.ints(-1, 8, 8, HIDDEN))
    return net.output(linear(net, h, HIDDEN, 2)), [WIDTH, HIDDEN]


def shifted_windows() -> tuple[Net, list[int]]:
    """An image rolled along rows and columns by Slice and Concat."""
    net = Net(20)
    h = net.op("Relu", linear(net, net.input("N", 8, 8, 3), 3, WIDTH))
    for axis in (1, 2):
        last = net.op("Slice", h, net.ints(2), net.ints(2**63 - 1), net.ints(axis), net.ints(1))
        h = net.op("Concat", last, net.op("Slice", h, net.ints(0), net.ints(2), net.ints(axis)), axis=axis)
    return net.output(linear(net, h, WIDTH, 2)), [WIDTH]


def relative_positions() -> tuple[Net, list[int]]:
    """Attention in which a table of relative positions, a column for each head, is added to the scores."""
    net, heads, width, tokens = Net(20), 3, 4, 5
    x = net.input("N", tokens, 7)

    def split(perm: list[int]) -> str:
        h = net.op("Reshape", linear(net, x, 7, heads * width), net.ints(0, tokens, heads, width))
        return net.op("Transpose", h, perm=perm)

    scores = net.op("MatMul", split([0, 2, 1, 3]), split([0, 2, 3, 1]))
    scores = net.op("Mul", scores, net.constant(np.float32(0.5)))
    places = np.arange(tokens)[:, None] - np.arange(tokens) + tokens - 1
    bias = net.op("Gather", net.weight(2 * tokens - 1, heads), whole(net, places.ravel()), axis=0)
    bias = net.op("Transpose", net.op("Reshape", bias, net.ints(tokens, tokens, heads)), perm=[2, 0, 1])
    scores = net.op("Softmax", net.op("Add", scores, net.op("Unsqueeze", bias, net.ints(0))), axis=-1)
    h = net.op("Transpose", net.op("MatMul", scores, split([0, 2, 1, 3])), perm=[0, 2, 1, 3])
    h = net.op("Reshape", h, net.ints(0, tokens, heads * width))
    return net.output(linear(net, h, heads * width, 2)), [heads]


def group_normalization() -> tuple[Net, list[int]]:
    """Spelled as Reshape, InstanceNormalization and Reshape: whole groups may go, parts of one may not."""
    net = Net(20)
    h = net.conv(net.op("Relu", net.conv(net.input("N", 2, 4, 4), 2, WIDTH)), WIDTH, 8)
    grouped = net.op("Reshape", h, net.ints(0, 2, -1))
    ones, zeros = (net.constant(np.full(2, value, np.float32)) for value in (1, 0))
    back = net.op("Reshape", net.op("InstanceNormalization", grouped, ones, zeros), net.op("Shape", h))
    back = net.op("Add", net.op("Mul", back, net.weight(8, 1, 1)), net.weight(8, 1, 1))
    return net.output(net.conv(net.op("Relu", back), 8, 2)), [WIDTH, 2]


def pixel_shuffle() -> tuple[Net, list[int]]:
    """Four channels become the pixels of one, by a 6-D Reshape and Transpose."""
    net = Net(20)
    h = net.op("Relu", net.conv(net.input("N", 2, 3, 3), 2, 4 * WIDTH))
    h = net.op("Transpose", net.op("Reshape", h, net.ints(-1, WIDTH, 2, 2, 3, 3)), perm=[0, 1, 4, 2, 5, 3])
    return net.output(net.conv(net.op("Reshape", h, net.ints(-1, WIDTH, 6, 6)), WIDTH, 2)), [WIDTH]


def transposed_weights() -> tuple[Net, list[int]]:
    """Weights behind a Transpose, and one as the left operand."""
    net = Net(20)
    turned = net.op("Transpose", net.weight(WIDTH, 3), perm=[1, 0])
    h = net.op("Relu", net.op("MatMul", net.input("N", 4, 3), turned))
    h = net.op("Transpose", h, perm=[0, 2, 1])
    h = net.op("Tanh", net.op("Add", net.op("MatMul", net.weight(HIDDEN, WIDTH), h), net.weight(HIDDEN, 1)))
    return net.output(net.op("MatMul", net.weight(2, HIDDEN), h)), [WIDTH, HIDDEN]


def conv1d_style() -> tuple[Net, list[int]]:
    """Rows flattened for a Gemm with the weight stored as (inputs, outputs), and back, as GPT-2's layers are."""
    net = Net(20)
    x = net.input("N", 4, 3)
    h = net.op("Gemm", net.op("Reshape", x, net.ints(-1, 3)), net.weight(3, HIDDEN), net.weight(HIDDEN))
    shape = net.op("Concat", part(net, x, 0), part(net, x, 1), net.ints(HIDDEN), axis=0)
    h = net.op("Reshape", net.op("Gelu", net.op("Reshape", h, shape)), net.ints(-1, HIDDEN))
    return net.output(net.op("Gemm", h, net.weight(HIDDEN, 2), net.weight(2))), [HIDDEN]


def weight_twice() -> tuple[Net, list[int]]:
    """One weight in two places: what it makes goes from both, and so does what reads it."""
    net = Net(20)
    x, first, second = net.input("N", 3), net.weight(3, WIDTH), net.weight(WIDTH, 2)
    left = net.op("MatMul", net.op("Relu", net.op("MatMul", x, first)), second)
    right = net.op("MatMul", net.op("Tanh", net.op("MatMul", net.op("Neg", x), first)), second)
    return net.output(net.op("Mul", left, right)), [WIDTH]


def tied_embeddings(*, folded: bool = False) -> tuple[Net, list[int]]:
    """A table that is read by data, and reads the last states, as a Transpose of it or as a folded copy."""
    net = Net(20)
    table = net.weight(9, WIDTH, name="table")
    h = net.op("Gather", table, net.input("N", 4, kind=TensorProto.INT64))
    h = net.op("Add", h, linear(net, net.op("Gelu", linear(net, h, WIDTH, HIDDEN)), HIDDEN, WIDTH))
    if folded:
        values = np.frombuffer(net.initializers[0].raw_data, np.float32).reshape(9, WIDTH)
        turned = net.constant(np.ascontiguousarray(values.T), "turned")
    else:
        turned = net.op("Transpose", table, perm=[1, 0])
    return net.output(net.op("MatMul", h, turned)), [WIDTH, HIDDEN]


def folded_tied_embeddings() -> tuple[Net, list[int]]:
    """The copy of the same table."""
    return tied_embeddings(folded=True)


def tile_by_computed_repeat() -> tuple[Net, list[int]]:
    """A token that is learned, once for each sample, in front of the others."""
    net = Net(20)
    h = linear(net, net.input("N", 4, 3), 3, WIDTH)
    token = net.op("Tile", net.weight(1, 1, WIDTH), net.op("Concat", part(net, h, 0), net.ints(1, 1), axis=0))
    h = net.op("Relu", net.op("Concat", token, h, axis=1))
    return net.output(linear(net, h, WIDTH, 2)), [WIDTH]


def expand_to_computed_shape() -> tuple[Net, list[int]]:
    """The same with Expand, the width a number in a computed shape."""
    net = Net(20)
    h = linear(net, net.input("N", 4, 3), 3, WIDTH)
    shape = net.op("Concat", part(net, h, 0), net.ints(1), net.ints(WIDTH), axis=0)
    h = net.op("Relu", net.op("Concat", net.op("Expand", net.weight(1, 1, WIDTH), shape), h, axis=1))
    return net.output(linear(net, h, WIDTH, 2)), [WIDTH]


def resize_to_computed_size() -> tuple[Net, list[int]]:
    """A map enlarged to the size of another one, with the channels as a number."""
    net = Net(20)
    x = net.input("N", 2, 8, 8)
    h = net.op("Relu", net.conv(x, 2, WIDTH, strides=[2, 2]))
    size = net.op("Concat", part(net, h, 0), net.ints(WIDTH), part(net, x, 2), part(net, x, 3), axis=0)
    return net.output(net.conv(net.op("Resize", h, "", "", size, mode="nearest"), WIDTH, 2)), [WIDTH]


def tile_by_one_hot() -> tuple[Net, list[int]]:
    """Each token once for each chosen expert, as repeat_interleave is exported: their number, among ones."""
    net = Net(20)
    x = net.input("N", "T", 4)
    h = net.op("Relu", linear(net, x, 4, WIDTH))
    best = net.ops("TopK", linear(net, h, WIDTH, 5), net.ints(2), outputs=2)[1]
    values = net.op("Concat", net.ints(1), part(net, best, 2), axis=0)
    repeats = net.op("Reshape", net.op("OneHot", net.ints(2), whole(net, 4), values), net.ints(-1))
    h = net.op("Tile", net.op("Unsqueeze", h, net.ints(2)), repeats)
    return net.output(linear(net, h, WIDTH, 2)), [WIDTH]


def mixture_of_experts() -> tuple[Net, list[int]]:
    """A gate that takes the two best of three experts: each expert loses hidden units of its own."""
    net = Net(20)
    x = net.input("N", 4)
    _, best = net.ops("TopK", net.op("Softmax", linear(net, x, 4, 3)), net.ints(2), outputs=2)
    gate = net.op("ReduceSum", net.op("OneHot", best, whole(net, 3), net.constant(np.array([0, 1], "f"))), net.ints(1))
    gates = net.ops("Split", net.op("Squeeze", gate, net.ints(1)), outputs=3, axis=1, num_outputs=3)
    widths = [5, 6, 7]
    outs = []
    for width, one in zip(widths, gates, strict=True):
        outs.append(net.op("Mul", linear(net, net.op("Gelu", linear(net, x, 4, width)), width, 2), one))
    return net.output(net.op("Sum", *outs)), widths


def stacked_experts() -> tuple[Net, list[int]]:
    """Weights of all experts in one tensor, of which data pick one for each sample: their hidden units go from all."""
    net = Net(20)
    x = net.input("N", 4)
    best = net.op("ArgMax", linear(net, x, 4, 3), axis=1, keepdims=0)
    h = net.op("MatMul", net.op("Unsqueeze", x, net.ints(1)), net.op("Gather", net.weight(3, 4, HIDDEN), best))
    h = net.op("MatMul", net.op("Gelu", h), net.op("Gather", net.weight(3, HIDDEN, 2), best))
    return net.output(h), [HIDDEN]


def stacked_experts_first() -> tuple[Net, list[int]]:
    """The same as transformers multiplies them: weights to the left of a column, gate and up in one.

    The newer exporter picks them by GatherND.
    """
    net = Net(20)
    x = net.input("N", 4)
    best = net.op("ArgMax", linear(net, x, 4, 3), axis=1, keepdims=0)
    h = net.op("MatMul", net.op("Gather", net.weight(3, 2 * HIDDEN, 4), best), net.op("Unsqueeze", x, net.ints(2)))
    gate, up = net.ops("Split", net.op("Squeeze", h, net.ints(2)), outputs=2, axis=1, num_outputs=2)
    h = net.op("Unsqueeze", net.op("Mul", net.op("Sigmoid", gate), up), net.ints(2))
    picked = net.op("GatherND", net.weight(3, 2, HIDDEN), net.op("Unsqueeze", best, net.ints(1)))
    return net.output(net.op("MatMul", picked, h)), [HIDDEN]


def weight_in_front_of_words() -> tuple[Net, list[int]]:
    """Words are picked from a table, but what they are multiplied with is the weight, on whichever side it stands."""
    net = Net(20)
    words = net.op("Gather", net.weight(9, 6), net.input("N", 5, kind=TensorProto.INT64))
    h = net.op("MatMul", net.weight(HIDDEN, 6), net.op("Transpose", words, perm=[0, 2, 1]))
    return net.output(net.op("MatMul", net.weight(2, HIDDEN), net.op("Relu", h))), [6, HIDDEN]


SINGLE = {"mixture_of_experts": "the reference evaluator cannot mix types in OneHot"}

PATTERNS = [
    window_partition,
    shifted_windows,
    relative_positions,
    group_normalization,
    pixel_shuffle,
    transposed_weights,
    conv1d_style,
    weight_twice,
    tied_embeddings,
    folded_tied_embeddings,
    tile_by_computed_repeat,
    tile_by_one_hot,
    expand_to_computed_shape,
    resize_to_computed_size,
    mixture_of_experts,
    stacked_experts,
    weight_in_front_of_words,
    stacked_experts_first,
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_law(pattern: object) -> None:
    @settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        net, expected = pattern()
        check_law(net.graph(), data, expected, single=pattern.__name__ in SINGLE)

    holds()


def test_what_stays_says_why() -> None:
    units = find_units(group_normalization()[0].graph())
    assert "normalized over these positions" in {axis.kept.because for axis in units.kept}
