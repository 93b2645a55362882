"""Newton steps on the semi-dual at one epsilon.

With the semantic term linearised, the plan's row i is ``alpha_i softmax((g - [C_i, 0]) / eps)`` for
the prices g that maximise the smooth concave function

    D(g) = eps sum alpha log alpha - eps sum_i alpha_i lse_i(g) + potential(g).

Its gradient is ``demand - column mass``; one row pass yields value, gradient and curvature. Without
entropy of the slack it is smooth in pieces: its gradient is continuous, with a kink wherever a row
is just filled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
from scipy.linalg import LinAlgError

from ssot import lockstep
from ssot.arrays import Vector
from ssot.columns import Columns
from ssot.curvature import Coupling, System
from ssot.kernels.protocol import (
    SUM_ROUNDING,
    Kernel,
    Matrix,
    Plan,
    RowSums,
    value_rounding,
)
from ssot.lockstep import Steps

FIRST_RADIUS = 20.0
"""Longest price change tried at first, in units of epsilon: a Newton model fails far beyond."""

SMALLEST_RADIUS = 0.3
"""Shortest radius, in units of epsilon: within it the model is good by the size of exp(0.3)."""

SMALLEST_DAMPING = 1e-8
"""First Levenberg damping tried when a step is too long, relative to the curvature's diagonal."""

LARGEST_DAMPING = 1e8
"""Damping at which a step is a sliver of a scaling sweep, and the search for one is given up."""

RESCALE_ABOVE = 0.1
"""Column residual above which a scaling sweep comes before the first Newton step."""

SUFFICIENT_GAIN = 0.05
"""Share of the first-order gain in the dual that a step must bring."""

LINE_SEARCH_PASSES = 4
"""Row passes along one direction before the scaling sweep takes over."""

KINK_REACH = 1.0
"""How far beyond a kink, in units of epsilon, another Newton step is tried."""

TOO_STIFF = 0.4
"""Share of the slope left after an undamped Newton step from which a longer one is tried."""

FORESEEABLE = 0.1
"""Contraction of the residual by a Newton step below which the next will contract no less."""

POOR = 0.5
"""Share of the residual left after a step from which the curvature is worth more effort."""

EFFORT_FACTOR = 4.0
"""How many times as much effort it is then worth."""

MOST_EFFORT = EFFORT_FACTOR**10
"""Most effort: all rows, and all their entries that float32 tells from 0."""

STALLED_STEPS = 5
"""Newton steps without progress, at gains below rounding, after which rounding is the limit."""


class Judged(Protocol):
    """What is asked how good it is."""

    @property
    def residual(self) -> float:
        """L1 distance between the column masses and the masses demanded."""
        ...

    @property
    def gap(self) -> float:
        """Bound on the distance to the optimal value."""
        ...

    @property
    def dual(self) -> float:
        """The semi-dual."""
        ...


@dataclass(eq=False)
class Point:
    """Prices of the open columns, and what a row pass says about them.

    The coupling, which may be large, is given away for the one direction that is asked of it.
    """

    columns: Columns
    prices: Vector
    mass: Vector
    demand: Vector
    dual: float
    coupling: Coupling | None

    @cached_property
    def gradient(self) -> Vector:
        """What the columns demand beyond what they have."""
        return self.demand - self.mass

    @cached_property
    def residual(self) -> float:
        """L1 norm of the gradient."""
        return float(np.abs(self.gradient).sum())

    @cached_property
    def gap(self) -> float:
        """Bound on the distance of the plan of these prices from the optimal value."""
        return self.columns.duality_gap(self.prices, self.mass)


