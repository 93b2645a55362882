"""Plans that are known beforehand, and certificates that say the truth about them."""

import numpy as np
import pytest
from conftest import DATA
from hypothesis import given
from hypothesis import strategies as st
from problems import (
    CONVEX_CASES,
    LINEAR_CASES,
    PROFILE,
    SEEDS,
    STATIONARY_CASES,
    distance,
    distance_bound,
    dual_value,
    objective_terms,
    random_graph,
    run,
    run_case,
    strong_options,
    symmetrised,
    tightest,
    without_graph,
    worth_of_violation,
)
from scipy import sparse

DEFAULT_TOL = 1e-6


def stored(name):
    with np.load(DATA / f"{name}.npz") as file:
        return dict(file)


def stored_names(pattern):
    return sorted(path.stem for path in DATA.glob(pattern))


# Stored plans


@pytest.mark.parametrize("is_tight", [False, True], ids=["default", "tight"])
@pytest.mark.parametrize("name", stored_names("linear_*.npz"))
def test_stored_plans_and_prices(setting, name, is_tight):
    case = stored(name)
    names = ("rho", "epsilon", "kl_weight", "prior", "sample_weight")
    options = {name: case[name] for name in names}
    tol = setting.tolerance.solve if is_tight else DEFAULT_TOL
    solution = run(setting, case["cost"], tol=tol, **options)
    assert distance(solution.plan, case["plan"]) <= setting.tolerance.plan
    classes = len(case["prior"])
    expected = case["prices"] if case["rho"] < 1 else np.append(case["prices"], -np.inf)
    assert solution.prices.shape == (classes + 1,)
    np.testing.assert_allclose(solution.prices, expected, rtol=0, atol=setting.tolerance.plan)


@pytest.mark.parametrize("name", stored_names("published_*.npz"))
def test_published_plans(setting, name):
    case = stored(name)
    samples = len(case["logits"])
    graph = sparse.csr_array(
        (case["graph_data"], case["graph_indices"], case["graph_indptr"]), shape=(samples,) * 2
    )
    names = ("rho", "epsilon", "kl_weight", "semantic_weight")
    options = {name: case[name] for name in names}
    logits, tol = case["logits"].astype(setting.dtype), tightest(setting)
    solution = run(setting, None, graph, logits=logits, tol=tol, **options)
    # The stored plan is float32. A gap of tol places a plan only within its square root.
    allowed = max(2e-6, distance_bound(tol, float(case["epsilon"]), convexity=1.0))
    assert distance(samples * solution.plan, case["plan_times_n"]) <= samples * allowed


# Problems made from their solution


@given(case=LINEAR_CASES)
@PROFILE
def test_the_answer_without_a_graph(setting, case):
    solution = run_case(setting, case)
    assert distance(solution.plan, case.plan) <= setting.tolerance.plan
    is_open = np.isfinite(case.prices)
    np.testing.assert_array_equal(np.isfinite(solution.prices), is_open)
    assert solution.certificate.stationarity_gap <= setting.tolerance.solve
    assert solution.certificate.provably_convex


@given(case=CONVEX_CASES)
@PROFILE
def test_the_answer_with_a_graph_weak_enough_for_convexity(setting, case):
    tol = tightest(setting)
    solution = run_case(setting, case, tol=tol)
    assert solution.certificate.provably_convex
    allowed = distance_bound(tol, case.options["epsilon"], case.convexity)
    assert distance(solution.plan, case.plan) <= allowed + setting.tolerance.plan


@given(case=CONVEX_CASES)
@PROFILE
def test_the_default_tolerance_bounds_the_error(setting, case):
    solution = run_case(setting, case, tol=DEFAULT_TOL)
    certificate = solution.certificate
    assert max(certificate.column_residual, certificate.mass_error) <= DEFAULT_TOL
    allowed = distance_bound(DEFAULT_TOL, case.options["epsilon"], case.convexity)
    assert distance(solution.plan, case.plan) <= allowed + DEFAULT_TOL


def test_a_first_plan_below_the_optimum_is_no_obstacle(setting):
    """Solved to a low accuracy, the first plan misses hard sizes and may lie below the optimum."""
    cost = [[0.3, 1.0], [0.3, 0.8], [0.9, 0.4], [0.4, 0.4]]
    ring = np.roll(np.eye(4), 1, axis=0)
    options = {"epsilon": 0.05, "kl_weight": np.inf, "semantic_weight": 0.1}
    solution = run(setting, cost, ring, tol=DEFAULT_TOL, **options)
    assert solution.certificate.provably_convex
    assert solution.certificate.column_residual <= DEFAULT_TOL


