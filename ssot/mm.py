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
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ssot import lockstep
from ssot.arrays import Vector, namespace
from ssot.columns import Columns
from ssot.kernels.protocol import Kernel, Matrix, Plan, PlanSums, value_rounding
from ssot.lockstep import Steps
from ssot.newton import Point
from ssot.objective import Objective, evaluate
from ssot.problem import Problem
from ssot.semidual import InnerSolution, solve_inner
from ssot.status import Progress, Status

logger = logging.getLogger(__name__)

INNER_SHARE = 0.5
"""Inner tolerance as a share of the last outer gap."""

SMALLEST_TOLERANCE = 1e-13
"""Inner tolerance that float64 sums can still meet."""

LOOSEST_INNER_EXPONENT = 0.75
"""Loosest inner tolerance as a power of `tol`: plans of the descent miss their masses by so little
that the first-order correction of their values is exact."""


@dataclass(frozen=True)
class Limits:
    """When to stop."""

    tol: float
    max_steps: int
    max_passes: int

    @property
    def loosest_inner_tol(self) -> float:
        """Inner tolerance to begin with, while the gap is unknown or large."""
        return max(math.pow(self.tol, LOOSEST_INNER_EXPONENT), SMALLEST_TOLERANCE)


@dataclass(frozen=True, eq=False)
class Start:
    """Where to start: from nothing, from the prices of all columns, or also from a plan.

    A plan that is feasible for the problem is where the descent begins; another one is only what
    the semantic term is linearised at to find a beginning.
    """

    prices: Vector | None = None
    plan: Plan | None = None
    is_feasible: bool = False


@dataclass(frozen=True, eq=False)
class Outcome:
    """A plan with the quantities that only the iteration knows."""

    plan: Plan
    sums: PlanSums
    prices: Vector
    objective: Objective
    gap: float
    inner_gap: float
    status: Status
    history: tuple[float, ...]
    passes: int


@dataclass(frozen=True, eq=False)
class _Iterate:
    """A feasible plan with its sums, its prices and its objective.

    `residual` is the L1 distance of the masses of the open columns from what they demand.
    """

    plan: Plan
    sums: PlanSums
    prices: Vector
    objective: Objective
    residual: float


def minimise(
    problem: Problem,
    kernel: Kernel,
    limits: Limits,
    start: Start,
    callback: Callable[[Progress], bool | None] | None,
) -> Steps[Outcome]:
    """Descend from a start until the stationarity gap is at most the tolerance.

    A problem without semantics is its own surrogate, so its solution is where it starts.
    """
    run = _Descent(problem, kernel, limits, start)
    if problem.totals.is_streamed:
        run.callback = callback
    current = yield from run.first_iterate(start)
    history = [run.value(current, current.prices)]
    inner_tol = limits.loosest_inner_tol
    while True:
        answer = yield from run.answer_to(current, inner_tol)
        value = run.value(current, answer.prices)
        gap = max(value + current.objective.semantic - answer.dual, 0.0)
        progress = run.progress = Progress(
            step=len(history) - 1,
            objective=history[-1] + run.shifted,
            gap=gap,
            row_passes=run.passes,
            prices=run.to_cost(current.prices),
        )
        logger.debug("%s", progress)
        status = run.status(current, progress)
        wants_stop = callback is not None and callback(progress)
        if (wants_stop and status is None) or (run.stopped and status is not Status.CONVERGED):
            status = Status.STOPPED
        if status is None:
            restores = run.restores(current, answer, gap)
            certain = np.inf if restores else max(gap - answer.gap, 0.0)
            following = yield from run.step(current, answer, certain)
            following_value = run.value(following, answer.prices)
            if following_value < value or restores:
                run.recycle(current.plan)
                current = following
                if following_value < history[-1]:
                    history.append(following_value)
                inner_tol = max(min(inner_tol, INNER_SHARE * gap), SMALLEST_TOLERANCE)
                continue
            run.undo_step(current, following)
            if inner_tol > SMALLEST_TOLERANCE:
                inner_tol = max(INNER_SHARE * inner_tol, SMALLEST_TOLERANCE)
                continue
            status = Status.STALLED
        return Outcome(
            plan=run.own(current.plan),
            sums=current.sums,
            prices=run.to_cost(current.prices),
            objective=run.of_cost(current),
            gap=gap,
            inner_gap=answer.gap,
            status=status,
            history=tuple(value + run.shifted for value in history),
            passes=run.passes,
        )


