"""The inner problem: K + 1 prices by annealed, safeguarded Newton steps on the semi-dual."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from ssot.arrays import Vector
from ssot.columns import Columns
from ssot.kernels.protocol import Kernel, Matrix, Plan
from ssot.lockstep import Steps
from ssot.newton import SMALLEST_RADIUS, Ascent, Climb, Point, SemiDual, climb
from ssot.problem import Problem

ANNEALING_FACTOR = 4.0
"""By how much epsilon falls from one level to the next."""

FIRST_LEVEL = 0.01
"""First epsilon of a cold solve, as a share of the cost's typical spread."""

LEVEL_TOLERANCE = 1e-3
"""Column residual at which a level before the last is left."""

WARM_PASSES = 40
"""Row passes after which a warm start counts as misleading and the solve starts cold."""

SAMPLE_EVERY = 8
"""A cold solve of many rows first solves the problem of every eighth, or of more."""

SAMPLES_PER_COLUMN = 100
"""Fewest rows for each column that a sample may have."""

AIM = 1e-10
"""Residual that the plan of a problem without a graph aims at where `tol` would allow more, at the
price of one more pass at most."""


@dataclass(frozen=True, eq=False)
class InnerSolution:
    """The plan of the linearised problem.

    Attributes
    ----------
    plan : Plan
        Transported masses, and the masses left in the virtual cluster.
    prices : (K + 1,) array
        Of all columns, the virtual cluster last; ``-inf`` for closed ones.
    residual : float
        L1 distance between the column masses of the plan and the masses demanded.
    gap : float
        Bound on how far the plan is from the optimum of the linearised problem.
    dual : float
        The semi-dual ``D(g)``, a lower bound of the linearised problem.
    passes : int
        Times the cost was read, the plan included.
    stopped : bool
        Whether `watch` wanted it to end.
    """

    plan: Plan
    prices: Vector
    residual: float
    gap: float
    dual: float
    passes: int
    stopped: bool = False


def solve_inner(
    kernel: Kernel,
    product: Matrix | None,
    columns: Columns,
    problem: Problem,
    *,
    tol: float,
    max_passes: int,
    warm_prices: Vector | None = None,
    out: Plan | None = None,
    watch: Callable[[Point, float], bool] | None = None,
) -> Steps[InnerSolution]:
    """Solve the linearised problem to a column residual and a duality gap of at most `tol`.

    `watch` is called with each point at the target epsilon and the passes so far; where it returns
    True, the solution is the plan of that point.

    A warm solve starts at the target epsilon from the given K + 1 prices, a cold one of many rows
    from the prices of a sample of them. When these mislead, or for few rows, epsilon is annealed
    from a share of the cost's spread.
    """
    epsilon = problem.epsilon
    semidual = SemiDual(kernel, product, columns, problem.totals.weight_entropy)
    is_final = product is None
    aim = min(0.5 * tol, max(AIM, kernel.resolution)) if is_final else 0.5 * tol
    goal = _Goal(semidual, tol, aim, spare_steps=int(is_final), watch=watch)
    if warm_prices is None:
        start = yield from _start_from_sample(semidual, epsilon, max_passes)
    else:
        start = columns.restrict(warm_prices)
    patience = max_passes if start is None else min(semidual.passes + WARM_PASSES, max_passes)
    if start is None:
        start = yield from _anneal(semidual, epsilon, max_passes)
    end = yield from climb(semidual, start, epsilon, goal, patience)
    if not (end.done or end.stalled or semidual.passes >= max_passes):
        start = yield from _anneal(semidual, epsilon, max_passes)
        end = yield from climb(semidual, start, epsilon, goal, max_passes)
    solution = yield from _finish(semidual, end, epsilon, tol, out)
    if end.done and not goal.stopped and not semidual.meets(solution, tol):
        goal = _Goal(semidual, tol, 0.0, spare_steps=0, watch=watch)
        start = columns.restrict(solution.prices)
        end = yield from climb(semidual, start, epsilon, goal, max_passes)
        solution = yield from _finish(semidual, end, epsilon, tol, solution.plan)
    return replace(solution, stopped=goal.stopped)


