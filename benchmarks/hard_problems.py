"""Problems that are hard to solve, shared by the benchmarks and the tests."""

import itertools
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from ssot import knn_graph

RHO = (0.01, 0.1, 0.5, 0.999, 1.0)
EPSILON = (1e-3, 0.01, 0.1, 1.0)
KL_WEIGHT = (0.01, 1.0, 100.0, np.inf)
GRID = list(itertools.product(RHO, EPSILON, KL_WEIGHT))
SHAPES = [(2000, 100), (1000, 200)]  # with the curvature as a matrix, and without
"""Parameters of the linear problems: from easy to close to linear programming."""


def long_tail(classes):
    """Return class sizes from 500 down to 5, geometrically; for 100 those of CIFAR100-LT."""
    return (500 * 0.01 ** (np.arange(classes) / (classes - 1))).astype(int)


CLASSES = 100
LONG_TAIL = long_tail(CLASSES)

FEATURE_SIZE = 768
BANK_SIZE = 5120
SEMANTIC_SETTINGS = [(rho, 1000 * (1 - rho)) for rho in (0.106, 0.35, 0.9)]
"""Pairs (rho, semantic_weight) at the start, in the middle and near the end of training."""

NEIGHBOURS = {"k": 20, "bandwidth": 2 * FEATURE_SIZE**0.5}
"""The published graph."""


def good_head_logits(samples=2000, classes=CLASSES, seed=0, dtype=np.float64):
    """Return logits that know the class of most samples of a long-tailed data set."""
    rng = np.random.default_rng(seed)
    sizes = long_tail(classes)
    labels = rng.choice(classes, samples, p=sizes / sizes.sum())
    logits = 2 * rng.standard_normal((samples, classes), dtype)
    logits[np.arange(samples), labels] += 12
    return logits


def good_head_cost(samples=2000, classes=CLASSES, seed=0, dtype=np.float64):
    """Return -log softmax of `good_head_logits`; costs up to about 25."""
    logits = good_head_logits(samples, classes, seed, dtype)
    return -logits + np.logaddexp.reduce(logits, axis=1, keepdims=True)


def uniform_cost(samples=2000, classes=CLASSES, seed=0):
    """Return independent costs in [0, 1]: no structure to find."""
    return np.random.default_rng(seed).random((samples, classes))


def dirichlet_cost(samples=2000, classes=CLASSES, seed=0):
    """Return -log of Dirichlet(0.05) rows cut off at 1e-30: costs up to 69."""
    rows = np.random.default_rng(seed).dirichlet(np.full(classes, 0.05), size=samples)
    return -np.log(np.maximum(rows, 1e-30))


COST_FAMILIES = {
    "good head": good_head_cost,
    "uniform": uniform_cost,
    "Dirichlet": dirichlet_cost,
}


@dataclass(frozen=True)
class SemanticProblem:
    """Logits of a half-trained head, and the graph of the samples in its memory bank."""

    logits: np.ndarray
    graph: sparse.csr_array


def semantic_problem(seed):
    """Return a long-tailed problem on which the published full step does not descend.

    Gaussian clusters in 768 dimensions, the Gaussian 20-neighbour graph of all 10,847 samples
    restricted to a bank of 5,120, and a cosine head of scale 10 with noisy weights.
    """
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((CLASSES, FEATURE_SIZE), dtype=np.float32)
    labels = np.repeat(np.arange(CLASSES), LONG_TAIL)
    features = _features(centres, labels, rng)
    graph = knn_graph(features, **NEIGHBOURS)
    bank = rng.permutation(len(labels))[:BANK_SIZE]
    logits = _half_trained_logits(features[bank], centres, rng)
    return SemanticProblem(logits, graph[bank][:, bank])


def semantic_bank(samples, classes, seed=0):
    """Return a problem of the same family whose 20 neighbours are all in the bank."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((classes, FEATURE_SIZE), dtype=np.float32)
    sizes = long_tail(classes)
    features = _features(centres, rng.choice(classes, samples, p=sizes / sizes.sum()), rng)
    graph = knn_graph(features, **NEIGHBOURS)
    return SemanticProblem(_half_trained_logits(features, centres, rng), graph)


def _features(centres, labels, rng):
    noise = rng.standard_normal((len(labels), FEATURE_SIZE), dtype=np.float32)
    return centres[labels] + np.float32(1.6) * noise


def _half_trained_logits(features, centres, rng):
    """Return the logits of a cosine head of scale 10 with noisy weights."""
    weights = centres + 2 * rng.standard_normal(centres.shape, dtype=np.float32)
    return 10 * _unit_rows(features) @ _unit_rows(weights).T


def _unit_rows(array):
    return array / np.linalg.norm(array, axis=1, keepdims=True)
