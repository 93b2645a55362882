"""Sections 1 to 3 and 8 of docs/theory.md: the problem without a graph, and what smooths it.

Formulas are written here from the page, apart from the solver.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import LINEAR_CASES, PROFILE, SEEDS, distance, dual_value, induced_plan
from scipy.optimize import linprog, minimize
from scipy.special import entr, kl_div, logsumexp, softmax, xlogy

from ssot import Status, knn_graph, solve

TIGHT = {"tol": 1e-12, "backend": "numpy", "on_failure": "raise"}


def random_problem(seed, *, samples=12, classes=4, rho=0.4, kl_weight=1.0, epsilon=0.1):
    """Return a cost, and options with random weights and prior."""
    rng = np.random.default_rng(seed)
    return rng.random((samples, classes)), {
        "rho": rho,
        "epsilon": epsilon,
        "kl_weight": np.resize(kl_weight, classes).astype(float),
        "prior": rng.dirichlet(np.full(classes, 5.0)),
        "sample_weight": rng.dirichlet(np.full(samples, 5.0)),
    }


def objective(cost, plan, *, rho, epsilon, kl_weight, prior, sample_weight, slack_entropy=True):
    """Return the objective without a graph; hard sizes are left to the caller."""
    mass, soft = plan.sum(axis=0), np.isfinite(kl_weight)
    value = np.where(plan > 0, cost, 0.0).ravel() @ plan.ravel() + epsilon * xlogy(plan, plan).sum()
    value += kl_weight[soft] @ kl_div(mass, rho * prior)[soft]
    slack = np.maximum(sample_weight - plan.sum(axis=1), 0)
    return value + epsilon * xlogy(slack, slack).sum() * slack_entropy


# 1. The virtual cluster


@given(seed=SEEDS, rho=st.floats(0.05, 0.95), kl_weight=st.sampled_from([0.5, np.inf]))
@PROFILE
def test_the_slack_is_a_class_of_cost_0_and_hard_size(seed, rho, kl_weight):
    """Also of the linearised problem with a graph, which takes no notice of that class."""
    cost, options = random_problem(seed, rho=rho, kl_weight=kl_weight)
    graph = knn_graph(np.random.default_rng(seed).normal(size=(len(cost), 2)), k=3)
    w = (graph + graph.T).toarray() / 2
    partial = solve(cost, graph, semantic_weight=0.3, **options, **TIGHT | {"tol": 1e-13})
    tangent = cost - 2 * 0.3 * w @ partial.plan
    whole = solve(
        np.column_stack([tangent, np.zeros(len(cost))]),
        rho=1.0,
        epsilon=options["epsilon"],
        kl_weight=np.append(options["kl_weight"], np.inf),
        prior=np.append(rho * options["prior"], 1 - rho),
        sample_weight=options["sample_weight"],
        **TIGHT,
    )
    assert distance(partial.plan, whole.plan[:, :-1]) <= 1e-5  # the root of the gap's 1e-13
    assert whole.plan[:, -1].sum() == pytest.approx(1 - rho, abs=1e-10)


# 2. Existence and uniqueness


@given(case=LINEAR_CASES, seed=SEEDS)
@PROFILE
def test_the_plan_of_the_linear_problem_is_unique_and_positive(case, seed):
    options = {**case.options, **TIGHT, "tol": 1e-11}
    classes = case.cost.shape[1]
    start = np.random.default_rng(seed).normal(scale=2, size=classes + 1)
    cold, warm = solve(case.cost, **options), solve(case.cost, init=start, **options)
    assert distance(cold.plan, warm.plan) <= 1e-9
    allowed = np.outer(case.options["sample_weight"] > 0, case.options["prior"] > 0)
    assert (cold.plan[allowed] > 0).all()
    assert (cold.plan[~allowed] == 0).all()


def test_without_a_strictly_feasible_plan_the_prices_have_no_limit():
    """Sample 0 fills class 0, so that sample 1 may not join it, though no cost says so."""
    cost, options = [[0.0, np.inf], [0.3, 0.0]], {"kl_weight": np.inf}
    solutions = [solve(cost, tol=tol, **options) for tol in (1e-4, 1e-8)]
    spreads = [np.ptp(solution.prices[:2]) for solution in solutions]
    assert spreads[1] > spreads[0] + 0.5
    np.testing.assert_allclose(solutions[1].plan, np.eye(2) / 2, atol=1e-8)


def test_hard_sizes_that_no_flow_meets_are_told():
    """Two of three samples may join class 0 alone, which asks for half of the mass."""
    cost = [[0.0, np.inf], [0.0, np.inf], [0.0, 0.0]]
    solution = solve(cost, kl_weight=np.inf, on_failure="return")
    assert solution.status is Status.MAX_PASSES


# 3. The semi-dual


def column_targets(options):
    return np.append(options["rho"] * options["prior"], 1 - options["rho"])


def gradient(cost, options, prices):
    targets, strength = column_targets(options), np.append(options["kl_weight"], np.inf)
    plan = induced_plan(cost, prices, options["sample_weight"], options["epsilon"])
    return targets * np.exp(-prices / strength) - plan.sum(axis=0)


def curvature(cost, options, prices):
    """Return minus the Hessian of the semi-dual."""
    targets, strength = column_targets(options), np.append(options["kl_weight"], np.inf)
    alpha, epsilon = options["sample_weight"], options["epsilon"]
    plan = induced_plan(cost, prices, alpha, epsilon)
    rows = plan / alpha[:, None]
    coupled = (np.diag(plan.sum(axis=0)) - rows.T @ plan) / epsilon
    return coupled + np.diag(targets * np.exp(-prices / strength) / strength)


def problem_of(cost, options):
    return solve(cost, **options, max_passes=1, on_failure="return").problem


@given(seed=SEEDS, kl_weight=st.sampled_from([0.5, np.inf, (0.5, np.inf)]))
@PROFILE
def test_gradient_and_curvature_of_the_semidual(seed, kl_weight):
    cost, options = random_problem(seed, kl_weight=kl_weight)
    problem, rng = problem_of(cost, options), np.random.default_rng(seed)
    prices, step = rng.normal(scale=0.3, size=cost.shape[1] + 1), 1e-5
    slopes, bends = [], []
    for direction in np.eye(len(prices)):
        ahead, behind = prices + step * direction, prices - step * direction
        values = [dual_value(problem, cost, at) for at in (ahead, behind)]
        slopes.append((values[0] - values[1]) / (2 * step))
        bends.append((gradient(cost, options, behind) - gradient(cost, options, ahead)) / 2 / step)
    np.testing.assert_allclose(slopes, gradient(cost, options, prices), atol=1e-8)
    np.testing.assert_allclose(bends, curvature(cost, options, prices), atol=1e-7)


@given(seed=SEEDS, kl_weight=st.sampled_from([0.5, np.inf, (0.5, np.inf)]))
@PROFILE
def test_weak_and_strong_duality_and_the_gap_of_prices(seed, kl_weight):
    cost, options = random_problem(seed, kl_weight=kl_weight)
    solution = solve(cost, **options, **TIGHT)
    best = dual_value(solution.problem, cost, solution.prices)
    assert solution.objective.total == pytest.approx(best, abs=1e-9)
    prices = solution.prices + np.random.default_rng(seed).normal(size=len(solution.prices))
    value = dual_value(solution.problem, cost, prices)
    assert value <= best + 1e-12
    # The plan of any prices: its value exceeds theirs by what its columns miss.
    extended = induced_plan(cost, prices, options["sample_weight"], options["epsilon"])
    mass, targets = extended.sum(axis=0), column_targets(options)
    strength = np.append(options["kl_weight"], np.inf)
    soft = np.isfinite(strength)
    demand = targets * np.exp(-prices / strength)
    gap = strength[soft] @ kl_div(mass, demand)[soft] + prices[~soft] @ (mass - targets)[~soft]
    assert objective(cost, extended[:, :-1], **options) - value == pytest.approx(gap, abs=1e-9)


@pytest.mark.parametrize(
    ("kl_weight", "rho", "flat"),
    [
        (1.0, 0.5, 0),
        ((1.0, np.inf, np.inf, np.inf), 0.5, 0),  # one soft class fixes all prices
        (np.inf, 0.5, 1),  # a constant is free
        (1.0, 1.0, 0),
        (np.inf, 1.0, 2),  # two blocks that forbid each other: a constant for each
        ((1.0, np.inf, np.inf, np.inf), 1.0, 1),  # the block without a soft class
    ],
)
def test_flat_directions_are_the_constants_of_components_without_a_soft_class(kl_weight, rho, flat):
    """Samples 0 to 5 may join classes 0 and 1 alone, the others 2 and 3; the slack joins them."""
    cost, options = random_problem(1, kl_weight=kl_weight, rho=rho)
    cost[:6, 2:] = cost[6:, :2] = np.inf
    prices = np.array([0.3, -0.2, 0.1, 0.0, 0.2])
    open_columns = 5 if rho < 1 else 4
    if rho == 1:
        prices[-1] = -np.inf
    with np.errstate(invalid="ignore"):
        bend = curvature(cost, options, prices)[:open_columns, :open_columns]
    values, vectors = np.linalg.eigh(bend)
    assert (np.abs(values) < 1e-12).sum() == flat
    assert (values > -1e-12).all()
    first_block = vectors[:2, :flat]
    np.testing.assert_allclose(first_block[0], first_block[1], atol=1e-9)


def test_the_solver_copes_with_two_flat_directions():
    """Two blocks with hard sizes are two balanced problems, whatever the constant between them."""
    ot = pytest.importorskip("ot", reason="needs POT")
    cost = np.random.default_rng(0).random((12, 4))
    cost[:6, 2:] = cost[6:, :2] = np.inf
    plan = solve(cost, kl_weight=np.inf, **TIGHT).plan
    for block in (np.s_[:6, :2], np.s_[6:, 2:]):
        expected = ot.sinkhorn(
            np.full(6, 1 / 12), np.full(2, 0.25), cost[block], 0.1, stopThr=1e-14
        )
        assert distance(plan[block], expected) <= 1e-10


# 8. Bias


@given(seed=SEEDS, rho=st.floats(0.05, 1.0), is_hard=st.booleans())
@PROFILE
def test_the_bias_of_epsilon(seed, rho, is_hard):
    cost, options = random_problem(seed, rho=rho, kl_weight=np.inf)
    samples, classes = cost.shape
    rows = np.kron(np.eye(samples), np.ones(classes))
    columns = np.kron(np.ones(samples), np.eye(classes))
    equal = (columns, rho * options["prior"]) if is_hard else (np.ones_like(rows[:1]), [rho])
    best = linprog(
        cost.ravel(), A_ub=rows, b_ub=options["sample_weight"], A_eq=equal[0], b_eq=equal[1]
    )
    if not is_hard:
        options["kl_weight"] = np.full(classes, 1e-9)  # as good as none
    binary = entr([rho, 1 - rho]).sum()
    sizes = entr(options["prior"]).sum() if is_hard else np.log(classes)
    costs = []
    for epsilon in (0.02, 0.1, 0.5):
        plan = solve(cost, **options | {"epsilon": epsilon}, **TIGHT | {"tol": 1e-9}).plan
        costs.append((cost * plan).sum())
        assert -1e-8 <= costs[-1] - best.fun <= epsilon * (binary + rho * sizes) + 1e-8
    assert (np.diff(costs) >= -1e-8).all()


@pytest.mark.parametrize("rho", [0.3, 1.0])
def test_the_optimal_value_changes_with_epsilon_by_the_entropy(rho):
    cost, options = random_problem(0, rho=rho)
    values = [
        solve(cost, **options | {"epsilon": 0.1 + step}, **TIGHT).objective.total
        for step in (-1e-4, 1e-4)
    ]
    found = solve(cost, **options, **TIGHT).objective
    entropy = (found.plan_entropy + found.slack_entropy) / 0.1
    assert (values[1] - values[0]) / 2e-4 == pytest.approx(entropy, abs=1e-6)


def plain_slack_dual(cost, prices, *, rho, epsilon, kl_weight, prior, sample_weight):
    """Return the semi-dual without the slack's entropy, its gradient, and the plan."""
    exponent = (prices[:-1] - prices[-1] - cost) / epsilon - 1
    log_sum = logsumexp(exponent, axis=1)
    is_full = log_sum > np.log(sample_weight)
    share = sample_weight * (1 + log_sum - np.log(sample_weight))
    mass = np.where(is_full, sample_weight, np.exp(np.minimum(log_sum, 0)))
    plan = mass[:, None] * softmax(exponent, axis=1)
    value = -epsilon * np.where(is_full, share, mass).sum() - rho * prices[-1]
    soft = np.isfinite(kl_weight)
    demand = rho * prior * np.exp(-prices[:-1] / kl_weight)
    value += kl_weight[soft] @ (rho * prior - demand)[soft]
    value += rho * prior[~soft] @ prices[:-1][~soft]
    slope = np.append(demand - plan.sum(axis=0), plan.sum() - rho)
    return value, slope, plan


