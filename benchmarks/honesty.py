"""Who returns a wrong plan without a word? Every library on the hard grid of linear problems.

Each library meets the problems that it can state, in float64, with its own cap of iterations and
its own tolerance, or `TOLERANCE` where that is smaller. Since libraries measure different things, a
plan passes as right with a residual of ten times that. One that misses it is a failure that was
told, where there was an exception, a warning, a message or a flag, whatever it said; and a silent
one otherwise.
"""

from enum import Enum

from benchmarks import measure
from benchmarks.competitors import UnavailableError
from benchmarks.hard_problems import COST_FAMILIES, GRID
from benchmarks.peers import LINEAR_SOLVERS
from ssot import Problem

TOLERANCE = 1e-6
ALLOWED = 10 * TOLERANCE
SIZE, QUICK_SIZE, QUICK_STEP = (500, 50), (100, 10), 7


class Outcome(Enum):
    """What became of one problem."""

    RIGHT = "right"
    DOUBTED = "right, but doubted"
    TOLD = "failed and said so"
    SILENT = "wrong, silently"


def judge(residual, said_converged):
    """Return the outcome for a plan of this residual."""
    if residual <= ALLOWED:
        return Outcome.RIGHT if said_converged else Outcome.DOUBTED
    return Outcome.SILENT if said_converged else Outcome.TOLD


def tolerance(competitor):
    """Return what a competitor is asked for; None where it cannot be asked."""
    own = competitor.default_tolerance
    return None if own is None else min(own, TOLERANCE)


def attempt(competitor, problem):
    """Return the residual of a competitor's plan, infinite without one, and the outcome."""
    solver = competitor.prepare(problem)
    try:
        answer = solver(tolerance(competitor), competitor.default_iterations or 0)
    except (ArithmeticError, ValueError, RuntimeError):
        return float("inf"), Outcome.TOLD
    residual = measure.residual(problem, answer.plan)
    return residual, judge(residual, answer.said_converged)


def survey(family, is_quick):
    """Return a record for each problem of a family and each installed library that can state it."""
    cost = COST_FAMILIES[family](*(QUICK_SIZE if is_quick else SIZE))
    records, missing = [], set()
    for rho, epsilon, kl_weight in GRID[:: QUICK_STEP if is_quick else 1]:
        parameters = {"rho": rho, "epsilon": epsilon, "kl_weight": kl_weight}
        problem = Problem(cost, **parameters)
        for competitor in LINEAR_SOLVERS:
            if competitor.name in missing or not competitor.can_state(problem):
                continue
            try:
                residual, outcome = attempt(competitor, problem)
            except UnavailableError:
                missing.add(competitor.name)
                continue
            asked = {
                "tolerance": tolerance(competitor),
                "iterations": competitor.default_iterations,
            }
            found = {"residual": residual, "outcome": outcome.value}
            who = {"competitor": competitor.name, "costs": family}
            records.append(who | asked | parameters | found)
    return records