@dataclass(eq=False)
class SemiDual:
    """The semi-dual of one linearised cost: evaluates points and counts the row passes."""

    kernel: Kernel
    product: Matrix | None
    columns: Columns
    weight_entropy: float
    passes: float = field(default=0.0, init=False)

    def at(self, prices: Vector, epsilon: float, longest: float, effort: float) -> Steps[Point]:
        """Evaluate the dual, its gradient and its curvature by one row pass.

        The last two arguments are those of the `System` of the Newton step from here.
        """
        self.passes += 1
        columns = self.columns
        demand = columns.demand(prices)
        system = System(
            demand=columns.expand(demand, otherwise=0.0),
            softness=columns.expand(demand * columns.inverse_strength, otherwise=0.0),
            fixed=columns.gauge,
            longest=longest,
            effort=effort,
        )
        expanded = columns.kernel_prices(prices, epsilon)
        sums, coupling = yield from lockstep.row_pass(
            self.kernel, self.product, expanded, epsilon, system
        )
        return self._point(prices, demand, sums, epsilon, coupling)

    def plan_at(
        self, prices: Vector, epsilon: float, out: Plan | None
    ) -> Steps[tuple[Plan, Point]]:
        """Return the plan of the prices, and evaluate the dual and its gradient from it."""
        self.passes += 1
        expanded = self.columns.kernel_prices(prices, epsilon)
        plan, sums = yield from lockstep.plan(self.kernel, self.product, expanded, epsilon, out)
        return plan, self._point(prices, self.columns.demand(prices), sums, epsilon, None)

    def of_sample(self, every: int) -> SemiDual:
        """Return the semi-dual of each `every`-th row, up to a constant."""
        kernel, product = self.kernel.sample(self.product, every)
        return SemiDual(kernel, product, self.columns.of_sample(every), 0.0)

    def meets(self, point: Judged, tol: float, contraction: float = 1.0) -> bool:
        """Tell whether residual and gap, contracted, are within `tol`, or below what is known."""
        rounding = value_rounding(self.kernel) * abs(point.dual)
        return contraction * point.residual <= tol and contraction * point.gap <= max(tol, rounding)

    def rounding(self, point: Point, epsilon: float) -> float:
        """Return the size of dual differences that may be rounding errors.

        Only the exponentials, worth ``epsilon`` log-sum-exp, are as coarse as the kernel's arrays.
        """
        return 8 * self.kernel.resolution * epsilon + SUM_ROUNDING * abs(point.dual)

    def _point(
        self,
        prices: Vector,
        demand: Vector,
        sums: RowSums,
        epsilon: float,
        coupling: Coupling | None,
    ) -> Point:
        columns, mass = self.columns, sums.column_mass[self.columns.is_open]
        potential = columns.potential(prices) - sums.log_partition
        return Point(
            columns=columns,
            prices=prices,
            mass=mass,
            demand=demand,
            dual=potential + epsilon * self.weight_entropy,
            coupling=coupling,
        )


@dataclass(frozen=True, eq=False)
class Climb:
    """Where a series of Newton steps ended: done, stalled by rounding, or out of passes."""

    point: Point
    done: bool
    stalled: bool


def climb(
    semidual: SemiDual,
    prices: Vector,
    epsilon: float,
    done: Callable[[Point, float], bool],
    max_passes: float,
) -> Steps[Climb]:
    """Maximise the semi-dual at one epsilon until `done`.

    `done` also receives the contraction of the residual to expect of one more Newton step, such as
    the plan is written with.
    """
    ascent = Ascent(semidual, epsilon)
    point = yield from ascent.at(prices)
    if point.residual > RESCALE_ABOVE:
        point = yield from ascent.rescale(point)
    best, idle_steps = point.residual, 0
    while (
        not (is_done := done(point, ascent.contraction))
        and semidual.passes < max_passes
        and idle_steps < STALLED_STEPS
    ):
        point, gain = yield from ascent.advance(point)
        idle = gain <= semidual.rounding(point, epsilon) and point.residual > 0.5 * best
        idle_steps = idle_steps + 1 if idle else 0
        best = min(best, point.residual)
    return Climb(point, is_done, idle_steps >= STALLED_STEPS)


