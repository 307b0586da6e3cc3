"""The law for operators that read or write positions which numbers name."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st
from onnx import TensorProto

from builders import Net
from rules.cases import CASES, Draw, case, check_case, opset, read, rows, size


def maps(draw: Draw, version: int = 21, *, hidden: int | None = None, edge: int = 4) -> tuple[Net, str, int]:
    """Two images through a convolution, no more and no less: most indices are given for each image."""
    channels = hidden or size(draw)
    net = Net(version, seed=draw(st.integers(0, 99)))
    return net, net.conv(net.input(2, 2, edge, edge), 2, channels), channels


def whole(net: Net, values: object) -> str:
    """A constant of integers."""
    return net.constant(np.array(values, np.int64))


def real(net: Net, x: str) -> str:
    return net.op("Cast", x, to=TensorProto.FLOAT)


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


@case("GatherND")
def gather_nd(draw: Draw) -> tuple[Net, list[int]]:
    """A position of the image for each sample: channels, which come last, pass."""
    net, h, n = maps(draw)
    h = net.op("Transpose", net.op("Relu", h), perm=[0, 2, 3, 1])
    if draw(st.booleans()):
        h = net.op("GatherND", h, whole(net, [[[0, 1]], [[3, -1]]]), batch_dims=1)
        h = net.op("Squeeze", h, net.ints(1))
    else:
        h = net.op("GatherND", h, whole(net, [[1, 0, 2], [0, 3, 3], [1, 1, 1]]))
    return net.output(net.dense(h, n, 3)), [n]


@case("GatherND/picked")
def gather_nd_picked(draw: Draw) -> tuple[Net, list[int]]:
    """Channels in another order, some twice, some not at all, or one of them: the same for both images, as Gather."""
    net, h, n = maps(draw)
    picks = draw(st.lists(st.integers(-n, n - 1), min_size=1, max_size=8))
    used = len({pick % n for pick in picks})
    h = net.op("Relu", h)
    if draw(st.booleans()):
        out = net.op("GatherND", h, whole(net, [[[pick] for pick in picks]] * 2), batch_dims=1)
    else:
        out = net.op("GatherND", net.op("Transpose", h, perm=[1, 0, 2, 3]), whole(net, [[pick] for pick in picks]))
        out = net.op("Transpose", out, perm=[1, 0, 2, 3])
    return read(net, out, len(picks)), [used] if used > 1 else []


@case("GatherND/one")
def gather_nd_one(draw: Draw) -> tuple[Net, list[int]]:
    """One row of the image; channels pass, and so do the others where one of them is picked."""
    net, h, n = maps(draw)
    pick = draw(st.sampled_from([0, 2, -1]))
    if draw(st.booleans()):
        h = net.op("Transpose", net.op("Relu", h), perm=[2, 0, 1, 3])
        return net.output(net.op("MatMul", net.weight(3, n), net.op("GatherND", h, whole(net, [pick])))), [n]
    one = net.op("Unsqueeze", net.op("GatherND", h, whole(net, [[0], [0]]), batch_dims=1), net.ints(1))
    out = net.op("Add", net.op("ReduceSum", net.conv(net.op("Relu", h), n, 3)), one)
    return net.output(out), [n - 1] if n > 2 else []


@case("GatherND/of-each")
def gather_nd_of_each(draw: Draw) -> tuple[Net, list[int]]:
    """Other channels of each image stay; what comes before goes."""
    net, h, n = maps(draw)
    h = net.conv(net.op("Relu", h), n, 3)
    return read(net, net.op("GatherND", h, whole(net, [[[0], [1]], [[2], [1]]]), batch_dims=1), 2), [n]


@case("GatherND/table")
def gather_nd_table(draw: Draw) -> tuple[Net, list[int]]:
    """A table that data index into writes its columns."""
    n = size(draw)
    net = Net(seed=draw(st.integers(0, 99)))
    h = net.op("GatherND", net.weight(3, 4, n), net.input("N", 2, kind=TensorProto.INT64))
    return net.output(net.op("MatMul", net.op("Relu", h), net.weight(n, 3))), [n]


@case("ScatterND/channels", "GatherElements/channels", "ScatterElements/channels")
def of_channels(draw: Draw, op: str) -> tuple[Net, list[int]]:
    """Channels that are picked or written by their position stay; what comes before goes."""
    net, h, n = maps(draw, edge=2)
    h = net.conv(net.op("Relu", h), n, 3)
    if op == "ScatterND":
        h = net.op("Transpose", h, perm=[1, 0, 2, 3])
        h = net.op(op, h, whole(net, [[2], [0], [1]]), net.weight(3, 2, 2, 2))
        h = net.op("Transpose", h, perm=[1, 0, 2, 3])
    else:
        updates = [net.weight(2, 3, 2, 2)] if op == "ScatterElements" else []
        index = np.broadcast_to(np.array([2, 0, 1]).reshape(1, 3, 1, 1), (2, 3, 2, 2))
        h = net.op(op, h, whole(net, index), *updates, axis=1)
    return read(net, h, 3), [n]


@case("GatherElements")
def gather_elements(draw: Draw) -> tuple[Net, list[int]]:
    """Along rows of the image, from the channels that the indices reach; those behind them are read elsewhere."""
    net, h, n = maps(draw)
    m = draw(st.integers(2, n))
    h = net.op("Relu", h)
    index = whole(net, net.random.integers(-4, 4, (2, m, 3, 4)))
    picked = net.conv(net.op("GatherElements", h, index, axis=2), m, 2)
    out = net.op("ReduceMax", picked, net.ints(2, 3), keepdims=0)
    other = net.op("ReduceMax", net.conv(h, n, 2), net.ints(2, 3), keepdims=0)
    return net.output(net.op("Add", out, other)), [m, n - m] if n - m > 1 else [m]


@case("ScatterElements", "Scatter")
def scatter_elements(draw: Draw, op: str) -> tuple[Net, list[int]]:
    """Rows of the image are overwritten with another branch's; channels pass."""
    net, h, n = maps(draw, 9 if op == "Scatter" else 13)
    index = whole(net, net.random.permuted(np.broadcast_to(np.arange(4).reshape(1, 1, 4, 1), (2, n, 4, 4)), axis=2))
    h = net.op(op, net.op("Relu", h), index, net.conv("x0", 2, n), axis=2)
    return read(net, h, n), [n]


