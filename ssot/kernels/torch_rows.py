"""Softmax of the rows of several problems, by blocks, on any device."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssot.arrays import Vector
from ssot.kernels.numpy import LOWEST
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
        The rows' terms of it, see `RowSums`.
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
        self.without_entropy = _without_entropy(bounds)
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
        if self.without_entropy is not None:  # it only says up to which level rows are not full
            virtual_price = virtual_price.masked_fill(self.without_entropy, -math.inf)
        offset = torch.maximum(exponents.amax(dim=2), virtual_price).clamp_(min=LOWEST)
        scale = math.log2(math.e) / self.epsilon  # powers of 2 are several times as fast
        exponents.sub_(offset[..., None]).mul_(scale[..., None])
        if scaled.dtype != exponents.dtype:
            scaled.copy_(exponents)
        # Powers below the smallest normal number are 0: arithmetic with such is slow.
        torch.threshold_(scaled, math.log2(torch.finfo(scaled.dtype).tiny), -math.inf).exp2_()
        virtual = torch.exp2((virtual_price - offset) * scale)
        total = scaled.sum(dim=2).double().add_(virtual)
        total.masked_fill_(total == 0.0, 1.0)  # no open class
        weight = torch.stack([bound.sample_weight[rows] for bound in self.bounds])
        share, level = weight / total, offset + self.epsilon * total.log()
        slack = share * virtual
        if self.without_entropy is not None:
            brim = self.prices[:, -1:] + self.epsilon * weight.log()
            top = torch.maximum(level, brim.masked_fill_(~self.without_entropy, -math.inf))
            log_filled = (level - top) / self.epsilon
            share = share * log_filled.exp()
            room = log_filled.expm1().neg_()
            slack.addcmul_(weight, room)
            level = top - self.epsilon * room
        return Block(
            rows=rows,
            masses=scaled.mul_(share.to(scaled.dtype)[..., None]),
            slack=slack,
            weight=weight,
            log_partition=weight * level,
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


def coupled_weight(
    slack: Tensor, weight: Tensor, without_entropy: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return the weights of rows whose classes are coupled, and which rows are loose instead.

    Those are the rows with room where the slack has no entropy, None if it has one in all problems.
    """
    if without_entropy is None:
        return weight, None
    is_loose = (slack > 0) & without_entropy
    return weight.masked_fill(is_loose, 0.0), is_loose


def loose_mass(masses: Tensor, slack: Tensor, is_loose: Tensor) -> Tensor:
    """Return the column masses of the loose rows, (A, K + 1)."""
    classes = masses.mul(is_loose[..., None]).sum(dim=1).double()
    return torch.cat([classes, slack.mul(is_loose).sum(dim=1, keepdim=True)], dim=1)


def add_overlap(
    overlap: Tensor,
    masses: Tensor,
    slack: Tensor,
    weight: Tensor,
    without_entropy: Tensor | None,
) -> None:
    """Add the coupling of rows of plans, ``P^T diag(alpha) P``, of which the diagonal is free."""
    coupled, is_loose = coupled_weight(slack, weight, without_entropy)
    problems, height, classes = masses.shape
    x = weight.new_empty(problems, height, classes + 1)
    x[..., :-1] = masses
    x[..., -1] = slack
    x.mul_(coupled.rsqrt().nan_to_num_(posinf=0.0)[..., None])
    overlap.baddbmm_(x.mT, x)
    if is_loose is not None:
        edges = loose_mass(masses, slack, is_loose)[:, :-1]
        overlap[:, :-1, -1] += edges
        overlap[:, -1, :-1] += edges


def _without_entropy(bounds: Sequence[Bound]) -> Tensor | None:
    """Return in which problems the slack has no entropy, (A, 1); None for in none."""
    if all(bound.slack_entropy for bound in bounds):
        return None
    flags = np.array([[not bound.slack_entropy] for bound in bounds])
    return to_device(flags, bounds[0].cost.device)


def to_device(numbers: NDArray[Any], device: torch.device) -> Tensor:
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
