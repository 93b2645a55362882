"""The backends, one operation at a time: against each other, and against their formulas."""

import numpy as np
import pytest
from kernel_problems import (
    EPSILON,
    SIZES,
    AtHome,
    assert_solves,
    kernel_of,
    prices_of,
    problem_of,
    rounding,
    softmax_rows,
    system_of,
)
from problems import moved, run
from tolerances import EVERY_SETTING

from ssot import Problem
from ssot.curvature import (
    CG_ACCURACY,
    LARGEST_DENSE,
    LARGEST_TAIL,
    DenseCoupling,
    SparseCoupling,
)
from ssot.kernels import Plan, make_kernel
from ssot.kernels.protocol import Bound


@pytest.mark.parametrize("setting", EVERY_SETTING, ids=str)
def test_this_machine_has_every_setting(setting):
    if setting.lacks is not None:
        pytest.skip(setting.lacks)


@pytest.fixture(params=SIZES)
def problem(request, setting):
    return problem_of(request.param, setting.dtype)


@pytest.fixture
def kernel(problem, setting):
    return kernel_of(setting, problem)


@pytest.fixture(params=[False, True], ids=["cost", "linearised"])
def product(request, problem):
    matrix = np.random.default_rng(2).random(problem.cost.shape).astype(problem.cost.dtype)
    return matrix if request.param else None


def test_row_pass_sums_the_softmax(problem, kernel, product):
    prices = prices_of(problem)
    sums, _ = kernel.row_pass(product, prices, EPSILON, system_of(problem))
    rows = softmax_rows(problem, kernel, prices, product)
    expected = problem.sample_weight @ rows
    np.testing.assert_allclose(sums.column_mass, expected, rtol=0, atol=rounding(problem))
    best = np.log(rows.max(axis=1))
    cost = problem.cost.astype(np.float64) - kernel.shift
    cost -= 0.0 if product is None else 1.4 * product
    exponent = (prices - np.column_stack([cost, np.zeros(len(cost))])) / EPSILON
    expected = EPSILON * problem.sample_weight @ (exponent.max(axis=1) - best)
    assert sums.log_partition == pytest.approx(expected, rel=rounding(problem))


def test_plan_is_the_weighted_softmax(problem, kernel, product):
    prices = prices_of(problem)
    plan, sums = kernel.plan(product, prices, EPSILON, None)
    expected = problem.sample_weight[:, None] * softmax_rows(problem, kernel, prices, product)
    given_plan = np.column_stack([plan.matrix, plan.slack])
    np.testing.assert_allclose(given_plan, expected, rtol=0, atol=rounding(problem))
    np.testing.assert_allclose(sums.column_mass, expected.sum(axis=0), atol=rounding(problem))
    assert plan.matrix.dtype == problem.cost.dtype
    spare = Plan(np.full_like(plan.matrix, np.nan), np.full_like(plan.slack, np.nan))
    kernel.plan(product, prices, EPSILON, spare)
    np.testing.assert_array_equal(np.column_stack(spare), given_plan)


def expected_overlap(rows, weight, backend):
    """Return the overlap; compiled, rows that are all but decided couple their largest entry."""
    if backend != "numba":
        return rows.T @ (weight[:, None] * rows)
    decided = rows.max(axis=1) >= 1 - 1 / 32
    undecided = rows[~decided]
    overlap = undecided.T @ (weight[~decided, None] * undecided)
    for row, mass in zip(rows[decided], weight[decided], strict=True):
        top = row.argmax()
        overlap[top] += mass * row[top] * row
        overlap[:, top] += mass * row[top] * row
    return overlap


def test_the_kernel_problems_have_decided_and_undecided_rows():
    problem = problem_of("blocks", np.float64)
    kernel = make_kernel(problem, "numpy")
    decided = softmax_rows(problem, kernel, prices_of(problem)).max(axis=1) >= 1 - 1 / 32
    assert 5 < decided.sum() < len(decided) - 5


def test_coupling_is_the_derivative_of_the_masses(setting, problem, kernel, product):
    prices, system = prices_of(problem), system_of(problem)
    sums, coupling = kernel.row_pass(product, prices, EPSILON, system)
    rows = softmax_rows(problem, kernel, prices, product)
    if len(prices) <= LARGEST_DENSE:
        overlap = expected_overlap(rows, problem.sample_weight, setting.backend)
        off_diagonal = ~np.eye(len(overlap), dtype=bool)
        difference = (coupling.overlap - overlap)[off_diagonal]
        assert np.abs(difference).max(initial=0.0) <= 1e-7
    elif setting.is_on_device:
        overlap = rows.T @ (problem.sample_weight[:, None] * rows)
        assert_solves(coupling, overlap, sums, system, 1.1 * CG_ACCURACY)
    else:
        kept = np.where(rows >= LARGEST_TAIL, rows, 0.0)
        borderline = np.abs(rows - LARGEST_TAIL) < 1e-5
        difference = np.where(borderline, 0.0, coupling.large.toarray() - kept)
        assert np.abs(difference).max() <= 1e-5


