"""The semantic graph: every accepted form of it in, one sparse symmetric form out."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ssot.arrays import (
    HOST,
    Array,
    Place,
    checked_array,
    is_single,
    largest_magnitude,
    namespace,
    place_of,
    to_numpy,
    to_place,
)
from ssot.ranks import Ranks

GraphLike: TypeAlias = Any
"""A sparse or dense N x N array or tensor, or a pair (neighbour indices, weights)."""


class Edges(NamedTuple):
    """The rows of a sparse matrix, as Torch tensors on one device.

    Attributes
    ----------
    starts : (N + 1,) tensor
        Where each row begins in the other two, and where the last one ends.
    columns : (E,) tensor
        As `starts`, of int32 wherever that suffices.
    weights : (E,) tensor
    """

    starts: Array
    columns: Array
    weights: Array

    @classmethod
    def of(cls, w: sparse.csr_array, place: Place) -> Edges:
        """Return the rows of a SciPy array."""
        return cls(*(to_place(part, place) for part in (w.indptr, w.indices, w.data)))

    def to_scipy(self) -> sparse.csr_array:
        """Return the matrix as a SciPy array, sharing memory where it can."""
        starts, columns, weights = (to_place(part, HOST) for part in self)
        samples = len(starts) - 1
        return sparse.csr_array((weights, columns, starts), shape=(samples, samples))

    def to_tensor(self) -> Array:
        """Return the matrix as a sparse CSR tensor, sharing memory."""
        import torch

        shape = (len(self.starts) - 1,) * 2
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
            return torch.sparse_csr_tensor(
                *self, shape, device=self.weights.device, check_invariants=False
            )


class Shard(NamedTuple):
    """The rows of W that one of several ranks holds.

    Attributes
    ----------
    rows : (n, n + m) csr_array
        W between this rank's n samples and, in the last columns, the m of other ranks that they
        have for neighbours.
    fetch : callable
        Returns the rows of those m samples, (m, K), given those of this rank's n, (n, K).
    row_sums : tuple of float
        `row_sums` of the whole graph.
    largest_weight : float
        Magnitude of the strongest edge of the whole graph.
    """

    rows: sparse.csr_array
    fetch: Callable[[Array], Array]
    row_sums: tuple[float, float]
    largest_weight: float


GraphRows: TypeAlias = sparse.csr_array | Edges
"""A graph where the cost lives: a SciPy array for NumPy's, edges for tensors."""

SymmetricGraph: TypeAlias = GraphRows | Shard
"""``W = (S + S^T) / 2``, whole or spread over several ranks."""


class Prepared(NamedTuple):
    """The graph of another problem of the same samples, checked and symmetric."""

    w: SymmetricGraph


def symmetric_graph(graph: GraphLike, cost: Array, ranks: Ranks) -> SymmetricGraph:
    """Return ``W = (S + S^T) / 2`` in the place and dtype of the cost, from any accepted form."""
    if isinstance(graph, Prepared):
        return graph.w
    if ranks.size > 1:
        from ssot.distributed import GroupRanks, shard_of

        return shard_of(graph, cost, cast(GroupRanks, ranks))
    place = place_of(cost)
    if place_of(graph[0] if isinstance(graph, tuple) and graph else graph).library == "torch":
        return _symmetric_edges(graph, cost)
    w = _symmetric_array(graph, cost)
    return graph_in(w, place)


def graph_in(w: SymmetricGraph, place: Place) -> Any:
    """Return a graph in another place: a SciPy array on the host, else edges; sharing memory."""
    if isinstance(w, Shard):
        w = w.rows
    if place == HOST:
        return w.to_scipy() if isinstance(w, Edges) else w
    return w if isinstance(w, Edges) else Edges.of(w, place)


def largest_weight(w: SymmetricGraph) -> float:
    """Return the magnitude of the strongest edge of a graph, 0 without edges."""
    if isinstance(w, Shard):
        return w.largest_weight
    weights = w.weights if isinstance(w, Edges) else w.data
    return float(abs(weights).max()) if len(weights) else 0.0


