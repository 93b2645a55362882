"""The NumPy backend: blocks of rows that stay in cache, float64 or float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import xlogy

from ssot.kernels.protocol import Plan, RowSums, Vector

Array: TypeAlias = NDArray[np.floating[Any]]

BLOCK_ENTRIES = 1 << 17
"""Entries in a block of rows: a float64 and a float32 block together take 1.5 megabytes."""

SMALLEST_BLOCK_HEIGHT = 512
"""Fewest rows in a block, whatever K: narrower blocks make slow products for the overlap."""

SPREAD_SAMPLE = 256
"""Rows looked at to learn the typical spread of a cost."""


class NumpyKernel:
    """The N x K operations in NumPy, with SciPy for the sparse product."""

    name = "numpy"

    def __init__(self, cost: Array, sample_weight: Vector, graph: sparse.csr_array | None) -> None:
        self.cost = cost
        self.resolution = float(np.finfo(cost.dtype).eps)
        self._weight = sample_weight
        self._graph = graph

    def row_pass(
        self, cost: Array, prices: Vector, epsilon: float
    ) -> tuple[RowSums, NDArray[np.float64]]:
        sums = _Sums(cost.shape[1])
        overlap = np.zeros((cost.shape[1] + 1,) * 2)
        for block in self._softmax_blocks(cost, prices, epsilon):
            weight = self._weight[block.rows]
            sums.add(block, weight, epsilon)
            root = np.sqrt(weight) / block.total
            scaled, virtual = block.scaled, root * block.virtual
            scaled *= root.astype(cost.dtype)[:, None]
            overlap[:-1, :-1] += scaled.T @ scaled
            overlap[:-1, -1] += virtual.astype(cost.dtype) @ scaled
            overlap[-1, -1] += virtual @ virtual
        overlap[-1, :-1] = overlap[:-1, -1]
        return sums.result(), overlap

    def plan(self, cost: Array, prices: Vector, epsilon: float) -> tuple[Plan, RowSums]:
        matrix = np.empty_like(cost)
        slack = np.empty(len(cost))
        sums = _Sums(cost.shape[1])
        for block in self._softmax_blocks(cost, prices, epsilon):
            weight = self._weight[block.rows]
            sums.add(block, weight, epsilon)
            share = weight / block.total
            np.multiply(block.scaled, share.astype(cost.dtype)[:, None], out=matrix[block.rows])
            slack[block.rows] = share * block.virtual
        return Plan(matrix, slack), sums.result()

    def linearize(self, product: Array, semantic_weight: float) -> Array:
        linearized = product * self.cost.dtype.type(-2.0 * semantic_weight)
        linearized += self.cost
        return linearized

    def graph_product(self, matrix: Array) -> Array:
        if self._graph is None:
            raise ValueError("graph_product needs a graph")
        return np.asarray(self._graph @ matrix)

    def add(self, first: Array, second: Array, scale: float) -> Array:
        total = second * second.dtype.type(scale)
        total += first
        return total

    def inner(self, first: Array, second: Array) -> float:
        total = 0.0
        for rows in _row_blocks(first):
            with np.errstate(invalid="ignore"):
                product = np.multiply(first[rows], second[rows], dtype=np.float64)
            subtotal = float(product.sum())
            if not np.isfinite(subtotal):
                carries_mass = (first[rows] != 0) & (second[rows] != 0)
                subtotal = float(product.sum(where=carries_mass))
            total += subtotal
        return total

    def entropy(self, array: Array) -> float:
        return sum(
            float(xlogy(array[rows], array[rows]).sum(dtype=np.float64))
            for rows in _row_blocks(array)
        )

    def column_mass(self, matrix: Array) -> Vector:
        total = np.zeros(matrix.shape[1])
        for rows in _row_blocks(matrix):
            total += matrix[rows].sum(axis=0, dtype=np.float64)
        return total

    def total(self, array: Array) -> float:
        return float(array.sum(dtype=np.float64))

    def row_mass(self, matrix: Array) -> Vector:
        mass: Vector = matrix.sum(axis=1, dtype=np.float64)
        return mass

    def typical_spread(self, cost: Array) -> float:
        sample = cost[:: max(1, len(cost) // SPREAD_SAMPLE)].astype(np.float64)
        allowed = np.where(np.isfinite(sample), sample, np.nan)
        allowed = allowed[~np.isnan(allowed).all(axis=1)]
        if not len(allowed):
            return 0.0
        return float(np.median(np.nanmedian(allowed, axis=1) - np.nanmin(allowed, axis=1)))

    def _softmax_blocks(
        self, cost: Array, prices: Vector, epsilon: float
    ) -> Iterator[_SoftmaxBlock]:
        """Yield the softmax of ``(prices - [cost, 0]) / epsilon`` over blocks of rows.

        Exponents are formed in float64, so that a float32 problem loses accuracy only in its
        exponential. The next block overwrites the arrays of the last.
        """
        class_prices, virtual_price = prices[:-1], prices[-1]
        exponent = np.empty((min(len(cost), _block_height(cost)), cost.shape[1]))
        scaled = exponent if cost.dtype == np.float64 else np.empty_like(exponent, cost.dtype)
        for rows in _row_blocks(cost):
            height = len(cost[rows])
            work, out = exponent[:height], scaled[:height]
            with np.errstate(under="ignore", over="ignore"):
                np.subtract(class_prices, cost[rows], out=work)
                offset = np.maximum(work.max(axis=1), virtual_price)
                work -= offset[:, None]
                np.multiply(work, 1.0 / epsilon, out=out, casting="same_kind")
                np.exp(out, out=out)
                virtual = np.exp((virtual_price - offset) / epsilon)
            yield _SoftmaxBlock(
                rows, out, virtual, out.sum(axis=1, dtype=np.float64) + virtual, offset
            )


class _SoftmaxBlock(NamedTuple):
    """Unnormalised softmax of a block of rows.

    Exponentials of the K classes and of the virtual cluster, their total over each row, and the
    row maximum, in the unit of the cost, that was subtracted.
    """

    rows: slice
    scaled: Array
    virtual: Vector
    total: Vector
    offset: Vector


class _Sums:
    """Accumulates `RowSums` over blocks of rows."""

    def __init__(self, classes: int) -> None:
        self._column_mass = np.zeros(classes + 1)
        self._log_partition = 0.0

    def add(self, block: _SoftmaxBlock, weight: Vector, epsilon: float) -> None:
        share = weight / block.total
        self._column_mass[:-1] += share.astype(block.scaled.dtype) @ block.scaled
        self._column_mass[-1] += share @ block.virtual
        self._log_partition += float(weight @ (block.offset + epsilon * np.log(block.total)))

    def result(self) -> RowSums:
        return RowSums(self._column_mass, self._log_partition)


def _block_height(array: Array) -> int:
    return max(SMALLEST_BLOCK_HEIGHT, BLOCK_ENTRIES * len(array) // array.size)


def _row_blocks(array: Array) -> Iterator[slice]:
    height = _block_height(array)
    return (slice(start, start + height) for start in range(0, len(array), height))
