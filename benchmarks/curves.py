"""Residual against time: ssot at several tolerances, the others at several numbers of iterations.

Each point is a run from the start, so that set-up and the making of the plan are in its time.
"""

from functools import partial

import numpy as np

from benchmarks import measure
from benchmarks.competitors import SSOT, UnavailableError
from benchmarks.timing import timed

TOLERANCES = 10.0 ** -np.arange(2, 12)
ITERATIONS = [count * 10**power for power in range(1, 6) for count in (1, 2, 5)]
LOWEST_RESIDUAL = 1e-11
RUNS = 3
LONGEST_RUN = 10.0  # seconds


def curve(competitor, problem):
    """Return points (seconds, residual) of runs of growing effort, each a median of three runs.

    Until the residual is as small as rounding lets it be, or runs become long.
    """
    try:
        solver = competitor.prepare(problem)
    except UnavailableError:
        return []
    is_limited = competitor is not SSOT
    limits = [(0.0, count) for count in ITERATIONS] if is_limited else [(t, 0) for t in TOLERANCES]
    points = []
    for tolerance, iterations in limits:
        runs = [timed(partial(solver, tolerance, iterations)) for _ in range(RUNS)]
        seconds = float(np.median([seconds for seconds, _ in runs]))
        points.append((seconds, measure.residual(problem, runs[0][1].plan)))
        if points[-1][1] <= LOWEST_RESIDUAL or seconds > LONGEST_RUN:
            break
    return points


def curves(problem, competitors):
    """Return the curve of every competitor that can be asked for an accuracy, by name."""
    adjustable = [each for each in competitors if each.is_adjustable]
    return {each.name: curve(each, problem) for each in adjustable}
