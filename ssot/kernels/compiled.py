"""The loops of the Numba backend that make a pass over the rows, and what loops have in common.

Rows are dealt out in groups that depend on the shape alone, and each group keeps sums of its own,
so that results do not depend on the number of threads. The passes repeat the few lines that visit
a row: a further level of functions, though inlined, makes them a fifth slower.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from ssot.kernels.vectors import (
    FAST,
    STRIDE,
    TILE,
    add_tile,
    at_least,
    exp2,
    log2,
    lowest_bit,
    maximum,
)

PANEL_HEIGHT = 64
"""Rows of probabilities that are gathered before their overlap is added."""

MOST_DECIDED_TOTAL = 1 / (1 - 1 / 32)
"""Sum of a row's exponentials, the largest being 1, up to which the row counts as decided."""

LOWEST = float(np.finfo(np.float64).min)
"""In place of ``-inf`` where that would be subtracted from itself."""

LOG2_E = math.log2(math.e)

NEGLIGIBLE = -64.0
"""Power of 2, relative to a row's largest, below which sums may do without its entries."""

ALL = -math.inf
"""In place of `NEGLIGIBLE` where every entry counts."""


ONLY_LOOPS = dict.fromkeys(
    ("comprehension", "reduction", "inplace_binop", "setitem", "numpy", "stencil", "fusion"), False
)
"""Parallel are the loops that say so, which saves half of the time to compile."""


def jit(*, parallel: bool) -> Callable[[Any], Any]:
    """Return the decorator of a loop on all cores, or of a function to be inlined in one."""
    options: dict[str, Any] = {"fastmath": FAST, "error_model": "numpy", "nogil": True}
    options |= {"parallel": ONLY_LOOPS} if parallel else {"forceinline": True}

    def compile_lazily(function: Any) -> Any:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # nowhere to store a cache
            return numba.njit(**options)(function)

    return compile_lazily


@jit(parallel=False)
def first_row(group: Any, groups: Any, rows: Any) -> Any:
    """Return where a group of rows begins."""
    return group * rows // groups


@jit(parallel=False)
def padded(columns: Any) -> Any:
    """Return the length of a row that `at_least` can look at."""
    return (columns + STRIDE - 1) // STRIDE * STRIDE


@jit(parallel=False)
def _exponentiate(exponent: Any, offset: Any, scale: Any, scaled: Any) -> Any:
    """Write ``2 ** (scale (exponent - offset))``, and return the sum."""
    for j in range(len(scaled)):
        scaled[j] = scale * (exponent[j] - offset)
    total = 0.0
    for j in range(len(scaled)):
        y = exp2(scaled[j])
        scaled[j] = y
        total += np.float64(y)
    return total


@jit(parallel=False)
def _list_runs(exponent: Any, smallest: Any, runs: Any) -> Any:
    """List where exponents, `STRIDE` at a time, reach the smallest that counts.

    All is one run where most do: then it takes longer to tell than to compute.
    """
    reached = 0
    for start in range(0, len(exponent), STRIDE):
        runs[reached, 0] = start
        reached += at_least(exponent, start, smallest) != 0
    if 2 * reached * STRIDE > len(exponent):
        runs[0, 0] = 0
        runs[0, 1] = len(exponent)
        return 1
    count = 0
    for k in range(reached):
        start = runs[k, 0]
        if count == 0 or runs[count - 1, 1] != start:
            runs[count, 0] = start
            count += 1
        runs[count - 1, 1] = start + STRIDE
    return count


