"""The whole path: read, find units, calibrate, score, select, remove, verify, refit, measure.

Every function here is a command of the same name. Models are paths or `Graph`s; data are what `data.load_data` takes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np

from onnxprune import measure
from onnxprune.data import load_data
from onnxprune.errors import ModelError, PlanError
from onnxprune.findings import Latency, Report
from onnxprune.graph import Graph
from onnxprune.grouping import AllowIO, find_units
from onnxprune.records import Moments, Plan, Scores
from onnxprune.report import unproved
from onnxprune.run import QUALITY_BATCH, Feeding, Progress, Ranking, Run, as_graph, counted, quiet
from onnxprune.runtime import Session
from onnxprune.selection import CONVOLUTION_MULTIPLE, Budget, Limits, select
from onnxprune.surgery import remove
from onnxprune.units import Units
from onnxprune.validation import COUNT, validate

NOT_FASTER = 0.97


@dataclass(frozen=True, slots=True)
class Pruned:
    """What `prune` gives.

    Attributes:
        graph: the compact model.
        plan: what was removed, relative to the original.
        report: before and after.
        scores: of the first round.
    """

    graph: Graph
    plan: Plan
    report: Report
    scores: Scores


@dataclass(frozen=True, slots=True)
class Scored:
    """What `score` gives.

    Attributes:
        units: the model.
        moments: of its states.
        scores: of its units.
        notes: what the reader should know.
    """

    units: Units
    moments: Moments
    scores: Scores
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Method:
    """How units are removed once they are ranked.

    Attributes:
        rounds: how often to remove a part of the budget and rescore.
        limits: floors, rounding, allocation, which groups.
        refit: whether the remaining weights are refit in closed form at the end.
        latency: whether to time both models.
        residual: whether units that normalizations run over may go too, which is not exact.
        allow_io: what inputs and outputs of the model may lose: "head" for the heads that caches hold.
    """

    rounds: Annotated[int, COUNT] = 5
    limits: Limits = field(default_factory=Limits)
    refit: bool = False
    latency: bool = True
    residual: bool = False
    allow_io: tuple[AllowIO, ...] = ()

    def __post_init__(self) -> None:
        validate(self, limits="the limits:", latency="latency")
        if self.refit and self.allow_io:
            raise PlanError("--refit runs both models on the same inputs, which --allow-io changes; leave one out.")


def inspect(
    model: Graph | Path | str, data: object = None, *, residual: bool = False, allow_io: Collection[str] = ()
) -> Units:
    """What can be pruned, what cannot, and why.

    Args:
        model: the model.
        data: samples, where sizes of symbolic axes have to come from them.
        residual: whether units that normalizations run over are groups too.
        allow_io: what inputs and outputs of the model may lose: "head" for the heads that caches hold.
    """
    graph, sample = as_graph(model), None
    if data is not None:
        session = Session(graph.message(), device="cpu", optimize=False)
        sample = load_data(data, session=session, size=2).first(2).feeds
    return find_units(graph, sample, residual=residual, allow_io=allow_io)


def score(
    model: Graph | Path | str,
    data: object = None,
    *,
    ranking: Ranking | None = None,
    feeding: Feeding | None = None,
    progress: Progress | None = None,
    residual: bool = False,
    allow_io: Collection[str] = (),
) -> Scored:
    """Scores every unit of a model.

    Args:
        model: the model.
        data: calibration samples; synthetic inputs when None.
        ranking: how.
        feeding: how data are taken.
        progress: called as work goes on.
        residual: whether units that normalizations run over are scored too.
        allow_io: what inputs and outputs of the model may lose: "head" for the heads that caches hold.
    """
    run = Run(model, data, feeding or Feeding(), progress or quiet, residual=residual, allow_io=allow_io)
    moments = run.calibrate(run.graph)
    run.note_hints(moments)
    return Scored(run.units, moments, run.score(moments, {}, ranking or Ranking()), run.notes)


def prune(
    model: Graph | Path | str,
    budget: Budget,
    data: object = None,
    *,
    ranking: Ranking | None = None,
    method: Method | None = None,
    feeding: Feeding | None = None,
    progress: Progress | None = None,
) -> Pruned:
    """Removes low-scoring units in rounds until a budget is met, and proves the result.

    Args:
        model: the model.
        budget: how much to remove.
        data: calibration samples; synthetic inputs when None.
        ranking: how units are ranked.
        method: how they are removed.
        feeding: how data are taken.
        progress: called as work goes on.

    Raises:
        NothingToPrune: no group may lose units.
        PlanError: the budget cannot be reached.
        VerificationError: the compact model differs from the masked original.
    """
    ranking, method = ranking or Ranking(), method or Method()
    run = Run(model, data, feeding or Feeding(), progress or quiet, residual=method.residual, allow_io=method.allow_io)
    whole = Scores("", {name: np.arange(group.size, dtype=float) for name, group in run.units.groups.items()})
    select(run.units, whole, budget, method.limits)  # an impossible budget shall fail before any work
    keep: dict[str, np.ndarray] = {}
    first: Scores | None = None
    compact, plan = run.graph, None
    for step in range(1, method.rounds + 1):
        scores = run.rank(compact, plan, keep, ranking)
        first = first or scores
        keep = select(run.units, scores, _part(budget, step / method.rounds), method.limits, start=keep)
        plan = run.plan(keep, _settings(budget, ranking, method, run))
        compact = remove(run.units.graph, plan)
        run.progress("rounds", step, method.rounds)
    assert first is not None
    assert plan is not None
    proof = run.prove(plan, compact)
    report = Report(run.cost({}, run.graph), run.cost(keep, compact), unrefit=run.quality(compact, plan))
    notes = [*run.notes, *([_inexact(method)] if plan.inexact else []), *_changed(plan, compact), *unproved(proof)]
    if method.refit:
        compact, nodes = run.refit(plan, compact)
        run.check_finite(compact)
        notes.append(f"Refit: {len(nodes)} layers were refit in closed form; weights differ from the original's.")
        report = replace(report, quality=run.quality(compact, plan))
    else:
        report = replace(report, quality=report.unrefit, unrefit=None)
    if method.latency:
        timed = run.latency(compact, plan)
        notes += _slow(timed, method.limits.round_to)
        report = replace(report, latency=timed)
    rows = tuple(run.row(name, keep, first) for name in run.units.groups)
    report = replace(report, groups=rows, settings=plan.settings, proof=proof, notes=tuple(notes))
    return Pruned(compact, plan, report, first)


def _inexact(method: Method) -> str:
    """What to say where normalizations lost positions."""
    advice = "" if method.refit else "refit it with --refit, and "
    return (
        "The residual width is pruned: normalizations run over fewer channels, so the compact model is not the masked "
        f"original, and its outputs change more than otherwise; {advice}train it with onnxprune recover."
    )


def _part(budget: Budget, done: float) -> Budget:
    """The budget of a round: the share that is to be gone after it."""
    share = 1 - (1 - budget.share) * done if budget.kind == "macs" else budget.share * done
    return replace(budget, share=share)


def _changed(plan: Plan, compact: Graph) -> list[str]:
    """What to say where inputs and outputs of the model shrank."""
    changes = [
        f"{name} axis {axis} now has {len(kept)} positions"
        for name in (*compact.inputs, *compact.outputs)
        for axis, kept in plan.activations.get(name, {}).items()
    ]
    if not changes:
        return []
    return [f"Inputs and outputs changed shape: {'; '.join(changes)}. Whoever runs the model must feed it accordingly."]


def _settings(budget: Budget, ranking: Ranking, method: Method, run: Run) -> dict[str, object]:
    """Everything that decided what was removed, for the plan and the report."""
    return {
        "budget": asdict(budget),
        "ranking": asdict(ranking),
        "limits": asdict(method.limits),
        "rounds": method.rounds,
        "refit": method.refit,
        "residual": method.residual,
        **({"allow_io": list(method.allow_io)} if method.allow_io else {}),
        "data": run.data.source,
        "samples": run.samples,
    }


def evaluate(
    model: Graph | Path | str, data: object, *, feeding: Feeding | None = None, progress: Progress | None = None
) -> tuple[float, int]:
    """Top-1 accuracy of a model on labelled data, and the number of samples.

    Args:
        model: the model.
        data: samples with labels.
        feeding: how they are taken; all of them are, whatever `samples` says.
        progress: called as work goes on.
    """
    feeding, progress = feeding or Feeding(), progress or quiet
    session = Session(as_graph(model).message(), device=feeding.device)
    batches = counted(load_data(data, session, size=feeding.batch), partial(progress, "evaluation"))
    return measure.top1(session, batches)


def compare(
    before: Graph | Path | str,
    after: Graph | Path | str,
    data: object = None,
    *,
    feeding: Feeding | None = None,
    threads: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Sets two models side by side: size, work, latency, and on data accuracy and agreement.

    Args:
        before: the original.
        after: the other model, with the same inputs.
        data: samples, all of which are used; synthetic inputs for latency alone when None.
        feeding: how data are taken; `batch` is also the batch that is timed.
        threads: threads to time with; 0 for all cores.
        progress: called as work goes on.

    Raises:
        ModelError: the two do not have the same inputs and outputs.
    """
    feeding, progress = feeding or Feeding(batch=1), progress or quiet
    runs = [Run(model, data, replace(feeding, samples=0), progress, threads=threads) for model in (before, after)]
    if runs[0].graph.inputs != runs[1].graph.inputs or runs[0].graph.outputs != runs[1].graph.outputs:
        raise ModelError("the two models have different inputs or outputs, so they cannot be compared.")
    costs = [measure.cost(run.graph, run.sample) for run in runs]
    sessions = runs[0].session, runs[1].session
    quality = None
    if data is not None:
        batches = counted(replace(runs[0].data, size=QUALITY_BATCH), partial(progress, "outputs"))
        quality = measure.quality(*sessions, batches, source=runs[0].data.source)
    timed = measure.latency(*sessions, runs[0].data.first(feeding.batch).feeds, threads=threads)
    return Report(costs[0], costs[1], timed, quality, notes=tuple(_slow(timed)))


def _slow(latency: Latency, multiple: int | None = None) -> list[str]:
    """What to say where the compact model is not faster."""
    if latency.ratio < NOT_FASTER:
        return []
    cause = "the model is small, so that fixed costs of each operator prevail"
    if multiple is not None and multiple < CONVOLUTION_MULTIPLE:
        cause = f"widths are not rounded to multiples of {CONVOLUTION_MULTIPLE}, which kernels are made for"
    return [f"The compact model is not faster here (x {latency.ratio:.2f}); a likely cause: {cause}."]
