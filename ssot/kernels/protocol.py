"""What a backend must supply: every operation whose cost grows with the number of samples."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Matrix: TypeAlias = Any
"""An array of the backend's own library: N x K for costs and plans, N for slacks."""

Vector: TypeAlias = NDArray[np.float64]
"""A float64 NumPy array on the host, of K or K + 1 entries: small whatever N is."""


SUM_ROUNDING = 64 * float(np.finfo(np.float64).eps)
"""Relative rounding error of a float64 sum of many terms."""


class Plan(NamedTuple):
    """A plan and what it leaves out.

    Attributes
    ----------
    matrix : (N, K) array
        Mass given by sample i to class j.
    slack : (N,) array
        Mass of sample i left in the virtual cluster.
    """

    matrix: Matrix
    slack: Matrix


class RowSums(NamedTuple):
    """What one reading of the cost sums over the samples, at given prices.

    With the row-wise probabilities ``P = softmax((prices - [cost, 0]) / epsilon)`` and the sample
    weights ``alpha``:

    Attributes
    ----------
    column_mass : (K + 1,) array
        ``P^T alpha``; the last entry belongs to the virtual cluster.
    log_partition : float
        ``epsilon * sum_i alpha_i logsumexp_j((prices_j - [cost, 0]_ij) / epsilon)``.
    """

    column_mass: Vector
    log_partition: float


class Kernel(Protocol):
    """The operations on N x K arrays, bound to the sample weights and the graph of one problem.

    Sums are accumulated in float64 whatever the dtype of the arrays.

    Attributes
    ----------
    name : str
        Name of the backend.
    resolution : float
        Relative rounding error of its N x K arrays.
    cost : (N, K) array
        The cost of the problem.
    """

    name: str
    resolution: float
    cost: Matrix

    def row_pass(
        self, cost: Matrix, prices: Vector, epsilon: float
    ) -> tuple[RowSums, NDArray[np.float64]]:
        """Return the row sums and the (K + 1, K + 1) overlap ``P^T diag(alpha) P``."""
        ...

    def plan(self, cost: Matrix, prices: Vector, epsilon: float) -> tuple[Plan, RowSums]:
        """Return the plan ``alpha_i softmax((prices - [cost_i, 0]) / epsilon)`` and its sums."""
        ...

    def linearize(self, product: Matrix, semantic_weight: float) -> Matrix:
        """Return ``cost - 2 semantic_weight product``, the cost of the convex surrogate."""
        ...

    def graph_product(self, matrix: Matrix) -> Matrix:
        """Return ``W matrix`` with the symmetrised graph ``W = (S + S^T) / 2``."""
        ...

    def add(self, first: Matrix, second: Matrix, scale: float) -> Matrix:
        """Return ``first + scale * second`` for two arrays of the same shape."""
        ...

    def inner(self, first: Matrix, second: Matrix) -> float:
        """Return ``sum_ij first_ij second_ij``, where 0 times inf is 0."""
        ...

    def entropy(self, array: Matrix) -> float:
        """Return ``sum x log x`` over all entries, where 0 log 0 is 0."""
        ...

    def column_mass(self, matrix: Matrix) -> Vector:
        """Return the K column sums."""
        ...

    def total(self, array: Matrix) -> float:
        """Return the sum of all entries."""
        ...

    def row_mass(self, matrix: Matrix) -> Vector:
        """Return the N row sums."""
        ...

    def typical_spread(self, cost: Matrix) -> float:
        """Return how far a row's median cost lies above its minimum, in a typical row."""
        ...


def value_rounding(kernel: Kernel) -> float:
    """Return the relative rounding error of an objective evaluated on the kernel's arrays."""
    return max(kernel.resolution, SUM_ROUNDING)
