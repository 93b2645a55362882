"""Speed of ssot alone, for comparing two versions of it: `pytest benchmarks --benchmark-compare`.

Nothing is asserted about time. `python -m benchmarks` compares with other libraries.
"""

import numpy as np
import pytest

import ssot
from benchmarks.cases import CASES, MOVE
from benchmarks.hard_problems import good_head_cost

SEMANTIC = next(case for case in CASES if case.name == "sp2ot")


@pytest.fixture(scope="module", params=[np.float32, np.float64], ids=["float32", "float64"])
def cost(request):
    return good_head_cost(5120, 100, dtype=request.param)


@pytest.mark.parametrize("rho", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("kl_weight", [1.0, np.inf], ids=["soft", "hard"])
def test_cold(benchmark, cost, rho, kl_weight):
    solution = benchmark(ssot.solve, cost, rho=rho, kl_weight=kl_weight)
    assert solution.status is ssot.Status.CONVERGED


def test_cold_at_small_epsilon(benchmark, cost):
    solution = benchmark(ssot.solve, cost, rho=0.1, epsilon=0.01)
    assert solution.status is ssot.Status.CONVERGED


def test_warm(benchmark, cost):
    before = ssot.solve(cost, rho=0.1)
    step = np.random.default_rng(1).standard_normal(cost.shape, cost.dtype)
    logits = -cost + cost.dtype.type(MOVE * cost.std()) * step
    solution = benchmark(ssot.solve, logits=logits, rho=0.1, init=before)
    assert solution.status is ssot.Status.CONVERGED


def test_semantic(benchmark):
    problem, _ = SEMANTIC.make(False)
    solution = benchmark(ssot.solve_problem, problem)
    assert solution.status is ssot.Status.CONVERGED
