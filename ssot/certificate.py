"""Evidence that a plan is feasible and stationary, measured on the plan itself."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import eigsh

from ssot.adjacency import graph_in, row_sums
from ssot.arrays import HOST
from ssot.columns import Columns
from ssot.mm import Outcome
from ssot.problem import Problem

SMALLEST_SPARSE_EIGENPROBLEM = 64
"""Number of samples up to which a dense eigenvalue solver is faster."""


@dataclass(frozen=True)
class Certificate:
    """Evidence for a plan, measured on the plan itself after the solve.

    Attributes
    ----------
    mass_error : float
        ``|sum Q - rho|``.
    row_violation : float
        ``sum_i max(0, (Q 1)_i - alpha_i)``.
    column_residual : float
        ``sum_j |(Q^T 1)_j - rho prior_j exp(-prices_j / kl_weight_j)|``, 0 at a solution.
    inner_gap : float
        Primal-dual gap of the last linearised problem.
    stationarity_gap : float
        Upper bound on the generalised Frank-Wolfe gap, in the objective's unit: 0 exactly at a
        stationary point. Without a graph it bounds the distance to the optimal value; where the
        problem is provably convex, ``gap / (1 - theta)`` does (see `provably_convex`).
    relative_stationarity_gap : float
        The same over the sum of the magnitudes of the objective's terms.
    objective_history : tuple of float
        Objective at the start and after each outer step, corrected to first order for the mass that
        a plan lacks (at most `mass_error` times a price); it never rises.
    row_passes : int
        Times the cost was read; of a streamed cost, passes over the rows kept in memory count too.
    provably_convex : bool
        Whether ``theta = semantic_weight lambda_max(W) max(alpha) / epsilon`` is known to be at
        most 1: then the objective is convex and a stationary plan is a global optimum. A slack
        without entropy (`slack_entropy` False, `rho` below 1) doubles ``theta``. On several ranks
        it is known from row sums alone, so that False may mean undecided.
    """

    mass_error: float
    row_violation: float
    column_residual: float
    inner_gap: float
    stationarity_gap: float
    relative_stationarity_gap: float
    objective_history: tuple[float, ...] = field(repr=False)
    row_passes: int
    provably_convex: bool

    @property
    def outer_steps(self) -> int:
        """Number of majorise-minimise steps made."""
        return len(self.objective_history) - 1


def certify(problem: Problem, outcome: Outcome) -> Certificate:
    """Gather the evidence from the sums that were measured on the plan."""
    class_mass = outcome.sums.column_mass[:-1]
    columns = Columns.of(problem)
    demand = np.zeros(len(columns.is_open))
    demand[columns.is_open] = columns.demand(outcome.prices[columns.is_open])
    return Certificate(
        mass_error=abs(float(class_mass.sum()) - problem.rho),
        row_violation=outcome.sums.row_excess,
        column_residual=float(np.abs(class_mass - demand[:-1]).sum()),
        inner_gap=outcome.inner_gap,
        stationarity_gap=outcome.gap,
        relative_stationarity_gap=outcome.gap / (outcome.objective.scale or 1.0),
        objective_history=outcome.history,
        row_passes=outcome.passes,
        provably_convex=is_provably_convex(problem),
    )


def is_provably_convex(problem: Problem) -> bool:
    """Tell whether the graph is known to bend the objective less than the entropy, at every plan.

    The semantic term bends it by at most ``2 semantic_weight lambda_max(W)``. A change of the plan
    sums to 0 in each row, the slack included, so that the entropy bends it by at least
    ``2 epsilon / max(alpha)``; of a row whose slack changes without entropy, by half of that. Row
    sums bound the eigenvalue from both sides, which settles most problems; the others need it to
    full accuracy, which is not sought where the rows are spread over several ranks.
    """
    if problem.graph is None or not problem.has_semantics:
        return True
    strength = problem.semantic_weight * problem.totals.largest_weight
    if problem.rho < 1 and not problem.slack_entropy:
        strength *= 2.0
    mean, largest = row_sums(problem.graph)
    if strength * mean > problem.epsilon:
        return False
    if strength * largest <= problem.epsilon or problem.ranks.size > 1:
        return strength * largest <= problem.epsilon
    return strength * _largest_eigenvalue(graph_in(problem.graph, HOST)) <= problem.epsilon


def _largest_eigenvalue(w: sparse.csr_array) -> float:
    samples = w.shape[0]
    if samples <= SMALLEST_SPARSE_EIGENPROBLEM:
        return float(np.linalg.eigvalsh(w.toarray().astype(np.float64))[-1])
    start = np.full(samples, samples**-0.5)
    return float(
        eigsh(w.astype(np.float64), k=1, which="LA", v0=start, return_eigenvectors=False)[0]
    )
