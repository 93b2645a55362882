"""Sections 4 to 7 and 9 of docs/theory.md: the problem with a graph.

`Iteration` is the majorise-minimise iteration of the page with inner problems solved to rounding,
written without the solver's outer loop.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import PROFILE, SEEDS, distance, random_graph, symmetrised
from scipy.linalg import block_diag, null_space
from scipy.optimize import brentq
from scipy.sparse.linalg import eigsh
from scipy.special import kl_div, xlogy

from ssot import knn_graph, semantic_weight, solve
from ssot.kernels.numpy import NumpyKernel

ROUNDING = 1e-9
"""Of differences of objectives: plans miss their masses by some 1e-11, times a price."""

EXACT = {"tol": 1e-13, "backend": "numpy", "on_failure": "return"}
"""For inner problems: as accurate as float64 allows."""

NEIGHBOURS = np.array([[0.0, 1.0], [1.0, 0.0]])
"""Two samples that are each other's neighbour: the smallest graph, of eigenvalues 1 and -1."""


@dataclass(frozen=True)
class Iteration:
    """Majorise-minimise steps for a uniform prior and uniform weights, with one `kl_weight`."""

    cost: np.ndarray
    w: np.ndarray
    strength: float
    rho: float = 1.0
    epsilon: float = 0.1
    kl_weight: float = 1.0

    @property
    def share(self):
        return self.rho / self.cost.shape[1]

    def objective(self, plan):
        slack = np.maximum(1 / len(plan) - plan.sum(axis=1), 0)
        value = (self.cost * plan).sum() - self.strength * (plan * (self.w @ plan)).sum()
        if np.isfinite(self.kl_weight):
            value += self.kl_weight * kl_div(plan.sum(axis=0), self.share).sum()
        return value + self.epsilon * (xlogy(plan, plan).sum() + xlogy(slack, slack).sum())

    def curve(self, change):
        return -self.strength * (change * (self.w @ change)).sum()

    def answer(self, plan):
        """Return the solution of the problem linearised at a plan, and the gap there."""
        names = ("rho", "epsilon", "kl_weight")
        options = {name: getattr(self, name) for name in names}
        best = solve(self.cost - 2 * self.strength * self.w @ plan, **options, **EXACT).plan
        gap = self.epsilon * kl_div(plan, best).sum()
        if self.rho < 1:
            slacks = [1 / len(plan) - each.sum(axis=1) for each in (plan, best)]
            gap += self.epsilon * kl_div(*slacks).sum()
        if np.isfinite(self.kl_weight):
            gap += self.kl_weight * kl_div(plan.sum(axis=0), best.sum(axis=0)).sum()
        return best, max(gap, 0.0)  # rounding can take it below

    def safeguarded(self, plan):
        """Return the next plan, and the gap and curve of the step to it."""
        best, gap = self.answer(plan)
        curve = self.curve(best - plan)
        step = 1.0 if gap >= 2 * curve else gap / (2 * curve)
        return plan + step * (best - plan), gap, curve

    @property
    def repulsion(self):
        """``kappa``, the most that a step's curve can be of its gap."""
        return self.strength * -np.linalg.eigvalsh(self.w)[0] / (len(self.w) * self.epsilon)

    @property
    def attraction(self):
        """``theta``, the share of the entropy's bend that the graph can take away."""
        return self.strength * np.linalg.eigvalsh(self.w)[-1] / (len(self.w) * self.epsilon)

    @property
    def sure_share(self):
        """The share of the gap by which a step lowers the objective at least."""
        return 1 - self.repulsion if self.repulsion <= 0.5 else 0.25 / self.repulsion


def random_iteration(seed, strength, samples=10, classes=3, **options):
    """Return an iteration; the strength is in units that make ``attraction`` the given number."""
    rng = np.random.default_rng(seed)
    w = symmetrised(random_graph(seed, samples))
    unit = samples * options.get("epsilon", 0.1) / np.linalg.eigvalsh(w)[-1]
    return Iteration(rng.random((samples, classes)), w, strength * unit, **options)


def first_plan(iteration):
    return iteration.answer(np.zeros_like(iteration.cost))[0]


# 4. Convexity


