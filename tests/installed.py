"""What an installed package must do with the extras that are named, and say without the others.

`nox -s wheel` runs it where neither the test tools nor a checkout can be imported.
"""

import importlib.metadata
import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

import ssot

rng = np.random.default_rng(0)
CENTRES = 3 * rng.standard_normal((3, 4))
FEATURES = CENTRES[rng.integers(3, size=60)] + rng.standard_normal((60, 4))
LOGITS = FEATURES @ CENTRES.T / 4


def use_the_core():
    neighbours = np.argsort(-FEATURES @ FEATURES.T, axis=1)[:, :5]
    graph = (neighbours, np.ones(neighbours.shape))
    solution = ssot.solve(logits=LOGITS, graph=graph, rho=0.5, backend="numpy")
    assert solution.status is ssot.Status.CONVERGED, solution.status.advice
    assert abs(solution.plan.sum() - 0.5) < 1e-6
    assert (solution.predict(logits=LOGITS) == LOGITS.argmax(axis=1)).mean() > 0.5
    batch = ssot.solve(logits=np.stack([LOGITS, LOGITS]), rho=[0.2, 0.8])
    assert np.allclose(batch.plan.sum(axis=(1, 2)), [0.2, 0.8], atol=1e-6)


def use_numba():
    solution = ssot.solve(logits=LOGITS, rho=0.5, backend="numba")
    assert solution.backend == "numba"


def use_the_torch_backend():
    solution = ssot.solve(logits=LOGITS, rho=0.5, backend="torch")
    assert solution.backend == "torch"


def train():
    from ssot.training import PseudoLabeler, soft_cross_entropy

    labeler = PseudoLabeler(total_steps=10)
    import torch  # which the package has asked for where it is missing

    logits = torch.tensor(LOGITS, requires_grad=True)
    labels = labeler(logits, torch.arange(len(logits)))
    soft_cross_entropy(logits, labels.targets).backward()
    assert logits.grad.abs().sum() > 0
    cost = torch.tensor(-LOGITS, requires_grad=True)
    ssot.solve(cost, rho=0.5).value.backward()
    assert abs(float(cost.grad.sum()) - 0.5) < 1e-6  # the derivative in the cost is the plan


def find_neighbours():
    assert ssot.knn_graph(FEATURES, k=5).shape == (60, 60)


def find_neighbours_approximately():
    assert ssot.knn_graph(FEATURES, k=5, method="approximate").shape == (60, 60)


class Feature(NamedTuple):
    """What any of some extras brings, and what the message says where none is installed."""

    use: Callable[[], None]
    extras: set[str]
    needs: str


FEATURES_OF_EXTRAS = [
    Feature(use_numba, {"numba", "graph"}, "needs Numba"),  # PyNNDescent brings Numba
    Feature(use_the_torch_backend, {"torch"}, "needs Torch"),
    Feature(train, {"torch"}, "needs Torch"),
    Feature(find_neighbours, {"graph"}, "needs scikit-learn"),
    Feature(find_neighbours_approximately, {"graph"}, "needs PyNNDescent"),
]


def check(feature, installed):
    """Use a feature, which must work if an extra that brings it is installed."""
    is_there = bool(feature.extras & installed)
    try:
        feature.use()
    except (ImportError, RuntimeError) as error:
        if is_there or feature.needs not in str(error):
            raise
    else:
        assert is_there, f"{feature.use.__name__} worked without {feature.extras}"


if __name__ == "__main__":
    assert importlib.metadata.version("ssot") == ssot.__version__
    use_the_core()
    for one in FEATURES_OF_EXTRAS:
        check(one, set(sys.argv[1:]))
