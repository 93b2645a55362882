"""The outer problem: majorise-minimise steps that descend, and the certificate of where they end.

The semantic term is linearised at the current plan Q, which leaves an inner problem with the cost
``C - 2 semantic_weight W Q`` and the solution Qn. With ``D = Qn - Q``,

    gap   = surrogate(Q) - surrogate(Qn),    curve = -semantic_weight <D, W D>,
    step  = 1 if curve <= 0 else min(1, gap / (2 curve)),

moving to ``Q + step D`` lowers the objective by at least ``gap - curve`` for the full step and by
``gap^2 / (4 curve)`` for a shortened one, whether W is definite or not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ssot.columns import Columns
from ssot.kernels.protocol import SUM_ROUNDING, Kernel, Matrix, Plan, Vector
from ssot.objective import Objective, evaluate
from ssot.problem import Problem
from ssot.semidual import InnerSolution, solve_inner
from ssot.status import Progress, Status

logger = logging.getLogger(__name__)

INNER_SHARE = 0.5
"""Inner tolerance as a share of the last outer gap; its last Newton step then squares the error."""

SMALLEST_TOLERANCE = 1e-13
"""Inner tolerance that float64 sums can still meet."""

FIRST_INNER_TOLERANCE = 1e-3
"""Inner tolerance of the first solve of a problem with semantics, whose gap is still unknown."""


@dataclass(frozen=True, eq=False)
class Limits:
    """When to stop."""

    tol: float
    max_steps: int
    max_passes: int


@dataclass(frozen=True, eq=False)
class Start:
    """Where to start: nothing, prices of all columns, or also a plan to linearise at."""

    prices: Vector | None = None
    matrix: Matrix | None = None


@dataclass(frozen=True, eq=False)
class Outcome:
    """A plan with the quantities that only the iteration knows."""

    plan: Plan
    prices: Vector
    objective: Objective
    gap: float
    inner_gap: float
    status: Status
    history: tuple[float, ...]
    passes: int


@dataclass(frozen=True, eq=False)
class _Iterate:
    """A feasible plan with its prices, its product with the graph, and its objective.

    `residual` bounds the L1 distance of the column masses from those demanded.
    """

    plan: Plan
    prices: Vector
    product: Matrix | None
    objective: Objective
    residual: float


def minimise(
    problem: Problem,
    kernel: Kernel,
    limits: Limits,
    start: Start,
    callback: Callable[[Progress], bool | None] | None,
) -> Outcome:
    """Descend from a start until the stationarity gap is at most the tolerance.

    A problem without semantics is its own surrogate, so its solution is where it starts.
    """
    run = _Descent(problem, kernel, limits)
    solution = run.first_solution(start)
    current = run.start_at(solution)
    history = [current.objective.total]
    inner_tol = FIRST_INNER_TOLERANCE
    while True:
        if problem.has_semantics:
            cost = kernel.linearize(current.product, problem.semantic_weight)
            solution = run.solve_inner(cost, inner_tol, solution.prices)
        gap = abs(current.objective.surrogate - solution.dual)
        progress = Progress(len(history) - 1, history[-1], gap, run.passes)
        logger.debug("%s", progress)
        status = run.status(current, solution, progress)
        if callback is not None and callback(progress) and status is None:
            status = Status.STOPPED
        if status is None:
            following = run.step(current, solution, max(gap - solution.gap, 0.0))
            if following.objective.total <= current.objective.total:
                current = following
                history.append(current.objective.total)
                inner_tol = max(min(inner_tol, INNER_SHARE * gap), SMALLEST_TOLERANCE)
                continue
            if inner_tol > SMALLEST_TOLERANCE:
                inner_tol = max(INNER_SHARE * inner_tol, SMALLEST_TOLERANCE)
                continue
            status = Status.STALLED
        return Outcome(
            plan=current.plan,
            prices=current.prices,
            objective=current.objective,
            gap=gap,
            inner_gap=solution.gap,
            status=status,
            history=tuple(history),
            passes=run.passes,
        )


class _Descent:
    """The moves of one run of the outer loop, and the row passes they have spent."""

    def __init__(self, problem: Problem, kernel: Kernel, limits: Limits) -> None:
        self.problem = problem
        self.kernel = kernel
        self.limits = limits
        self.columns = Columns.of(problem)
        self.passes = 0

    def solve_inner(self, cost: Matrix, tol: float, prices: Vector | None) -> InnerSolution:
        """Solve the problem with this linear cost."""
        solution = solve_inner(
            self.kernel,
            cost,
            self.columns,
            self.problem,
            tol=tol,
            max_passes=self.limits.max_passes - self.passes,
            warm_prices=prices,
        )
        self.passes += solution.passes
        return solution

    def first_solution(self, start: Start) -> InnerSolution:
        """Solve the problem linearised at the plan to start from, or at no plan."""
        kernel, problem = self.kernel, self.problem
        if not problem.has_semantics:
            return self.solve_inner(kernel.cost, self.limits.tol, start.prices)
        cost = kernel.cost
        if start.matrix is not None:
            cost = kernel.linearize(kernel.graph_product(start.matrix), problem.semantic_weight)
        return self.solve_inner(cost, FIRST_INNER_TOLERANCE, start.prices)

    def start_at(self, solution: InnerSolution) -> _Iterate:
        """Take an inner solution as the current plan."""
        plan = solution.plan
        product = self.kernel.graph_product(plan.matrix) if self.problem.has_semantics else None
        objective = evaluate(self.problem, self.kernel, plan, product)
        return _Iterate(plan, solution.prices, product, objective, solution.residual)

    def status(
        self, current: _Iterate, solution: InnerSolution, progress: Progress
    ) -> Status | None:
        """Return why to end at the current plan, or None to go on."""
        limits, rounding = self.limits, max(self.kernel.resolution, SUM_ROUNDING)
        gap_tol = max(limits.tol, rounding * current.objective.scale)
        if progress.gap <= gap_tol and current.residual <= limits.tol:
            return Status.CONVERGED
        if not self.problem.has_semantics:
            return Status.STALLED if solution.stalled else Status.MAX_PASSES
        if self.passes >= limits.max_passes:
            return Status.MAX_PASSES
        return Status.MAX_STEPS if progress.step >= limits.max_steps else None

    def step(self, current: _Iterate, solution: InnerSolution, gap: float) -> _Iterate:
        """Move from the current plan towards the inner solution as far as descent is certain."""
        kernel, problem, target = self.kernel, self.problem, solution.plan
        product = kernel.graph_product(target.matrix)
        direction = kernel.add(target.matrix, current.plan.matrix, -1.0)
        product_change = kernel.add(product, current.product, -1.0)
        curve = -problem.semantic_weight * kernel.inner(direction, product_change)
        step = 1.0 if gap >= 2 * curve else gap / (2 * curve)
        if step == 1:
            plan, prices, residual = target, solution.prices, solution.residual
        else:
            slack_change = kernel.add(target.slack, current.plan.slack, -1.0)
            plan = Plan(
                kernel.add(current.plan.matrix, direction, step),
                kernel.add(current.plan.slack, slack_change, step),
            )
            product = kernel.add(current.product, product_change, step)
            prices = _between(current.prices, solution.prices, step)
            residual = (1 - step) * current.residual + step * solution.residual
        objective = evaluate(problem, kernel, plan, product)
        return _Iterate(plan, prices, product, objective, residual)


def _between(first: Vector, second: Vector, step: float) -> Vector:
    """Return the prices a step of the way from the first to the second; closed ones stay closed."""
    between = second.copy()
    is_open = np.isfinite(second)
    between[is_open] = (1 - step) * first[is_open] + step * second[is_open]
    return between
