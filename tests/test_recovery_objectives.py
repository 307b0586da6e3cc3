"""What recovery minimizes, and how: tasks, hidden states, parts of steps, averages, precision."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from builders import Net
from onnxprune.errors import BridgeError, DataError, PlanError
from onnxprune.graph import Graph
from onnxprune.grouping import find_units
from onnxprune.pipeline import evaluate
from onnxprune.recovery import Execution, Training, Watch, recover
from onnxprune.runtime import Session
from onnxprune.surgery import remove
from test_recovery import X, classes, distance, network

DATA = {"x0": X}
TEACHER = network()
QUICK = Training(epochs=2, batch=32)


def outputs(graph: Graph, feeds: dict[str, np.ndarray], *names: str) -> list[np.ndarray]:
    return Session(graph.message(outputs=names), device="cpu").run(feeds, names or None)


def hidden_network(seed: int = 0) -> Graph:
    """Two hidden layers, the second of which a compact model can keep whole."""
    net = Net(seed=seed)
    h = net.op("Relu", net.dense(net.input("N", 6), 6, 16))
    h = net.op("Relu", net.dense(h, 16, 8))
    return net.output(net.dense(h, 8, 2)).graph()


def language_model(seed: int) -> Graph:
    """Guesses the next token from the present one alone."""
    net = Net(seed=seed)
    h = net.op("Gather", net.weight(7, 12), net.input("N", "T", kind=TensorProto.INT64))
    mask = net.input("N", "T", kind=TensorProto.INT64)
    net.inputs[0].name, net.inputs[1].name = "input_ids", "attention_mask"
    for node in net.nodes:
        node.input[:] = ["input_ids" if name == "x0" else name for name in node.input]
    wide = net.op("Unsqueeze", net.op("Cast", "attention_mask", to=TensorProto.FLOAT), net.ints(2))
    assert mask == "x1"
    return net.output(net.op("MatMul", net.op("Mul", h, wide), net.weight(12, 7))).graph()


def script(folder: Path, text: str) -> str:
    path = folder / "script.py"
    path.write_text(text)
    return str(path)


# tasks ----------------------------------------------------------------------------------------------------------------


def test_squared_errors_of_numbers() -> None:
    student, wanted = network(1, seed=1), network(1)
    labels = outputs(wanted, DATA)[0][:, 0]
    training = Training(epochs=40, batch=32, rate=2e-2, label_weight=1, task="mse")
    final = recover(student, DATA | {"labels": labels}, training=training)
    assert distance(final, wanted) < 0.2 * distance(student, wanted)


def test_rows_that_data_pick_can_be_trained_and_not_compared(tmp_path: Path) -> None:
    """The first sample alone is picked, so that its output looks like a row for each sample."""

    def picked(seed: int) -> Graph:
        net = Net(seed=seed)
        h = net.dense(net.input("N", 6), 6, 4)
        mean = net.op("ReduceMean", h, net.ints(1), keepdims=0)
        shown = net.op("Greater", mean, net.constant(np.float32(0)))
        return net.output(net.op("Compress", h, shown, axis=0)).graph()

    teacher, student = picked(2), picked(4)
    assert len(outputs(teacher, {"x0": X[:1]})[0]) == 1
    with pytest.raises(BridgeError, match=r"^an output has shape \(\d+, 4\) and that of the teacher \(\d+, 4\): data"):
        recover(student, DATA, teacher=teacher, training=QUICK)
    task = script(tmp_path, "def loss(outputs, labels):\n    return outputs[0].square().sum() / len(labels)\n")
    training = Training(epochs=30, batch=32, rate=3e-2, label_weight=1, task=task)
    final = recover(student, DATA | {"labels": np.zeros(len(X))}, training=training)
    assert np.square(outputs(final, DATA)[0]).sum() < 0.5 * np.square(outputs(student, DATA)[0]).sum()


def test_next_tokens_are_their_own_labels() -> None:
    """Tokens that the mask leaves out do not count: those say the opposite of the others."""
    tokens = (np.arange(20)[None] + np.arange(40)[:, None]) % 7
    tokens[:, 10:] = 3
    mask = np.ones_like(tokens)
    mask[:, 10:] = 0
    data = {"input_ids": tokens, "attention_mask": mask}
    training = Training(epochs=30, batch=20, rate=3e-2, label_weight=1, task="next-token")
    final = recover(language_model(0), data, training=training)
    guess = outputs(final, data)[0][:, :9].argmax(-1)
    assert (guess == tokens[:, 1:10]).mean() > 0.95
    same = recover(language_model(1), data, teacher=final, training=Training(epochs=30, rate=3e-2, task="next-token"))
    assert (outputs(same, data)[0][:, :9].argmax(-1) == guess).mean() > 0.95


def test_lengths_that_differ_cannot_be_mixed() -> None:
    data = [{name: np.ones((4, length), np.int64) for name in ("input_ids", "attention_mask")} for length in (5, 3)]
    with pytest.raises(DataError, match=r"'input_ids' differ in shape, such as \(5,\) and \(3,\); .* pad them to one"):
        recover(language_model(1), data, teacher=language_model(0), training=QUICK)


def test_a_script_may_say_the_loss(tmp_path: Path) -> None:
    """A loss that wants the opposite of the labels is minimized just as well."""
    path = script(
        tmp_path,
        "import torch\ndef loss(outputs, labels):\n"
        "    return torch.nn.functional.cross_entropy(outputs[0], 1 - labels)\n",
    )
    labels = classes(TEACHER)
    training = Training(epochs=60, batch=32, rate=2e-2, label_weight=1, task=path)
    final = recover(network(seed=1), DATA | {"labels": labels}, training=training)
    assert evaluate(final, DATA | {"labels": 1 - labels})[0] > 0.85


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 // 0", r"the loss .*script\.py fails: ZeroDivisionError: "),
        ("outputs[0]", r"the loss .*script\.py gives no tensor of one number; let it return one"),
    ],
)
def test_a_script_that_says_no_loss(tmp_path: Path, line: str, message: str) -> None:
    path = script(tmp_path, f"def loss(outputs, labels):\n    return {line}\n")
    with pytest.raises(DataError, match=message):
        recover(network(), DATA | {"labels": classes(TEACHER)}, training=Training(label_weight=1, task=path))


def test_labels_that_do_not_fit() -> None:
    for task, shape, wanted in (
        ("cross-entropy", (96, 3), "one class for each row or position"),
        ("mse", (96, 3), "the same shape"),
        ("next-token", (96, 3), "one token for each position"),
    ):
        data = DATA | {"labels": np.zeros(shape, np.int64)}
        with pytest.raises(DataError, match=rf"labels of shape \(32, 3\) do not fit .*; give {wanted}"):
            recover(network(), data, training=Training(batch=32, label_weight=1, task=task))
    with pytest.raises(DataError, match="--task next-token needs one input of whole numbers"):
        recover(network(), DATA, training=Training(label_weight=1, task="next-token"))


# hidden states --------------------------------------------------------------------------------------------------------


def test_hidden_states_are_learnt() -> None:
    """With labels that say nothing, only the weight on hidden states brings them nearer."""
    teacher, student = hidden_network(), hidden_network(seed=1)
    (name,) = (node.outputs[0].name for node in teacher.nodes[2:3])
    gaps = []
    for weight in (0.0, 10.0):
        training = Training(epochs=60, batch=32, rate=1e-2, match_hidden=weight)
        final = recover(student, DATA, teacher=teacher, training=training)
        a, b = (outputs(graph, DATA, name)[0] for graph in (final, teacher))
        gaps.append(float(np.square(a - b).mean()))
    assert gaps[1] < 0.5 * gaps[0]


def test_narrower_hidden_states_need_the_plan() -> None:
    """With the plan the pruned layer is compared at its kept positions; the start is then the best there is."""
    teacher = hidden_network()
    units = find_units(teacher, {"x0": X[:2]})
    keep = {name: np.arange(group.size) % 2 == 0 for name, group in units.groups.items()}
    plan = units.plan(keep)
    compact = remove(teacher, plan)
    training = Training(epochs=1, match_hidden=1.0)
    with pytest.raises(PlanError, match="finds no hidden state of the same name and shape in both models; give the"):
        recover(compact, DATA, teacher=teacher, training=training)
    recover(compact, DATA, teacher=teacher, plan=plan, training=training)
    with pytest.raises(PlanError, match="the plan is of another model than the teacher"):
        recover(compact, DATA, teacher=hidden_network(seed=3), plan=plan, training=Training(epochs=1))


def test_hidden_states_that_are_left_out_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="onnxprune")
    teacher = hidden_network()
    units = find_units(teacher, {"x0": X[:2]})
    keep = {name: np.arange(group.size) < (8 if group.size == 16 else 99) for name, group in units.groups.items()}
    plan = units.plan(keep)
    training = Training(epochs=1, match_hidden=1.0)
    recover(remove(teacher, plan), DATA, teacher=teacher, training=training)
    assert "compares 1 of 2 hidden states; for the others, which are narrower, give the --plan" in caplog.text
    recover(remove(teacher, plan), DATA, teacher=teacher, plan=plan, training=training)
    assert "compares 2 of 2 hidden states\n" in caplog.text


@pytest.mark.parametrize(
    ("option", "given"),
    [
        ("loss", {"training": Training(label_weight=1, loss="mse")}),
        ("temperature", {"training": Training(label_weight=1, temperature=2)}),
        ("match-hidden", {"training": Training(label_weight=1, match_hidden=1)}),
        ("plan", {"plan": Path("plan.json")}),
        ("cache", {"execution": Execution(cache=Path("kept"))}),
        ("teacher-runtime", {"execution": Execution(teacher_runtime="torch")}),
    ],
)
def test_what_is_said_of_a_teacher_needs_one(option: str, given: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match=f"--{option} has to do with the original, and there is none; give --teacher"):
        recover(network(), DATA, **{"training": Training(label_weight=1), **given})


# steps ----------------------------------------------------------------------------------------------------------------


def losses(path: Path, **options: object) -> list[float]:
    """The loss of each step."""
    execution = options.pop("execution", Execution(losses=path, force=True))
    training = Training(**{"epochs": 2, "batch": 32, "rate": 1e-2, "label_weight": 0.5, **options})
    recover(
        network(seed=1), DATA | {"labels": classes(TEACHER)}, teacher=TEACHER, training=training, execution=execution
    )
    return [entry["loss"] for line in path.read_text().splitlines() if "loss" in (entry := json.loads(line))]


def test_an_epoch_ends_with_the_mean_loss_of_its_steps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="onnxprune")
    first = losses(tmp_path / "l.jsonl")[:3]
    assert abs(np.mean(first) - first[-1]) > 1e-3
    assert f"epoch 1 of 2: mean loss {np.mean(first):.4f}" in caplog.text


def test_parts_of_a_step_add_up(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    whole = losses(path)
    assert len(whole) == 6
    np.testing.assert_allclose(losses(path, accumulate=3), whole, rtol=1e-5)
    assert max(abs(np.subtract(losses(path, seed=1), whole))) > 1e-3


def test_precision_and_compilation_change_little(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    whole = losses(path)
    compiled = losses(path, execution=Execution(losses=path, force=True, compile="aot_eager"))
    np.testing.assert_allclose(compiled, whole, rtol=1e-4)
    half = losses(path, execution=Execution(losses=path, force=True, precision="bfloat16"))
    np.testing.assert_allclose(half, whole, rtol=0.1)
    assert half != whole


@pytest.mark.parametrize("generation", [7, 8])
def test_gpus_that_only_imitate_bfloat16_compute_in_float32(monkeypatch: pytest.MonkeyPatch, generation: int) -> None:
    import torch

    from onnxprune.recovery.modules import computes_in_bfloat16

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=generation))
    assert computes_in_bfloat16("auto", torch.device("cuda:0")) == (generation == 8)
    assert not computes_in_bfloat16("auto", torch.device("cpu"))


def test_a_backend_that_does_not_compile() -> None:
    with pytest.raises(BridgeError, match=r"torch.compile with nonsense fails: .*; train without --compile"):
        recover(network(), DATA, teacher=TEACHER, training=QUICK, execution=Execution(compile="nonsense"))


def test_the_average_of_weights_follows_quickly_at_first() -> None:
    """At step t the decay is (1 + t) / (10 + t), until that reaches what was asked for."""
    import torch

    from onnxprune.recovery.weights import Average

    average = Average({"w": torch.zeros(1)}, 0.5)
    expected, seen = 0.0, torch.ones(1)
    for step in range(1, 12):
        average.update({"w": seen * step}, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert abs(float(average.values["w"]) - expected) < 1e-5


def test_the_average_is_what_is_kept() -> None:
    """After a step that leaves nothing as it was, the average still remembers the start."""
    start = network(1, seed=1)
    moved = []
    for ema in (0.0, 1.0):
        training = Training(epochs=1, batch=96, rate=1e-2, warmup=0, ema=ema)
        final = recover(start, DATA, teacher=network(1), training=training)
        moved.append(max(float(abs(final.constants[n] - a).max()) for n, a in start.constants.items()))
    np.testing.assert_allclose(moved[1], moved[0] * 9 / 11, rtol=1e-2)


def test_models_in_half_the_bits_train_in_float32() -> None:
    """Steps that float16 would lose add up; the file keeps its types."""
    net = Net()
    h = net.op("Cast", net.input("N", 6), to=TensorProto.FLOAT16)
    h = net.op("Gemm", h, net.constant(np.full((6, 2), 1, np.float16)), net.constant(np.zeros(2, np.float16)))
    model = net.output(h, kind=TensorProto.FLOAT16).graph()
    wanted = model.with_constants({"c0": np.full((6, 2), 1.01, np.float16)})
    training = Training(epochs=30, batch=32, rate=2e-4, loss="mse")
    final = recover(model, DATA, teacher=wanted, training=training)
    assert final.constants["c0"].dtype == np.float16
    before, after = (abs(g.constants["c0"] - wanted.constants["c0"]).max() for g in (model, final))
    assert after < 0.5 * before


def test_graphs_inside_nodes_train_in_float32_too() -> None:
    net = Net()
    x, flag = net.input("N", 6), net.op("Less", net.op("Size", net.inputs[0].name), net.constant(np.array(10**6)))
    w = net.constant(np.full((6, 2), 1, np.float16))
    nodes = [
        helper.make_node("Cast", [x], ["half"], "half", to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["half", w], ["y"], "dense"),
    ]
    body = helper.make_graph(nodes, "body", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT16, None)])
    y = net.op("If", flag, then_branch=body, else_branch=body)
    model = net.output(y, kind=TensorProto.FLOAT16).graph()
    wanted = model.with_constants({w: np.full((6, 2), 1.01, np.float16)})
    final = recover(model, DATA, teacher=wanted, training=Training(epochs=30, batch=32, rate=2e-4, loss="mse"))
    assert final.constants[w].dtype == np.float16
    before, after = (abs(g.constants[w] - wanted.constants[w]).max() for g in (model, final))
    assert after < 0.5 * before


def test_progress_says_what_was_measured() -> None:
    told: list[tuple[str, int, int, str]] = []
    watch = Watch(DATA, "agreement")
    recover(network(), DATA, teacher=TEACHER, training=QUICK, watch=watch, progress=lambda *now: told.append(now))
    assert [(stage, done, total) for stage, done, total, _ in told] == [
        *(("teacher", done, 96) for done in (32, 64, 96)),
        *(("recovery", done, 6) for done in range(1, 7)),
    ]
    notes = [note for stage, _, _, note in told if stage == "recovery"]
    assert notes[0].endswith(", agreement 1.0000") and re.fullmatch(r"loss -?0\.0\d+, agreement [01]\.\d+", notes[-1])
