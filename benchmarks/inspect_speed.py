"""How long `inspect` takes on very deep models.

    python benchmarks/inspect_speed.py [nodes]

makes a residual convolutional network and a residual feed-forward network of that many nodes (10,000 when not given)
and inspects both. Under a minute.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from results import publish, table

WIDTH, HIDDEN = 8, 12


def convolutional(nodes: int) -> onnx.ModelProto:
    """Residual blocks Conv-BatchNormalization-Relu-Conv-BatchNormalization-Add-Relu, a dense layer at the end."""
    made, weights, random = [], [], np.random.default_rng(0)

    def constant(*shape: int) -> str:
        name = f"w{len(weights)}"
        weights.append(numpy_helper.from_array(random.random(shape, np.float32) / 8, name))
        return name

    def node(op: str, *inputs: str, **attrs: object) -> str:
        name = f"{op}{len(made)}"
        made.append(helper.make_node(op, inputs, [name], name, **attrs))
        return name

    def normalized(x: str, ins: int, outs: int) -> str:
        y = node("Conv", x, constant(outs, ins, 1, 1))
        return node("BatchNormalization", y, *(constant(outs) for _ in range(4)))

    x = node("Relu", normalized("image", 3, WIDTH))
    while len(made) + 7 < nodes - 3:
        h = normalized(node("Relu", normalized(x, WIDTH, HIDDEN)), HIDDEN, WIDTH)
        x = node("Relu", node("Add", h, x))
    x = node("Gemm", node("Flatten", node("GlobalAveragePool", x)), constant(WIDTH, 10))
    return _model(made, weights, ["N", 3, 2, 2], x)


def feed_forward(nodes: int) -> onnx.ModelProto:
    """Residual blocks MatMul-Add-Gelu-MatMul-Add-Add with LayerNormalization in front."""
    made, weights, random = [], [], np.random.default_rng(0)

    def constant(*shape: int) -> str:
        name = f"w{len(weights)}"
        weights.append(numpy_helper.from_array(random.random(shape, np.float32) / 8, name))
        return name

    def node(op: str, *inputs: str) -> str:
        name = f"{op}{len(made)}"
        made.append(helper.make_node(op, inputs, [name], name))
        return name

    x = node("MatMul", "image", constant(3, WIDTH))
    while len(made) + 7 < nodes - 1:
        h = node("LayerNormalization", x, constant(WIDTH), constant(WIDTH))
        h = node("Gelu", node("Add", node("MatMul", h, constant(WIDTH, HIDDEN)), constant(HIDDEN)))
        x = node("Add", x, node("Add", node("MatMul", h, constant(HIDDEN, WIDTH)), constant(WIDTH)))
    return _model(made, weights, ["N", 3], node("MatMul", x, constant(WIDTH, 10)))


def _model(
    nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto], shape: list[int | str], output: str
) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", 10])]
    graph = helper.make_graph(nodes, "deep", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def main(nodes: int = 10_000) -> None:
    """Inspects both networks and writes the table."""
    rows: list[tuple[object, ...]] = [("network", "nodes", "groups", "seconds")]
    for name, build in (("residual convolutional", convolutional), ("residual feed-forward", feed_forward)):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "deep.onnx")
            model = build(nodes)
            onnx.save(model, path)
            start = time.perf_counter()
            units = onnxprune.inspect(path)
            seconds = time.perf_counter() - start
        rows.append((name, len(model.graph.node), len(units.groups), f"{seconds:.1f}"))
    publish("inspect_speed.py", "## inspect on deep models", table(rows))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
