"""Softmax of the rows of several problems, by blocks, on any device."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssot.arrays import place_of, to_place
from ssot.kernels.protocol import Bound, Vector

CACHED_BLOCK = 1 << 17
"""Entries in a block of rows on the CPU: what stays in cache."""

LARGEST_BLOCK = 1 << 25
"""Entries in a block of rows elsewhere, where every call is dear."""

SMALLEST_BLOCK_HEIGHT = 128
"""Fewest rows in a block, whatever K."""


class Block(NamedTuple):
    """Rows of the plans of A problems.

    Attributes
    ----------
    rows : slice
        Which rows.
    masses : (A, h, K) tensor
        Masses given to the classes, in the dtype of the cost.
    slack : (A, h) tensor
        Masses left in the virtual cluster.
    weight : (A, h) tensor
        Sample weights, which the masses of a row add up to.
    log_partition : (A, h) tensor
        ``epsilon alpha_i logsumexp_j((prices_j - [C, 0]_ij) / epsilon)``.
    """

    rows: slice
    masses: Tensor
    slack: Tensor
    weight: Tensor
    log_partition: Tensor

    def sums(self) -> Tensor:
        """Return column masses and log-partition, (A, K + 2)."""
        masses = self.masses.sum(dim=1, dtype=torch.float64)
        others = torch.stack([self.slack.sum(dim=1), self.log_partition.sum(dim=1)], dim=1)
        return torch.cat([masses, others], dim=1)

    def roots(self) -> Tensor:
        """Return X with ``X^T X = P^T diag(alpha) P``, (A, h, K + 1) in float64."""
        masses = torch.cat([self.masses.double(), self.slack[..., None]], dim=2)
        root = self.weight.rsqrt().nan_to_num_(posinf=0.0)
        return masses.mul_(root[..., None])


class Batch:
    """Problems of one shape, with the prices and the epsilon at which their rows are wanted."""

    def __init__(
        self,
        bounds: Sequence[Bound],
        products: Sequence[Tensor | None],
        prices: Sequence[Vector],
        epsilons: Sequence[float],
    ) -> None:
        self.bounds = bounds
        self.products = products
        self.costs = [bound.cost for bound in bounds]
        self.samples, self.classes = self.costs[0].shape
        shifts = [bound.shift for bound in bounds]
        numbers = np.column_stack([np.stack(prices), shifts, epsilons])
        given = to_place(numbers, place_of(self.costs[0]))
        self.prices, self.shift, self.epsilon = given[:, :-2], given[:, -2:-1], given[:, -1:]
        self._height = min(block_height(self.costs[0], len(bounds)), self.samples)
        shape = (len(bounds), self._height, self.classes)
        self._exponents = given.new_empty(shape)
        is_double = self.costs[0].dtype == torch.float64
        self._scaled = self._exponents if is_double else self.costs[0].new_empty(shape)

    def blocks(self, every: int = 1) -> Iterator[Block]:
        """Yield each `every`-th row in blocks; the next overwrites the arrays of the last."""
        for start in range(0, self.samples, every * self._height):
            end = min(start + every * self._height, self.samples)
            yield self._block(slice(start, end, every))

    def _block(self, rows: slice) -> Block:
        exponents = self._exponents_of(rows)
        virtual_price = self.prices[:, -1:]
        offset = torch.maximum(exponents.amax(dim=2), virtual_price)
        offset.masked_fill_(offset == -math.inf, 0.0)  # no open column: only rows without weight
        exponents.sub_(offset[..., None]).div_(self.epsilon[..., None])
        scaled = self._scaled[:, : exponents.shape[1]]
        if scaled.dtype != exponents.dtype:
            scaled.copy_(exponents)
        scaled.exp_()
        virtual = torch.exp((virtual_price - offset) / self.epsilon)
        total = scaled.sum(dim=2, dtype=torch.float64).add_(virtual)
        total.masked_fill_(total == 0.0, 1.0)
        weight = torch.stack([bound.sample_weight[rows] for bound in self.bounds])
        share = weight / total
        return Block(
            rows=rows,
            masses=scaled.mul_(share.to(scaled.dtype)[..., None]),
            slack=share * virtual,
            weight=weight,
            log_partition=weight * (offset + self.epsilon * total.log()),
        )

    def _exponents_of(self, rows: slice) -> Tensor:
        """Return ``prices - (C - shift - pull G)`` of the classes, in float64.

        So a float32 problem loses accuracy only in its exponential.
        """
        exponents: Tensor = self._exponents[:, : len(range(*rows.indices(self.samples)))]
        for out, cost, shift in zip(exponents, self.costs, self.shift, strict=True):
            torch.sub(shift, cost[rows], out=out)
        exponents.add_(self.prices[:, None, :-1])
        for out, product, bound in zip(exponents, self.products, self.bounds, strict=True):
            if product is not None:
                out.add_(product[rows], alpha=2.0 * bound.semantic_weight)
        return exponents


def block_height(matrix: Tensor, problems: int = 1) -> int:
    """Return how many rows of a matrix, or of as many as there are problems, make a block."""
    entries = CACHED_BLOCK if matrix.device.type == "cpu" else LARGEST_BLOCK
    return max(SMALLEST_BLOCK_HEIGHT, entries // (matrix.shape[1] * problems))


def row_blocks(matrix: Tensor) -> Iterator[slice]:
    """Yield the rows of a matrix in blocks."""
    height = block_height(matrix)
    return (slice(i, min(i + height, len(matrix))) for i in range(0, len(matrix), height))
