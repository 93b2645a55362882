"""The operations on a streamed cost: those of the kernels of its blocks, added up."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np

from ssot.adjacency import graph_in
from ssot.arrays import HOST, Array, Vector, namespace, to_place
from ssot.curvature import Coupling, JointCoupling, System
from ssot.kernels.protocol import BlockKernel, Bound, Kernel, Plan, PlanSums, RowSums, one_by_one
from ssot.streaming.cost import StreamedCost
from ssot.streaming.plan import StreamedPlan, StreamedRows

CACHED_ENTRIES = 1 << 16
"""Entries of a block of rows that stays in cache."""


class StreamingKernel:
    """The operations over all rows of a streamed cost, of which only some are kept in memory.

    Without a graph a plan is its prices; with one, plans and products are memory-mapped files,
    which the kernel of the host multiplies.

    Parameters
    ----------
    cost : StreamedCost
    bound : Bound
        The kept rows of the cost; the weights and the graph of all rows.
    kind : callable
        Binds the kernel that blocks are for.
    on_host : callable
        Binds the kernel that files are for.
    """

    adds_up = False

    def __init__(
        self,
        cost: StreamedCost,
        bound: Bound,
        kind: Callable[[Bound], BlockKernel],
        on_host: Callable[[Bound], Kernel],
    ) -> None:
        self._cost = cost
        self._bound = bound
        self._on_host = on_host
        self._kept = kind(bound._replace(sample_weight=self._kept_weight(), graph=None))
        self._last = self._kept
        self._measured: tuple[Array, PlanSums] | None = None
        self.name = self._kept.name
        self.place = self._kept.place
        self.resolution = self._kept.resolution
        self.samples = len(cost)
        self.shift = bound.shift
        self.kept_every: int | None = cost.every

    @classmethod
    def together(
        cls, operation: str, kernels: Sequence[Self], arguments: Sequence[tuple[Any, ...]]
    ) -> Sequence[Any]:
        """Work on one problem after the other."""
        return one_by_one(operation, kernels, arguments)

    def row_pass(
        self, product: Array | None, prices: Vector, epsilon: float, system: System | None
    ) -> tuple[RowSums, Coupling]:
        """Return the row sums, and how the columns are coupled."""
        sums, coupling = _Sums(len(prices), self._cost), JointCoupling()
        of_parts = system and system._replace(is_whole=False)
        for rows, kernel in self._kernels():
            own = self._part(product, rows)
            part, its_coupling = kernel.row_pass(own, prices, epsilon, of_parts)
            sums.add(part, rows)
            coupling.add(its_coupling)
        return sums.result(), coupling.result()

    def plan(
        self, product: Array | None, prices: Vector, epsilon: float, out: Plan | None
    ) -> tuple[Plan, RowSums]:
        """Return the plan, which is stored only where there is a graph."""
        if self._bound.graph is None or not self._bound.semantic_weight:
            return self._measured_plan(prices, epsilon)
        plan = out or Plan(self._file(), np.empty(self.samples))
        sums, parts = _Sums(len(prices), self._cost), []
        for rows, kernel in self._kernels():
            target = Plan(*(part[rows] for part in plan))
            room = target if self.place == HOST else None
            made, part = kernel.plan(self._part(product, rows), prices, epsilon, room)
            if room is None:
                for source, stored in zip(made, target, strict=True):
                    stored[:] = to_place(source, HOST)
            sums.add(part, rows)
            parts.append(kernel.measure(made, None))
        self._measured = plan.matrix, _added(parts)
        return plan, sums.result()

    def plan_rows(self, prices: Vector, epsilon: float) -> Iterator[StreamedRows]:
        """Yield a plan without a graph in blocks, of arrays of their own."""
        for rows, cost in self._cost.blocks():
            plan, _ = self._kernel_of(rows, cost).plan(None, prices, epsilon, None)
            yield StreamedRows(rows, cost, plan.matrix)

    def measure(self, plan: Plan, product: Array | None) -> PlanSums:
        """Return the sums of a plan, without a reading where they were taken as it was made."""
        if isinstance(plan.matrix, StreamedPlan):
            return plan.matrix.sums
        if self._measured is not None and plan.matrix is self._measured[0]:
            return self._measured[1]._replace(semantic=_agreement(plan.matrix, product))
        parts = [
            kernel.measure(
                Plan(*(to_place(part[rows], self.place) for part in plan)),
                self._part(product, rows),
            )
            for rows, kernel in self._kernels()
        ]
        return _added(parts)

    def graph_product(self, matrix: Array, out: Array | None) -> Array:
        """Return ``W matrix`` in a file."""
        return self._files.graph_product(matrix, self._file() if out is None else out)

    def replace_product(self, product: Array, old: Array, new: Array) -> float:
        """Turn ``W old`` into ``W new`` in place, and return ``<new - old, W (new - old)>``."""
        return self._files.replace_product(product, old, new)

    def interpolate(self, old: Plan, new: Plan, step: float) -> None:
        """Turn `new` into ``old + step (new - old)`` in place."""
        self._files.interpolate(old, new, step)
        if self._measured is not None and new.matrix is self._measured[0]:
            self._measured = None

    def sample(self, product: Array | None, every: int) -> tuple[Kernel, Array | None]:
        """Return the kernel of kept rows that are about as far apart, without a reading."""
        kept = None if product is None else to_place(product[:: self._cost.every], self.place)
        further = max(1, every // self._cost.every)
        if further == 1:
            return self._kept, kept
        return self._kept.sample(kept, further)

    def typical_spread(self, product: Array | None) -> float:
        """Return how far a row's median cost lies above its minimum, in a typical kept row."""
        return self._kept.typical_spread(self.sample(product, self._cost.every)[1])

    def _measured_plan(self, prices: Vector, epsilon: float) -> tuple[Plan, RowSums]:
        """Return a plan that is not stored, measured on the way."""
        slack, sums, parts = np.empty(self.samples), _Sums(len(prices), self._cost), []
        for rows, kernel in self._kernels():
            left, measured, part = kernel.transient_plan(prices, epsilon)
            slack[rows] = to_place(left, HOST)
            parts.append(measured)
            sums.add(part, rows)
        matrix = StreamedPlan(lambda: self.plan_rows(prices, epsilon), _added(parts))
        return Plan(matrix, slack), sums.result()

    def _kernels(self) -> Iterator[tuple[slice, BlockKernel]]:
        """Read the cost, and yield the kernel of each block."""
        for rows, cost in self._cost.blocks():
            yield rows, self._kernel_of(rows, cost)

    def _kernel_of(self, rows: slice, cost: Array) -> BlockKernel:
        weight = self._bound.sample_weight[rows]
        self._last = self._last.for_rows(to_place(cost, self.place), weight)
        return self._last

    def _part(self, product: Array | None, rows: slice) -> Array | None:
        return None if product is None else to_place(product[rows], self.place)

    def _kept_weight(self) -> Array:
        """Return the weights of the kept rows, scaled up to those of all."""
        weight = self._bound.sample_weight
        xp = namespace(weight)
        kept = weight[:: self._cost.every]
        kept = kept if xp.any(kept > 0) else xp.ones_like(kept)
        return kept * (xp.sum(weight) / xp.sum(kept))

    @cached_property
    def _files(self) -> Kernel:
        """The kernel of the host, which needs no cost for what it does to files."""
        if self._bound.graph is None:
            raise ValueError("a product with the graph needs a problem with a graph")
        no_cost = np.broadcast_to(np.zeros((), self._dtype), self._cost.shape)
        graph = graph_in(self._bound.graph, HOST)
        weight = to_place(self._bound.sample_weight, HOST)
        return self._on_host(self._bound._replace(cost=no_cost, sample_weight=weight, graph=graph))

    def _file(self) -> Array:
        return scratch_matrix(self._cost.shape, self._dtype, self._cost.source.scratch)

    @property
    def _dtype(self) -> np.dtype[Any]:
        dtype: np.dtype[Any] = to_place(self._bound.cost[:1], HOST).dtype
        return dtype


