"""From scores to what is kept: budgets, allocation, rounding, floors.

Widths are rounded by pool. A pool holds the groups that occur on the same axes; when each pool keeps a multiple of r
units, so does every axis, concatenations included. The borders that an option-A shortcut pads to the left and to the
right of its channels are one pool, for example: only their sum must be a multiple.

Why scores of a group are divided by their mean and then multiplied by how many features of it are read: a channel of a
residual stream is read by every block after it, and costs parameters in each. Per parameter and without that factor it
looks as cheap as a hidden channel, and the stream goes first: ResNet-20, 30 % of the parameters, refit but not trained,
falls to 24-58 % instead of 77-85 % (benchmarks/allocation.py; all criteria). So does a head, which is as many features
as its values are wide and costs as many times the parameters of a feed-forward unit: counted as one feature, three of
four key-value heads went in every layer of a small Llama, down to the floor, and a tenth of the feed-forward units.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Literal

import numpy as np

from onnxprune.axes import leaves
from onnxprune.errors import NothingToPrune, PlanError
from onnxprune.records import Group, Scores
from onnxprune.units import Units
from onnxprune.validation import COUNT, Within, validate

Keep = dict[str, np.ndarray]

CONVOLUTION_MULTIPLE = 8
"""Widths of convolutions are multiples of this by default: others can be slower than the original."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How much to remove.

    Attributes:
        kind: "params" removes a share of all parameters, "units" a share of the units of every group; "macs" is the
            share of the multiply-accumulates that may remain.
        share: between 0 and 1, both excluded.
    """

    kind: Literal["params", "macs", "units"]
    share: Annotated[float, Within("a share between 0 and 1, such as 0.4", 0, 1, "both")]

    def __post_init__(self) -> None:
        option = {"params": "--ratio"}.get(str(self.kind), f"--{self.kind}")
        validate(self, kind="the kind of a budget", share=option)


@dataclass(frozen=True, slots=True)
class Limits:
    """What selection must respect.

    Attributes:
        allocation: "global" ranks all units together, "uniform" takes the same share of every group.
        round_to: multiple for the kept width of every axis, halved for axes that are no wider than it; None is 8 for
            convolutions and 1 elsewhere.
        floor: share of its units that each group keeps, one unit at least.
        only: glob patterns of the groups that may lose units; all when empty.
        skip: glob patterns of groups that may not.
    """

    allocation: Literal["global", "uniform"] = "global"
    round_to: Annotated[int, COUNT] | None = None
    floor: Annotated[float, Within("a share from 0 up to below 1", 0, 1, "high")] = 0.1
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True, slots=True)
class Pool:
    """Groups whose kept units are rounded together."""

    groups: tuple[str, ...]
    size: int
    multiple: int


def select(
    units: Units, scores: Scores, budget: Budget, limits: Limits, *, start: Mapping[str, np.ndarray] | None = None
) -> Keep:
    """Decides which units stay.

    Args:
        units: the model.
        scores: higher means keep; NaN for units that are gone.
        budget: the target, relative to the original model.
        limits: what to respect.
        start: (units,) bool, what earlier rounds kept.

    Returns:
        (units,) bool for each group that may lose units.

    Raises:
        NothingToPrune: no group may lose units.
        PlanError: the budget cannot be reached; the message says what can.
    """
    return _Selection(units, scores, budget, limits, start or {}).run()


def allowed_groups(units: Units, limits: Limits) -> dict[str, Group]:
    """The groups that may lose units.

    A group that overlaps a wider one takes part only where `only` names it and not the wider one.

    Raises:
        NothingToPrune: there are none.
    """

    def named(name: str, patterns: Iterable[str]) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    chosen = {}
    for name, group in units.groups.items():
        if named(name, limits.skip) or (limits.only and not named(name, limits.only)):
            continue
        if group.instead_of and (not limits.only or named(group.instead_of, limits.only)):
            continue
        chosen[name] = group
    if chosen:
        return chosen
    if units.groups:
        raise NothingToPrune("--only and --skip leave no group; `onnxprune inspect` lists their names.")
    reasons = sorted({f"{k.kept.because} ({k.kept.node})" if k.kept.node else k.kept.because for k in units.kept})
    raise NothingToPrune(
        "nothing in this model can be pruned: " + "; ".join(reasons[:5] or ["it has no weights"]) + "."
    )


def _pools(units: Units, allowed: Mapping[str, Group], limits: Limits) -> list[Pool]:
    """The allowed groups by the set of axes that they occur on."""
    of_leaf = {leaf: name for name in allowed for leaf in units.leaves[name]}
    axes_of: dict[str, set[frozenset[str]]] = defaultdict(set)
    for axes in units.structure.axes.values():
        for axis in axes:
            here = frozenset(of_leaf[leaf] for leaf in leaves(axis) if leaf in of_leaf)
            for name in here:
                axes_of[name].add(here)
    pools: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for name, group in allowed.items():
        pools[frozenset(axes_of[name]), _multiple(group, limits)].append(name)
    out = []
    for members in pools.values():
        names = tuple(members)
        size, multiple = sum(allowed[name].size for name in names), _multiple(allowed[names[0]], limits)
        widest = max(sum(allowed[name].size for name in here) for here in axes_of[names[0]])
        while multiple > 1 and widest <= multiple:  # narrow axes take halves, or they could lose nothing
            multiple = max(multiple // 2, 1)
        out.append(Pool(names, size, multiple))
    return out


def _multiple(group: Group, limits: Limits) -> int:
    """How many units to keep a multiple of; a unit that is several channels wide needs fewer."""
    wanted = limits.round_to or (CONVOLUTION_MULTIPLE if group.kind == "channel" else 1)
    width = max((int(np.bincount(w.unit_of[w.unit_of >= 0]).max()) for w in group.writers), default=1)
    return wanted // math.gcd(wanted, width)


Step = tuple[tuple[float, str, int], ...]
"""Units that go together, each with what it is worth, its group and its index."""


class _Selection:
    """One selection; holds what its steps share."""

    def __init__(
        self, units: Units, scores: Scores, budget: Budget, limits: Limits, start: Mapping[str, np.ndarray]
    ) -> None:
        self.units, self.scores, self.budget, self.limits = units, scores, budget, limits
        self.allowed = allowed_groups(units, limits)
        self.pools = _pools(units, self.allowed, limits)
        self.start = {n: np.array(start.get(n, mask)) for n, mask in units.whole().items() if n in self.allowed}
        self.vital = self._vital()
        floors = {n: math.ceil(g.size * limits.floor - 1e-9) for n, g in self.allowed.items()}
        self.floors = {n: max(1, len(self.vital[n]), floor) for n, floor in floors.items()}

    def run(self) -> Keep:
        """The masks that meet the budget."""
        if self.budget.kind == "units":
            return self._shares(self.budget.share)
        original = self._cost(self.units.whole())
        share = self.budget.share
        target = original * (1 - share if self.budget.kind == "params" else share)
        keep = self._uniform(target) if self.limits.allocation == "uniform" else self._greedy(target)
        if self._cost(keep) > target:
            raise PlanError(self._unreachable(self._cost(keep) / original))
        return keep

    def _cost(self, keep: Mapping[str, np.ndarray]) -> float:
        return float(self.units.cost(keep)[1 if self.budget.kind == "macs" else 0])

    def _unreachable(self, left: float) -> str:
        """What to say when the budget cannot be met; figures are rounded to the side that works."""
        cure = "lower --floor or --round-to, or widen --only"
        if self.budget.kind == "params":
            reachable = math.floor(1000 * (1 - left)) / 1000
            return f"--ratio {self.budget.share:g} cannot be reached: at most {reachable:g} is prunable; {cure}."
        reachable = math.ceil(1000 * left) / 1000
        return f"--macs {self.budget.share:g} cannot be reached: at least {reachable:g} must remain; {cure}."

    def _vital(self) -> dict[str, set[int]]:
        """Units without which a tensor would have no positions: of those that could stay for it the best."""
        found: dict[str, set[int]] = {name: set() for name in self.allowed}
        for units in self.units.vital():
            if all(name in self.allowed for name, _ in units):
                present = [(name, unit) for name, unit in units if self.start[name][unit]]
                name, unit = max(present, key=lambda place: (self.scores.by_group[place[0]][place[1]], place))
                found[name].add(unit)
        return found

    def _order(self, name: str) -> list[int]:
        """The units of a group that are still there, worst first, equal ones by index, those that must stay last."""
        values, vital = self.scores.by_group[name], self.vital[name]
        present = map(int, np.flatnonzero(self.start[name]))
        return sorted(present, key=lambda unit: (unit in vital, values[unit], unit))

    def _shares(self, share: float) -> Keep:
        """The same share of every group goes; pools are rounded to the nearest multiple."""
        keep = {}
        for pool in self.pools:
            sizes = [self.allowed[name].size for name in pool.groups]
            wanted = [size - math.floor(size * share + 1e-9) for size in sizes]
            if pool.multiple > 1:
                total = pool.multiple * max(1, math.floor(sum(sizes) * (1 - share) / pool.multiple + 0.5))
                wanted = _apportion(min(total, pool.size), sizes)
            for name, count in zip(pool.groups, wanted, strict=True):
                order = self._order(name)
                keep[name] = self.start[name].copy()
                keep[name][order[: max(len(order) - max(count, 1, len(self.vital[name])), 0)]] = False
        return keep

    def _uniform(self, target: float) -> Keep:
        """The smallest common share that meets the target."""
        low, high = 0.0, 1 - self.limits.floor
        while high - low > 1e-4:
            middle = (low + high) / 2
            low, high = (low, middle) if self._cost(self._shares(middle)) <= target else (middle, high)
        return self._shares(high)

    def _greedy(self, target: float) -> Keep:
        """Takes the step with the lowest score for what it saves, again and again; gives back what was not needed.

        What a step saves can only shrink as other groups get narrower, so a price seen earlier is never too high, and
        a step whose renewed price is still the lowest is the best one.
        """
        keep, now = dict(self.start), self._cost(self.start)
        queues = [self._steps(pool) for pool in self.pools]

        def price(pool: int) -> float:
            step = queues[pool][0]
            return sum(score for score, _, _ in step) / max(now - self._cost(_changed(keep, step, False)), 1e-9)

        heap = [(price(pool), pool) for pool in range(len(self.pools)) if queues[pool]]
        heapq.heapify(heap)
        taken: list[tuple[int, Step]] = []
        while now > target and heap:
            _, pool = heapq.heappop(heap)
            renewed = price(pool)
            if heap and (renewed, pool) > heap[0]:
                heapq.heappush(heap, (renewed, pool))
                continue
            if self._cost(_changed(keep, queues[pool][0], False)) <= target:  # the last one need not save the most
                heapq.heappush(heap, (renewed, pool))
                pool = self._cheapest_that_suffices(keep, queues, target)
                heap = [entry for entry in heap if entry[1] != pool]
                heapq.heapify(heap)
            taken.append((pool, queues[pool].pop(0)))
            keep = _changed(keep, taken[-1][1], False)
            now = self._cost(keep)
            if queues[pool]:
                heapq.heappush(heap, (price(pool), pool))
        settled = set()
        for pool, step in reversed(taken):  # only the last step of a pool may come back, or widths are no multiples
            if pool not in settled and self._cost(back := _changed(keep, step, True)) <= target:
                keep = back
            else:
                settled.add(pool)
        return keep

    def _cheapest_that_suffices(self, keep: Keep, queues: Sequence[list[Step]], target: float) -> int:
        """The pool whose next step meets the target by itself and is worth the least."""
        able = [
            (sum(score for score, _, _ in queue[0]), pool)
            for pool, queue in enumerate(queues)
            if queue and self._cost(_changed(keep, queue[0], False)) <= target
        ]
        return min(able)[1]

    def _steps(self, pool: Pool) -> list[Step]:
        """What a pool may lose, one step after another, so that after each what stays is a multiple."""
        ranked: list[tuple[float, str, int]] = []
        for name in pool.groups:
            values, order = self.scores.by_group[name], self._order(name)
            finite = values[np.isfinite(values)]
            mean = float(finite.mean()) if finite.size and finite.mean() > 0 else 1.0
            worth = _features_read(self.allowed[name]) / mean
            spare = max(len(order) - self.floors[name], 0)
            ranked += [(max(float(values[unit]), 0.0) * worth, name, unit) for unit in order[:spare]]
        ranked.sort()
        present = sum(int(self.start[name].sum()) for name in pool.groups)
        steps, at, size = [], 0, present % pool.multiple or pool.multiple
        while at + size <= len(ranked) and at + size < present:
            steps.append(tuple(ranked[at : at + size]))
            at, size = at + size, pool.multiple
        return steps


def _features_read(group: Group) -> float:
    """How many features a unit is to the weights that read it, all of them together, or as it is written if none do."""
    weights = group.readers or group.writers[:1]
    return sum(np.count_nonzero(weight.unit_of >= 0) for weight in weights) / group.size


def _changed(keep: Keep, step: Step, present: bool) -> Keep:
    """Keep-masks with the units of a step gone, or back."""
    out = dict(keep)
    for name in {name for _, name, _ in step}:
        out[name] = keep[name].copy()
    for _, name, unit in step:
        out[name][unit] = present
    return out


def _apportion(total: int, sizes: Sequence[int]) -> list[int]:
    """Shares of a total in proportion to sizes, by largest remainder, one at least for each."""
    exact = [total * size / sum(sizes) for size in sizes]
    counts = [max(1, math.floor(x)) for x in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: max(total - sum(counts), 0)]:
        counts[i] += 1
    return counts
