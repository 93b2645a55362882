"""Laws of the problem that hold whatever its solution is."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from problems import (
    CONVEX_CASES,
    LINEAR_CASES,
    PROFILE,
    SEEDS,
    class_divergence,
    convex_threshold,
    distance,
    distance_bound,
    linear_case,
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
from tolerances import SETTINGS

from ssot import Problem, Status
from ssot.mm import LOOSEST_INNER_EXPONENT

REFERENCE = SETTINGS[0]
CASES = LINEAR_CASES | CONVEX_CASES


def solve_tightly(setting, case, **changes):
    """Solve a known answer, with some of its options changed, to the accuracy of `apart`."""
    tol = setting.tolerance.solve if case.graph is None else tightest(setting)
    options = {"tol": tol} | case.options | changes
    return run(setting, options.pop("cost", case.cost), options.pop("graph", case.graph), **options)


def apart(setting, case):
    """Return how far apart two solutions of a problem may be that were both solved tightly."""
    if case.graph is None:
        return setting.tolerance.plan
    bound = distance_bound(tightest(setting), case.options["epsilon"], case.convexity)
    return 2 * bound + setting.tolerance.plan


# Symmetries


@given(case=CASES, seed=SEEDS)
@PROFILE
def test_at_full_mass_a_constant_on_a_row_of_the_cost_changes_nothing(setting, case, seed):
    alpha = case.options["sample_weight"]
    shift = np.random.default_rng(seed).integers(-2, 3, size=len(alpha))
    full_mass = {"rho": 1.0}
    solution = solve_tightly(setting, case, **full_mass)
    shifted = solve_tightly(setting, case, **full_mass, cost=case.cost + shift[:, None])
    assert distance(shifted.plan, solution.plan) <= apart(setting, case)
    difference = shifted.objective.total - solution.objective.total
    assert difference == pytest.approx(alpha @ shift, abs=10 * setting.tolerance.value)


@given(case=CASES, seed=SEEDS)
@PROFILE
def test_permuted_samples_and_classes_give_the_permuted_plan(setting, case, seed):
    rng = np.random.default_rng(seed)
    rows, columns = map(rng.permutation, case.cost.shape)
    permuted = solve_tightly(
        setting,
        case,
        cost=case.cost[rows][:, columns],
        graph=None if case.graph is None else case.graph[rows][:, rows],
        prior=case.options["prior"][columns],
        kl_weight=case.options["kl_weight"][columns],
        sample_weight=case.options["sample_weight"][rows],
    )
    solution = solve_tightly(setting, case)
    assert distance(permuted.plan, solution.plan[rows][:, columns]) <= apart(setting, case)


@given(case=CASES, unit=st.sampled_from([1.0, 7.0, 1e4]))
@PROFILE
def test_the_unit_of_the_cost_does_not_matter(setting, case, unit):
    names = ("epsilon", "kl_weight", "semantic_weight")
    scaled_options = {name: unit * case.options[name] for name in names if name in case.options}
    solution = solve_tightly(setting, case)
    scaled = solve_tightly(setting, case, cost=unit * case.cost, **scaled_options)
    assert distance(scaled.plan, solution.plan) <= apart(setting, case)
    expected = unit * solution.objective.total
    allowed = 10 * unit * setting.tolerance.value
    assert scaled.objective.total == pytest.approx(expected, abs=allowed)


@given(case=LINEAR_CASES, seed=SEEDS)
@PROFILE
def test_a_sample_may_be_split_into_two_of_half_its_weight(setting, case, seed):
    """Each x log x becomes 2 (x/2) log (x/2) = x log x - x log 2.

    With the slack's, the x of a row sum to its weight; without, the halves' cost makes up for it.
    """
    split = int(np.random.default_rng(seed).integers(len(case.cost)))
    alpha = case.options["sample_weight"].copy()
    alpha[split] /= 2
    solution = run_case(setting, case)
    gain = case.options["epsilon"] * np.log(2)
    cost = np.vstack([case.cost, case.cost[split]])
    if not case.options["slack_entropy"]:
        cost[[split, -1]] += gain
    after = solve_tightly(setting, case, cost=cost, sample_weight=np.append(alpha, alpha[split]))
    merged = after.plan[:-1].copy()
    merged[split] += after.plan[-1]
    assert distance(merged, solution.plan) <= 2 * setting.tolerance.plan
    assert after.labels[-1] == after.labels[split]
    expected = -2 * alpha[split] * gain if case.options["slack_entropy"] else 0.0
    change = after.objective.total - solution.objective.total
    assert change == pytest.approx(expected, abs=10 * setting.tolerance.value)


@given(case=CONVEX_CASES)
@PROFILE
def test_a_graph_may_come_in_any_form(setting, case):
    plan = solve_tightly(setting, case).plan
    dense = case.graph.toarray()
    k = max(1, int((dense != 0).sum(axis=1).max()))
    neighbours = np.argsort(dense == 0, axis=1, kind="stable")[:, :k]
    weights = np.take_along_axis(dense, neighbours, axis=1)
    forms = [
        dense,
        (neighbours, weights),
        dense.T.copy(),
        symmetrised(case.graph),
        np.triu(dense + dense.T, 1),
        sparse.coo_array(dense),
        sparse.csc_matrix(dense),
    ]
    for graph in forms:
        solution = solve_tightly(setting, case, graph=graph)
        assert distance(solution.plan, plan) <= apart(setting, case)


@given(case=CASES)
@PROFILE
def test_every_backend_and_dtype_agrees_with_the_first(setting, case):
    solution, reference = solve_tightly(setting, case), solve_tightly(REFERENCE, case)
    assert solution.plan.dtype == setting.dtype
    allowed = apart(setting, case) + apart(REFERENCE, case)
    assert distance(solution.plan, reference.plan) <= allowed


# Limits


@pytest.mark.parametrize("rho", [0.4, 1.0])
def test_a_large_kl_weight_is_a_hard_class_size(setting, rho):
    case = linear_case(3, rho=rho, kl_weight=np.inf)
    nearly_hard = run(setting, case.cost, **(case.options | {"kl_weight": 1e8}))
    # The demand exp(-price / 1e8) differs from the hard one by 1e-8 for prices of size 1.
    assert distance(nearly_hard.plan, case.plan) <= setting.tolerance.plan + 1e-7


@pytest.mark.parametrize("seed", range(5))
def test_a_small_semantic_weight_is_none(setting, seed):
    case = linear_case(seed, rho=0.9, epsilon=0.02, kl_weight=np.inf)
    graph = random_graph(seed, len(case.cost))
    weak = run(setting, case.cost, graph, semantic_weight=1e-9, **case.options)
    # It moves no cost by more than 1e-8, an epsilon-th part of which is the change of a row.
    allowed = distance_bound(setting.tolerance.solve, case.options["epsilon"], convexity=1.0)
    assert distance(weak.plan, case.plan) <= allowed + 1e-6
    # Already the first, roughly solved plan has a small gap, which is of second order only.
    assert weak.certificate.column_residual <= setting.tolerance.solve
    assert weak.certificate.mass_error <= setting.tolerance.solve


@given(case=CASES)
@PROFILE
def test_no_semantic_weight_is_no_graph(setting, case):
    linear = run(setting, case.cost, **without_graph(case.options))
    options = case.options | {"semantic_weight": 0.0}
    silenced = run(setting, case.cost, random_graph(0, len(case.cost)), **options)
    np.testing.assert_array_equal(silenced.plan, linear.plan)
    assert silenced.objective.semantic == 0


@pytest.mark.parametrize("kl_weight", [0.5, np.inf])
def test_nearly_all_mass_is_nearly_the_plan_of_all_mass(setting, kl_weight):
    case = linear_case(5, rho=1.0, kl_weight=kl_weight)
    options = case.options | {"rho": 1 - 1e-8}
    nearly = run(setting, case.cost, **options)
    # The missing mass comes from one class and is made up for by a chain of the others.
    allowed = setting.tolerance.plan + 2 * len(case.prices) * 1e-8
    assert distance(nearly.plan, case.plan) <= allowed


# Descent


def strong_problem(seed, samples=20, classes=4):
    """Return a cost, an indefinite graph with negative edges, and options that make it dominate."""
    rng = np.random.default_rng(seed)
    cost = rng.random((samples, classes))
    return cost, random_graph(seed, samples), strong_options(rng, samples)


@given(seed=SEEDS, samples=st.integers(2, 25), classes=st.integers(1, 5))
@PROFILE
def test_the_objective_never_rises(setting, seed, samples, classes):
    cost, graph, options = strong_problem(seed, samples, classes)
    solution = run(setting, cost, graph, on_failure="return", **options)
    history = np.array(solution.certificate.objective_history)
    assert (np.diff(history) < 0).all()
    # Plans of the descent may lack mass up to the loosest inner tolerance, counted at their prices.
    lacking = setting.tolerance.solve**LOOSEST_INNER_EXPONENT
    finite = solution.prices[np.isfinite(solution.prices)]
    allowed = lacking * max(np.ptp(finite), np.abs(finite).max()) + setting.tolerance.value
    assert abs(history[-1] - solution.objective.total) <= allowed
    assert len(history) == solution.certificate.outer_steps + 1


@given(seed=SEEDS)
@PROFILE
def test_steps_made_one_by_one_never_raise_the_objective_either(setting, seed):
    cost, graph, options = strong_problem(seed)
    options |= {"max_steps": 1, "on_failure": "return"}
    solution = run(setting, cost, graph, **options)
    for _ in range(5):
        following = run(setting, cost, graph, init=solution, **options)
        allowed = 10 * setting.tolerance.value
        allowed += worth_of_violation(solution, following.prices)
        allowed += worth_of_violation(following, following.prices)
        assert following.objective.total <= solution.objective.total + allowed
        solution = following


@given(seed=SEEDS)
@PROFILE
def test_the_callback_sees_every_step(setting, seed):
    cost, graph, options = strong_problem(seed)
    seen = []
    callback = seen.append
    solution = run(setting, cost, graph, callback=callback, on_failure="return", **options)
    history, last = solution.certificate.objective_history, seen[-1]
    assert [progress.objective for progress in seen] == [history[p.step] for p in seen]
    assert {progress.step for progress in seen} == set(range(len(history)))
    assert all(progress.gap >= 0 for progress in seen)
    passes = [progress.row_passes for progress in seen]
    assert passes == sorted(passes)
    assert last.gap == solution.certificate.stationarity_gap
    assert last.row_passes == solution.certificate.row_passes


@example(seed=2, kl_weight=0.005)  # a shortened step decides
@given(seed=SEEDS, kl_weight=st.sampled_from([0.005, 0.05, 1.0]))
@PROFILE
def test_converged_means_within_tol_by_the_certificate(setting, seed, kl_weight):
    cost, graph, options = strong_problem(seed)
    options |= {"kl_weight": kl_weight, "tol": 1e-5}
    certificate = run(setting, cost, graph, **options).certificate
    assert certificate.stationarity_gap <= 1e-5
    assert certificate.column_residual <= 1e-5
    assert certificate.mass_error <= 1e-5


SHARP = {
    "a demand underflows that a mass does not": ([[1.0, 3.7], [1.7, 1.8], [0.7, 1.8]], 30.0),
    "the virtual price jumps": ([[-17.2, -3.3], [-2.5, 6.0], [-3.8, -2.4]], 30.0),
    "stationary before it is feasible": ([[1.4, -1.9], [3.2, -2.3], [-0.9, -2.2]], 10.0),
    "a class is all but empty": ([[-0.3, 4.0], [-0.1, -3.1], [-0.7, -0.7]], 30.0),
}


@pytest.mark.parametrize("name", SHARP)
@pytest.mark.parametrize("epsilon", [0.003, 0.01])
@pytest.mark.parametrize("kl_weight", [0.003, 0.01, np.inf])
@pytest.mark.parametrize("rho", [0.1, 0.5])
def test_only_rounding_stalls_a_solve(setting, name, epsilon, kl_weight, rho):
    """The cost's range is a thousand times epsilon, and the graph as strong as the cost."""
    cost, semantic_weight = SHARP[name]
    ring = np.roll(np.eye(3), 1, axis=0)
    options = {"epsilon": epsilon, "kl_weight": kl_weight, "rho": rho, "tol": 1e-6}
    options |= {"semantic_weight": semantic_weight, "on_failure": "return"}
    solution = run(setting, cost, ring, **options)
    certificate = solution.certificate
    assert np.isfinite(certificate.inner_gap)
    if solution.status is Status.STALLED:
        misses = certificate.column_residual + certificate.mass_error
        rounding = np.finfo(setting.dtype).eps * np.ptp(cost) / epsilon
        allowed = 10 * setting.tolerance.value + rounding
        assert certificate.relative_stationarity_gap + misses <= allowed


