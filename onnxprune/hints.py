"""Units that stand still on the data: a hint that they can go, and no proof.

A unit that has one value on all samples may live on others, so nothing is folded for it. Where the claim is believed it
ranks first; with `--refit` its value goes into the bias of its readers, since the refit is made for these data anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnxprune.exact import Exact
from onnxprune.records import Group, Moments
from onnxprune.units import Units

ENOUGH = 64
"""Samples from which on a unit that stands still is believed: one that one sample in twenty moves is missed by 4 %."""


@dataclass(frozen=True, slots=True)
class Hint:
    """The units of one group that stand still on the data.

    Attributes:
        units: for each of them its value at the sites of the group's readers, in their order.
        samples: how many samples say so.
        doubt: why that is not believed, in the reader's words; "" where it is.
    """

    units: Mapping[int, tuple[float, ...]]
    samples: int
    doubt: str = ""

    @property
    def words(self) -> str:
        """What a report says of them."""
        on = f"{len(self.units)} stood still on {self.samples:,} sample{'s' * (self.samples != 1)}"
        return f"{on}, {self.doubt}" if self.doubt else f"{on} and rank first"


def find_hints(
    units: Units, moments: Moments, exact: Mapping[str, Exact], *, samples: int, made_up: bool
) -> dict[str, Hint]:
    """Finds units that stand still on data, other than those of which the weights say so.

    Args:
        units: the model; only groups whose sites are in the moments are looked at.
        moments: of the whole model, with extremes.
        exact: units that can go without a trace.
        samples: how many samples the moments are of.
        made_up: whether they are random numbers.
    """
    found = {}
    for name, group in units.groups.items():
        if not all(states.site.key in moments.low for states in group.post):
            continue
        known = exact.get(name, Exact()).units
        still = {unit: at for unit, at in _still(group, moments).items() if unit not in known}
        doubt = ""
        if made_up:
            doubt = "which were made up"
        elif samples < ENOUGH:
            doubt = "too few to believe it"
        elif len(still) + len(known) == group.size:
            doubt = "as did all others: these samples do not reach this group"
        if still:
            found[name] = Hint(still, samples, doubt)
    return found


def _still(group: Group, moments: Moments) -> dict[int, tuple[float, ...]]:
    """Units that have one value at each site that their readers read."""
    values = np.full((len(group.post), group.size), np.nan)
    for row, states in zip(values, group.post, strict=True):
        mine = states.unit_of >= 0
        low, high = np.full(group.size, np.inf), np.full(group.size, -np.inf)
        np.minimum.at(low, states.unit_of[mine], moments.low[states.site.key][mine])
        np.maximum.at(high, states.unit_of[mine], moments.high[states.site.key][mine])
        row[low == high] = low[low == high]
    still = np.flatnonzero(np.isfinite(values).all(axis=0)) if len(values) else np.zeros(0, int)
    return {int(unit): tuple(values[:, unit].tolist()) for unit in still}
