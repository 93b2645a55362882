"""The semantic graph of some of the samples, from that of all."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse

from ssot.adjacency import Edges, GraphLike, GraphRows, compressed, neighbour_graph
from ssot.arrays import HOST, Array, checked_array, isolated, namespace, place_of, to_place


def restrict_graph(graph: GraphLike, samples: ArrayLike) -> Any:
    """Return the graph of some samples: row and column i are sample ``samples[i]``.

    What ``graph[samples][:, samples]`` is for a SciPy array, for sparse tensors too, in time
    proportional to the edges of those samples, and one number for each of the N. For a batch of
    data with sample ids, pass it to `solve` with the logits of the same samples.

    Parameters
    ----------
    graph : sparse (N, N) array or tensor, or (indices, weights)
        The semantic graph of all N samples: a SciPy sparse array, a CSR, CSC or COO tensor, or two
        (N, k) arrays or tensors, the neighbours of each sample and their weights. Sparse ones that
        are not CSR, and weights in half precision, are converted at each call: convert them once.
    samples : (n,) array of integers
        Which samples, from 0 to N - 1, each once, in any order. For tensors on a device, best a
        tensor there.

    Returns
    -------
    (n, n) sparse array or tensor
        A `scipy.sparse.csr_array`, or for tensors a ``torch.sparse_csr`` one on the device of
        `graph`. Half precision comes back in float32.

    Raises
    ------
    TypeError
        If `graph` is dense or not of real numbers, or `samples` are not integers.
    ValueError
        If `graph` is not square, or `samples` are out of range or not distinct.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.sparse import csr_array
    >>> from ssot import restrict_graph
    >>> graph = csr_array([[0.0, 0.1, 0.2], [0.3, 0.0, 0.5], [0.6, 0.7, 0.0]])
    >>> restrict_graph(graph, np.array([2, 0])).toarray()
    array([[0. , 0.6],
           [0.2, 0. ]])
    """
    return restricted(graph_rows(graph), samples)


def graph_rows(graph: GraphLike) -> GraphRows:
    """Return the rows of a sparse graph, sharing memory where it can."""
    if isinstance(graph, tuple):
        return _neighbour_rows(graph)
    shape = tuple(getattr(graph, "shape", ()))
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(f"graph must be a sparse (N, N) array or tensor, got shape {shape}")
    if sparse.issparse(graph):
        rows = sparse.csr_array(graph)
        rows.data = _checked_numbers(rows.data, "graph")
        _require_starts(rows.indptr, rows.indices)
        return rows
    form = "dense array" if place_of(graph) == HOST else str(graph.layout)
    if form not in ("torch.sparse_csr", "torch.sparse_csc", "torch.sparse_coo"):
        raise TypeError(
            f"graph must be a SciPy sparse array, or a CSR, CSC or COO tensor, got {form}; convert "
            "it, or index it if it is dense, graph[samples][:, samples]"
        )
    with isolated(place_of(graph)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
        rows = graph.detach().to_sparse_csr()
        _require_starts(rows.crow_indices(), rows.col_indices())
        weights = _checked_numbers(rows.values(), "graph")
        return Edges(rows.crow_indices(), rows.col_indices(), weights)


def row_count(rows: GraphRows) -> int:
    """Return the number of samples N of a graph."""
    return len(rows.starts) - 1 if isinstance(rows, Edges) else int(rows.shape[0])


def restricted(rows: GraphRows, samples: ArrayLike) -> Any:
    """Return the graph of some samples from the rows of that of all; see `restrict_graph`."""
    place = place_of(rows.starts) if isinstance(rows, Edges) else HOST
    with isolated(place):
        chosen = to_place(checked_array(samples, "samples"), place)
        _check(chosen, row_count(rows))
        if isinstance(rows, Edges):
            return _restricted_tensor(rows, chosen.long())
        own = rows[chosen]
        require_range(own.indices, row_count(rows), "graph")
        return own[:, chosen]


def between(rows: sparse.csr_array, sources: Array, targets: Array) -> sparse.csr_array:
    """Return the edges from some samples to others, any of which may be there several times."""
    for samples in (sources, targets):
        require_range(samples, row_count(rows), "samples")
    return rows[sources][:, targets]


def _neighbour_rows(graph: tuple[Any, ...]) -> GraphRows:
    indices, weights = (_checked_numbers(part, f"graph[{i}]") for i, part in enumerate(graph))
    if indices.ndim != 2 or weights.shape != indices.shape:
        raise ValueError(
            "graph as a tuple must be two arrays of one shape (N, k), got "
            f"{tuple(indices.shape)} and {tuple(weights.shape)}"
        )
    if place_of(indices) == HOST:
        return neighbour_graph(indices, weights)
    import torch

    count, k = indices.shape
    starts = torch.arange(count + 1, device=indices.device) * k
    return Edges(starts, indices.flatten(), weights.flatten())


def _checked_numbers(value: Any, name: str) -> Array:
    """Return a checked array, in float32 if of half precision, which SciPy cannot index."""
    array = checked_array(value, name)  # which does so for tensors
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _restricted_tensor(rows: Edges, samples: Array) -> Array:
    import torch

    device, order = samples.device, torch.arange(len(samples), device=samples.device)
    starts = rows.starts.long()
    first, counts = starts[samples], starts.diff()[samples]
    sources = order.repeat_interleave(counts)
    entries = torch.arange(len(sources), device=device)
    entries += (first - (counts.cumsum(0) - counts))[sources]
    columns = rows.columns[entries]
    require_range(columns, row_count(rows), "graph")
    position = torch.full((row_count(rows),), -1, device=device)
    position[samples] = order
    targets = position[columns]
    is_kept = targets >= 0
    kept = (sources[is_kept], targets[is_kept], rows.weights[entries[is_kept]])
    return compressed(*kept, len(samples), symmetrize=False).to_tensor()


def _check(samples: Array, count: int) -> None:
    xp = namespace(samples)
    if not xp.isdtype(samples.dtype, "integral"):
        raise TypeError(f"samples must hold integers, got {samples.dtype}; pass indices")
    if samples.ndim != 1:
        raise ValueError(f"samples must have shape (n,), got {tuple(samples.shape)}")
    require_range(samples, count, "samples")
    if len(xp.unique_values(samples)) < len(samples):
        raise ValueError("samples must be distinct, got some twice; pass each once")


def require_range(indices: Array, limit: int, name: str) -> None:
    """Refuse indices of samples that the graph does not have."""
    if len(indices) == 0:
        return
    xp = namespace(indices)
    smallest, largest = xp.stack([xp.min(indices), xp.max(indices)]).tolist()
    if smallest < 0 or largest >= limit:
        raise ValueError(
            f"{name} must hold indices from 0 to {limit - 1}, rows of the graph of all samples, "
            f"got {smallest} to {largest}"
        )


def _require_starts(starts: Array, columns: Array) -> None:
    xp = namespace(starts)
    rises = starts[0] == 0 and starts[-1] == len(columns) and xp.all(starts[1:] >= starts[:-1])
    if not rises:
        raise ValueError(
            "graph must be a well-formed sparse array or tensor, got starts of its rows that do "
            f"not rise from 0 to its {len(columns)} entries"
        )
