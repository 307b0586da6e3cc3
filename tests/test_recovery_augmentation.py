"""Functions that change samples: what they get, what they may give, and what is said of everything else."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from onnxprune.errors import DataError
from onnxprune.pipeline import evaluate
from onnxprune.recovery import Training, recover
from test_recovery import classes, network
from test_recovery_objectives import DATA, QUICK, TEACHER, language_model, outputs

LABELLED = DATA | {"labels": classes(TEACHER)}


def noisy(arrays: dict[str, np.ndarray], generator: np.random.Generator) -> dict[str, np.ndarray]:
    return {"x0": arrays["x0"] + generator.standard_normal(arrays["x0"].shape, np.float32)}


def test_labels_change_with_the_samples(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("def augment(arrays, generator, labels):\n    return arrays, 1 - labels")
    training = Training(epochs=60, batch=32, rate=2e-2, label_weight=1)
    final = recover(network(seed=1), LABELLED, training=training, augment=str(path))
    assert evaluate(final, DATA | {"labels": 1 - LABELLED["labels"]})[0] > 0.85


def test_labels_stay_where_samples_alone_come_back() -> None:
    training = Training(epochs=2, batch=32, label_weight=0.5)
    functions = (
        noisy,
        lambda arrays, generator, labels: noisy(arrays, generator),
        lambda arrays, generator, labels: (noisy(arrays, generator), labels.copy()),
    )
    found = [
        recover(network(seed=1), LABELLED, teacher=TEACHER, training=training, augment=f).message() for f in functions
    ]
    assert found[0] == found[1] == found[2]


def test_numbers_come_back_in_the_types_of_the_inputs() -> None:
    found = [
        recover(
            network(seed=1),
            DATA,
            teacher=TEACHER,
            training=QUICK,
            augment=lambda arrays, generator: {"x0": np.add(arrays["x0"], 0.5, dtype=kind)},  # noqa: B023
        ).message()
        for kind in ("f4", "f8")
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("label_weight", [0.0, 1.0])
def test_texts_may_be_read_in_windows(label_weight: float) -> None:
    """What lies outside of the windows says the opposite, and is not learnt."""
    tokens = (np.arange(20)[None] + np.arange(40)[:, None]) % 7
    tokens[:, 10:] = 3
    data = {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}

    def window(
        arrays: dict[str, np.ndarray], generator: np.random.Generator, labels: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        first = generator.integers(0, 4)
        return {name: array[:, first : first + 6] for name, array in arrays.items()}, labels[:, first : first + 6]

    training = Training(epochs=30, batch=20, rate=3e-2, task="next-token", label_weight=1)
    teacher = recover(language_model(0), data, training=training, augment=window)
    training = Training(epochs=30, batch=20, rate=3e-2, task="next-token", label_weight=label_weight)
    final = recover(language_model(1), data, teacher=teacher, training=training, augment=window)
    assert (outputs(final, data)[0][:, :9].argmax(-1) == tokens[:, 1:10]).mean() > 0.95


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (lambda arrays, generator: 1 // 0, "--augment fails: ZeroDivisionError: "),
        (lambda arrays, generator: None, "--augment gives a NoneType; let it return arrays by input."),
        (lambda a, g, labels: (a, labels, 0), "gives a tuple; let it return arrays by input, or (arrays, labels)."),
        (lambda arrays, generator: {}, "--augment gives no array for the input 'x0'; let it return all inputs."),
        (lambda a, g: {"x0": a["x0"][1:]}, "gives 'x0' of shape (31, 6) for 32 samples; keep their number."),
        (lambda a, g, labels: (a, labels[1:]), "gives labels of shape (31,) for 32 samples; keep their number."),
        (lambda a, g: {"x0": a["x0"] * 1j}, "--augment gives 'x0' as complex64, the model wants float32; convert it."),
    ],
)
def test_what_does_not_fit_is_said(augment: Callable[..., object], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        recover(network(), LABELLED, teacher=TEACHER, training=QUICK, augment=augment)


def test_labels_that_are_not_there() -> None:
    with pytest.raises(DataError, match="--augment takes labels, and there are none; add an array 'labels'"):
        recover(network(), DATA, teacher=TEACHER, training=QUICK, augment=lambda a, g, labels: (a, labels))
