"""The law for normalization."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st

from builders import Net
from rules.cases import CASES, Draw, case, check_case, maps, opset, read, rows, size


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


@case("LpNormalization")
def lp_normalization(draw: Draw) -> tuple[Net, list[int]]:
    """Zeros add nothing to a norm: channels go."""
    net, h, n = maps(draw)
    h = net.op("LpNormalization", h, axis=1, p=draw(st.sampled_from([1, 2])))
    return read(net, h, n), [n]


@case("LpNormalization/weight")
def lp_normalization_of_a_weight(draw: Draw) -> tuple[Net, list[int]]:
    """The norm of a whole weight is another than that of its kept rows: they stay, its columns go."""
    net, h, _ = rows(draw, hidden=5)
    n = size(draw)
    h = net.op("MatMul", net.op("Relu", h), net.op("LpNormalization", net.weight(5, n), axis=0))
    return net.output(net.dense(h, n, 2)), [n]


@case("LRN", "MeanVarianceNormalization")
def other_norms(draw: Draw, op: str) -> tuple[Net, list[int]]:
    net, h, n = maps(draw)
    attrs = {"LRN": {"size": 3}, "MeanVarianceNormalization": {"axes": [1]}}[op]
    h = net.op(op, net.conv(net.op("Relu", h), n, 5), **attrs)
    return read(net, h, 5), [n]


@pytest.mark.parametrize("name", CASES[__name__])
def test_law(name: str) -> None:
    check_case(__name__, name)
