"""Choose between clusterings of the same samples without labels: the higher, the better."""

import numpy as np
from scipy.sparse import csr_array


def modularity(clusters: np.ndarray, graph: csr_array) -> float:
    """Return the share of the graph's weight inside clusters, less what chance would put there.

    With W the total weight and d the degrees of the symmetrised graph, Newman's modularity
    sum_c [weight inside c / W - (degrees in c / W)^2]: below 1, and 0 for a single cluster. A graph
    and its transpose count the same.
    """
    names, clusters = np.unique(clusters, return_inverse=True)
    samples = len(clusters)
    members = csr_array((np.ones(samples), (np.arange(samples), clusters)), (samples, len(names)))
    between = (members.T @ csr_array(graph) @ members).toarray()  # (clusters, clusters)
    total = between.sum()
    if not total > 0:
        raise ValueError(f"graph must have a positive total weight, got {total}")
    degrees = (between.sum(axis=0) + between.sum(axis=1)) / 2
    return float(np.trace(between) / total - ((degrees / total) ** 2).sum())