@dataclass
class _Goal:
    """When to write the plan: one Newton step, which that takes along, is foreseen to bring `aim`.

    What meets the tolerance already gets `spare_steps` more to come that near.
    """

    semidual: SemiDual
    tol: float
    aim: float
    spare_steps: int
    watch: Callable[[Point, float], bool] | None = None
    stopped: bool = field(default=False, init=False)

    def __call__(self, point: Point, contraction: float) -> bool:
        if self.watch is not None and self.watch(point, self.semidual.passes):
            self.stopped = True
        if self.stopped or self.semidual.meets(point, self.aim, contraction):
            return True
        if self.semidual.meets(point, self.tol):
            self.spare_steps -= 1
        return self.spare_steps < 0


def _start_from_sample(
    semidual: SemiDual, epsilon: float, max_passes: float
) -> Steps[Vector | None]:
    """Return the prices of a sample of the rows, itself solved in this way; None for few rows."""
    samples, columns = semidual.kernel.samples, len(semidual.columns.target)
    every = min(SAMPLE_EVERY, samples // (SAMPLES_PER_COLUMN * columns))
    kept = semidual.kernel.kept_every
    if kept is not None:
        every = max(every // kept, 1) * kept
    elif every < 2:
        return None
    sampled = semidual.of_sample(every)
    most = min(WARM_PASSES, max_passes)
    start = yield from _start_from_sample(sampled, epsilon, most)
    if start is None:
        start = yield from _anneal(sampled, epsilon, most)
    end = yield from climb(sampled, start, epsilon, _near_enough, most)
    semidual.passes += sampled.passes / every
    return end.point.prices if end.done else None


def _anneal(semidual: SemiDual, epsilon: float, max_passes: float) -> Steps[Vector]:
    """Return prices that solve the problem roughly at an epsilon above the given one.

    Where epsilon needs no annealing, prices of 0.
    """
    columns = semidual.columns
    prices = columns.balance(np.zeros(len(columns.target)))
    for level in _levels_above(epsilon, semidual.kernel.typical_spread(semidual.product)):
        if semidual.passes >= max_passes:
            break
        end = yield from climb(semidual, prices, level, _near_enough, max_passes)
        prices = end.point.prices
    return prices


def _levels_above(epsilon: float, spread: float) -> Iterator[float]:
    level = FIRST_LEVEL * spread
    while level > epsilon:
        yield level
        level /= ANNEALING_FACTOR


def _near_enough(point: Point, _contraction: float) -> bool:
    return point.residual <= LEVEL_TOLERANCE


def _finish(
    semidual: SemiDual, end: Climb, epsilon: float, tol: float, out: Plan | None
) -> Steps[InnerSolution]:
    """Turn the last point into a plan, one undamped Newton step further on if it is short.

    The plan needs a row pass anyway, so the step is free. Near the solution it contracts the error
    as the steps before it did, or better. The masses are those of the plan itself.
    """
    ascent = Ascent(semidual, epsilon)
    direction = ascent.newton_direction(end.point)
    is_short = ascent.damping == 0 and np.abs(direction).max() <= SMALLEST_RADIUS * epsilon
    prices = end.point.prices
    if is_short:
        prices = semidual.columns.balance(prices + direction)
    plan, final = yield from semidual.plan_at(prices, epsilon, out)
    if final.residual > end.point.residual and not semidual.meets(final, tol):
        plan, final = yield from semidual.plan_at(end.point.prices, epsilon, plan)
    return InnerSolution(
        plan=plan,
        prices=semidual.columns.expand(final.prices),
        residual=final.residual,
        gap=final.gap,
        dual=final.dual,
        passes=math.ceil(semidual.passes),
    )
