"""The law for operators that move, cut, join or repeat positions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from builders import Net
from rules.cases import CASES, Draw, case, check_case, maps, opset, read, rows, size


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


@case("Slice/as long as the input")
def slice_to_the_length(draw: Draw) -> tuple[Net, list[int]]:
    """A table of positions is cut to the length of a text; its channels go."""
    n = size(draw)
    net = Net(draw(st.sampled_from([13, 18])), seed=draw(st.integers(0, 99)))
    x = net.input("N", "T", 4)
    length = net.op("Slice", net.op("Shape", x), net.ints(1), net.ints(2))
    table = net.op("Slice", net.weight(64, n), net.ints(0), length, net.ints(0))
    h = net.op("Relu", net.op("Add", net.op("MatMul", x, net.weight(4, n)), table))
    return net.output(net.op("MatMul", h, net.weight(n, 2))), [n]


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


@case("Expand/asked")
def expand_asked(draw: Draw) -> tuple[Net, list[int]]:
    """As TorchScript writes expand(batch, -1, ..): it asks which sizes are -1, also of the batch, and puts 1 there."""
    net, h, n = maps(draw)
    batch = net.op("Slice", net.op("Shape", h), net.ints(0), net.ints(1))
    target = net.op("Concat", batch, net.ints(-1, -1, -1), axis=0)
    one = numpy_helper.from_array(np.ones(1, np.int64))
    ones = net.op("ConstantOfShape", net.op("Shape", target), value=one)
    asked = net.op("Equal", target, net.op("Mul", ones, net.ints(-1)))
    token = net.op("Expand", net.weight(1, n, 1, 1), net.op("Where", asked, ones, target))
    return read(net, net.op("Add", h, token), n), [n]


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
    ones = net.op("ConstantOfShape", target, value=numpy_helper.from_array(one))
    return read(net, net.op("Add", h, ones), n), [n]


@pytest.mark.parametrize("name", CASES[__name__])
def test_law(name: str) -> None:
    check_case(__name__, name)