def plain_slack_plan(cost, options):
    """Return the prices and the plan without the slack's entropy, by a generic maximiser."""

    def negative(prices):
        value, slope, _ = plain_slack_dual(cost, prices, **options)
        return -value, -slope

    start = np.zeros(cost.shape[1] + 1)
    found = minimize(negative, start, jac=True, method="BFGS", options={"gtol": 1e-9})
    return found.x, plain_slack_dual(cost, found.x, **options)[2]


def test_without_the_entropy_of_the_slack_it_is_pot_s_partial_transport():
    ot = pytest.importorskip("ot", reason="needs POT")
    cost, options = random_problem(3, kl_weight=np.inf)
    _, plan = plain_slack_plan(cost, options)
    expected = ot.partial.entropic_partial_wasserstein(
        options["sample_weight"],
        options["rho"] * options["prior"],
        cost,
        reg=options["epsilon"],
        m=options["rho"],
        method="sinkhorn_log",
        numItermax=100_000,
        stopThr=1e-14,
    )
    assert distance(plan, expected) <= 1e-6


def test_without_the_entropy_of_the_slack_it_is_a_conic_solver_s_problem():
    cp = pytest.importorskip("cvxpy", reason="needs CVXPY")
    cost, options = random_problem(4, rho=0.5)
    prices, plan = plain_slack_plan(cost, options)
    variable = cp.Variable(cost.shape)
    wanted = options["rho"] * options["prior"]
    value = cp.sum(cp.multiply(cost, variable)) - options["epsilon"] * cp.sum(cp.entr(variable))
    value += cp.sum(cp.kl_div(cp.sum(variable, axis=0), wanted))
    rows = cp.sum(variable, axis=1)
    problem = cp.Problem(
        cp.Minimize(value), [rows <= options["sample_weight"], cp.sum(variable) == 0.5]
    )
    problem.solve(solver=cp.CLARABEL)
    assert distance(plan, variable.value) <= 1e-4
    dual = plain_slack_dual(cost, prices, **options)[0]
    assert dual == pytest.approx(problem.value, abs=1e-6)
    is_full = plan.sum(axis=1) >= options["sample_weight"] * (1 - 1e-9)
    assert 0 < is_full.sum() < len(is_full)


