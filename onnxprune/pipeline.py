"""The whole path: read, find units, calibrate, score, select, remove, verify, refit, measure.

Every function here is a command of the same name. Models are paths or `Graph`s; data are what `data.load_data` takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from onnxprune import measure
from onnxprune.data import Data, load_data
from onnxprune.errors import ModelError, PlanError, VerificationError
from onnxprune.exact import Exact, find_exact, fold
from onnxprune.graph import Graph, load
from onnxprune.moments import calibrate, spread
from onnxprune.records import CRITERIA, Batch, Cost, GroupRow, Latency, Moments, Plan, Quality, Report, Scores
from onnxprune.refit import refit
from onnxprune.runtime import Session
from onnxprune.scoring import score as score_units
from onnxprune.selection import CONVOLUTION_MULTIPLE, Budget, Limits, select
from onnxprune.spectral import SpectralOptions
from onnxprune.states import kept_features
from onnxprune.surgery import TOLERANCE, remove, verify
from onnxprune.units import Units, find_units

Progress = Callable[[str, int, int], None]
"""Called with the stage, what is done of it, and how much there is, -1 when not known."""

PROOF_SAMPLES = 8
"""Samples on which the compact model is compared with the masked original."""

QUALITY_BATCH = 128
NOT_FASTER = 0.97

NOT_TRUSTED = "Calibrated on synthetic inputs: the ranking is not to be trusted for real use; give --data."


@dataclass(frozen=True, slots=True)
class Feeding:
    """How data are taken and where they run.

    Attributes:
        samples: the most samples for calibration.
        batch: samples in a run, where the model does not fix it.
        device: "auto", "cpu", "cuda", "cuda:1", "tensorrt" or "openvino".
        stride: every which position or token counts in calibration.
    """

    samples: int = 1024
    batch: int = 32
    device: str = "auto"
    stride: int = 1


@dataclass(frozen=True, slots=True)
class Ranking:
    """How units are ranked.

    Attributes:
        criterion: one of `records.CRITERIA`.
        spectral: what the paper of the spectral criterion leaves open.
        reverse: whether high scores go first.
        seed: of everything random.
    """

    criterion: str = "spectral"
    spectral: SpectralOptions = field(default_factory=SpectralOptions)
    reverse: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.criterion not in CRITERIA:
            raise PlanError(f"there is no criterion '{self.criterion}'; use one of {', '.join(CRITERIA)}.")


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
    """

    rounds: int = 5
    limits: Limits = field(default_factory=Limits)
    refit: bool = False
    latency: bool = True

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise PlanError(f"--rounds {self.rounds} is out of range; give 1 or more.")


def inspect(model: Graph | Path | str, data: object = None) -> Units:
    """What can be pruned, what cannot, and why.

    Args:
        model: the model.
        data: samples, where sizes of symbolic axes have to come from them.
    """
    return _Run(model, data, Feeding(device="cpu"), _quiet).units


def score(
    model: Graph | Path | str,
    data: object = None,
    *,
    ranking: Ranking | None = None,
    feeding: Feeding | None = None,
    progress: Progress | None = None,
) -> Scored:
    """Scores every unit of a model.

    Args:
        model: the model.
        data: calibration samples; synthetic inputs when None.
        ranking: how.
        feeding: how data are taken.
        progress: called as work goes on.
    """
    run = _Run(model, data, feeding or Feeding(), progress or _quiet)
    moments = run.calibrate(run.graph)
    run.fold(moments)
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
    run = _Run(model, data, feeding or Feeding(), progress or _quiet)
    whole = Scores("", {name: np.arange(group.size, dtype=float) for name, group in run.units.groups.items()})
    select(run.units, whole, budget, method.limits)  # an impossible budget shall fail before any work
    moments = run.calibrate(run.graph)
    run.fold(moments)
    keep: dict[str, np.ndarray] = {}
    first: Scores | None = None
    for step in range(1, method.rounds + 1):
        scores = run.score(moments, keep, ranking)
        first = first or scores
        keep = select(run.units, scores, _part(budget, step / method.rounds), method.limits, start=keep)
        plan = run.units.plan(keep, _settings(budget, ranking, method, run))
        compact = remove(run.units.graph, plan)
        difference = verify(run.units, plan, compact, run.proof)
        run.progress("rounds", step, method.rounds)
        if step < method.rounds:
            moments = run.calibrate(compact, plan)
    assert first is not None
    report = Report(run.cost({}, run.graph), run.cost(keep, compact), unrefit=run.quality(compact))
    notes = list(run.notes)
    if method.refit:
        compact, nodes = run.refit(plan, compact)
        run.check_finite(compact)
        notes.append(f"Refit: {len(nodes)} layers were refit in closed form; weights differ from the original's.")
        report = replace(report, quality=run.quality(compact))
    else:
        report = replace(report, quality=report.unrefit, unrefit=None)
    if method.latency:
        timed = run.latency(compact)
        notes += _slow(timed, method.limits.round_to)
        report = replace(report, latency=timed)
    rows = tuple(run.row(name, keep, first) for name in run.units.groups)
    report = replace(report, groups=rows, settings=plan.settings, verified=difference, notes=tuple(notes))
    return Pruned(compact, replace(plan, merged=run.merged(keep)), report, first)


