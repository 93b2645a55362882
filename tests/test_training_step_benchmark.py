"""The benchmark of a training step runs at a tiny size, and times what it says."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="trains networks")
pytest.importorskip("sklearn", reason="the graph needs scikit-learn")

from benchmarks import training_step as benchmark  # noqa: E402
from benchmarks.networks import count_parameters  # noqa: E402


@pytest.mark.slow
def test_a_quick_run():
    found = benchmark.measure(is_quick=True)
    size = benchmark.QUICK
    assert found["held"] == size.capacity
    assert len(found["points"]) == len(benchmark.PROGRESS)
    for point in found["points"]:
        assert len(point["networks"]["perceptron"]["seconds"]) == size.window
        assert len(point["networks"]["transformer"]["seconds"]) == 1
        problems = [sum(labels["statuses"].values()) for labels in point["labels"].values()]
        assert problems == [size.window, 2 * size.window, 4 * size.window]
        for labels in point["labels"].values():
            assert len(labels["seconds"]) == size.window
            assert labels["median"] == np.median(labels["seconds"])
            assert set(labels["statuses"]) == {"CONVERGED"}
            expected = labels["median"] / point["networks"]["perceptron"]["median"]
            assert labels["ratios"]["perceptron"] == expected


def test_the_full_size_is_what_it_claims():
    size = benchmark.FULL
    assert size.capacity == 5632
    for window in size.windows():
        assert len(window) >= 20
        assert window[0] * size.batch >= size.capacity
    assert benchmark.long_tail(size.classes).sum() == 10847
    data = benchmark.Data(benchmark.QUICK)
    assert data.graph.nnz == 20 * len(data.labels)


def test_a_run_of_samples_as_long_as_the_bank_has_no_sample_twice():
    size = benchmark.QUICK
    data = benchmark.Data(size)
    steps = size.capacity // size.batch
    for first in range(1, size.steps):
        ids = torch.cat([data.ids(first + step) for step in range(steps)])
        assert len(ids.unique()) == size.capacity


def test_the_perceptron_has_ten_million_parameters():
    widths = (benchmark.FULL.features, *benchmark.FULL.hidden, benchmark.FULL.features)
    assert 9.5e6 < count_parameters(benchmark.perceptron(widths)) < 10.5e6