def row_sums(w: SymmetricGraph) -> tuple[float, float]:
    """Return the mean row sum of a graph, and the largest of the absolute values of its entries."""
    if isinstance(w, Shard):
        return w.row_sums
    if not isinstance(w, Edges):
        sums, absolute = (part.sum(axis=1, dtype=np.float64) for part in (w, abs(w)))
        return float(sums.mean()), float(absolute.max())
    import torch

    running = w.weights.new_zeros(len(w.weights) + 1, dtype=torch.float64)
    running[1:] = w.weights.abs().cumsum(0, dtype=running.dtype)
    absolute = running[w.starts].diff()
    total, largest = torch.stack([w.weights.sum(dtype=running.dtype), absolute.max()]).tolist()
    return total / len(absolute), largest


def _symmetric_array(graph: GraphLike, cost: Array) -> sparse.csr_array:
    directed = directed_rows(graph, cost, len(cost))
    dtype = np.float32 if is_single(cost) else np.float64
    w = ((directed + directed.T) * 0.5).tocsr().astype(dtype)
    w.sum_duplicates()
    return w


def directed_rows(graph: GraphLike, cost: Array, samples: int) -> sparse.csr_array:
    """Return the rows of S for those of a cost, with a column for each of all samples."""
    if isinstance(graph, tuple):
        graph = neighbour_graph(*_neighbours(graph, len(cost), samples), samples)
    if not sparse.issparse(graph):
        graph = to_numpy(graph, "graph")
    elif hasattr(graph, "check_format"):
        try:
            type(graph)(graph).check_format(full_check=True)  # which trims its own arrays
        except ValueError as error:
            raise ValueError(f"graph must be a well-formed sparse array: {error}") from error
    _require_shape(graph, len(cost), samples)
    if graph.dtype.kind not in "iufb":
        raise TypeError(f"graph must hold real numbers, got dtype {graph.dtype}; pass graph.real")
    directed = sparse.csr_array(graph, dtype=np.float64)
    _require_weights(directed.data, cost)
    return directed


def _symmetric_edges(graph: GraphLike, cost: Array) -> Edges:
    import torch

    samples = len(cost)
    if isinstance(graph, tuple):
        indices, weights = _neighbours(graph, samples, samples)
        sources = torch.arange(samples, device=indices.device).repeat_interleave(indices.shape[1])
        targets, weights = indices.flatten().long(), weights.flatten()
    else:
        sources, targets, weights = listed_edges(graph, samples, samples)
    weights = weights.double()
    _require_weights(weights, cost)
    w = compressed(sources, targets, weights, samples, symmetrize=True)
    is_small = max(len(w.columns), samples) <= torch.iinfo(torch.int32).max
    index = torch.int32 if is_small else torch.int64
    return Edges(w.starts.to(index), w.columns.to(index), w.weights.to(cost.dtype))


def listed_edges(graph: Array, rows: int, samples: int) -> tuple[Array, Array, Array]:
    """Return sources, targets and weights of the edges in a sparse or dense (rows, N) tensor."""
    _require_shape(graph, rows, samples)
    _require_starts(graph)
    entries = graph.detach().to_sparse_coo().coalesce()
    if entries.sparse_dim() != 2:
        raise ValueError(
            f"graph must have two sparse dimensions, got {entries.sparse_dim()}; "
            "pass graph.to_dense()"
        )
    _require_indices(entries.indices(), samples, "graph")
    sources, targets = entries.indices()
    return sources, targets, checked_array(entries.values(), "graph")


def compressed(
    sources: Array, targets: Array, weights: Array, samples: int, *, symmetrize: bool
) -> Edges:
    """Return the rows of a graph of listed edges, sorted and with equal pairs added up.

    Symmetrised, it is the average of the graph and its transpose.
    """
    import torch

    ends = torch.stack([sources, targets])
    if symmetrize:
        ends, weights = torch.cat([ends, ends.flip(0)], dim=1), 0.5 * weights.repeat(2)
    # The device is named because Torch's default one would be taken otherwise.
    graph = torch.sparse_coo_tensor(
        ends, weights, (samples, samples), device=ends.device, check_invariants=False
    ).coalesce()
    rows, columns = graph.indices()
    starts = torch.searchsorted(rows.contiguous(), torch.arange(samples + 1, device=rows.device))
    return Edges(starts, columns.contiguous(), graph.values())


