"""Models of thousands of layers, pieces or steps: nothing recurses by their number, and the law holds."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import onnxprune
from builders import Net
from onnxprune.axes import Dim, concat, keep_mask, leaves, product, same
from onnxprune.graph import from_proto
from onnxprune.records import Kept
from onnxprune.unification import split, unify
from zoo.base import DYNAMO, Input, Model, exported

WHY = Kept("no common parts", "node")


def chain(layers: int = 3000) -> onnx.ModelProto:
    net = Net(20)
    h = net.op("Relu", net.dense(net.input("N", 3), 3, 4))
    for _ in range(layers // 2):
        h = net.op("Tanh", net.op("MatMul", h, net.weight(4, 4)))
    return net.output(net.dense(h, 4, 2)).model()


def taken_apart(pieces: int = 2000) -> onnx.ModelProto:
    net = Net(20)
    h = net.dense(net.input("N", 3), 3, 2 * pieces)
    parts = net.ops("Split", h, net.ints(*[2] * pieces), outputs=pieces, axis=1)
    h = net.op("Concat", *parts[::-1], axis=1)
    return net.output(net.dense(net.op("Relu", h), 2 * pieces, 3)).model()


def frames(pieces: int = 1000) -> onnx.ModelProto:
    """Overlapping windows of a signal, as exporters write them that have no operator for it."""
    net = Net(20)
    x = net.input("N", "samples")
    cuts = [net.op("Slice", x, net.ints(2 * i), net.ints(2 * i + 8), net.ints(1)) for i in range(pieces)]
    h = net.op("Concat", *(net.op("Unsqueeze", cut, net.ints(1)) for cut in cuts), axis=1)
    h = net.op("Relu", net.op("MatMul", h, net.weight(8, 6)))
    return net.output(net.op("MatMul", h, net.weight(6, 3))).model()


def counted(steps: int = 3000) -> onnx.ModelProto:
    """A size that goes through thousands of additions, doubled on the way."""
    net = Net(20)
    x = net.input("N", "T", 6)
    size = net.op("Gather", net.op("Shape", x), net.ints(1))
    nothing = net.op("Sub", size, size)
    up, down = net.ints(1), net.ints(-1)
    for i in range(steps):
        size = net.op("Add", size, down if i % 2 else up)
        nothing = net.op("Add", nothing, nothing) if i < 60 else nothing
    target = net.op("Concat", net.ints(0), net.op("Add", size, nothing), net.ints(6), axis=0)
    h = net.op("Relu", net.op("MatMul", net.op("Reshape", x, target), net.weight(6, 8)))
    return net.output(net.op("MatMul", h, net.weight(8, 3))).model()


class Attentive(nn.Module):
    """A Swin-V2, whose table of positions is picked from thousands of times."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import Swinv2Config, Swinv2ForImageClassification

        config = Swinv2Config(
            image_size=28, patch_size=2, embed_dim=16, depths=[2], num_heads=[2], window_size=7, num_labels=5
        )  # fmt: skip
        self.net = Swinv2ForImageClassification(config)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.net(pixel_values=pixel_values).logits


def swin() -> onnx.ModelProto:
    model = Model(Attentive, {"pixel_values": Input(("batch", 3, 28, 28))})
    return onnx.load_from_string(exported(model, DYNAMO))


@pytest.mark.parametrize(
    ("make", "groups"), [(chain, 1501), (taken_apart, 2000), (frames, 1), (counted, 1), (swin, 4)]
)  # fmt: skip
def test_half_of_every_group_of_deep_models(make: object, groups: int) -> None:
    graph = from_proto(make())
    units = onnxprune.find_units(graph)
    chosen = {name: group for name, group in units.groups.items() if not group.instead_of}
    assert len(chosen) == groups
    plan = units.plan({name: np.arange(group.size) % 2 == 0 for name, group in chosen.items()})
    compact = onnxprune.remove(graph, plan)
    assert compact.nbytes < graph.nbytes
    shape = [axis.size for axis in units.structure.axes[graph.inputs[0]]]
    feeds = {graph.inputs[0]: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    onnxprune.verify(units, plan, compact, feeds)


def test_concatenations_inside_of_concatenations() -> None:
    """An axis that is cut again and again, and then put beside its pieces in one."""
    width = Dim(3000)
    rest = width
    cuts = []
    for _ in range(1500):
        cut, rest = split(rest, 2, WHY)
        cuts.append(cut)
    unify(width, concat(*(Dim(2) for _ in range(1500))), WHY)
    assert len(list(leaves(width))) == 1500
    assert same(width, concat(*cuts))
    gone = {leaf: np.zeros(2, bool) for leaf in list(leaves(width))[::2]}
    assert keep_mask(width, gone).sum() == 1500


def test_single_positions_against_a_product() -> None:
    """The positions of a table one by one, and the same as rows of windows: a permutation that nothing can express."""
    single, rows, columns = [Dim(1) for _ in range(4096)], Dim(64), Dim(64)
    unify(concat(*single), product(rows, columns), WHY)
    assert same(concat(*single), product(rows, columns))
