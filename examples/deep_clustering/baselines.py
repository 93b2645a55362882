"""Clusterings to compare with, from the features alone, (N, D) float."""

import warnings
from collections.abc import Callable

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from sklearn.cluster import KMeans, SpectralClustering, kmeans_plusplus
from sklearn.mixture import GaussianMixture
from sklearn.preprocessing import normalize

import ssot

STARTS = 10
"""Starts of both kinds of k-means; the best by their own objective is kept."""

MAX_STEPS = 300
VARIANCE_FLOOR = 0.01  # of the mean variance: rare clusters and dead pixels have none of their own
WEIGHT_FLOOR = 1e-6  # of an edge: an outlier without edges has no place in a spectral embedding


def k_means(features: np.ndarray, n_classes: int, seed: int) -> np.ndarray:
    """Minimise the squared distances to the centres."""
    return KMeans(n_classes, n_init=STARTS, random_state=seed).fit_predict(features)


def spherical_k_means(features: np.ndarray, n_classes: int, seed: int) -> np.ndarray:
    """Maximise the cosine similarities to the centres.

    `KMeans` on unit-length rows is not the same: its centres are shorter where clusters are wide.
    """
    directions, random = normalize(features), np.random.RandomState(seed)
    best, highest = np.zeros(len(features), dtype=int), -np.inf
    for _ in range(STARTS):
        centres, _ = kmeans_plusplus(directions, n_classes, random_state=random)
        clusters, similarity = _climb(directions, centres)
        if similarity > highest:
            best, highest = clusters, similarity
    return best


def _climb(directions: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, float]:
    """Take Lloyd's steps on the sphere; return the clusters and their total similarity."""
    samples, previous = np.arange(len(directions)), None
    for _ in range(MAX_STEPS):
        similarities = directions @ centres.T
        clusters = similarities.argmax(axis=1)
        own = similarities[samples, clusters]
        if np.array_equal(clusters, previous):
            break
        previous = clusters
        members = csr_array((np.ones_like(own), (clusters, samples)), (len(centres), len(samples)))
        centres = normalize(members @ directions)
        empty = np.bincount(clusters, minlength=len(centres)) == 0
        centres[empty] = directions[np.argsort(own, kind="stable")[: empty.sum()]]
    return clusters, float(own.sum())


def gaussian_mixture(features: np.ndarray, n_classes: int, seed: int) -> np.ndarray:
    """Fit Gaussians with diagonal covariances, from k-means on."""
    points = np.asarray(features, dtype=np.float64)
    mixture = GaussianMixture(
        n_classes,
        covariance_type="diag",
        reg_covar=VARIANCE_FLOOR * points.var(axis=0).mean(),
        max_iter=MAX_STEPS,
        random_state=seed,
    )
    return mixture.fit_predict(points)


def spectral_clustering(features: np.ndarray, n_classes: int, seed: int) -> np.ndarray:
    """Minimise the normalised cut of the neighbour graph, relaxed."""
    graph = connected_graph(features, n_classes)
    model = SpectralClustering(
        n_classes, affinity="precomputed", assign_labels="discretize", random_state=seed
    )
    with warnings.catch_warnings():
        # Components are clusters or unions of them, as long as there are no more than clusters.
        warnings.filterwarnings("ignore", "Graph is not fully connected", UserWarning)
        return model.fit_predict(graph)


def connected_graph(features: np.ndarray, n_classes: int) -> csr_array:
    """Connect 20 neighbours, or more until there are at most as many components as classes."""
    k = min(20, len(features) - 1)
    while True:
        graph = ssot.knn_graph(features, k)
        graph.data = np.maximum(graph.data, WEIGHT_FLOOR)
        graph = (graph + graph.T) / 2
        if connected_components(graph, return_labels=False) <= n_classes:
            return graph
        k = min(2 * k, len(features) - 1)


BASELINES: dict[str, Callable[[np.ndarray, int, int], np.ndarray]] = {
    "k-means": k_means,
    "spherical k-means": spherical_k_means,
    "Gaussian mixture": gaussian_mixture,
    "spectral clustering": spectral_clustering,
}
"""Each takes the features (N, D), the number of classes and a seed, and returns clusters (N,)."""
