"""What the command line refuses, in one line that says what to do, and what it leaves behind: nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from builders import Net
from commands import refused, run
from onnxprune.errors import OnnxPruneError


def test_files_that_are_no_models(tmp_path: Path, model: Path) -> None:
    missing, text, cut = tmp_path / "none.onnx", tmp_path / "text.onnx", tmp_path / "cut.onnx"
    text.write_text("hello")
    cut.write_bytes(model.read_bytes()[:5000])
    for command in (["inspect"], ["prune", "--ratio", 0.4], ["score"]):
        assert "cannot be read: No such file or directory" in refused(*command, missing)
        assert "is no ONNX model, or it is truncated; export it again" in refused(*command, text)
        assert "is no ONNX model, or it is truncated; export it again" in refused(*command, cut)
    assert not list(tmp_path.glob("*.pruned.onnx"))


def test_missing_external_data(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "ext.onnx"
    onnx.save(onnx.load(model), path, save_as_external_data=True, location="w.bin", size_threshold=100)
    (tmp_path / "w.bin").unlink()
    assert "external data of the initializer 'fc1.weight' are missing: no file" in refused(
        "prune", path, "--ratio", 0.4
    )


@pytest.mark.parametrize(
    ("operator", "opset", "kind", "message"),
    [
        ("NoSuchOperator", 20, TensorProto.FLOAT, "; take that operator out, or give its body as a local function"),
        (
            "Relu",
            20,
            TensorProto.INT16,
            "; no kernel has its type and opset; convert it to float32 or another opset.",
        ),
        ("Relu", 99, TensorProto.FLOAT, "the model: ONNX Runtime only *guarantees*"),
        ("Relu", 99, TensorProto.FLOAT, "; export it at an older opset, or install a newer ONNX Runtime."),
        ("Relu", 20, TensorProto.STRING, "; onnx.checker.check_model says more."),
    ],
)
def test_models_that_onnx_runtime_cannot_load(
    tmp_path: Path, operator: str, opset: int, kind: int, message: str
) -> None:
    x, y = (helper.make_tensor_value_info(name, kind, ["N", 3]) for name in "xy")
    graph = helper.make_graph([helper.make_node(operator, ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.save(model, tmp_path / "m.onnx")
    said = refused("inspect", tmp_path / "m.onnx")
    assert "error: ONNX Runtime cannot load the model: " in said
    assert message in said


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"imagee": np.zeros((4, 1, 8, 8), "f")}, "has no array for the input 'image', it has 'imagee'; did you mean"),
        ({"image": np.zeros((4, 8, 8), "f")}, "'image' has shape (4, 8, 8), the model wants (any, 1, 8, 8)"),
        ({"image": np.zeros((4, 1, 8, 8), np.uint8)}, "'image' is uint8, the model wants float32"),
        ({"image": np.full((4, 1, 8, 8), np.nan, "f")}, "'image' has NaN or infinite values"),
        ({"image": np.full((4, 1, 8, 8), np.inf, "f")}, "'image' has NaN or infinite values"),
        ({"image": np.zeros((0, 1, 8, 8), "f")}, "holds no samples; give data with at least one"),
    ],
)
def test_data_that_do_not_fit(model: Path, tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    for command in (["prune", "--ratio", 0.4], ["score"]):
        assert message in refused(*command, model, "--data", tmp_path / "d.npz")
    assert message in refused("recover", model, "--teacher", model, "--data", tmp_path / "d.npz")
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".onnx"] == ["model.onnx"]


def test_ratios_out_of_range_or_out_of_reach(model: Path, train_data: Path) -> None:
    assert "--ratio 1.4 is out of range; give a share between 0 and 1, such as 0.4" in refused(
        "prune", model, "--ratio", 1.4
    )
    message = refused("prune", model, "--ratio", 0.99, "--data", train_data)
    assert "--ratio 0.99 cannot be reached: at most 0." in message and "lower --floor" in message


def test_nothing_to_prune_is_exit_code_4(tmp_path: Path) -> None:
    net = Net()
    onnx.save(net.output(net.dense(net.input("N", 3), 3, 2)).model(), tmp_path / "m.onnx")
    message = refused("prune", tmp_path / "m.onnx", "--ratio", 0.4, code=4)
    assert "nothing in this model can be pruned: it is an input of the model (x0)" in message


def test_outputs_that_exist_or_cannot_be_written(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.onnx"
    out.write_bytes(b"precious")
    assert "exists already; give another name or --force to replace it" in refused(
        "prune", model, "--ratio", 0.4, "-o", out
    )
    assert out.read_bytes() == b"precious"
    nowhere = tmp_path / "no" / "folder" / "small.onnx"
    assert f"the folder {nowhere.parent} does not exist" in refused("prune", model, "--ratio", 0.4, "-o", nowhere)
    assert "is a folder; give the name of a file" in refused("prune", model, "--ratio", 0.4, "-o", tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folders_that_are_read_only(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    assert "is not writable" in refused("prune", model, "--ratio", 0.4, "-o", folder / "small.onnx")


def test_a_failed_verification_is_exit_code_3(model: Path, train_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A surgery that cuts the wrong rows: the first differing tensor is named, nothing is written."""
    from onnxprune import pipeline
    from onnxprune.graph import Graph
    from onnxprune.records import Plan

    def wrong(graph: Graph, plan: Plan) -> Graph:
        compact = right(graph, plan)
        return compact.with_constants({"fc2.weight": compact.constants["fc2.weight"][:, ::-1].copy()})

    right = pipeline.remove
    monkeypatch.setattr(pipeline, "remove", wrong)
    message = refused("prune", model, "--ratio", 0.4, "--data", train_data, "--samples", 64, code=3)
    assert "the compact model differs from the masked original, first in tensor '/fc2/Gemm_output_0'" in message
    assert not list(model.parent.glob("*.pruned.onnx"))


