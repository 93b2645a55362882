"""A plan that is not stored, and the rows of plans of all kinds with their costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ssot.arrays import Array, to_place
from ssot.kernels.protocol import Plan, PlanSums
from ssot.problem import Problem
from ssot.streaming.cost import row_blocks


class StreamedRows(NamedTuple):
    """Some rows of a plan, with their costs."""

    rows: slice
    cost: Array
    matrix: Array


@dataclass(frozen=True, eq=False)
class StreamedPlan:
    """The matrix of a plan that is not stored, but made anew by reading the cost.

    Attributes
    ----------
    read : callable
        Yields its rows.
    sums : PlanSums
        Measured on it when it was made first.
    """

    read: Callable[[], Iterator[StreamedRows]]
    sums: PlanSums


def plan_rows(problem: Problem, plan: Plan) -> Iterator[StreamedRows]:
    """Yield the rows of any plan, in the caller's library, with their costs."""
    if isinstance(plan.matrix, StreamedPlan):
        for rows, cost, matrix in plan.matrix.read():
            yield StreamedRows(rows, cost, to_place(matrix, problem.place))
    else:
        for rows, cost in row_blocks(problem.cost):
            yield StreamedRows(rows, cost, to_place(plan.matrix[rows], problem.place))