@pytest.mark.parametrize("size", ["blocks", "many classes"])
def test_coupling_solves_its_own_system(setting, size):
    problem = problem_of(size, setting.dtype)
    prices, system = prices_of(problem), system_of(problem)
    kernel = kernel_of(setting, problem)
    sums, coupling = kernel.row_pass(None, prices, EPSILON, system)
    rows, accuracy = softmax_rows(problem, kernel, prices), 1.1 * CG_ACCURACY
    if isinstance(coupling, SparseCoupling):
        rows = coupling.large.toarray() + np.outer(coupling.tail, coupling.share)
    overlap = rows.T @ (problem.sample_weight[:, None] * rows)
    if isinstance(coupling, DenseCoupling):
        overlap, accuracy = coupling.overlap, 1e-9
    assert_solves(coupling, overlap, sums, system, accuracy)


@pytest.mark.parametrize("most_rows", [1000, 40])
def test_the_matrix_of_a_coupling_is_one_of_the_true_masses(setting, problem, kernel, most_rows):
    sums, coupling = kernel.row_pass(None, prices_of(problem), EPSILON, None)
    matrix = coupling.matrix(most_rows)
    np.testing.assert_allclose(matrix, matrix.T, rtol=0, atol=1e-12)
    if isinstance(coupling, SparseCoupling):
        is_whole = most_rows >= len(problem.cost)
        accuracy = 1e-6 if is_whole else 0.5  # shares of a sample, which has some rows
        assert np.abs(matrix.sum(axis=1) - sums.column_mass).sum() <= accuracy
        assert matrix.sum() == pytest.approx(1.0, abs=1e-6)
        assert np.linalg.eigvalsh(matrix)[0] >= -1e-12
    else:
        np.testing.assert_array_equal(matrix, coupling.matrix(1))


def test_parts_of_the_rows_add_up(setting, problem, kernel):
    """Each part with the weights that its rows have in the problem."""
    prices, samples = prices_of(problem), len(problem.cost)
    whole, coupling = kernel.row_pass(None, prices, EPSILON, None)
    cut = samples // 3
    parts = []
    for rows in (slice(0, cut), slice(cut, cut), slice(cut, None)):
        bound = Bound(
            cost=moved(problem.cost[rows], kernel.place),
            sample_weight=moved(problem.sample_weight[rows], kernel.place),
            graph=None,
            semantic_weight=0.0,
            shift=kernel.shift,
        )
        parts.append(type(make_kernel(problem, setting.backend))(bound))
    parts = [AtHome(part).row_pass(None, prices, EPSILON, None) for part in parts]
    mass = sum(sums.column_mass for sums, _ in parts)
    np.testing.assert_allclose(mass, whole.column_mass, rtol=0, atol=rounding(problem))
    total = sum(sums.log_partition for sums, _ in parts)
    assert total == pytest.approx(whole.log_partition, rel=rounding(problem), abs=1e-12)
    if isinstance(coupling, DenseCoupling):
        matrix = sum(coupling.matrix(samples) for _, coupling in parts)
        off_diagonal = ~np.eye(len(matrix), dtype=bool)
        difference = (matrix - coupling.matrix(samples))[off_diagonal]
        assert np.abs(difference).max(initial=0.0) <= 1e-6


def test_measure_sums_any_plan(problem, kernel, product):
    rng = np.random.default_rng(5)
    matrix = rng.random(problem.cost.shape) * (rng.random(problem.cost.shape) < 0.5)
    matrix[np.isinf(problem.cost)] = 0.0
    matrix = (matrix / matrix.size).astype(problem.cost.dtype)
    slack = rng.random(len(matrix)) * (rng.random(len(matrix)) < 0.5)
    sums = kernel.measure(Plan(matrix, slack), product)
    q, cost = matrix.astype(np.float64), problem.cost.astype(np.float64) - kernel.shift
    paid = np.where(q > 0, cost, 0.0) * q
    assert sums.transport == pytest.approx(paid.sum(), rel=rounding(problem))
    expected = 0.0 if product is None else (q * product).sum()
    assert sums.semantic == pytest.approx(expected, rel=rounding(problem))
    entropy = [(x[x > 0] * np.log(x[x > 0])).sum() for x in (q, slack)]
    found = [sums.plan_entropy, sums.slack_entropy]
    np.testing.assert_allclose(found, entropy, rtol=rounding(problem), atol=1e-14)
    excess = (q.sum(axis=1) - problem.sample_weight).clip(min=0).sum()
    assert sums.row_excess == pytest.approx(excess, abs=rounding(problem))
    masses = np.append(q.sum(axis=0), slack.sum())
    np.testing.assert_allclose(sums.column_mass, masses, rtol=rounding(problem))