def test_usage_errors_are_exit_code_2(model: Path) -> None:
    assert run("prune", model).exit_code == 2
    assert "give one of --ratio, --macs and --units" in run("prune", model).stderr
    assert run("prune", model, "--ratio", 0.4, "--macs", 0.5).exit_code == 2
    assert "Did you mean one of:" in run("prune", model, "--ration", 0.4).stderr
    assert run("prune", model, "--ratio", 0.4, "--samples", 0).exit_code == 2
    assert run("prune", model, "--ratio", 0.4, "--eigenpairs", "many").exit_code == 2
    assert run("prune", model, "--ratio", 0.4, "--k", 0).exit_code == 2


def test_operators_that_the_bridge_lacks_are_named_before_any_work(tmp_path: Path, train_data: Path) -> None:
    net = Net()
    x = net.input("N", 1, 8, 8)
    h = net.op("Bernoulli", net.op("Sigmoid", x))
    model = net.output(net.dense(net.op("Flatten", h), 64, 2)).model()
    model.graph.input[0].name = "image"
    for node in model.graph.node:
        node.input[:] = ["image" if name == "x0" else name for name in node.input]
    onnx.save(model, tmp_path / "m.onnx")
    message = refused("recover", tmp_path / "m.onnx", "--data", train_data, "--label-weight", 1)
    assert "lacks Bernoulli (1 node, 'bernoulli1_node')" in message


def test_recover_needs_something_to_learn_from(model: Path, train_data: Path, tmp_path: Path) -> None:
    assert "there is nothing to learn from; give --teacher" in refused("recover", model, "--data", train_data)
    np.savez(tmp_path / "d.npz", image=np.zeros((4, 1, 8, 8), "f"))
    assert "has no labels; add an array 'labels'" in refused(
        "recover", model, "--data", tmp_path / "d.npz", "--label-weight", 1
    )
    assert "top-1 accuracy needs labels" in refused("eval", model, "--data", tmp_path / "d.npz")
    assert "--epochs 0 is out of range" in refused("recover", model, "--data", train_data, "--epochs", 0)
    assert "there is no checkpoint" in refused("recover", model, "--data", train_data, "--teacher", model, "--resume")


