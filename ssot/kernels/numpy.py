"""The NumPy backend: blocks of rows that stay in cache, float64 or float32."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import xlogy

from ssot.arrays import HOST, Vector
from ssot.curvature import (
    LARGEST_DENSE,
    Coupling,
    DenseCoupling,
    SparseCoupling,
    System,
    tail_threshold,
)
from ssot.kernels.protocol import Bound, Plan, PlanSums, RowSums, one_by_one

Array: TypeAlias = NDArray[np.floating[Any]]

BLOCK_ENTRIES = 1 << 17
"""Entries in a block of rows: a float64 and a float32 block together take 1.5 megabytes."""

SMALLEST_BLOCK_HEIGHT = 512
"""Fewest rows in a block, whatever K: narrower blocks make slow products for the overlap."""

LOWEST = float(np.finfo(np.float64).min)
"""In place of ``-inf`` where that would be subtracted from itself."""

SPREAD_SAMPLE = 64
"""Rows looked at to learn the typical spread of a cost."""


class NumpyKernel:
    """The N x K operations in NumPy, with SciPy for the sparse product."""

    name = "numpy"
    place = HOST
    adds_up = False
    kept_every: int | None = None

    def __init__(self, bound: Bound) -> None:
        self.resolution = float(np.finfo(bound.cost.dtype).eps)
        self.samples = len(bound.cost)
        self.shift = bound.shift
        self._bound = bound
        self._cost = bound.cost
        self._weight = bound.sample_weight
        self._pull = 2.0 * bound.semantic_weight

    @property
    def _graph(self) -> sparse.csr_array:
        if not isinstance(self._bound.graph, sparse.csr_array):
            raise ValueError("a product with the graph needs a problem with a graph")
        return self._bound.graph

    @classmethod
    def together(
        cls, operation: str, kernels: Sequence[Self], arguments: Sequence[tuple[Any, ...]]
    ) -> Sequence[Any]:
        """Work on one problem after the other, each of which can keep all cores busy."""
        return one_by_one(operation, kernels, arguments)

    def row_pass(
        self, product: Array | None, prices: Vector, epsilon: float, system: System | None
    ) -> tuple[RowSums, Coupling]:
        sums = _Sums(len(prices))
        is_dense = len(prices) <= LARGEST_DENSE
        overlap = np.zeros((len(prices),) * 2) if is_dense else np.zeros((0, 0))
        large, coupled, threshold = [], [], tail_threshold(system, self._cost.shape)
        for block in self._plan_blocks(product, prices, epsilon):
            sums.add(block)
            if is_dense:
                _add_overlap(overlap, block)
            else:
                large.append(_large_entries(block, threshold))
                coupled.append(block.coupled)
        if is_dense:
            overlap[:-1, -1] += sums.loose_mass[:-1]
            overlap[-1, :-1] = overlap[:-1, -1]
            return sums.result(), DenseCoupling(overlap)
        coupling = SparseCoupling(
            sparse.vstack(large, "csr"),
            np.concatenate(coupled),
            sums.column_mass,
            None if self._bound.slack_entropy else sums.loose_mass,
        )
        return sums.result(), coupling

    def plan(
        self, product: Array | None, prices: Vector, epsilon: float, out: Plan | None
    ) -> tuple[Plan, RowSums]:
        plan = out or Plan(np.empty_like(self._cost), np.empty(len(self._cost)))
        sums = _Sums(len(prices))
        for block in self._plan_blocks(product, prices, epsilon):
            sums.add(block)
            share = block.share.astype(self._cost.dtype)
            np.multiply(block.scaled, share[:, None], out=plan.matrix[block.rows])
            plan.slack[block.rows] = block.slack
        return plan, sums.result()

    def measure(self, plan: Plan, product: Array | None) -> PlanSums:
        column_mass = np.zeros(plan.matrix.shape[1] + 1)
        column_mass[-1] = plan.slack.sum()
        transport = semantic = entropy = excess = 0.0
        for rows in _row_blocks(plan.matrix):
            block = plan.matrix[rows]
            column_mass[:-1] += block.sum(axis=0, dtype=np.float64)
            row_mass = block.sum(axis=1, dtype=np.float64)
            excess += float((row_mass - self._weight[rows]).clip(min=0.0).sum())
            transport += _inner(self._cost[rows].astype(np.float64) - self.shift, block)
            entropy += float(xlogy(block, block).sum(dtype=np.float64))
            if product is not None:
                semantic += _inner(product[rows], block)
        slack_entropy = float(xlogy(plan.slack, plan.slack).sum())
        return PlanSums(column_mass, transport, semantic, entropy, slack_entropy, excess)

    def graph_product(self, matrix: Array, out: Array | None) -> Array:
        product = np.empty_like(matrix) if out is None else out
        for rows in _row_blocks(product):
            product[rows] = self._product_rows(matrix, rows)
        return product

    def replace_product(self, product: Array, old: Array, new: Array) -> float:
        change = 0.0
        for rows in _row_blocks(product):
            changed = self._product_rows(new, rows)
            change += _inner(new[rows] - old[rows], changed - product[rows])
            product[rows] = changed
        return change

    def interpolate(self, old: Plan, new: Plan, step: float) -> None:
        for rows in _row_blocks(new.matrix):
            new.matrix[rows] -= old.matrix[rows]
            new.matrix[rows] *= new.matrix.dtype.type(step)
            new.matrix[rows] += old.matrix[rows]
        new.slack[:] = old.slack + step * (new.slack - old.slack)

    def sample(self, product: Array | None, every: int) -> tuple[Self, Array | None]:
        weight = self._weight[::every]
        if not weight.any():
            weight = np.ones_like(weight)
        total = weight.sum()
        sampled = self.for_rows(
            np.ascontiguousarray(self._cost[::every]),
            weight * (self._weight.sum() / total) if total else weight,
        )
        return sampled, None if product is None else np.ascontiguousarray(product[::every])

    def for_rows(self, cost: Array, weight: Vector) -> Self:
        return type(self)(self._bound._replace(cost=cost, sample_weight=weight, graph=None))

    def transient_plan(self, prices: Vector, epsilon: float) -> tuple[Vector, PlanSums, RowSums]:
        plan, sums = self.plan(None, prices, epsilon, None)
        return plan.slack, self.measure(plan, None), sums

    def typical_spread(self, product: Array | None) -> float:
        every = max(1, len(self._cost) // SPREAD_SAMPLE)
        sample = self._cost[::every].astype(np.float64)
        if product is not None:
            sample -= self._pull * product[::every]
        return spread_of_rows(sample)

    def _product_rows(self, matrix: Array, rows: slice) -> Array:
        return np.asarray(self._graph[rows] @ matrix)

    def _plan_blocks(
        self, product: Array | None, prices: Vector, epsilon: float
    ) -> Iterator[_PlanBlock]:
        """Yield the plan of the prices over blocks of rows.

        Exponents are formed in float64, so that a float32 problem loses accuracy only in its
        exponential. The next block overwrites the arrays of the last.
        """
        cost, class_prices = self._cost, prices[:-1]
        virtual_price, brim_price = virtual_and_brim(prices[-1], self._bound)
        exponent = np.empty((min(len(cost), _block_height(cost)), cost.shape[1]))
        scaled = exponent if cost.dtype == np.float64 else np.empty_like(exponent, cost.dtype)
        for rows in _row_blocks(cost):
            height = len(cost[rows])
            work, out = exponent[:height], scaled[:height]
            with np.errstate(under="ignore", over="ignore"):
                np.subtract(self.shift, cost[rows], out=work)
                work += class_prices
                if product is not None:
                    work += self._pull * product[rows].astype(np.float64)
                offset = np.maximum(work.max(axis=1), max(virtual_price, LOWEST))
                work -= offset[:, None]
                np.multiply(work, 1.0 / epsilon, out=out, casting="same_kind")
                np.exp(out, out=out)
                virtual = np.exp((virtual_price - offset) / epsilon)
            total = out.sum(axis=1, dtype=np.float64) + virtual
            total[total == 0.0] = 1.0  # no open class
            weight = self._weight[rows]
            share, level = weight / total, offset + epsilon * np.log(total)
            if self._bound.slack_entropy:
                yield _PlanBlock(rows, out, share, share * virtual, weight * level, weight)
                continue
            with np.errstate(divide="ignore", over="ignore", under="ignore"):
                brim = brim_price + epsilon * np.log(weight)
                top = np.maximum(level, brim)
                log_filled = (level - top) / epsilon
                share *= np.exp(log_filled)
                room = -np.expm1(log_filled)
            yield _PlanBlock(
                rows=rows,
                scaled=out,
                share=share,
                slack=weight * room,
                log_partition=weight * (top - epsilon * room),
                coupled=np.where(room > 0.0, 0.0, weight),
            )


class _PlanBlock(NamedTuple):
    """A block of rows of the plan.

    Exponentials of the classes and what they are multiplied by, (h, K) and (h,); the slacks, the
    terms of the log-partition, and the sample weights, 0 for loose rows: those with room where the
    slack has no entropy.
    """

    rows: slice
    scaled: Array
    share: Vector
    slack: Vector
    log_partition: Vector
    coupled: Vector


class _Sums:
    """Accumulates `RowSums` over blocks of rows."""

    def __init__(self, columns: int) -> None:
        self.column_mass = np.zeros(columns)
        self.loose_mass = np.zeros(columns)
        self._log_partition = 0.0

    def add(self, block: _PlanBlock) -> None:
        self.column_mass[:-1] += block.share.astype(block.scaled.dtype) @ block.scaled
        self.column_mass[-1] += block.slack.sum()
        self._log_partition += float(block.log_partition.sum())
        is_loose = (block.coupled == 0.0) & (block.share > 0.0)
        if is_loose.any():
            share = np.where(is_loose, block.share, 0.0).astype(block.scaled.dtype)
            self.loose_mass[:-1] += share @ block.scaled
            self.loose_mass[-1] += block.slack.sum(where=is_loose)

    def result(self) -> RowSums:
        return RowSums(self.column_mass, self._log_partition)


def spread_of_rows(sample: NDArray[np.float64]) -> float:
    """Return how far the median of a row lies above its minimum, in the typical row."""
    is_allowed = np.isfinite(sample)
    if is_allowed.all():
        return float(np.median(np.median(sample, axis=1) - sample.min(axis=1)))
    allowed = np.where(is_allowed, sample, np.nan)[is_allowed.any(axis=1)]
    if not len(allowed):
        return 0.0
    return float(np.median(np.nanmedian(allowed, axis=1) - np.nanmin(allowed, axis=1)))


def virtual_and_brim(price: float, bound: Bound) -> tuple[float, float]:
    """Return the price of the virtual cluster within the softmax, and that of an empty slack.

    Either is ``-inf``: a slack without entropy only says up to which level rows are not full.
    """
    return (price, -math.inf) if bound.slack_entropy else (-math.inf, price)


def _add_overlap(overlap: NDArray[np.float64], block: _PlanBlock) -> None:
    """Add full rows to ``P^T diag(alpha) P``, without the last row; the block is used up."""
    inverse = _inverse_or_zero(np.sqrt(block.coupled))
    root = block.share * inverse
    scaled, virtual = block.scaled, block.slack * inverse
    scaled *= root.astype(scaled.dtype)[:, None]
    overlap[:-1, :-1] += scaled.T @ scaled
    overlap[:-1, -1] += virtual.astype(scaled.dtype) @ scaled
    overlap[-1, -1] += virtual @ virtual


def _large_entries(block: _PlanBlock, threshold: float) -> sparse.csr_array:
    """Return the probabilities of full rows that are not counted to the tail of their row."""
    inverse = _inverse_or_zero(block.coupled)
    probability = np.empty((len(inverse), block.scaled.shape[1] + 1))
    np.multiply(block.scaled, (block.share * inverse)[:, None], out=probability[:, :-1])
    probability[:, -1] = block.slack * inverse
    probability[probability < threshold] = 0.0
    return sparse.csr_array(probability)


def _inverse_or_zero(weight: Vector) -> Vector:
    return np.divide(1.0, weight, out=np.zeros_like(weight), where=weight > 0.0)


def _inner(first: Array, second: Array) -> float:
    """Return the inner product of two blocks, where 0 times inf is 0."""
    with np.errstate(invalid="ignore"):
        product = np.multiply(first, second, dtype=np.float64)
    total = float(product.sum())
    if not np.isfinite(total):
        total = float(product.sum(where=(first != 0) & (second != 0)))
    return total


def _block_height(array: Array) -> int:
    classes: int = array.shape[1]
    return max(SMALLEST_BLOCK_HEIGHT, BLOCK_ENTRIES // classes)


def _row_blocks(array: Array) -> Iterator[slice]:
    """Yield blocks of rows that stay in cache: a single empty one of no rows."""
    samples, height = len(array), _block_height(array)
    starts = range(0, max(samples, 1), height)
    return (slice(start, min(start + height, samples)) for start in starts)
