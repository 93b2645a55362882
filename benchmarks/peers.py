"""Other libraries, behind the signature of `competitors`: POT and OTT-JAX.

Balanced transport solves partial problems with hard classes as well: a virtual class of cost 0
takes what is not transported.
"""

import contextlib
import io
import warnings
from dataclasses import replace

import numpy as np
import ot

from benchmarks.competitors import PUBLISHED, SSOT, Answer, Competitor, UnavailableError


def _is_hard(problem):
    return bool(np.isinf(problem.kl_weight).all())


def _is_semi_relaxed(problem):
    return problem.rho == 1 and bool(np.isfinite(problem.kl_weight).all())


# POT


def _heard(call):
    """Return the result of a call, and whether it warned of anything or printed a warning."""
    with (
        warnings.catch_warnings(record=True) as caught,
        contextlib.redirect_stdout(io.StringIO()) as printed,
    ):
        warnings.simplefilter("always")
        result = call()
    return result, bool(caught) or "Warning" in printed.getvalue()


def _answer(call):
    plan, has_warned = _heard(call)
    return Answer(plan, not has_warned)


def _with_virtual_class(problem):
    """Return cost (N, K or K + 1) and column masses of a problem with hard classes, balanced."""
    cost, target = problem.cost, problem.rho * problem.prior
    if problem.rho == 1:
        return cost, target
    return np.pad(cost, ((0, 0), (0, 1))), np.append(target, 1 - problem.rho)


def _virtual_remark(problem):
    return "with a virtual class" if problem.rho < 1 else ""


def _pot_sinkhorn(method):
    """Return balanced transport."""

    def prepare(problem):
        cost, target = _with_virtual_class(problem)
        classes = problem.cost.shape[1]

        def solve(tolerance, iterations):
            answer = _answer(
                lambda: ot.sinkhorn(
                    problem.sample_weight,
                    target,
                    cost,
                    problem.epsilon,
                    method=method,
                    stopThr=tolerance,
                    numItermax=iterations,
                )
            )
            return replace(answer, plan=answer.plan[:, :classes], remark=_virtual_remark(problem))

        return solve

    return prepare


def _pot_unbalanced(problem):
    """Return semi-relaxed transport by POT's default regulariser, KL(Q | alpha prior^T).

    With hard rows and a uniform prior, which all problems here have, that differs from the entropy
    by a constant.
    """

    def solve(tolerance, iterations):
        return _answer(
            lambda: ot.unbalanced.sinkhorn_unbalanced(
                problem.sample_weight,
                problem.prior,
                problem.cost,
                reg=problem.epsilon,
                reg_m=(np.inf, problem.kl_weight[0]),
                stopThr=tolerance,
                numItermax=iterations,
            )
        )

    return solve


def _pot_partial(method):
    """Return partial transport with hard classes.

    POT's problem has no entropy of the slack, so that its optimum is another plan. What can be
    compared is how well the marginals are met. The mass is all that the classes can take, which
    is POT's default.
    """

    def prepare(problem):
        def solve(tolerance, iterations):
            answer = _answer(
                lambda: ot.partial.entropic_partial_wasserstein(
                    problem.sample_weight,
                    problem.rho * problem.prior,
                    problem.cost,
                    problem.epsilon,
                    method=method,
                    stopThr=tolerance,
                    numItermax=iterations,
                )
            )
            return replace(answer, remark="its own problem, without slack entropy")

        return solve

    return prepare


def _is_partial(problem):
    return problem.rho < 1 and _is_hard(problem)


POT_SINKHORN = Competitor(
    "POT sinkhorn",
    _pot_sinkhorn("sinkhorn"),
    can_state=_is_hard,
    default_iterations=1000,
    default_tolerance=1e-9,
)
POT_SINKHORN_LOG = replace(
    POT_SINKHORN, name="POT sinkhorn_log", prepare=_pot_sinkhorn("sinkhorn_log")
)
POT_UNBALANCED = Competitor(
    "POT sinkhorn_unbalanced",
    _pot_unbalanced,
    can_state=_is_semi_relaxed,
    default_iterations=1000,
    default_tolerance=1e-6,
)
POT_PARTIAL = Competitor(
    "POT entropic_partial",
    _pot_partial("sinkhorn"),
    can_state=_is_partial,
    default_iterations=1000,
    default_tolerance=1e-100,
    same_problem=False,
)
POT_PARTIAL_LOG = replace(
    POT_PARTIAL, name="POT entropic_partial, log", prepare=_pot_partial("sinkhorn_log")
)


# OTT-JAX


def _ott(problem):
    """Return balanced or semi-relaxed transport, compiled; a virtual class makes it partial."""
    try:
        import jax
        import ott
    except ImportError as error:
        raise UnavailableError("OTT-JAX is not installed (the extra `ott`)") from error
    jax.config.update("jax_enable_x64", True)
    cost, target = _with_virtual_class(problem)
    classes, strength = problem.cost.shape[1], float(problem.kl_weight[0])
    exponent = 1.0 if np.isinf(strength) else strength / (strength + problem.epsilon)

    @jax.jit(static_argnums=1)
    def compiled(costs, iterations, tolerance):
        geometry = ott.geometry.geometry.Geometry(costs, epsilon=problem.epsilon)
        linear = ott.problems.linear.linear_problem.LinearProblem(
            geometry, problem.sample_weight, target, tau_b=exponent
        )
        sinkhorn = ott.solvers.linear.sinkhorn.Sinkhorn(
            threshold=tolerance, max_iterations=iterations
        )
        output = sinkhorn(linear)
        return output.matrix[:, :classes], output.converged

    costs = jax.numpy.asarray(cost)

    def solve(tolerance, iterations):
        plan, converged = jax.block_until_ready(compiled(costs, iterations, tolerance))
        return Answer(np.asarray(plan), bool(converged), _virtual_remark(problem))

    return solve


OTT = Competitor(
    "OTT-JAX",
    _ott,
    can_state=lambda problem: _is_hard(problem) or _is_semi_relaxed(problem),
    default_iterations=2000,
    default_tolerance=1e-3,
)


LINEAR_SOLVERS = (
    SSOT,
    PUBLISHED,
    POT_SINKHORN,
    POT_SINKHORN_LOG,
    POT_UNBALANCED,
    POT_PARTIAL,
    POT_PARTIAL_LOG,
    OTT,
)
"""All that solve linear problems, as a user meets them."""