def least_bend(plan, alpha, w, strength, *, kl_weight, slack_entropy=True, epsilon=0.1):
    """Return the smallest curvature of the objective at a plan, over all feasible directions."""
    samples, classes = plan.shape
    rows = block_diag(*[np.ones((1, classes))] * samples)
    columns = np.kron(np.ones((1, samples)), np.eye(classes))
    slack = alpha - plan.sum(axis=1)
    is_full = (slack < 1e-9 * alpha).all()
    bend = np.diag(epsilon / plan.ravel()) - 2 * strength * np.kron(w, np.eye(classes))
    fixed = [rows if is_full else np.ones((1, plan.size))]
    if slack_entropy and not is_full:
        bend += epsilon * rows.T @ np.diag(1 / slack) @ rows
    if np.isinf(kl_weight):
        fixed.append(columns)
    else:
        bend += kl_weight * columns.T @ np.diag(1 / plan.sum(axis=0)) @ columns
    free = null_space(np.vstack(fixed))
    return np.linalg.eigvalsh(free.T @ bend @ free)[0]


@given(seed=SEEDS)
@PROFILE
def test_evenly_split_rows_bend_up_to_the_condition_and_no_further(seed):
    """The condition for unequal weights, whatever the graph."""
    rng = np.random.default_rng(seed)
    w, alpha = symmetrised(random_graph(seed, 6)), rng.dirichlet(np.full(6, 5.0))
    largest = np.linalg.eigvalsh(np.sqrt(alpha)[:, None] * w * np.sqrt(alpha))[-1]
    plan = alpha[:, None] * np.array([0.5 - 1e-7, 0.5 - 1e-7, 2e-7])
    for share, sign in ((0.99, 1), (1.01, -1)):
        found = least_bend(plan, alpha, w, share * 0.1 / largest, kl_weight=1e-9)
        assert np.sign(found) == sign


@given(seed=SEEDS, kl_weight=st.sampled_from([1e-9, 0.5, np.inf]), slack_entropy=st.booleans())
@PROFILE
def test_no_plan_bends_down_up_to_the_condition(seed, kl_weight, slack_entropy):
    rng = np.random.default_rng(seed)
    w, alpha = symmetrised(random_graph(seed, 6)), rng.dirichlet(np.full(6, 5.0))
    largest = np.linalg.eigvalsh(np.sqrt(alpha)[:, None] * w * np.sqrt(alpha))[-1]
    shares = rng.dirichlet(np.full(4, 0.3), size=6).clip(1e-6)
    shares /= shares.sum(axis=1, keepdims=True)
    strength = (1.0 if slack_entropy else 0.5) * 0.1 / largest
    options = {"kl_weight": kl_weight, "slack_entropy": slack_entropy}
    assert least_bend(alpha[:, None] * shares[:, :3], alpha, w, strength, **options) > -1e-9


@pytest.mark.parametrize("kl_weight", [1e-9, np.inf])
@pytest.mark.parametrize(
    ("row", "slack_entropy", "limit"),
    [
        ([0.5, 0.5], True, 1.0),
        ([0.5 - 1e-6, 0.5 - 1e-6], True, 1.0),
        ([0.5, 0.5], False, 1.0),
        ([1 - 2e-6, 1e-6], False, 0.5),
    ],
    ids=["full", "partial", "full, plain slack", "partial, plain slack"],
)
def test_the_constant_of_the_convexity_condition_is_best(row, slack_entropy, limit, kl_weight):
    """Two pairs of neighbours, so that class sizes may stand still."""
    pairs, plan = np.kron(np.eye(2), NEIGHBOURS), np.tile(row, (4, 1)) / 4
    options = {"kl_weight": kl_weight, "slack_entropy": slack_entropy}
    for share, sign in ((0.99, 1), (1.01, -1)):
        found = least_bend(plan, np.full(4, 0.25), pairs, share * limit * 0.1 / 0.25, **options)
        assert np.sign(found) == sign


@pytest.fixture(scope="module")
def digits():
    datasets = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn")
    return datasets.load_digits().data


