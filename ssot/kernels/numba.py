"""The Numba backend: one compiled pass over the rows for each operation, on all cores."""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Self, TypeAlias

import numba
import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ssot.arrays import Vector
from ssot.curvature import (
    LARGEST_DENSE,
    Coupling,
    DenseCoupling,
    SparseCoupling,
    System,
    tail_threshold,
)
from ssot.kernels import compiled, compiled_plans
from ssot.kernels.numpy import NumpyKernel, virtual_and_brim
from ssot.kernels.protocol import Bound, Plan, PlanSums, RowSums
from ssot.kernels.vectors import LARGEST_TILE

Array: TypeAlias = NDArray[np.floating[Any]]

LARGEST_GROUPS = 32
"""Most groups of rows: the most threads that one problem can keep busy."""

GROUPS_EVEN = 8
"""Groups beyond this number are a multiple of it, to be dealt out evenly to a few threads."""

SMALLEST_GROUP = 1 << 13
"""Fewest entries in a group: a few microseconds of work, what it takes to start a thread."""

OVERLAP_SHARE = 0.4
"""Memory of the groups' overlaps, as a share of that of the cost."""

FIRST_ROOM = 8
"""Entries a row to reserve for probabilities that are not counted to a tail; 64 at most occur."""

_one_at_a_time = threading.Lock()
"""Some threading layers of Numba abort the process when two threads enter them."""


