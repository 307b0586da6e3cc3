"""Small ONNX models whose outputs hide what happens inside: classes, saturation, tiny numbers, integers, branches."""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from zoo.base import TORCHSCRIPT, member


class Body:
    """A model in the making: each call appends a node and gives the name of its output."""

    def __init__(self, *inputs: tuple[str, int, list[int | str]], seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.inputs = [helper.make_tensor_value_info(*declared) for declared in inputs]

    def put(self, array: np.ndarray) -> str:
        """A constant."""
        self.weights.append(numpy_helper.from_array(np.asarray(array), f"w{len(self.weights)}"))
        return str(self.weights[-1].name)

    def draw(self, *shape: int) -> str:
        """A constant of random numbers, of a size that keeps what is read with them at its size."""
        return self.put((1.4 * self.random.standard_normal(shape) / np.sqrt(max(shape[0], 1))).astype(np.float32))

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """A node."""
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def dense(self, x: str, inputs: int, outputs: int) -> str:
        """A dense layer with a bias."""
        return self.op("Gemm", x, self.draw(inputs, outputs), self.draw(outputs))

    def model(self, output: str, kind: int = TensorProto.FLOAT, rank: int = 2) -> onnx.ModelProto:
        """The whole."""
        result = helper.make_tensor_value_info(output, kind, [f"d{i}" for i in range(rank)])
        graph = helper.make_graph(self.nodes, "endings", self.inputs, [result], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def dense(width: int = 6, activation: str = "Relu") -> tuple[Body, str]:
    """Three dense layers."""
    body = Body(("x", TensorProto.FLOAT, ["N", 12]))
    h = body.op(activation, body.dense("x", 12, 24))
    h = body.op(activation, body.dense(h, 24, 16))
    return body, body.dense(h, 16, width)


def pooled(width: int = 6) -> tuple[Body, str]:
    """Convolutions with normalizations, a shortcut, and a pool over all positions."""
    body = Body(("x", TensorProto.FLOAT, ["N", 3, 8, 8]))

    def unit(x: str, inputs: int, outputs: int) -> str:
        w = body.put((body.random.standard_normal((outputs, inputs, 3, 3)) / np.sqrt(4.5 * inputs)).astype(np.float32))
        h = body.op("Conv", x, w, pads=[1, 1, 1, 1])
        numbers = [body.put(body.random.uniform(0.5, 1.5, outputs).astype(np.float32)) for _ in range(4)]
        return body.op("BatchNormalization", h, *numbers)

    h = body.op("Relu", unit("x", 3, 16))
    h = body.op("Relu", body.op("Add", h, unit(body.op("Relu", unit(h, 16, 12)), 12, 16)))
    h = body.op("Flatten", body.op("GlobalAveragePool", h))
    return body, body.dense(h, 16, width)


def softmax(body: Body, x: str) -> onnx.ModelProto:
    """Shares of many classes, each of which is small."""
    return body.model(body.op("Softmax", x, axis=1))


def argmax(body: Body, x: str) -> onnx.ModelProto:
    """One class."""
    return body.model(body.op("ArgMax", x, axis=1, keepdims=0), TensorProto.INT64, 1)


def tiny(body: Body, x: str) -> onnx.ModelProto:
    """Numbers far below one."""
    return body.model(body.op("Mul", x, body.put(np.array(1e-7, np.float32))))


def sigmoid(body: Body, x: str) -> onnx.ModelProto:
    """One or nearly one, whatever the input."""
    return body.model(body.op("Sigmoid", body.op("Add", x, body.put(np.array(60, np.float32)))))


def clip(body: Body, x: str) -> onnx.ModelProto:
    """At its limit, whatever the input."""
    limits = (body.put(np.array(n, np.float32)) for n in (0, 1))
    return body.model(body.op("Clip", body.op("Add", x, body.put(np.array(50, np.float32))), *limits))


def integers(body: Body, x: str) -> onnx.ModelProto:
    """Rounded to few integers, among them a large one."""
    large = body.put(np.array([10_000] + [0] * 5, np.float32))
    return body.model(body.op("Cast", body.op("Add", x, large), to=TensorProto.INT64), TensorProto.INT64)


def top(body: Body, x: str) -> onnx.ModelProto:
    """Which two are the largest."""
    body.nodes.append(helper.make_node("TopK", [x, body.put(np.array([2]))], ["values", "places"]))
    return body.model("places", TensorProto.INT64)


def detections(body: Body, x: str) -> onnx.ModelProto:
    """Which are above a threshold that none reaches: nothing."""
    high = body.op("Greater", x, body.put(np.array(1e4, np.float32)))
    return body.model(body.op("NonZero", high), TensorProto.INT64)


def no_number(body: Body, x: str) -> onnx.ModelProto:
    """The logarithm of what is below zero."""
    return body.model(body.op("Log", body.op("Neg", body.op("Exp", x))))


def branch(flag: bool) -> onnx.ModelProto:
    """One of two dense layers, as a boolean input says for each sample, or for all of them at once."""
    body = Body(("x", TensorProto.FLOAT, ["N", 12]), ("flag", TensorProto.BOOL, [] if flag else ["N", 1]))
    left, right = (body.op("Relu", body.dense("x", 12, 20)) for _ in range(2))
    if not flag:
        return body.model(body.dense(body.op("Where", "flag", left, right), 20, 4))
    chosen = [
        helper.make_graph([], which, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])
        for which, name in (("then", left), ("else", right))
    ]
    for graph, name in zip(chosen, (left, right), strict=True):
        graph.node.append(helper.make_node("Identity", [name], [f"{name}.copy"]))
        graph.output[0].name = f"{name}.copy"
    picked = body.op("If", "flag", then_branch=chosen[0], else_branch=chosen[1])
    return body.model(body.dense(body.op("Relu", body.dense(picked, 20, 16)), 16, 4))


def words() -> onnx.ModelProto:
    """A table of words, a mask, a mean over the words and a class."""
    body = Body(("ids", TensorProto.INT64, ["N", "T"]), ("attention_mask", TensorProto.INT64, ["N", "T"]))
    h = body.op("Gather", body.put(body.random.standard_normal((50, 24)).astype(np.float32)), "ids")
    h = body.op("Relu", body.op("Add", body.op("MatMul", h, body.draw(24, 20)), body.draw(20)))
    shown = body.op("Cast", body.op("Unsqueeze", "attention_mask", body.put(np.array([2]))), to=TensorProto.FLOAT)
    h = body.op("ReduceSum", body.op("Mul", h, shown), body.put(np.array([1])), keepdims=0)
    return argmax(body, body.dense(h, 20, 5))


def blank() -> onnx.ModelProto:
    """Negative biases: a blank input moves nothing."""
    body, y = dense()
    for i in (1, 3):
        name = body.weights[i].name
        body.weights[i].CopyFrom(numpy_helper.from_array(-np.abs(numpy_helper.to_array(body.weights[i])), name))
    return body.model(y)


def dead() -> onnx.ModelProto:
    """A layer that no input reaches, behind very negative biases."""
    body, y = dense()
    name = body.weights[1].name
    body.weights[1].CopyFrom(numpy_helper.from_array(np.full(24, -1e3, np.float32), name))
    return body.model(y)


def half(body: Body, x: str) -> onnx.ModelProto:
    """Everything in float16."""
    from onnxprune.precision import _typed  # what has a type

    model = body.model(x)
    for thing in list(_typed(model)):
        if isinstance(thing, TensorProto):
            array = numpy_helper.to_array(thing)
            if array.dtype == np.float32:
                thing.CopyFrom(numpy_helper.from_array(array.astype(np.float16), thing.name))
        elif getattr(thing, "elem_type", 0) == TensorProto.FLOAT:
            thing.elem_type = TensorProto.FLOAT16
    return model


def quantized(make: Callable[[], tuple[Body, str]], style: str) -> onnx.ModelProto:
    """Static or dynamic quantization by ONNX Runtime's own tool."""
    from onnxruntime import quantization

    body, y = make()
    model = body.model(y)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        if style == "dynamic":
            quantization.quantize_dynamic(source, result)
        else:
            kind = quantization.QuantFormat.QDQ if style == "qdq" else quantization.QuantFormat.QOperator
            shape = [d.dim_value or 16 for d in model.graph.input[0].type.tensor_type.shape.dim]
            rows = iter([{"x": np.random.default_rng(i).standard_normal(shape).astype(np.float32)} for i in range(4)])

            class Reader(quantization.CalibrationDataReader):
                def get_next(self) -> dict[str, np.ndarray] | None:
                    return next(rows, None)

            quantization.quantize_static(source, result, Reader(), quant_format=kind, per_channel=True)
        out = onnx.load(result)
    logging.disable(logging.NOTSET)
    return out


def exported(name: str) -> onnx.ModelProto:
    """A network of the zoo, from PyTorch's older exporter."""
    attention = "eager" if name in ("bert", "gpt2", "llama", "vit") else ""
    return onnx.load(io.BytesIO(member(name, TORCHSCRIPT, attention)))


def networks() -> dict[str, Callable[[], onnx.ModelProto]]:
    """Thirty networks by name, each made when it is asked for."""

    def ended(
        make: Callable[..., tuple[Body, str]], end: Callable[[Body, str], onnx.ModelProto], width: int = 6
    ) -> Any:
        return lambda: end(*make(width))

    out: dict[str, Callable[[], onnx.ModelProto]] = {
        "dense": ended(dense, Body.model),
        "dense, tanh": ended(partial(dense, activation="Tanh"), Body.model),
        "convolutions": ended(pooled, Body.model),
        "softmax of 1,000": ended(pooled, softmax, 1000),
        "softmax": ended(dense, softmax),
    }
    for make in (dense, pooled):
        for end in (argmax, tiny, sigmoid, clip, integers, top, detections, no_number):
            if (make, end) not in ((pooled, top), (pooled, clip), (dense, detections)):
                out[f"{make.__name__}, {end.__name__.replace('_', ' ')}"] = ended(make, end)
    out |= {
        "one branch for all": partial(branch, True),
        "a branch for each": partial(branch, False),
        "words": words,
        "blank inputs": blank,
        "a dead layer": dead,
        "dense, half": ended(dense, half),
        "dense, dynamic int8": lambda: quantized(dense, "dynamic"),
        "dense, QDQ": lambda: quantized(dense, "qdq"),
        "convolutions, QDQ": lambda: quantized(pooled, "qdq"),
        "convolutions, QOperator": lambda: quantized(pooled, "qoperator"),
        "lstm": partial(exported, "lstm"),
        "bert": partial(exported, "bert"),
    }
    return out