def test_devices_that_are_not_there(model: Path) -> None:
    from onnxprune.runtime import gpu_count

    assert "unknown device 'quantum': use auto, cpu, cuda, tensorrt, openvino" in refused(
        "score", model, "--device", "quantum"
    )
    if not gpu_count():
        assert "device 'cuda' cannot be used" in refused("score", model, "--device", "cuda")


def test_models_of_other_interfaces_are_not_compared(model: Path, tmp_path: Path) -> None:
    net = Net()
    onnx.save(net.output(net.dense(net.input("N", 3), 3, 2)).model(), tmp_path / "m.onnx")
    assert "have different inputs or outputs" in refused("compare", model, tmp_path / "m.onnx")
    assert "the teacher has other inputs or outputs" in refused(
        "recover",
        model,
        "--teacher",
        tmp_path / "m.onnx",
        "--data",
        Path(__file__).parent.parent / "models/digits_train.npz",
    )


def test_verbose_shows_where_an_error_came_from(tmp_path: Path) -> None:
    result = run("-vv", "inspect", tmp_path / "none.onnx")
    assert "Traceback" in result.stderr and "error: " in result.stderr


def test_quiet_says_nothing_on_stderr(model: Path, train_data: Path) -> None:
    result = run("-q", "score", model, "--data", train_data, "--samples", 64)
    assert result.exit_code == 0 and result.stdout and not result.stderr


def test_an_interrupted_run_leaves_nothing(model: Path, train_data: Path, tmp_path: Path) -> None:
    """Ctrl-C in the middle of the work: exit code 1, no file, no trace of one."""
    before = {p.name for p in tmp_path.iterdir()}
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "onnxprune", "prune", model, "--ratio", "0.4", "--data", train_data),
            *("--rounds", "500", "-o", tmp_path / "small.onnx"),
        ],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # what runs behind a shell inherits deafness
    )
    assert process.stderr is not None
    while b"calibration" not in process.stderr.readline():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 1 and b"Traceback" not in rest
    assert {p.name for p in tmp_path.iterdir()} == before


def test_every_error_has_an_exit_code() -> None:
    def tree(kind: type[OnnxPruneError]) -> list[type[OnnxPruneError]]:
        return [kind, *(x for child in kind.__subclasses__() for x in tree(child))]

    codes = {kind.__name__: kind.exit_code for kind in tree(OnnxPruneError)}
    assert [codes.pop(name) for name in ("VerificationError", "GoalMissed", "NothingToPrune")] == [3, 3, 4]
    assert set(codes.values()) == {1}


def test_a_fixed_batch_of_one(tmp_path: Path) -> None:
    """A model that takes one sample at a time, and data that do not fill its batch."""
    for batch in (1, 4):
        net = Net()
        h = net.op("Relu", net.dense(net.input(batch, 6), 6, 16))
        onnx.save(net.output(net.dense(h, 16, 3)).model(), tmp_path / "m.onnx")
        np.savez(tmp_path / "d.npz", x0=np.random.default_rng(0).standard_normal((10, 6)).astype("f"))
        result = run("prune", tmp_path / "m.onnx", "--ratio", 0.3, "--data", tmp_path / "d.npz", "--dry-run")
        assert result.exit_code == 0, result.output


def test_several_inputs_and_types(tmp_path: Path) -> None:
    net = Net()
    x, i = net.input("N", 6), net.input("N", 2, kind=TensorProto.INT64)
    e = net.op("Flatten", net.op("Gather", net.weight(9, 4), i))
    h = net.op("Relu", net.dense(net.op("Concat", x, e, axis=1), 14, 16))
    onnx.save(net.output(net.dense(h, 16, 3)).model(), tmp_path / "m.onnx")
    g = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x0=g.standard_normal((40, 6)), x1=g.integers(0, 9, (40, 2), dtype=np.int32))
    result = run(
        "prune", tmp_path / "m.onnx", "--ratio", 0.3, "--data", tmp_path / "d.npz", "--dry-run", "--no-latency"
    )
    assert result.exit_code == 0, result.output
    assert (
        "'x0' is cast from float64 to float32" in result.stderr and "'x1' is cast from int32 to int64" in result.stderr
    )
