"""The compiled backend: its threads, its functions, and where it cannot compile."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_problems import problem_of
from problems import PROFILE, SEEDS

import ssot

numba = pytest.importorskip("numba", reason="Numba is not installed")

from ssot.kernels import compiled, vectors  # noqa: E402
from ssot.kernels.protocol import Bound, RowSums  # noqa: E402


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


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("far", [30.0, 55.0, 300.0])
def test_columns_that_every_row_is_far_from_have_their_mass_all_the_same(far, dtype):
    from ssot.kernels.numba import NumbaKernel
    from ssot.kernels.numpy import NumpyKernel

    rng = np.random.default_rng(0)
    cost = 100.0 * rng.random((500, 300))  # most entries of a row are negligible
    cost[:, 100:200] = far + rng.random((500, 100))
    cost[np.arange(500), rng.integers(0, 100, 500)] = 0.0
    bound = Bound(cost.astype(dtype), np.full(500, 1 / 500), None, 0.0, 0.0)
    prices = np.append(rng.random(300), 0.5)
    masses = [
        kernel(bound).row_pass(None, prices, 1.0, None)[0] for kernel in (NumbaKernel, NumpyKernel)
    ]
    kept = masses[1].column_mass > 2.0**-120  # below it float32 has no numbers
    bound_on_loss = 1e-5 if dtype == np.float32 else 1e-9
    for name in RowSums._fields:
        ours, exact = (np.atleast_1d(getattr(sums, name)) for sums in masses)
        chosen = kept if len(exact) > 1 else slice(None)
        np.testing.assert_allclose(ours[chosen], exact[chosen], rtol=bound_on_loss)


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


def test_torch_keeps_its_number_of_threads():
    torch = pytest.importorskip("torch")
    before, costs = torch.get_num_threads(), np.random.default_rng(0).normal(size=(4096, 20))
    torch.set_num_threads(1)
    try:
        ssot.solve(costs, backend="numba")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


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
    assert compiled.jit(parallel=False)(len) is len
