"""The spectral criterion against closed forms: path, cycle, complete and disconnected graphs, identities of s = all."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from onnxprune.errors import PlanError
from onnxprune.spectral import (
    SpectralOptions,
    edge_scores,
    laplacian,
    leading_eigenpairs,
    neighbour_graph,
    node_scores,
    regularised,
    squared_distances,
)


def adjacency(edges: list[tuple[int, int]], n: int) -> sparse.csr_array:
    rows, columns = np.array(edges).T
    upper = sparse.coo_array((np.ones(len(edges)), (rows, columns)), shape=(n, n))
    return sparse.csr_array(upper + upper.T)


def path(n: int) -> sparse.csr_array:
    return adjacency([(i, i + 1) for i in range(n - 1)], n)


def cycle(n: int) -> sparse.csr_array:
    return adjacency([(i, (i + 1) % n) for i in range(n)], n)


def complete(n: int) -> sparse.csr_array:
    return adjacency([(i, j) for i in range(n) for j in range(i)], n)


def states(n: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Distances of low-rank states before and after a ReLU."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((500, 8)) @ generator.standard_normal((8, n)) + generator.standard_normal(n)
    y = np.maximum(x, 0)
    return squared_distances(x.T @ x / 500), squared_distances(y.T @ y / 500)


@pytest.mark.parametrize("n", [2, 3, 7])
def test_laplacian_spectra(n: int) -> None:
    """Path: 2 - 2 cos(pi j / n); cycle: 2 - 2 cos(2 pi j / n); complete: 0 once and n otherwise."""
    j = np.arange(n)
    spectrum = lambda graph: np.linalg.eigvalsh(laplacian(graph).toarray())  # noqa: E731
    np.testing.assert_allclose(spectrum(path(n)), 2 - 2 * np.cos(np.pi * j / n), atol=1e-12)
    np.testing.assert_allclose(spectrum(complete(n)), [0] + [n] * (n - 1), atol=1e-12)
    if n > 2:
        np.testing.assert_allclose(spectrum(cycle(n)), sorted(2 - 2 * np.cos(2 * np.pi * j / n)), atol=1e-12)


@pytest.mark.parametrize("dense", [True, False])
def test_equal_graphs_are_not_distorted(dense: bool) -> None:
    """With L_in = L and L_out = L + r, every eigenvalue is mu / (mu + r), mu an eigenvalue of L."""
    n, ridge = 40, 0.1
    l_in, l_out = laplacian(cycle(n)), regularised(laplacian(cycle(n)), ridge)
    mu = np.sort(2 - 2 * np.cos(2 * np.pi * np.arange(n) / n))[::-1]
    values, vectors = leading_eigenpairs(l_in, l_out, 5, dense=dense)
    np.testing.assert_allclose(values, mu[:5] / (mu[:5] + 2 * ridge), rtol=1e-6)
    np.testing.assert_allclose(vectors.T @ l_out @ vectors, np.eye(5), atol=1e-6)


def test_complete_against_complete_in_closed_form() -> None:
    """All edges score alike: for K_n with a ridge of r (n - 1), e^T P L P e = 2 n / (n + r (n - 1))^2."""
    n, r = 9, 1e-2
    l_in, l_out = laplacian(complete(n)), regularised(laplacian(complete(n)), r)
    edges = np.array([[0, 3], [5, 8]]).T
    np.testing.assert_allclose(edge_scores(l_in, l_out, edges, "all"), 2 * n / (n + r * (n - 1)) ** 2, rtol=1e-10)


def test_path_against_path_in_closed_form() -> None:
    """Without a ridge, P L P = P, whose form on an edge of a tree is its resistance, 1."""
    n = 12
    l_out = regularised(laplacian(path(n)), 1e-9)
    edges = np.stack([np.arange(n - 1), np.arange(1, n)])
    np.testing.assert_allclose(edge_scores(laplacian(path(n)), l_out, edges, "all"), 1, rtol=1e-5)


@pytest.mark.parametrize("weights", ["unit", "inverse"])
def test_identities_of_s_all(weights: str) -> None:
    """The closed form equals the sum over all eigenpairs, and the weighted sum of scores is the sum of lambda^2."""
    d_in, d_out = states()
    g_in, g_out = (neighbour_graph(d, 5, weights) for d in (d_in, d_out))
    l_in, l_out = laplacian(g_in), regularised(laplacian(g_out), 1e-3)
    edges = np.stack(sparse.triu(g_in, 1).nonzero())
    closed = edge_scores(l_in, l_out, edges, "all")
    np.testing.assert_allclose(closed, edge_scores(l_in, l_out, edges, len(d_in)), rtol=1e-7, atol=1e-9 * closed.max())
    values, _ = leading_eigenpairs(l_in, l_out, len(d_in))
    lengths = np.array([g_in[p, q] for p, q in edges.T])
    np.testing.assert_allclose(np.sum(lengths * closed), np.sum(values**2), rtol=1e-8)


def test_sparse_solver_equals_dense() -> None:
    d_in, d_out = states(300)
    l_in, l_out = laplacian(neighbour_graph(d_in, 10)), regularised(laplacian(neighbour_graph(d_out, 10)), 1e-3)
    edges = np.stack(sparse.triu(neighbour_graph(d_in, 10), 1).nonzero())
    scores = []
    for dense in (True, False):
        values, vectors = leading_eigenpairs(l_in, l_out, 10, dense=dense)
        embedding = vectors * np.sqrt(values)
        scores.append(np.sum((embedding[edges[0]] - embedding[edges[1]]) ** 2, axis=1))
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-4, atol=1e-4 * scores[0].max())


def test_disconnected_graphs_are_bridged_by_their_shortest_edges() -> None:
    """Three far clusters on a line: two edges connect them, between their nearest members."""
    points = np.concatenate([c + np.arange(4) for c in (0, 100, 300)])[:, None].astype(float)
    distances = (points - points.T) ** 2
    graph = neighbour_graph(distances, 2)
    count, _ = sparse.csgraph.connected_components(graph)
    assert count == 1
    assert graph[3, 4] == 1 and graph[7, 8] == 1
    crossing = [(p, q) for p, q in zip(*sparse.triu(graph).nonzero(), strict=True) if p // 4 != q // 4]
    assert sorted(crossing) == [(3, 4), (7, 8)]


def test_torn_neighbours_score_highest() -> None:
    """Neurons on a line before; after it, the last one has jumped to the other end."""
    before = np.arange(12.0)
    after = before.copy()
    after[-1] = -6
    scores = node_scores(*((x[:, None] - x) ** 2 for x in (before, after)), SpectralOptions(k=2, s="all"))
    assert scores.argmax() == 11
    assert scores[11] > 2 * np.median(scores)


def test_scores_do_not_depend_on_the_order_of_neurons() -> None:
    d_in, d_out = states(40)
    order = np.random.default_rng(3).permutation(40)
    options = SpectralOptions(s="all")
    shuffled = node_scores(d_in[np.ix_(order, order)], d_out[np.ix_(order, order)], options)
    np.testing.assert_allclose(shuffled, node_scores(d_in, d_out, options)[order], rtol=1e-9)


def test_correlation_ignores_scale_and_silent_neurons_are_no_error() -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((200, 6))
    x[:, 5] = 0
    x -= x.mean(axis=0)
    scale = np.array([1, 10, 0.1, 5, 2, 1])
    plain, scaled = (squared_distances(y.T @ y / 200, standardise=True) for y in (x, x * scale))
    np.testing.assert_allclose(plain, scaled, atol=1e-9)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_few_neurons(n: int) -> None:
    generator = np.random.default_rng(0)
    distances = squared_distances(np.cov(generator.standard_normal((n, 30))).reshape(n, n))
    scores = node_scores(distances, distances)
    assert scores.shape == (n,) and np.isfinite(scores).all()


def test_options_are_checked() -> None:
    with pytest.raises(PlanError, match="--k 0 is out of range"):
        SpectralOptions(k=0)