@pytest.mark.parametrize("kl_weight", [0.1, np.inf])
@pytest.mark.parametrize("gap", [90, 110, 150, 712, 738, 760])
def test_a_mass_may_begin_at_the_least_numbers_or_below(setting, gap, kl_weight):
    """A class is so far off that its first mass is e^-gap: subnormal or 0, in either precision."""
    cost = np.random.default_rng(0).random((50, 4))
    cost[:, -1] += gap * 0.05
    options = {"epsilon": 0.05, "kl_weight": kl_weight, "rho": 0.5}
    assert run(setting, cost, **options).status is Status.CONVERGED


def test_two_samples_that_would_swap_their_labels_for_ever(setting):
    """Each follows the other, so that full steps exchange the two rows of the plan."""
    cost = np.array([[0.0, 0.1], [0.1, 0.0]])
    swap = np.array([[0.0, 1.0], [1.0, 0.0]])
    options = {"epsilon": 0.05, "kl_weight": np.inf, "semantic_weight": 1.0}

    def linear(plan):
        return run(setting, cost - 2 * swap @ plan, epsilon=0.05, kl_weight=np.inf).plan

    first = linear(np.zeros((2, 2)))
    second = linear(first)
    problem = Problem(cost, swap, **options)
    full_step = sum(objective_terms(problem, second)) - sum(objective_terms(problem, first))
    assert full_step > 0.01
    solution = run(setting, cost, swap, **options)
    # Half and half is the only plan that satisfies both the graph and the class sizes.
    allowed = distance_bound(setting.tolerance.solve, 0.05, convexity=1.0)
    history = solution.certificate.objective_history
    assert (np.diff(history) <= 0).all()
    assert history[-1] < history[0] - 0.01
    assert distance(solution.plan, second) > allowed


