"""Slacks without entropy: rows that are filled up to their mass and not beyond."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_problems import (
    EPSILON,
    SIZES,
    assert_solves,
    kernel_of,
    problem_of,
    rounding,
    system_of,
)
from problems import (
    PROFILE,
    SEEDS,
    distance,
    induced_plan,
    linear_case,
    random_graph,
    run,
    run_case,
    tightest,
)
from scipy.special import logsumexp

import ssot
from ssot.curvature import CG_ACCURACY, LARGEST_DENSE, LARGEST_TAIL, SparseCoupling

# The operations of the kernels


@pytest.fixture(params=SIZES)
def problem(request, setting):
    return problem_of(request.param, setting.dtype, slack_entropy=False)


@pytest.fixture
def kernel(problem, setting):
    return kernel_of(setting, problem)


def prices_between(problem, kernel):
    """Return prices at which about half of the rows are full, as a kernel takes them."""
    prices = np.random.default_rng(1).standard_normal(problem.cost.shape[1] + 1)
    if len(prices) > 3:
        prices[1] = -np.inf
    levels = levels_of(problem, kernel, prices)
    prices[-1] = np.median(levels - EPSILON * np.log(problem.sample_weight)) + 1e-3
    return prices


def levels_of(problem, kernel, prices):
    exponent = prices[:-1] - (problem.cost.astype(np.float64) - kernel.shift)
    return EPSILON * logsumexp(exponent / EPSILON, axis=1)


def filled_rows(problem, kernel, prices):
    """Return the plan with its slack as the last column, and which rows are full."""
    public = np.append(prices[:-1], prices[-1] - EPSILON * np.log(len(problem.cost)))
    cost = problem.cost.astype(np.float64) - kernel.shift
    plan = induced_plan(cost, public, problem.sample_weight, EPSILON, slack_entropy=False)
    return plan, plan[:, -1] == 0


def test_rows_are_filled_up_to_their_mass(problem, kernel):
    prices = prices_between(problem, kernel)
    expected, is_full = filled_rows(problem, kernel, prices)
    plan, of_plan = kernel.plan(None, prices, EPSILON, None)
    sums, _ = kernel.row_pass(None, prices, EPSILON, system_of(problem))
    allowed = {"rtol": 0, "atol": rounding(problem)}
    np.testing.assert_allclose(np.column_stack([plan.matrix, plan.slack]), expected, **allowed)
    levels, alpha = levels_of(problem, kernel, prices), problem.sample_weight
    clear = np.abs(levels - prices[-1] - EPSILON * np.log(alpha)) > rounding(problem)
    np.testing.assert_array_equal((plan.slack == 0)[clear], is_full[clear])
    top = np.maximum(levels, prices[-1] + EPSILON * np.log(alpha))
    log_partition = alpha @ top - EPSILON * expected[:, -1].sum()
    for found in (sums, of_plan):
        np.testing.assert_allclose(found.column_mass, expected.sum(axis=0), **allowed)
        assert found.log_partition == pytest.approx(log_partition, rel=rounding(problem))


def overlap_of(problem, plan, is_full):
    """Return how columns are coupled: by products in full rows, with the slack in the others."""
    alpha = problem.sample_weight[:, None]
    overlap = plan[is_full].T @ (plan[is_full] / alpha[is_full])
    edges = plan[~is_full, :-1].sum(axis=0)
    overlap[-1, :-1] += edges
    overlap[:-1, -1] += edges
    return overlap


def test_the_coupling_is_the_derivative_of_the_masses(setting, problem, kernel):
    prices, system = prices_between(problem, kernel), system_of(problem)
    plan, is_full = filled_rows(problem, kernel, prices)
    sums, coupling = kernel.row_pass(None, prices, EPSILON, system)
    overlap = overlap_of(problem, plan, is_full)
    off_diagonal = ~np.eye(len(overlap), dtype=bool)
    if len(prices) <= LARGEST_DENSE:
        # Compiled, rows that are all but decided leave out products of the second order.
        allowed = 1e-7 if setting.backend != "numba" else 1e-3
        difference = (coupling.overlap - overlap)[off_diagonal]
        assert np.abs(difference).max(initial=0.0) <= allowed
    elif setting.is_on_device:
        assert_solves(coupling, overlap, sums, system, 1.1 * CG_ACCURACY)
    else:
        assert isinstance(coupling, SparseCoupling)
        probability = plan[is_full, :-1] / problem.sample_weight[is_full, None]
        found = coupling.large.toarray()[is_full, :-1]
        is_clear = np.abs(probability - LARGEST_TAIL) > 1e-5
        kept = np.where(probability >= LARGEST_TAIL, probability, 0.0)
        assert np.abs(found - kept)[is_clear].max(initial=0.0) <= 1e-5
        np.testing.assert_array_equal(coupling.weight > 0, is_full)
        rows = coupling.large.toarray() + np.outer(coupling.tail, coupling.share)
        own = rows.T @ (coupling.weight[:, None] * rows)
        own[-1] += np.append(plan[~is_full, :-1].sum(axis=0), 0)
        own[:-1, -1] += plan[~is_full, :-1].sum(axis=0)
        np.testing.assert_allclose(own.sum(axis=1)[:-1], plan.sum(axis=0)[:-1], atol=1e-5)
        assert_solves(coupling, own, sums, system, 1.1 * CG_ACCURACY)


# Plans


@given(seed=SEEDS, rho=st.floats(0.05, 0.95), epsilon=st.sampled_from([0.02, 0.2]))
@PROFILE
def test_a_plan_takes_no_more_than_there_is(setting, seed, rho, epsilon):
    case = linear_case(seed, rho=rho, epsilon=epsilon, weights="some zero", slack_entropy=False)
    solution = run_case(setting, case)
    allowed = setting.tolerance.value
    rows, alpha = solution.plan.sum(axis=1, dtype=np.float64), case.options["sample_weight"]
    assert (rows <= alpha * (1 + 1e-6) + 1e-16).all()
    assert abs(rows.sum() - case.options["rho"]) <= allowed
    assert solution.objective.slack_entropy == 0
    levels = solution.prices[:-1] - case.cost
    asked = np.exp(logsumexp(levels / epsilon, axis=1) - solution.prices[-1] / epsilon) / len(alpha)
    is_full, is_loose = (asked > 1.01 * alpha) & (alpha > 0), asked < 0.99 * alpha
    assert (solution.confidence[is_full] == 1).all()
    assert (solution.confidence[is_loose] < 1).all()


def test_sure_samples_are_labelled_wholly_and_others_are_not(setting):
    cost = np.where(np.arange(30)[:, None] < 12, [0.0, 1.0], [1.0, 1.2])
    solution = run(setting, cost, rho=0.5, epsilon=0.1, kl_weight=0.05, slack_entropy=False)
    assert (solution.confidence[:12] == 1).all()
    np.testing.assert_allclose(solution.confidence[12:], 3 / 18, rtol=1e-4)
    published = run(setting, cost, rho=0.5, epsilon=0.1, kl_weight=0.05)
    assert published.confidence.max() < 1


@pytest.mark.parametrize("kl_weight", [1.0, np.inf])
def test_without_slack_its_entropy_does_not_matter(setting, kl_weight):
    case = linear_case(4, rho=1.0, kl_weight=kl_weight)
    one, other = (
        run(setting, case.cost, **(case.options | {"slack_entropy": slack_entropy}))
        for slack_entropy in (True, False)
    )
    np.testing.assert_allclose(other.plan, one.plan, rtol=0, atol=setting.tolerance.plan / 100)
    np.testing.assert_allclose(other.prices, one.prices, rtol=0, atol=setting.tolerance.plan)
    assert (other.confidence == 1).all()


def test_a_sample_that_may_join_no_class_keeps_its_mass(setting):
    cost = np.random.default_rng(0).random((20, 3))
    cost[4] = np.inf
    solution = run(setting, cost, rho=0.9, slack_entropy=False)
    assert not solution.plan[4].any()
    assert solution.confidence[4] == 0


@pytest.mark.parametrize("offset", [0.0, 1e3, -1e3])
def test_a_common_offset_of_the_cost_moves_the_last_price_alone(setting, offset):
    case = linear_case(1, rho=0.4, slack_entropy=False)
    moved = run(setting, np.float32(case.cost + offset), **case.options)
    plain = run(setting, np.float32(np.float32(case.cost + offset) - offset), **case.options)
    assert distance(moved.plan, plain.plan) <= setting.tolerance.plan
    expected = plain.prices - np.append(np.zeros(len(plain.prices) - 1), offset)
    np.testing.assert_allclose(moved.prices, expected, rtol=1e-12, atol=setting.tolerance.plan)


def test_prices_do_not_depend_on_the_number_of_samples(setting):
    case = linear_case(2, rho=0.4, weights="equal", slack_entropy=False)
    solution = run_case(setting, case)
    options = case.options | {"sample_weight": np.full(90, 1 / 90)}
    thrice = run(setting, np.repeat(case.cost, 3, axis=0), **options)
    np.testing.assert_allclose(thrice.prices, solution.prices, rtol=0, atol=1e-4)
    warm = run(setting, np.repeat(case.cost, 3, axis=0), init=solution.prices, **options)
    assert warm.certificate.row_passes <= 3


def test_problems_of_both_kinds_in_one_batch(setting):
    cost = np.random.default_rng(3).random((2, 25, 4))
    batch = run(setting, cost, rho=0.4, slack_entropy=[True, False])
    for index, slack_entropy in enumerate([True, False]):
        alone = run(setting, cost[index], rho=0.4, slack_entropy=slack_entropy)
        assert distance(batch[index].plan, alone.plan) <= setting.tolerance.plan
    assert distance(batch[0].plan, batch[1].plan) > 0.01


# Convergence


@pytest.mark.parametrize("family", ["costs", "log-probabilities", "a wide range", "masks"])
def test_hard_problems_converge(family):
    """Many have a whole number of full rows, where only a kink bounds the price of the slack."""
    rng, samples = np.random.default_rng(5), 100
    cost = rng.random((samples, 6))
    if family == "log-probabilities":
        cost = -np.log(rng.dirichlet(np.full(6, 0.3), size=samples).clip(1e-20))
    if family == "a wide range":
        cost *= 150
    if family == "masks":
        cost[rng.random(cost.shape) < 0.3] = np.inf
    for epsilon in (1e-3, 0.03, 1.0):
        for rho in (0.01, 0.5, 0.9, 0.99):
            for kl_weight in (0.1, 10.0, np.inf):
                options = {"rho": rho, "epsilon": epsilon, "kl_weight": kl_weight}
                solution = ssot.solve(
                    cost, **options, slack_entropy=False, tol=1e-9, on_failure="raise"
                )
                assert solution.certificate.row_passes <= 150


@given(seed=SEEDS)
@PROFILE
def test_the_number_of_full_rows_may_be_whole(seed):
    """Then the plan may need a row that is all but full, a millionth of epsilon past its kink."""
    rng = np.random.default_rng(seed)
    cost, rho = 150 * rng.random((40, 4)), rng.integers(1, 40) / 40
    options = {"rho": rho, "epsilon": float(rng.choice([0.01, 0.1])), "kl_weight": 1.0}
    solution = ssot.solve(cost, **options, slack_entropy=False, tol=1e-9, on_failure="raise")
    assert solution.certificate.mass_error <= 1e-9


# Gradients


@pytest.mark.parametrize("what", ["plan", "value"])
@pytest.mark.parametrize("has_graph", [False, True])
@pytest.mark.parametrize("rho", [0.5, 1.0])
@pytest.mark.parametrize("kl_weight", [1.0, np.inf])
def test_gradients_between_kinks(what, has_graph, rho, kl_weight):
    torch = pytest.importorskip("torch", reason="gradients need Torch")
    rng = np.random.default_rng(0)
    given_inputs = {
        "cost": rng.random((8, 3)),
        "epsilon": 0.1,
        "sample_weight": rng.dirichlet(np.full(8, 5.0)),
        "prior": rng.dirichlet(np.full(3, 5.0)),
    }
    options = {"slack_entropy": False, "tol": 1e-13, "on_failure": "return", "rho": rho}
    options |= {"kl_weight": kl_weight}
    if rho < 1:
        given_inputs["rho"] = options.pop("rho")
    if np.isfinite(kl_weight):
        given_inputs["kl_weight"] = options.pop("kl_weight")
    if has_graph:
        given_inputs["semantic_weight"] = 0.3
        options |= {"graph": random_graph(0, 8), "max_steps": 5000}
    leaves = [torch.tensor(x, dtype=torch.float64).requires_grad_() for x in given_inputs.values()]

    def solution_of(*values):
        return ssot.solve(**dict(zip(given_inputs, values, strict=True)), **options)

    confidence = solution_of(*leaves).confidence
    assert rho == 1 or 0 < (confidence == 1).sum() < 8
    assert torch.autograd.gradcheck(
        lambda *values: getattr(solution_of(*values), what), leaves, atol=2e-5, rtol=1e-4
    )


@pytest.mark.parametrize("kl_weight", [1.0, np.inf])
def test_rho_at_1_has_the_derivative_from_below(kl_weight):
    torch = pytest.importorskip("torch", reason="gradients need Torch")
    cost = torch.rand(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = torch.rand(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def parts(rho):
        options = {"kl_weight": kl_weight, "slack_entropy": False, "tol": 1e-14}
        solution = ssot.solve(cost, rho=rho, **options, on_failure="return")
        return (solution.plan * weight).sum(), solution.value

    rho, step = torch.tensor(1.0, dtype=torch.float64, requires_grad=True), 1e-4
    for at_end, *before in zip(parts(rho), parts(1 - step), parts(1 - 2 * step), strict=True):
        (found,) = torch.autograd.grad(at_end, rho, retain_graph=True)
        slope = (1.5 * at_end.detach() - 2 * before[0] + 0.5 * before[1]) / step
        assert float(found) == pytest.approx(float(slope), rel=1e-4)


# With a graph


@given(seed=SEEDS)
@PROFILE
def test_a_strong_graph_descends_to_a_stationary_plan(setting, seed):
    rng = np.random.default_rng(seed)
    cost, graph = rng.random((25, 4)), random_graph(seed, 25)
    options = {"rho": 0.4, "slack_entropy": False, "semantic_weight": 5.0}
    solution = run(setting, cost, graph, **options, tol=tightest(setting), on_failure="return")
    history = np.array(solution.certificate.objective_history)
    assert (np.diff(history) < 0).all()
    if solution.status.is_success:
        again = run(setting, cost, graph, init=solution, **options, tol=10 * tightest(setting))
        assert again.certificate.outer_steps == 0
