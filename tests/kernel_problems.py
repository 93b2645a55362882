"""Problems for single operations of the kernels, and the formulas to hold these against."""

import numpy as np
from problems import moved, random_graph
from scipy import sparse

from ssot import Problem
from ssot.arrays import HOST
from ssot.curvature import LARGEST_DENSE, System
from ssot.kernels import Plan, make_kernel

SIZES = {
    "one row": (1, 1),
    "few": (7, 3),
    "a tile": (65, 15),
    "a tile and one": (64, 16),
    "padding": (33, 31),
    "blocks": (700, 40),
    "most dense": (300, LARGEST_DENSE - 1),
    "fewest sparse": (300, LARGEST_DENSE),
    "many classes": (300, 700),
}
EPSILON = 0.2


def problem_of(size, dtype, **options):
    samples, classes = SIZES[size]
    rng = np.random.default_rng(samples)
    cost = 3 * rng.random((samples, classes))
    cost[::3] *= rng.random((len(cost[::3]), 1)) * 3  # some rows are all but decided
    if samples > 1:
        cost[rng.random(cost.shape) < 0.02] = np.inf
        cost[1, :-1] = np.inf
    cost = cost.astype(dtype)
    weight = rng.random(samples)
    graph = random_graph(0, samples) if samples > 1 else sparse.csr_array((1, 1))
    options = {"sample_weight": weight / weight.sum(), "rho": 0.6, "epsilon": EPSILON} | options
    return Problem(cost, graph, semantic_weight=0.7, **options)


def prices_of(problem, seed=1):
    prices = np.random.default_rng(seed).standard_normal(problem.cost.shape[1] + 1)
    if len(prices) > 3:
        prices[1] = -np.inf
    return prices


def system_of(problem):
    """Return a Newton system with something of everything."""
    columns = problem.cost.shape[1] + 1
    rng = np.random.default_rng(8)
    demand, softness = rng.random(columns) / columns, 1e-3 * rng.random(columns)
    return System(demand, softness, fixed=columns - 1, longest=1e3)


def assert_solves(coupling, overlap, sums, system, accuracy):
    """Hold the direction of a coupling against the system, with the given matrix W."""
    free = np.flatnonzero(np.arange(len(overlap)) != system.fixed)
    diagonal, gradient = system.softness[free], (system.demand - sums.column_mass)[free]
    found = coupling.solve(free, diagonal, gradient, EPSILON, system.longest)
    laplacian = (np.diag(overlap.sum(axis=1)) - overlap)[np.ix_(free, free)]
    residual = laplacian @ found / EPSILON + diagonal * found - gradient
    assert np.linalg.norm(residual) <= accuracy * np.linalg.norm(gradient)


def rounding(problem):
    return 50 * float(np.finfo(problem.cost.dtype).eps)


def softmax_rows(problem, kernel, prices, product=None):
    cost = problem.cost.astype(np.float64) - kernel.shift
    if product is not None:
        cost -= 2 * problem.semantic_weight * product
    exponent = (prices - np.column_stack([cost, np.zeros(len(cost))])) / problem.epsilon
    scaled = np.exp(exponent - exponent.max(axis=1, keepdims=True))
    return scaled / scaled.sum(axis=1, keepdims=True)


def kernel_of(setting, problem):
    """Return a setting's kernel of a problem, which takes and returns NumPy arrays."""
    return AtHome(make_kernel(moved(problem, setting.place), setting.backend))


class AtHome:
    """A kernel as the tests want it: NumPy arrays in and out, wherever it computes."""

    def __init__(self, kernel):
        self._kernel = kernel

    def __getattr__(self, name):
        found = getattr(self._kernel, name)
        return (lambda *given: self._called(found, given)) if callable(found) else found

    def _called(self, operation, given):
        there = [moved(x, self.place) if has_matrix(x) else x for x in given]
        result = moved(operation(*there), HOST)
        for before, after in zip(given, there, strict=True):
            if has_matrix(before):
                write_over(before, moved(after, HOST))
        return result


def has_matrix(argument):
    """Tell whether an argument of a kernel lies where the kernel computes."""
    return isinstance(argument, Plan) or getattr(argument, "ndim", 0) == 2


def write_over(target, source):
    pairs = zip(target, source, strict=True) if isinstance(target, Plan) else [(target, source)]
    for array, values in pairs:
        array[...] = values