class _Sums:
    """Adds up the row sums of blocks."""

    def __init__(self, columns: int, cost: StreamedCost) -> None:
        self._cost = cost
        self._column_mass = np.zeros(columns)
        self._log_partition = 0.0

    def add(self, part: RowSums, rows: slice) -> None:
        self._column_mass += part.column_mass
        self._log_partition += part.log_partition
        # The first reading has found no NaN, which no further reading would bring to an end.
        if not (math.isfinite(self._log_partition) and np.isfinite(self._column_mass).all()):
            raise self._cost.changed(f"the sums of the block at row {rows.start} are not finite")

    def result(self) -> RowSums:
        return RowSums(self._column_mass, self._log_partition)


def scratch_matrix(
    shape: tuple[int, ...], dtype: np.dtype[Any], folder: str | os.PathLike[str] | None
) -> Array:
    """Return an array in a file that has no name and is gone with the array."""
    size = math.prod(shape) * dtype.itemsize
    with tempfile.TemporaryFile(dir=folder, prefix="ssot-") as file:
        if hasattr(os, "posix_fallocate"):  # says so where the disk is too small
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                where = folder or tempfile.gettempdir()
                raise OSError(
                    error.errno,
                    f"scratch folder {os.fspath(where)} cannot hold a file of {size:,} bytes "
                    f"({error.strerror}); pass RowBlocks(scratch=...), a folder on a larger disk",
                ) from error
        return np.asarray(np.memmap(file, dtype, mode="w+", shape=shape))


def _agreement(matrix: Array, product: Array | None) -> float:
    """Return ``<matrix, product>``, by blocks that stay in cache."""
    if product is None:
        return 0.0
    height = max(1, CACHED_ENTRIES // matrix.shape[1])
    starts = range(0, len(matrix), height)
    blocks = ((matrix[i : i + height], product[i : i + height]) for i in starts)
    return sum(float(np.multiply(*block, dtype=np.float64).sum()) for block in blocks)


def _added(parts: Sequence[PlanSums]) -> PlanSums:
    return PlanSums(*(sum(terms[1:], start=terms[0]) for terms in zip(*parts, strict=True)))