@given(seed=SEEDS, rho=st.sampled_from([0.3, 1.0]))
@PROFILE
def test_a_larger_kl_weight_brings_the_class_sizes_closer_to_the_prior(setting, seed, rho):
    case = linear_case(seed, samples=20, rho=rho)
    divergences = []
    for kl_weight in (0.01, 0.1, 1.0, 10.0, np.inf):
        solution = run(setting, case.cost, **(case.options | {"kl_weight": kl_weight}))
        divergences.append(class_divergence(solution.problem, solution.plan))
    assert (np.diff(divergences) <= setting.tolerance.value).all()
    assert divergences[-1] <= setting.tolerance.value < divergences[0]


# Starts and stops


@given(case=CASES, seed=SEEDS)
@PROFILE
def test_a_warm_start_gives_the_same_plan_for_fewer_row_passes(setting, case, seed):
    cold = solve_tightly(setting, case)
    nudge = 1e-4 * np.random.default_rng(seed).normal(size=case.cost.shape)
    before = solve_tightly(setting, case, cost=case.cost + nudge)
    warm = solve_tightly(setting, case, init=before)
    assert distance(warm.plan, cold.plan) <= apart(setting, case)
    assert warm.certificate.row_passes <= cold.certificate.row_passes


@given(case=CASES)
@PROFILE
def test_a_solution_is_its_own_best_start(setting, case):
    solution = solve_tightly(setting, case)
    again = solve_tightly(setting, case, init=solution)
    assert again.certificate.outer_steps == 0
    assert again.certificate.row_passes <= 8
    assert distance(again.plan, solution.plan) <= apart(setting, case)