def _require_shape(graph: Any, rows: int, samples: int) -> None:
    if tuple(graph.shape) != (rows, samples):
        kind = "(N, N)" if rows == samples else "(rows of this rank, samples of all)"
        raise ValueError(
            f"graph must have shape {kind} = {(rows, samples)} to match the cost, "
            f"got {tuple(graph.shape)}; restrict it to the samples at hand, graph[ids][:, ids], or "
            "pass neighbours as a tuple (indices, weights)"
        )


def _require_starts(graph: Any) -> None:
    """Refuse a compressed sparse tensor whose rows do not share out its entries: Torch reads on."""
    import torch

    if graph.layout in (torch.strided, torch.sparse_coo):
        return
    by_rows = graph.layout in (torch.sparse_csr, torch.sparse_bsr)
    starts, entries = graph.crow_indices() if by_rows else graph.ccol_indices(), graph.values()
    block = 1 if entries.ndim == 1 else entries.shape[1 if by_rows else 2]
    is_whole = len(starts) == len(graph) // block + 1 and starts[0] == 0
    if not (is_whole and starts[-1] == len(entries) and (starts.diff() >= 0).all()):
        raise ValueError(
            f"graph must be a well-formed sparse tensor, got starts of its "
            f"{'rows' if by_rows else 'columns'} that do not rise from 0 to its "
            f"{len(entries)} entries; pass check_invariants=True where it is made"
        )


def _require_indices(indices: Array, samples: int, name: str) -> None:
    if 0 in indices.shape:
        return
    xp = namespace(indices)
    smallest, largest = int(xp.min(indices)), int(xp.max(indices))
    if smallest < 0 or largest >= samples:
        raise ValueError(
            f"{name} must hold indices from 0 to {samples - 1}, got {smallest} to {largest}; "
            "indices count rows of the cost, not rows of a larger data set"
        )


def _require_weights(weights: Array, cost: Array) -> None:
    xp = namespace(weights)
    if not xp.all(xp.isfinite(weights)):
        raise ValueError("graph must have finite weights, got NaN or inf; remove those edges")
    limit = largest_magnitude(cost)
    if len(weights) and float(xp.max(xp.abs(weights))) > limit:
        raise ValueError(
            f"graph has weights above {limit:.0e}, where sums of {cost.dtype} overflow; "
            "divide graph by a factor and multiply semantic_weight by it"
        )


def _neighbours(graph: tuple[Any, ...], rows: int, samples: int) -> tuple[Array, Array]:
    if len(graph) != 2:
        raise ValueError(
            f"graph as a tuple must be (indices, weights), got a tuple of length {len(graph)}"
        )
    indices, weights = (checked_array(part, f"graph[{i}]") for i, part in enumerate(graph))
    xp = namespace(indices)
    if not xp.isdtype(indices.dtype, "integral"):
        raise TypeError(
            f"graph[0] must hold integer neighbour indices, got {indices.dtype}; convert it"
        )
    if indices.ndim != 2 or len(indices) != rows or weights.shape != indices.shape:
        raise ValueError(
            f"graph must be two arrays of one shape (N, k) with N = {rows}, "
            f"got {tuple(indices.shape)} and {tuple(weights.shape)}"
        )
    _require_indices(indices, samples, "graph[0]")
    return indices, weights


def neighbour_graph(
    indices: NDArray[Any], weights: NDArray[Any], samples: int | None = None
) -> sparse.csr_array:
    """Return the directed graph of each sample's neighbours and their weights, both (N, k).

    `samples` tells how many there are where the rows are but some of them. Indices have 32 bits
    wherever these suffice, as other libraries want them.
    """
    rows, neighbours = indices.shape
    samples = rows if samples is None else samples
    index = np.int32 if max(samples, weights.size) <= np.iinfo(np.int32).max else np.int64
    starts = (np.arange(rows + 1) * neighbours).astype(index)
    entries = (weights.ravel(), indices.ravel().astype(index, copy=False), starts)
    return sparse.csr_array(entries, shape=(rows, samples))
