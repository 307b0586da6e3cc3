"""Criteria by name: the paper's spectral one, and every baseline, in one signature.

A criterion is a function `Evidence -> (kept units,) scores`, higher means keep. All of them see the same moments, so
that a comparison says something about the criterion and nothing else.

Sources. spectral: arXiv 2605.18860. wanda: Sun et al., arXiv 2306.11695. variance: the WIFV metric of FLAP, An et al.,
arXiv 2312.11983. reconstruction: the removal cost of the optimal brain surgeon, Hassibi and Stork 1993.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import linalg, sparse

from onnxprune.criteria import CRITERIA
from onnxprune.errors import PlanError
from onnxprune.records import Group, Moments, Scores, States, Weight
from onnxprune.spectral import SpectralOptions, node_scores, squared_distances
from onnxprune.states import by_feature
from onnxprune.units import Units

BETWEEN = "no nonlinearity between its writers and readers: ranked by reconstruction cost"
INSIDE = "its gates are inside one operator and cannot be recorded: ranked by reconstruction cost"
ROWS = 256
"""Rows of a weight that are squared at a time."""

MEETING = "queries and keys read each other: ranked by what a unit adds to the attention scores"
READING = ("spectral", "wanda", "variance", "reconstruction")
"""Criteria that look at the weights that read a unit, or at states around a nonlinearity before them."""

RIDGE = 1e-3
"""Ridge of the removal cost, relative to the mean of the diagonal."""

EQUAL = 1e-9
"""Spectral scores that differ by less, relative to themselves, differ by rounding alone."""


@dataclass(frozen=True)
class Evidence:
    """What a criterion may look at for one group.

    Attributes:
        group: the group.
        kept: indices of the units that are still there, n of them.
        moments: of the current model, features numbered as in the original.
        weights: values of the weights that read or write the group, as in the original.
        options: of the spectral criterion.
        seed: of the random one.
    """

    group: Group
    kept: np.ndarray
    moments: Moments
    weights: Mapping[str, np.ndarray]
    options: SpectralOptions
    seed: int

    @property
    def post(self) -> tuple[np.ndarray, np.ndarray]:
        """Second moments and covariances of what the readers contract, sites added up: (n, n) each."""
        return self._states(self.group.post)

    @property
    def pre(self) -> tuple[np.ndarray, np.ndarray]:
        """The same of what enters the first nonlinearity."""
        return self._states(self.group.pre)

    def _states(self, sides: tuple[States, ...]) -> tuple[np.ndarray, np.ndarray]:
        gram, covariance = np.zeros((2, len(self.kept), len(self.kept)))
        for states in sides:
            site = states.site.key
            columns, blocks = self._columns(states.unit_of)
            second = self.moments.second[site][np.ix_(columns, columns)]
            second /= self.moments.count[site]
            mean = self.moments.total[site][columns] / self.moments.count[site]
            metric: np.ndarray | float = 1.0
            if len(columns) > len(self.kept):
                metric = np.eye(len(columns)) if states.rows is None else self._metric(states.rows[columns])
            gram += blocks @ (second * metric) @ blocks.T
            second -= np.outer(mean, mean)
            covariance += blocks @ (second * metric) @ blocks.T
        return gram, covariance

    def _columns(self, unit_of: np.ndarray) -> tuple[np.ndarray, sparse.csr_array]:
        """The positions of the kept units, and a (n, positions) indicator of whose they are."""
        columns = np.flatnonzero(np.isin(unit_of, self.kept))
        rows = np.searchsorted(self.kept, unit_of[columns])
        shape = len(self.kept), len(columns)
        return columns, sparse.csr_array((np.ones(len(columns)), (rows, np.arange(len(columns)))), shape)

    def _metric(self, rows: np.ndarray) -> np.ndarray:
        """Inner products of what the first reader makes of features: units of several are compared where they meet."""
        reader = self.group.readers[0]
        weight = _rows(self.weights[reader.tensor], reader.axis)[rows].sum(axis=1)  # (features, everything else)
        return weight @ weight.T

    def writer_norms(self, order: int) -> np.ndarray:
        """(n,) norms of the weights that write each unit."""
        return self._norms(self.group.writers, order)

    def reader_norms(self) -> np.ndarray:
        """(n,) Euclidean norms of the weights that read each unit."""
        return self._norms(self.group.readers, 2)

    def _norms(self, weights: tuple[Weight, ...], order: int) -> np.ndarray:
        total = np.zeros(len(self.kept))
        for weight in weights:
            columns, blocks = self._columns(weight.unit_of)
            total += blocks @ _powers(self.weights[weight.tensor], weight.axis, order)[columns]
        return total ** (1 / order)


def _rows(weight: np.ndarray, axis: int) -> np.ndarray:
    """A weight as (positions of the axis, everything else), in float64."""
    return np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float64)


def _powers(weight: np.ndarray, axis: int, order: int) -> np.ndarray:
    """Sums of powers of absolute values for each position of an axis, a few positions at a time for memory's sake."""
    rows = np.moveaxis(weight, axis, 0)
    parts = (rows[i : i + ROWS].reshape(len(rows[i : i + ROWS]), -1) for i in range(0, len(rows), ROWS))
    return np.concatenate([np.sum(np.abs(part.astype(np.float64)) ** order, axis=1) for part in parts])


