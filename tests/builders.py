"""Small ONNX models, written as one writes networks: each call appends a node and returns its output's name."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxprune.graph import Graph, from_proto


class Net:
    """A model in the making; weights are drawn from a seed."""

    def __init__(self, opset: int = 21, *, seed: int = 0, ir_version: int = 10, microsoft: bool = False) -> None:
        self.opset = opset
        self.ir_version = ir_version
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.imports = [helper.make_opsetid("", opset)]
        if microsoft:
            self.imports.append(helper.make_opsetid("com.microsoft", 1))

    def input(self, *shape: int | str, kind: int = TensorProto.FLOAT) -> str:
        """A model input."""
        name = f"x{len(self.inputs)}"
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, *names: str, kind: int = TensorProto.FLOAT) -> Net:
        """Declares outputs of unstated shape."""
        for name in names:
            self.outputs.append(helper.make_tensor_value_info(name, kind, None))
        return self

    def constant(self, array: np.ndarray, name: str | None = None) -> str:
        """An initializer."""
        name = name or f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weight(self, *shape: int, name: str | None = None) -> str:
        """An initializer of normal numbers, never near zero."""
        values = self.random.standard_normal(shape)
        return self.constant((values + 0.1 * np.sign(values)).astype(np.float32), name)

    def ints(self, *values: int) -> str:
        """An int64 vector as an initializer."""
        return self.constant(np.array(values, np.int64))

    def op(self, op: str, *inputs: str, outputs: int = 1, domain: str = "", **attrs: object) -> str:
        """A node with one output, or the first of several."""
        return self.ops(op, *inputs, outputs=outputs, domain=domain, **attrs)[0]

    def ops(self, op: str, *inputs: str, outputs: int, domain: str = "", **attrs: object) -> list[str]:
        """A node with several outputs."""
        names = [f"{op.lower()}{len(self.nodes)}" + (f"_{i}" if i else "") for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, names[0] + "_node", domain=domain, **attrs))
        return names

    def conv(
        self, x: str, inputs: int, outputs: int, *, kernel: int = 1, rank: int = 2, group: int = 1, **attrs: object
    ) -> str:
        """A convolution with bias."""
        w = self.weight(outputs, inputs // group, *[kernel] * rank)
        return self.op("Conv", x, w, self.weight(outputs), group=group, **attrs)

    def dense(self, x: str, inputs: int, outputs: int) -> str:
        """A Gemm with bias."""
        return self.op("Gemm", x, self.weight(inputs, outputs), self.weight(outputs))

    def model(self) -> onnx.ModelProto:
        """The finished model; its outputs have the shapes that inference finds."""
        graph = helper.make_graph(self.nodes, "test", self.inputs, self.outputs, self.initializers)
        model = helper.make_model(graph, opset_imports=self.imports, ir_version=self.ir_version)
        inferred = {x.name: x for x in onnx.shape_inference.infer_shapes(model).graph.output}
        for output in model.graph.output:
            output.CopyFrom(inferred[output.name])
        return model

    def graph(self) -> Graph:
        """The finished model as a Graph."""
        return from_proto(self.model())
