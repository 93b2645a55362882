"""The Torch backend: any device, and many problems in one call.

Sums and exponents are formed in float64. That is what every accuracy here rests on, and no setting
for faster float32 products (TF32, bfloat16) applies to it. Results come to the host in one transfer
for each call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from ssot.adjacency import Edges
from ssot.arrays import HOST, isolated, place_of, to_place
from ssot.curvature import (
    LARGEST_DENSE,
    LARGEST_TAIL,
    Coupling,
    DenseCoupling,
    SolvedCoupling,
    SparseCoupling,
    System,
)
from ssot.kernels.directions import newton_directions
from ssot.kernels.numpy import SPREAD_SAMPLE, spread_of_rows
from ssot.kernels.protocol import Bound, Plan, PlanSums, RowSums, Vector

Pass: TypeAlias = tuple[Tensor | None, Vector, float]
"""Product with the graph, prices and epsilon: what a pass over the rows is given."""

BLOCK_ENTRIES = {"cpu": 1 << 17}
"""Entries in a block of rows on a device: on the CPU, what stays in cache."""

LARGEST_BLOCK = 1 << 25
"""Entries in a block of rows on other devices, which hide the cost of a call in large blocks."""

CURVATURE_ROWS = 1 << 14
"""Rows that the curvature is formed from on other devices than the CPU, at least."""

CURVATURE_ROWS_PER_COLUMN = 32
"""Rows for each column that it is formed from, at least."""


class TorchKernel:
    """The N x K operations of one problem in Torch; `together` does those of several at once."""

    name = "torch"

    def __init__(self, bound: Bound) -> None:
        self.place = place_of(bound.cost)
        self.resolution = float(torch.finfo(bound.cost.dtype).eps)
        self.samples = len(bound.cost)
        self.shift = bound.shift
        self.bound = bound
        self.pull = 2.0 * bound.semantic_weight

    @classmethod
    def together(
        cls, operation: str, kernels: Sequence[Self], arguments: Sequence[tuple[Any, ...]]
    ) -> Sequence[Any]:
        """Work on all problems in the same calls of Torch."""
        return TOGETHER[operation](kernels, *map(list, zip(*arguments, strict=True)))

    def row_pass(
        self, product: Tensor | None, prices: Vector, epsilon: float, system: System
    ) -> tuple[RowSums, Coupling]:
        return _row_passes([self], [product], [prices], [epsilon], [system])[0]

    def plan(
        self, product: Tensor | None, prices: Vector, epsilon: float, out: Plan | None
    ) -> tuple[Plan, RowSums]:
        return _plans([self], [product], [prices], [epsilon], [out])[0]

    def measure(self, plan: Plan, product: Tensor | None) -> PlanSums:
        return _measures([self], [plan], [product])[0]

    def replace_product(self, product: Tensor, old: Tensor, new: Tensor) -> float:
        return _replace_products([self], [product], [old], [new])[0]

    def graph_product(self, matrix: Tensor, out: Tensor | None) -> Tensor:
        product = torch.empty_like(matrix) if out is None else out
        for rows in _row_blocks(matrix):
            product[rows] = self.product_rows(matrix, rows)
        return product

    def interpolate(self, old: Plan, new: Plan, step: float) -> None:
        for start, end in zip(old, new, strict=True):
            torch.lerp(start, end, step, out=end)

    def sample(self, product: Tensor | None, every: int) -> tuple[Self, Tensor | None]:
        weight = self.bound.sample_weight[::every]
        if not weight.any():
            weight = torch.ones_like(weight)
        sampled = self.bound._replace(
            cost=self.bound.cost[::every].contiguous(),
            sample_weight=weight / weight.sum(),
            graph=None,
        )
        return type(self)(sampled), None if product is None else product[::every].contiguous()

    def typical_spread(self, product: Tensor | None) -> float:
        every = max(1, self.samples // SPREAD_SAMPLE)
        sample = self.bound.cost[::every].double()
        if product is not None:
            sample = sample - self.pull * product[::every]
        return spread_of_rows(sample.cpu().numpy())

    def product_rows(self, matrix: Tensor, rows: slice) -> Tensor:
        """Return rows of the product of the graph with a matrix, of which they are sums."""
        edges = self._edges
        starts = edges.starts[rows.start : rows.stop + 1]
        first, last = self._first_edges[rows.start], self._first_edges[rows.stop]
        return torch.nn.functional.embedding_bag(
            edges.columns[first:last],
            matrix,
            starts - first,
            mode="sum",
            per_sample_weights=edges.weights[first:last],
            include_last_offset=True,
        )

    @property
    def _edges(self) -> Edges:
        if not isinstance(self.bound.graph, Edges):
            raise ValueError("a product with the graph needs a problem with a graph")
        return self.bound.graph

    @cached_property
    def _first_edges(self) -> list[int]:
        """Where the edges of each row begin, on the host."""
        first: list[int] = self._edges.starts.tolist()
        return first


class _Block(NamedTuple):
    """A block of rows of A problems, of which ``masses`` are rows of their plans.

    Mass of each class (A, h, K) in the dtype of the cost, and of the virtual cluster (A, h); the
    weights (A, h); and ``offset + epsilon logsumexp`` of each row (A, h).
    """

    rows: slice
    masses: Tensor
    virtual: Tensor
    weight: Tensor
    log_partition: Tensor


class _Batch:
    """What a pass over the rows of A problems of one shape needs, on their device."""

    def __init__(
        self,
        kernels: Sequence[TorchKernel],
        products: Sequence[Tensor | None],
        prices: Sequence[Vector],
        epsilons: Sequence[float],
    ) -> None:
        self.kernels = kernels
        self.products = products
        self.costs = [kernel.bound.cost for kernel in kernels]
        self.weights = [kernel.bound.sample_weight for kernel in kernels]
        shifts = [kernel.shift for kernel in kernels]
        given = np.column_stack([np.stack(prices), epsilons, shifts])
        moved = to_place(given, kernels[0].place)
        self.prices, self.epsilon, self.shift = moved[:, :-2], moved[:, -2:-1], moved[:, -1:]
        self.device = moved.device

    def blocks(self) -> Iterator[_Block]:
        """Yield all rows in blocks; the next one overwrites the arrays of the last."""
        heights = range(0, len(self.costs[0]), _block_height(self.costs[0], len(self.costs)))
        work = None
        for rows in _row_blocks(self.costs[0], len(self.costs)):
            work = self._exponents(rows, work)
            yield self._block(rows, work)

    def block(self, rows: slice) -> _Block:
        ...
