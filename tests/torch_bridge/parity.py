"""One-node models for the bridge, and their comparison with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from torch import fx

from builders import Net
from onnxprune.graph import Graph, from_proto
from onnxprune.runtime import Session
from onnxprune.torch_bridge import inputs_of, to_torch
from onnxprune.torch_bridge.parity import difference

X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
"""A batch of three for models of four features."""

DEVICE = "cpu"
"""Where PyTorch computes; see second_device.py."""

TIGHT = 1e-5
"""Largest difference from ONNX Runtime, relative to the output's scale."""


@dataclass(frozen=True)
class Case:
    """A node with its inputs.

    Attributes:
        op: the operator.
        inputs: a shape is an input of the model, filled with normal numbers; an array is a constant; None is left out.
        opset: the version of ONNX's operator set.
        outputs: how many results the node gives.
        domain: the operator set.
        attrs: attributes of the node.
        fed: indices of inputs that are arrays but fed.
        fixed: whether ONNX Runtime wants the constants to be constants.
    """

    op: str
    inputs: tuple[Any, ...]
    opset: int = 21
    outputs: int = 1
    domain: str = ""
    attrs: dict[str, Any] = field(default_factory=dict)
    fed: tuple[int, ...] = ()
    fixed: bool = False

    def __str__(self) -> str:
        shown = ",".join(f"{k}={v.name if isinstance(v, onnx.TensorProto) else v}" for k, v in self.attrs.items())
        return f"{self.op}-{self.opset}-{shown}".replace(" ", "")

    def model(self, *, computed: bool = False) -> tuple[Graph, dict[str, np.ndarray]]:
        """The model and a batch; with `computed`, its constants are inputs too."""
        net = Net(self.opset, microsoft=bool(self.domain))
        random = np.random.default_rng(1)
        names, feeds = [], {}
        for i, given in enumerate(self.inputs):
            if given is None:
                names.append("")
            elif isinstance(given, np.ndarray) and not (computed or i in self.fed):
                names.append(f"c{i}")
                net.initializers.append(onnx.numpy_helper.from_array(given, names[-1]))
            else:
                array = given if isinstance(given, np.ndarray) else random.standard_normal(given).astype(np.float32)
                kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
                names.append(net.input(*array.shape, kind=kind))
                feeds[names[-1]] = array
        net.output(*net.ops(self.op, *names, outputs=self.outputs, domain=self.domain, **self.attrs))
        model = net.model()
        for output in model.graph.output:  # ONNX Runtime finds types by itself, and not all are float
            output.ClearField("type")
        return from_proto(model), feeds


def case(op: str, *inputs: Any, opset: int = 21, outputs: int = 1, domain: str = "", **attrs: Any) -> Case:
    """A case whose attributes are keywords."""
    fed = attrs.pop("fed", ())
    fixed = attrs.pop("fixed", False)
    return Case(op, inputs, opset, outputs, domain, attrs, fed, fixed)


def array(*values: Any, dtype: Any = np.float32) -> np.ndarray:
    """A constant."""
    return np.array(values, dtype)


def whole(*values: int) -> np.ndarray:
    """A constant of integers, as shapes and axes are."""
    return np.array(values, np.int64)


def weight(*shape: int, seed: int = 7) -> np.ndarray:
    """A constant of normal numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    """A constant of positive numbers."""
    return np.abs(weight(*shape)) + np.float32(0.1)


def assert_parity(graph: Graph, feeds: dict[str, np.ndarray], *, tolerance: float = TIGHT) -> fx.GraphModule:
    """Asserts that the module gives ONNX Runtime's results, types and shapes included; returns the module."""
    expected = Session(graph.message(), device="cpu").run(feeds)
    module = to_torch(graph, feeds)
    with torch.no_grad():
        results = module.to(DEVICE)(*inputs_of(graph.inputs, feeds, DEVICE))
    assert all(result.device.type == DEVICE for result in results)
    found = [result.cpu() for result in results]
    module.to("cpu")
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.numpy().dtype == theirs.dtype
        assert difference(ours.numpy(), theirs) <= tolerance
    return module


def assert_case(case: Case) -> None:
    """Asserts parity with the constants as constants and, where ONNX Runtime can do it, as inputs."""
    assert_parity(*case.model())
    constants = [i for i, given in enumerate(case.inputs) if isinstance(given, np.ndarray) and i not in case.fed]
    if constants and not case.fixed:
        assert_parity(*case.model(computed=True))


def covered(cases: Iterator[Case] | list[Case]) -> set[tuple[str, str, int]]:
    """Domain, operator and opset of each case."""
    return {(case.domain, case.op, 1 if case.domain else case.opset) for case in cases}


def network(opset: int = 17) -> tuple[Graph, dict[str, np.ndarray]]:
    """Convolutions with and without BatchNormalization, shape arithmetic, two dense layers."""
    net = Net(opset)
    y = net.op("Relu", net.conv(net.input("batch", 3, 8, 8), 3, 6, kernel=3))
    statistics = [net.weight(6, name="norm.w"), net.weight(6), net.weight(6), net.constant(np.full(6, 2, np.float32))]
    y = net.op("BatchNormalization", net.conv(y, 6, 6, kernel=3), *statistics)
    batch = net.op("Gather", net.op("Shape", y), net.ints(0), axis=0)
    y = net.op("Reshape", y, net.op("Concat", batch, net.ints(-1), axis=0))
    graph = net.output(net.dense(net.op("Sigmoid", net.dense(y, 96, 5)), 5, 4)).graph()
    return graph, {"x0": np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)}


def perturb(module: torch.nn.Module) -> None:
    """Changes every parameter a little."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1 + 0.1 * torch.randn(parameter.shape, generator=generator))


def run(module: torch.nn.Module, graph: Graph, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """The first output of a module."""
    with torch.no_grad():
        result: np.ndarray = module(*inputs_of(graph.inputs, feeds))[0].numpy()
    return result
