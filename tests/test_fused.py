"""The fused passes, against their formulas in float64.

Where there is no CUDA device, one test runs all that need one in Triton's interpreter, and another
shows that the compiler takes the kernels.
"""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the passes work on Torch tensors")
triton = pytest.importorskip("triton", minversion="3.0", reason="the passes are written in Triton")

from problems import full_case  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

import ssot  # noqa: E402
from ssot import curvature  # noqa: E402
from ssot.kernels import fused, select_fused  # noqa: E402
from ssot.kernels import torch as backend  # noqa: E402

IS_INTERPRETED = not isinstance(fused._add_softmax, triton.JITFunction)

# Largest relative and absolute error of a plan, whose rows have mass 1 or less: in float32, the
# rounding of exponents down to -100 and of their exponentials; in float64, that of costs of some
# thousand times their epsilon.
PLAN_ERROR = {np.float32: (1e-5, 5e-7), np.float64: (1e-11, 1e-15)}

# Relative errors of sums: in float32, those of exponentials and logarithms, which do not cancel.
SUM_ERROR = {np.float32: 2e-6, np.float64: 1e-11}

LARGE = (2, 5000, 1000)  # A, N, K
SMALL = [(1, 1, 1), (3, 150, 3), (1, 37, 15), (3, 70, 16), (3, 40, 33), (1, 100, 130), (3, 41, 130)]

on_both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@pytest.fixture
def device():
    """Where the passes run: on a CUDA device, or in the interpreter."""
    if IS_INTERPRETED:
        return "cpu"
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device; runs in the interpreter instead")
    return "cuda"


class Problem:
    """A problem, its prices and a plan that no prices explain, in NumPy.

    Of three problems, the first is plain, the second has inf costs, closed columns and a row
    without an allowed column, and the third has costs of 1e5 times its epsilon.
    """

    def __init__(self, number, shape, dtype, has_product):
        rng = np.random.default_rng(number)
        samples, classes = shape
        self.shift = [100.0, -0.5, 0.0][number % 3]
        self.pull = [0.5, 3.0, 0.1][number % 3]
        self.epsilon = [0.3, 0.05, 1e-3][number % 3]
        self.cost = rng.exponential([1.0, 1.0, 50.0][number % 3], shape).clip(max=150) + self.shift
        self.weight = rng.dirichlet(np.ones(samples)) * (rng.random(samples) < 0.8)
        self.prices = rng.normal(size=classes + 1)
        if number % 3 == 1:
            self.cost[rng.random(shape) < 0.3] = np.inf
            self.cost[0] = np.inf
            self.weight[0] = 0.0
            self.prices[rng.random(classes + 1) < 0.3] = -np.inf
            self.prices[-1] = -np.inf
        self.cost = self.cost.astype(dtype)
        self.product = rng.random(shape).astype(dtype) if has_product else None
        total = rng.random((samples, 1)) * 2 * self.weight[:, None]
        self.plan = (total * rng.dirichlet(np.ones(classes), samples)).astype(dtype)
        self.plan[self.cost == np.inf] = 0.0
        self.slack = self.weight * rng.integers(0, 2, samples)

    def softmax(self):
        """Return the plan of the prices, its slack, the column masses and the log-partition."""
        x = self.prices - np.pad(self.cost.astype(np.float64) - self.shift, ((0, 0), (0, 1)))
        if self.product is not None:
            x[:, :-1] += self.pull * self.product.astype(np.float64)
        top = x.max(axis=1, keepdims=True)
        top[top == -np.inf] = 0.0
        powers = np.exp((x - top) / self.epsilon)
        total = powers.sum(axis=1, keepdims=True)
        total[total == 0.0] = 1.0
        plan = self.weight[:, None] * powers / total
        log_partition = self.weight @ (top + self.epsilon * np.log(total))
        return plan[:, :-1], plan[:, -1], np.append(plan.sum(axis=0), log_partition)

    def plan_sums(self):
        """Return the sums of the plan, and those of their terms' magnitudes."""
        plan = self.plan.astype(np.float64)
        terms = [
            np.where(plan == 0, 0, self.cost.astype(np.float64) - self.shift) * plan,
            plan * (0.0 if self.product is None else self.product),
            plan * np.log(plan, where=plan > 0, out=np.zeros_like(plan)),
            self.slack * np.log(self.slack, where=self.slack > 0, out=np.zeros_like(self.slack)),
            (plan.sum(axis=1) - self.weight).clip(min=0),
        ]
        masses = [*plan.sum(axis=0), self.slack.sum()]
        sums = [*masses, *(term.sum() for term in terms)]
        return np.array(sums), np.array([*masses, *(abs(term).sum() for term in terms)])


