"""What a solution says about itself, and what happens when a solve fails."""

import dataclasses
import pickle
import re
import warnings

import numpy as np
import pytest
from hypothesis import given
from problems import LINEAR_CASES, PROFILE, linear_case, moved, random_graph, run, run_case

import ssot
from ssot import ConvergenceError, ConvergenceWarning, Problem, Status, solve_problem
from ssot.arrays import HOST


@pytest.fixture
def case():
    return linear_case(11, samples=40, classes=4)


@pytest.fixture
def solution(setting, case):
    return run_case(setting, case)


def hard_problem():
    """Return a cost, a graph and options that need several outer steps."""
    cost = np.random.default_rng(5).random((30, 4))
    return cost, random_graph(5, 30), {"rho": 0.5, "semantic_weight": 20.0}


# The plan and what is read off it


def test_shapes_and_types(setting, case, solution):
    samples, classes = case.cost.shape
    assert solution.plan.shape == (samples, classes)
    assert solution.plan.dtype == solution.dtype == solution.confidence.dtype == setting.dtype
    assert solution.prices.shape == (classes + 1,)
    assert solution.prices.dtype == np.float64
    assert solution.labels.shape == solution.confidence.shape == (samples,)
    assert solution.labels.dtype == np.int64
    assert solution.backend == setting.backend
    assert solution.seconds > 0


def test_labels_and_confidence(setting, solution):
    np.testing.assert_array_equal(solution.labels, solution.plan.argmax(axis=1))
    fraction = solution.plan.sum(axis=1) / solution.problem.sample_weight
    np.testing.assert_allclose(solution.confidence, fraction, rtol=10 * setting.tolerance.value)
    assert 0 <= solution.confidence.min() < solution.confidence.max() <= 1


@given(case=LINEAR_CASES)
@PROFILE
def test_predict_gives_the_samples_of_a_problem_without_a_graph_their_labels(setting, case):
    solution = run_case(setting, case)
    score = solution.prices[:-1] - case.cost
    best = np.sort(score, axis=1)
    is_clear = np.ones(len(score), bool)
    if score.shape[1] > 1:  # a tie may be broken either way
        is_clear = best[:, -1] - best[:, -2] > 1e-6
    predicted = solution.predict(case.cost.astype(setting.dtype))
    np.testing.assert_array_equal(predicted[is_clear], solution.labels[is_clear])


def test_samples_without_mass_have_a_label_but_no_confidence(setting):
    case = linear_case(2, weights="some zero")
    solution = run_case(setting, case)
    empty = case.options["sample_weight"] == 0
    assert empty.any()
    assert (solution.confidence[empty] == 0).all()
    predicted = solution.predict(case.cost.astype(setting.dtype))
    np.testing.assert_array_equal(solution.labels[empty], predicted[empty])


def test_a_sample_that_only_a_closed_class_may_have_gets_that_class(setting):
    solution = run(setting, np.random.default_rng(0).random((20, 3)), prior=[0.5, 0.0, 0.5])
    cost = np.array([[np.inf, 1.0, np.inf], [5.0, 1.0, 0.0]], setting.dtype)
    assert solution.predict(cost).tolist() == [1, 2]


def test_a_problem_is_not_an_array():
    with pytest.raises(TypeError, match="problem must be a Problem, got ndarray; pass arrays"):
        solve_problem(np.zeros((2, 2)))


def test_predict_labels_new_samples(setting, solution):
    new = np.random.default_rng(0).random((7, 4)).astype(setting.dtype)
    labels = solution.predict(new)
    assert labels.shape == (7,)
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, (solution.prices[:-1] - new).argmax(axis=1))
    np.testing.assert_array_equal(solution.predict(logits=-new), solution.predict(logits=-new - 3))
    for wrong in (np.zeros((7, 5)), np.zeros(4), np.full((7, 4), np.nan)):
        with pytest.raises(ValueError, match="cost"):
            solution.predict(wrong)
        with pytest.raises(ValueError, match="logits"):
            solution.predict(logits=wrong)
    with pytest.raises(ValueError, match="exactly one of cost and logits"):
        solution.predict()


