"""The backends, one operation at a time: against each other, and against their formulas."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import PROFILE, SEEDS, random_graph
from scipy import sparse

import ssot
from ssot import Problem
from ssot.curvature import LARGEST_DENSE, LARGEST_TAIL, DenseCoupling, SparseCoupling, System
from ssot.kernels import Plan, make_kernel

numba = pytest.importorskip("numba", reason="Numba is not installed")

from ssot.kernels import compiled, vectors  # noqa: E402

SIZES = {
    "one row": (1, 1),
    "few": (7, 3),
    "a tile": (65, 15),
    "a tile and one": (64, 16),
    "padding": (33, 31),
    "blocks": (700, 40),
    "most dense": (300, LARGEST_DENSE - 1),
    "fewest sparse": (300, LARGEST_DENSE),
    "many classes": (300, 700),
}
EPSILON = 0.2


def problem_of(size, dtype, **options):
    samples, classes = SIZES[size]
    rng = np.random.default_rng(samples)
    cost = 3 * rng.random((samples, classes))
    cost[::3] *= rng.random((len(cost[::3]), 1)) * 3  # some rows are all but decided
    if samples > 1:
        cost[rng.random(cost.shape) < 0.02] = np.inf
        cost[1, :-1] = np.inf
    cost = cost.astype(dtype)
    weight = rng.random(samples)
    graph = random_graph(0, samples) if samples > 1 else sparse.csr_array((1, 1))
    options = {"sample_weight": weight / weight.sum(), "rho": 0.6, "epsilon": EPSILON} | options
    return Problem(cost, graph, semantic_weight=0.7, **options)


def prices_of(problem, seed=1):
    prices = np.random.default_rng(seed).standard_normal(problem.cost.shape[1] + 1)
    if len(prices) > 3:
        prices[1] = -np.inf
    return prices


def system_of(problem):
    """Return a Newton system with something of everything."""
    columns = problem.cost.shape[1] + 1
    rng = np.random.default_rng(8)
    demand, softness = rng.random(columns) / columns, rng.random(columns)
    return System(demand, softness, fixed=columns - 1, longest=1.0)


def rounding(problem):
    return 50 * float(np.finfo(problem.cost.dtype).eps)


def softmax_rows(problem, kernel, prices, product=None):
    cost = problem.cost.astype(np.float64) - kernel.shift
    if product is not None:
        cost -= 2 * problem.semantic_weight * product
    exponent = (prices - np.column_stack([cost, np.zeros(len(cost))])) / problem.epsilon
    scaled = np.exp(exponent - exponent.max(axis=1, keepdims=True))
    return scaled / scaled.sum(axis=1, keepdims=True)


@pytest.fixture(params=SIZES)
def problem(request, setting):
    return problem_of(request.param, setting.dtype)


@pytest.fixture
def kernel(problem, setting):
    return make_kernel(problem, setting.backend)


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
    again, _ = kernel.plan(product, prices, EPSILON, plan)
    assert again.matrix is plan.matrix


def expected_overlap(rows, weight, backend):
    """Return the overlap; compiled, rows that are all but decided couple their largest entry."""
    if backend == "numpy":
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
    prices = prices_of(problem)
    _, coupling = kernel.row_pass(product, prices, EPSILON, system_of(problem))
    is_dense = len(prices) <= LARGEST_DENSE
    assert isinstance(coupling, DenseCoupling if is_dense else SparseCoupling)
    rows = softmax_rows(problem, kernel, prices, product)
    if is_dense:
        overlap = expected_overlap(rows, problem.sample_weight, setting.backend)
        off_diagonal = ~np.eye(len(overlap), dtype=bool)
        difference = (coupling.overlap - overlap)[off_diagonal]
        assert np.abs(difference).max(initial=0.0) <= 1e-7
    else:
        kept = np.where(rows >= LARGEST_TAIL, rows, 0.0)
        borderline = np.abs(rows - LARGEST_TAIL) < 1e-5
        difference = np.where(borderline, 0.0, coupling.large.toarray() - kept)
        assert np.abs(difference).max() <= 1e-5


@pytest.mark.parametrize("size", ["blocks", "many classes"])
def test_coupling_solves_its_own_system(setting, size):
    problem = problem_of(size, setting.dtype)
    prices = prices_of(problem)
    _, coupling = make_kernel(problem, setting.backend).row_pass(
        None, prices, EPSILON, system_of(problem)
    )
    rng = np.random.default_rng(0)
    free = np.flatnonzero(rng.random(len(prices)) < 0.9)
    diagonal, gradient = 1e-3 * rng.random(len(free)), rng.standard_normal(len(free))
    found = coupling.solve(free, diagonal, gradient, EPSILON, np.inf)
    if isinstance(coupling, DenseCoupling):
        overlap, accuracy = coupling.overlap, 1e-9
    else:
        rows = coupling.large.toarray() + np.outer(coupling.tail, coupling.share)
        overlap, accuracy = rows.T @ (problem.sample_weight[:, None] * rows), 0.05
    laplacian = (np.diag(overlap.sum(axis=1)) - overlap)[np.ix_(free, free)]
    residual = laplacian @ found / EPSILON + diagonal * found - gradient
    assert np.linalg.norm(residual) <= accuracy * np.linalg.norm(gradient)


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
    weight = problem.sample_weight[::every]
    alone = Problem(
        problem.cost[::every], rho=0.01, epsilon=EPSILON, sample_weight=weight / weight.sum()
    )
    other = make_kernel(alone, setting.backend)
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
        solution = ssot.solve(cost, sample_weight=weight, backend=setting.backend)
        assert solution.status.is_success
        assert not solution.plan[2].any()
        assert np.isfinite(solution.plan).all()


# The compiled backend


@pytest.mark.parametrize("size", ["blocks", "many classes"])
def test_results_do_not_depend_on_the_number_of_threads(size):
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("needs two cores")
    problem = problem_of(size, np.float32)
    before = numba.get_num_threads()
    plans = []
    for threads in (1, 2):
        numba.set_num_threads(threads)
        try:
            plans.append(ssot.solve_problem(problem, backend="numba", on_failure="raise").plan)
        finally:
            numba.set_num_threads(before)
    np.testing.assert_array_equal(*plans)


@pytest.mark.parametrize(
    ("told", "needed", "used"),
    [("1", 9, 1), ("1,2", 9, 1), (None, 9, 2), ("99", 9, 2), ("x", 9, 2), (None, 1, 1)],
)
def test_told_numbers_of_threads_are_kept_to(monkeypatch, told, needed, used):
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("needs two cores")
    from ssot.kernels import numba as backend

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if told is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", told)
    before = numba.get_num_threads()
    numba.set_num_threads(2)
    try:
        seen = []
        backend.run(lambda: seen.append(numba.get_num_threads()), most_threads=needed)
        assert seen == [used]
        assert numba.get_num_threads() == 2
    finally:
        numba.set_num_threads(before)


@numba.njit(fastmath=vectors.FAST, error_model="numpy")
def apply_exp2(x, y):
    for i in range(len(x)):
        y[i] = vectors.exp2(x[i])


@numba.njit(fastmath=vectors.FAST, error_model="numpy")
def apply_log2(x, y):
    for i in range(len(x)):
        y[i] = vectors.log2(x[i])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(seed=SEEDS, spread=st.floats(1e-6, 1.0))
@PROFILE
def test_exponential_is_within_two_units_in_the_last_place(dtype, seed, spread):
    lowest = float(np.finfo(dtype).minexp)
    x = (spread * lowest * np.random.default_rng(seed).random(1000)).astype(dtype)
    x[:5] = [0.0, -0.5, -1.0, lowest, lowest + 0.5]
    y = np.empty_like(x)
    apply_exp2(x, y)
    expected = np.exp2(x.astype(np.longdouble))
    assert (np.abs(y - expected) <= 2 * np.finfo(dtype).eps * expected).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exponential_vanishes_below_the_normal_numbers(dtype):
    lowest = float(np.finfo(dtype).minexp)
    x = np.array([1.01 * lowest, -1e30, -np.inf], dtype)
    y = np.full_like(x, np.nan)
    apply_exp2(x, y)
    assert not y.any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(seed=SEEDS, spread=st.floats(1e-6, 1.0))
@PROFILE
def test_logarithm_is_within_four_units_in_the_last_place(dtype, seed, spread):
    exponent = spread * np.finfo(dtype).minexp * np.random.default_rng(seed).random(1000)
    x = np.exp2(exponent).astype(dtype)
    x[:4] = [1.0, 0.5, np.finfo(dtype).tiny, np.nextafter(dtype(1), dtype(0))]
    y = np.empty_like(x)
    apply_log2(x, y)
    expected = np.log2(x.astype(np.longdouble))
    assert (np.abs(y - expected) <= 4 * np.finfo(dtype).eps * np.abs(expected)).all()


def test_a_forked_child_does_not_enter_the_threads_of_its_parent():
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    problem = problem_of("few", np.float64)
    assert ssot.solve_problem(problem).backend == "numba"
    child = os.fork()
    if child == 0:
        solved = ssot.solve_problem(problem, on_failure="return")
        os._exit(0 if solved.status.is_success and solved.backend == "numpy" else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_compiles_where_no_cache_can_be_stored(monkeypatch):
    def njit(**options):
        if options.get("cache"):
            raise RuntimeError("no locator available")
        return lambda function: function

    monkeypatch.setattr(compiled.numba, "njit", njit)
    assert compiled._compiled(parallel=False)(len) is len
