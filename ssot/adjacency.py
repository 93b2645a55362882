"""The semantic graph: every accepted form of it in, one sparse symmetric array out."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ssot.arrays import largest_magnitude, to_numpy

GraphLike: TypeAlias = Any
"""A SciPy sparse array, a dense N x N array, or a pair (neighbour indices, weights)."""


def symmetric_graph(graph: GraphLike, samples: int, dtype: np.dtype[Any]) -> sparse.csr_array:
    """Return ``W = (S + S^T) / 2`` as a CSR array, from any accepted form of the graph."""
    if isinstance(graph, tuple):
        graph = _graph_from_neighbours(graph, samples)
    if not sparse.issparse(graph):
        graph = to_numpy(graph, "graph")
    elif hasattr(graph, "check_format"):
        try:
            graph.check_format(full_check=True)
        except ValueError as error:
            raise ValueError(f"graph must be a well-formed sparse array: {error}") from error
    if graph.shape != (samples, samples):
        raise ValueError(
            f"graph must have shape (N, N) = {(samples, samples)} to match the cost, "
            f"got {graph.shape}; restrict it to the samples at hand, graph[ids][:, ids], or pass "
            "neighbours as a tuple (indices, weights)"
        )
    if graph.dtype.kind not in "iufb":
        raise TypeError(f"graph must hold real numbers, got dtype {graph.dtype}; pass graph.real")
    directed = sparse.csr_array(graph, dtype=np.float64)
    if not np.isfinite(directed.data).all():
        raise ValueError("graph must have finite weights, got NaN or inf; remove those edges")
    limit = largest_magnitude(dtype)
    if directed.nnz and np.abs(directed.data).max() > limit:
        raise ValueError(
            f"graph has weights above {limit:.0e}, where sums of {dtype} overflow; "
            "divide graph by a factor and multiply semantic_weight by it"
        )
    w = ((directed + directed.T) * 0.5).tocsr().astype(dtype)
    w.sum_duplicates()
    return w


def _graph_from_neighbours(graph: tuple[Any, ...], samples: int) -> sparse.csr_array:
    if len(graph) != 2:
        raise ValueError(
            f"graph as a tuple must be (indices, weights), got a tuple of length {len(graph)}"
        )
    indices, weights = to_numpy(graph[0], "graph[0]"), to_numpy(graph[1], "graph[1]")
    if indices.dtype.kind not in "iu":
        raise TypeError(
            f"graph[0] must hold integer neighbour indices, got {indices.dtype}; use .astype(int)"
        )
    if indices.ndim != 2 or len(indices) != samples or weights.shape != indices.shape:
        raise ValueError(
            f"graph must be two arrays of one shape (N, k) with N = {samples}, "
            f"got {indices.shape} and {weights.shape}"
        )
    if indices.size and not (indices.min() >= 0 and indices.max() < samples):
        raise ValueError(
            f"graph[0] must hold indices from 0 to {samples - 1}, got {indices.min()} to "
            f"{indices.max()}; "
            "indices count rows of the cost, not rows of a larger data set"
        )
    return neighbour_graph(indices, weights)


def neighbour_graph(indices: NDArray[Any], weights: NDArray[Any]) -> sparse.csr_array:
    """Return the directed graph of each sample's neighbours and their weights, both (N, k).

    Indices have 32 bits wherever these suffice, as other libraries want them.
    """
    samples, neighbours = indices.shape
    index = sparse.get_index_dtype(maxval=max(samples, weights.size))
    starts = (np.arange(samples + 1) * neighbours).astype(index)
    entries = (weights.ravel(), indices.ravel().astype(index, copy=False), starts)
    return sparse.csr_array(entries, shape=(samples, samples))
