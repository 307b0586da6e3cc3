"""One model with its units and its data, and the steps that the commands share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np

from onnxprune import measure
from onnxprune.criteria import CRITERIA
from onnxprune.data import Data, load_data
from onnxprune.errors import ModelError, PlanError, VerificationError
from onnxprune.exact import Exact, find_exact, find_folded, fold, gained, kept_of, recorded, settled
from onnxprune.findings import Cost, GroupRow, Latency, Proof, Quality
from onnxprune.graph import Graph, load
from onnxprune.grouping import find_units
from onnxprune.hints import Hint, find_hints
from onnxprune.moments import calibrate, spread
from onnxprune.probes import find_probes, index_ranges
from onnxprune.proof import prove
from onnxprune.records import NOT_EXACT, Batch, Moments, Plan, Scores
from onnxprune.refit import refit
from onnxprune.runtime import Session
from onnxprune.scoring import score as score_units
from onnxprune.spectral import SpectralOptions
from onnxprune.states import kept_features
from onnxprune.surgery import fed
from onnxprune.validation import COUNT, NATURAL, SEED, validate

Progress = Callable[[str, int, int], None]
"""Called with the stage, what is done of it, and how much there is, -1 when not known."""

SAMPLES = 1024
"""The most samples that are calibrated on, unless told otherwise."""

FIRST = 8
"""Samples that tell what does not depend on them, or whether a model gives numbers."""

QUALITY_BATCH = 128

MOMENTS_LIMIT = 400_000_000
"""Bytes of second moments that are summed at a time; a model that needs more is calibrated in several passes."""

NOT_TRUSTED = "Calibrated on synthetic inputs: the ranking is not to be trusted for real use; give --data."


@dataclass(frozen=True, slots=True)
class Feeding:
    """How data are taken and where they run.

    Attributes:
        samples: the most samples for calibration, 0 for all; 1,024 of data and 32 that are made up when None.
        batch: samples in a run, where the model does not fix it.
        device: "auto", "cpu", "cuda", "cuda:1", "tensorrt" or "openvino".
        stride: every which position or token counts in calibration.
    """

    samples: Annotated[int, NATURAL] | None = None
    batch: Annotated[int, COUNT] = 32
    device: str = "auto"
    stride: Annotated[int, COUNT] = 1

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True, slots=True)
class Ranking:
    """How units are ranked.

    Attributes:
        criterion: one of `criteria.CRITERIA`.
        spectral: what the paper of the spectral criterion leaves open.
        reverse: whether high scores go first.
        seed: of everything random.
    """

    criterion: str = "spectral"
    spectral: SpectralOptions = field(default_factory=SpectralOptions)
    reverse: bool = False
    seed: Annotated[int, SEED] = 0

    def __post_init__(self) -> None:
        validate(self, spectral="the options of the spectral criterion:")
        if self.criterion not in CRITERIA:
            raise PlanError(f"there is no criterion '{self.criterion}'; use one of {', '.join(CRITERIA)}.")


def as_graph(model: Graph | Path | str) -> Graph:
    """A model, read if it is a path."""
    return model if isinstance(model, Graph) else load(model)


def quiet(stage: str, done: int, total: int) -> None:
    """Progress for nobody."""


def counted(data: Data, progress: Callable[[int, int], None]) -> Iterator[Batch]:
    """Batches, with progress after each."""
    done, total = 0, data.total
    for batch in data.batches():
        yield batch
        done += batch.real
        progress(done, total)


class Run:
    """A model with its units and data, and the steps that the commands share."""

    def __init__(
        self,
        model: Graph | Path | str,
        data: object,
        feeding: Feeding,
        progress: Progress,
        *,
        threads: int = 0,
        residual: bool = False,
        allow_io: Collection[str] = (),
    ) -> None:
        """Takes a model over.

        Args:
            model: the model.
            data: samples; synthetic inputs when None.
            feeding: how they are taken.
            progress: called as work goes on.
            threads: of the session; 0 for all cores.
            residual: whether units that normalizations run over are groups too.
            allow_io: what inputs and outputs of the model may lose: "head" for the heads that caches hold.
        """
        self.graph, self.feeding, self.progress = as_graph(model), feeding, progress
        self.session = Session(self.graph.message(), device=feeding.device, threads=threads)
        most = SAMPLES if data is not None and feeding.samples is None else feeding.samples
        take = partial(load_data, session=self.session, limit=most or None, size=feeding.batch)
        given = take(data) if data is not None else None
        self.sample = given.first(2).feeds if given else None
        self.units = find_units(self.graph, self.sample, residual=residual, allow_io=allow_io)
        self.shapes = {name: tuple(a.size for a in self.units.structure.axes[name]) for name in self.graph.inputs}
        self.ranges = index_ranges(self.graph)
        self.data = given or self._made_up(take)
        self.notes = () if given else (NOT_TRUSTED,)
        self.first = self.data.first(FIRST).feeds
        self.exact: dict[str, Exact] = find_exact(self.units, self.first)
        self.hints: dict[str, Hint] = {}
        self.samples = 0

    def _made_up(self, take: Callable[..., Data]) -> Data:
        """Synthetic inputs; where the model cannot run with all rows that its tables have, indices are zero."""
        made = take(None, shapes=self.shapes, ranges=self.ranges)
        try:
            self.session.run(made.first(1).feeds)
        except ModelError:
            self.ranges = {}
            made = take(None, shapes=self.shapes)
        return made

    def prove(self, plan: Plan, compact: Graph) -> Proof:
        """Holds a compact model to the masked original on varied inputs."""
        probes = find_probes(self.session, self.data, self.shapes, self.ranges)
        return prove(self.units, plan, compact, list(probes))

    def calibrate(
        self, graph: Graph, plan: Plan | None = None, *, names: Iterable[str] | None = None, second: bool = True
    ) -> Moments:
        """Moments of a model that has lost what a plan says, features numbered as in the original.

        Args:
            graph: the model.
            plan: what it has lost.
            names: the groups whose states are recorded, all when None.
            second: whether second moments are, which take memory.
        """
        groups = [self.units.groups[name] for name in (self.units.groups if names is None else names)]
        sites = {s.site.key: s.site for group in groups for s in (*group.pre, *group.post)}
        kept = {key: kept_features(site, plan) for key, site in sites.items()}
        present = [replace(site, features=int(kept[key].sum())) for key, site in sites.items()]
        counting = counted(self.data, partial(self._counted, "calibration"))
        batches = ((fed(plan, batch.feeds) if plan else batch.feeds, batch.real) for batch in counting)
        feeding = self.feeding
        moments = calibrate(
            graph,
            present,
            batches,
            device=feeding.device,
            stride=feeding.stride,
            source=self.data.source,
            second=second,
        )
        return spread(moments, kept)

    def _counted(self, stage: str, done: int, total: int) -> None:
        """Notes how many samples there are, and passes progress on."""
        self.samples = done
        self.progress(stage, done, total)

    def plan(self, keep: Mapping[str, np.ndarray], settings: Mapping[str, object]) -> Plan:
        """What removing units means for the model, and what moves where so that nothing goes with exact ones."""
        return recorded(self.units, self.units.plan(keep, settings), keep, self.exact)

    def rank(self, graph: Graph, plan: Plan | None, keep: Mapping[str, np.ndarray], ranking: Ranking) -> Scores:
        """Calibrates and scores, part by part where the second moments of all groups would not fit into memory.

        Args:
            graph: the model as it is now.
            plan: what it has lost; None in the first round, in which units that stand still are noted too.
            keep: the units of each group that are still there.
            ranking: how.
        """
        scores = []
        for part in self._parts():
            moments = self.calibrate(graph, plan, names=part)
            if plan is None:
                self.note_hints(moments)
            scores.append(self.score(moments, keep, ranking, names=part))
        by_group = {name: values for part in scores for name, values in part.by_group.items()}
        notes = {name: note for part in scores for name, note in part.notes.items()}
        return Scores(ranking.criterion, by_group, notes)

    def note_hints(self, moments: Moments) -> None:
        """Notes which units stand still on the data."""
        self.hints |= find_hints(self.units, moments, self.exact, samples=self.samples, made_up=self.data.made_up)

    def _parts(self) -> Iterator[list[str]]:
        """The groups in order, as many at a time as have their second moments in MOMENTS_LIMIT bytes."""
        part: list[str] = []
        used = 0
        for name, group in self.units.groups.items():
            needed = sum(8 * states.site.features**2 for states in (*group.pre, *group.post))
            if part and used + needed > MOMENTS_LIMIT:
                yield part
                part, used = [], 0
            part.append(name)
            used += needed
        if part:
            yield part

    def score(
        self,
        moments: Moments,
        keep: Mapping[str, np.ndarray],
        ranking: Ranking,
        *,
        names: Iterable[str] | None = None,
    ) -> Scores:
        """Scores of what is still there; exact units, and those that stand still on the data, come first."""
        groups = {name: self.units.groups[name] for name in (self.units.groups if names is None else names)}
        scores = score_units(
            replace(self.units, groups=groups),
            moments,
            self._weights(),
            keep,
            criterion=ranking.criterion,
            options=ranking.spectral,
            reverse=ranking.reverse,
            seed=ranking.seed,
        )
        by_group = dict(scores.by_group)
        for name in groups:
            hint = self.hints.get(name)
            first = self.exact.get(name, Exact()).units | (set(hint.units) if hint and not hint.doubt else set())
            leads = np.isin(np.arange(groups[name].size), sorted(first)) & ~np.isnan(by_group[name])
            by_group[name] = np.where(leads, -np.inf, by_group[name])
        return replace(scores, by_group=by_group)

    def _weights(self) -> dict[str, np.ndarray]:
        """Values of all weights as they are once exact units are gone; those computed from constants are computed."""
        keep = self.units.whole()
        for name, exact in self.exact.items():
            keep[name][sorted(exact.units)] = False
        graph = self.units.graph
        constants = graph.constants | find_folded(self.units, self.exact, keep).readers(graph)
        used = {w.tensor for group in self.units.groups.values() for w in (*group.writers, *group.readers)}
        computed = sorted(used - set(constants))
        if not computed:
            return constants
        session = Session(graph.message(outputs=computed), device="cpu")
        return constants | dict(zip(computed, session.run(self.first, computed), strict=True))

    def refit(self, plan: Plan, compact: Graph) -> tuple[Graph, list[str]]:
        """The compact model with its readers refit, and the values of units that stood still in biases."""
        keep = {name: np.isin(np.arange(size), kept) for name, (size, kept) in plan.groups.items()}
        exact = find_folded(self.units, self.exact, keep)
        still = {name: Exact(constant=hint.units) for name, hint in self.hints.items() if name in keep}
        hints = find_folded(self.units, settled(self.units, still), keep)
        shifts = {output: kept_of(plan, output, shift) for output, shift in hints.shifts.items()}
        return refit(
            fold(fold(self.units, exact), hints),
            plan,
            compact.with_biases(gained(compact, shifts)),
            lambda: ((batch.feeds, batch.real) for batch in self.data.batches()),
            device=self.feeding.device,
            progress=partial(self.progress, "refit"),
        )

    def check_finite(self, graph: Graph) -> None:
        """Makes sure that a model whose weights were changed still gives numbers.

        Raises:
            VerificationError: it does not.
        """
        outputs = Session(graph.message(), device="cpu").run(self.first)
        for name, output in zip(graph.outputs, outputs, strict=True):
            if output.dtype.kind == "f" and not np.isfinite(output).all():
                raise VerificationError(
                    f"after the refit, output '{name}' is not finite; prune less, or without --refit."
                )

    def cost(self, keep: Mapping[str, np.ndarray], graph: Graph) -> Cost:
        """What a model weighs that keeps some units."""
        return Cost(*self.units.cost(keep), measure.stored_bytes(graph))

    def quality(self, compact: Graph, plan: Plan) -> Quality | None:
        """The outputs of a compact model beside those of the original; None where the data are made up."""
        if self.data.made_up:
            return None
        after = Session(compact.message(), device=self.feeding.device, adapt=partial(fed, plan))
        batches = counted(replace(self.data, size=QUALITY_BATCH), partial(self.progress, "outputs"))
        return measure.quality(self.session, after, batches, source=self.data.source)

    def latency(self, compact: Graph, plan: Plan) -> Latency:
        """The original and a compact model timed in turns, on one sample."""
        after = Session(compact.message(), device=self.feeding.device, adapt=partial(fed, plan))
        return measure.latency(self.session, after, self.data.first(1).feeds)

    def row(self, name: str, keep: Mapping[str, np.ndarray], scores: Scores) -> GroupRow:
        """What happened to a group."""
        group, exact = self.units.groups[name], self.exact.get(name, Exact())
        values = scores.by_group[name][np.isfinite(scores.by_group[name])]
        span = (float(values.min()), float(values.max())) if len(values) else None
        remarks = [scores.notes.get(name, ""), "" if group.exact else NOT_EXACT]
        for count, word in ((exact.dead, "dead"), (exact.constant, "constant"), (exact.twin, "duplicate")):
            remarks.append(f"{len(count)} {word}" if count else "")
        remarks.append(self.hints[name].words if name in self.hints else "")
        if name not in keep:
            other = f"shares positions with {group.instead_of}, which is pruned instead"
            remarks.append(other if group.instead_of else "left out by --only or --skip")
        elif keep[name].all():
            remarks.append("the budget was met without it")
        kept = int(keep[name].sum()) if name in keep else group.size
        note = "; ".join(filter(None, remarks))
        return GroupRow(name, group.kind, group.size, kept, span, note, group.exact)
