"""The command line as a stranger meets it: results, files, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import onnxprune
from commands import run
from onnxprune import cli
from onnxprune.runtime import Session


def test_help_is_fast_and_names_every_command() -> None:
    """Fast means that no numerical library but numpy is loaded."""
    code = "import sys, onnxprune.cli; print(sorted({'torch', 'scipy', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
    shown = run("--help").stdout
    assert all(name in shown for name in ("inspect", "score", "prune", "recover", "eval", "compare"))
    for name in cli.main.commands:
        assert "Example" in run(name, "--help").stdout


def test_public_names_exist() -> None:
    for name in onnxprune.__all__:
        assert getattr(onnxprune, name) is not None
    with pytest.raises(AttributeError, match="module 'onnxprune' has no attribute 'nothing'"):
        onnxprune.nothing  # noqa: B018


def test_inspect(model: Path) -> None:
    shown = run("inspect", model).stdout
    assert "fc1.weight" in shown and "160" in shown and "it is an input of the model" in shown
    found = json.loads(run("inspect", model, "--json").stdout)
    assert found["schema"] == "onnxprune.units/1" and found["groups"]["fc1.weight"]["units"] == 160
    assert found["parameters"] == 64 * 160 + 160 + 160 * 96 + 96 + 96 * 10 + 10
    assert found["macs"] == 64 * 160 + 160 * 96 + 96 * 10


def test_score(model: Path, train_data: Path, tmp_path: Path) -> None:
    out, moments = tmp_path / "s.npz", tmp_path / "m.npz"
    result = run("score", model, "--data", train_data, "-o", out, "--moments", moments, "--samples", 200)
    assert result.exit_code == 0 and "fc2.weight" in result.stdout
    with np.load(out) as file:
        assert file["scores/fc1.weight"].shape == (160,) and str(file["criterion"]) == "spectral"
    assert onnxprune.Moments.load(moments).source == str(train_data)
    by_library = onnxprune.score(model, train_data, feeding=onnxprune.Feeding(samples=200)).scores
    with np.load(out) as file:
        np.testing.assert_array_equal(file["scores/fc1.weight"], by_library.by_group["fc1.weight"])
    as_json = json.loads(run("score", model, "--data", train_data, "--samples", 200, "--json").stdout)
    assert as_json["schema"] == "onnxprune.scores/1" and len(as_json["scores"]["fc2.weight"]) == 96


def test_prune_writes_what_the_library_makes(model: Path, train_data: Path, tmp_path: Path) -> None:
    out, plan = tmp_path / "small.onnx", tmp_path / "plan.json"
    arguments = ["prune", model, "--ratio", 0.4, "--data", train_data, "--samples", 256, "--no-latency"]
    result = run(*arguments, "-o", out, "--plan", plan)
    assert result.exit_code == 0 and "Verified: equal to the masked original" in result.stdout
    pruned = onnxprune.prune(
        model,
        onnxprune.Budget("params", 0.4),
        train_data,
        method=onnxprune.Method(latency=False),
        feeding=onnxprune.Feeding(samples=256),
    )
    assert pruned.graph.proto().SerializeToString(deterministic=True) == out.read_bytes()
    assert onnxprune.Plan.load(plan).initializers == pruned.plan.initializers
    again = run(*arguments, "-o", out, "--plan", plan, "--force")
    assert again.stdout == result.stdout  # same inputs, same bytes
    report = json.loads(run(*arguments, "--dry-run", "--json").stdout)
    assert report["schema"] == "onnxprune.report/1" and report["latency"] is None
    assert report["after"]["parameters"] <= 0.6 * report["before"]["parameters"]
    assert report["after"]["bytes"] == out.stat().st_size


def test_the_plan_is_enough_for_an_outsider(model: Path, train_data: Path, tmp_path: Path) -> None:
    """Without onnxprune: mask the original's activations as the plan says, and compare in ONNX Runtime."""
    out, plan = tmp_path / "small.onnx", tmp_path / "plan.json"
    run(
        "prune", model, "--units", 0.5, "--data", train_data, "--samples", 64, "-o", out, "--plan", plan, "--no-latency"
    )
    kept = json.loads(plan.read_text())
    assert kept["schema"] == "onnxprune.plan/1"
    masked = onnx.load(model)
    shapes = {v.name: v for v in onnx.shape_inference.infer_shapes(masked).graph.value_info}
    for name, axes in kept["activations"].items():
        sizes = [d.dim_value for d in shapes[name].type.tensor_type.shape.dim]
        ((axis, indices),) = axes.items()
        mask = np.zeros(sizes[int(axis)], np.float32)
        mask[indices] = 1
        node = next(node for node in masked.graph.node if name in node.output)
        node.output[0] = name + "_whole"
        masked.graph.initializer.append(onnx.numpy_helper.from_array(mask, name + "_mask"))
        place = list(masked.graph.node).index(node) + 1
        masked.graph.node.insert(place, helper.make_node("Mul", [name + "_whole", name + "_mask"], [name]))
    for name, axes in kept["initializers"].items():
        before = next(t for t in onnx.load(model).graph.initializer if t.name == name)
        after = next(t for t in onnx.load(out).graph.initializer if t.name == name)
        expected = onnx.numpy_helper.to_array(before)
        for axis, indices in axes.items():
            expected = expected.take(indices, int(axis))
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(after), expected)
    x = {"image": np.load(train_data)["image"][:50]}
    found, wanted = (Session(m, device="cpu").run(x)[0] for m in (out, masked.SerializeToString()))
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_output_defaults_to_a_name_beside_the_model(model: Path, train_data: Path) -> None:
    run("prune", model, "--ratio", 0.2, "--data", train_data, "--samples", 64, "--no-latency")
    assert (model.parent / "model.pruned.onnx").is_file()


