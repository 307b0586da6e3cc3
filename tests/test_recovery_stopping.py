"""What recovery watches and when it ends: goals, patience, metrics of one's own, and options that are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from onnxprune.errors import DataError, GoalMissed, PlanError
from onnxprune.pipeline import evaluate
from onnxprune.recovery import Execution, Training, Watch, recover
from test_recovery import classes, network
from test_recovery_objectives import DATA, QUICK, TEACHER, outputs, script


def test_a_goal_that_is_reached_ends_the_training(tmp_path: Path) -> None:
    path, data = tmp_path / "l.jsonl", DATA | {"labels": classes(TEACHER)}
    training = Training(epochs=60, batch=32, rate=2e-2)
    watch = Watch(data, goal=0.9)
    final = recover(
        network(seed=1), DATA, teacher=TEACHER, training=training, watch=watch, execution=Execution(losses=path)
    )
    assert evaluate(final, data)[0] >= 0.9
    assert len(path.read_text().splitlines()) < 60 * 4


def test_a_goal_that_is_missed_is_a_failure_with_the_best_weights() -> None:
    data = DATA | {"labels": classes(TEACHER)}
    watch = Watch(data, "agreement", goal=1.1)
    with pytest.raises(GoalMissed, match=r"the goal of 1.1 was missed: the best was agreement 0\.\d+; train") as caught:
        recover(network(seed=1), DATA, teacher=TEACHER, training=QUICK, watch=watch)
    assert caught.value.exit_code == 3
    said = float(str(caught.value).split("agreement ")[1].split(";")[0])
    assert abs(evaluate(caught.value.graph, data)[0] - said) < 1e-4


def test_the_best_weights_are_kept_and_patience_ends(tmp_path: Path) -> None:
    """A training that only makes things worse gives back the start."""
    path = tmp_path / "l.jsonl"
    training = Training(epochs=20, batch=32, rate=3e-1)
    final = recover(
        TEACHER,
        DATA,
        teacher=network(seed=5),
        training=training,
        watch=Watch(DATA | {"labels": classes(TEACHER)}, patience=2),
        execution=Execution(losses=path),
    )
    assert final.message() == TEACHER.message()
    values = [entry for line in path.read_text().splitlines() if "metric" in (entry := json.loads(line))]
    assert [entry["epoch"] for entry in values] == [1, 2] and values[0]["metric"] == "top1"


def test_a_script_may_measure(tmp_path: Path) -> None:
    path = script(
        tmp_path,
        "import numpy as np\ndef evaluate(run, data):\n"
        "    return -np.mean([np.mean(run(feeds)[0] ** 2) for feeds, labels in data])\n"
        "def fails(run, data):\n    return 1 / 0\n",
    )
    training = Training(epochs=3, batch=32, rate=1e-1)
    final = recover(network(seed=1), DATA, teacher=TEACHER, training=training, watch=Watch(DATA, path))
    assert np.isfinite(outputs(final, DATA)[0]).all()
    with pytest.raises(DataError, match=r"the metric .*:fails fails: ZeroDivisionError: division by zero"):
        recover(network(), DATA, teacher=TEACHER, training=QUICK, watch=Watch(DATA, f"{path}:fails"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Watch(DATA, "f1"), r"--metric 'f1' is unknown; use top1, agreement, loss, or script.py\[:function\]"),
        (lambda: Training(task="sum"), "--task 'sum' is unknown; use cross-entropy, mse, next-token"),
        (lambda: Training(unfold_batchnorm=True, freeze_batchnorm=True), "exclude each other"),
        (lambda: Training(ema=2), "--ema 2 is out of range"),
        (lambda: Training(match_hidden=-1), "--match-hidden -1 is out of range"),
        (lambda: Watch(DATA, patience=-1), "--patience -1 is out of range"),
    ],
)
def test_options_that_are_refused(make: object, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        make()


@pytest.mark.parametrize(
    ("watch", "message"),
    [
        (Watch(DATA, "top1"), "--metric top1 needs labels"),
        (Watch(DATA, "agreement"), "--metric agreement compares with the original; give --teacher"),
    ],
)
def test_metrics_that_cannot_be_measured(watch: Watch, message: str) -> None:
    data = DATA | {"labels": classes(TEACHER)}
    with pytest.raises(DataError, match=message):
        recover(network(), data, training=Training(label_weight=1), watch=watch)