@pytest.mark.parametrize("slack_entropy", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_a_plan_that_is_not_kept_has_the_sums_of_one_that_is(setting, size, slack_entropy):
    problem = problem_of(size, setting.dtype, slack_entropy=slack_entropy)
    kernel, prices = kernel_of(setting, problem), prices_of(problem)
    plan, sums = kernel.plan(None, prices, EPSILON, None)
    expected = plan.slack, *sums, *kernel.measure(plan, None)
    slack, plan_sums, row_sums = kernel.transient_plan(prices, EPSILON)
    for found, value in zip((slack, *row_sums, *plan_sums), expected, strict=True):
        np.testing.assert_allclose(found, value, rtol=rounding(problem), atol=rounding(problem))


def test_products_with_the_graph(problem, kernel):
    rng = np.random.default_rng(6)
    old, new = rng.random((2, *problem.cost.shape)).astype(problem.cost.dtype)
    product = kernel.graph_product(old, None)
    np.testing.assert_allclose(product, problem.graph @ old, rtol=rounding(problem), atol=1e-6)
    bend = kernel.replace_product(product, old, new)
    np.testing.assert_allclose(product, problem.graph @ new, rtol=rounding(problem), atol=1e-6)
    change = new.astype(np.float64) - old
    expected = (change * (problem.graph @ change)).sum()
    assert bend == pytest.approx(expected, rel=1e3 * rounding(problem), abs=1e-6)


def test_interpolation_stays_between_the_plans(problem, kernel):
    rng = np.random.default_rng(7)
    old, new = rng.random((2, *problem.cost.shape)).astype(problem.cost.dtype)
    slacks = rng.random((2, len(old)))
    expected = old + 0.3 * (new.astype(np.float64) - old)
    expected_slack = slacks[0] + 0.3 * (slacks[1] - slacks[0])
    kernel.interpolate(Plan(old, slacks[0]), Plan(new, slacks[1]), 0.3)
    np.testing.assert_allclose(new, expected, rtol=rounding(problem))
    np.testing.assert_allclose(slacks[1], expected_slack, rtol=1e-12)


@pytest.mark.parametrize("every", [2, 5])
def test_a_sample_is_the_problem_of_its_rows(problem, kernel, product, every, setting):
    prices = prices_of(problem)
    sampled, rows = kernel.sample(product, every)
    sampled = AtHome(sampled)
    weight = problem.sample_weight[::every]
    alone = Problem(
        problem.cost[::every], rho=0.01, epsilon=EPSILON, sample_weight=weight / weight.sum()
    )
    other = kernel_of(setting, alone)
    assert sampled.samples == len(weight)
    if product is None:
        found, _ = sampled.plan(None, prices, EPSILON, None)
        prices[-1] += other.shift - kernel.shift
        expected, _ = other.plan(None, prices, EPSILON, None)
        np.testing.assert_allclose(found.matrix, expected.matrix, atol=rounding(problem))
    else:
        np.testing.assert_array_equal(rows, product[::every])


def test_the_typical_spread_is_that_of_a_typical_row(kernel, problem):
    cost = np.where(np.isfinite(problem.cost), problem.cost, np.nan).astype(np.float64)
    cost = cost[~np.isnan(cost).all(axis=1)]
    spread = np.nanmedian(cost, axis=1) - np.nanmin(cost, axis=1)
    assert spread.min() <= kernel.typical_spread(None) <= spread.max()


def test_a_row_without_an_open_column_gets_nothing(setting):
    for classes in (2, LARGEST_DENSE + 30):
        cost = np.random.default_rng(0).random((6, classes)).astype(setting.dtype)
        cost[2] = np.inf
        weight = np.array([1.0, 1, 0, 1, 1, 1]) / 5
        solution = run(setting, cost, sample_weight=weight)
        assert solution.status.is_success
        assert not solution.plan[2].any()
        assert np.isfinite(solution.plan).all()