@case("ScatterND")
def scatter_nd(draw: Draw) -> tuple[Net, list[int]]:
    """Pixels are overwritten with vectors of a weight; channels, which come last, pass."""
    net, h, n = maps(draw)
    h = net.op("Transpose", net.op("Relu", h), perm=[0, 2, 3, 1])
    reduction = draw(st.sampled_from(["none", "add"]))
    h = net.op("ScatterND", h, whole(net, [[0, 1, 2], [1, 3, 3]]), net.weight(2, n), reduction=reduction)
    return net.output(net.op("MatMul", h, net.weight(n, 3))), [n]


@case("TopK")
def top_k(draw: Draw) -> tuple[Net, list[int]]:
    """The largest pixels of each channel and where they are."""
    version = opset(draw, 9, 11)
    net, h, n = maps(draw, version)
    k = [net.ints(2)] if version > 9 else []
    values, places = net.ops("TopK", h, *k, outputs=2, axis=-1, **({} if k else {"k": 2}))
    return read(net, net.op("Add", values, real(net, places)), n), [n]


@case("TopK/channels")
def top_k_of_channels(draw: Draw) -> tuple[Net, list[int]]:
    """The largest channels stay, as the gate of a mixture of experts; what comes before goes."""
    net, h, n = rows(draw)
    h = net.dense(net.op("Relu", h), n, 5)
    values, _ = net.ops("TopK", h, net.ints(3), outputs=2)
    return net.output(net.dense(values, 3, 2)), [n]


@case("OneHot")
def one_hot(draw: Draw) -> tuple[Net, list[int]]:
    """The pixel that is largest in each channel, spelled out: channels pass, the new axis is one of positions."""
    net, h, n = maps(draw)
    best = net.op("ArgMax", net.op("ReduceMax", h, net.ints(2), keepdims=0), axis=2, keepdims=0)
    depth = draw(st.sampled_from([net.ints(4), whole(net, 4)]))
    hot = net.op("OneHot", best, depth, net.constant(np.array([0, 1], np.float32)), axis=2)
    return read(net, net.op("Unsqueeze", hot, net.ints(3)), n), [n]


