"""What is trained on: all samples in memory, and which of them a step takes.

Batches differ in size by one sample at most: a last batch of a sample or two would give BatchNormalization nothing to
normalize over.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from onnxprune.data import Data
from onnxprune.errors import DataError
from onnxprune.records import rows_of, take
from onnxprune.recovery.options import Arrays, Training


@dataclass(frozen=True, slots=True)
class Samples:
    """All samples: training takes them in random order.

    Attributes:
        inputs: arrays by input.
        labels: one entry a sample, where there are labels.
        fixed: samples in a run where the model fixes them, else 0.
    """

    inputs: Arrays
    labels: np.ndarray | None
    fixed: int = 0

    def __len__(self) -> int:
        return rows_of(self.inputs)

    def first(self, count: int) -> Arrays:
        """The first samples, as many as the model takes in a run where it fixes that."""
        rows = np.arange(self.fixed or min(count, len(self))) % len(self)
        return self.take(rows)[0]

    def take(self, rows: np.ndarray) -> tuple[Arrays, np.ndarray | None]:
        """Some samples and their labels."""
        return take(self.inputs, rows), None if self.labels is None else self.labels[rows]

    def fingerprint(self) -> str:
        """A hash of all samples and labels."""
        digest = hashlib.blake2b(digest_size=16)
        for name, array in sorted({**self.inputs, "": self.labels}.items()):
            if array is not None:
                digest.update(f"{name} {array.dtype} {array.shape}".encode())
                digest.update(np.ascontiguousarray(array).view(np.uint8).data)
        return digest.hexdigest()


def read(data: Data, *, needs_labels: bool) -> Samples:
    """Reads all samples.

    Raises:
        DataError: there are none, or they lack labels that are needed.
    """
    batches = list(data.batches())
    if needs_labels and any(batch.labels is None for batch in batches):
        raise DataError(f"{data.source} has no labels; add an array 'labels', or use --label-weight 0.")
    for name, array in batches[0].feeds.items():
        if not array.ndim and any(batch.feeds[name] != array for batch in batches):
            raise DataError(
                f"{data.source}: '{name}' differs between samples, and training mixes them; give one number."
            )
        shapes = {batch.feeds[name].shape[1:] for batch in batches}
        if len(shapes) > 1:
            raise DataError(
                f"{data.source}: samples of '{name}' differ in shape, such as {array.shape[1:]} and "
                f"{max(shapes - {array.shape[1:]})}; training mixes samples, so pad them to one length."
            )
    parts = [take(batch.feeds, slice(batch.real)) for batch in batches]
    arrays = {n: np.concatenate([part[n] for part in parts]) if a.ndim else a for n, a in parts[0].items()}
    labels = [b.labels for b in batches if b.labels is not None]
    fixed = next((x.shape[0] for x in data.inputs if x.shape and x.shape[0] is not None), 0)
    return Samples(arrays, np.concatenate(labels) if len(labels) == len(batches) else None, fixed)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Which samples each step and each process takes.

    Attributes:
        samples: how many there are.
        steps: of an epoch.
        parts: of a step, over all processes.
        fixed: samples of a part where the model fixes them, else 0.
        seed: of the order.
    """

    samples: int
    steps: int
    parts: int
    fixed: int
    seed: int

    def epoch(self, number: int) -> list[np.ndarray]:
        """The rows of each step of an epoch, in an order of its own."""
        order = np.random.default_rng([self.seed, number]).permutation(self.samples)
        if self.fixed:  # what is left over waits for another epoch
            order = order[: self.steps * self.parts * self.fixed]
        return np.array_split(order, self.steps)

    def split(self, rows: np.ndarray) -> list[np.ndarray]:
        """The parts of a step; some are empty where there are fewer rows than parts."""
        return np.array_split(rows, self.parts)


def plan_epochs(samples: Samples, training: Training, processes: int) -> Schedule:
    """How many steps an epoch has, and how many parts a step.

    Raises:
        DataError: the model fixes the batch, and there is too little for it.
    """
    parts = training.accumulate * processes
    if not samples.fixed:
        steps = math.ceil(len(samples) / training.batch)
        return Schedule(len(samples), steps, parts, 0, training.seed)
    per_process = max(1, training.batch // (samples.fixed * processes))
    parts = per_process * processes
    steps = len(samples) // (parts * samples.fixed)
    if not steps:
        raise DataError(
            f"the model takes {samples.fixed} samples a run, a step takes {parts * samples.fixed} and there are "
            f"{len(samples)}; give more samples or a smaller --batch."
        )
    return Schedule(len(samples), steps, parts, samples.fixed, training.seed)