@pytest.mark.parametrize(
    ("bandwidth", "largest", "smallest", "outweighed"),
    [(None, 17.0, -3.8, 1.7), (16, 13.5, -2.8, 1.3)],
)
def test_published_defaults_on_digits_are_far_from_convex(
    digits, bandwidth, largest, smallest, outweighed
):
    graph = knn_graph(digits, bandwidth=bandwidth)
    w = (graph + graph.T) / 2
    start = np.ones(len(digits))
    for which, value in (("LA", largest), ("SA", smallest)):
        found = eigsh(w, k=1, which=which, v0=start, return_eigenvectors=False)[0]
        # Equal distances are many among digits, and rounding decides which are neighbours.
        assert found == pytest.approx(value, abs=0.06)
    # In a plan of even rows the graph outweighs the entropy, at the default epsilon of 0.1, in a
    # direction that leaves the sizes of the classes and the slack as they are.
    rho, classes = 0.5, 10
    _, vectors = eigsh(w, k=4, which="LA", v0=start)
    even_sums = vectors @ null_space(vectors.sum(axis=0, keepdims=True))
    _, turns = np.linalg.eigh(even_sums.T @ (w @ even_sums))
    moved = even_sums @ turns[:, -1:]
    assert abs(moved.sum()) < 1e-9
    direction = moved * (np.eye(1, classes, 0) - np.eye(1, classes, 1))
    entropy_bend = 0.1 * (direction**2).sum() * len(digits) * classes / rho
    graph_bend = 2 * semantic_weight(rho, len(digits)) * (direction * (w @ direction)).sum()
    assert graph_bend / entropy_bend == pytest.approx(outweighed, abs=0.06)


# 5. Cycles of the full step


def deviations(iteration, start, steps):
    """Return how far the first sample's first mass is from even, over full steps."""
    plan, even = start, start.mean(axis=0)[0]
    seen = [plan[0, 0] - even]
    for _ in range(steps):
        plan = iteration.answer(plan)[0]
        seen.append(plan[0, 0] - even)
    return np.array(seen), plan


SMALLEST = {
    "one class": (Iteration(np.zeros((2, 1)), NEIGHBOURS, 1.0, rho=0.5), [[0.3], [0.2]], 10),
    "two classes": (
        Iteration(np.zeros((2, 2)), NEIGHBOURS, 0.5),
        [[0.3, 0.2], [0.2, 0.3]],
        10,
    ),
}


@pytest.mark.parametrize("name", SMALLEST)
def test_the_smallest_cycles_of_the_full_step(name):
    """The deviation d from even becomes ``-tanh(slope d) / 4``: a cycle from a slope of 4 on."""
    iteration, start, slope = SMALLEST[name]
    start = np.array(start)
    seen, plan = deviations(iteration, start, steps=40)
    np.testing.assert_allclose(seen[1:], -np.tanh(slope * seen[:-1]) / 4, atol=1e-9)
    cycle = brentq(lambda d: np.tanh(slope * d) / 4 - d, 0.01, 0.25)
    np.testing.assert_allclose(np.abs(seen[-10:]), cycle, atol=1e-9)
    assert cycle > 0.24
    assert (seen[-10:-1] * seen[-9:] < 0).all()
    # The objective has its only minimum at the even plan, and the cycle is above it and its start.
    even = np.full_like(start, 0.25)
    assert iteration.objective(plan) > iteration.objective(start) + 0.01
    assert iteration.objective(start) > iteration.objective(even)
    # Below the threshold the same steps converge.
    weak = Iteration(iteration.cost, NEIGHBOURS, 0.39 * iteration.strength, rho=iteration.rho)
    assert abs(deviations(weak, start, steps=200)[0][-1]) < 1e-3


@given(seed=SEEDS, strength=st.sampled_from([5.0, 50.0]), rho=st.sampled_from([0.3, 1.0]))
@PROFILE
def test_full_steps_end_in_a_fixed_point_or_a_cycle_of_two(seed, strength, rho):
    """They minimise in turns ``g(P) + g(Q) - 2 semantic_weight <P, W Q>``, which is symmetric."""
    iteration = random_iteration(seed, strength, rho=rho)

    def of_pair(plan, other):
        quadratic = [iteration.curve(each) for each in (plan, other)]
        convex = iteration.objective(plan) + iteration.objective(other) - sum(quadratic)
        mixed = (plan * (iteration.w @ other)).sum()
        return convex - 2 * iteration.strength * mixed

    plans = [first_plan(iteration)]
    for _ in range(20):
        plans.append(iteration.answer(plans[-1])[0])
    values = [of_pair(*pair) for pair in pairwise(plans)]
    falls = -np.diff(values)
    changes = [((plan - then) ** 2).sum() for plan, then in zip(plans, plans[2:], strict=False)]
    assert (falls >= iteration.epsilon * len(iteration.w) * np.array(changes) - ROUNDING).all()