@given(case=STATIONARY_CASES)
@PROFILE
def test_a_stationary_start_is_recognised_however_strong_the_graph(setting, case):
    there = run(setting, case.tangent_cost, **without_graph(case.options))
    assert distance(there.plan, case.plan) <= setting.tolerance.plan
    solution = run_case(setting, case, init=there)
    assert not solution.certificate.provably_convex
    assert solution.certificate.outer_steps == 0
    assert distance(solution.plan, case.plan) <= setting.tolerance.plan


# Certificates


def assert_feasibility_is_as_certified(setting, solution):
    problem, certificate = solution.problem, solution.certificate
    plan, prices = solution.plan.astype(np.float64), np.asarray(solution.prices)[:-1]
    rows, columns = plan.sum(axis=1), plan.sum(axis=0)
    with np.errstate(invalid="ignore"):  # a closed class: exp(inf) of nothing
        demand = np.nan_to_num(problem.rho * problem.prior * np.exp(-prices / problem.kl_weight))
    excess = np.maximum(rows - problem.sample_weight, 0)
    residual = np.abs(columns - demand).sum()
    allowed = {"rel": setting.tolerance.value, "abs": setting.tolerance.value}
    assert certificate.mass_error == pytest.approx(abs(plan.sum() - problem.rho), **allowed)
    assert certificate.row_violation == pytest.approx(excess.sum(), **allowed)
    assert certificate.column_residual == pytest.approx(residual, **allowed)
    assert (plan >= 0).all()
    assert excess.sum() <= setting.tolerance.value


@given(case=LINEAR_CASES, max_passes=st.integers(1, 10))
@PROFILE
def test_the_certificate_without_a_graph(setting, case, max_passes):
    solution = run_case(setting, case, max_passes=max_passes, on_failure="return")
    assert_feasibility_is_as_certified(setting, solution)
    certificate, total = solution.certificate, solution.objective.total
    gap = total - dual_value(solution.problem, solution.problem.cost, solution.prices)
    allowed = 2 * worth_of_violation(solution, solution.prices)
    allowed += setting.tolerance.value * max(1, solution.objective.scale)
    assert certificate.stationarity_gap == pytest.approx(gap, abs=allowed)
    optimum = sum(objective_terms(solution.problem, case.plan))
    assert total - optimum <= certificate.stationarity_gap + allowed
    assert total - optimum <= certificate.inner_gap + allowed


@given(case=CONVEX_CASES, max_steps=st.integers(1, 6))
@PROFILE
def test_the_certificate_with_a_graph(setting, case, max_steps):
    solution = run_case(setting, case, max_steps=max_steps, on_failure="return")
    assert_feasibility_is_as_certified(setting, solution)
    problem, certificate, objective = solution.problem, solution.certificate, solution.objective
    plan = solution.plan.astype(np.float64)
    tangent = case.cost - 2 * problem.semantic_weight * symmetrised(case.graph) @ plan
    best = run(setting, tangent, **without_graph(case.options))
    gap = objective.total + objective.semantic - dual_value(problem, tangent, best.prices)
    allowed = 2 * worth_of_violation(solution, best.prices)
    allowed += setting.tolerance.value * max(1, objective.scale)
    assert certificate.stationarity_gap >= gap - allowed
    assert certificate.stationarity_gap <= gap + certificate.inner_gap + allowed
    optimum = sum(objective_terms(problem, case.plan))
    # See distance_bound for the convexity in the denominator.
    assert objective.total - optimum <= (certificate.stationarity_gap + allowed) / case.convexity


@given(seed=SEEDS)
@PROFILE
def test_the_terms_of_the_objective(setting, seed):
    rng = np.random.default_rng(seed)
    samples = int(rng.integers(1, 12))
    graph = random_graph(seed, samples)
    options = strong_options(rng, samples, on_failure="return")
    solution = run(setting, rng.normal(size=(samples, 3)), graph, max_steps=2, **options)
    expected = objective_terms(solution.problem, solution.plan.astype(np.float64))
    objective = solution.objective
    allowed = {"rtol": 10 * setting.tolerance.value, "atol": 10 * setting.tolerance.value}
    np.testing.assert_allclose(objective.terms, expected, **allowed)
    assert objective.total == pytest.approx(sum(objective.terms), rel=1e-14)
    assert objective.scale == pytest.approx(sum(map(abs, objective.terms)), rel=1e-14)
