"""Recovery as a program: killed and resumed, in several processes, checked, and exported anew."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto

from builders import Net
from onnxprune.cli import main
from onnxprune.errors import BridgeError
from onnxprune.graph import load
from onnxprune.recovery import export_fresh
from onnxprune.runtime import Session
from torch_bridge.test_control import branches

SLOW = """
import time
def augment(arrays, generator):
    time.sleep(0.02)
    return {n: a + 0.1 * generator.standard_normal(a.shape, "float32") for n, a in arrays.items()}
"""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}


def start(*arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def steps(path: Path) -> int:
    return path.read_text().count('"loss"') if path.exists() else 0


def test_killed_at_any_step_and_resumed_it_ends_the_same(mlp_model: Path, train_data: Path, tmp_path: Path) -> None:
    """No broken file is left, and the result is the same to the last byte, as is the log."""
    (tmp_path / "slow.py").write_text(SLOW)
    common = ("recover", mlp_model, "--teacher", mlp_model, "--data", train_data, "--batch", 72, "--label-weight", 0.5)
    common += ("--augment", tmp_path / "slow.py", "--epochs", 2, "--save-every", 3, "--ema", 0.9, "--device", "cpu")
    common += ("--eval", train_data, "--optimizer", "sgd", "--rate", 0.01)
    whole, cut = tmp_path / "whole.onnx", tmp_path / "cut.onnx"
    losses = [tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"]
    undisturbed = start("onnxprune", *common, "-o", whole, "--losses", losses[0])
    assert undisturbed.communicate(timeout=300)[0] and undisturbed.returncode == 0
    again: tuple[object, ...] = ()
    for kill in (random.randint(4, 14), random.randint(18, 36)):
        process = start("onnxprune", *common, "-o", cut, "--losses", losses[1], *again)
        while steps(losses[1]) < kill and process.poll() is None:
            time.sleep(0.002)
        process.kill()
        process.communicate(timeout=60)
        assert not cut.exists() and (tmp_path / "cut.onnx.ckpt").exists()
        again = ("--resume",)
    for name in (".cut.onnx.ckpt.0123abcd.tmp", ".cut.onnx.ckpt.0123abcd.file.tmp"):
        (tmp_path / name).write_bytes(b"what a kill in the middle of a checkpoint leaves")
    last = start("onnxprune", *common, "-o", cut, "--losses", losses[1], "--resume")
    said = last.communicate(timeout=300)[0].decode()
    assert last.returncode == 0, said
    assert cut.read_bytes() == whole.read_bytes()
    assert losses[0].read_text() == losses[1].read_text() and steps(losses[0]) == 40
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.is_file()) == [".jsonl"] * 2 + [".onnx"] * 2 + [
        ".py"
    ]


@pytest.mark.parametrize("fsdp", [False, True])
def test_two_processes_train_as_one(fsdp: bool, mlp_model: Path, train_data: Path, tmp_path: Path) -> None:
    """The same loss at every step to 1e-5, all weights to 2e-5 of the way they went; the last batch is odd.

    AdamW moves a weight by about the rate however small its gradient is, so rounding of tiny ones shows in a few.
    """
    with np.load(train_data) as file:
        np.savez(tmp_path / "d.npz", **{name: file[name][:451] for name in file.files})
    graph = load(mlp_model)
    before = {name: 0.7 * array for name, array in graph.constants.items()}
    begin = graph.with_constants({n: a.astype("f") for n, a in before.items()}).save(tmp_path / "begin.onnx")
    common = ("recover", begin, "--teacher", mlp_model, "--data", tmp_path / "d.npz", "--label-weight", 0.5)
    common += ("--batch", 90, "--epochs", 2, "--ema", 0.9, "--device", "cpu", "--rate", 0.01)
    common += ("--eval", tmp_path / "d.npz", "--metric", "loss")
    one, two = tmp_path / "one.onnx", tmp_path / "two.onnx"
    assert run(*common, "-o", one, "--losses", tmp_path / "one.jsonl").exit_code == 0
    assert "exists already" in run(*common, "-o", two, "--losses", tmp_path / "one.jsonl").stderr
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    torchrun = ("torch.distributed.run", "--nproc-per-node", 2, "--master-port", port, "-m", "onnxprune")
    shared = ("--fsdp", "--save-every", 2) if fsdp else ("--accumulate", 2)
    process = start(*torchrun, *common, "-o", two, "--losses", tmp_path / "two.jsonl", *shared)
    said = process.communicate(timeout=300)[0].decode()
    assert process.returncode == 0, said
    assert said.count("wrote") == 1
    curves = [
        [entry.get("loss", entry.get("value")) for entry in map(json.loads, (tmp_path / name).read_text().splitlines())]
        for name in ("one.jsonl", "two.jsonl")
    ]
    assert len(curves[0]) == 2 * (6 + 1)
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-5)
    first, second = (load(path).constants for path in (one, two))
    for name, array in first.items():
        assert np.linalg.norm(second[name] - array) <= 2e-5 * np.linalg.norm(array - before[name])
    assert any(abs(array - before[name]).max() > 1e-2 for name, array in first.items())


def test_convolutions_are_shared_too(conv_model: Path, train_data: Path, tmp_path: Path) -> None:
    """fully_shard refuses weights in channels-last order, in which convolutions train otherwise."""
    with np.load(train_data) as file:
        np.savez(tmp_path / "d.npz", **{name: file[name][:180] for name in file.files})
    common = ("recover", conv_model, "--data", tmp_path / "d.npz", "--label-weight", 1, "--freeze-batchnorm")
    common += ("--batch", 60, "--epochs", 1, "--device", "cpu", "--rate", 0.01)
    assert run(*common, "-o", tmp_path / "one.onnx", "--losses", tmp_path / "one.jsonl").exit_code == 0
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", "onnxprune")
    process = start(*torchrun, *common, "--fsdp", "-o", tmp_path / "two.onnx", "--losses", tmp_path / "two.jsonl")
    said = process.communicate(timeout=300)[0].decode()
    assert process.returncode == 0, said
    one, two = (
        [json.loads(line)["loss"] for line in (tmp_path / name).read_text().splitlines()]
        for name in ("one.jsonl", "two.jsonl")
    )
    assert len(one) == 3
    np.testing.assert_allclose(two, one, rtol=5e-5)


def test_sharing_needs_several_processes(mlp_model: Path, train_data: Path, tmp_path: Path) -> None:
    result = run("recover", mlp_model, "--data", train_data, "--label-weight", 1, "--fsdp", "-o", tmp_path / "o.onnx")
    assert result.exit_code == 1 and "--fsdp shares weights among processes; start with torchrun" in result.stderr


def test_plain_fine_tuning(mlp_model: Path, train_data: Path, tmp_path: Path) -> None:
    """A model that was never pruned, labels alone: the loss falls, and the file is the same but for its weights."""
    out = tmp_path / "tuned.onnx"
    common = ("recover", mlp_model, "--data", train_data, "--label-weight", 1, "--epochs", 3)
    assert run(*common, "-o", out, "--losses", tmp_path / "l.jsonl").exit_code == 0
    curve = [json.loads(line)["loss"] for line in (tmp_path / "l.jsonl").read_text().splitlines()]
    assert np.mean(curve[-5:]) < np.mean(curve[:5])
    before, after = onnx.load(mlp_model), onnx.load(out)
    assert [n.SerializeToString() for n in before.graph.node] == [n.SerializeToString() for n in after.graph.node]
    assert [(t.name, t.dims) for t in before.graph.initializer] == [(t.name, t.dims) for t in after.graph.initializer]
    assert before.metadata_props == after.metadata_props


def test_a_missed_goal_writes_the_best_and_says_so(mlp_model: Path, train_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.onnx"
    common = ("recover", mlp_model, "--data", train_data, "--label-weight", 1, "--epochs", 1, "-o", out)
    result = run(*common, "--eval", train_data, "--goal", 1.5)
    assert result.exit_code == 3 and "the goal of 1.5 was missed: the best was top1 0.9" in result.stderr
    assert out.exists()
    result = run(*common, "--force", "--patience", 2)
    assert result.exit_code == 2 and "need samples to measure on; give --eval" in result.stderr


# check ----------------------------------------------------------------------------------------------------------------


def test_check_trains_nothing(conv_model: Path, tmp_path: Path) -> None:
    before = sorted(conv_model.parent.iterdir())
    result = run("recover", conv_model, "--check")
    assert result.exit_code == 0 and sorted(conv_model.parent.iterdir()) == before
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line}
    assert lines["stem.weight"].endswith("  yes")
    assert lines["bn.running_var"].endswith("no: a running statistic, which follows the batches instead")
    found = json.loads(run("recover", conv_model, "--check", "--json").stdout)
    assert found["schema"] == "onnxprune.trainable/1" and found["trained"]["head.weight"] == [10, 96]
    assert found["lacks"] == {} and not found["unfolds"]
    assert "there is nothing to train on; give --data" in run("recover", conv_model).stderr


def test_check_says_why_not(tmp_path: Path) -> None:
    net = Net()
    h = net.op("Mul", net.dense(net.input("N", 6), 6, 6), net.constant(np.float32(2), "two"))
    h = net.op("Add", h, net.constant(np.repeat([[0.5], [1.0]], 6, axis=1).astype("f"), "grid"))
    h = net.op("Reshape", h, net.ints(-1, 6))
    onnx.save(net.output(h).model(), tmp_path / "m.onnx")
    result = run("recover", tmp_path / "m.onnx", "--check")
    assert result.exit_code == 0, result.stderr
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line}
    assert lines["two"].endswith("no: one number, such as an epsilon or a scale")
    assert lines["grid"].endswith("no: not combined with an activation as a weight is: a mask, a table or a grid")
    assert "Constants that train: 2, 42 numbers." in result.stdout
    assert "Constants of whole numbers, which do not: 1." in result.stdout


def test_check_names_what_the_bridge_lacks(tmp_path: Path) -> None:
    net = Net()
    h = net.op("RandomNormalLike", net.input("N", 4))
    onnx.save(net.output(net.dense(h, 4, 2)).model(), tmp_path / "m.onnx")
    result = run("recover", tmp_path / "m.onnx", "--check")
    assert result.exit_code == 0
    lacked = "The bridge to PyTorch lacks RandomNormalLike; nodes that need it: 1, the first 'randomnormallike0_node'."
    assert lacked in result.stdout
    assert json.loads(run("recover", tmp_path / "m.onnx", "--check", "--json").stdout)["lacks"]


# a fresh graph --------------------------------------------------------------------------------------------------------


def test_a_fresh_graph_has_the_names_of_the_old(conv_model: Path, test_data: Path, tmp_path: Path) -> None:
    model = onnx.load(conv_model)
    model.metadata_props.add(key="made by", value="tests")
    onnx.save(model, tmp_path / "m.onnx")
    graph = load(tmp_path / "m.onnx")
    images = {"image": np.load(test_data)["image"][:5]}
    fresh = load(export_fresh(graph, tmp_path / "fresh.onnx", images))
    assert (fresh.inputs, fresh.outputs) == (graph.inputs, graph.outputs)
    assert [(p.key, p.value) for p in fresh.source.metadata_props][-1] == ("made by", "tests")
    assert {"stem.weight", "head.bias"} <= set(fresh.constants)
    first = [g.source.graph.input[0].type.tensor_type.shape.dim[0].dim_param for g in (graph, fresh)]
    assert first[0] == first[1] != ""
    ours, theirs = (Session(g.message(), device="cpu").run(images)[0] for g in (fresh, graph))
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_a_fresh_graph_has_symbolic_lengths_and_all_names(tmp_path: Path) -> None:
    net = Net(18)
    tokens = net.input("batch", "length", kind=TensorProto.INT64)
    h = net.op("Gather", net.weight(9, 8, name="val_0"), tokens)
    sizes = net.op("Concat", net.op("Shape", tokens), net.ints(2, 4), axis=0)
    h = net.op("Reshape", net.op("MatMul", h, net.weight(8, 8, name="outputs")), sizes)
    heads = net.op("Transpose", h, perm=[0, 2, 1, 3])
    scores = net.op("Softmax", net.op("MatMul", heads, net.op("Transpose", heads, perm=[0, 1, 3, 2])))
    net.output(net.op("MatMul", scores, heads))
    graph = net.graph()
    text = np.random.default_rng(0).integers(0, 9, (3, 6))
    fresh = load(export_fresh(graph, tmp_path / "fresh.onnx", {"x0": text}))
    assert {"val_0", "outputs"} <= set(fresh.constants)
    for length in (1, 11):
        feeds = {"x0": text[:2].repeat(2, axis=1)[:, :length]}
        ours, theirs = (Session(g.message(), device="cpu").run(feeds)[0] for g in (fresh, graph))
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_an_export_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(*arguments: object, **options: object) -> None:
        try:
            raise ValueError("Found a conflict:\n- the length is always 7")
        except ValueError as error:
            raise RuntimeError("Failed to export. Next steps:\n- read this") from error

    monkeypatch.setattr("torch.onnx.export", fails)
    net = Net(18)
    graph = net.output(net.dense(net.input("batch", 4), 4, 2)).graph()
    with pytest.raises(BridgeError, match=r"fails: Found a conflict: - the length is always 7; the graph without it"):
        export_fresh(graph, tmp_path / "fresh.onnx", {"x0": np.zeros((2, 4), np.float32)})
    assert not (tmp_path / "fresh.onnx").exists()


def test_what_data_decide_cannot_be_exported_and_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = np.ones((2, 4), np.float32)
    with pytest.raises(BridgeError, match=r"fails: .*data-dependent.*; the graph without it is written"):
        export_fresh(branches(), tmp_path / "fresh.onnx", {"x0": x, "x1": np.array(True)})
    assert capsys.readouterr() == ("", "")
