"""One small model for every operator that has a rule, in every form that opsets and exporters give it.

A case is a function `draw -> (model, sizes of the groups that must be found)`. The operator stands between a weight
that writes units and one that reads them, so that it is asked to pass them on, to change them, or to keep them whole.
"""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builders import Net
from laws import check_law

Draw = Callable[[st.SearchStrategy], object]
Case = Callable[[Draw], tuple[Net, list[int]]]

CASES: dict[str, dict[str, Case]] = {}
"""By module, cases by `operator` or `operator/variant`."""

SINGLE = {
    "ConvTranspose/grouped": "the reference evaluator takes no groups",
    "GRU/lengths": "the reference evaluator ignores lengths, activations and clip",
    "LSTM/lengths": "the reference evaluator ignores lengths, activations and clip",
    "RNN/lengths": "the reference evaluator ignores lengths, activations and clip",
    "DequantizeLinear": "the reference evaluator lacks opset 13",
    "GatherElements": "the reference evaluator wants indices as wide as the data",
    "GlobalLpPool": "the reference evaluator lacks it",
    "MaxRoiPool": "the reference evaluator lacks it",
    "MeanVarianceNormalization": "the reference evaluator knows it in float32 alone",
    "Multinomial": "the reference evaluator lacks it",
    "NonMaxSuppression": "the reference evaluator wants all inputs",
    "OneHot": "the reference evaluator wants a depth without axes",
    "QuantizeLinear": "the reference evaluator lacks opset 10",
    "RandomNormal": "it draws in float32",
    "RandomUniform": "it draws in float32",
    "Resize": "the reference evaluator lacks opset 10",
    "Scatter": "the reference evaluator lacks it",
    "Shape": "the scale is a constant of the model's own precision once it is frozen",
    "Upsample": "the reference evaluator lacks it",
}
"""Cases compared in float32 on ONNX Runtime, as com.microsoft's are, and why."""


def case(*names: str) -> Callable[[Callable[..., tuple[Net, list[int]]]], Case]:
    """Registers a case; one function may serve several operators, and is then told which."""

    def register(function: Callable[..., tuple[Net, list[int]]]) -> Case:
        cases = CASES.setdefault(function.__module__, {})
        for name in names:
            assert name not in cases, name
            op = name.split("/")[0].split(":")[-1]
            cases[name] = (lambda draw, op=op: function(draw, op)) if len(names) > 1 else function
        return function

    return register


def check_case(module: str, name: str) -> None:
    """Holds one case to the law, over drawn attributes, shapes and removed units."""

    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        net, expected = CASES[module][name](data.draw)
        check_law(net.graph(), data, expected, single=name in SINGLE or ":" in name)

    holds()


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
