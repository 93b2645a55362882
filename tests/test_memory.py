"""Peak memory, as the operating system measures it, of solves in processes of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the peak of a process is read as Linux tells it"
)

MEASURE = """
import numpy as np
import psutil
import ssot

def peak():
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))

def problem(samples):
    rng = np.random.default_rng(0)
    cost = rng.standard_normal((samples, {classes}), dtype=np.float32)
    cost[np.arange(samples), rng.integers({classes}, size=samples)] -= 4
    if not {neighbours}:
        return cost, None
    return cost, (rng.integers(samples, size=(samples, {neighbours}), dtype=np.int32),
                  np.full((samples, {neighbours}), 0.05, np.float32))

def solve(cost, graph):
    options = dict(rho=0.3, backend={backend!r}, on_failure="raise", kl_weight={kl_weight})
    if graph is not None:
        options["semantic_weight"] = 0.02 * len(cost)
    return ssot.solve(cost, graph, **options)

solve(*problem(500))  # libraries are loaded and loops compiled
before = psutil.Process().memory_info().rss
cost, graph = problem({samples})
solution = solve(cost, graph)
print((peak() - before) / cost.nbytes)
"""


def peak_over_cost(**options):
    """Return the peak of cost, graph, plan and everything in between, over the size of the cost."""
    given = {"neighbours": 0, "kl_weight": 1.0} | options
    command = [sys.executable, "-c", MEASURE.format(**given)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.fixture(params=["numba", "numpy", "torch"])
def backend(request):
    if request.param != "numpy":
        pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    return request.param


@pytest.mark.parametrize(
    ("samples", "classes", "kl_weight"),
    [(200_000, 100, 1.0), (200_000, 100, "np.inf"), (150_000, 130, 1.0), (30_000, 700, 1.0)],
)
def test_a_plan_without_a_graph_takes_little_more_than_cost_and_plan(
    backend, samples, classes, kl_weight
):
    options = {"samples": samples, "classes": classes, "kl_weight": kl_weight}
    assert 1.9 < peak_over_cost(backend=backend, **options) <= 2.5


@pytest.mark.parametrize(("samples", "classes"), [(200_000, 100), (40_000, 700)])
def test_a_plan_with_a_graph_takes_less_than_five_costs(backend, samples, classes):
    options = {"samples": samples, "classes": classes, "neighbours": 5}
    assert 2.9 < peak_over_cost(backend=backend, **options) <= 5
