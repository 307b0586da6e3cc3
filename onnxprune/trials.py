"""Does a criterion add anything on this model? Every criterion, lowest and highest first, with and without refit.

The paper of the spectral criterion leaves open whether its scores say more than activation size does, and whether
taking out units with high scores hurts more than taking out those with low ones. This answers both on any model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from onnxprune.criteria import CRITERIA
from onnxprune.data import load_data
from onnxprune.files import Results, write
from onnxprune.findings import Quality
from onnxprune.graph import Graph
from onnxprune.measure import quality
from onnxprune.pipeline import Method, prune
from onnxprune.run import Feeding, Progress, Ranking, as_graph, quiet
from onnxprune.runtime import Session
from onnxprune.selection import Budget


@dataclass(frozen=True, slots=True)
class Trial:
    """One way of pruning and what it left.

    Attributes:
        criterion: how units were ranked.
        reverse: whether high scores went first.
        refit: whether the remaining weights were refit.
        share: of the budget.
        removed: share of the parameters that is gone.
        quality: of the compact model, against the original.
    """

    criterion: str
    reverse: bool
    refit: bool
    share: float
    removed: float
    quality: Quality


@dataclass(frozen=True, slots=True)
class Study:
    """All trials of one model.

    Attributes:
        kind: of the budget, as in `selection.Budget`.
        trials: in the order they were made.
    """

    kind: str
    trials: tuple[Trial, ...]

    def to_json(self) -> str:
        """The study as one JSON object, schema onnxprune.study/1."""
        return json.dumps({"schema": "onnxprune.study/1", **asdict(self)}, indent=1, sort_keys=True)

    def save(self, path: Path, results: Results | None = None) -> None:
        """Writes the study as JSON, together with other `results` where these are given."""
        write(Path(path), self.to_json() + "\n", results)


def study(
    model: Graph | Path | str,
    budgets: Sequence[Budget],
    data: object,
    test: object,
    *,
    criteria: Sequence[str] = CRITERIA,
    ranking: Ranking | None = None,
    method: Method | None = None,
    feeding: Feeding | None = None,
    progress: Progress | None = None,
) -> Study:
    """Prunes a model in every way and measures each.

    Args:
        model: the model.
        budgets: how much to remove, all of one kind.
        data: calibration samples.
        test: samples to measure on, with labels for accuracy; without, agreement with the original is measured.
        criteria: which.
        ranking: options of the criteria.
        method: rounds and limits.
        feeding: how data are taken.
        progress: called with the trials done and in all.
    """
    graph, feeding, progress = as_graph(model), feeding or Feeding(), progress or quiet
    ranking, method = ranking or Ranking(), replace(method or Method(), latency=False)
    original = Session(graph.message(), device=feeding.device)
    samples = load_data(test, original, size=128)
    ways = [(b, c, reverse, refit) for b in budgets for c in criteria for reverse in (0, 1) for refit in (0, 1)]
    trials = []
    for i, (budget, criterion, reverse, refit) in enumerate(ways):
        chosen = replace(ranking, criterion=criterion, reverse=bool(reverse))
        pruned = prune(graph, budget, data, ranking=chosen, method=replace(method, refit=bool(refit)), feeding=feeding)
        after = Session(pruned.graph.message(), device=feeding.device)
        found = quality(original, after, samples.batches(), source=samples.source)
        removed = 1 - pruned.report.after.parameters / pruned.report.before.parameters
        trials.append(Trial(criterion, bool(reverse), bool(refit), budget.share, removed, found))
        progress("trials", i + 1, len(ways))
    return Study(budgets[0].kind, tuple(trials))
