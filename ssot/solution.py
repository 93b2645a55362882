"""What came out: the plan, what it says about each sample, and how far it can be trusted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ssot.arrays import HOST, LARGEST, Array, Vector, isolated, namespace, place_of, to_place
from ssot.certificate import Certificate
from ssot.checks import common_place
from ssot.kernels.protocol import Plan
from ssot.objective import Objective
from ssot.problem import Problem
from ssot.status import Status
from ssot.streaming.cost import read_cost, row_blocks
from ssot.streaming.plan import StreamedPlan, StreamedRows, plan_rows
from ssot.streaming.source import RowBlocks, peeked


class Report:
    """What the last backward pass reported.

    The graph of Torch holds on to this, which therefore must not know the plan.
    """

    adjoint: Any = None

    def __call__(self, adjoint: Any) -> None:
        """Take note."""
        self.adjoint = adjoint


@dataclass(frozen=True, eq=False)
class Tracked:
    """The plan and the value as Torch tracks them."""

    plan: Array
    value: Array
    report: Report


class SolutionBlock(NamedTuple):
    """Some rows of a solution.

    Attributes
    ----------
    rows : slice
        Which samples.
    plan : (h, K) array
        Their rows of the plan.
    labels, confidence : (h,) array
        As those of `Solution`.
    """

    rows: slice
    plan: Any
    labels: Any
    confidence: Any


@dataclass(frozen=True, eq=False)
class Solution:
    """A plan and everything known about it.

    Arrays come in the caller's own library, NumPy or Torch, and on the device of the cost.

    Attributes
    ----------
    problem : Problem
        What was solved.
    objective : Objective
        The objective of the plan by term.
    status : Status
        Why the solve ended; ``status.advice`` says what to do next.
    certificate : Certificate
        How feasible and how stationary the plan is.
    tol : float
        The tolerance that was asked for.
    backend : str
        Name of the backend that computed it.
    seconds : float
        Wall-clock time of the solve, of the whole batch if in one, from the checked problem to the
        certificate.
    """

    problem: Problem
    objective: Objective
    status: Status
    certificate: Certificate
    tol: float
    backend: str
    seconds: float
    _plan: Plan = field(repr=False)
    _prices: Vector = field(repr=False)
    _tracked: Tracked | None = field(default=None, repr=False)

    @property
    def plan(self) -> Any:
        """The plan Q, (N, K), in the dtype of the computation: masses that sum to rho.

        The solution's own array, which `init` and the labels read: copy it before changing it.
        Where a tensor that was passed requires gradients, so does the plan: use ``plan.detach()``
        as pseudo-labels, or solve under ``torch.no_grad()``.

        Of a streamed cost without a graph the plan is not stored: each access reads the cost and
        makes an array of N x K entries. `blocks` and `write_plan` need no such memory. With a graph
        it is a memory-mapped array.
        """
        if self._tracked is not None:
            return self._tracked.plan
        if not isinstance(self._plan.matrix, StreamedPlan):
            return to_place(self._plan.matrix, self.problem.place)
        parts = [block.plan for block in self.blocks()]
        return namespace(parts[0]).concat(parts)

    @property
    def value(self) -> Any:
        """The value of the objective, ``objective.total``.

        For tensors a 0-dimensional one of float64, which can be differentiated as the plan can.
        """
        if self._tracked is not None:
            return self._tracked.value
        total = self.objective.total
        is_array = self.problem.place == HOST
        return total if is_array else to_place(np.array(total), self.problem.place)

    @property
    def adjoint(self) -> Any:
        """How the linear system behind the last gradient of the plan was solved; None without one.

        A named tuple of the relative `residual`, the `iterations`, whether they `converged`, and
        `is_minimum`: False if a direction was met in which the objective does not bend up, so that
        the plan is no strict local minimum and has no derivative.
        """
        return None if self._tracked is None else self._tracked.report.adjoint

    @property
    def prices(self) -> Any:
        """Prices of the K classes and of the virtual cluster, (K + 1,), float64.

        The plan's row i is ``alpha_i softmax((prices - [linearised cost_i, 0]) / epsilon)`` without
        its last entry. A class that can carry no mass has the price ``-inf``, as has the virtual
        cluster at rho = 1. Where every class size is hard only differences matter, and the finite
        prices have mean 0.

        With ``slack_entropy=False`` row i is ``exp((prices[:K] - prices[K] - linearised cost_i) /
        epsilon) / N``, scaled down to the sum ``alpha_i`` where it has more. The slope of the
        optimal value in the mass of the virtual cluster is then the last price and ``epsilon (log N
        - 1)``: a constant left out so that prices serve as a start for any number of samples.
        """
        return to_place(self._prices, self.problem.place)

    @property
    def labels(self) -> Any:
        """The class that receives most of each sample's mass, (N,), int64.

        Samples whose row of the plan is 0, for example because their weight is, get the class that
        `predict` gives them.
        """
        return self._per_row[0]

    @property
    def confidence(self) -> Any:
        """Labelled fraction of each sample, (N,), in [0, 1]: row mass over sample weight.

        Exactly 1 where nothing is left, and 0 for samples without weight.
        """
        return self._per_row[1]

    @property
    def dtype(self) -> Any:
        """Floating-point type of the computation and of the plan."""
        return self.problem.cost.dtype

    def blocks(self) -> Iterator[SolutionBlock]:
        """Yield the plan with what it says about each sample, by rows that follow one another.

        A streamed cost is read once for that, in its blocks; an array makes one block.

        Yields
        ------
        SolutionBlock
            A named tuple of the `rows`, a slice, and their `plan`, `labels` and `confidence`.
        """
        source = plan_rows(self.problem, self._plan)
        while True:
            with isolated(self.problem.place):  # but not around the yield, where others work
                found = next(source, None)
                if found is None:
                    return
                block = SolutionBlock(
                    found.rows, found.matrix, self._labels(found), self._confidence(found)
                )
            yield block

    def write_plan(self, out: Any) -> None:
        """Write the plan by blocks, ``out[start:stop] = rows``.

        Parameters
        ----------
        out : array or tensor of shape (N, K)
            What takes slices of floating-point numbers, such as a `numpy.memmap`, a dataset of
            h5py, an array of Zarr; on any device.

        Raises
        ------
        TypeError
            If `out` cannot take them.
        ValueError
            If `out` has another shape.
        """
        if not (hasattr(out, "shape") and hasattr(out, "__setitem__")):
            raise TypeError(
                f"out must be an array that takes slices, got {type(out).__name__}; `plan` is one"
            )
        if not _holds_floats(out):
            raise TypeError(
                f"out must hold floating-point numbers, got dtype {out.dtype}; make it of "
                f"{self.dtype}"
            )
        shape = tuple(self.problem.cost.shape)
        if tuple(out.shape) != shape:
            raise ValueError(f"out must have the shape of the plan, {shape}, got {out.shape}")
        for block in self.blocks():
            out[block.rows] = to_place(block.plan, place_of(out))

    def predict(
        self,
        cost: ArrayLike | RowBlocks | None = None,
        *,
        logits: ArrayLike | RowBlocks | None = None,
    ) -> Any:
        """Label samples that were not in the problem, by ``argmax_j prices_j - cost_ij``.

        The semantic term, which needs neighbours, takes no part.

        Parameters
        ----------
        cost, logits : (M, K) array or RowBlocks
            Exactly one of them, in the unit and class order of the problem.

        Returns
        -------
        (M,) array of int64

        Raises
        ------
        TypeError, ValueError
            If the array is not a valid cost, or has another number of classes.
        """
        place = common_place(cost=peeked(cost), logits=peeked(logits))
        with isolated(place):
            checked, _ = read_cost(cost, logits, place)
            classes = len(self._prices) - 1
            if checked.shape[1] != classes:
                raise ValueError(
                    f"{'logits' if cost is None else 'cost'} must have {classes} columns, one for "
                    f"each class of the solved problem, got {checked.shape[1]}"
                )
            labels = [self._allowed_nearest(*given) for given in row_blocks(checked)]
            return namespace(labels[0]).concat(labels)

    def _allowed_nearest(self, rows: slice, cost: Array) -> Array:
        xp = namespace(cost)
        is_forbidden = to_place(xp.all(xp.isinf(cost), axis=1), HOST)
        if is_forbidden.any():
            row = rows.start + int(np.argmax(is_forbidden))
            raise ValueError(f"cost forbids every class in row {row}; leave that sample out")
        return self._nearest(cost)

    def _nearest(self, cost: Array) -> Array:
        # Closed classes come after open ones, and before forbidden ones.
        prices = np.maximum(self._prices[:-1], -LARGEST)
        return namespace(cost).argmax(to_place(prices, place_of(cost)) - cost, axis=1)

    @cached_property
    def _per_row(self) -> tuple[Array, Array]:
        """The labels and the confidence of all samples."""
        blocks = [(block.labels, block.confidence) for block in self.blocks()]
        labels, confidence = (
            namespace(parts[0]).concat(parts) for parts in zip(*blocks, strict=True)
        )
        return labels, confidence

    def _labels(self, found: StreamedRows) -> Array:
        xp = namespace(found.matrix)
        labels = xp.argmax(found.matrix, axis=1)
        smallest = xp.finfo(found.matrix.dtype).tiny  # below it, entries that differ may be equal
        empty = xp.nonzero(~xp.any(found.matrix >= smallest, axis=1))[0]
        labels[empty] = self._nearest(found.cost[empty])
        return labels

    def _confidence(self, found: StreamedRows) -> Array:
        weight, xp = self.problem.sample_weight[found.rows], namespace(found.matrix)
        slack = to_place(self._plan.slack[found.rows], place_of(found.matrix))
        mass = xp.sum(found.matrix, axis=1, dtype=xp.float64)
        share = xp.where(weight > 0, mass / xp.where(weight > 0, weight, 1.0), 0.0)
        share = xp.where((weight > 0) & (slack == 0), 1.0, share)
        return xp.astype(xp.clip(share, max=1.0), found.matrix.dtype)


def _holds_floats(out: Any) -> bool:
    """Tell whether what takes slices takes floats; yes where it does not tell its dtype."""
    if place_of(out).library == "torch":
        return bool(out.dtype.is_floating_point)
    return getattr(getattr(out, "dtype", None), "kind", "f") in "fV"  # V: bfloat16 of ml_dtypes