class Ascent:
    """Newton steps at one epsilon, with the damping and the radius that they have taught."""

    def __init__(self, semidual: SemiDual, epsilon: float) -> None:
        self.semidual = semidual
        self.epsilon = epsilon
        self.damping = 0.0
        self.radius = FIRST_RADIUS
        self.contraction = 1.0
        self.effort = 1.0

    def at(self, prices: Vector) -> Steps[Point]:
        """Evaluate the semi-dual."""
        longest = self.radius * self.epsilon
        return self.semidual.at(prices, self.epsilon, longest, self.effort)

    def advance(self, point: Point) -> Steps[tuple[Point, float]]:
        """Return a point with a larger dual, and the first-order gain that was hoped for."""
        direction = self.newton_direction(point)
        length = float(np.abs(direction).max()) / self.epsilon
        found, step = yield from self._line_search(point, direction)
        if found is None:
            found = yield from self.rescale(point)
            self.radius = max(SMALLEST_RADIUS, step * length)
        elif step < 1:
            self.radius = max(SMALLEST_RADIUS, 2 * step * length)
        else:
            self.radius = max(self.radius, 3 * length)
        is_newton = step == 1 and self.damping == 0
        shrunk = found.residual / point.residual if is_newton else 1.0
        self.contraction = shrunk if shrunk <= FORESEEABLE else 1.0
        if found.residual > POOR * point.residual:
            self.effort = min(EFFORT_FACTOR * self.effort, MOST_EFFORT)
        return found, float(point.gradient @ direction)

    def rescale(self, point: Point) -> Steps[Point]:
        """Make one sweep of matrix scaling, which cannot lower the dual."""
        prices = self.semidual.columns.rescale(point.prices, point.mass, self.epsilon)
        return self.at(prices)

    def newton_direction(self, point: Point) -> Vector:
        """Return the Levenberg-damped Newton direction of at most `radius` epsilon.

        Damping is raised until the direction fits, which reads no cost. Columns that neither have
        nor ask for mass stay put; so does the largest column where a constant can be added to
        all prices.
        """
        columns, epsilon = self.semidual.columns, self.epsilon
        softness = point.demand * columns.inverse_strength
        scale = np.maximum(point.mass, point.demand) / epsilon + softness
        free = scale > 0
        everywhere = np.flatnonzero(columns.is_open)
        free[everywhere == columns.gauge] = False
        direction = np.zeros(len(free))
        coupling, point.coupling = point.coupling, None
        if coupling is None or not free.any():
            return direction
        positions, gradient = everywhere[free], point.gradient[free]
        longest = self.radius * epsilon
        self.damping = self.damping / 100 if self.damping > SMALLEST_DAMPING else 0.0
        while self.damping < LARGEST_DAMPING:
            diagonal = (softness + self.damping * scale)[free]
            try:
                direction[free] = coupling.solve(positions, diagonal, gradient, epsilon, longest)
                if np.abs(direction).max() <= longest:
                    break
            except LinAlgError:
                pass
            self.damping = max(4 * self.damping, SMALLEST_DAMPING)
        return direction

    def _line_search(self, point: Point, direction: Vector) -> Steps[tuple[Point | None, float]]:
        """Return a point along the direction where the dual has grown enough, and the step to it.

        The dual is concave, so a slope that is still positive proves growth; otherwise the secant
        of the slopes shortens the step. At gains below rounding a smaller residual decides.
        """
        slope, step = float(point.gradient @ direction), 1.0
        for _ in range(LINE_SEARCH_PASSES):
            trial = yield from self._trial(point, step * direction)
            trial_slope = float(trial.gradient @ direction)
            if trial_slope > TOO_STIFF * slope and step == 1 and self.damping == 0:
                remaining = trial_slope / slope
                return (yield from self._extend(point, direction, trial, remaining))
            if trial_slope >= 0 or trial.dual - point.dual >= SUFFICIENT_GAIN * step * slope:
                return trial, step
            if (
                slope <= self.semidual.rounding(point, self.epsilon)
                and trial.residual < point.residual
            ):
                return trial, step
            beyond = yield from self._past_kink(point, direction, trial, step)
            if beyond is not None:
                return beyond, 0.5 * step
            step *= float(np.clip(slope / (slope - trial_slope), 0.1, 0.7))
        return None, step

    def _past_kink(
        self, point: Point, direction: Vector, trial: Point, step: float
    ) -> Steps[Point | None]:
        """Return a point one Newton step on from a trial that went too far, if it has come right.

        Past the kink where a row ceases to be full the slope may fall a million times as fast: the
        model from before it is useless there, however short the step, and the one past it is good.
        """
        is_near = step * np.abs(direction).max() <= KINK_REACH * self.epsilon
        if self.semidual.columns.slack_entropy or not is_near:
            return None
        found = yield from self._trial(trial, self.newton_direction(trial))
        gain, hoped_for = found.dual - point.dual, step * float(point.gradient @ direction)
        is_right = gain >= SUFFICIENT_GAIN * hoped_for or found.residual < 0.5 * point.residual
        return found if is_right else None

    def _extend(
        self, point: Point, direction: Vector, trial: Point, remaining: float
    ) -> Steps[tuple[Point, float]]:
        """Return a point beyond a Newton step that left most of the slope, if the dual is larger.

        Such a step came from a curvature that averages small probabilities, and is too stiff
        between classes that hardly share a sample.
        """
        longest = self.radius * self.epsilon / float(np.abs(direction).max())
        step = min(1.0 / max(1.0 - remaining, 1.0 / longest), longest)
        if step <= 1.0 / (1.0 - TOO_STIFF):
            return trial, 1.0
        extended = yield from self._trial(point, step * direction)
        is_better = extended.dual > trial.dual or extended.residual < 0.5 * trial.residual
        return (extended, step) if is_better else (trial, 1.0)

    def _trial(self, point: Point, change: Vector) -> Steps[Point]:
        prices = self.semidual.columns.balance(point.prices + change)
        return self.at(prices)
