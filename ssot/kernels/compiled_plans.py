"""The loops of the Numba backend that write plans, measure them and multiply them with a graph."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from ssot.kernels.compiled import (
    ALL,
    filling,
    first_row,
    jit,
    padded,
    softmax_row,
)
from ssot.kernels.vectors import STRIDE, exp2, log2, maximum


@jit(parallel=True)
def write_plan(
    cost: Any,
    shift: Any,
    product: Any,
    pull: Any,
    prices: Any,
    brim_price: Any,
    scale: Any,
    weight: Any,
    column_mass: Any,
    log_partition: Any,
    matrix: Any,
    slack: Any,
) -> None:
    """Write the plan of the prices, and sum as `row_sums` does."""
    rows, classes = cost.shape
    groups = len(column_mass)
    for group in numba.prange(groups):
        width = padded(classes + 1)
        exponent = np.full(width, -np.inf)
        scaled = np.empty(width, cost.dtype)
        mass = np.zeros(width)
        left = 0.0
        log_sum = 0.0
        for i in range(first_row(group, groups, rows), first_row(group + 1, groups, rows)):
            total, level, _ = softmax_row(
                cost, shift, product, pull, i, prices, scale, exponent, scaled, ALL, None
            )
            filled, worth = filling(level, brim_price, weight[i], scale)
            share = weight[i] * filled / total
            for j in range(width):
                mass[j] += share * np.float64(scaled[j])
            left += weight[i] * (1.0 - filled)
            log_sum += weight[i] * worth
            for j in range(classes):
                matrix[i, j] = scaled[j] * scaled.dtype.type(share)
            slack[i] = share * np.float64(scaled[classes]) + weight[i] * (1.0 - filled)
        mass[classes] += left
        column_mass[group] = mass[: classes + 1]
        log_partition[group] = log_sum


@jit(parallel=True)
def plan_sums(
    cost: Any,
    shift: Any,
    matrix: Any,
    slack: Any,
    product: Any,
    has_product: Any,
    weight: Any,
    column_mass: Any,
    terms: Any,
) -> None:
    """Sum each group's column masses, and its terms in the order of `PlanSums`."""
    rows, classes = cost.shape
    groups = len(column_mass)
    tiny = np.finfo(matrix.dtype).tiny
    for group in numba.prange(groups):
        mass = np.zeros(classes + 1)
        transport = 0.0
        semantic = 0.0
        entropy = 0.0
        slack_entropy = 0.0
        excess = 0.0
        for i in range(first_row(group, groups, rows), first_row(group + 1, groups, rows)):
            row_mass = 0.0
            for j in range(classes):
                q = np.float64(matrix[i, j])
                mass[j] += q
                row_mass += q
                paid = q * (np.float64(cost[i, j]) - shift)
                transport += paid if q != 0.0 else 0.0
            for j in range(classes):
                bounded = maximum(matrix[i, j], tiny)
                entropy += np.float64(matrix[i, j]) * np.float64(log2(bounded))
            if has_product:
                for j in range(classes):
                    semantic += np.float64(matrix[i, j]) * np.float64(product[i, j])
            mass[classes] += slack[i]
            if slack[i] > 0.0:
                slack_entropy += slack[i] * np.log2(slack[i])
            excess += max(row_mass - weight[i], 0.0)
        column_mass[group] = mass
        terms[group, 0] = transport
        terms[group, 1] = semantic
        terms[group, 2] = entropy
        terms[group, 3] = slack_entropy
        terms[group, 4] = excess


