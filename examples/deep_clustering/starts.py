"""Where a training starts: plain features, their neighbour graph, and clusters for each head."""

import time
import warnings
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy.sparse import csr_array, diags_array, eye_array
from scipy.sparse.csgraph import connected_components
from sklearn.cluster import AgglomerativeClustering, KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import normalize

import ssot

from .data import Dataset
from .selection import modularity

PIXEL_COMPONENTS = 32
NEIGHBOURS = 20
WEIGHT_FLOOR = 1e-6  # of an edge: an outlier without edges has no place in a spectral embedding
SMOOTHING_STEPS = 4
SMALL_CLUSTERS = 20  # for each class
FEWEST_SAMPLES = 3  # in a small cluster, on average
DECIMALS = 5  # of directions that tell samples apart; float32 has two more
TRIALS = 5  # of each weighting; their modularity varies by about 0.002 of itself
TOLERATED_LOSS = 0.004  # of modularity, for small clusters that all count alike


class IndistinctError(ValueError):
    """The samples do not differ enough for the number of classes."""


@dataclass
class Start:
    """What is known before the training, the same for all methods.

    Attributes
    ----------
    data, seed
        What to cluster, and the seed of all that is random.
    heads
        Classifiers that are trained side by side.
    features
        (N, D), not learned.
    graph
        Semantic graph of the features.
    clusters_seconds
        Time that `clusters` took, once they are made.
    """

    data: Dataset
    seed: int
    heads: int
    features: np.ndarray
    graph: csr_array
    clusters_seconds: float = field(default=0.0, init=False)

    @cached_property
    def clusters(self) -> list[np.ndarray]:
        """For each head the clusters (N,) that its prototypes start at, made when first asked for.

        Many small k-means clusters, of a seed for each head, are merged.
        """
        began, n_classes = time.perf_counter(), self.data.n_classes
        smooth = smoothed(self.features, self.graph)
        power = power_of_sizes(smooth, self.graph, n_classes)
        found = [
            merged(small_clusters(smooth, n_classes, own), smooth, self.graph, n_classes, power)
            for own in range(self.seed * self.heads, (self.seed + 1) * self.heads)
        ]
        self.clusters_seconds = time.perf_counter() - began
        return found


def start(data: Dataset, heads: int, seed: int) -> Start:
    """Return the features and the graph of a data set, and where each head starts."""
    features = plain_features(data, seed)
    check_distinct(normalize(features).round(DECIMALS), data.n_classes)
    return Start(data, seed, heads, features, connected_graph(features, data.n_classes))


def check_distinct(samples: np.ndarray, n_classes: int) -> None:
    """Refuse fewer distinct samples, rows or numbers, than classes."""
    distinct = len(np.unique(samples, axis=0))
    if distinct < n_classes:
        raise IndistinctError(
            f"the samples must have {n_classes} distinct directions or more, one for each class; "
            f"got {distinct}"
        )


def plain_features(data: Dataset, seed: int) -> np.ndarray:
    """Return features (N, D) without training: the inputs, or components of the pixels."""
    if not data.is_images:
        return data.inputs
    pixels = data.inputs.reshape(len(data.inputs), -1)
    components = min(PIXEL_COMPONENTS, *pixels.shape)
    return PCA(components, random_state=seed).fit_transform(pixels)


def connected_graph(features: np.ndarray, n_classes: int) -> csr_array:
    """Connect 20 neighbours, or more until there are at most as many components as classes."""
    k = min(NEIGHBOURS, len(features) - 1)
    while True:
        graph = ssot.knn_graph(features, k)
        graph.data = np.maximum(graph.data, WEIGHT_FLOOR)
        graph = (graph + graph.T) / 2
        if connected_components(graph, return_labels=False) <= n_classes:
            return graph
        k = min(2 * k, len(features) - 1)


def smoothed(features: np.ndarray, graph: csr_array) -> np.ndarray:
    """Return the directions of the features (N, D), each averaged with its neighbours' a few times.

    Samples move to the middle of their class, outliers most of all.
    """
    averages = (diags_array(1 / graph.sum(axis=1)) @ graph).astype(features.dtype)
    directions = normalize(features)
    for _ in range(SMOOTHING_STEPS):
        directions = normalize(directions + averages @ directions)
    return directions


def small_clusters(features: np.ndarray, n_classes: int, seed: int) -> np.ndarray:
    """Return many k-means clusters (N,), about 20 for each class."""
    small = max(n_classes, min(SMALL_CLUSTERS * n_classes, len(features) // FEWEST_SAMPLES))
    with warnings.catch_warnings():
        # Fewer than asked for are found where many samples are the same.
        warnings.filterwarnings("ignore", "Number of distinct clusters", ConvergenceWarning)
        found = KMeans(small, n_init=1, max_iter=20, random_state=seed).fit_predict(features)
    check_distinct(found, n_classes)  # smoothing may make samples equal, where there are few
    return np.unique(found, return_inverse=True)[1]


def power_of_sizes(features: np.ndarray, graph: csr_array, n_classes: int) -> float:
    """Return the power of their sizes that small clusters are weighed by when they merge.

    Rare classes are found best where all small clusters count alike (0), unless so many of them
    are outliers that this makes worse clusters, also by modularity; then it is 1/2. The trials
    have the same seeds whatever the seed of the training, for this is a matter of the data.
    """
    sums = {0.0: 0.0, 0.5: 0.0}
    for seed in range(TRIALS):
        parts = small_clusters(features, n_classes, seed)
        for power in sums:
            sums[power] += modularity(merged(parts, features, graph, n_classes, power), graph)
    return 0.0 if sums[0.0] >= (1 - TOLERATED_LOSS) * sums[0.5] else 0.5


def merged(
    part_of_sample: np.ndarray,
    features: np.ndarray,
    graph: csr_array,
    n_classes: int,
    power: float,
) -> np.ndarray:
    """Merge small clusters by Ward's rule, each with the weight ``size^power``.

    With power 1 it would be Ward's clustering of the samples, which swallows rare classes; with 0
    outliers count as much as classes. Only clusters that an edge of the graph joins may merge.
    """
    samples = np.arange(len(features))
    members = csr_array((np.ones(len(samples)), (samples, part_of_sample)))
    sizes = members.sum(axis=0)
    neighbours = csr_array(members.T @ graph @ members + eye_array(len(sizes)))
    centres = (members.T @ features) / sizes[:, None]
    # Equal points merge first and at no cost, so a point that is there w times has the weight w.
    copies = np.repeat(np.arange(len(sizes)), np.round(sizes**power).astype(int))
    merging = AgglomerativeClustering(
        n_classes, linkage="ward", connectivity=neighbours[copies][:, copies]
    )
    with warnings.catch_warnings():
        # Components of the graph merge last.
        warnings.filterwarnings("ignore", "the number of connected components", UserWarning)
        clusters = merging.fit_predict(centres[copies])
    return clusters[np.searchsorted(copies, np.arange(len(sizes)))][part_of_sample]