class Batch:
    """Problems as the passes take them.

    Their arrays are parts of larger tensors, from entry `gap` on: 16 bytes are aligned or not.
    """

    def __init__(self, size, dtype, has_product, device, gap):
        count, *shape = size
        numbers = [1] if count == 1 else range(count)
        self.problems = [Problem(number, shape, dtype, has_product) for number in numbers]
        self.device, self.gap = device, gap
        self.rows = fused.Rows(
            costs=self.parts("cost"),
            products=self.parts("product") if has_product else None,
            weights=self.parts("weight"),
            shifts=self.stack("shift"),
            pulls=self.stack("pull"),
        )
        self.prices, self.epsilons = self.stack("prices"), self.stack("epsilon")

    def stack(self, name):
        values = np.array([getattr(problem, name) for problem in self.problems])
        return torch.tensor(values, dtype=torch.float64, device=self.device)

    def parts(self, name):
        arrays = np.array([getattr(problem, name) for problem in self.problems])
        memory = torch.tensor(arrays.reshape(len(arrays), -1), device=self.device)
        memory = torch.nn.functional.pad(memory, (self.gap, self.gap), value=7.0)
        return [row[self.gap : -self.gap].view(arrays.shape[1:]) for row in memory]


def gaps_are_whole(tensor, gap):
    """Tell whether nothing was written before and after a part of a larger tensor."""
    around = tensor.as_strided((tensor.numel() + 2 * gap,), (1,), tensor.storage_offset() - gap)
    return bool((around[:gap] == 7.0).all() and (around[-gap:] == 7.0).all())


def assert_sums(found, expected, magnitudes, dtype):
    rounding = SUM_ERROR[dtype] * np.abs(magnitudes) + 1e-12 * np.abs(magnitudes).max()
    np.testing.assert_array_less(np.abs(found - expected), rounding + 1e-300)


@pytest.mark.gpu
@pytest.mark.parametrize(("has_product", "gap"), [(False, 4), (True, 1), (True, 4)])
@on_both_dtypes
@pytest.mark.parametrize("size", [*SMALL, LARGE])
def test_passes_agree_with_their_formulas(size, dtype, has_product, gap, device):
    if IS_INTERPRETED and size == LARGE:
        pytest.skip("takes minutes in the interpreter")
    batch = Batch(size, dtype, has_product, device, gap)
    matrices, slacks = batch.parts("plan"), batch.parts("slack")
    measured = fused.sum_plans(batch.rows, matrices, slacks).cpu().numpy()
    summed = fused.sum_rows(batch.rows, batch.prices, batch.epsilons).cpu().numpy()
    written = fused.write_plans(batch.rows, batch.prices, batch.epsilons, matrices, slacks)
    assert np.array_equal(summed, written.cpu().numpy())
    relative, absolute = PLAN_ERROR[dtype]
    for i, problem in enumerate(batch.problems):
        assert_sums(measured[i], *problem.plan_sums(), dtype)
        plan, slack, sums = problem.softmax()
        assert_sums(summed[i], sums, sums, dtype)
        largest = absolute * problem.weight[:, None]
        assert (abs(matrices[i].cpu().numpy() - plan) <= largest + relative * plan).all()
        assert (abs(slacks[i].cpu().numpy() - slack) <= largest[:, 0] + relative * slack).all()
        assert gaps_are_whole(matrices[i], gap)
        assert gaps_are_whole(slacks[i], gap)