def _part(budget: Budget, done: float) -> Budget:
    """The budget of a round: the share that is to be gone after it."""
    share = 1 - (1 - budget.share) * done if budget.kind == "macs" else budget.share * done
    return replace(budget, share=share)


def _settings(budget: Budget, ranking: Ranking, method: Method, run: _Run) -> dict[str, object]:
    """Everything that decided what was removed, for the plan and the report."""
    return {
        "budget": asdict(budget),
        "ranking": asdict(ranking),
        "limits": asdict(method.limits),
        "rounds": method.rounds,
        "refit": method.refit,
        "data": run.data.source,
        "samples": run.feeding.samples,
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
    feeding, progress = feeding or Feeding(), progress or _quiet
    session = Session(_graph(model).message(), device=feeding.device)
    batches = _counted(load_data(data, session, size=feeding.batch), partial(progress, "evaluation"))
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
    feeding, progress = feeding or Feeding(batch=1), progress or _quiet
    runs = [_Run(model, data, replace(feeding, samples=0), progress, threads) for model in (before, after)]
    if runs[0].graph.inputs != runs[1].graph.inputs or runs[0].graph.outputs != runs[1].graph.outputs:
        raise ModelError("the two models have different inputs or outputs, so they cannot be compared.")
    costs = [measure.cost(run.graph, run.sample) for run in runs]
    sessions = runs[0].session, runs[1].session
    quality = None
    if data is not None:
        batches = _counted(replace(runs[0].data, size=QUALITY_BATCH), partial(progress, "outputs"))
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


def _graph(model: Graph | Path | str) -> Graph:
    return model if isinstance(model, Graph) else load(model)


def _quiet(stage: str, done: int, total: int) -> None:
    """Progress for nobody."""


def _counted(data: Data, progress: Callable[[int, int], None]) -> Iterator[Batch]:
    """Batches, with progress after each."""
    done, total = 0, data.total
    for batch in data.batches():
        yield batch
        done += batch.real
        progress(done, total)


class _Run:
    """A model with its units and data, and the steps that the commands share."""

    def __init__(
        self, model: Graph | Path | str, data: object, feeding: Feeding, progress: Progress, threads: int = 0
    ) -> None:
        self.graph, self.feeding, self.progress = _graph(model), feeding, progress
        self.session = Session(self.graph.message(), device=feeding.device, threads=threads)
        take = partial(load_data, session=self.session, limit=feeding.samples or None, size=feeding.batch)
        given = take(data) if data is not None else None
        self.sample = given.first(2).feeds if given else None
        self.units = find_units(self.graph, self.sample)
        shapes = {name: tuple(a.size for a in self.units.structure.axes[name]) for name in self.graph.inputs}
        self.data = given or take(None, shapes=shapes)
        self.notes = () if given else (NOT_TRUSTED,)
        self.proof = self.data.first(PROOF_SAMPLES).feeds
        self.exact: dict[str, Exact] = {}

    def calibrate(self, graph: Graph, plan: Plan | None = None) -> Moments:
        """Moments of a model that has lost what a plan says, features numbered as in the original."""
        sites = {s.site.key: s.site for group in self.units.groups.values() for s in (*group.pre, *group.post)}
        kept = {key: kept_features(site, plan) for key, site in sites.items()}
        present = [replace(site, features=int(kept[key].sum())) for key, site in sites.items()]
        batches = ((batch.feeds, batch.real) for batch in _counted(self.data, partial(self.progress, "calibration")))
        feeding = self.feeding
        moments = calibrate(
            graph, present, batches, device=feeding.device, stride=feeding.stride, source=self.data.source
        )
        return spread(moments, kept)

    def fold(self, moments: Moments) -> None:
        """Moves what constant and duplicate units do to others, and checks that nothing changed."""
        self.exact = find_exact(self.units, moments)
        folded = fold(self.units, self.exact)
        if folded is self.units:
            return
        outputs = [Session(units.graph.message(), device="cpu").run(self.proof) for units in (self.units, folded)]
        for name, a, b in zip(self.graph.outputs, *outputs, strict=True):
            if a.dtype.kind == "f" and np.max(np.abs(a - b)) > TOLERANCE * max(1.0, float(np.max(np.abs(a)))):
                raise VerificationError(
                    f"folding constant units changes the output '{name}'; please report this model."
                )
        self.units = folded

    def score(self, moments: Moments, keep: Mapping[str, np.ndarray], ranking: Ranking) -> Scores:
        """Scores of what is still there; units that can go without a trace come before all others."""
        scores = score_units(
            self.units,
            moments,
            self._weights(),
            keep,
            criterion=ranking.criterion,
            options=ranking.spectral,
            reverse=ranking.reverse,
            seed=ranking.seed,
        )
        by_group = dict(scores.by_group)
        for name, exact in self.exact.items():
            by_group[name] = by_group[name].copy()
            by_group[name][sorted(exact.units)] = -np.inf
        return replace(scores, by_group=by_group)

    def _weights(self) -> dict[str, np.ndarray]:
        """Values of all weights; those computed from constants are computed."""
        constants = self.units.graph.constants
        used = {w.tensor for group in self.units.groups.values() for w in (*group.writers, *group.readers)}
        computed = sorted(used - set(constants))
        if not computed:
            return constants
        session = Session(self.units.graph.message(outputs=computed), device="cpu")
        return constants | dict(zip(computed, session.run(self.proof, computed), strict=True))

    def refit(self, plan: Plan, compact: Graph) -> tuple[Graph, list[str]]:
        """The compact model with its readers refit."""
        return refit(
            self.units,
            plan,
            compact,
            lambda: ((batch.feeds, batch.real) for batch in self.data.batches()),
            device=self.feeding.device,
            progress=partial(self.progress, "refit"),
        )

    def check_finite(self, graph: Graph) -> None:
        """Makes sure that a model whose weights were changed still gives numbers.

        Raises:
            VerificationError: it does not.
        """
        outputs = Session(graph.message(), device="cpu").run(self.proof)
        for name, output in zip(graph.outputs, outputs, strict=True):
            if output.dtype.kind == "f" and not np.isfinite(output).all():
                raise VerificationError(
                    f"after the refit, output '{name}' is not finite; prune less, or without --refit."
                )

    def merged(self, keep: Mapping[str, np.ndarray]) -> dict[str, dict[int, int]]:
        """The duplicates that were removed, and the unit that each of them equals."""
        gone = {
            name: {unit: twin for unit, twin in exact.twin.items() if name in keep and not keep[name][unit]}
            for name, exact in self.exact.items()
        }
        return {name: twins for name, twins in gone.items() if twins}

    def cost(self, keep: Mapping[str, np.ndarray], graph: Graph) -> Cost:
        """What a model weighs that keeps some units."""
        return Cost(*self.units.cost(keep), measure.stored_bytes(graph))

    def quality(self, compact: Graph) -> Quality | None:
        """The outputs of a compact model beside those of the original; None where the data are made up."""
        if self.data.made_up:
            return None
        after = Session(compact.message(), device=self.feeding.device)
        batches = _counted(replace(self.data, size=QUALITY_BATCH), partial(self.progress, "outputs"))
        return measure.quality(self.session, after, batches, source=self.data.source)

    def latency(self, compact: Graph) -> Latency:
        """The original and a compact model timed in turns, on one sample."""
        after = Session(compact.message(), device=self.feeding.device)
        return measure.latency(self.session, after, self.data.first(1).feeds)

    def row(self, name: str, keep: Mapping[str, np.ndarray], scores: Scores) -> GroupRow:
        """What happened to a group."""
        group, exact = self.units.groups[name], self.exact.get(name, Exact())
        values = scores.by_group[name][np.isfinite(scores.by_group[name])]
        span = (float(values.min()), float(values.max())) if len(values) else None
        remarks = [scores.notes.get(name, "")]
        for count, word in ((exact.dead, "dead"), (exact.constant, "constant"), (exact.twin, "duplicate")):
            remarks.append(f"{len(count)} {word}" if count else "")
        if name not in keep:
            other = f"shares positions with {group.instead_of}, which is pruned instead"
            remarks.append(other if group.instead_of else "left out by --only or --skip")
        elif keep[name].all():
            remarks.append("its units rank above those removed")
        kept = int(keep[name].sum()) if name in keep else group.size
        return GroupRow(name, group.kind, group.size, kept, span, "; ".join(filter(None, remarks)))
