"""What was measured: costs, latency, outputs, and the report that sets a model before and after side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from onnxprune.files import write


@dataclass(frozen=True, slots=True)
class Cost:
    """What a model weighs.

    Attributes:
        parameters: floating-point numbers in its constants.
        macs: multiply-accumulates for one sample.
        bytes: size of the file, external data included.
    """

    parameters: int
    macs: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Latency:
    """Two models timed in turns, so that both see the same machine.

    Attributes:
        provider: the execution provider of both.
        threads: intra-op threads, 0 for all cores.
        batch: samples in a run.
        runs: counted runs of each model.
        before: 10th, 50th and 90th percentile of a run of the original, in seconds.
        after: the same of the other model.
        ratio: median over the pairs of runs of after / before.
    """

    provider: str
    threads: int
    batch: int
    runs: int
    before: tuple[float, float, float]
    after: tuple[float, float, float]
    ratio: float


@dataclass(frozen=True, slots=True)
class Quality:
    """What a model computes, measured on data.

    Attributes:
        samples: how many.
        source: which data.
        top1: share of labels met by the original and by the other model; None without labels.
        agreement: share of samples for which both choose the same class; None where outputs are no classes.
        difference: largest absolute difference of any output, where both models give a number.
    """

    samples: int
    source: str
    top1: tuple[float, float] | None
    agreement: float | None
    difference: float


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One group in a report.

    Attributes:
        name: its name.
        kind: what a unit is.
        units: how many it had.
        kept: how many it has.
        scores: lowest and highest score in the first round; None where it was not scored.
        note: why nothing was removed, or what was special.
        exact: whether removing units gives the masked original; not so where normalizations run over them.
    """

    name: str
    kind: str
    units: int
    kept: int
    scores: tuple[float, float] | None
    note: str
    exact: bool = True


@dataclass(frozen=True, slots=True)
class Proof:
    """What was compared with the masked original, and what could not be seen.

    Attributes:
        difference: largest difference of any output, relative to its values.
        samples: samples that were run.
        tensors: tensors that were compared, outputs included.
        weights: weights that were cut; each was spoiled a little, to see whether that would be noticed.
        unseen: those of which it would not have been, and why.
        random: outputs that are other numbers in every run, which cannot be compared.
        moved: outputs that ONNX Runtime's optimizations change, and by how much, None where other classes come out, or
            what is no number; without them they are equal.
    """

    difference: float
    samples: int
    tensors: int
    weights: int
    unseen: Mapping[str, str] = field(default_factory=dict)
    random: tuple[str, ...] = ()
    moved: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """Before and after.

    Attributes:
        before: the original.
        after: the other model.
        latency: timed in turns; None where it was not.
        quality: on data; None without.
        unrefit: the same before the refit; None without one.
        groups: what happened to each group; empty when two files are compared.
        settings: how the model was made.
        proof: that the model equals the masked original, in which normalizations run over what is kept; None where
            that was not checked.
        notes: what a reader should know, in words.
    """

    before: Cost
    after: Cost
    latency: Latency | None = None
    quality: Quality | None = None
    unrefit: Quality | None = None
    groups: tuple[GroupRow, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    proof: Proof | None = None
    notes: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether all that was removed lies in exact groups."""
        return all(row.exact or row.kept == row.units for row in self.groups)

    @property
    def verified(self) -> float | None:
        """Largest difference of an output from the masked original, relative to its values."""
        return self.proof.difference if self.proof else None

    def to_json(self) -> str:
        """The report as one JSON object, schema onnxprune.report/1; what was not measured is null."""
        found = {"schema": "onnxprune.report/1", "verified": self.verified, **asdict(self)}
        return json.dumps(found, indent=1, sort_keys=True, allow_nan=False)

    def save(self, path: Path) -> None:
        """Writes the report as JSON."""
        write(Path(path), self.to_json() + "\n")