@pytest.mark.parametrize("name", SMALLEST)
def test_the_solver_descends_where_the_full_step_cycles(name):
    iteration, start, _ = SMALLEST[name]
    options = {"rho": iteration.rho, "epsilon": iteration.epsilon, "tol": 1e-12}
    there = solve(-10 * np.array(start), **options)  # a plan on the side of the start
    assert there.plan[0, 0] > 0.26
    solution = solve(
        iteration.cost, NEIGHBOURS, semantic_weight=iteration.strength, init=there, **options
    )
    history = np.array(solution.certificate.objective_history)
    assert len(history) > 2
    assert (np.diff(history) < 0).all()
    np.testing.assert_allclose(solution.plan, 0.25, atol=1e-6)


def test_six_samples_cycle_at_the_published_settings():
    """Two groups of three, each sample the neighbour of the other group's: slope 1.5 times 4."""
    w = np.kron(NEIGHBOURS, np.ones((3, 3)))
    iteration = Iteration(np.zeros((6, 1)), w, semantic_weight(0.5, 6), rho=0.5)
    start = np.repeat([[0.09], [1 / 6 - 0.09]], 3, axis=0)
    seen, _ = deviations(iteration, start, steps=60)
    cycle = brentq(lambda d: np.tanh(18 * d) / 12 - d, 0.01, 0.1)
    np.testing.assert_allclose(np.abs(seen[-4:]), cycle, atol=1e-6)
    assert (seen[-4:-1] * seen[-3:] < 0).all()


# 6. Descent of the safeguarded step


@given(
    seed=SEEDS,
    strength=st.sampled_from([0.2, 2.0, 20.0]),
    rho=st.sampled_from([0.3, 1.0]),
    kl_weight=st.sampled_from([0.5, np.inf]),
)
@PROFILE
def test_every_step_descends_by_a_share_of_its_gap(seed, strength, rho, kl_weight):
    iteration = random_iteration(seed, strength, rho=rho, kl_weight=kl_weight)
    plan = start = first_plan(iteration)
    gaps = []
    for _ in range(6):
        following, gap, curve = iteration.safeguarded(plan)
        fall = iteration.objective(plan) - iteration.objective(following)
        best = gap - curve if gap >= 2 * curve else gap**2 / (4 * curve)
        assert fall >= best - ROUNDING
        answer = iteration.answer(plan)[0]
        change = answer - plan
        surrogate_fall = iteration.objective(plan) - iteration.objective(answer) + curve
        assert gap == pytest.approx(surrogate_fall, abs=ROUNDING)
        assert gap >= iteration.epsilon * len(plan) * (change**2).sum() - ROUNDING
        assert curve <= iteration.repulsion * gap + ROUNDING
        assert fall >= iteration.sure_share * gap - ROUNDING
        longest = 2 * iteration.strength * -np.linalg.eigvalsh(iteration.w)[0] / len(plan)
        assert curve <= longest + ROUNDING
        gaps.append(gap)
        plan = following
    fallen = iteration.objective(start) - iteration.objective(plan)
    assert sum(gaps) <= fallen / iteration.sure_share + ROUNDING
    assert min(gaps) <= max(2 * fallen / 6, 2 * np.sqrt(fallen * longest / 6)) + ROUNDING


@given(seed=SEEDS, strength=st.sampled_from([0.3, 0.8]), rho=st.sampled_from([0.3, 1.0]))
@PROFILE
def test_linear_convergence_to_the_optimum_where_convex(seed, strength, rho):
    iteration = random_iteration(seed, strength, rho=rho)
    options = {"rho": rho, "semantic_weight": iteration.strength, "tol": 1e-13}
    best = solve(iteration.cost, iteration.w, **options, on_failure="return").objective.total
    plan = first_plan(iteration)
    excess = iteration.objective(plan) - best
    for _ in range(5):
        plan, gap, _ = iteration.safeguarded(plan)
        assert gap >= (1 - iteration.attraction) * excess - ROUNDING
        following = iteration.objective(plan) - best
        factor = 1 - (1 - iteration.attraction) * iteration.sure_share
        assert following <= factor * excess + ROUNDING
        excess = following


# 7. Near a solution


def response(iteration, plan):
    """Return the derivative of the linear problem's plan in minus its cost, (N K, N K)."""
    samples, classes = plan.shape
    bend = np.diag(iteration.epsilon / plan.ravel())
    columns = np.kron(np.ones((1, samples)), np.eye(classes))
    rows = block_diag(*[np.ones((1, classes))] * samples)
    if iteration.rho < 1:
        slack = 1 / samples - plan.sum(axis=1)
        bend += iteration.epsilon * rows.T @ np.diag(1 / slack) @ rows
        fixed = [np.ones((1, samples * classes))]
    else:
        fixed = [rows]
    if np.isfinite(iteration.kl_weight):
        mass = plan.sum(axis=0)
        bend += iteration.kl_weight * columns.T @ np.diag(1 / mass) @ columns
    else:
        fixed.append(columns)
    free = null_space(np.vstack(fixed))
    return free @ np.linalg.solve(free.T @ bend @ free, free.T)