class _Descent:
    """The moves of one run of the outer loop, with what the last inner solve has taught.

    Two plans and one product with the graph are all the N x K arrays it holds. `product` is that
    of the current plan but between `step` and its verdict, when it is that of the next one. Prices
    and values belong to the cost less the kernel's shift; `shifted` is what that takes from values.
    """

    def __init__(self, problem: Problem, kernel: Kernel, limits: Limits, start: Start) -> None:
        self.problem = problem
        self.kernel = kernel
        self.limits = limits
        self.columns = Columns.of(problem)
        self.passes = 0
        self.answer: InnerSolution | None = None
        self.product: Matrix | None = None
        self.shifted = kernel.shift * problem.rho
        self.callback: Callable[[Progress], bool | None] | None = None
        self.progress = Progress(step=0, objective=math.inf, gap=math.inf, row_passes=0)
        self.stopped = False
        self._given = start.plan
        self._spare: Plan | None = None

    def solve_inner(self, tol: float, prices: Vector | None) -> Steps[InnerSolution]:
        """Solve the problem linearised at the plan that the product belongs to."""
        out, self._spare = self._spare, None
        self.answer = yield from solve_inner(
            self.kernel,
            self.product,
            self.columns,
            self.problem,
            tol=tol,
            max_passes=self.limits.max_passes - self.passes,
            warm_prices=prices,
            out=out,
            watch=None if self.callback is None else self._tell,
        )
        self.passes += self.answer.passes
        self.stopped |= self.answer.stopped
        return self.answer

    def _tell(self, point: Point, passes: float) -> bool:
        """Tell the callback of a point on the way to the next answer, and whether to stop there."""
        progress = replace(
            self.progress,
            row_passes=self.passes + math.ceil(passes),
            prices=self.to_cost(self.columns.expand(point.prices)),
        )
        if not self.problem.has_semantics:
            value = point.dual + point.gap + self.shifted
            progress = replace(progress, objective=value, gap=point.gap)
        return self.stopped or (self.callback is not None and bool(self.callback(progress)))

    def first_iterate(self, start: Start) -> Steps[_Iterate]:
        """Return the plan to start from, or the answer to the cost linearised at it or at none."""
        prices = None if start.prices is None else self._from_cost(start.prices)
        if not self.problem.has_semantics:
            answer = yield from self.solve_inner(self.limits.tol, prices)
            return (yield from self.iterate(answer.plan, answer.prices, is_answer=True))
        if start.plan is not None and prices is not None:
            self.product = self.kernel.graph_product(start.plan.matrix, None)
            if start.is_feasible:
                return (yield from self.iterate(start.plan, prices, is_answer=False))
        answer = yield from self.solve_inner(self.limits.loosest_inner_tol, prices)
        self.product = self.kernel.graph_product(answer.plan.matrix, self.product)
        return (yield from self.iterate(answer.plan, answer.prices, is_answer=True))

    def answer_to(self, current: _Iterate, tol: float) -> Steps[InnerSolution]:
        """Return the solution of the surrogate at the current plan."""
        if self.answer is not None and self.product is None:
            return self.answer
        prices = current.prices if self.answer is None else self.answer.prices
        return (yield from self.solve_inner(tol, prices))

    def iterate(self, plan: Plan, prices: Vector, *, is_answer: bool) -> Steps[_Iterate]:
        """Measure a plan; prices of soft columns follow from its masses unless they induced it."""
        columns = self.columns
        sums = yield from lockstep.measure(self.kernel, plan, self.product)
        mass, prices = sums.column_mass[columns.is_open], prices[columns.is_open]
        if not is_answer:
            prices = columns.prices_of(mass, prices)
        return _Iterate(
            plan=plan,
            sums=sums,
            prices=columns.expand(prices),
            objective=evaluate(self.problem, sums),
            residual=float(np.abs(mass - columns.demand(prices)).sum()),
        )

    def recycle(self, plan: Plan) -> None:
        """Let the next answer overwrite a plan, unless the caller gave it."""
        if plan is not self._given:
            self._spare = plan

    def own(self, plan: Plan) -> Plan:
        """Return a plan that is nobody else's."""
        if plan is not self._given:
            return plan
        xp = namespace(plan.matrix)
        return Plan(*(xp.asarray(part, copy=True) for part in plan))

    def undo_step(self, current: _Iterate, rejected: _Iterate) -> None:
        """Return to the current plan."""
        self.recycle(rejected.plan)
        self.product = self.kernel.graph_product(current.plan.matrix, self.product)

    def _from_cost(self, prices: Vector) -> Vector:
        """Return prices for the shifted cost: only that of the virtual cluster differs."""
        return np.append(prices[:-1], prices[-1] + self.kernel.shift)

    def to_cost(self, prices: Vector) -> Vector:
        """Return prices for the cost of the problem, with mean 0 where a constant is free."""
        moved = np.append(prices[:-1], prices[-1] - self.kernel.shift)
        return moved - moved[self.columns.is_open].mean() if self.columns.has_gauge else moved

    def of_cost(self, iterate: _Iterate) -> Objective:
        """Return the objective with the cost of the problem."""
        moved = self.kernel.shift * float(iterate.sums.column_mass[:-1].sum())
        return replace(iterate.objective, transport=iterate.objective.transport + moved)

    def value(self, iterate: _Iterate, prices: Vector) -> float:
        """Return the objective, corrected for what hard columns lack or exceed, at given prices.

        Without that a plan that falls short of its mass could look better than any that does not.
        The answer at these prices has the least corrected surrogate, whatever its own shortfall.
        """
        is_open = self.columns.is_open
        mass = iterate.sums.column_mass[is_open]
        worth = self.columns.shortfall_worth(prices[is_open], mass)
        return iterate.objective.total + worth

    def rounding(self, current: _Iterate) -> float:
        """Return the size of differences in the objective that may be rounding errors."""
        scale = current.objective.scale
        return value_rounding(self.kernel) * scale if math.isfinite(scale) else 0.0

    def restores(self, current: _Iterate, answer: InnerSolution, gap: float) -> bool:
        """Tell whether only the masses are amiss, and the whole way to the answer mends them."""
        is_stationary = gap <= max(self.limits.tol, self.rounding(current))
        return is_stationary and answer.residual < 0.95 * current.residual

    def status(self, current: _Iterate, progress: Progress) -> Status | None:
        """Return why to end at the current plan, or None to go on."""
        limits = self.limits
        if (
            progress.gap <= max(limits.tol, self.rounding(current))
            and current.residual <= limits.tol
        ):
            return Status.CONVERGED
        if self.passes >= limits.max_passes:
            return Status.MAX_PASSES
        if not self.problem.has_semantics:
            return Status.STALLED
        return Status.MAX_STEPS if progress.step >= limits.max_steps else None

    def step(self, current: _Iterate, answer: InnerSolution, gap: float) -> Steps[_Iterate]:
        """Move from the current plan towards the answer as far as descent is certain."""
        kernel, target = self.kernel, answer.plan
        change = yield from lockstep.replace_product(
            kernel, self.product, current.plan.matrix, target.matrix
        )
        curve = -self.problem.semantic_weight * change
        if gap >= 2 * curve:
            return (yield from self.iterate(target, answer.prices, is_answer=True))
        kernel.interpolate(current.plan, target, gap / (2 * curve))
        self.product = kernel.graph_product(target.matrix, self.product)
        return (yield from self.iterate(target, answer.prices, is_answer=False))
