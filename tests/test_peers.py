"""Special cases against independent solvers: POT's scaling methods, and a conic interior point."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import PROFILE, SEEDS, distance, random_graph, run, symmetrised, tightest

ot = pytest.importorskip("ot", reason="needs POT")

CONIC_PLAN, CONIC_VALUE = 1e-4, 1e-6
"""What an interior point with its default settings is good for."""


def data(seed, samples=30, classes=5):
    """Return a cost, sample weights and a prior, all random."""
    rng = np.random.default_rng(seed)
    cost = rng.random((samples, classes)).astype(np.float32).astype(np.float64)
    return cost, rng.dirichlet(np.full(samples, 5.0)), rng.dirichlet(np.full(classes, 5.0))


def sinkhorn(alpha, columns, cost, epsilon):
    # Stops at a marginal error of 1e-12, below every tolerance of a plan.
    options = {"method": "sinkhorn_log", "stopThr": 1e-12, "numItermax": 100_000}
    return ot.sinkhorn(alpha, columns, cost, epsilon, **options)


@given(seed=SEEDS, epsilon=st.sampled_from([0.05, 0.5]))
@PROFILE
def test_balanced_transport(setting, seed, epsilon):
    cost, alpha, prior = data(seed)
    options = {"prior": prior, "sample_weight": alpha, "epsilon": epsilon, "kl_weight": np.inf}
    solution = run(setting, cost, **options)
    assert distance(solution.plan, sinkhorn(alpha, prior, cost, epsilon)) <= setting.tolerance.plan


@given(seed=SEEDS, epsilon=st.sampled_from([0.05, 0.5]), rho=st.floats(0.05, 0.95))
@PROFILE
def test_partial_transport_is_balanced_with_a_virtual_class(setting, seed, epsilon, rho):
    cost, alpha, prior = data(seed)
    options = {"rho": rho, "epsilon": epsilon, "kl_weight": np.inf}
    solution = run(setting, cost, prior=prior, sample_weight=alpha, **options)
    with_virtual = np.column_stack([cost, np.zeros(len(cost))])
    expected = sinkhorn(alpha, np.append(rho * prior, 1 - rho), with_virtual, epsilon)
    assert distance(solution.plan, expected[:, :-1]) <= setting.tolerance.plan


@given(
    seed=SEEDS,
    epsilon=st.sampled_from([0.05, 0.5]),
    rho=st.floats(0.05, 0.95),
)
@PROFILE
def test_partial_transport_without_entropy_of_the_slack(setting, seed, epsilon, rho):
    """POT bounds the columns too: bounds that sum to the transported mass are met exactly."""
    cost, alpha, prior = data(seed)
    options = {"rho": rho, "epsilon": epsilon, "kl_weight": np.inf, "slack_entropy": False}
    solution = run(setting, cost, prior=prior, sample_weight=alpha, **options)
    expected = ot.partial.entropic_partial_wasserstein(
        alpha,
        rho * prior,
        cost,
        epsilon,
        m=(rho * prior).sum(),
        method="sinkhorn_log",
        numItermax=100_000,
        stopThr=1e-13,
    )
    assert distance(solution.plan, expected) <= setting.tolerance.plan


@given(seed=SEEDS, kl_weight=st.sampled_from([0.1, 1.0, 5.0]), is_relative=st.booleans())
@PROFILE
def test_semi_relaxed_transport(setting, seed, kl_weight, is_relative):
    """POT's regulariser is relative to a measure c, and subtracts the mass, here a constant.

    With ``c = 1`` it is the entropy. With its default ``c = alpha prior^T`` it charges class j in
    addition ``-epsilon log prior_j``, and sample i something that its hard row makes a constant.
    """
    cost, alpha, prior = data(seed)
    charge = -0.1 * np.log(prior) if is_relative else 0.0
    options = {"prior": prior, "sample_weight": alpha, "epsilon": 0.1, "kl_weight": kl_weight}
    solution = run(setting, cost + charge, **options)
    expected = ot.unbalanced.sinkhorn_unbalanced(
        alpha,
        prior,
        cost,
        reg=0.1,
        reg_m=(np.inf, kl_weight),
        c=None if is_relative else np.ones_like(cost),
        numItermax=100_000,
        stopThr=1e-13,
    )
    assert distance(solution.plan, expected) <= setting.tolerance.plan


def conic_solution(problem_data, options, graph_matrix=None, semantic_weight=0.0):
    """Return the optimal plan and value of the problem as the documentation states it."""
    cp = pytest.importorskip("cvxpy", reason="needs CVXPY")
    cost, alpha, prior = problem_data
    rho, epsilon, kl_weight = options["rho"], options["epsilon"], options["kl_weight"]
    is_free = np.isfinite(cost) & (alpha > 0)[:, None]
    free = cp.Variable(int(is_free.sum()), nonneg=True)
    Q = cp.reshape(np.eye(cost.size)[:, is_free.ravel()] @ free, cost.shape, order="C")
    mass, slack = cp.sum(Q, axis=0), alpha - cp.sum(Q, axis=1)
    value = cost[is_free] @ free - epsilon * cp.sum(cp.entr(free))
    constraints = [cp.sum(Q) == rho]
    if rho == 1:  # the slack is 0, which an interior point can only be told
        constraints.append(slack == 0)
    elif options.get("slack_entropy", True):
        value -= epsilon * cp.sum(cp.entr(slack))
    else:
        constraints.append(slack >= 0)
    if np.isinf(kl_weight):
        constraints.append(mass == rho * prior)
    else:
        value += kl_weight * cp.sum(cp.kl_div(mass, rho * prior))
    if graph_matrix is not None:
        repulsion = cp.psd_wrap(-graph_matrix)
        value += semantic_weight * sum(cp.quad_form(Q[:, j], repulsion) for j in range(len(prior)))
    problem = cp.Problem(cp.Minimize(value), constraints)
    problem.solve(solver=cp.CLARABEL)
    return Q.value, problem.value


@pytest.mark.parametrize("kl_weight", [0.5, np.inf])
@pytest.mark.parametrize("rho", [0.3, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_conic_solver_without_a_graph(setting, seed, rho, kl_weight):
    problem_data = data(seed, samples=12, classes=4)
    cost, alpha, prior = problem_data
    options = {"rho": rho, "epsilon": 0.1, "kl_weight": kl_weight}
    plan, value = conic_solution(problem_data, options)
    solution = run(setting, cost, prior=prior, sample_weight=alpha, **options)
    assert distance(solution.plan, plan) <= max(CONIC_PLAN, setting.tolerance.plan)
    allowed = max(CONIC_VALUE, setting.tolerance.value)
    assert solution.objective.total == pytest.approx(value, abs=allowed)


@pytest.mark.parametrize("kl_weight", [0.5, np.inf])
@pytest.mark.parametrize("rho", [0.3, 0.7])
def test_a_conic_solver_without_entropy_of_the_slack(setting, rho, kl_weight):
    """With pairs, a sample and a weight that may carry no mass."""
    cost, alpha, prior = data(2, samples=12, classes=4)
    cost[::3, 0], cost[4], alpha[5] = np.inf, np.inf, 0.0
    alpha /= alpha.sum()
    options = {"rho": rho, "epsilon": 0.1, "kl_weight": kl_weight, "slack_entropy": False}
    plan, value = conic_solution((cost, alpha, prior), options)
    solution = run(setting, cost, prior=prior, sample_weight=alpha, **options)
    assert distance(solution.plan, plan) <= max(CONIC_PLAN, setting.tolerance.plan)
    allowed = max(CONIC_VALUE, setting.tolerance.value)
    assert solution.objective.total == pytest.approx(value, abs=allowed)


@pytest.mark.parametrize("kl_weight", [0.5, np.inf])
@pytest.mark.parametrize("rho", [0.3, 1.0])
@pytest.mark.parametrize("slack_entropy", [True, False])
def test_a_conic_solver_with_a_graph_of_repulsion(setting, slack_entropy, rho, kl_weight):
    """Minus a graph's Laplacian is negative semidefinite: convex, however strong."""
    problem_data = data(3, samples=12, classes=4)
    cost, alpha, prior = problem_data
    w = symmetrised(random_graph(3, len(cost), signed=False))
    repulsive = w - np.diag(w.sum(axis=1))
    options = {"rho": rho, "epsilon": 0.1, "kl_weight": kl_weight, "slack_entropy": slack_entropy}
    plan, value = conic_solution(problem_data, options, repulsive, semantic_weight=20.0)
    options |= {"prior": prior, "sample_weight": alpha, "semantic_weight": 20.0}
    solution = run(setting, cost, repulsive, tol=tightest(setting), **options)
    assert solution.certificate.provably_convex
    assert solution.objective.semantic > 1e-3  # it matters
    # A gap of tol bounds the excess of the objective; its square root bounds the plan's distance.
    from_gap = np.sqrt(2 * tightest(setting) / options["epsilon"])
    assert distance(solution.plan, plan) <= CONIC_PLAN + from_gap
    allowed = max(CONIC_VALUE, 10 * setting.tolerance.value)
    assert solution.objective.total == pytest.approx(value, abs=allowed)
