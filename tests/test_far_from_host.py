"""Newton steps that a device finds for itself: known answers, their directions, few transfers.

Nothing here needs a device: the CPU takes the same way when told that it is far from the host.
"""

import numpy as np
import pytest
from kernel_problems import (
    EPSILON,
    assert_solves,
    kernel_of,
    prices_of,
    problem_of,
    softmax_rows,
    system_of,
)
from problems import (
    distance,
    distance_bound,
    full_case,
    linear_case,
    moved,
    run,
    run_case,
    tightest,
)
from tolerances import SETTINGS

import ssot
from benchmarks.hard_problems import good_head_cost
from ssot import curvature
from ssot.arrays import Place
from ssot.curvature import LARGEST_DENSE, DenseCoupling, SolvedCoupling

torch = pytest.importorskip("torch", reason="tensors need Torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from ssot.kernels import directions  # noqa: E402
from ssot.kernels import torch as backend  # noqa: E402

FEW, MANY = 5, LARGEST_DENSE + 72

each_setting = pytest.mark.parametrize(
    "setting", [setting for setting in SETTINGS if setting.backend == "torch"], ids=str
)
each_number = pytest.mark.parametrize("classes", [FEW, MANY], ids=["few", "many"])


@pytest.fixture(autouse=True)
def far(monkeypatch):
    monkeypatch.setattr(backend, "_is_far", lambda kernel: True)


# Known answers


@each_setting
@each_number
@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("kl_weight", [1.0, np.inf, (0.3, np.inf)])
@pytest.mark.parametrize("epsilon_and_rho", [(0.02, 0.2), (0.02, 1.0), (0.2, 0.2), (0.2, 1.0)])
def test_the_answer_without_a_graph(setting, classes, epsilon_and_rho, kl_weight, closed):
    epsilon, rho = epsilon_and_rho
    options = {"epsilon": epsilon, "rho": rho, "kl_weight": kl_weight, "closed": closed}
    case = linear_case(0, samples=600, classes=classes, **options)
    solution = run_case(setting, case)
    assert distance(solution.plan, case.plan) <= setting.tolerance.plan
    assert solution.certificate.row_passes <= 40


@each_setting
@each_number
@pytest.mark.parametrize("rows", [600, 100])
@pytest.mark.parametrize("problem", [(0.02, 0.2, 1.0), (0.2, 0.5, np.inf), (0.2, 0.99, 1.0)])
def test_the_answer_without_entropy_of_the_slack(setting, classes, problem, rows, monkeypatch):
    sampled(monkeypatch, rows)
    epsilon, rho, kl_weight = problem
    options = {"epsilon": epsilon, "rho": rho, "kl_weight": kl_weight, "slack_entropy": False}
    case = linear_case(0, samples=600, classes=classes, **options)
    solution = run_case(setting, case)
    assert distance(solution.plan, case.plan) <= setting.tolerance.plan
    assert solution.certificate.row_passes <= 60


@each_setting
@each_number
@pytest.mark.parametrize("rho", [0.2, 1.0])
def test_the_answer_with_a_graph(setting, classes, rho):
    case = full_case(0, samples=200, classes=classes, rho=rho, epsilon=0.2, kl_weight=(1, np.inf))
    tol = tightest(setting)
    solution = run_case(setting, case, tol=tol)
    allowed = distance_bound(tol, case.options["epsilon"], case.convexity)
    assert distance(solution.plan, case.plan) <= allowed + setting.tolerance.plan


def sampled(monkeypatch, rows):
    """Let the curvature come from so many rows."""
    monkeypatch.setattr(curvature, "SAMPLED_ROWS", rows)
    monkeypatch.setattr(curvature, "SAMPLED_ROWS_PER_COLUMN", 0)


@each_setting
@each_number
@pytest.mark.parametrize("kl_weight", [1.0, np.inf])
@pytest.mark.parametrize("rho", [0.2, 1.0])
def test_a_curvature_of_some_rows_changes_no_answer(setting, classes, rho, kl_weight, monkeypatch):
    case = linear_case(0, samples=600, classes=classes, rho=rho, epsilon=1.0, kl_weight=kl_weight)
    few = run_case(setting, case).certificate.row_passes
    sampled(monkeypatch, 100)
    solution = run_case(setting, case)
    assert distance(solution.plan, case.plan) <= setting.tolerance.plan
    assert few <= solution.certificate.row_passes <= 40


def test_a_curvature_of_half_the_rows_costs_few_passes_more(monkeypatch):
    """Rare classes may keep no undecided row in a sample: poor steps are worth more rows."""
    cost = good_head_cost(6000, 60)
    options = {"rho": 0.9, "kl_weight": np.inf, "backend": "torch", "on_failure": "return"}
    whole = ssot.solve(cost, **options).certificate.row_passes
    sampled(monkeypatch, 3000)
    solution = ssot.solve(cost, max_passes=3 * whole, **options)
    assert solution.status.is_success


@each_setting
@pytest.mark.parametrize("gap", [10.0, 1000.0])
def test_a_class_out_of_reach_is_reached(setting, gap):
    """At first it has no mass that the dtype can hold, and so no curvature."""
    case = linear_case(0, samples=200, classes=MANY, rho=0.5, epsilon=0.05, kl_weight=np.inf)
    cost = case.cost.copy()
    cost[:, 0] += gap
    solution = run(setting, cost, **case.options, tol=1e-6)
    share = case.options["rho"] * case.options["prior"][0]
    assert solution.plan[:, 0].sum() == pytest.approx(share, abs=1e-6)


# Directions


@pytest.mark.parametrize("size", ["blocks", "many classes"])
@pytest.mark.parametrize("linearised", [False, True])
@each_setting
def test_a_row_pass_solves_the_system_of_all_rows(setting, size, linearised, monkeypatch):
    problem = problem_of(size, setting.dtype)
    prices, system = prices_of(problem), system_of(problem)
    product = np.random.default_rng(2).random(problem.cost.shape).astype(setting.dtype)
    product = product if linearised else None
    kernel = kernel_of(setting, problem)
    rows = softmax_rows(problem, kernel, prices, product)
    overlap = rows.T @ (problem.sample_weight[:, None] * rows)
    monkeypatch.setattr(backend, "LARGEST_DENSE", 0)
    sums, coupling = kernel.row_pass(product, prices, EPSILON, system)
    assert isinstance(coupling, SolvedCoupling)
    assert_solves(coupling, overlap, sums, system, 1e-4)
    monkeypatch.setattr(backend, "LARGEST_DENSE", 10_000)
    _, coupling = kernel.row_pass(product, prices, EPSILON, system)
    assert isinstance(coupling, DenseCoupling)
    assert_solves(coupling, overlap, sums, system, 1e-4)


@pytest.mark.parametrize("every", [2, 3])
def test_a_sampled_curvature_is_that_of_the_sampled_rows(every, monkeypatch):
    """And every sum is that of all rows."""
    setting = next(s for s in SETTINGS if s.backend == "torch" and s.dtype == np.float64)
    problem = problem_of("blocks", setting.dtype)
    prices, system = prices_of(problem), system_of(problem)
    kernel = kernel_of(setting, problem)
    expected, _ = kernel.row_pass(None, prices, EPSILON, system)
    sampled(monkeypatch, len(problem.cost) // every)
    sums, coupling = kernel.row_pass(None, prices, EPSILON, system)
    rows = softmax_rows(problem, kernel, prices)[::every]
    weight = problem.sample_weight[::every]
    overlap = rows.T @ (weight[:, None] * rows) / weight.sum()
    np.testing.assert_allclose(coupling.overlap, overlap, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(sums.column_mass, expected.column_mass)
    assert sums.log_partition == expected.log_partition


PROBLEMS, COLUMNS = 4, 9


def systems(softness=1.0, **changes):
    """Return Newton systems of several problems, of different sizes and with closed columns."""
    rng = np.random.default_rng(3)
    rows = rng.dirichlet(np.full(COLUMNS, 0.3), size=(PROBLEMS, 40))
    weight = rng.dirichlet(np.ones(40), size=PROBLEMS)
    free = rng.random((PROBLEMS, COLUMNS)) < 0.8
    free[0] = True
    given = {
        "overlap": np.einsum("aij,ai,aik->ajk", rows, weight, rows),
        "free": free,
        "diagonal": softness * rng.random((PROBLEMS, COLUMNS)),
        "gradient": rng.normal(size=(PROBLEMS, COLUMNS)) * [[1.0], [1e-3], [1e-9], [1e-14]],
        "epsilon": np.array([[0.02], [0.1], [1.0], [0.1]]),
        "longest": np.full((PROBLEMS, 1), 1e6),
    }
    return given | changes


def directions_of(given):
    tensors = {name: torch.from_numpy(value) for name, value in given.items()}
    return directions.newton_directions(**tensors).numpy()


def matrices(given):
    """Return the free part of each system, and its right-hand side."""
    for index in range(PROBLEMS):
        free = given["free"][index]
        overlap = given["overlap"][index]
        laplacian = np.diag(overlap.sum(axis=1)) - overlap
        matrix = laplacian / given["epsilon"][index] + np.diag(given["diagonal"][index])
        yield matrix[np.ix_(free, free)], given["gradient"][index][free]


@pytest.mark.parametrize("softness", [1.0, 1e-6])
def test_directions_solve_their_systems(softness):
    given = systems(softness)
    found = directions_of(given)
    assert not found[~given["free"]].any()
    for index, (matrix, gradient) in enumerate(matrices(given)):
        free, size = given["free"][index], np.linalg.norm(gradient)
        expected = np.linalg.solve(matrix, gradient)
        np.testing.assert_allclose(found[index, free], expected, rtol=1e-6, atol=1e-9 * size)


def test_the_diagonal_of_the_overlap_does_not_matter():
    given = systems()
    changed = given | {"overlap": given["overlap"] + 5 * np.eye(COLUMNS)}
    np.testing.assert_allclose(directions_of(changed), directions_of(given), rtol=1e-9)


def test_systems_solved_together_are_solved_as_if_alone():
    given = systems()
    together = directions_of(given)
    for index in range(PROBLEMS):
        alone = directions_of({name: value[index : index + 1] for name, value in given.items()})
        np.testing.assert_allclose(alone[0], together[index], rtol=1e-9, atol=0)


@pytest.mark.parametrize("share", [0.9, 0.3, 1e-6])
def test_directions_stay_within_what_is_allowed(share):
    given = systems(1e-6)
    whole = np.abs(directions_of(given)).max(axis=1, keepdims=True)
    given["longest"] = share * whole
    found = directions_of(given)
    assert (np.abs(found) <= given["longest"] * (1 + 1e-12)).all()
    assert (np.sum(found * given["gradient"], axis=1) > 0).all()
    first = np.abs(found).max(axis=1, keepdims=True)
    assert (first > 0.01 * given["longest"]).all()


def test_nothing_is_gained_where_nothing_is_missing():
    gradient = systems()["gradient"]
    gradient[1] = 0.0
    found = directions_of(systems(gradient=gradient))
    assert not found[1].any()
    assert np.isfinite(found).all()
    assert found[[0, 2, 3]].any(axis=1).all()


def test_singular_systems_have_a_direction_of_ascent():
    """Without softness a constant on all prices changes no mass, and here it is asked for."""
    given = systems(0.0, free=np.ones((PROBLEMS, COLUMNS), bool))
    given["gradient"] = np.abs(given["gradient"])
    found = directions_of(given)
    assert np.isfinite(found).all()
    assert (np.abs(found) <= given["longest"] * (1 + 1e-12)).all()
    assert (np.sum(found * given["gradient"], axis=1) > 0).all()


def test_columns_without_curvature_go_as_far_as_they_may():
    given = systems()
    given["overlap"][:, 2], given["overlap"][:, :, 2], given["diagonal"][:, 2] = 0.0, 0.0, 0.0
    found = directions_of(given)
    is_free = given["free"][:, 2]
    expected = given["longest"][:, 0] * np.sign(given["gradient"][:, 2])
    np.testing.assert_array_equal(found[is_free, 2], expected[is_free])
    given["free"][:, 2] = False
    others = np.delete(directions_of(given), 2, axis=1)
    np.testing.assert_allclose(np.delete(found, 2, axis=1), others, rtol=1e-9)


@pytest.mark.gpu
def test_directions_ask_the_host_for_nothing():
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    given = {name: torch.from_numpy(value).cuda() for name, value in systems().items()}
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = directions.newton_directions(**given)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    np.testing.assert_allclose(found.cpu().numpy(), directions_of(systems()), rtol=1e-6)


# Transfers


@pytest.fixture
def transfers(monkeypatch):
    """The arrays that are waited for, as they come."""
    seen = []
    original = backend._to_host

    def counted(tensor):
        seen.append(tuple(tensor.shape))
        return original(tensor)

    monkeypatch.setattr(backend, "_to_host", counted)
    return seen


@each_number
@pytest.mark.parametrize("kl_weight", [1.0, np.inf])
def test_a_newton_step_waits_for_one_transfer(classes, kl_weight, transfers):
    case = linear_case(1, samples=300, classes=classes, epsilon=0.02, kl_weight=kl_weight)
    solution = ssot.solve(case.cost, **case.options, backend="torch")
    assert solution.certificate.row_passes > 4
    # The spread of the costs before the first pass, and the sums of the plan after the last.
    assert len(transfers) == solution.certificate.row_passes + 2


@each_number
def test_an_outer_step_waits_for_two_more(classes, transfers):
    case = full_case(1, samples=100, classes=classes, epsilon=0.2, share=5.0)
    solution = ssot.solve(case.cost, case.graph, **case.options, backend="torch")
    certificate = solution.certificate
    assert certificate.outer_steps > 1
    # What the step changed, and the sums of the plan that it led to.
    assert len(transfers) == certificate.row_passes + 2 * certificate.outer_steps + 2


def test_problems_of_a_batch_share_their_transfers(transfers):
    case = linear_case(1, samples=300, classes=MANY, epsilon=0.02)
    ssot.solve(case.cost, **case.options, backend="torch")
    alone = len(transfers)
    transfers.clear()
    ssot.solve(np.stack([case.cost] * 5), **case.options, backend="torch")
    assert len(transfers) == alone + 4  # each has a spread of its own


class Watch(TorchDispatchMode):
    """Note the operations for which a device has to be waited for."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        if operation.overloadpacket.__name__ in self.WAITING:
            self.seen.append(operation)
        return operation(*arguments, **(options or {}))


@each_number
def test_no_operation_waits_in_secret(classes):
    case = full_case(1, samples=100, classes=classes, epsilon=0.2, share=5.0)
    options = {
        name: moved(value, Place("torch", torch.device("cpu")))
        for name, value in case.options.items()
    }
    problem = ssot.Problem(torch.from_numpy(case.cost), case.graph, **options)
    with Watch() as watch:
        certificate = ssot.solve_problem(problem, backend="torch").certificate
    assert certificate.outer_steps > 1
    # The entropy of the weights, and of the certificate the largest weight and two sums of edges.
    assert len(watch.seen) <= 4
