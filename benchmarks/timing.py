"""Time competitors side by side in one process, each asked for the same accuracy.

1. Each competitor is asked for the accuracy as its tolerance. Stopping rules measure different
   things: where the plan misses the accuracy, the tolerance is divided by 10 until it is met; where
   it is met, multiplied by 10 as long as it stays so. Only ssot is never asked for less than the
   accuracy. These runs also warm up caches and compilers.
2. Those that meet it, and those that cannot be asked for one, then run in turns, so that a busy
   machine slows all of them. The garbage collector rests while a run is timed.

Every competitor has the same budget of seconds for each of the two. Iterations are limited to what
fits into it, by a trial run, since a library cannot be interrupted.
"""

import gc
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.competitors import UnavailableError

LOWEST_TOLERANCE, HIGHEST_TOLERANCE = 1e-14, 1.0
TRIAL_SECONDS = 0.5
MOST_ITERATIONS = 10**6


@dataclass
class Measurement:
    """How one competitor did at one problem.

    Attributes
    ----------
    seconds : list of float
        Of the timed runs; of the one failed run where the accuracy was not met.
    tolerance : float or None
        What it was asked for in the end.
    residual, distance, gap, objective : float or None
        Of its plan, by `benchmarks.measure`: the distance to the reference plan for linear
        problems, gap and objective for semantic ones. None for yardsticks, which solve nothing.
    meets_accuracy : bool or None
        Whether the residual, for a semantic problem the gap, is what the case asks for.
    note : str
        Why there is no result.
    """

    competitor: str
    seconds: list[float] = field(default_factory=list)
    tolerance: float | None = None
    residual: float | None = None
    distance: float | None = None
    gap: float | None = None
    objective: float | None = None
    meets_accuracy: bool | None = None
    said_converged: bool | None = None
    remark: str = ""
    note: str = ""

    @property
    def median(self):
        """Median of the timed runs in seconds, or None."""
        return float(np.median(self.seconds)) if self.seconds else None


def timed(call):
    """Return the seconds that a call takes, without garbage collection, and its result."""
    gc.collect()
    gc.disable()
    try:
        began = time.perf_counter()
        result = call()
        return time.perf_counter() - began, result
    finally:
        gc.enable()


def iterations_within(seconds, solver):
    """Return how many iterations fit into the given time, from trial runs of growing length."""
    iterations, taken = 1, 0.0
    while taken < TRIAL_SECONDS and iterations < MOST_ITERATIONS:
        iterations *= 10
        solver(0.0, iterations)  # the first call of this length may compile
        taken, _ = timed(partial(solver, 0.0, iterations))
    return int(np.clip(iterations * seconds / taken, 10, MOST_ITERATIONS))


@dataclass
class Attempt:
    """One run, judged."""

    seconds: float
    plan: Any
    found: Measurement


class Contestant:
    """A competitor at one problem: asked for the accuracy first, timed then."""

    def __init__(self, competitor, problem, accuracy, budget):
        self.competitor, self.problem = competitor, problem
        self.accuracy, self.budget = accuracy, budget
        self.measurement = Measurement(competitor.name)
        self.iterations = competitor.default_iterations or 0
        self.solver = None

    def prepare(self):
        """Convert the data, and find how many iterations the budget allows."""
        try:
            self.solver = self.competitor.prepare(self.problem)
        except UnavailableError as error:
            self.measurement.note = str(error)
            return
        if self.competitor.is_adjustable and self.iterations:
            self.iterations = iterations_within(self.budget, self.solver)

    def run(self, tolerance):
        """Return the seconds of one run and its answer."""
        return timed(partial(self.solver, tolerance, self.iterations))

    def meet_accuracy(self, reference):
        """Ask for the accuracy, and record what the plan has."""
        if self.competitor.is_adjustable:
            best = self._search(self._attempt(self.accuracy))
        else:
            best = self._attempt(None)
        self.measurement = best.found
        if reference is not None and self.competitor.same_problem:
            best.found.distance = measure.distance(best.plan, reference)
        if self.has_failed:
            best.found.seconds.append(best.seconds)

    def _search(self, first):
        """Return the attempt of the loosest tolerance, in steps of ten, that has the accuracy."""
        was_met = first.found.meets_accuracy
        if was_met and not self.competitor.may_ask_less:
            return first
        best, spent, factor = first, first.seconds, 10 if was_met else 0.1
        while (
            spent + best.seconds <= self.budget
            and LOWEST_TOLERANCE < best.found.tolerance < HIGHEST_TOLERANCE
        ):
            attempt = self._attempt(best.found.tolerance * factor)
            spent += attempt.seconds
            if attempt.found.meets_accuracy != was_met:
                return best if was_met else attempt
            best = attempt
        return best

    def _attempt(self, tolerance):
        seconds, answer = self.run(tolerance)
        found = Measurement(self.competitor.name, tolerance=tolerance)
        found.said_converged, found.remark = answer.said_converged, answer.remark
        if not self.competitor.is_yardstick:
            self._judge(found, answer.plan)
        return Attempt(seconds, answer.plan, found)

    def _judge(self, found, plan):
        found.residual = reached = measure.residual(self.problem, plan)
        if self.problem.has_semantics:
            found.gap = reached = measure.stationarity_gap(self.problem, plan)
            found.objective = measure.objective(self.problem, plan)
        found.meets_accuracy = reached <= self.accuracy

    @property
    def has_failed(self):
        """Whether no tolerance gave the accuracy; the last attempt is all that is known then."""
        return self.competitor.is_adjustable and not self.measurement.meets_accuracy

    @property
    def takes_part(self):
        """Whether to take part in the next round: once at least, then within the budget."""
        if self.solver is None or self.has_failed:
            return False
        seconds = self.measurement.seconds
        return not seconds or sum(seconds) + seconds[-1] <= self.budget


def compare(problem, competitors, accuracy, repeats, budget):
    """Return the measurements of all competitors at one problem."""
    contestants = [Contestant(each, problem, accuracy, budget) for each in competitors]
    reference = measure.reference_plan(problem)
    for contestant in contestants:
        contestant.prepare()
        if contestant.solver is not None:
            contestant.meet_accuracy(reference)
    for _ in range(repeats):
        for contestant in contestants:
            if contestant.takes_part:
                found = contestant.measurement
                found.seconds.append(contestant.run(found.tolerance)[0])
    return [contestant.measurement for contestant in contestants]
