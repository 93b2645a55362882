"""The inner problem: K + 1 prices by annealed, safeguarded Newton steps on the semi-dual.

With the semantic term linearised, the plan's row i is ``alpha_i softmax((g - [C_i, 0]) / eps)`` for
the prices g that maximise the smooth concave function

    D(g) = eps sum alpha log alpha - eps sum_i alpha_i lse_i(g) + potential(g).

Its gradient is ``demand - column mass``; one row pass yields value, gradient and curvature.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy.linalg import LinAlgError
from scipy.special import xlogy

from ssot.columns import Columns
from ssot.curvature import Coupling
from ssot.kernels.protocol import (
    SUM_ROUNDING,
    Kernel,
    Matrix,
    Plan,
    RowSums,
    value_rounding,
)
from ssot.problem import Problem, Vector

ANNEALING_FACTOR = 4.0
"""By how much epsilon falls from one level to the next."""

FIRST_LEVEL = 0.01
"""First epsilon of a cold solve, as a share of the cost's typical spread."""

LEVEL_TOLERANCE = 1e-3
"""Column residual at which a level before the last is left."""

FIRST_RADIUS = 20.0
"""Longest price change tried at first, in units of epsilon: a Newton model fails far beyond."""

SMALLEST_RADIUS = 0.3
"""Shortest radius, in units of epsilon: within it the model is good by the size of exp(0.3)."""

SMALLEST_DAMPING = 1e-8
"""First Levenberg damping tried when a step is too long, relative to the curvature's diagonal."""

RESCALE_ABOVE = 0.01
"""Column residual above which a scaling sweep comes before the first Newton step."""

LARGEST_DAMPING = 1e8
"""Damping at which a step is a sliver of a scaling sweep, and the search for one is given up."""

SUFFICIENT_GAIN = 0.05
"""Share of the first-order gain in the dual that a step must bring."""

LINE_SEARCH_PASSES = 4
"""Row passes along one direction before the scaling sweep takes over."""

WARM_PASSES = 40
"""Row passes after which a warm start counts as misleading and the solve starts cold."""

SAMPLE_EVERY = 8
"""A cold solve first solves the problem of every so-manieth row."""

SAMPLES_PER_COLUMN = 100
"""Fewest rows for each column that a sample may have."""

AIM = 1e-10
"""Residual that the plan of a problem without a graph aims at where `tol` would allow more."""

FORESEEABLE = 0.1
"""Contraction of the residual by a Newton step below which the next will contract no less."""

