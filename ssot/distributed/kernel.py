"""A backend over several ranks: each works on its rows, and their sums are added up."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, cast

import numpy as np
import torch
from scipy.linalg import LinAlgError

from ssot.adjacency import Shard
from ssot.arrays import HOST, Vector, namespace, to_place
from ssot.curvature import Coupling, DenseCoupling, Indices, System, sampled_rows
from ssot.distributed.ranks import GroupRanks
from ssot.kernels.protocol import (
    Kernel,
    Matrix,
    Plan,
    PlanSums,
    RowSums,
)
from ssot.problem import Problem


class ShardedKernel:
    """The N x K operations of a problem of which the kernel `own` has the rows of this rank.

    Matrices and plans are those of its rows; sums are those of all. An operation on several
    problems takes one exchange.

    Parameters
    ----------
    own : Kernel
    problem : Problem
    samples : int
        How many rows all ranks have.
    kept_every : int, optional
        See `Kernel`.
    sums_there : bool
        Whether the kernels of all ranks add up the sums of a row pass where they are. One without
        rows, or on another kind of device than others, may be unable to.
    """

    def __init__(
        self,
        own: Kernel,
        problem: Problem,
        samples: int,
        kept_every: int | None = None,
        *,
        sums_there: bool,
    ) -> None:
        self.name = own.name
        self.place = own.place
        self.resolution = own.resolution
        self.samples = samples
        self.shift = own.shift
        self.adds_up = True
        self.kept_every = kept_every
        self.own = own
        self.sums_there = sums_there
        self._problem = problem
        self.ranks = cast(GroupRanks, problem.ranks)

    @classmethod
    def together(
        cls, operation: str, kernels: Sequence[Self], arguments: Sequence[tuple[Any, ...]]
    ) -> Sequence[Any]:
        """Work on this rank's rows of all problems, and add up their sums in one exchange."""
        how, pairs = _OPERATIONS[operation], list(zip(kernels, arguments, strict=True))
        own = [kernel.own for kernel in kernels]
        given = [how.own_arguments(*pair) for pair in pairs]

        def work() -> tuple[Sequence[Any], None]:
            return own[0].together(operation, own, given), None

        # What is read may fail on one rank, which the others then hear.
        is_read = kernels[0]._problem.totals.is_streamed
        found = kernels[0].ranks.share(work)[0] if is_read else work()[0]
        sums = [how.numbers(answer, *pair) for answer, pair in zip(found, pairs, strict=True)]
        agreed = b"".join([operation.encode(), *map(how.agreed, arguments)])
        total = kernels[0].ranks.sum(np.concatenate(sums), agreed)
        parts = np.split(total, np.cumsum([len(part) for part in sums])[:-1])
        return [how.answer(*given) for given in zip(parts, found, kernels, strict=True)]

    def row_pass(
        self, product: Matrix | None, prices: Vector, epsilon: float, system: System | None
    ) -> tuple[RowSums, Coupling]:
        """See `Kernel`."""
        result: tuple[RowSums, Coupling]
        [result] = self.together("row_pass", [self], [(product, prices, epsilon, system)])
        return result

    def plan(
        self, product: Matrix | None, prices: Vector, epsilon: float, out: Plan | None
    ) -> tuple[Plan, RowSums]:
        """See `Kernel`."""
        result: tuple[Plan, RowSums]
        [result] = self.together("plan", [self], [(product, prices, epsilon, out)])
        return result

    def measure(self, plan: Plan, product: Matrix | None) -> PlanSums:
        """See `Kernel`."""
        result: PlanSums
        [result] = self.together("measure", [self], [(plan, product)])
        return result

    def replace_product(self, product: Matrix, old: Matrix, new: Matrix) -> float:
        """See `Kernel`."""
        result: float
        [result] = self.together("replace_product", [self], [(product, old, new)])
        return result

    def graph_product(self, matrix: Matrix, out: Matrix | None) -> Matrix:
        """See `Kernel`."""
        product = namespace(matrix).empty_like(matrix) if out is None else out
        return self.own.graph_product(self.with_neighbours(matrix), product)

    def interpolate(self, old: Plan, new: Plan, step: float) -> None:
        """See `Kernel`."""
        self.own.interpolate(old, new, step)

    def sample(self, product: Matrix | None, every: int) -> tuple[Kernel, Matrix | None]:
        """See `Kernel`; of each rank's rows."""
        own, its_product = self.own.sample(product, every)
        samples = self.samples // every
        sampled = type(self)(own, self._problem, samples, sums_there=self.sums_there)
        return sampled, its_product

    def typical_spread(self, product: Matrix | None) -> float:
        """See `Kernel`; the mean over the ranks, as their rows count."""
        rows = self.own.samples
        spread = self.own.typical_spread(product) if rows else 0.0
        total, samples = self.ranks.sum(rows * np.array([spread, 1.0]))
        return float(total / samples)

    def with_neighbours(self, matrix: Matrix) -> Matrix:
        """Return the rows of this rank, and those of their neighbours on others."""
        if not isinstance(self._problem.graph, Shard):
            raise ValueError("a product with the graph needs a problem with a graph")
        return namespace(matrix).concat([matrix, self._problem.graph.fetch(matrix)])

    def rows_for_curvature(self, columns: int, system: System | None) -> int:
        """Return from how many of this rank's rows the curvature comes, where it is dear."""
        effort = 1.0 if system is None else system.effort
        return max(1, int(sampled_rows(columns, effort) * self.own.samples / self.samples))


