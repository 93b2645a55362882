"""The benchmark of streamed costs runs at a tiny size, and measures what it says."""

import pytest

pytest.importorskip("torch", reason="the plain passes are Torch's")

from benchmarks import report
from benchmarks import streaming as benchmark


@pytest.mark.slow
@pytest.mark.parametrize("name", benchmark.CASES)
def test_a_quick_run(name):
    found = benchmark.measure(name, is_quick=True)
    size = benchmark.QUICK[name]
    assert (found["samples"], found["classes"]) == size.shape
    assert found["status"] == "CONVERGED"
    assert max(found["residual"], found["gap"], found["mass_error"]) <= 1e-6
    assert found["private_before"] <= found["private_peak"]
    if name == "linear":
        assert found["exact_residual"] <= 1e-6
        assert len(found["all_seconds"]) == len(found["softmax_seconds"]) == benchmark.REPEATS
    assert "converged" in report.streams([found])


def test_the_full_sizes_are_what_they_claim():
    assert benchmark.FULL["linear"].shape == (1_000_000, 1000)
    assert benchmark.FULL["semantic"].shape == (1_000_000, 100)