STALLED_STEPS = 5
"""Newton steps without progress, at gains below rounding, after which rounding is the limit."""


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
    """

    plan: Plan
    prices: Vector
    residual: float
    gap: float
    dual: float
    passes: int


@dataclass(frozen=True, eq=False)
class _Point:
    """Prices of the open columns, and what a row pass says about them."""

    columns: Columns
    prices: Vector
    mass: Vector
    demand: Vector
    dual: float
    coupling: Coupling | None

    @cached_property
    def gradient(self) -> Vector:
        return self.demand - self.mass

    @cached_property
    def residual(self) -> float:
        return float(np.abs(self.gradient).sum())

    @cached_property
    def gap(self) -> float:
        return self.columns.duality_gap(self.prices, self.mass)


@dataclass(eq=False)
class _SemiDual:
    """The semi-dual of one linearised cost: evaluates points and counts the row passes."""

    kernel: Kernel
    product: Matrix | None
    columns: Columns
    weight_entropy: float
    passes: float = field(default=0.0, init=False)

    def at(self, prices: Vector, epsilon: float) -> _Point:
        """Evaluate the dual, its gradient and its curvature by one row pass."""
        self.passes += 1
        sums, coupling = self.kernel.row_pass(self.product, self.columns.expand(prices), epsilon)
        return self._point(prices, sums, epsilon, coupling)

    def plan_at(self, prices: Vector, epsilon: float, out: Plan | None) -> tuple[Plan, _Point]:
        """Return the plan of the prices, and evaluate the dual and its gradient from it."""
        self.passes += 1
        plan, sums = self.kernel.plan(self.product, self.columns.expand(prices), epsilon, out)
        return plan, self._point(prices, sums, epsilon, None)

    def of_sample(self, every: int) -> _SemiDual:
        """Return the semi-dual of every so-manieth row, up to a constant."""
        kernel, product = self.kernel.sample(self.product, every)
        return _SemiDual(kernel, product, self.columns, 0.0)

    def meets(self, point: _Point | InnerSolution, tol: float, contraction: float = 1.0) -> bool:
        """Tell whether residual and gap, contracted, are within `tol`, or below what is known."""
        rounding = value_rounding(self.kernel) * abs(point.dual)
        return contraction * point.residual <= tol and contraction * point.gap <= max(tol, rounding)

    def rounding(self, point: _Point, epsilon: float) -> float:
        """Return the size of dual differences that may be rounding errors.

        Only the exponentials, worth ``epsilon`` log-sum-exp, are as coarse as the kernel's arrays.
        """
        return 8 * self.kernel.resolution * epsilon + SUM_ROUNDING * abs(point.dual)

    def _point(
        self, prices: Vector, sums: RowSums, epsilon: float, coupling: Coupling | None
    ) -> _Point:
        columns, mass = self.columns, sums.column_mass[self.columns.is_open]
        potential = columns.potential(prices) - sums.log_partition
        return _Point(
            columns=columns,
            prices=prices,
            mass=mass,
            demand=columns.demand(prices),
            dual=potential + epsilon * self.weight_entropy,
            coupling=coupling,
        )


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
) -> InnerSolution:
    """Solve the linearised problem to a column residual and a duality gap of at most `tol`.

    A warm solve starts at the target epsilon from the given K + 1 prices, a cold one of many rows
    from the prices of a sample of them. When these mislead, or for few rows, epsilon is annealed
    from a share of the cost's spread.
    """
    epsilon = problem.epsilon
    weight_entropy = float(xlogy(problem.sample_weight, problem.sample_weight).sum())
    semidual = _SemiDual(kernel, product, columns, weight_entropy)

    aim = 0.5 * tol if product is not None else min(0.5 * tol, AIM)

    def done(point: _Point, contraction: float) -> bool:
        return semidual.meets(point, tol) or semidual.meets(point, aim, contraction)

    if warm_prices is None:
        start = _start_from_sample(semidual, epsilon, max_passes)
    else:
        start = columns.restrict(warm_prices)
    climb = None
    if start is not None:
        climb = _climb(semidual, start, epsilon, done, min(WARM_PASSES, max_passes))
    if climb is None or not (climb.done or climb.stalled):
        start = _anneal(semidual, epsilon, max_passes)
        climb = _climb(semidual, start, epsilon, done, max_passes)
    solution = _finish(semidual, climb, epsilon, tol, out)
    if climb.done and not semidual.meets(solution, tol):
        start = columns.restrict(solution.prices)
        climb = _climb(semidual, start, epsilon, lambda point, _: done(point, 1.0), max_passes)
        solution = _finish(semidual, climb, epsilon, tol, solution.plan)
    return solution


def _start_from_sample(semidual: _SemiDual, epsilon: float, max_passes: int) -> Vector | None:
    """Return the prices of a sample of the rows, itself solved in this way; None for few rows."""
    samples, columns = semidual.kernel.samples, len(semidual.columns.target)
    every = min(SAMPLE_EVERY, samples // (SAMPLES_PER_COLUMN * columns))
    if every < 2:
        return None
    sampled = semidual.of_sample(every)
    start = _start_from_sample(sampled, epsilon, max_passes)
    if start is None:
        start = _anneal(sampled, epsilon, max_passes)
    climb = _climb(sampled, start, epsilon, _near_enough, max_passes)
    semidual.passes += sampled.passes / every
    return climb.point.prices if climb.done else None


def _anneal(semidual: _SemiDual, epsilon: float, max_passes: int) -> Vector:
    """Return prices that solve the problem roughly at an epsilon above the given one."""
    columns = semidual.columns
    prices = columns.balance(np.zeros(len(columns.target)))
    for level in _levels_above(epsilon, semidual.kernel.typical_spread(semidual.product)):
        if semidual.passes >= max_passes:
            break
        prices = _climb(semidual, prices, level, _near_enough, max_passes).point.prices
    return prices


def _levels_above(epsilon: float, spread: float) -> Iterator[float]:
    level = FIRST_LEVEL * spread
    while level > epsilon:
        yield level
        level /= ANNEALING_FACTOR


def _near_enough(point: _Point, _contraction: float) -> bool:
    return point.residual <= LEVEL_TOLERANCE


@dataclass(frozen=True, eq=False)
class _Climb:
    """Where a series of Newton steps ended: done, stalled by rounding, or out of passes."""

    point: _Point
    done: bool
    stalled: bool


def _climb(
    semidual: _SemiDual,
    prices: Vector,
    epsilon: float,
    done: Callable[[_Point, float], bool],
    max_passes: int,
) -> _Climb:
    """Maximise the semi-dual at one epsilon until `done`.

    `done` also receives the contraction of the residual to expect of one more Newton step, such as
    the plan is written with.
    """
    ascent = _Ascent(semidual, epsilon)
    point = semidual.at(prices, epsilon)
    if point.residual > RESCALE_ABOVE:
        point = ascent.rescale(point)
    best, idle_steps = point.residual, 0
    while (
        not (is_done := done(point, ascent.contraction))
        and semidual.passes < max_passes
        and idle_steps < STALLED_STEPS
    ):
        point, gain = ascent.advance(point)
        idle = gain <= semidual.rounding(point, epsilon) and point.residual > 0.5 * best
        idle_steps = idle_steps + 1 if idle else 0
        best = min(best, point.residual)
    return _Climb(point, is_done, idle_steps >= STALLED_STEPS)


class _Ascent:
    """Newton steps at one epsilon, with the damping and the radius that they have taught."""

    def __init__(self, semidual: _SemiDual, epsilon: float) -> None:
        self.semidual = semidual
        self.epsilon = epsilon
        self.damping = 0.0
        self.radius = FIRST_RADIUS
        self.contraction = 1.0

    def advance(self, point: _Point) -> tuple[_Point, float]:
        """Return a point with a larger dual, and the first-order gain that was hoped for."""
        direction = self.newton_direction(point)
        length = float(np.abs(direction).max()) / self.epsilon
        found, step = self._line_search(point, direction)
        if found is None:
            found = self.rescale(point)
            self.radius = max(SMALLEST_RADIUS, step * length)
        elif step < 1:
            self.radius = max(SMALLEST_RADIUS, 2 * step * length)
        else:
            self.radius = max(self.radius, 3 * length)
        is_newton = step == 1 and self.damping == 0
        shrunk = found.residual / point.residual if is_newton else 1.0
        self.contraction = shrunk if shrunk <= FORESEEABLE else 1.0
        return found, float(point.gradient @ direction)

    def rescale(self, point: _Point) -> _Point:
        """Make one sweep of matrix scaling, which cannot lower the dual."""
        prices = self.semidual.columns.rescale(point.prices, point.mass, self.epsilon)
        return self.semidual.at(prices, self.epsilon)

    def newton_direction(self, point: _Point) -> Vector:
        """Return the Levenberg-damped Newton direction of at most `radius` epsilon.

        Damping is raised until the direction fits, which costs no row pass. Columns that neither
        have nor ask for mass stay put; so does the largest column where a constant can be added to
        all prices.
        """
        columns, epsilon = self.semidual.columns, self.epsilon
        softness = point.demand * columns.inverse_strength
        scale = np.maximum(point.mass, point.demand) / epsilon + softness
        free = scale > 0
        if columns.has_gauge:
            free[np.argmax(columns.target)] = False
        direction = np.zeros(len(free))
        if point.coupling is None or not free.any():
            return direction
        everywhere = np.flatnonzero(columns.is_open)
        positions, gradient = everywhere[free], point.gradient[free]
        self.damping = self.damping / 100 if self.damping > SMALLEST_DAMPING else 0.0
        while self.damping < LARGEST_DAMPING:
            diagonal = (softness + self.damping * scale)[free]
            try:
                direction[free] = point.coupling.solve(positions, diagonal, gradient, epsilon)
                if np.abs(direction).max() <= self.radius * epsilon:
                    break
            except LinAlgError:
                pass
            self.damping = max(4 * self.damping, SMALLEST_DAMPING)
        return direction

    def _line_search(self, point: _Point, direction: Vector) -> tuple[_Point | None, float]:
        """Return a point along the direction where the dual has grown enough, and the step to it.

        The dual is concave, so a slope that is still positive proves growth; otherwise the secant
        of the slopes shortens the step. At gains below rounding a smaller residual decides.
        """
        slope, step = float(point.gradient @ direction), 1.0
        for _ in range(LINE_SEARCH_PASSES):
            prices = self.semidual.columns.balance(point.prices + step * direction)
            trial = self.semidual.at(prices, self.epsilon)
            trial_slope = float(trial.gradient @ direction)
            if trial_slope >= 0 or trial.dual - point.dual >= SUFFICIENT_GAIN * step * slope:
                return trial, step
            if (
                slope <= self.semidual.rounding(point, self.epsilon)
                and trial.residual < point.residual
            ):
                return trial, step
            step *= float(np.clip(slope / (slope - trial_slope), 0.1, 0.7))
        return None, step


def _finish(
    semidual: _SemiDual, climb: _Climb, epsilon: float, tol: float, out: Plan | None
) -> InnerSolution:
    """Turn the last point into a plan, one undamped Newton step further on if it is short.

    The plan needs a row pass anyway, so the step is free, and near the solution it squares the
    error. The masses are those of the plan itself.
    """
    ascent = _Ascent(semidual, epsilon)
    direction = ascent.newton_direction(climb.point)
    is_short = ascent.damping == 0 and np.abs(direction).max() <= SMALLEST_RADIUS * epsilon
    prices = climb.point.prices
    if is_short:
        prices = semidual.columns.balance(prices + direction)
    plan, final = semidual.plan_at(prices, epsilon, out)
    if final.residual > climb.point.residual and not semidual.meets(final, tol):
        plan, final = semidual.plan_at(climb.point.prices, epsilon, plan)
    return InnerSolution(
        plan=plan,
        prices=semidual.columns.expand(final.prices),
        residual=final.residual,
        gap=final.gap,
        dual=final.dual,
        passes=math.ceil(semidual.passes),
    )