def spectral(evidence: Evidence) -> np.ndarray:
    """Participation in the distortion between the graph before the nonlinearity and the one after it."""
    pick = int(evidence.options.metric == "correlation")
    distances = [squared_distances(moments[pick], standardise=bool(pick)) for moments in (evidence.pre, evidence.post)]
    return _told_apart(node_scores(distances[0], distances[1], evidence.options), activation(evidence))


def _told_apart(scores: np.ndarray, states: np.ndarray) -> np.ndarray:
    """Scores of which those that are equal but for rounding rise with the state: (n,).

    Graphs of few neurons have symmetries, as those of four heads do, and which of two equal scores comes out lower is
    a matter of rounding, so of the processor.
    """
    order = np.argsort(scores)
    rising = scores[order]
    level = np.concatenate([[0], np.cumsum(np.diff(rising) > EQUAL * rising[1:])])
    lowest = np.empty_like(scores)
    lowest[order] = rising[np.searchsorted(level, level)]  # of each level
    rank = np.argsort(np.argsort(states, kind="stable"))
    return lowest * (1 + EQUAL * rank / len(rank))


def random(evidence: Evidence) -> np.ndarray:
    """Random numbers that depend on the seed and the name of the group alone."""
    generator = np.random.default_rng([evidence.seed, zlib.crc32(evidence.group.name.encode())])
    return generator.random(evidence.group.size)[evidence.kept]


def magnitude(evidence: Evidence) -> np.ndarray:
    """Euclidean norm of the weights that write the unit."""
    return evidence.writer_norms(2)


def magnitude_l1(evidence: Evidence) -> np.ndarray:
    """Sum of absolute values of the weights that write the unit."""
    return evidence.writer_norms(1)


def activation(evidence: Evidence) -> np.ndarray:
    """Root mean square of the state that is read."""
    return np.sqrt(np.maximum(np.diag(evidence.post[0]), 0))


def wanda(evidence: Evidence) -> np.ndarray:
    """Root mean square of the state times the norm of the weights that read it."""
    return activation(evidence) * evidence.reader_norms()


def variance(evidence: Evidence) -> np.ndarray:
    """Variance of the state times the squared norm of the weights that read it."""
    return np.maximum(np.diag(evidence.post[1]), 0) * evidence.reader_norms() ** 2


