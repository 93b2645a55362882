"""Scores of a clustering against the true labels.

The true labels enter here and nowhere else.
"""

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import (
    accuracy_score,
    adjusted_rand_score,
    f1_score,
    normalized_mutual_info_score,
    recall_score,
)
from sklearn.metrics.cluster import contingency_matrix

UNMATCHED = -1
"""Class of the samples in clusters that no class is left for: always wrong."""


def scores(labels: np.ndarray, clusters: np.ndarray) -> dict[str, float]:
    """Compare clusters with the true labels; 1 is perfect.

    Accuracy, recall and F1 are those of the best one-to-one assignment of clusters to classes;
    there may be more or fewer clusters than classes. NMI and ARI need no assignment. All are at
    least 0, except for an ARI worse than chance.
    """
    _, labels, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    found = match(labels, clusters)
    recall = recall_score(labels, found, labels=range(len(sizes)), average=None)
    values = {
        "accuracy": accuracy_score(labels, found),
        "balanced_accuracy": recall.mean(),
        "nmi": normalized_mutual_info_score(labels, clusters),
        "ari": adjusted_rand_score(labels, clusters),
        "macro_f1": f1_score(labels, found, labels=range(len(sizes)), average="macro"),
    }
    groups = {f"{name}_recall": recall[ids].mean() for name, ids in size_groups(sizes).items()}
    return {name: float(value) for name, value in (values | groups).items()}


def match(labels: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Rename the clusters one to one so that as many samples as possible get their label.

    The labels must be 0 to K - 1.
    """
    names, clusters = np.unique(clusters, return_inverse=True)
    classes, matched = linear_sum_assignment(contingency_matrix(labels, clusters), maximize=True)
    class_of_cluster = np.full(len(names), UNMATCHED)
    class_of_cluster[matched] = classes
    return class_of_cluster[clusters]


def size_groups(sizes: np.ndarray) -> dict[str, np.ndarray]:
    """Split the classes by size: the largest 30 %, the next 40 % and the smallest 30 %."""
    if len(sizes) < 3:
        raise ValueError(f"labels must have at least 3 classes, got {len(sizes)}")
    by_size = np.argsort(-np.asarray(sizes), kind="stable")
    head, tail = round(0.3 * len(sizes)), round(0.7 * len(sizes))
    return {"head": by_size[:head], "medium": by_size[head:tail], "tail": by_size[tail:]}