@given(case=LINEAR_CASES)
@PROFILE
def test_prices_alone_are_as_good_a_start_without_a_graph(setting, case):
    solution = run_case(setting, case)
    by_solution = run_case(setting, case, init=solution)
    by_prices = run_case(setting, case, init=solution.prices)
    np.testing.assert_array_equal(by_prices.plan, by_solution.plan)
    assert by_prices.certificate == by_solution.certificate


def test_a_start_may_come_from_other_samples_or_another_rho(setting):
    case = linear_case(7, samples=40)
    half = {"sample_weight": None, "cost": case.cost[::2]}
    solution = solve_tightly(setting, case)
    for before in (solve_tightly(setting, case, **half), solve_tightly(setting, case, rho=1.0)):
        warm = solve_tightly(setting, case, init=before)
        assert distance(warm.plan, solution.plan) <= 2 * setting.tolerance.plan


@given(seed=SEEDS, rho=st.sampled_from([0.2, 0.6, 1.0]))
@PROFILE
def test_a_solution_of_another_rho_is_not_itself_the_start(setting, seed, rho):
    cost, graph, options = strong_problem(seed)
    before = run(setting, cost, graph, **(options | {"rho": 0.4, "on_failure": "return"}))
    options |= {"rho": rho, "init": before}
    start = run(setting, cost, graph, callback=lambda progress: True, **options)
    assert start.certificate.outer_steps == 0
    assert start.plan.sum(dtype=np.float64) == pytest.approx(rho, abs=1e-3)