@jit(parallel=False)
def softmax_row(
    cost: Any,
    shift: Any,
    product: Any,
    pull: Any,
    i: Any,
    prices: Any,
    scale: Any,
    exponent: Any,
    scaled: Any,
    lowest: Any,
    runs: Any,
) -> Any:
    """Write ``2 ** (scale (x - max x))`` to `scaled`, ``x = prices - [C_i - shift - pull G_i, 0]``.

    Exponents are formed in float64, so that a float32 problem loses accuracy only in its
    exponential, and are ``-inf`` beyond the columns. Returns the total of the row, its level
    ``max x + log2(total) / scale``, and the number of `runs`: where these are given, only the parts
    of the row that count are written, and listed there.
    """
    classes = cost.shape[1]
    offset = prices[classes]
    exponent[classes] = offset
    if pull != 0.0:
        for j in range(classes):
            x = prices[j] - (np.float64(cost[i, j]) - shift) + pull * np.float64(product[i, j])
            exponent[j] = x
            offset = maximum(offset, x)
    else:
        for j in range(classes):
            x = prices[j] - (np.float64(cost[i, j]) - shift)
            exponent[j] = x
            offset = maximum(offset, x)
    offset = maximum(offset, LOWEST)  # of a row without open columns
    if runs is None:
        count, total = 0, _exponentiate(exponent, offset, scale, scaled)
    else:
        count, total = _list_runs(exponent, offset + lowest / scale, runs), 0.0
        for run in range(count):
            here = slice(runs[run, 0], runs[run, 1])
            total += _exponentiate(exponent[here], offset, scale, scaled[here])
    if total == 0.0:
        return 1.0, offset, count
    return total, offset + log2(total) / scale, count


@jit(parallel=False)
def add_runs(share: Any, scaled: Any, runs: Any, count: Any, mass: Any) -> None:
    """Add a share of what is written of a row."""
    for run in range(count):
        here = slice(runs[run, 0], runs[run, 1])
        source, target = scaled[here], mass[here]
        for j in range(len(target)):
            target[j] += share * np.float64(source[j])


@jit(parallel=False)
def filling(level: Any, brim_price: Any, weight: Any, scale: Any) -> Any:
    """Return how much of a row its classes fill, and its term of the log-partition over its weight.

    Always all where the slack has an entropy, and the price is None: passes for such are compiled
    without these lines.
    """
    if brim_price is None:
        return 1.0, level
    brim = brim_price + log2(weight) / scale
    if level >= brim:
        return 1.0, level
    share = exp2(scale * (level - brim))
    return share, brim + (share - 1.0) * LOG2_E / scale


@jit(parallel=False)
def _add_overlap(panel: Any, height: Any, overlap: Any) -> None:
    """Add ``panel[:height].T @ panel[:height]`` on and above the diagonal."""
    for j in range(0, panel.shape[1], TILE):
        for i in range(0, j + TILE, TILE):
            add_tile(panel, overlap, height, i, j)


@jit(parallel=False)
def _largest(scaled: Any, columns: Any) -> Any:
    """Return the column of the largest entry of a row, which is 1."""
    top = 0
    while scaled[top] < 1.0 and top + 1 < columns:
        top += 1
    return top


@jit(parallel=False)
def _add_star(scaled: Any, share: Any, centre: Any, overlap: Any) -> None:
    """Couple one column with the others by the entries of a row, in its row of `overlap`."""
    for j in range(len(overlap)):
        overlap[centre, j] += np.float32(share) * np.float32(scaled[j])


@jit(parallel=False)
def _merge_overlaps(partial_overlap: Any, overlap: Any, i: Any) -> None:
    """Add up the couplings of column i with those after it, in both directions."""
    for j in range(i, len(overlap)):
        coupling = 0.0
        for group in range(len(partial_overlap)):
            coupling += np.float64(partial_overlap[group, 0, i, j])
            coupling += np.float64(partial_overlap[group, 1, i, j])
            coupling += np.float64(partial_overlap[group, 1, j, i])
        overlap[i, j] = coupling
        overlap[j, i] = coupling


@jit(parallel=True)
def row_sums(
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
    partial_overlap: Any,
    overlap: Any,
) -> None:
    """Sum each group's column masses and log-partition, and the overlap of all rows.

    A row that is all but decided couples its largest entry with the others, in the second of the
    group's partial overlaps; products of the others are of second order. So does a row that is not
    full with the virtual cluster. The remaining rows add all their products to the first, on and
    above the diagonal.
    """
    rows, classes = cost.shape
    groups = len(column_mass)
    for group in numba.prange(groups):
        width = padded(classes + 1)
        exponent = np.full(width, -np.inf)
        scaled = np.empty(width, cost.dtype)
        mass = np.zeros(width)
        left = 0.0
        log_sum = 0.0
        panel = np.zeros((PANEL_HEIGHT, partial_overlap.shape[2]), np.float32)
        height = 0
        partial_overlap[group] = 0
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
            if filled < 1.0 or total <= MOST_DECIDED_TOTAL:
                is_full = filled == 1.0
                centre = _largest(scaled, classes + 1) if is_full else classes
                by_mass = share / total if is_full else share
                _add_star(scaled, by_mass, centre, partial_overlap[group, 1])
                continue
            root = np.float32(math.sqrt(weight[i]) / total)
            for j in range(classes + 1):
                panel[height, j] = np.float32(scaled[j]) * root
            height += 1
            if height == PANEL_HEIGHT:
                _add_overlap(panel, height, partial_overlap[group, 0])
                height = 0
        if height > 0:
            _add_overlap(panel, height, partial_overlap[group, 0])
        mass[classes] += left
        column_mass[group] = mass[: classes + 1]
        log_partition[group] = log_sum
    for i in numba.prange(classes + 1):
        _merge_overlaps(partial_overlap, overlap, i)


