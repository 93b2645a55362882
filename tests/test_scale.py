"""Known answers where a solve takes other ways: many classes, and many samples for each of them."""

import numpy as np
import pytest
from problems import distance, full_case, linear_case, random_graph, run, run_case
from tolerances import SETTINGS

from benchmarks.hard_problems import good_head_cost
from ssot import semidual, solve
from ssot.curvature import LARGEST_DENSE, SparseCoupling

MANY = LARGEST_DENSE + 72
"""Classes whose curvature is not stored as a matrix."""


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("kl_weight", [1.0, np.inf, (0.3, np.inf)])
@pytest.mark.parametrize("rho", [0.2, 1.0])
@pytest.mark.parametrize("epsilon", [0.02, 0.2])
def test_many_classes(setting, epsilon, rho, kl_weight, closed):
    options = {"epsilon": epsilon, "rho": rho, "kl_weight": kl_weight, "closed": closed}
    case = linear_case(0, samples=600, classes=MANY, **options)
    solution = run_case(setting, case)
    assert distance(solution.plan, case.plan) <= setting.tolerance.plan


def test_many_classes_with_a_graph(setting):
    case = full_case(0, samples=400, classes=MANY, rho=0.5, epsilon=0.2)
    certificate = run_case(setting, case).certificate
    assert certificate.stationarity_gap <= 2 * setting.tolerance.solve
    assert certificate.column_residual <= setting.tolerance.solve


def test_few_and_many_classes_agree_where_the_matrix_could_be_stored(setting, monkeypatch):
    """The largest problem with a dense curvature, solved with a sparse one."""
    case = linear_case(1, samples=500, classes=60, rho=0.3, epsilon=0.05)
    dense = run_case(setting, case)
    monkeypatch.setattr(f"ssot.kernels.{setting.backend}.LARGEST_DENSE", 0)
    sparse = run_case(setting, case)
    assert distance(dense.plan, sparse.plan) <= setting.tolerance.plan


def test_conjugate_gradients_are_what_solves_many_classes(monkeypatch):
    solved = []
    original = SparseCoupling.solve

    def watched(self, *arguments):
        solved.append(self.large.shape)
        return original(self, *arguments)

    monkeypatch.setattr(SparseCoupling, "solve", watched)
    solve(linear_case(0, samples=300, classes=MANY, rho=0.5).cost, rho=0.5)
    assert set(solved) == {(300, MANY + 1)}


@pytest.fixture
def sampled_rows(monkeypatch):
    """Let small problems start from samples too, and return the sizes of those."""
    sizes = []
    original = semidual.SemiDual.of_sample

    def watched(self, every):
        sampled = original(self, every)
        sizes.append(sampled.kernel.samples)
        return sampled

    monkeypatch.setattr(semidual, "SAMPLES_PER_COLUMN", 2)
    monkeypatch.setattr(semidual.SemiDual, "of_sample", watched)
    return sizes


@pytest.mark.parametrize("weights", ["equal", "random", "some zero"])
@pytest.mark.parametrize("kl_weight", [1.0, np.inf])
@pytest.mark.parametrize("rho", [0.05, 1.0])
def test_a_start_from_a_sample_changes_no_answer(setting, sampled_rows, rho, kl_weight, weights):
    case = linear_case(2, samples=400, classes=4, rho=rho, kl_weight=kl_weight, weights=weights)
    solution = run_case(setting, case)
    assert sampled_rows[0] == 50
    assert distance(solution.plan, case.plan) <= setting.tolerance.plan


def test_a_sample_without_weight_or_without_a_class_is_no_obstacle(setting, sampled_rows):
    case = linear_case(3, samples=400, classes=4, rho=0.5)
    weight = case.options["sample_weight"].copy()
    weight[::8] = 0.0
    cost = case.cost.copy()
    cost[::8, 0] = np.inf
    options = case.options | {"sample_weight": weight / weight.sum()}
    assert run(setting, cost, **options).status.is_success
    assert sampled_rows


def test_a_start_from_a_sample_saves_readings_of_the_cost(monkeypatch):
    cost = good_head_cost(20_000, 20)
    passes = [solve(cost, rho=0.9, epsilon=0.02).certificate.row_passes]
    monkeypatch.setattr(semidual, "SAMPLES_PER_COLUMN", np.inf)
    passes.append(solve(cost, rho=0.9, epsilon=0.02).certificate.row_passes)
    assert passes[0] < passes[1]


def blocks_cost(samples, classes):
    """Return costs of two superclasses that hardly share a sample, their classes nearly alike."""
    rng = np.random.default_rng(0)
    cost = 0.02 * rng.random((samples, classes))
    cost[: samples // 3, classes // 2 :] += 0.6
    cost[samples // 3 :, : classes // 2] += 0.6
    return cost


def test_superclasses_of_diffuse_classes_exchange_their_mass(setting):
    """Their small probabilities are averaged, which makes the curvature between them too stiff."""
    options = {"kl_weight": np.inf, "epsilon": 0.1}
    solution = run(setting, blocks_cost(600, 2 * LARGEST_DENSE), **options)
    assert solution.certificate.row_passes <= 100


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("rho", "kl_weight"), [(0.4, 1.0), (0.4, np.inf), (1.0, 1.0)])
@pytest.mark.parametrize(
    "setting", [setting for setting in SETTINGS if setting.dtype == np.float64], ids=str
)
def test_a_common_offset_of_the_costs_costs_no_accuracy(setting, rho, kl_weight, masked, sign):
    case = linear_case(4, rho=rho, kl_weight=kl_weight)
    cost = np.round(case.cost * 2**20) / 2**20  # so that the offset costs no digit of the input
    if masked:
        cost[0, 0] = np.inf
    offset = sign * 2.0**30
    plain = run(setting, cost, **case.options)
    moved = run(setting, cost + offset, **case.options)
    assert distance(moved.plan, plain.plan) <= 1e-9
    change = moved.objective.transport - plain.objective.transport
    assert change == pytest.approx(offset * case.options["rho"], rel=1e-10)
    differences = moved.prices[:-1] - plain.prices[:-1]
    virtual = moved.prices[-1] - plain.prices[-1] if rho < 1 else -offset
    np.testing.assert_allclose(differences - virtual, offset, rtol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_a_start_is_not_written_to(setting, seed):
    rng = np.random.default_rng(seed)
    cost, graph = rng.random((40, 5)).astype(setting.dtype), random_graph(seed, 40)
    options = {"rho": 0.5, "epsilon": 0.05, "semantic_weight": 40.0, "on_failure": "return"}
    first = run(setting, cost, graph, max_steps=2, **options)
    plan = first.plan.copy()
    second = run(setting, cost, graph, init=first, **options)
    assert second.certificate.outer_steps > 0
    np.testing.assert_array_equal(first.plan, plan)
    again = run(setting, cost, graph, init=second, **options)
    assert not np.shares_memory(again.plan, second.plan)