@pytest.mark.gpu
@on_both_dtypes
def test_sums_are_the_same_from_run_to_run(dtype, device):
    batch = Batch((2, 300, 40), dtype, True, device, 4)
    first, second = (fused.sum_rows(batch.rows, batch.prices, batch.epsilons) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.gpu
@pytest.mark.parametrize("classes", [6, 140])
def test_solves_use_the_passes(classes, device, monkeypatch):
    """A batch of a problem with its graph, solved with the fused passes and in NumPy."""
    case = full_case(0, samples=40, classes=classes, rho=0.5, epsilon=0.2)
    arguments = case.options | {"rho": [0.5, 0.4], "tol": 1e-9}
    cost = torch.from_numpy(np.stack([case.cost] * 2)).to(device)
    used = []
    for name in ("sum_rows", "write_plans", "sum_plans"):
        original = getattr(fused, name)

        def watched(*given, name=name, original=original):
            used.append(name)
            return original(*given)

        monkeypatch.setattr(fused, name, watched)
    monkeypatch.setattr(select_fused, "fused_passes", lambda _device: fused)
    monkeypatch.setattr(backend, "_is_far", lambda _kernel: True)
    monkeypatch.setattr(curvature, "SAMPLED_ROWS", 20)  # so that it comes from half of the rows
    monkeypatch.setattr(curvature, "SAMPLED_ROWS_PER_COLUMN", 0)
    graph = torch.from_numpy(case.graph.toarray()).to(device)
    on_device = {
        name: torch.from_numpy(value).to(device) if isinstance(value, np.ndarray) else value
        for name, value in arguments.items()
    }
    found = ssot.solve(cost, graph, **on_device, backend="torch")
    expected = ssot.solve(cost.cpu().numpy(), case.graph, **arguments, backend="numpy")
    assert found.status == expected.status == (ssot.Status.CONVERGED,) * 2
    assert set(used) == {"sum_rows", "write_plans", "sum_plans"}
    assert abs(found.plan.cpu().numpy() - expected.plan).sum() <= 1e-4
    for ours, theirs in zip(found.objective, expected.objective, strict=True):
        assert ours.total == pytest.approx(theirs.total, abs=1e-9)


@pytest.mark.skipif(IS_INTERPRETED, reason="this is the interpreter")
def test_in_the_interpreter():
    """Run the tests above in a process of its own: Triton looks once whether to interpret."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__]
    result = subprocess.run(
        command,
        cwd=Path(__file__).parents[1],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.skipif(IS_INTERPRETED, reason="nothing is compiled in the interpreter")
@pytest.mark.parametrize(
    ("dtype", "classes"), [(np.float32, 1000), (np.float64, 33), (np.float64, 8192)]
)
def test_kernels_compile_without_a_device(dtype, classes, monkeypatch, tmp_path):
    driver = SimpleNamespace(
        get_current_device=lambda: "an H100 that is not there",
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        launcher_cls=lambda source, metadata: lambda *arguments: None,
        utils=SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": 232_448},
            load_binary=lambda name, kernel, shared, device: (None, None, 0, 0, 1024),
        ),
    )
    monkeypatch.setattr(triton.runtime.driver, "_active", driver)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    batch = Batch((2, 3, classes), dtype, classes != 33, "cpu", 4)
    matrices, slacks = batch.parts("plan"), batch.parts("slack")
    fused.sum_rows(batch.rows, batch.prices, batch.epsilons)
    fused.write_plans(batch.rows, batch.prices, batch.epsilons, matrices, slacks)
    fused.sum_plans(batch.rows, matrices, slacks)


def test_says_what_is_supported():
    def is_supported(shape, dtype):
        vector = torch.ones(1, dtype=torch.float64)
        return fused.is_supported(
            fused.Rows([torch.empty(shape, dtype=dtype)], None, [vector], vector, vector)
        )

    assert is_supported((3, 8192), torch.float32) == IS_INTERPRETED
    assert is_supported((3, 5), torch.float64) == IS_INTERPRETED
    assert not is_supported((3, 8193), torch.float32)
    assert not is_supported((3, 5), torch.float16)
