"""Spectral structural distortion between two graphs of neurons. Arrays in, arrays out; knows no ONNX.

The states of n neurons before and after their nonlinearity give two k-nearest-neighbour graphs. With Laplacians L_in
and L_out, the pencil `L_in v = lambda L_out v` says in which directions the nonlinearity tore neighbours apart; the
score of a neuron is its mean participation in the s leading directions, taken over its edges of the input graph.

Source: Y. Wang, "Spectral structural distortion reveals redundant neurons in neural networks", arXiv 2605.18860 (2026),
which builds on SPADE: Cheng et al., ICML 2021, arXiv 2102.03716. The paper leaves k, the edge weights, the
regularisation and s open; those are options here.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from scipy import linalg, sparse

from onnxprune.validation import COUNT, FINITE, SEED, validate

log = logging.getLogger(__name__)

ROWS = 256
"""Neurons whose neighbours are sought at a time."""

DENSE_LIMIT = 1000
"""Neurons up to which eigenpairs come from a dense solver."""


@dataclass(frozen=True, slots=True)
class SpectralOptions:
    """What the paper leaves open.

    Attributes:
        k: nearest neighbours of each neuron; at most half of the others are taken, or small graphs are complete.
        weights: weight of an edge, 1 ("unit") or one over the squared distance ("inverse").
        metric: squared distance of raw states ("euclidean"), or after centring and scaling to unit variance.
        s: leading eigenpairs that count, or "all", which has a closed form.
        ridge: added to the diagonal of L_out, relative to its mean.
        seed: of the start vectors of the iterative solver.
    """

    k: Annotated[int, COUNT] = 10
    weights: Literal["unit", "inverse"] = "unit"
    metric: Literal["euclidean", "correlation"] = "euclidean"
    s: Annotated[int, COUNT] | Literal["all"] = 10
    ridge: Annotated[float, FINITE] = 1e-3
    seed: Annotated[int, SEED] = 0

    def __post_init__(self) -> None:
        validate(self, weights="--edges", s="--eigenpairs")


def squared_distances(gram: np.ndarray, *, standardise: bool = False) -> np.ndarray:
    """Squared distances between neurons from their second moments.

    Args:
        gram: (n, n) inner products of the states, divided by the number of samples; of centred states to standardise.
        standardise: whether to scale them to unit variance first; neurons that never vary stay at zero.

    Returns:
        (n, n), symmetric, zero diagonal, never negative.
    """
    if standardise:
        deviation = np.sqrt(np.maximum(np.diag(gram), 0))
        scale = np.divide(
            1, deviation, out=np.zeros_like(deviation), where=deviation > 1e-12 * deviation.max(initial=0)
        )
        gram = gram * np.outer(scale, scale)
    norms = np.diag(gram)
    distances = np.maximum(norms[:, None] + norms[None] - gram - gram.T, 0)
    np.fill_diagonal(distances, 0)
    return distances


def neighbour_graph(distances: np.ndarray, k: int, weights: str = "unit") -> sparse.csr_array:
    """The k-nearest-neighbour graph, symmetrised by union and connected by its shortest missing edges.

    Args:
        distances: (n, n) squared distances.
        k: neighbours of each neuron; ties go to the lower index.
        weights: "unit" or "inverse".

    Returns:
        (n, n) symmetric adjacency with one connected component.
    """
    n = len(distances)
    nearest = np.concatenate([_nearest(distances, start, k) for start in range(0, n, ROWS)])  # (n, k)
    rows = np.repeat(np.arange(n), nearest.shape[1])
    pairs = np.stack([rows, nearest.ravel()])
    pairs = np.concatenate([pairs, _bridges(distances, pairs)], axis=1)
    pairs = np.unique(np.sort(pairs, axis=0), axis=1)  # each edge once
    values = np.ones(pairs.shape[1])
    if weights == "inverse":
        lengths = distances[pairs[0], pairs[1]]
        values = 1 / np.maximum(lengths, 1e-6 * max(float(lengths.mean()), 1e-300))  # equal neurons: finite weight
    upper = sparse.coo_array((values, (pairs[0], pairs[1])), shape=(n, n))
    return sparse.csr_array(upper + upper.T)


def _nearest(distances: np.ndarray, start: int, k: int) -> np.ndarray:
    """The k nearest others of a few neurons, (rows, k)."""
    own = distances[start : start + ROWS].copy()
    own[np.arange(len(own)), start + np.arange(len(own))] = np.inf
    return np.argsort(own, axis=1, kind="stable")[:, : min(k, len(distances) - 1)]


def _bridges(distances: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Edges of a minimum spanning tree between the components of a graph, found as Boruvka does: (2, edges)."""
    n = len(distances)
    added: list[tuple[int, int]] = []
    while True:
        edges = np.concatenate([pairs, np.array(added, int).reshape(-1, 2).T], axis=1)
        adjacency = sparse.coo_array((np.ones(edges.shape[1]), (edges[0], edges[1])), shape=(n, n))
        count, component = sparse.csgraph.connected_components(adjacency, directed=False)
        if count == 1:
            return np.array(added, int).reshape(-1, 2).T
        for c in range(count):
            inside, outside = np.flatnonzero(component == c), np.flatnonzero(component != c)
            block = distances[np.ix_(inside, outside)]
            i, j = np.unravel_index(np.argmin(block), block.shape)
            added.append((int(inside[i]), int(outside[j])))


