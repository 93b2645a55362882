"""Softmax of the rows of several problems, by blocks, on any device."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssot.arrays import Vector
from ssot.kernels.protocol import Bound

CACHED_BLOCK = 1 << 18
"""Entries in a block of rows on the CPU: what stays in the last cache, as calls are dear too."""

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
        masses = self.masses.sum(dim=1).double()
        others = torch.stack([self.slack.sum(dim=1), self.log_partition.sum(dim=1)], dim=1)
        return torch.cat([masses, others], dim=1)


class Batch:
    """Problems of one shape, with the prices and the epsilon at which their rows are wanted."""

    def __init__(
        self,
        bounds: Sequence[Bound],
        products: Sequence[Tensor | None],
        prices: Tensor,
        epsilon: Tensor,
    ) -> None:
        self.bounds = bounds
        self.products = products
        self.prices = prices
        self.epsilon = epsilon
        self.costs = [bound.cost for bound in bounds]
        self.samples, self.classes = self.costs[0].shape

    @classmethod
    def at(
        cls,
        bounds: Sequence[Bound],
        products: Sequence[Tensor | None],
        prices: Sequence[Vector],
        epsilons: Sequence[float],
    ) -> Batch:
        """Return the batch at prices and epsilons from the host."""
        numbers = to_device(np.column_stack([np.stack(prices), epsilons]), bounds[0].cost.device)
        return cls(bounds, products, numbers[:, :-1].contiguous(), numbers[:, -1:].contiguous())

    def sample(self, every: int) -> Batch:
        """Return the batch of each `every`-th row of all problems."""
        if every == 1:
            return self
        pairs = zip(self.bounds, self.products, strict=True)
        bounds, products = zip(*(sampled(*pair, every) for pair in pairs), strict=True)
        return Batch(bounds, products, self.prices, self.epsilon)

    def blocks(self) -> Iterator[Block]:
        """Yield all rows in blocks; the next overwrites the arrays of the last."""
        height = block_height(self.costs[0], len(self.bounds))
        shape = (len(self.bounds), min(height, self.samples), self.classes)
        exponents = self.prices.new_empty(shape)
        is_double = self.costs[0].dtype == exponents.dtype
        scaled = exponents if is_double else self.costs[0].new_empty(shape)
        for rows in _slices(self.samples, height):
            size = rows.stop - rows.start
            yield self._block(rows, exponents[:, :size], scaled[:, :size])

    def _block(self, rows: slice, exponents: Tensor, scaled: Tensor) -> Block:
        self._form_exponents(rows, exponents)
        virtual_price = self.prices[:, -1:]
        offset = torch.maximum(exponents.amax(dim=2), virtual_price)
        offset.masked_fill_(offset == -math.inf, 0.0)  # no open column: only rows without weight
        scale = math.log2(math.e) / self.epsilon  # powers of 2 are several times as fast
        exponents.sub_(offset[..., None]).mul_(scale[..., None])
        if scaled.dtype != exponents.dtype:
            scaled.copy_(exponents)
        # Powers below the smallest normal number are 0: arithmetic with such is slow.
        torch.threshold_(scaled, math.log2(torch.finfo(scaled.dtype).tiny), -math.inf).exp2_()
        virtual = torch.exp2((virtual_price - offset) * scale)
        total = scaled.sum(dim=2).double().add_(virtual)
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

    def _form_exponents(self, rows: slice, out: Tensor) -> None:
        """Write ``prices - (C - shift - pull G)`` of the classes, in float64.

        So a float32 problem loses accuracy only in its exponential.
        """
        for part, bound in zip(out, self.bounds, strict=True):
            part.copy_(bound.cost[rows])
            if bound.shift:
                part.sub_(bound.shift)
        torch.sub(self.prices[:, None, :-1], out, out=out)
        for part, product, bound in zip(out, self.products, self.bounds, strict=True):
            if product is not None:
                part.add_(product[rows], alpha=2.0 * bound.semantic_weight)


def sampled(bound: Bound, product: Tensor | None, every: int) -> tuple[Bound, Tensor | None]:
    """Return each `every`-th row of a problem, with the weights that they have."""
    rows = bound._replace(
        cost=bound.cost[::every].contiguous(),
        sample_weight=bound.sample_weight[::every].contiguous(),
        graph=None,
    )
    return rows, None if product is None else product[::every].contiguous()


def roots(masses: Tensor, slack: Tensor, weight: Tensor) -> Tensor:
    """Return X with ``X^T X = P^T diag(alpha) P``, (A, h, K + 1) in float64, of rows of plans."""
    problems, height, classes = masses.shape
    x = weight.new_empty(problems, height, classes + 1)
    x[..., :-1] = masses
    x[..., -1] = slack
    return x.mul_(weight.rsqrt().nan_to_num_(posinf=0.0)[..., None])


def to_device(numbers: NDArray[np.float64], device: torch.device) -> Tensor:
    """Return numbers on a device, without waiting for it: from memory that it reads by itself."""
    tensor = torch.from_numpy(numbers)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def block_height(matrix: Tensor, problems: int = 1) -> int:
    """Return how many rows of a matrix, or of as many as there are problems, make a block."""
    entries = CACHED_BLOCK if matrix.device.type == "cpu" else LARGEST_BLOCK
    return max(SMALLEST_BLOCK_HEIGHT, entries // (matrix.shape[1] * problems))


def row_blocks(matrix: Tensor) -> Iterator[slice]:
    """Yield the rows of a matrix in blocks."""
    return _slices(len(matrix), block_height(matrix))


def _slices(samples: int, height: int) -> Iterator[slice]:
    """Yield slices of so many rows, or fewer at the end: a single empty one of no rows."""
    starts = range(0, max(samples, 1), height)
    return (slice(start, min(start + height, samples)) for start in starts)