@case("Compress")
def compress(draw: Draw) -> tuple[Net, list[int]]:
    """Some rows of the image; channels pass, unless everything is flattened."""
    net, h, n = maps(draw)
    condition = net.constant(np.array([True, False, True]))
    if draw(st.booleans()):
        return read(net, net.op("Compress", net.op("Relu", h), condition, axis=2), n), [n]
    h = net.conv(net.op("Relu", h), n, 3)
    first = net.op("Reshape", net.op("Compress", h, condition), net.ints(1, 2))
    return net.output(net.dense(first, 2, 2)), [n]


@case("ReverseSequence")
def reverse_sequence(draw: Draw) -> tuple[Net, list[int]]:
    """Rows of the image in reverse, for each image as many as it is told; channels, which come last, pass."""
    net, h, n = maps(draw)
    h = net.op("Transpose", net.op("Relu", h), perm=[0, 2, 3, 1])
    h = net.op("ReverseSequence", h, net.ints(4, 2), batch_axis=0, time_axis=1)
    return net.output(net.op("MatMul", h, net.weight(n, 3))), [n]


@case("Trilu")
def trilu(draw: Draw) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    given = [whole(net, draw(st.integers(-1, 1)))] if draw(st.booleans()) else []
    return read(net, net.op("Trilu", net.op("Relu", h), *given, upper=draw(st.integers(0, 1))), n), [n]


@case("CenterCropPad")
def center_crop_pad(draw: Draw) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    return read(net, net.op("CenterCropPad", net.op("Relu", h), net.ints(3, 6), axes=[2, -1]), n), [n]


@case("Col2Im")
def col2im(draw: Draw) -> tuple[Net, list[int]]:
    """Patches of a convolution are laid over each other: whole channels of the result go."""
    n = size(draw)
    net, h, _ = maps(draw, hidden=4 * n)
    h = net.op("Reshape", net.op("Relu", h), net.ints(0, 4 * n, 16))
    return read(net, net.op("Col2Im", h, net.ints(5, 5), net.ints(2, 2)), n), [n]


@case("GridSample")
def grid_sample(draw: Draw) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    grid = net.constant(net.random.uniform(-1, 1, (2, 3, 5, 2)).astype(np.float32))
    return read(net, net.op("GridSample", net.op("Relu", h), grid, align_corners=1), n), [n]


@case("AffineGrid")
def affine_grid(draw: Draw) -> tuple[Net, list[int]]:
    """A spatial transformer whose grid is made for as many channels as there are."""
    net, h, n = maps(draw)
    h = net.op("Relu", h)
    theta = net.constant(np.array([[[0.9, 0.1, 0], [-0.1, 0.8, 0.1]]] * 2, np.float32))
    sizes = draw(st.sampled_from([net.ints(2, n, 3, 5), net.op("Shape", h)]))
    return read(net, net.op("GridSample", h, net.op("AffineGrid", theta, sizes)), n), [n]


@case("RoiAlign", "MaxRoiPool")
def roi(draw: Draw, op: str) -> tuple[Net, list[int]]:
    """Two regions of the second image; channels pass."""
    net, h, n = maps(draw)
    boxes = np.array([[0, 0, 2, 2], [1, 0, 3, 3]], np.float32)
    if op == "RoiAlign":
        h = net.op(op, net.op("Relu", h), net.constant(boxes), net.ints(1, 1), output_height=2, output_width=2)
    else:
        boxes = np.concatenate([np.ones((2, 1), np.float32), boxes], axis=1)
        h = net.op(op, net.op("Relu", h), net.constant(boxes), pooled_shape=[2, 2])
    return read(net, h, n), [n]


@case("NonZero", "Unique", "NonMaxSuppression")
def data_decide(draw: Draw, op: str) -> tuple[Net, list[int]]:
    """Data decide how many results there are: everything stays, what comes before goes."""
    net, h, n = maps(draw)
    h = net.op("Round", net.conv(net.op("Relu", h), n, 4))
    if op == "NonMaxSuppression":
        boxes = net.op("Reshape", h, net.ints(0, -1, 4))
        scores = net.op("Sigmoid", net.op("ReduceSum", boxes, net.ints(2), keepdims=0))
        found = net.op(op, boxes, net.op("Unsqueeze", scores, net.ints(1)), net.ints(5))
    else:
        found = net.op(op, h)
    total = net.op("ReduceSum", real(net, found), keepdims=0)
    return net.output(net.op("Add", net.op("ReduceMax", h, net.ints(1, 2, 3), keepdims=0), total)), [n]


