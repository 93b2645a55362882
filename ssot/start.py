"""Where a solve starts: cold, from prices, or from an earlier solution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from ssot.arrays import HOST, LARGEST, Array, Place, namespace, to_numpy, to_place
from ssot.kernels import Plan
from ssot.mm import Start
from ssot.problem import Problem
from ssot.solution import Solution
from ssot.streaming.cost import row_blocks
from ssot.streaming.plan import StreamedPlan


def starts_from(
    inits: Sequence[Solution | ArrayLike | None], problems: Sequence[Problem], place: Place
) -> list[Start]:
    """Return where to start problems of the same ranks, with plans in the given place.

    A plan is used where all ranks have one of their rows.
    """

    def find() -> tuple[list[Start], list[tuple[bool, bool, bool]]]:
        starts = [_own_start(*pair, place) for pair in zip(inits, problems, strict=True)]
        return starts, [(s.prices is None, s.plan is None, s.is_feasible) for s in starts]

    starts, told = problems[0].ranks.share(find)
    return [_agreed(*pair) for pair in zip(starts, zip(*told, strict=True), strict=True)]


def _agreed(start: Start, of_ranks: Sequence[tuple[bool, bool, bool]]) -> Start:
    is_cold, lacks_plan, is_feasible = zip(*of_ranks, strict=True)
    if any(is_cold) != all(is_cold):
        raise ValueError("init must be given on all ranks or on none; leave it out to start cold")
    if any(lacks_plan):
        return Start(start.prices)
    return replace(start, is_feasible=all(is_feasible))


def _own_start(init: Solution | ArrayLike | None, problem: Problem, place: Place) -> Start:
    if init is None:
        return Start()
    classes = problem.cost.shape[1]
    if not isinstance(init, Solution):
        try:
            prices = to_numpy(init, "init").astype(np.float64)
        except TypeError as error:
            raise TypeError(
                "init must be a Solution returned by solve, or its prices, "
                f"got {type(init).__name__}"
            ) from error
        if prices.shape != (classes + 1,):
            raise ValueError(
                f"init must be a Solution, or the {classes + 1} prices of one, "
                f"got an array of shape {prices.shape}"
            )
        is_price = (prices == -np.inf) | (np.abs(prices) <= LARGEST)
        if not is_price.all():
            first = int(np.argmin(is_price))
            raise ValueError(
                f"init must be finite, at most {LARGEST:.0e}, or -inf for a closed class, "
                f"got {prices[first]} at index {first}"
            )
        return Start(prices)
    samples_before, classes_before = init.problem.cost.shape
    if classes != classes_before:
        raise ValueError(
            f"init must have the classes of the problem, {classes}, got a solution of "
            f"{classes_before}; leave it out to start cold"
        )
    is_stored = not isinstance(init._plan.matrix, StreamedPlan)
    if samples_before != problem.cost.shape[0] or not (problem.has_semantics and is_stored):
        return Start(init._prices)
    if problem.is_streamed:
        place = HOST
    matrix = to_place(init._plan.matrix, problem.place)
    matrix = namespace(matrix).astype(matrix, problem.cost.dtype, copy=False)
    plan = Plan(to_place(matrix, place), to_place(init._plan.slack, place))
    is_feasible = problem.has_constraints_of(init.problem) and not _is_forbidden(matrix, problem)
    return Start(init._prices, plan, is_feasible)


def _is_forbidden(matrix: Array, problem: Problem) -> bool:
    """Tell whether a plan has mass where the cost is inf, as one of changed memory may have."""
    xp = namespace(matrix)
    return problem.totals.forbids_pairs and any(
        bool(xp.any(xp.isinf(cost) & (matrix[rows] > 0))) for rows, cost in row_blocks(problem.cost)
    )
