"""The teacher: in ONNX Runtime or in PyTorch, and what is kept of its outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from builders import Net
from commands import run
from onnxprune.errors import DataError, DeviceError, PlanError
from onnxprune.graph import Graph
from onnxprune.grouping import find_units
from onnxprune.recovery import Execution, Training, recover
from onnxprune.recovery.parallel import Processes
from onnxprune.recovery.teacher import Teacher, find_hidden
from onnxprune.surgery import remove
from test_recovery import X, network

DATA = {"x0": X}
TEACHER = network()
QUICK = Training(epochs=2, batch=32)
ALONE = Processes(0, 1, "cpu", "cpu")
IN_TORCH = Execution(teacher_runtime="torch")


def images(*, half: bool = False) -> Graph:
    """A convolution, pooling, two dense layers; in half the bits if asked."""
    net = Net()
    h = net.op("Relu", net.op("Conv", net.input("N", 3, 8, 8), net.weight(8, 3, 3, 3), pads=[1, 1, 1, 1]))
    h = net.op("Flatten", net.op("GlobalAveragePool", h))
    if half:
        h = net.op("Cast", h, to=TensorProto.FLOAT16)
        w = net.constant(np.random.default_rng(1).standard_normal((8, 4)).astype(np.float16))
        return net.output(net.op("MatMul", h, w), kind=TensorProto.FLOAT16).graph()
    return net.output(net.dense(net.op("Relu", net.dense(h, 8, 12)), 12, 4)).graph()


@pytest.mark.parametrize("half", [False, True])
def test_both_runtimes_say_the_same(half: bool) -> None:
    """Outputs and hidden states that are cut to what a compact model kept; as arrays and as tensors."""
    import torch

    model, feeds = images(half=half), {"x0": np.random.default_rng(0).standard_normal((5, 3, 8, 8)).astype("f")}
    units = find_units(model, feeds)
    plan = units.plan({name: np.arange(group.size) % 3 > 0 for name, group in units.groups.items()})
    hidden = find_hidden(remove(model, plan), model, plan, feeds)
    assert any(state.kept for state in hidden)
    theirs, ours = (Teacher(model, feeds, ALONE, Execution(teacher_runtime=r), hidden) for r in ("auto", "torch"))
    wanted = theirs.run(feeds)
    tolerance = 2e-3 if half else 1e-5  # in half precision outputs differ by its own rounding
    for found in (ours.run(feeds), [x.numpy() for x in ours.targets(np.arange(5), feeds, torch.device("cpu"))]):
        for a, b in zip(found, wanted, strict=True):
            assert a.shape == b.shape and a.dtype == np.float32
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_recovery_from_a_teacher_in_torch() -> None:
    """The same weights, and nearly so in bfloat16, by far less than they move."""
    plain = recover(network(seed=1), DATA, teacher=TEACHER, training=QUICK)
    ours = recover(network(seed=1), DATA, teacher=TEACHER, training=QUICK, execution=IN_TORCH)
    half = Execution(teacher_runtime="torch", precision="bfloat16")
    rough = recover(network(seed=1), DATA, teacher=TEACHER, training=QUICK, execution=half)
    before, exact, near = (
        max(float(abs(graph.constants[name] - weights).max()) for name, weights in plain.constants.items())
        for graph in (network(seed=1), ours, rough)
    )
    assert exact < 1e-6 and near < 1e-3 < before


def test_the_option(tmp_path: Path) -> None:
    model, teacher = network(seed=1).save(tmp_path / "m.onnx"), TEACHER.save(tmp_path / "t.onnx")
    np.savez(tmp_path / "x.npz", **DATA)
    data, runtime = ("--data", tmp_path / "x.npz"), ("--teacher-runtime", "torch")
    found = run("recover", model, "--teacher", teacher, *data, *runtime, "--epochs", 1, "-o", tmp_path / "o.onnx")
    assert found.exit_code == 0 and (tmp_path / "o.onnx").exists()


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:0"])
def test_a_gpu_that_only_torch_can_use(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, device: str
) -> None:
    """ONNX Runtime is asked for the GPU by name, so that it cannot fall back to the CPU without a word."""
    asked, made = [], []

    def refused(*_: object, device: str, **__: object) -> None:
        asked.append(device)
        raise DeviceError("no CUDA")

    class Frozen:
        half = False

        def __init__(self, *arguments: Any) -> None:
            made.append(arguments[3:])

        def run(self, arrays: object) -> None: ...

    monkeypatch.setattr("onnxprune.recovery.teacher.Session", refused)
    monkeypatch.setattr("onnxprune.recovery.modules.Frozen", Frozen)
    caplog.set_level("INFO", logger="onnxprune")
    place = Processes(0, 1, "cuda:0", device)
    Teacher(TEACHER, DATA, place, Execution())
    assert asked == ["cuda:0" if device == "auto" else device] and made == [("cuda:0", "auto")]
    assert "ONNX Runtime cannot use the GPU, so the teacher runs in PyTorch" in caplog.text
    for processes, runtime in (
        (place, "onnxruntime"),
        (Processes(0, 1, "cuda:0", "tensorrt:0"), "auto"),
        (Processes(0, 1, "cpu", "cuda"), "auto"),
    ):
        with pytest.raises(DeviceError):
            Teacher(TEACHER, DATA, processes, Execution(teacher_runtime=runtime))  # type: ignore[arg-type]
    assert len(made) == 1


def test_outputs_are_kept_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    execution = Execution(cache=tmp_path)
    plain = recover(network(seed=1), DATA, teacher=TEACHER, training=QUICK)
    first = recover(network(seed=1), DATA, teacher=TEACHER, training=QUICK, execution=execution)
    (file,) = tmp_path.iterdir()
    assert np.load(file).shape == (96, 2)
    monkeypatch.setattr("onnxprune.recovery.teacher.Teacher._compute", None)  # not needed a second time
    again = recover(network(seed=1), DATA, teacher=TEACHER, training=QUICK, execution=execution)
    assert plain.message() == first.message() == again.message()


def test_outputs_that_cannot_be_kept(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="--cache keeps nothing with --augment: no sample comes twice"):
        recover(
            network(),
            DATA,
            teacher=TEACHER,
            training=QUICK,
            augment=lambda arrays, generator: arrays,
            execution=Execution(cache=tmp_path),
        )
    with pytest.raises(DataError, match=r"--cache .*none is no folder; create it"):
        recover(network(), DATA, teacher=TEACHER, training=QUICK, execution=Execution(cache=tmp_path / "none"))


def test_what_is_kept_is_kept_for_each_runtime(tmp_path: Path) -> None:
    runs = [("auto", "auto"), ("onnxruntime", "auto"), ("torch", "auto"), ("torch", "float32"), ("torch", "bfloat16")]
    for runtime, precision in runs:
        execution = Execution(cache=tmp_path, teacher_runtime=runtime, precision=precision)  # type: ignore[arg-type]
        recover(network(), DATA, teacher=TEACHER, training=QUICK, execution=execution)
    assert len(list(tmp_path.iterdir())) == 3  # "auto" is float32 on a CPU


def test_damaged_outputs_are_computed_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Cut off, with another byte in numbers, shape or checksum, or without one; then they are whole again."""
    arguments = {"teacher": TEACHER, "training": QUICK, "execution": Execution(cache=tmp_path)}
    expected = recover(network(), DATA, **arguments).message()
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    places = [0, 70, 200, len(whole) - 40, len(whole) - 2]
    damaged = [whole[:place] for place in places] + [whole[:-55]]
    damaged += [whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :] for place in places]
    for content in damaged:
        path.write_bytes(content)
        caplog.clear()
        assert recover(network(), DATA, **arguments).message() == expected
        assert path.read_bytes() == whole and len(list(tmp_path.iterdir())) == 1
        assert f"{path} is damaged; the teacher's outputs are computed anew" in caplog.text
    caplog.clear()
    assert recover(network(), DATA, **arguments).message() == expected and "damaged" not in caplog.text
