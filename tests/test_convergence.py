"""Every linear problem of the hard grid converges, in few row passes."""

import itertools

import numpy as np
import pytest

from benchmarks.hard_problems import COST_FAMILIES, GRID, SHAPES
from ssot import RowBlocks, Status, solve

MOST_PASSES = 250
MEDIAN_PASSES = 40


@pytest.fixture(scope="module", params=itertools.product(COST_FAMILIES, SHAPES), ids=str)
def solutions(request):
    family, shape = request.param
    cost = COST_FAMILIES[family](*shape)
    return [
        solve(cost, rho=rho, epsilon=epsilon, kl_weight=kl_weight, tol=1e-9, on_failure="raise")
        for rho, epsilon, kl_weight in GRID
    ]


def test_residuals_of_the_plans_are_met(solutions):
    for solution in solutions:
        problem, plan = solution.problem, solution.plan
        mass, prices = plan.sum(axis=0), solution.prices[:-1]
        demand = problem.rho * problem.prior * np.exp(-prices / problem.kl_weight)
        assert solution.status is Status.CONVERGED
        assert np.abs(mass - demand).sum() + abs(mass.sum() - problem.rho) < 2e-9
        assert (plan.sum(axis=1) <= problem.sample_weight * (1 + 1e-9)).all()


def test_few_row_passes_are_needed(solutions):
    passes = [solution.certificate.row_passes for solution in solutions]
    assert np.median(passes) < MEDIAN_PASSES
    assert max(passes) <= MOST_PASSES


@pytest.mark.parametrize("family", ["good head", "Dirichlet"])
def test_streams_converge_too(family):
    cost = COST_FAMILIES[family](*SHAPES[1])
    for rho, epsilon, kl_weight in GRID:
        options = {"rho": rho, "epsilon": epsilon, "kl_weight": kl_weight, "tol": 1e-9}
        solve(RowBlocks(cost, rows=300), **options, on_failure="raise")


@pytest.mark.parametrize("family", COST_FAMILIES)
def test_single_precision_reaches_its_default_tolerance(family):
    cost = COST_FAMILIES[family]().astype(np.float32)
    for rho, epsilon, kl_weight in GRID:
        solution = solve(cost, rho=rho, epsilon=epsilon, kl_weight=kl_weight, on_failure="raise")
        assert solution.dtype == np.float32
        assert abs(solution.plan.sum(dtype=np.float64) - rho) < 2e-6