class NumbaKernel(NumpyKernel):
    """The N x K operations in compiled loops; what only looks at some rows stays in NumPy."""

    name = "numba"

    def __init__(self, bound: Bound) -> None:
        cost = _frozen(bound.cost)
        super().__init__(bound._replace(cost=cost, sample_weight=_frozen(bound.sample_weight)))
        self._lacks_rows = bound.ranks.size > 1
        rows, classes = cost.shape
        self._groups = max(1, min(LARGEST_GROUPS, rows, cost.size // SMALLEST_GROUP))
        self._is_dense = classes < LARGEST_DENSE
        if self._is_dense:
            width = LARGEST_TILE * math.ceil((classes + 1) / LARGEST_TILE)
            room = int(OVERLAP_SHARE * rows * classes) // (2 * width**2)
            self._groups = max(1, min(self._groups, room))
            if self._groups > GROUPS_EVEN:
                self._groups -= self._groups % GROUPS_EVEN
            self._partial_overlap = np.empty((self._groups, 2, width, width), np.float32)
        else:
            self._reserve(FIRST_ROOM)

    def row_pass(
        self, product: Array | None, prices: Vector, epsilon: float, system: System | None
    ) -> tuple[RowSums, Coupling]:
        arguments, column_mass, log_partition = self._pass(product, prices, epsilon)
        if self._is_dense:
            overlap = np.empty((len(prices),) * 2)
            self._run(compiled.row_sums, *arguments, self._partial_overlap, overlap)
            return _row_sums(column_mass, log_partition), DenseCoupling(overlap)
        counts, needed = np.empty(self.samples, np.int64), np.empty(self._groups)
        coupled, loose_mass = self._weight.copy(), np.empty_like(column_mass)
        lowest, threshold = compiled.NEGLIGIBLE, tail_threshold(system, self._cost.shape)
        while True:
            lists = (counts, needed, self._columns, self._values)
            rows = (threshold, coupled, lowest, loose_mass, self._room)
            self._run(compiled.large_entries, *arguments, *rows, *lists)
            if needed.max() > self._room:
                self._reserve(math.ceil(needed.max()))
            elif lowest > compiled.ALL and self._is_short(column_mass, prices):
                lowest = compiled.ALL
            else:
                break
        sums = _row_sums(column_mass, log_partition)
        loose = None if self._bound.slack_entropy else loose_mass.sum(axis=0)
        return sums, SparseCoupling(self._compressed(counts), coupled, sums.column_mass, loose)

    def plan(
        self, product: Array | None, prices: Vector, epsilon: float, out: Plan | None
    ) -> tuple[Plan, RowSums]:
        plan = out or Plan(np.empty_like(self._cost), np.empty(len(self._cost)))
        arguments, column_mass, log_partition = self._pass(product, prices, epsilon)
        self._run(compiled_plans.write_plan, *arguments, plan.matrix, plan.slack)
        return plan, _row_sums(column_mass, log_partition)

    def measure(self, plan: Plan, product: Array | None) -> PlanSums:
        column_mass = np.empty((self._groups, self._cost.shape[1] + 1))
        terms = np.empty((self._groups, 5))
        given = self._cost[:1] if product is None else _frozen(product)
        self._run(
            compiled_plans.plan_sums,
            self._cost,
            self.shift,
            _frozen(plan.matrix),
            _frozen(plan.slack),
            given,
            product is not None,
            self._weight,
            column_mass,
            terms,
        )
        return _plan_sums(column_mass, terms)

    def transient_plan(self, prices: Vector, epsilon: float) -> tuple[Vector, PlanSums, RowSums]:
        arguments, column_mass, log_partition = self._pass(None, prices, epsilon)
        slack, terms = np.empty(len(self._cost)), np.empty((self._groups, 5))
        results = (compiled.NEGLIGIBLE, slack, terms)
        self._run(compiled_plans.transient_plan_sums, *arguments, *results)
        return slack, _plan_sums(column_mass, terms), _row_sums(column_mass, log_partition)

    def graph_product(self, matrix: Array, out: Array | None) -> Array:
        product = np.empty_like(matrix) if out is None else out
        self._run(
            compiled_plans.graph_product, *self._edges, _frozen(matrix), product, self._groups
        )
        return product

    def replace_product(self, product: Array, old: Array, new: Array) -> float:
        change = np.empty(self._groups)
        self._run(
            compiled_plans.replace_product,
            *self._edges,
            _frozen(old),
            _frozen(new),
            product,
            change,
        )
        return float(change.sum())

    def interpolate(self, old: Plan, new: Plan, step: float) -> None:
        self._run(compiled_plans.interpolate, _frozen(old.matrix), new.matrix, step)
        new.slack[:] = old.slack + step * (new.slack - old.slack)

    def for_rows(self, cost: Array, weight: Vector) -> Self:
        kernel = super().for_rows(cost, weight)
        kernel._lacks_rows = True
        if not kernel._is_dense:
            kernel._reserve(self._room)
        return kernel

    def _is_short(self, column_mass: NDArray[np.float64], prices: Vector) -> bool:
        """Tell whether an open column has so little mass that what was left out may matter.

        Of some rows of a problem it never matters: the others may give the column its mass.
        """
        if self._lacks_rows:
            return False
        least = 2.0**compiled.NEGLIGIBLE * self._weight.sum()
        asked = np.isfinite(prices)
        asked[-1] &= self._bound.slack_entropy
        return bool((column_mass.sum(axis=0) < least)[asked].any())

    @cached_property
    def _edges(self) -> tuple[NDArray[Any], ...]:
        """Where the rows of the graph start, the columns and the weights of its edges."""
        starts = self._graph.indptr.astype(np.int64, copy=False)
        columns = self._graph.indices.astype(np.int32, copy=False)
        return _frozen(starts), _frozen(columns), _frozen(self._graph.data)

    def _run(self, function: Callable[..., None], *arguments: Any) -> None:
        run(function, *arguments, most_threads=self._groups)

    def _pass(
        self, product: Array | None, prices: Vector, epsilon: float
    ) -> tuple[tuple[Any, ...], NDArray[np.float64], Vector]:
        """Return the arguments of a pass, and the sums that it fills in, by group."""
        scale = 1.0 / (epsilon * math.log(2))
        given, pull = (self._cost[:1], 0.0) if product is None else (_frozen(product), self._pull)
        column_mass = np.empty((self._groups, len(prices)))
        log_partition = np.empty(self._groups)
        virtual_price, brim_price = virtual_and_brim(prices[-1], self._bound)
        inside = _frozen(np.append(prices[:-1], virtual_price))
        brim = None if self._bound.slack_entropy else brim_price
        head = (self._cost, self.shift, given, pull, inside, brim, scale, self._weight)
        return (*head, column_mass, log_partition), column_mass, log_partition

    def _reserve(self, room: int) -> None:
        """Make room for lists of so many large probabilities a row, on average over a group."""
        self._room = room
        self._columns = np.empty(room * self.samples, np.int32)
        self._values = np.empty(room * self.samples, np.float32)

    def _compressed(self, counts: NDArray[np.int64]) -> sparse.csr_array:
        starts = np.append(0, counts.cumsum())
        columns = np.empty(starts[-1], np.int32)
        values = np.empty(starts[-1])
        lists = (self._columns, self._values, columns, values)
        self._run(compiled.compress, starts, self._groups, self._room, *lists)
        shape = (len(counts), self._cost.shape[1] + 1)
        return sparse.csr_array((values, columns, starts), shape=shape)


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    """Return a read-only view: Numba compiles anew for every kind of argument."""
    view = array.view()
    view.flags.writeable = False
    return view


def _row_sums(column_mass: NDArray[np.float64], log_partition: Vector) -> RowSums:
    """Add up the groups, in their order."""
    return RowSums(column_mass.sum(axis=0), float(log_partition.sum()))


def _plan_sums(column_mass: NDArray[np.float64], terms: NDArray[np.float64]) -> PlanSums:
    """Add up the groups, and turn logarithms to the base 2 into natural ones."""
    transport, semantic, entropy, slack_entropy, excess = terms.sum(axis=0).tolist()
    return PlanSums(
        column_mass=column_mass.sum(axis=0),
        transport=transport,
        semantic=semantic,
        plan_entropy=math.log(2) * entropy,
        slack_entropy=math.log(2) * slack_entropy,
        row_excess=excess,
    )


def run(function: Callable[..., None], *arguments: Any, most_threads: int) -> None:
    """Call a compiled loop on no more threads than it needs, and Numba and OpenMP are told."""
    with _one_at_a_time, _torch_threads_kept():
        allowed = numba.get_num_threads()
        wanted = min(allowed, _openmp_threads(allowed), most_threads)
        if wanted == allowed:
            function(*arguments)
            return
        numba.set_num_threads(wanted)
        try:
            function(*arguments)
        finally:
            numba.set_num_threads(allowed)


@contextmanager
def _torch_threads_kept() -> Iterator[None]:
    """Put back Torch's number of threads: Numba sets OpenMP's, which Torch goes by."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 0
    try:
        yield
    finally:
        if torch and torch.get_num_threads() != before:
            torch.set_num_threads(before)


def _openmp_threads(otherwise: int) -> int:
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return max(1, int(first)) if first.isdecimal() else otherwise