@case("Range")
def positions(draw: Draw) -> tuple[Net, list[int]]:
    """Positions of as many rows as the image has: channels pass."""
    net, h, n = maps(draw)
    h = net.op("Relu", h)
    rows = net.op("Gather", net.op("Shape", h), whole(net, 2))
    steps = net.op("Range", whole(net, 0), draw(st.sampled_from([rows, whole(net, 4)])), whole(net, 1))
    picked = net.op("Gather", net.weight(4, 4), steps)
    return read(net, net.op("Add", h, picked), n), [n]


@case("Range/channels")
def range_of_channels(draw: Draw) -> tuple[Net, list[int]]:
    """The number of each channel is used as a value, and is no other number once channels are gone."""
    net, h, n = maps(draw)
    h = net.op("Relu", h)
    channels = net.op("Gather", net.op("Shape", h), whole(net, 1))
    numbers = net.op("Range", whole(net, 0), channels, whole(net, 1))
    total = net.op("ReduceMean", real(net, numbers), keepdims=0)
    return net.output(net.conv(net.op("Mul", h, total), n, 40)), [n]  # wide, since the numbers are stored now


@case("EyeLike", "Det")
def matrices(draw: Draw, op: str) -> tuple[Net, list[int]]:
    """Matrices of positions: rows and columns stay; of the channels the one that makes a matrix is one unit."""
    net, h, n = maps(draw)
    h = net.conv(net.op("Relu", h), n, 4)
    if op == "Det":
        return net.output(net.op(op, h)), [n]
    first = net.op("Squeeze", net.op("Slice", h, net.ints(0, 0), net.ints(1, 1), net.ints(0, 1)), net.ints(0, 1))
    return read(net, net.op("Add", h, net.op(op, first, k=1)), 4), [n, 3]


@case("MaxUnpool")
def max_unpool(draw: Draw) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    h = net.conv(net.op("Relu", h), n, 3)
    y, places = net.ops("MaxPool", h, outputs=2, kernel_shape=[2, 2], strides=[2, 2])
    return read(net, net.op("MaxUnpool", y, places, kernel_shape=[2, 2], strides=[2, 2]), 3), [n]


@case("DFT", "STFT")
def spectra(draw: Draw, op: str) -> tuple[Net, list[int]]:
    """Spectra of rows of the image; what comes before goes."""
    net, h, n = maps(draw)
    h = net.op("Reshape", net.conv(net.op("Relu", h), n, 2), net.ints(2, 32, 1))
    if op == "DFT":
        h = net.op("DFT", h, "", whole(net, 1))
    else:
        h = net.op("STFT", h, whole(net, 4), net.constant(np.ones(8, np.float32)))
    return net.output(net.op("ReduceMax", h, net.ints(1), keepdims=0)), [n]


@case("RandomNormalLike", "RandomUniformLike", "RandomNormal", "RandomUniform", "Bernoulli", "Multinomial")
def random_numbers(draw: Draw, op: str) -> tuple[Net, list[int]]:
    """Each position has a random number of its own: what they are added to stays, what comes before goes."""
    net, h, n = maps(draw)
    h = net.op("Sigmoid", net.conv(net.op("Relu", h), n, 3))
    if op == "Multinomial":
        drawn = real(net, net.op(op, net.op("Reshape", h, net.ints(2, -1)), seed=1.0, sample_size=1))
        return net.output(net.op("Mul", drawn, net.op("ReduceMax", h, net.ints(2, 3), keepdims=0))), [n]
    like = [] if op in ("RandomNormal", "RandomUniform") else [h]
    shape = {} if like else {"shape": [2, 3, 4, 4]}
    return read(net, net.op("Add", h, net.op(op, *like, seed=1.0, **shape)), 3), [n]


@pytest.mark.parametrize("name", CASES[__name__])
def test_law(name: str) -> None:
    check_case(__name__, name)
