"""What is compared, behind one signature, so that all are measured by the same code.

A competitor turns a checked `Problem` into a solver: a function of a tolerance and a number of
iterations that returns an `Answer`. Data are converted to the competitor's own kind of array
before, and that is not timed; all else, such as taking exponentials of the cost, is.

Here are ssot itself, the published algorithms and yardsticks; other libraries are in `peers`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

import ssot
from benchmarks import published

SWAV_SWEEPS = 3


class UnavailableError(Exception):
    """The library is not installed, and the message says so."""


@dataclass(frozen=True)
class Answer:
    """A plan (N, K), and what its maker said about it.

    Attributes
    ----------
    said_converged : bool or None
        None where the method has no notion of it.
    remark : str
        What it took, where the library tells, or how it states the problem.
    """

    plan: Any
    said_converged: bool | None
    remark: str = ""


Solver = Callable[[float, int], Answer]


@dataclass(frozen=True)
class Competitor:
    """A method that can be timed.

    Attributes
    ----------
    name : str
    prepare : callable
        From a `Problem` to a `Solver`. Raises `UnavailableError` where that cannot be.
    can_state : callable
        Whether the problem is one that the library has a formula for.
    default_iterations : int or None
        The library's own cap; None where iterations are not what limits it.
    default_tolerance : float or None
        The library's own, in whatever its stopping rule measures; None where it cannot be set.
    is_adjustable : bool
        Whether it can be asked for a tolerance; otherwise it ends when it ends.
    may_ask_less : bool
        Whether to ask for less than the accuracy where that gives it. Not of ssot, whose tolerance
        means what it says.
    same_problem : bool
        Whether its optimum is that of the problem as `ssot` states it.
    is_yardstick : bool
        Whether it solves nothing: a fixed amount of work, to compare times with.
    """

    name: str
    prepare: Callable[[ssot.Problem], Solver]
    can_state: Callable[[ssot.Problem], bool] = lambda problem: not problem.has_semantics
    default_iterations: int | None = None
    default_tolerance: float | None = None
    is_adjustable: bool = True
    may_ask_less: bool = True
    same_problem: bool = True
    is_yardstick: bool = False


# ssot


def _options(problem):
    """Return the keyword arguments of `ssot.solve` that state a problem."""
    options = {
        name: getattr(problem, name)
        for name in ("rho", "epsilon", "kl_weight", "prior", "sample_weight")
    }
    return options | ({"semantic_weight": problem.semantic_weight} if problem.has_semantics else {})


def _ssot_from(problem, init):
    graph = problem.graph if problem.has_semantics else None
    options = _options(problem)

    def solve(tolerance, _iterations):
        solution = ssot.solve(
            problem.cost, graph, tol=tolerance, init=init, on_failure="return", **options
        )
        certificate = solution.certificate
        steps = f"{certificate.outer_steps} steps, " if problem.has_semantics else ""
        return Answer(
            solution.plan,
            solution.status is ssot.Status.CONVERGED,
            f"{steps}{certificate.row_passes} readings of the cost",
        )

    return solve


SSOT = Competitor(
    "ssot",
    lambda problem: _ssot_from(problem, None),
    can_state=lambda _: True,
    default_tolerance=1e-6,
    may_ask_less=False,
)


def ssot_warm(before):
    """Return ssot started from the solution of an earlier problem, which is solved untimed."""
    return Competitor(
        "ssot, warm",
        lambda problem: _ssot_from(problem, ssot.solve_problem(before)),
        may_ask_less=False,
    )


# The published algorithms


def _published(problem, *, runs_on=False):
    linear = published.LinearProblem(problem)

    def solve(tolerance, iterations):
        residual = tolerance if runs_on else None
        result = published.scale(linear, most_sweeps=iterations, residual=residual)
        return Answer(result.plan, result.converged, f"{result.sweeps:,} sweeps")

    return solve


def _published_semantic(problem):
    linear = published.LinearProblem(problem)
    graph = published.dense_graph(problem)

    def solve(_tolerance, _iterations):
        result = published.majorise_minimise(linear, graph, problem.semantic_weight)
        return Answer(result.plan, result.converged, f"{result.sweeps:,} sweeps")

    return solve


PUBLISHED = Competitor(
    "published scaling, as published",
    _published,
    default_iterations=published.MOST_SWEEPS,
    is_adjustable=False,
)
PUBLISHED_RUN_ON = Competitor(
    "published scaling, run on",
    partial(_published, runs_on=True),
    default_iterations=published.MOST_SWEEPS,
)
PUBLISHED_SEMANTIC = Competitor(
    "published full steps",
    _published_semantic,
    can_state=lambda problem: problem.has_semantics,
    is_adjustable=False,
)


# Yardsticks


def _softmax(problem):
    scaled = torch.from_numpy(problem.cost / np.float32(-problem.epsilon))
    return lambda _tolerance, _iterations: Answer(torch.softmax(scaled, dim=1), None)


def _swav(problem):
    """Return SwAV's labels: three sweeps from the exponentials, towards classes of equal size."""
    scores = torch.from_numpy(-problem.cost)
    samples, classes = scores.shape

    def solve(_tolerance, _iterations):
        plan = torch.exp(scores / problem.epsilon)
        for _ in range(SWAV_SWEEPS):
            plan /= plan.sum(dim=0) * classes
            plan /= plan.sum(dim=1, keepdim=True) * samples
        return Answer(plan, None, f"{SWAV_SWEEPS} sweeps")

    return solve


def _yardstick(name, prepare):
    return Competitor(name, prepare, is_adjustable=False, same_problem=False, is_yardstick=True)


SOFTMAX = _yardstick("torch.softmax", _softmax)
SWAV = _yardstick("SwAV, three sweeps", _swav)
