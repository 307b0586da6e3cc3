"""Random graphs: several rules in one, weights with dead, constant and equal units, data that stand still in places."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from zoo.endings import Body

ACTIVATIONS = ("Relu", "Sigmoid", "Tanh", "Gelu", "Elu", "LeakyRelu", "HardSwish", "Softplus", "Selu", "Mish", "Abs")
"""Activations, of which some take zero to zero and some do not."""


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor in the making: its name and its shape, -1 for the samples."""

    name: str
    shape: tuple[int, ...]


class Graph(Body):
    """A random graph; each step picks a value, an operator for it, and keeps the result to be picked again."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed)
        self.values: list[Value] = []
        self.inputs = []
        self.shared: dict[tuple[int, ...], list[str]] = {}

    # ---- choices

    def chance(self, share: float) -> bool:
        """True so often."""
        return bool(self.random.random() < share)

    def pick(self, *things: object) -> object:
        """One of some things."""
        return things[self.random.integers(len(things))]

    def width(self) -> int:
        """How many units a layer has."""
        return int(self.random.integers(2, 13))

    def of_rank(self, rank: int) -> list[Value]:
        """The values of a rank, newest last."""
        return [value for value in self.values if len(value.shape) == rank]

    # ---- weights

    def weight(self, shape: tuple[int, ...], axis: int, fan: int) -> str:
        """A weight whose units along an axis are now and then zero or equal; or one that another node has, too."""
        known = self.shared.get((*shape, axis), [])
        if known and self.chance(0.1):
            return str(self.pick(*known))
        array = (1.4 * self.random.standard_normal(shape) / np.sqrt(max(fan, 1))).astype(np.float32)
        rows = np.moveaxis(array, axis, 0)
        for unit in range(len(rows)):
            if self.chance(0.06):
                rows[unit] = 0
            elif unit and self.chance(0.06):
                rows[unit] = rows[self.random.integers(unit)]
        name = self.put(array)
        self.shared.setdefault((*shape, axis), []).append(name)
        return name

    def vector(self, size: int, *, positive: bool = False) -> str:
        """Numbers for the units of a layer, now and then equal, zero, or far below zero."""
        array = self.random.uniform(0.5, 1.5, size) if positive else self.random.standard_normal(size)
        for unit in range(size):
            if unit and self.chance(0.15):
                array[unit] = array[self.random.integers(unit)]
            elif not positive and self.chance(0.1):
                array[unit] = self.pick(0.0, -50.0, 1.0)
        return self.put(array.astype(np.float32))

    # ---- operators; each takes a value of its rank and gives another one

    def activated(self, x: Value) -> Value:
        """An activation, or a limit."""
        if self.chance(0.1):
            low, high = self.put(np.array(-0.5, np.float32)), self.put(np.array(2.0, np.float32))
            return Value(self.op("Clip", x.name, low, high), x.shape)
        return Value(self.op(str(self.pick(*ACTIVATIONS)), x.name), x.shape)

    def scaled(self, x: Value) -> Value:
        """A number for each channel, or each feature, added or multiplied."""
        axis = 1 if len(x.shape) == 4 else len(x.shape) - 1
        shape = [x.shape[axis]] + [1] * (len(x.shape) - 1 - axis)
        array = self.random.standard_normal(shape).astype(np.float32)
        array[self.random.random(shape) < 0.1] = 0
        return Value(self.op(str(self.pick("Add", "Mul", "Sub")), x.name, self.put(array)), x.shape)

    def combined(self, x: Value) -> Value:
        """Two values of one shape: a shortcut, a gate."""
        others = [value for value in self.values if value.shape == x.shape]
        other = others[self.random.integers(len(others))]
        gate = self.op("Sigmoid", other.name) if self.chance(0.3) else other.name
        kind = str(self.pick("Add", "Add", "Add", "Mul", "Max", "Sub"))
        return Value(self.op(kind, x.name, gate), x.shape)

    def joined(self, x: Value) -> Value:
        """Values laid end to end."""
        axis = 1 if len(x.shape) == 4 else len(x.shape) - 1
        rest = x.shape[:axis], x.shape[axis + 1 :]
        others = [v for v in self.of_rank(len(x.shape)) if (v.shape[:axis], v.shape[axis + 1 :]) == rest]
        chosen = [x, *(others[self.random.integers(len(others))] for _ in range(self.random.integers(1, 3)))]
        size = sum(value.shape[axis] for value in chosen)
        if size > 40:
            return self.activated(x)
        name = self.op("Concat", *(value.name for value in chosen), axis=axis)
        return Value(name, (*x.shape[:axis], size, *x.shape[axis + 1 :]))

    def parted(self, x: Value) -> Value:
        """One part of a value; the others may be picked, too."""
        axis = 1 if len(x.shape) == 4 else len(x.shape) - 1
        size = x.shape[axis]
        if size < 2:
            return self.activated(x)
        first = int(self.random.integers(1, size))
        if self.chance(0.5):
            bounds = (self.put(np.array([n])) for n in (0, first, axis))
            return Value(self.op("Slice", x.name, *bounds), (*x.shape[:axis], first, *x.shape[axis + 1 :]))
        names = [f"split{len(self.nodes)}_{i}" for i in (0, 1)]
        sizes = self.put(np.array([first, size - first]))
        self.nodes.append(helper.make_node("Split", [x.name, sizes], names, axis=axis))
        parts = [
            Value(name, (*x.shape[:axis], n, *x.shape[axis + 1 :]))
            for name, n in zip(names, (first, size - first), strict=True)
        ]
        self.values.append(parts[0])
        return parts[1]

    def dense(self, x: Value) -> Value:  # type: ignore[override]
        """A dense layer, as Gemm or as MatMul."""
        width = self.width()
        if len(x.shape) == 2 and self.chance(0.6):
            turned = self.chance(0.5)
            shape = (width, x.shape[1]) if turned else (x.shape[1], width)
            w = self.weight(shape, 0 if turned else 1, x.shape[1])
            bias = [self.vector(width)] if self.chance(0.8) else []
            return Value(self.op("Gemm", x.name, w, *bias, transB=int(turned)), (-1, width))
        h = self.op("MatMul", x.name, self.weight((x.shape[-1], width), 1, x.shape[-1]))
        h = self.op("Add", h, self.vector(width)) if self.chance(0.7) else h
        return Value(h, (*x.shape[:-1], width))

    def convolved(self, x: Value) -> Value:
        """A convolution: plain, grouped or depthwise, padded or not, or the transposed one."""
        channels, size = x.shape[1], x.shape[2]
        kernel = int(self.pick(1, 3)) if size >= 3 else 1
        pad = kernel // 2 if self.chance(0.7) else 0
        groups = [g for g in (1, 2, 3, channels) if channels % g == 0]
        group = int(self.pick(1, 1, *groups))
        width = group * max(1, self.width() // group) if group < channels else channels * int(self.pick(1, 1, 2))
        if width > 24:
            group, width = 1, self.width()
        bias = [self.vector(width)] if self.chance(0.7) else []
        if self.chance(0.1) and group == 1:
            w = self.weight((channels, width, 2, 2), 1, channels * 2)
            if size <= 4:
                return Value(
                    self.op("ConvTranspose", x.name, w, *bias, strides=[2, 2]), (-1, width, size * 2, size * 2)
                )
        w = self.weight((width, channels // group, kernel, kernel), 0, channels // group * kernel)
        h = self.op("Conv", x.name, w, *bias, pads=[pad] * 4, group=group)
        out = size + 2 * pad - kernel + 1
        return Value(h, (-1, width, out, out))

    def normalized(self, x: Value) -> Value:
        """BatchNormalization, InstanceNormalization, GroupNormalization or LayerNormalization."""
        if len(x.shape) != 4:
            numbers = [self.vector(x.shape[-1]) for _ in range(2)]
            return Value(self.op("LayerNormalization", x.name, *numbers), x.shape)
        channels = x.shape[1]
        numbers = [self.vector(channels), self.vector(channels)]
        kind = self.pick("batch", "batch", "batch", "instance", "group")
        if kind == "instance" and x.shape[2] > 1:
            return Value(self.op("InstanceNormalization", x.name, *numbers), x.shape)
        if kind == "group" and channels % 2 == 0:
            shapes = [self.put(np.array(n)) for n in ([0, 2, -1], [-1, *x.shape[1:]])]
            ones = [self.put(np.full(2, n, np.float32)) for n in (1, 0)]
            h = self.op("InstanceNormalization", self.op("Reshape", x.name, shapes[0]), *ones)
            return Value(self.op("Reshape", h, shapes[1]), x.shape)
        statistics = [self.vector(channels), self.vector(channels, positive=True)]
        return Value(self.op("BatchNormalization", x.name, *numbers, *statistics), x.shape)

    def pooled(self, x: Value) -> Value:
        """A pool over windows, or over everything."""
        size = x.shape[2]
        if size >= 2 and self.chance(0.6):
            out = size // 2
            kind = str(self.pick("MaxPool", "AveragePool"))
            return Value(self.op(kind, x.name, kernel_shape=[2, 2], strides=[2, 2]), (*x.shape[:2], out, out))
        if self.chance(0.5):
            axes = self.put(np.array([2, 3]))
            return Value(self.op(str(self.pick("ReduceMean", "ReduceMax")), x.name, axes, keepdims=0), x.shape[:2])
        return Value(self.op("Flatten", self.op("GlobalAveragePool", x.name)), x.shape[:2])

    def squeezed(self, x: Value) -> Value:
        """Squeeze and excitation."""
        h = self.op("GlobalAveragePool", x.name)
        for inputs, outputs in ((x.shape[1], 3), (3, x.shape[1])):
            h = self.op("Conv", h, self.weight((outputs, inputs, 1, 1), 0, inputs), self.vector(outputs))
            h = self.op("Relu" if outputs == 3 else "Sigmoid", h)
        return Value(self.op("Mul", x.name, h), x.shape)

    def shuffled(self, x: Value) -> Value:
        """Groups of channels taken in turns."""
        channels, size = x.shape[1:3]
        if channels % 2:
            return self.activated(x)
        h = self.op("Reshape", x.name, self.put(np.array([-1, 2, channels // 2, size, size])))
        h = self.op("Transpose", h, perm=[0, 2, 1, 3, 4])
        return Value(self.op("Reshape", h, self.put(np.array([-1, channels, size, size]))), x.shape)

    def flattened(self, x: Value) -> Value:
        """Channels and positions in one axis, in either order."""
        channels, size = x.shape[1:3]
        h = self.op("Transpose", x.name, perm=[0, 2, 3, 1]) if self.chance(0.4) else x.name
        return Value(self.op("Flatten", h), (-1, channels * size * size))

    def tokens(self, x: Value) -> Value:
        """Positions as tokens."""
        channels, size = x.shape[1:3]
        h = self.op("Reshape", x.name, self.put(np.array([-1, channels, size * size])))
        return Value(self.op("Transpose", h, perm=[0, 2, 1]), (-1, size * size, channels))

    def attended(self, x: Value) -> Value:
        """Attention with two heads or three."""
        length, width = x.shape[1:]
        heads, head = int(self.pick(2, 3)), int(self.random.integers(2, 5))
        parts = []
        for _ in range(3):
            h = self.op("MatMul", x.name, self.weight((width, heads * head), 1, width))
            h = self.op("Add", h, self.vector(heads * head)) if self.chance(0.5) else h
            h = self.op("Reshape", h, self.put(np.array([-1, length, heads, head])))
            parts.append(self.op("Transpose", h, perm=[0, 2, 1, 3]))
        scores = self.op("MatMul", parts[0], self.op("Transpose", parts[1], perm=[0, 1, 3, 2]))
        scores = self.op("Softmax", self.op("Mul", scores, self.put(np.array(head**-0.5, np.float32))), axis=-1)
        h = self.op("Transpose", self.op("MatMul", scores, parts[2]), perm=[0, 2, 1, 3])
        h = self.op("Reshape", h, self.put(np.array([-1, length, heads * head])))
        out = self.width()
        return Value(self.op("MatMul", h, self.weight((heads * head, out), 1, heads * head)), (-1, length, out))

    def recurrent(self, x: Value) -> Value:
        """A recurrent layer over the tokens."""
        kind = str(self.pick("GRU", "LSTM", "RNN"))
        gates, width = {"GRU": 3, "LSTM": 4, "RNN": 1}[kind], int(self.random.integers(2, 7))
        h = self.op("Transpose", x.name, perm=[1, 0, 2])
        w = self.put((self.random.standard_normal((1, gates * width, x.shape[2])) * 0.5).astype(np.float32))
        r = self.put((self.random.standard_normal((1, gates * width, width)) * 0.5).astype(np.float32))
        b = self.put(self.random.standard_normal((1, 2 * gates * width)).astype(np.float32))
        extra = {"linear_before_reset": 1} if kind == "GRU" and self.chance(0.5) else {}
        h = self.op(kind, h, w, r, b, hidden_size=width, **extra)
        h = self.op("Squeeze", h, self.put(np.array([1])))
        return Value(self.op("Transpose", h, perm=[1, 0, 2]), (-1, x.shape[1], width))

    def averaged(self, x: Value) -> Value:
        """The mean, the largest or the last of the tokens."""
        if self.chance(0.3):
            return Value(self.op("Gather", x.name, self.put(np.array(x.shape[1] - 1)), axis=1), (-1, x.shape[2]))
        kind = str(self.pick("ReduceMean", "ReduceMax", "ReduceSum"))
        return Value(self.op(kind, x.name, self.put(np.array([1])), keepdims=0), (-1, x.shape[2]))

    def contracted(self, x: Value) -> Value:
        """A dense layer over the tokens, written as Einsum."""
        width = self.width()
        w = self.weight((x.shape[2], width), 1, x.shape[2])
        return Value(self.op("Einsum", x.name, w, equation="btd,de->bte"), (*x.shape[:2], width))

    def chosen(self, x: Value) -> Value:
        """What is above a limit, and something else where it is not."""
        above = self.op("Greater", x.name, self.put(np.array(0.3, np.float32)))
        return Value(
            self.op("Where", above, x.name, self.op("Mul", x.name, self.put(np.array(0.1, np.float32)))), x.shape
        )

    def step(self) -> None:
        """One more value."""
        recent = self.values[-4:]
        x = recent[self.random.integers(len(recent))]
        common: list[Callable[[Value], Value]] = [self.activated] * 4 + [self.scaled, self.combined, self.joined]
        common += [self.parted, self.normalized, self.chosen]
        if len(x.shape) == 4:
            ways = [
                *common,
                *[self.convolved] * 8,
                self.pooled,
                self.squeezed,
                self.shuffled,
                self.flattened,
                self.tokens,
            ]
        elif len(x.shape) == 3:
            ways = [*common, *[self.dense] * 5, *[self.attended] * 2, self.recurrent, self.averaged, self.contracted]
        else:
            ways = [*common, *[self.dense] * 6]
        value = ways[self.random.integers(len(ways))](x)
        if value.shape[-1] <= 200:
            self.values.append(value)

    def finished(self) -> onnx.ModelProto:
        """The model: what nobody reads is gone, and the last values are its outputs, behind dense layers."""
        flat = []
        for value in self.values[-2:]:
            h = value
            while len(h.shape) > 2:
                h = self.pooled(h) if len(h.shape) == 4 else self.averaged(h)
            flat.append(self.op("Gemm", h.name, self.weight((h.shape[1], 3), 1, h.shape[1]), self.vector(3)))
        outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in dict.fromkeys(flat)]
        needed = {output.name for output in outputs}
        nodes = []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                nodes.append(node)
                needed.update(node.input)
        weights = [tensor for tensor in self.weights if tensor.name in needed]
        inputs = [info for info in self.inputs if info.name in needed]
        graph = helper.make_graph(nodes[::-1], "random", inputs, outputs, weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


SHAPES = {"image": ("N", 3, 6, 6), "tokens": ("N", 5, 7), "vector": ("N", 8), "flag": ("N", 1)}
"""Inputs that a graph may have."""


def random_model(seed: int) -> onnx.ModelProto:
    """A random graph of five to twenty-five steps, from one to three inputs."""
    graph = Graph(seed)
    kinds = [kind for kind in SHAPES if graph.chance(0.45)] or ["image"]
    for kind in kinds:
        shape = SHAPES[kind]
        graph.inputs.append(helper.make_tensor_value_info(kind, TensorProto.FLOAT, list(shape)))
        value = Value(kind, (-1, *(int(n) for n in shape[1:])))
        start = {4: graph.convolved, 3: graph.dense, 2: graph.dense}[len(shape)]
        graph.values.append(start(value))
    for _ in range(int(graph.random.integers(5, 26))):
        graph.step()
    return graph.finished()


def random_data(model: onnx.ModelProto, rows: int, seed: int, *, still: bool = False) -> dict[str, np.ndarray]:
    """Inputs for a random graph.

    Args:
        model: the graph.
        rows: how many samples.
        seed: of the numbers.
        still: whether some features, or a whole input, may be the same in all samples, or negative everywhere.
    """
    generator = np.random.default_rng([seed, rows])
    found = {}
    for info in model.graph.input:
        shape = [d.dim_value for d in info.type.tensor_type.shape.dim][1:]
        array = generator.standard_normal((rows, *shape)).astype(np.float32)
        if still and generator.random() < 0.3:
            array[:] = array[:1]
        elif still and generator.random() < 0.5:
            features = generator.random(shape) < 0.3
            array[:, features] = array[:1, features]
        if still and generator.random() < 0.2:
            array = -np.abs(array)
        found[info.name] = array
    return found
