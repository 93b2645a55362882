"""The outer iteration descends where the published full step cycles."""

import numpy as np
import pytest
from conftest import DATA
from problems import run
from scipy import sparse

from benchmarks.hard_problems import SEMANTIC_SETTINGS, semantic_problem
from ssot import Status, solve

GAP = 1e-6


@pytest.fixture(scope="module")
def stored():
    with np.load(DATA / "hard.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def stored_graph(stored):
    size = len(stored["logits"])
    entries = (stored["graph_data"], (stored["graph_row"], stored["graph_col"]))
    return sparse.coo_array(entries, shape=(size, size))


def check_descent(solution):
    history = np.array(solution.certificate.objective_history)
    assert solution.status is Status.CONVERGED
    assert solution.certificate.stationarity_gap <= GAP
    assert (np.diff(history) <= 0).all()
    assert abs(history[-1] - solution.objective.total) < 1e-8
    assert not solution.certificate.provably_convex


@pytest.mark.parametrize("case", range(3))
def test_stored_problem_descends_to_the_reference(stored, stored_graph, case, setting):
    solution = run(
        setting,
        None,
        stored_graph,
        logits=stored["logits"].astype(setting.dtype),
        rho=stored["rho"][case],
        epsilon=stored["epsilon"],
        kl_weight=stored["kl_weight"],
        semantic_weight=stored["semantic_weight"][case],
        tol=GAP,
    )
    check_descent(solution)
    assert solution.objective.total <= stored["objective"][case] + 1e-5


def test_other_seeds_descend():
    problem = semantic_problem(seed=7)
    for rho, semantic_weight in SEMANTIC_SETTINGS:
        check_descent(
            solve(
                logits=problem.logits,
                graph=problem.graph,
                rho=rho,
                semantic_weight=semantic_weight,
                tol=GAP,
            )
        )


def test_smallest_cycle_of_the_full_step_is_broken():
    # One sample that repels itself (W = -1): the best response to one class is the other class, so
    # full steps swap for ever between plans that are worse than an even split.
    cost = np.array([[0.0, 0.01]])
    graph = -np.eye(1)
    weight, epsilon = 5.0, 0.1

    def response(plan):
        exponent = -(cost - 2 * weight * graph @ plan) / epsilon
        odds = np.exp(exponent - exponent.max())
        return odds / odds.sum()

    plan = response(np.zeros((1, 2)))
    for _ in range(100):
        plan = response(plan)
    assert np.abs(response(plan) - plan).sum() > 1

    solution = solve(cost, graph, semantic_weight=weight, epsilon=epsilon, kl_weight=1e-4, tol=1e-9)
    assert solution.status is Status.CONVERGED
    np.testing.assert_allclose(solution.plan, 0.5, atol=1e-2)
    assert np.abs(response(solution.plan) - solution.plan).sum() < 1e-2