def reconstruction(evidence: Evidence) -> np.ndarray:
    """Squared error of the readers' results when the unit goes and the readers are refit to all other states.

    For a reader with rows w and centred second moment G of all that it reads: |w_j|^2 / ((G + ridge)^-1)_jj.
    """
    cost = np.zeros(len(evidence.kept))
    for reader in evidence.group.readers:
        site = reader.site
        count = evidence.moments.count[site.key]
        mean = evidence.moments.total[site.key] / count
        gram = evidence.moments.second[site.key] / count - np.outer(mean, mean)
        alive = np.flatnonzero(np.diag(evidence.moments.second[site.key]) > 0)  # others are removed or dead
        if not len(alive):
            continue
        gram = gram[np.ix_(alive, alive)]
        gram[np.diag_indices_from(gram)] += RIDGE * max(float(np.diag(gram).mean()), 1e-300)
        per_feature = np.zeros(site.features)
        rows = by_feature(_rows(evidence.weights[reader.tensor], reader.axis), site).reshape(site.features, -1)
        per_feature[alive] = np.sum(rows[alive] ** 2, axis=1) / _inverse_diagonal(gram)
        columns, blocks = evidence._columns(by_feature(reader.unit_of, site)[:, 0])
        cost += blocks @ per_feature[columns]
    return cost


def interaction(evidence: Evidence) -> np.ndarray:
    """For units of two activations that contract each other's: the product of their second moments."""
    sides = []
    for states in evidence.group.post:
        columns, blocks = evidence._columns(states.unit_of)
        second = np.diag(evidence.moments.second[states.site.key])[columns]
        sides.append(blocks @ second / evidence.moments.count[states.site.key])
    return np.sum([a * b for a, b in zip(sides[::2], sides[1::2], strict=True)], axis=0)


def _inverse_diagonal(gram: np.ndarray) -> np.ndarray:
    """The diagonal of the inverse of a covariance with a ridge: (n,), positive.

    States that hardly change leave nothing but rounding errors beside their mean, which can be negative.
    """
    try:
        return np.diag(linalg.cho_solve(linalg.cho_factor(gram), np.eye(len(gram))))
    except linalg.LinAlgError:
        values, vectors = linalg.eigh(gram)
        floor = max(RIDGE * float(np.abs(values).max()), 1e-300)
        return (vectors**2) @ (1 / np.maximum(values, floor))


_FUNCTIONS: dict[str, Callable[[Evidence], np.ndarray]] = dict(
    zip(
        CRITERIA,
        (spectral, random, magnitude, magnitude_l1, activation, wanda, variance, reconstruction),
        strict=True,
    )
)


def score(
    units: Units,
    moments: Moments,
    weights: Mapping[str, np.ndarray],
    keep: Mapping[str, np.ndarray],
    *,
    criterion: str = "spectral",
    options: SpectralOptions | None = None,
    reverse: bool = False,
    seed: int = 0,
) -> Scores:
    """Scores every unit that is still there.

    Args:
        units: the model.
        moments: of the current model, features numbered as in the original.
        weights: values of the weights that read or write units.
        keep: (units,) bool for each group that lost units already.
        criterion: one of `criteria.CRITERIA`.
        options: of the spectral criterion.
        reverse: whether units with high scores go first, which is how a criterion is put to the test.
        seed: of the random criterion.

    Returns:
        Scores of all groups, not negative; NaN for units that are gone.

    Raises:
        PlanError: there is no such criterion.
    """
    if criterion not in CRITERIA:
        raise PlanError(f"there is no criterion '{criterion}'; use one of {', '.join(CRITERIA)}.")
    by_group, notes = {}, {}
    for name, group in units.groups.items():
        kept = np.flatnonzero(keep.get(name, np.ones(group.size, bool)))
        evidence = Evidence(group, kept, moments, weights, options or SpectralOptions(), seed)
        function = _FUNCTIONS[criterion]
        if not group.readers and criterion in READING:
            function, notes[name] = interaction, MEETING
        elif criterion == "spectral" and group.linear:
            function, notes[name] = reconstruction, INSIDE if group.kind == "hidden unit" else BETWEEN
        scores = function(evidence)
        by_group[name] = np.full(group.size, np.nan)
        by_group[name][kept] = scores.max() + scores.min() - scores if reverse else scores
    return Scores(criterion + (" reversed" if reverse else ""), by_group, notes)
