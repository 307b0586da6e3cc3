"""Training: distillation, labels, both; the same end after a cut; what cannot be trained."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from builders import Net
from onnxprune.errors import BridgeError, DataError, OutputError, PlanError
from onnxprune.graph import Graph, load
from onnxprune.pipeline import evaluate
from onnxprune.recovery import Execution, Training, recover
from onnxprune.recovery.loop import Loop
from onnxprune.runtime import Session

G = np.random.default_rng(0)
X = G.standard_normal((96, 6)).astype("f")


def network(outputs: int = 2, *, softmax: bool = False, seed: int = 0) -> Graph:
    net = Net(seed=seed)
    h = net.op("Relu", net.dense(net.input("N", 6), 6, 16))
    y = net.dense(h, 16, outputs)
    return net.output(net.op("Softmax", y) if softmax else y).graph()


def classes(graph: Graph) -> np.ndarray:
    """The class of each sample."""
    return Session(graph.message(), device="cpu").run({"x0": X})[0].argmax(axis=1)


def distance(a: Graph, b: Graph) -> float:
    """Mean squared difference of the outputs."""
    outputs = [Session(graph.message(), device="cpu").run({"x0": X})[0] for graph in (a, b)]
    return float(np.mean((outputs[0] - outputs[1]) ** 2))


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_distillation_needs_no_labels(optimizer: str, softmax: bool) -> None:
    teacher, student = network(softmax=softmax), network(softmax=softmax, seed=1)
    training = Training(epochs=30, batch=32, optimizer=optimizer, rate=2e-2)
    final = recover(student, {"x0": X}, teacher=teacher, training=training)
    before, after = (np.mean(classes(graph) == classes(teacher)) for graph in (student, final))
    assert after > 0.85 > before


def test_outputs_that_are_no_classes_are_fit_by_squared_error() -> None:
    teacher, student = network(1), network(1, seed=1)
    final = recover(student, {"x0": X}, teacher=teacher, training=Training(epochs=40, batch=32, rate=2e-2))
    assert distance(final, teacher) < 0.2 * distance(student, teacher)


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_labels(weight: float) -> None:
    teacher, before = network(), network(seed=1)
    data = {"x0": X, "labels": classes(teacher)}
    training = Training(epochs=30, batch=32, rate=2e-2, label_weight=weight)
    after = recover(before, data, teacher=teacher if weight < 1 else None, training=training)
    assert evaluate(after, data)[0] > 0.9 > evaluate(before, data)[0]


def test_a_run_that_was_cut_off_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Augmentation, order and optimizer go on as if nothing had happened, also inside an epoch."""
    training = Training(epochs=3, batch=20, save_every=2)

    def noisy(arrays: dict[str, np.ndarray], generator: np.random.Generator) -> dict[str, np.ndarray]:
        return {"x0": arrays["x0"] + 0.1 * generator.standard_normal(arrays["x0"].shape, np.float32)}

    arguments = {"teacher": network(), "training": training, "augment": noisy}
    whole = recover(network(seed=1), {"x0": X}, **arguments)
    for cut in (3, 7, 11):
        steps = iter(range(100))
        step = Loop._step

        def killed(self, rows, epoch, number):
            if next(steps) == cut:  # noqa: B023
                raise KeyboardInterrupt
            return step(self, rows, epoch, number)  # noqa: B023

        checkpoint = tmp_path / f"{cut}.ckpt"
        resuming = Execution(checkpoint=checkpoint, resume=True)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Loop, "_step", killed)
            recover(network(seed=1), {"x0": X}, execution=Execution(checkpoint=checkpoint), **arguments)
        resumed = recover(network(seed=1), {"x0": X}, execution=resuming, **arguments)
        assert resumed.message() == whole.message()


def test_checkpoints_of_other_runs_are_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "c.ckpt"
    first, again = Execution(checkpoint=checkpoint), Execution(checkpoint=checkpoint, resume=True)
    arguments = {"teacher": network()}
    recover(network(seed=1), {"x0": X}, training=Training(epochs=1), execution=first, **arguments)
    with pytest.raises(DataError, match="is of another run: model, data or options differ"):
        recover(network(seed=1), {"x0": X}, training=Training(epochs=2), execution=again, **arguments)
    checkpoint.write_bytes(b"nonsense")
    with pytest.raises(DataError, match=re.escape(f"{checkpoint} is no checkpoint of onnxprune")):
        recover(network(seed=1), {"x0": X}, training=Training(epochs=1), execution=again, **arguments)