def test_synthetic_data_are_said_to_be_no_good(model: Path) -> None:
    result = run("prune", model, "--ratio", 0.2, "--samples", 64, "--dry-run", "--no-latency")
    assert result.exit_code == 0
    assert "Calibrated on synthetic inputs: the ranking is not to be trusted for real use" in result.stdout


def test_every_option_of_prune(conv_model: Path, train_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.onnx"
    result = run(
        *("prune", conv_model, "--macs", 0.8, "--data", train_data, "--samples", 64, "--batch", 16, "--stride", 2),
        *(
            "--device",
            "cpu",
            "--criterion",
            "variance",
            "--reverse",
            "--seed",
            3,
            "--rounds",
            2,
            "--allocation",
            "uniform",
        ),
        *(
            "--round-to",
            4,
            "--floor",
            0.2,
            "--only",
            "block*",
            "--skip",
            "*conv2*",
            "--refit",
            "-o",
            out,
            "--no-latency",
        ),
    )
    assert result.exit_code == 0, result.output
    assert "Refit: " in result.stdout and "left out by --only or --skip" in result.stdout
    names = {t.name: t.dims for t in onnx.load(out).graph.initializer}
    assert names["stem.weight"][0] == 32 and names["block1.conv1.weight"][0] % 4 == 0


def test_eval_and_compare(model: Path, test_data: Path) -> None:
    shown = run("eval", model, "--data", test_data).stdout
    assert shown.startswith("top-1 9") and "360 samples" in shown
    value = json.loads(run("eval", model, "--data", test_data, "--json").stdout)
    assert value["samples"] == 360 and 0.9 < value["value"] <= 1
    result = run("compare", model, model, "--data", test_data, "--threads", 1)
    assert (
        "same class as the original" in result.stdout and "100.00 %" in result.stdout and "1 thread," in result.stdout
    )
    report = json.loads(run("compare", model, model, "--json").stdout)
    assert report["quality"] is None and report["latency"]["runs"] >= 10


def test_recover(model: Path, train_data: Path, test_data: Path, tmp_path: Path) -> None:
    small, final = tmp_path / "small.onnx", tmp_path / "final.onnx"
    run("prune", model, "--ratio", 0.7, "--data", train_data, "-o", small, "--no-latency")
    arguments = ["recover", small, "--teacher", model, "--data", train_data, "--epochs", 5, "--batch", 64]
    result = run(*arguments, "-o", final)
    assert result.exit_code == 0 and "wrote" in result.stderr and not (tmp_path / "final.onnx.ckpt").exists()
    accuracy = [onnxprune.evaluate(path, test_data)[0] for path in (small, final)]
    assert accuracy[1] > accuracy[0] + 0.1
    assert [t.dims for t in onnx.load(final).graph.initializer] == [t.dims for t in onnx.load(small).graph.initializer]


def test_study(model: Path, train_data: Path, test_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "study.json"
    result = run(
        *("study", model, "--data", train_data, "--eval", test_data, "--samples", 200, "--rounds", 1, "-o", out),
        *("--criterion", "variance", "--criterion", "random", "--ratio", 0.5),
    )
    assert result.exit_code == 0 and [row.split()[1] for row in result.stdout.splitlines()[2:]] == [
        "variance",
        "random",
    ]
    trials = {(t["criterion"], t["reverse"], t["refit"]): t for t in json.loads(out.read_text())["trials"]}
    assert len(trials) == 8
    accuracy = {key: trial["quality"]["top1"][1] for key, trial in trials.items()}
    assert accuracy["variance", False, False] > accuracy["variance", True, False]
    assert accuracy["variance", False, True] >= 0.9