def test_a_closed_class_is_never_given(setting):
    case = linear_case(6, closed=True)
    solution = run_case(setting, case)
    assert (solution.plan[:, 0] == 0).all()
    assert solution.prices[0] == -np.inf
    cheap_first = np.ones((3, 5), setting.dtype)
    cheap_first[:, 0] = -100
    assert (solution.predict(cheap_first) != 0).all()


# Status and failure


def test_every_status_advises_and_names_an_action():
    actions = r"\b(use|pass|raise|lower|check)\b"
    for status in Status:
        assert re.search(actions, status.advice), status
        assert status.is_success == (status in (Status.CONVERGED, Status.STOPPED))
    options = r"\b(tol|init|max_steps|max_passes|epsilon)\b"
    for status in Status:
        assert status is Status.CONVERGED or re.search(options, status.advice), status


FAILURES = [({"max_steps": 1}, Status.MAX_STEPS), ({"max_passes": 5}, Status.MAX_PASSES)]

every_failure = pytest.mark.parametrize(("limits", "status"), FAILURES, ids=["steps", "passes"])


@every_failure
def test_failures_can_be_returned(setting, limits, status):
    cost, graph, options = hard_problem()
    solution = run(setting, cost, graph, on_failure="return", **limits, **options)
    assert solution.status is status
    assert not solution.status.is_success
    assert solution.plan.shape == cost.shape
    assert np.isfinite(solution.plan).all()


@every_failure
def test_failures_can_be_raised(setting, limits, status):
    cost, graph, options = hard_problem()
    with pytest.raises(ConvergenceError) as caught:
        run(setting, cost, graph, on_failure="raise", **limits, **options)
    assert caught.value.solution.status is status
    assert status.advice in str(caught.value)


@every_failure
@pytest.mark.parametrize("entry", ["solve", "solve_problem", "sp2ot_plan"])
def test_failures_warn_by_default_with_numbers_and_at_the_callers_line(
    setting, limits, status, entry
):
    cost, graph, options = hard_problem()
    cost = moved(cost.astype(setting.dtype), setting.place)
    options |= limits | {"backend": setting.backend}
    if entry == "solve_problem":
        names = ("rho", "semantic_weight")
        arguments = [Problem(cost, graph, **{name: options.pop(name) for name in names})]
    else:
        arguments = [cost, graph]
    solve_by = getattr(ssot, entry)
    with pytest.warns(ConvergenceWarning) as caught:
        solve_by(*arguments, **options)
    (warning,) = caught
    message = str(warning.message)
    assert status.advice in message
    for name in ("gap", "residual", "mass error", "tol"):
        assert re.search(rf"{name} \d", message), name
    assert warning.filename == __file__


def test_a_failed_solve_can_be_continued(setting):
    cost, graph, options = hard_problem()
    failed = run(setting, cost, graph, max_steps=1, on_failure="return", **options)
    finished = run(setting, cost, graph, init=failed, **options)
    assert finished.status is Status.CONVERGED
    gap, tol = finished.certificate.stationarity_gap, setting.tolerance.solve
    assert gap <= max(tol, setting.tolerance.value * finished.objective.scale)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"tol": 0}, ValueError, "tol must be"),
        ({"tol": np.nan}, ValueError, "tol must be"),
        ({"max_steps": 0}, ValueError, "max_steps must be"),
        ({"max_passes": 1.5}, ValueError, "max_passes must be"),
        ({"on_failure": "ignore"}, ValueError, "on_failure must be one of"),
        ({"backend": "fortran"}, ValueError, "backend must be one of"),
        ({"init": "previous"}, TypeError, "init must be a Solution"),
        ({"init": np.zeros(2)}, ValueError, "init must be a Solution, or the 3 prices"),
        ({"init": [0, np.nan, 0]}, ValueError, "init must be finite.* nan at index 1"),
        ({"init": [0, 1e308, 0]}, ValueError, "init must be finite.* 1e.308 at index 1"),
    ],
)
def test_wrong_options_are_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        ssot.solve(np.zeros((3, 2)), **wrong)


