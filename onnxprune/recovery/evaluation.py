"""How well a model does while it is trained, on data that it is not trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from onnxprune.data import Data
from onnxprune.errors import DataError, blames
from onnxprune.labels import IGNORED, classes
from onnxprune.records import rows_of, take
from onnxprune.recovery.losses import shown_positions
from onnxprune.recovery.options import Arrays, Watch, from_script, is_script

Run = Callable[[Arrays], list[np.ndarray]]
"""Arrays by input to outputs."""
Loss = Callable[[Arrays, list[np.ndarray], np.ndarray | None, int], float]
"""Inputs of a batch, and outputs, labels and number of its real samples, to its loss."""


class Evaluator:
    """Measures one value.

    Attributes:
        metric: what it is.
        rises: whether more is better.
    """

    def __init__(
        self, watch: Watch, data: Data, teacher: Run | None, loss: Loss, *, outputs: int, next_token: bool
    ) -> None:
        """Prepares a metric.

        Args:
            watch: what to measure.
            data: the samples.
            teacher: runs the original.
            loss: computes the loss that is trained.
            outputs: how many outputs the model has, hidden states left out.
            next_token: whether an output says what the label of the next position is.

        Raises:
            DataError: the metric needs labels or a teacher that are not there.
        """
        labelled = data.first(1).labels is not None
        self.watch, self.data, self._teacher, self._loss = watch, data, teacher, loss
        self._outputs, self._next_token = outputs, next_token
        self.metric = watch.metric or ("top1" if labelled else "loss")
        self.rises = self.metric != "loss"
        if self.metric == "top1" and not labelled:
            raise DataError(f"--metric top1 needs labels; {data.source} has none, so add an array 'labels'.")
        if self.metric == "agreement" and teacher is None:
            raise DataError("--metric agreement compares with the original; give --teacher.")
        self._script = from_script(self.metric, "evaluate") if is_script(self.metric) else None

    def measure(self, run: Run) -> float:
        """The value of a model.

        Raises:
            DataError: the outputs are no classes, or the user's function fails or gives no number.
        """
        if self._script is not None:
            return self._scripted(run)
        total = count = 0.0
        for feeds, labels, real in self._batches():
            outputs = real_part(run(feeds), feeds, real)
            value, weight = self._batch(feeds, outputs, labels, real)
            total, count = total + value, count + weight
        if not count:
            raise DataError(
                f"nothing in {self.data.source} counts: it is masked, or its labels are all -100; give others."
            )
        return total / count

    def _batch(
        self, feeds: Arrays, outputs: list[np.ndarray], labels: np.ndarray | None, real: int
    ) -> tuple[float, float]:
        """The sum over a batch, and how many samples or positions it is over."""
        if self.metric == "loss":
            return self._loss(feeds, outputs, labels, real) * real, real
        chosen = _classes(outputs[0], self.metric)
        if self.metric == "top1":
            assert labels is not None
            known = classes(labels, chosen.shape, outputs[0].shape[-1])
            if self._next_token and known.ndim > 1:
                chosen, known = chosen[:, :-1], known[:, 1:]
            return float((chosen == known).sum()), float((known != IGNORED).sum())
        assert self._teacher is not None
        same = chosen == _classes(real_part(self._teacher(feeds)[:1], feeds, real)[0], self.metric)
        shown = shown_positions(feeds)
        if shown is not None and shown[:real].size == same.size:
            same = same.reshape(-1)[shown[:real].reshape(-1)]
        return float(same.sum()), float(same.size)

    def _scripted(self, run: Run) -> float:
        assert self._script is not None
        batches = ((take(feeds, slice(real)), labels) for feeds, labels, real in self._batches())
        with blames(f"the metric {self.metric}"):
            return float(self._script(lambda feeds: run(feeds)[: self._outputs], batches))

    def _batches(self) -> Iterator[tuple[Arrays, Any, int]]:
        for batch in self.data.batches():
            labels = None if batch.labels is None else batch.labels[: batch.real]
            yield batch.feeds, labels, batch.real

    def better(self, value: float, other: float | None) -> bool:
        """Whether a value is better than another; NaN never is."""
        if np.isnan(value):
            return False
        return other is None or (value > other if self.rises else value < other)

    def reached(self, value: float) -> bool:
        """Whether a value is what was asked for."""
        goal = self.watch.goal
        return goal is not None and (value >= goal if self.rises else value <= goal)

    def in_words(self, value: float) -> str:
        """A value for people."""
        return f"{self.metric} {value:.4f}"


def real_part(outputs: Sequence[np.ndarray], feeds: Arrays, real: int) -> list[np.ndarray]:
    """What a model says about the first samples of a batch, also where an output has several rows for each."""
    rows = rows_of(feeds)
    return [output[: len(output) * real // rows] if output.ndim else output for output in outputs]


def _classes(output: np.ndarray, metric: str) -> np.ndarray:
    if output.ndim < 2 or output.shape[-1] < 2 or output.dtype.kind != "f":
        raise DataError(
            f"--metric {metric} needs a first output of one row of classes a sample, this one has shape "
            f"{output.shape}; use --metric loss or a script."
        )
    return output.argmax(axis=-1)
