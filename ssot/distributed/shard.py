"""The semantic graph on several ranks: each holds its rows, and fetches those of its neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from ssot.adjacency import GraphLike, Shard, directed_rows, listed_edges
from ssot.arrays import HOST, Array, is_single, place_of, to_place
from ssot.distributed.ranks import GroupRanks

Indices = NDArray[np.int64]


def shard_of(graph: GraphLike, cost: Array, ranks: GroupRanks) -> Shard:
    """Return this rank's rows of ``W = (S + S^T) / 2``, given its rows of S.

    Samples are numbered through the ranks in their order. Each half of an edge goes to the rank of
    its end.
    """
    _, heights = ranks.share(lambda: (None, len(cost)))
    bounds = np.cumsum([0, *heights])
    directed, _ = ranks.share(lambda: (_rows(graph, cost, bounds[-1]), None))
    first, last = bounds[ranks.rank], bounds[ranks.rank + 1]
    half = directed.tocoo()
    sources, targets = first + half.row.astype(np.int64), half.col.astype(np.int64)
    weights = 0.5 * half.data
    order = np.argsort(targets, kind="stable")
    cuts = np.searchsorted(targets[order], bounds)
    ends, starts, mirrored = (
        np.concatenate(ranks.exchange([column[order][i:j] for i, j in pairwise(cuts)]))
        for column in (targets, sources, weights)
    )
    rows = np.append(half.row, ends - first)
    columns, values = np.append(targets, starts), np.append(weights, mirrored)
    is_own = (first <= columns) & (columns < last)
    others = np.unique(columns[~is_own])
    height = int(last - first)
    positions = np.where(is_own, columns - first, height + np.searchsorted(others, columns))
    shape = (height, height + len(others))
    w = sparse.coo_array((values, (rows, positions)), shape=shape).tocsr()
    w = w.astype(np.float32 if is_single(cost) else np.float64)
    cuts = np.searchsorted(others, bounds)
    wanted = ranks.exchange([others[i:j] for i, j in pairwise(cuts)])
    return Shard(
        rows=w,
        fetch=_Fetch(ranks, [ids - first for ids in wanted], np.diff(cuts)),
        **_whole(w, bounds[-1], ranks),
    )


def _rows(graph: GraphLike, cost: Array, samples: int) -> sparse.csr_array:
    if place_of(graph).library == "torch":
        edges = listed_edges(graph, len(cost), samples)
        sources, targets, weights = (to_place(part, HOST) for part in edges)
        graph = sparse.coo_array((weights, (sources, targets)), shape=(len(cost), samples))
    elif isinstance(graph, tuple):
        graph = tuple(to_place(part, HOST) for part in graph)
    return directed_rows(graph, cost, samples)


def _whole(w: sparse.csr_array, samples: int, ranks: GroupRanks) -> dict[str, Any]:
    """Return what the rows of all ranks come to."""
    sums, absolute = w.sum(axis=1, dtype=np.float64), abs(w).sum(axis=1, dtype=np.float64)
    own = (float(sums.sum()), absolute.max(initial=0.0), abs(w.data).max(initial=0.0))
    _, found = ranks.share(lambda: (None, own))
    total, largest, strongest = zip(*found, strict=True)
    return {
        "row_sums": (sum(total) / samples, float(max(largest))),
        "largest_weight": float(max(strongest)),
    }


@dataclass(frozen=True, eq=False)
class _Fetch:
    """Sends rows that other ranks have asked for, and receives those that this one has.

    Attributes
    ----------
    wanted : list of arrays
        For each rank, which of this one's rows it needs.
    counts : (ranks,) array
        How many rows this one needs of each.
    """

    ranks: GroupRanks
    wanted: list[Indices]
    counts: Indices

    def __call__(self, matrix: Array) -> Array:
        place = place_of(matrix)
        rows = torch.from_numpy(np.concatenate(self.wanted)).to(place.device or "cpu")
        sent = to_place(matrix, place._replace(library="torch"))[rows].to(self.ranks.device)
        received = sent.new_empty(int(self.counts.sum()), matrix.shape[1])
        self.ranks.swap(sent, [len(ids) for ids in self.wanted], received, self.counts.tolist())
        return to_place(received.to(place.device or "cpu"), place)