@given(seed=SEEDS)
@PROFILE
def test_gradient_and_concavity_without_the_entropy_of_the_slack(seed):
    cost, options = random_problem(seed)
    rng = np.random.default_rng(seed)
    prices, other = rng.normal(scale=0.3, size=(2, cost.shape[1] + 1))
    value, slope, _ = plain_slack_dual(cost, prices, **options)
    for direction in np.eye(len(prices)):
        ahead, behind = (
            plain_slack_dual(cost, prices + step * direction, **options)[0]
            for step in (1e-6, -1e-6)
        )
        assert (ahead - behind) / 2e-6 == pytest.approx(slope @ direction, abs=1e-7)
    tangent = value + slope @ (other - prices)
    assert plain_slack_dual(cost, other, **options)[0] <= tangent + 1e-12


@given(seed=SEEDS, rho=st.floats(0.1, 0.9), epsilon=st.sampled_from([0.05, 0.3]))
@PROFILE
def test_the_two_conventions_differ_by_less_than_the_bound(seed, rho, epsilon):
    cost, options = random_problem(seed, rho=rho, epsilon=epsilon)
    options["sample_weight"] = np.full(len(cost), 1 / len(cost))
    smooth, (_, plain) = solve(cost, **options, **TIGHT).plan, plain_slack_plan(cost, options)
    bound = epsilon * entr(1 - rho) + 1e-7

    def excess(plan, best, **convention):
        return objective(cost, plan, **options, **convention) - objective(
            cost, best, **options, **convention
        )

    assert -1e-7 <= excess(plain, smooth) <= bound
    assert -1e-7 <= excess(smooth, plain, slack_entropy=False) <= bound
    share = len(cost) * smooth.sum(axis=1)
    assert ((share > 0) & (share < 1)).all()
