"""Clusterings to compare with, from the features or their neighbour graph alone."""

import warnings
from collections.abc import Callable

import numpy as np
from scipy.sparse import csr_array
from sklearn.cluster import KMeans, SpectralClustering, kmeans_plusplus
from sklearn.mixture import GaussianMixture
from sklearn.preprocessing import normalize

from .selection import modularity
from .starts import Start

STARTS = 10
"""Starts of both kinds of k-means; the best by their own objective is kept."""

MAX_STEPS = 300
VARIANCE_FLOOR = 0.01  # of the mean variance: rare clusters and dead pixels have none of their own


def k_means(begin: Start) -> np.ndarray:
    """Minimise the squared distances to the centres."""
    model = KMeans(begin.data.n_classes, n_init=STARTS, random_state=begin.seed)
    return model.fit_predict(begin.features)


def spherical_k_means(begin: Start) -> np.ndarray:
    """Maximise the cosine similarities to the centres.

    `KMeans` on unit-length rows is not the same: its centres are shorter where clusters are wide.
    """
    directions, random = normalize(begin.features), np.random.RandomState(begin.seed)
    best, highest = np.zeros(len(directions), dtype=int), -np.inf
    for _ in range(STARTS):
        centres, _ = kmeans_plusplus(directions, begin.data.n_classes, random_state=random)
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


def gaussian_mixture(begin: Start) -> np.ndarray:
    """Fit Gaussians with diagonal covariances, from k-means on."""
    points = np.asarray(begin.features, dtype=np.float64)
    mixture = GaussianMixture(
        begin.data.n_classes,
        covariance_type="diag",
        reg_covar=VARIANCE_FLOOR * points.var(axis=0).mean(),
        max_iter=MAX_STEPS,
        random_state=begin.seed,
    )
    return mixture.fit_predict(points)


def spectral_clustering(begin: Start) -> np.ndarray:
    """Minimise the normalised cut of the neighbour graph, relaxed."""
    if begin.data.n_classes == len(begin.features):
        return np.arange(len(begin.features))  # as many eigenvectors the solver does not find
    model = SpectralClustering(
        begin.data.n_classes,
        affinity="precomputed",
        assign_labels="discretize",
        random_state=begin.seed,
    )
    with warnings.catch_warnings():
        # Components are clusters or unions of them, as long as there are no more than clusters.
        warnings.filterwarnings("ignore", "Graph is not fully connected", UserWarning)
        return model.fit_predict(begin.graph)


def merged_k_means(begin: Start) -> np.ndarray:
    """Return where the trainings start: of all heads' clusters those the graph agrees with most.

    What a transport method has beyond them, it has from the training.
    """
    return max(begin.clusters, key=lambda clusters: modularity(clusters, begin.graph))


BASELINES: dict[str, Callable[[Start], np.ndarray]] = {
    "k-means": k_means,
    "spherical k-means": spherical_k_means,
    "Gaussian mixture": gaussian_mixture,
    "spectral clustering": spectral_clustering,
    "merged k-means (the start)": merged_k_means,
}
"""Each returns the clusters (N,)."""