@jit(parallel=True)
def transient_plan_sums(
    cost: Any,
    shift: Any,
    product: Any,
    pull: Any,
    prices: Any,
    brim_price: Any,
    scale: Any,
    weight: Any,
    column_mass: Any,
    log_partition: Any,
    lowest: Any,
    slack: Any,
    terms: Any,
) -> None:
    """Sum as `row_sums` and, for the plan of the prices, as `plan_sums` does; only keep its slack.

    What is below `lowest` in its row is taken for 0. Logarithms of the plan are those of its
    exponents.
    """
    rows, classes = cost.shape
    groups = len(column_mass)
    for group in numba.prange(groups):
        width = padded(classes + 1)
        exponent = np.full(width, -np.inf)
        scaled = np.empty(width, cost.dtype)
        runs = np.empty((width // STRIDE + 1, 2), np.int64)
        mass = np.zeros(classes + 1)
        log_sum = 0.0
        transport = 0.0
        entropy = 0.0
        slack_entropy = 0.0
        excess = 0.0
        for i in range(first_row(group, groups, rows), first_row(group + 1, groups, rows)):
            total, level, count = softmax_row(
                cost, shift, product, pull, i, prices, scale, exponent, scaled, lowest, runs
            )
            filled, worth = filling(level, brim_price, weight[i], scale)
            log_sum += weight[i] * worth
            share = scaled.dtype.type(weight[i] * filled / total)
            row_mass = 0.0
            relative_entropy = 0.0
            for run in range(count):
                here = slice(runs[run, 0], min(runs[run, 1], classes))
                part, its_exponent = scaled[here], exponent[here]
                its_cost, its_mass = cost[i, here], mass[here]
                for j in range(len(part)):
                    q = np.float64(part[j] * share)
                    its_mass[j] += q
                    row_mass += q
                    paid = q * (np.float64(its_cost[j]) - shift)
                    transport += paid if q != 0.0 else 0.0
                    below = q * (its_exponent[j] - level)
                    relative_entropy += below if q != 0.0 else 0.0
            if row_mass > 0.0:
                entropy += scale * relative_entropy + row_mass * np.log2(weight[i] * filled)
            excess += max(row_mass - weight[i], 0.0)
            left = weight[i] * (filled * exp2(scale * (prices[classes] - level)) + (1.0 - filled))
            slack[i] = left
            mass[classes] += left
            if left > 0.0:
                slack_entropy += left * np.log2(left)
        column_mass[group] = mass
        log_partition[group] = log_sum
        terms[group, 0] = transport
        terms[group, 1] = 0.0
        terms[group, 2] = entropy
        terms[group, 3] = slack_entropy
        terms[group, 4] = excess


@jit(parallel=False)
def _product_row(starts: Any, columns: Any, edges: Any, i: Any, matrix: Any, row: Any) -> None:
    row[:] = 0
    for k in range(starts[i], starts[i + 1]):
        edge = edges[k]
        source = matrix[columns[k]]
        for j in range(len(row)):
            row[j] += edge * source[j]


@jit(parallel=True)
def graph_product(
    starts: Any, columns: Any, edges: Any, matrix: Any, product: Any, groups: Any
) -> None:
    """Write the product of a sparse matrix in rows, ``(starts, columns, edges)``, to `product`."""
    rows = len(product)
    for group in numba.prange(groups):
        for i in range(first_row(group, groups, rows), first_row(group + 1, groups, rows)):
            _product_row(starts, columns, edges, i, matrix, product[i])


@jit(parallel=True)
def replace_product(
    starts: Any, columns: Any, edges: Any, old: Any, new: Any, product: Any, change: Any
) -> None:
    """Replace the product of `old` by that of `new`; sum their changes' inner product by group."""
    rows, classes = product.shape
    groups = len(change)
    for group in numba.prange(groups):
        row = np.empty(classes, new.dtype)
        total = 0.0
        for i in range(first_row(group, groups, rows), first_row(group + 1, groups, rows)):
            _product_row(starts, columns, edges, i, new, row)
            for j in range(classes):
                total += np.float64(new[i, j] - old[i, j]) * np.float64(row[j] - product[i, j])
                product[i, j] = row[j]
        change[group] = total


@jit(parallel=True)
def interpolate(old: Any, new: Any, step: Any) -> None:
    """Turn `new` into ``old + step (new - old)``."""
    for i in numba.prange(len(new)):
        for j in range(new.shape[1]):
            new[i, j] = old[i, j] + new.dtype.type(step) * (new[i, j] - old[i, j])