@dataclass(frozen=True, eq=False)
class SharedCoupling(DenseCoupling):
    """W, of which all ranks take the first one's solution: on others it may round otherwise."""

    ranks: GroupRanks

    def solve(
        self, free: Indices, diagonal: Vector, gradient: Vector, epsilon: float, longest: float
    ) -> Vector:
        """Return the direction, or raise, as the first rank does."""
        direction = np.full(len(free), np.nan)
        if self.ranks.rank == 0:
            with contextlib.suppress(LinAlgError):
                direction = super().solve(free, diagonal, gradient, epsilon, longest)
        shared = self.ranks.from_first(torch.from_numpy(direction).to(self.ranks.device))
        found: Vector = to_place(shared, HOST)
        if np.isnan(found).any():
            raise LinAlgError("the curvature is singular")
        return found


class _Operation(Protocol):
    """How an operation is done by several ranks."""

    def own_arguments(self, kernel: ShardedKernel, arguments: Any) -> tuple[Any, ...]:
        """Return what this rank's kernel is given."""
        ...

    def numbers(self, answer: Any, kernel: ShardedKernel, arguments: Any) -> Vector:
        """Return what of its answer is to be added up."""
        ...

    def agreed(self, arguments: Any) -> bytes:
        """Return what of the arguments must be the same on all ranks."""
        ...

    def answer(self, total: Vector, own: Any, kernel: ShardedKernel) -> Any:
        """Return the answer for all rows."""
        ...


class _OwnArguments:
    def own_arguments(self, kernel: ShardedKernel, arguments: Any) -> tuple[Any, ...]:
        return tuple(arguments)

    def agreed(self, arguments: Any) -> bytes:
        return b""


class _AtPrices(_OwnArguments):
    def agreed(self, arguments: Any) -> bytes:
        _, prices, epsilon, _ = arguments
        return np.append(prices, epsilon).tobytes()


class _RowPass(_AtPrices):
    def own_arguments(self, kernel: ShardedKernel, arguments: Any) -> tuple[Any, ...]:
        *others, system = arguments
        return (*others, system and system._replace(is_whole=kernel.sums_there))

    def numbers(self, answer: Any, kernel: ShardedKernel, arguments: Any) -> Vector:
        if kernel.sums_there:
            return np.zeros(0)
        sums, coupling = answer
        columns = len(sums.column_mass)
        matrix = coupling.matrix(kernel.rows_for_curvature(columns, arguments[3]))
        return np.concatenate([matrix[np.triu_indices(columns)], _of_rows(sums)])

    def answer(self, total: Vector, own: Any, kernel: ShardedKernel) -> tuple[RowSums, Coupling]:
        if kernel.sums_there:
            sums, coupling = own
            is_dense = isinstance(coupling, DenseCoupling)
            return sums, SharedCoupling(coupling.overlap, kernel.ranks) if is_dense else coupling
        columns = len(own[0].column_mass)
        overlap = np.zeros((columns, columns))
        overlap[np.triu_indices(columns)] = total[: -columns - 1]
        overlap += np.triu(overlap, 1).T
        return _row_sums(total[-columns - 1 :]), SharedCoupling(overlap, kernel.ranks)


class _Plan(_AtPrices):
    def numbers(self, answer: Any, kernel: ShardedKernel, arguments: Any) -> Vector:
        return _of_rows(answer[1])

    def answer(self, total: Vector, own: Any, kernel: ShardedKernel) -> tuple[Plan, RowSums]:
        return own[0], _row_sums(total)


class _Measure(_OwnArguments):
    def numbers(self, answer: Any, kernel: ShardedKernel, arguments: Any) -> Vector:
        return np.append(answer.column_mass, answer[1:])

    def answer(self, total: Vector, own: Any, kernel: ShardedKernel) -> PlanSums:
        columns = len(own.column_mass)
        return PlanSums(total[:columns], *total[columns:].tolist())


class _ReplaceProduct(_OwnArguments):
    def own_arguments(self, kernel: ShardedKernel, arguments: Any) -> tuple[Any, ...]:
        product, old, new = arguments
        return product, old, kernel.with_neighbours(new)

    def numbers(self, answer: Any, kernel: ShardedKernel, arguments: Any) -> Vector:
        return np.array([answer])

    def answer(self, total: Vector, own: Any, kernel: ShardedKernel) -> float:
        return float(total[0])


def _of_rows(sums: RowSums) -> Vector:
    return np.append(sums.column_mass, sums.log_partition)


def _row_sums(numbers: Vector) -> RowSums:
    return RowSums(numbers[:-1], float(numbers[-1]))


_OPERATIONS: dict[str, _Operation] = {
    "row_pass": _RowPass(),
    "plan": _Plan(),
    "measure": _Measure(),
    "replace_product": _ReplaceProduct(),
}