def test_a_callback_can_stop_the_solve(setting):
    cost, graph, options = strong_problem(1)
    stopped = run(setting, cost, graph, callback=lambda progress: progress.step == 1, **options)
    assert stopped.status is Status.STOPPED
    assert stopped.certificate.outer_steps == 1
    to_the_end = run(setting, cost, graph, callback=lambda progress: None, **options)
    assert to_the_end.status is Status.CONVERGED
    assert to_the_end.certificate.objective_history[:2] == stopped.certificate.objective_history


# Convexity


@pytest.mark.parametrize("samples", [2, 64, 65])
@pytest.mark.parametrize("is_signed", [False, True])
@pytest.mark.parametrize(("rho", "slack_entropy"), [(1.0, False), (0.5, True), (0.5, False)])
def test_provable_convexity_is_that_of_the_dense_eigenvalues(
    setting, samples, is_signed, rho, slack_entropy
):
    graph = random_graph(samples, samples, signed=is_signed)
    alpha = np.random.default_rng(samples).dirichlet(np.ones(samples))
    threshold = convex_threshold(symmetrised(graph), alpha, 0.1, rho, slack_entropy)
    for factor in (0.01, 1 - 1e-4, 1 + 1e-4, 100.0):
        solution = run(
            setting,
            np.zeros((samples, 2)),
            graph,
            rho=rho,
            slack_entropy=slack_entropy,
            epsilon=0.1,
            sample_weight=alpha,
            semantic_weight=factor * threshold,
            max_steps=1,
            on_failure="return",
        )
        assert solution.certificate.provably_convex == (factor < 1)


def test_a_graph_of_repulsion_alone_is_convex_at_any_strength(setting):
    graph = random_graph(0, 80, signed=False)
    w = symmetrised(graph)
    laplacian = sparse.csr_array(w - np.diag(w.sum(axis=1)))
    options = {"semantic_weight": 1e3, "max_steps": 1, "on_failure": "return"}
    assert run(setting, np.zeros((80, 2)), laplacian, **options).certificate.provably_convex
