"""What a backend must supply: every operation whose cost grows with the number of samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, Self, TypeAlias

import numpy as np

from ssot.adjacency import SymmetricGraph
from ssot.arrays import Array, Place, Vector
from ssot.curvature import Coupling, System
from ssot.ranks import ALONE, Ranks

Matrix: TypeAlias = Array
"""An array of the backend's own library: N x K for costs and plans, N for slacks."""

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

    With the row-wise probabilities ``P = softmax((prices - [C, 0]) / epsilon)`` and the sample
    weights ``alpha``:

    Attributes
    ----------
    column_mass : (K + 1,) array
        ``P^T alpha``; the last entry belongs to the virtual cluster.
    log_partition : float
        ``epsilon * sum_i alpha_i logsumexp_j((prices_j - [C, 0]_ij) / epsilon)``.

    Notes
    -----
    Where the slack has no entropy, row i asks for the mass ``s_i = exp((l_i - prices_{K+1}) /
    epsilon)``, with the level ``l_i = epsilon logsumexp_j((prices_j - C_ij) / epsilon)`` of its
    classes alone. It gets the share ``f_i = min(1, s_i / alpha_i)`` of its weight:
    ``P_i = [f_i softmax((prices - C_i) / epsilon), 1 - f_i]``, and the log-partition has the term
    ``alpha_i (max(l_i, prices_{K+1} + epsilon log alpha_i) - epsilon (1 - f_i))``. A full row
    couples its classes as ever, ``alpha_i P_i P_i^T``; one with room couples each class with the
    virtual cluster alone, by its mass.
    """

    column_mass: Vector
    log_partition: float


class PlanSums(NamedTuple):
    """What one reading of a plan sums over the samples.

    Attributes
    ----------
    column_mass : (K + 1,) array
        Column sums of the plan; the last entry is the sum of the slack.
    transport : float
        ``<C, Q>``, where 0 times inf is 0.
    semantic : float
        ``<Q, W Q>``, 0 without a graph.
    plan_entropy, slack_entropy : float
        ``sum x log x`` over the plan and over the slack, where 0 log 0 is 0.
    row_excess : float
        ``sum_i max(0, (Q 1)_i - alpha_i)``.
    """

    column_mass: Vector
    transport: float
    semantic: float
    plan_entropy: float
    slack_entropy: float
    row_excess: float


class Bound(NamedTuple):
    """What a kernel is bound to: the problem's arrays, what its rows go by, and the ranks."""

    cost: Matrix
    sample_weight: Array
    graph: SymmetricGraph | None
    semantic_weight: float
    shift: float
    slack_entropy: bool = True
    ranks: Ranks = ALONE


class Kernel(Protocol):
    """The operations on N x K arrays, bound to one problem or to a part of its rows.

    All that it sums is additive: of a part of the rows, with the weights that they have in the
    problem, the sums are what that part adds to those of all.

    Since the total mass is fixed, subtracting a constant from every cost changes no plan. A kernel
    subtracts its `shift`, so that a large common offset costs no accuracy. Below, `C` is the cost
    less the shift.

    `product` is always ``G = W Q`` for the symmetrised graph ``W = (S + S^T) / 2`` and a plan Q at
    which the semantic term is linearised: the cost is then ``C - 2 semantic_weight G``. None stands
    for the cost ``C``. Sums are accumulated in float64 whatever the dtype of the
    arrays.

    Attributes
    ----------
    name : str
        Name of the backend.
    place : Place
        The library and the device of its arrays.
    resolution : float
        Relative rounding error of its N x K arrays.
    samples : int
        How many rows it sums over: of all ranks for the kernel of a group, else its own.
    shift : float
        The common offset of the problem's costs.
    adds_up : bool
        Whether a row pass with a `System` returns the sums of all ranks, not of its own rows.
    kept_every : int or None
        Where a reading of the cost is dear: which rows a sample can have without one, every first,
        second and so on.
    """

    name: str
    place: Place
    resolution: float
    samples: int
    shift: float
    adds_up: bool
    kept_every: int | None

    @classmethod
    def together(
        cls, operation: str, kernels: Sequence[Self], arguments: Sequence[tuple[Any, ...]]
    ) -> Sequence[Any]:
        """Return the results of one of the operations below for several problems of one shape."""
        ...

    def row_pass(
        self, product: Matrix | None, prices: Vector, epsilon: float, system: System | None
    ) -> tuple[RowSums, Coupling]:
        """Return the row sums, and how the K + 1 columns are coupled: ``P^T diag(alpha) P``.

        See the notes of `RowSums` for rows whose slack has no entropy.

        A backend far from the host may solve the `system` at once, which it will be asked next;
        without one, or with one that is not whole, the coupling can be had as a matrix.
        """
        ...

    def plan(
        self, product: Matrix | None, prices: Vector, epsilon: float, out: Plan | None
    ) -> tuple[Plan, RowSums]:
        """Return the plan ``alpha_i P_i`` and the row sums, in `out` if given."""
        ...

    def measure(self, plan: Plan, product: Matrix | None) -> PlanSums:
        """Return the sums of a plan; `product` belongs to this plan."""
        ...

    def graph_product(self, matrix: Matrix, out: Matrix | None) -> Matrix:
        """Return ``W matrix``, in `out` if given.

        Where W has more columns than rows, `matrix` has rows for all of them, and `out` is given;
        so below for `new`.
        """
        ...

    def replace_product(self, product: Matrix, old: Matrix, new: Matrix) -> float:
        """Turn ``W old`` into ``W new`` in place, and return ``<new - old, W (new - old)>``."""
        ...

    def interpolate(self, old: Plan, new: Plan, step: float) -> None:
        """Turn `new` into ``old + step (new - old)`` in place."""
        ...

    def sample(self, product: Matrix | None, every: int) -> tuple[Kernel, Matrix | None]:
        """Return the kernel of each `every`-th sample, and their rows of the product.

        Their weights are scaled up to the sum of all, and are uniform where all of them are 0.
        """
        ...

    def typical_spread(self, product: Matrix | None) -> float:
        """Return how far a row's median cost lies above its minimum, in a typical row."""
        ...


class BlockKernel(Kernel, Protocol):
    """The operations on an array that may be a block of the rows of a streamed cost."""

    def for_rows(self, cost: Matrix, weight: Array) -> Self:
        """Return the kernel of other rows of the problem, with their weights and without a graph.

        It begins with what this one has learnt about how much room its passes need.
        """
        ...

    def transient_plan(self, prices: Vector, epsilon: float) -> tuple[Array, PlanSums, RowSums]:
        """Return the slack and the sums of a plan without a graph, whose matrix nobody keeps."""
        ...


def one_by_one(
    operation: str, kernels: Sequence[Kernel], arguments: Sequence[tuple[Any, ...]]
) -> list[Any]:
    """Return the results of an operation on one problem after the other."""
    pairs = zip(kernels, arguments, strict=True)
    return [getattr(kernel, operation)(*given) for kernel, given in pairs]


def value_rounding(kernel: Kernel) -> float:
    """Return the relative rounding error of an objective evaluated on the kernel's arrays."""
    return max(kernel.resolution, SUM_ROUNDING)