def jacobian(iteration, plan):
    """Return the derivative of the full step at a plan."""
    graph = np.kron(iteration.w, np.eye(plan.shape[1]))
    return 2 * iteration.strength * response(iteration, plan) @ graph


@pytest.mark.parametrize("kl_weight", [0.5, np.inf])
@pytest.mark.parametrize("rho", [0.4, 1.0])
def test_the_full_step_contracts_by_its_derivative(rho, kl_weight):
    iteration = random_iteration(3, 1.5, rho=rho, kl_weight=kl_weight)
    limit = first_plan(iteration)
    for _ in range(60):
        limit, last = iteration.answer(limit)[0], limit
    assert distance(limit, last) < 1e-9
    values = np.linalg.eigvals(jacobian(iteration, limit))
    assert np.abs(values.imag).max() < 1e-9
    assert -0.5 < values.real.min() < values.real.max() < 1  # a strict local minimum, full steps
    options = {"rho": rho, "kl_weight": kl_weight}
    tilt = np.random.default_rng(0).normal(scale=0.1, size=limit.shape)
    plan = limit + 0.1 * (solve(iteration.cost + tilt, **options, **EXACT).plan - limit)
    derivative, gaps = jacobian(iteration, limit), []
    for _ in range(6):
        error = plan - limit
        plan, gap, curve = iteration.safeguarded(plan)
        assert gap >= 2 * curve
        expected = (derivative @ error.ravel()).reshape(error.shape)
        if np.abs(error).max() < 1e-4:
            assert distance(plan - limit, expected) < 0.02 * np.abs(error).sum() + 1e-9
            gaps.append(gap)
    assert len(gaps) >= 3
    radius = np.abs(values).max()
    assert (np.array(gaps[1:]) <= 1.05 * radius**2 * np.array(gaps[:-1]) + 1e-16).all()


def test_shortened_steps_converge_linearly_where_the_full_step_diverges():
    iteration = Iteration(np.array([[0.0, 0.1], [0.2, 0.0]]), NEIGHBOURS, strength=0.5)
    plan = np.array([[0.3, 0.2], [0.25, 0.25]])
    for _ in range(400):
        plan, last = iteration.safeguarded(plan)[0], plan
    assert distance(plan, last) < 1e-12
    values = np.linalg.eigvals(jacobian(iteration, plan)).real
    assert values.min() < -1
    assert values.max() < 1
    share = 0.25 / -values.min()
    best = iteration.objective(plan)
    plan += 1e-3 * (np.full((2, 2), 0.25) - plan)
    excess = iteration.objective(plan) - best
    for _ in range(5):
        plan = iteration.safeguarded(plan)[0]
        following = iteration.objective(plan) - best
        assert following <= (1 - (1 - values.max()) * share) * excess * 1.02 + 1e-14
        excess = following


# 9. Cost of a step


@pytest.fixture
def counts(monkeypatch):
    """Count what the solver asks of its kernel."""
    counted = {}

    def counting(name, operation):
        def counted_operation(*arguments):
            counted[name] = counted.get(name, 0) + 1
            return operation(*arguments)

        return counted_operation

    for name in ("row_pass", "plan", "measure", "graph_product", "replace_product"):
        monkeypatch.setattr(NumpyKernel, name, counting(name, getattr(NumpyKernel, name)))
    return counted


@pytest.mark.parametrize("strength", [0.5, 20.0])
def test_the_operations_of_a_solve(counts, strength):
    iteration = random_iteration(7, strength, samples=40, rho=0.5)
    solution = solve(
        iteration.cost,
        iteration.w,
        rho=0.5,
        semantic_weight=iteration.strength,
        tol=1e-9,
        backend="numpy",
    )
    steps = solution.certificate.outer_steps
    assert steps > 1
    assert counts["row_pass"] + counts["plan"] == solution.certificate.row_passes
    assert counts["plan"] == steps + 2  # the first plan, and an answer to each plan since
    assert counts["measure"] == steps + 1
    assert counts["replace_product"] == steps
    shortened = counts["graph_product"] - 1
    assert 0 <= shortened <= steps