def test_damaged_checkpoints_are_said_to_be(tmp_path: Path) -> None:
    """A file that was cut off anywhere, and one byte that is another."""
    checkpoint = tmp_path / "c.ckpt"
    arguments = {"teacher": network(), "training": Training(epochs=1)}
    recover(network(seed=1), {"x0": X}, execution=Execution(checkpoint=checkpoint), **arguments)
    whole = checkpoint.read_bytes()
    places = np.random.default_rng(0).integers(0, len(whole), 40)
    damaged = [whole[:place] for place in places] + [whole[:-1], whole + b"\0"]
    damaged += [whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :] for place in places]
    for content in damaged:
        checkpoint.write_bytes(content)
        with pytest.raises(DataError, match=r"c.ckpt is (damaged; start anew with --force|no checkpoint of onnxprune)"):
            recover(network(seed=1), {"x0": X}, execution=Execution(checkpoint=checkpoint, resume=True), **arguments)
    begun = recover(network(seed=1), {"x0": X}, execution=Execution(checkpoint=checkpoint, force=True), **arguments)
    assert checkpoint.read_bytes() == whole
    again = Execution(checkpoint=checkpoint, resume=True)
    assert recover(network(seed=1), {"x0": X}, execution=again, **arguments).message() == begun.message()


def test_two_runs_do_not_share_a_checkpoint(tmp_path: Path) -> None:
    checkpoint = tmp_path / "c.ckpt"
    arguments = {"teacher": network(), "training": Training(epochs=2)}

    def other(stage: str, done: int, total: int, note: str) -> None:
        if stage == "recovery" and not checkpoint.exists():
            recover(network(seed=2), {"x0": X}, execution=Execution(checkpoint=checkpoint), **arguments)

    with pytest.raises(OutputError, match=r"another run writes the checkpoint .*c.ckpt; give another --checkpoint"):
        recover(network(seed=1), {"x0": X}, execution=Execution(checkpoint=checkpoint), progress=other, **arguments)


def test_damaged_lines_of_a_log_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint, path = tmp_path / "c.ckpt", tmp_path / "l.jsonl"
    arguments = {"teacher": network(), "training": Training(epochs=2, batch=24)}
    first = Execution(checkpoint=checkpoint, losses=path)
    recover(network(seed=1), {"x0": X}, execution=first, **arguments)
    whole = path.read_bytes().splitlines(keepends=True)
    broken = [b"\xff\xfe\n", b"[" * 100_000 + b"\n", b"5\n", b'{"step": "1"}\n', b"\0\0\0\n"]
    path.write_bytes(b"".join([*whole[:3], *broken, *whole[3:], b'{"step": 9, "lo']))
    again = Execution(checkpoint=checkpoint, losses=path, resume=True)
    recover(network(seed=1), {"x0": X}, execution=again, **arguments)
    assert path.read_bytes() == b"".join(whole)
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"{path} had 5 damaged lines, which are left out"
    ]


def test_running_statistics_are_trained_too(conv_model: Path, train_data: Path) -> None:
    graph = load(conv_model)
    images = np.load(train_data)["image"][:128]
    final = recover(graph, {"image": images}, teacher=graph, training=Training(epochs=1, batch=64))
    changed = {n for n, a in final.constants.items() if a.tobytes() != graph.constants[n].tobytes()}
    assert {"bn.weight", "bn.running_mean", "bn.running_var", "stem.weight", "head.bias"} <= changed
    assert [n.op for n in final.nodes] == [n.op for n in graph.nodes]


def test_scripts_may_augment(tmp_path: Path) -> None:
    script = tmp_path / "a.py"
    script.write_text("def augment(a, g):\n    return {'x0': a['x0'] * 0}\ndef other(a, g):\n    return a")
    runs = [
        recover(network(seed=1), {"x0": X}, teacher=network(), training=Training(epochs=1), augment=augment).message()
        for augment in (None, f"{script}:other", str(script))
    ]
    assert runs[0] == runs[1] != runs[2]


def test_divergence_is_said() -> None:
    with pytest.raises(BridgeError, match="training diverged"):
        training = Training(epochs=20, optimizer="sgd", rate=1e30, warmup=0)
        recover(network(1, seed=1), {"x0": X}, teacher=network(1), training=training)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "--epochs 0 is out of range; give more than 0"),
        ({"rate": -1}, "--rate -1 is out of range"),
        ({"label_weight": 2}, "--label-weight 2 is out of range; give a share from 0 to 1"),
    ],
)
def test_options_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Training(**options)


def test_nothing_to_learn_from() -> None:
    with pytest.raises(PlanError, match="without --teacher there are only labels to learn from"):
        recover(network(), {"x0": X, "labels": classes(network())}, training=Training(label_weight=0.5))