@jit(parallel=False)
def _list_large(
    scaled: Any,
    runs: Any,
    count: Any,
    threshold: Any,
    total: Any,
    position: Any,
    end: Any,
    columns: Any,
    values: Any,
) -> Any:
    """List the entries of at least a share of the total from a position on; return the next one.

    Entries from `end` on are counted but not listed.
    """
    smallest = scaled.dtype.type(threshold * total)
    for run in range(count):
        for start in range(runs[run, 0], runs[run, 1], STRIDE):
            found = at_least(scaled, start, smallest)
            while found != 0:
                j = start + lowest_bit(found)
                if position < end:
                    columns[position] = j
                    values[position] = scaled[j] / total
                position += 1
                found &= found - np.uint32(1)
    return position


@jit(parallel=True)
def large_entries(
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
    threshold: Any,
    coupled: Any,
    lowest: Any,
    loose_mass: Any,
    room: Any,
    counts: Any,
    needed: Any,
    columns: Any,
    values: Any,
) -> None:
    """Sum as `row_sums` does, and list the probabilities of at least `threshold`, `counts` a row.

    Each group lists its own one after the other, from the position ``room * (its first row)`` on.
    `needed` is the room a row that the group needed; if above `room`, its list is not complete.
    Rows that are not full list none: their weight in `coupled` becomes 0, and their mass is summed
    apart.
    """
    rows, classes = cost.shape
    groups = len(column_mass)
    for group in numba.prange(groups):
        width = padded(classes + 1)
        exponent = np.full(width, -np.inf)
        scaled = np.empty(width, cost.dtype)
        runs = np.empty((width // STRIDE + 1, 2), np.int64)
        mass = np.zeros(width)
        left = 0.0
        log_sum = 0.0
        first, last = first_row(group, groups, rows), first_row(group + 1, groups, rows)
        position = room * first
        loose = np.zeros(width)
        for i in range(first, last):
            total, level, count = softmax_row(
                cost, shift, product, pull, i, prices, scale, exponent, scaled, lowest, runs
            )
            filled, worth = filling(level, brim_price, weight[i], scale)
            share = weight[i] * filled / total
            add_runs(share, scaled, runs, count, mass)
            left += weight[i] * (1.0 - filled)
            log_sum += weight[i] * worth
            if filled < 1.0:
                coupled[i] = 0.0
                counts[i] = 0
                add_runs(share, scaled, runs, count, loose)
                loose[classes] += weight[i] * (1.0 - filled)
                continue
            following = _list_large(
                scaled, runs, count, threshold, total, position, room * last, columns, values
            )
            counts[i] = following - position
            position = following
        needed[group] = (position - room * first) / max(1, last - first)
        loose_mass[group] = loose[: classes + 1]
        mass[classes] += left
        column_mass[group] = mass[: classes + 1]
        log_partition[group] = log_sum


@jit(parallel=True)
def compress(
    starts: Any, groups: Any, room: Any, columns: Any, values: Any, to_columns: Any, to_values: Any
) -> None:
    """Put the lists of all groups side by side; row i begins at ``starts[i]``."""
    rows = len(starts) - 1
    for group in numba.prange(groups):
        first = first_row(group, groups, rows)
        shift = room * first - starts[first]
        for k in range(starts[first], starts[first_row(group + 1, groups, rows)]):
            to_columns[k] = columns[shift + k]
            to_values[k] = values[shift + k]