def laplacian(adjacency: sparse.csr_array) -> sparse.csr_array:
    """The unnormalised Laplacian, degrees minus weights."""
    return sparse.csr_array(sparse.diags_array(adjacency.sum(axis=1)) - adjacency)


def regularised(l_out: sparse.csr_array, ridge: float) -> sparse.csr_array:
    """L_out with a relative ridge, which makes it positive definite."""
    diagonal = l_out.diagonal()
    return sparse.csr_array(l_out + ridge * diagonal.mean() * sparse.eye_array(len(diagonal)))


def leading_eigenpairs(
    l_in: sparse.csr_array, l_out: sparse.csr_array, s: int, *, seed: int = 0, dense: bool | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The largest solutions of `l_in v = lambda l_out v`, with `v_i^T l_out v_j = delta_ij`.

    Args:
        l_in: (n, n) positive semidefinite.
        l_out: (n, n) positive definite.
        s: how many.
        seed: of the start vectors of the iterative solver.
        dense: which solver; by size when None.

    Returns:
        Eigenvalues (s,), largest first, and eigenvectors (n, s).
    """
    n = l_in.shape[0]
    s = min(s, n)
    if dense or (dense is None and (n <= DENSE_LIMIT or 5 * s > n)):
        values, vectors = linalg.eigh(l_in.toarray(), l_out.toarray(), subset_by_index=[n - s, n - 1])
        return values[::-1], vectors[:, ::-1]
    start = np.random.default_rng(seed).standard_normal((n, s + 4))  # a few more converge the wanted ones faster
    preconditioner = sparse.diags_array(1 / l_out.diagonal())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # convergence is judged below
        values, vectors = sparse.linalg.lobpcg(
            l_in, start, l_out, preconditioner, tol=1e-6 * float(np.abs(l_in.diagonal()).max()), maxiter=400
        )
    residual = np.linalg.norm(l_in @ vectors - (l_out @ vectors) * values, axis=0)[:s]
    if (residual <= 1e-4 * np.linalg.norm(l_in @ vectors, axis=0)[:s]).all():
        return values[:s], vectors[:, :s]
    log.warning("the iterative solver did not converge for %d units; solving with a dense factorisation", n)
    factor = linalg.cho_factor(l_out.toarray(), lower=True)
    inverse = sparse.linalg.LinearOperator((n, n), matvec=lambda v: linalg.cho_solve(factor, v))
    values, vectors = sparse.linalg.eigsh(l_in, k=s, M=l_out, Minv=inverse, v0=start[:, 0])
    return values[::-1], vectors[:, ::-1]


def edge_scores(
    l_in: sparse.csr_array, l_out: sparse.csr_array, edges: np.ndarray, s: int | str, *, seed: int = 0
) -> np.ndarray:
    """How far apart the leading directions tear the ends of each edge.

    Args:
        l_in: (n, n) Laplacian of the input graph.
        l_out: (n, n) regularised Laplacian of the output graph.
        edges: (2, m) ends.
        s: number of directions, or "all" for the closed form `e_pq^T P l_in P e_pq`, P the inverse of l_out.
        seed: of the iterative solver.

    Returns:
        (m,), not negative.
    """
    p, q = edges
    if s == "all":
        half = linalg.solve(l_out.toarray(), l_in.toarray(), assume_a="pos")  # P l_in
        form = linalg.solve(l_out.toarray(), half.T, assume_a="pos")  # P l_in P, symmetric
        diagonal = np.diag(form)
        return np.maximum(diagonal[p] + diagonal[q] - form[p, q] - form[q, p], 0)
    values, vectors = leading_eigenpairs(l_in, l_out, int(s), seed=seed)
    embedding = vectors * np.sqrt(np.maximum(values, 0))  # (n, s)
    return np.sum((embedding[p] - embedding[q]) ** 2, axis=1)


def node_scores(d_in: np.ndarray, d_out: np.ndarray, options: SpectralOptions | None = None) -> np.ndarray:
    """The participation of each neuron in the distortion between its two graphs.

    Args:
        d_in: (n, n) squared distances before the nonlinearity.
        d_out: (n, n) squared distances after it.
        options: what the paper leaves open.

    Returns:
        (n,), not negative, dimensionless; the mean edge score over the neighbours in the input graph.
    """
    options = options or SpectralOptions()
    n = len(d_in)
    if n < 2:
        return np.zeros(n)
    k = max(1, min(options.k, (n - 1) // 2))
    graphs = [neighbour_graph(d, k, options.weights) for d in (d_in, d_out)]
    l_in, l_out = laplacian(graphs[0]), regularised(laplacian(graphs[1]), options.ridge)
    edges = np.stack(sparse.triu(graphs[0], 1).nonzero())  # (2, m)
    scores = edge_scores(l_in, l_out, edges, options.s, seed=options.seed)
    ends = edges.ravel()
    return np.bincount(ends, np.tile(scores, 2), n) / np.bincount(ends, minlength=n)
