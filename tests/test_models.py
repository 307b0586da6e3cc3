"""The law on whole networks, as both PyTorch exporters write them."""

from __future__ import annotations

import io
import logging
import warnings
from functools import cache

import numpy as np
import onnx
import pytest
import torch

from builders import Net
from onnxprune.grouping import find_units
from onnxprune.proof import verify
from onnxprune.surgery import remove
from onnxprune.units import Units
from outsider import check_constants
from zoo.convolutional import make, networks
from zoo.halving import analysed, halves

EXPORTS = {
    "torchscript, opset 11": {"dynamo": False, "opset_version": 11, "do_constant_folding": False},
    "torchscript, opset 17": {"dynamo": False, "opset_version": 17},
    "dynamo": {"dynamo": True},
}


@cache
def exported(name: str, export: str) -> bytes:
    net, x = make(name)
    options = EXPORTS[export]
    axes = {"dynamic_shapes": ({0: "batch"},)} if options["dynamo"] else {"dynamic_axes": {"x": {0: "batch"}}}
    file = io.BytesIO()
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (x,), file, input_names=["x"], verbose=False, **axes, **options)
    logging.disable(logging.NOTSET)
    return file.getvalue()


def units_of(name: str, export: str) -> Units:
    return analysed(exported(name, export))


def test_channels_last() -> None:
    """A network as tf2onnx writes it: transposes around convolutions, biases as Add, a flattening of channels last."""
    net = Net(15)
    h = net.op("Transpose", net.input("N", 8, 8, 3), perm=[0, 3, 1, 2])
    h = net.op("Conv", h, net.weight(12, 3, 3, 3), pads=[0, 0, 1, 1], strides=[2, 2], kernel_shape=[3, 3])
    h = net.op("Add", h, net.weight(1, 12, 1, 1))
    last = net.op("Transpose", net.op("Relu", h), perm=[0, 2, 3, 1])
    last = net.op("Add", net.op("Mul", last, net.weight(12)), net.weight(12))  # a BatchNorm that became two operators
    h = net.op("Transpose", last, perm=[0, 3, 1, 2])
    h = net.op("Conv", h, net.weight(12, 1, 3, 3), pads=[1, 1, 1, 1], group=12)
    h = net.op("Clip", h, net.constant(np.array(0, "f")), net.constant(np.array(6, "f")))
    h = net.op("Conv", h, net.weight(16, 12, 1, 1))
    h = net.op("Transpose", net.op("MaxPool", h, kernel_shape=[2, 2], strides=[2, 2]), perm=[0, 2, 3, 1])
    h = net.op("Reshape", net.op("LeakyRelu", h), net.ints(-1, 2 * 2 * 16))
    h = net.op("Add", net.op("MatMul", h, net.weight(64, 20)), net.weight(20))
    y = net.op("Add", net.op("MatMul", net.op("Tanh", h), net.weight(20, 4)), net.weight(4))
    units = find_units(net.output(net.op("Softmax", y)).graph())
    assert [(g.size, g.kind) for g in units.groups.values()] == [(12, "channel"), (16, "channel"), (20, "neuron")]
    keep = halves(units)
    assert 1 - units.cost(keep)[0] / units.cost({})[0] > 0.6
    plan = units.plan(keep)
    feeds = {"x0": np.random.default_rng(1).standard_normal((3, 8, 8, 3)).astype("f")}
    verify(units, plan, remove(units.graph, plan), feeds)


@pytest.mark.parametrize("export", EXPORTS)
@pytest.mark.parametrize("name", networks())
def test_half_of_every_group(name: str, export: str) -> None:
    units = units_of(name, export)
    keep = halves(units)
    removed = 1 - units.cost(keep)[0] / units.cost({})[0]
    assert removed >= networks()[name][2]
    plan = units.plan(keep)
    shape = networks()[name][1]
    feeds = {"x": np.random.default_rng(1).standard_normal((3, *shape[1:])).astype("f")}
    compact = remove(units.graph, plan)
    verify(units, plan, compact, feeds)
    check_constants(onnx.load_from_string(exported(name, export)), compact.proto(), plan.to_json())


@pytest.mark.parametrize("name", [name for name in networks() if name != "rnn"])
def test_exporters_agree(name: str) -> None:
    """The same network gives the same groups, whoever exported it; but the newer exporter unrolls nn.RNN."""
    found = [units_of(name, export) for export in EXPORTS]
    shapes = [[(g.size, g.kind, bool(g.instead_of)) for g in units.groups.values()] for units in found]
    assert shapes[0] == shapes[1] == shapes[2]
    assert found[1].cost({})[1] == found[2].cost({})[1] > 0
