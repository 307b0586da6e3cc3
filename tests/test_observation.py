"""Shapes seen by running, sizes of symbolic axes, and integers that are followed through shape arithmetic."""

from __future__ import annotations

import os

import numpy as np
import pytest

from builders import Net
from onnxprune.errors import DataError, DeviceError, ModelError
from onnxprune.grouping import find_units
from onnxprune.observation import observe
from onnxprune.proof import verify
from onnxprune.runtime import Session, first_line, gpu_count, own_cores
from onnxprune.surgery import remove


def test_shapes_and_what_varies() -> None:
    net = Net()
    h = net.conv(net.input("N", 3, "H", "W"), 3, 5, kernel=3)
    net.output(net.op("GlobalAveragePool", h))
    seen = observe(net.graph())
    n, _, height, width = seen.shapes["x0"]
    assert seen.shapes["conv0"] == (n, 5, height - 2, width - 2)
    assert len({n, height, width}) == 3  # equal sizes would hide which axis is which
    assert {(name, axis) for name, axis in seen.varying if name == "conv0"} == {("conv0", i) for i in (0, 2, 3)}
    assert seen.types["conv0"] is np.float32


def test_sizes_that_do_not_fit_give_way_to_others() -> None:
    """Two poolings and their inverses fit only sizes that four divides."""
    net = Net()
    x = net.input("N", 2, "H", "W")
    h = net.op("MaxPool", net.conv(x, 2, 4), kernel_shape=[4, 4], strides=[4, 4])
    h = net.op("Resize", h, "", net.constant(np.array([1, 1, 4, 4], np.float32)), mode="nearest")
    net.output(net.op("Add", net.conv(h, 4, 2), x))
    assert all(size % 4 == 0 for size in observe(net.graph()).shapes["x0"][2:])


def test_sizes_may_have_to_come_from_data() -> None:
    net = Net()
    h = net.op("Relu", net.op("MatMul", net.input("N", "L", 3), net.weight(3, 6)))
    h = net.op("Add", h, net.weight(1, 10, 6))  # positions for a length of 10 or 1
    graph = net.output(net.op("MatMul", h, net.weight(6, 2))).graph()
    with pytest.raises(DataError, match="no sizes tried for the symbolic axes let the model run; give --data"):
        observe(graph)
    sample = {"x0": np.zeros((1, 10, 3), "f")}
    assert observe(graph, sample).shapes["x0"][1:] == (10, 3)
    assert [group.size for group in find_units(graph, sample).groups.values()] == [6]


def test_models_that_cannot_run_at_all() -> None:
    net = Net()
    h = net.op("Reshape", net.dense(net.input(2, 3), 3, 6), net.ints(5, 7))
    graph = net.output(h).graph()
    with pytest.raises(ModelError, match="ONNX Runtime cannot"):
        observe(graph)


def test_a_size_that_is_computed_twice_is_written_where_it_was_computed() -> None:
    """Half of the channels, from Shape: both slices of a chunk, and arithmetic on them, end up right."""
    net = Net()
    h = net.op("Relu", net.conv(net.input("N", 2, 3, 3), 2, 10))
    channels = net.op("Gather", net.op("Shape", h), net.constant(np.array(1, np.int64)))
    middle = net.op("Unsqueeze", net.op("Div", channels, net.constant(np.array(2, np.int64))), net.ints(0))
    end = net.op("Unsqueeze", channels, net.ints(0))
    left = net.op("Slice", h, net.ints(0), middle, net.ints(1))
    right = net.op("Slice", h, middle, end, net.ints(1))
    graph = net.output(net.op("Add", net.conv(left, 5, 2), net.conv(right, 5, 2))).graph()
    units = find_units(graph)
    assert [group.size for group in units.groups.values()] == [5, 5]
    first, second = units.groups
    plan = units.plan({first: np.arange(5) < 4, second: np.arange(5) < 1})
    assert {w.value for w in plan.numbers} == {4} and len(plan.frozen) == 1  # the end follows by itself
    compact = remove(graph, plan)
    verify(units, plan, compact, {"x0": np.random.default_rng(0).standard_normal((2, 2, 3, 3)).astype("f")})
    assert "Div" not in [node.op for node in compact.nodes]  # what only fed the frozen number is gone


def test_sessions_say_where_they_run() -> None:
    net = Net()
    message = net.output(net.dense(net.input("N", 3), 3, 2)).model().SerializeToString()
    session = Session(message)
    assert session.provider == ("CUDAExecutionProvider" if gpu_count() else "CPUExecutionProvider")
    assert session.inputs == [("x0", "tensor(float)", ("N", 3))]
    with pytest.raises(ModelError, match="ONNX Runtime cannot run the model: "):
        session.run({"x0": np.zeros((2, 5), "f")})
    with pytest.raises(DeviceError, match=r"device 'openvino' cannot be used: .* install onnxruntime-openvino"):
        Session(message, device="openvino")


def test_sessions_use_the_cores_that_a_process_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert own_cores() is None
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert own_cores() == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5}, raising=False)
    assert own_cores() == 1  # not none, although there are more processes


def test_messages_are_one_line() -> None:
    assert first_line(RuntimeError("[ONNXRuntimeError] : 10 : INVALID_GRAPH : it is bad\nmore")) == "it is bad"
    assert first_line(RuntimeError("")) == "RuntimeError"