def test_a_start_with_other_classes_is_refused(setting, solution):
    with pytest.raises(ValueError, match="init must have the classes"):
        run(setting, np.zeros((3, 5)), init=solution)


# Objects


def test_the_terms_of_the_objective_add_up(setting):
    cost, graph, options = hard_problem()
    objective = run(setting, cost, graph, **options).objective
    named = [getattr(objective, field.name) for field in dataclasses.fields(objective)]
    assert list(objective.terms) == named
    assert objective.total == pytest.approx(sum(named), rel=1e-14)
    assert all(term != 0 for term in named)


def test_results_are_frozen(solution):
    for frozen in (solution, solution.problem, solution.objective, solution.certificate):
        for field in dataclasses.fields(frozen):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(frozen, field.name, None)


def test_the_input_is_neither_modified_nor_needed_to_be_writeable(setting):
    cost, graph, options = hard_problem()
    arrays = {"prior": np.full(4, 0.25), "sample_weight": np.full(30, 1 / 30)}
    cost = cost.astype(setting.dtype)
    for array in (cost, graph.data, graph.indices, *arrays.values()):
        array.flags.writeable = False
    kept = cost.copy(), graph.copy()
    run(setting, cost, graph, **options, **arrays)
    np.testing.assert_array_equal(cost, kept[0])
    assert (graph != kept[1]).nnz == 0


def test_a_problem_can_be_solved_again(setting):
    cost, graph, options = hard_problem()
    problem = moved(Problem(cost.astype(setting.dtype), graph, **options), setting.place)
    limits = {"tol": setting.tolerance.solve, "backend": setting.backend}
    first, second = (solve_problem(problem, **limits) for _ in range(2))
    assert first.problem is second.problem is problem
    first, second = moved(first, HOST), moved(second, HOST)
    np.testing.assert_array_equal(first.plan, second.plan)
    whole = run(setting, cost, graph, **options)
    np.testing.assert_array_equal(first.plan, whole.plan)
    assert first.certificate == whole.certificate


def test_sp2ot_plan_is_the_plan_of_solve(setting, case):
    cost = moved(case.cost.astype(setting.dtype), setting.place)
    plan = moved(ssot.sp2ot_plan(cost, rho=0.3, backend=setting.backend), HOST)
    expected = run(setting, case.cost, rho=0.3, tol=1e-6).plan
    np.testing.assert_array_equal(plan, expected)
    assert plan.sum(dtype=np.float64) == pytest.approx(0.3, abs=1e-6)


def test_a_solution_can_be_pickled(setting, solution):
    loaded = pickle.loads(pickle.dumps(solution))
    np.testing.assert_array_equal(loaded.plan, solution.plan)
    np.testing.assert_array_equal(loaded.labels, solution.labels)
    assert loaded.status is solution.status
    assert loaded.certificate == solution.certificate


def test_the_repr_is_short_and_dumps_no_array(setting):
    cost, graph, options = hard_problem()
    solution = run(setting, cost, graph, **options)
    assert "array(" not in repr(solution)
    assert len(repr(solution)) < 1000
    assert solution.status.name in repr(solution)


def test_no_warning_when_all_is_well(setting, case):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_case(setting, case, on_failure="warn")


def test_a_plan_is_no_start_where_its_memory_has_become_forbidden(setting):
    rng = np.random.default_rng(0)
    cost = rng.random((12, 3)).astype(setting.dtype)
    cost[0, 0] = np.inf
    graph = np.ones((12, 12))
    options = {"rho": 0.5, "tol": setting.tolerance.solve}
    first = run(setting, cost, graph, **options)
    cost[5, int(first.plan[5].argmax())] = np.inf
    again = run(setting, cost, graph, init=first, **options)
    assert not again.plan[np.isinf(cost)].any()
    assert np.isfinite(again.objective.total)


def test_an_error_survives_pickling():
    cost = np.random.default_rng(0).random((50, 5))
    with pytest.raises(ssot.ConvergenceError) as caught:
        ssot.solve(cost, kl_weight=np.inf, epsilon=1e-3, max_passes=2, on_failure="raise")
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert again.solution.status is caught.value.solution.status
