"""How prices act on each other: the second derivatives of the log-partition of the rows.

With the row-wise probabilities P, the log-partition has the Hessian ``(diag(mass) - W) / epsilon``,
``W = P^T diag(alpha) P``. Rows of P sum to 1, so this is the Laplacian ``diag(W 1) - W`` of a graph
on the columns: only the entries of W off the diagonal matter, and all are positive. Formed from
these alone, it stays semi-definite and keeps its small eigenvalues in single precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import LinAlgError
from scipy.linalg.lapack import dposv

from ssot.arrays import Vector

Indices = NDArray[np.intp]

LARGEST_DENSE = 128
"""Most columns for which W is stored and factorised; beyond, conjugate gradients are faster."""

LARGEST_TAIL = 1 / 64
"""Probabilities below this are averaged where W is not stored: a row keeps 64 entries at most, and
more only where steps are poor."""

SAMPLED_ROWS = 1 << 14
"""Fewest rows that the curvature comes from where it does not come from all."""

SAMPLED_ROWS_PER_COLUMN = 32
"""Fewest of them for each column."""

MOST_LARGE_ENTRIES = 1 << 24
"""Most probabilities that are kept of rows that come in parts: 200 megabytes."""

MOST_REFINED_ENTRIES = 1 << 22
"""Most probabilities that are kept after poor steps: 80 megabytes."""

FAR_TOO_LONG = 4.0
"""How many times too long a direction may become before conjugate gradients leave it to damping."""

CG_ACCURACY = 1e-2
"""Relative residual at which conjugate gradients stop."""

CG_STEPS = 200
"""Most steps of conjugate gradients; after any number the direction is one of ascent."""


def sampled_rows(columns: int, effort: float) -> int:
    """Return from how many rows the curvature should come where it does not come from all."""
    return int(effort * max(SAMPLED_ROWS, SAMPLED_ROWS_PER_COLUMN * columns))


class System(NamedTuple):
    """What is known before a row pass of the Newton step that follows it, over all K + 1 columns.

    Attributes
    ----------
    demand : (K + 1,) array
        Mass that the columns ask for, 0 for closed ones.
    softness : (K + 1,) array
        How much that falls for each unit of price.
    fixed : int or None
        The column whose price stands still.
    longest : float
        Largest change of a price.
    effort : float
        From how many times the fewest rows the curvature should come, where not from all, and
        into how many parts `LARGEST_TAIL` is divided.
    is_whole : bool
        Whether it belongs to the rows of the pass alone. If not, the coupling of further rows will
        be added to theirs, so that no direction can be found from it yet.
    """

    demand: Vector
    softness: Vector
    fixed: int | None
    longest: float
    effort: float = 1.0
    is_whole: bool = True


def tail_threshold(system: System | None, shape: tuple[int, int]) -> float:
    """Return the probability below which entries are averaged where W is not stored.

    No row has more than ``1 / threshold`` entries above it, which bounds what poor steps may take.
    """
    wanted = LARGEST_TAIL / (1.0 if system is None else system.effort)
    if math.prod(shape) <= MOST_REFINED_ENTRIES:
        return wanted
    return max(wanted, min(LARGEST_TAIL, shape[0] / MOST_REFINED_ENTRIES))


class Coupling(Protocol):
    """W at one point, over all K + 1 columns."""

    def solve(
        self, free: Indices, diagonal: Vector, gradient: Vector, epsilon: float, longest: float
    ) -> Vector:
        """Return d with ``(L / epsilon + diag(diagonal)) d = gradient`` on the free columns.

        ``L = diag(W 1) - W``; the other columns stand still. A direction that is known already is
        shortened to `longest`. Raises `LinAlgError` where the matrix is singular.
        """
        ...

    def matrix(self, most_rows: int) -> NDArray[np.float64]:
        """Return W, to be added to that of other rows; it may come from `most_rows` of its rows."""
        ...


@dataclass(frozen=True, eq=False)
class DenseCoupling:
    """W as a matrix, of which the diagonal does not matter."""

    overlap: NDArray[np.float64]

    def solve(
        self, free: Indices, diagonal: Vector, gradient: Vector, epsilon: float, longest: float
    ) -> Vector:
        """Return the direction by a Cholesky factorisation."""
        laplacian = self._laplacian
        if len(free) < len(laplacian):
            laplacian = laplacian[np.ix_(free, free)]
        matrix = laplacian * (1.0 / epsilon)
        matrix.flat[:: len(matrix) + 1] += diagonal
        _, direction, failure = dposv(matrix.T, gradient, overwrite_a=True)
        if failure:
            raise LinAlgError("the curvature is singular")
        return np.asarray(direction)

    def matrix(self, most_rows: int) -> NDArray[np.float64]:
        """Return W, of all rows."""
        return self.overlap

    @cached_property
    def _laplacian(self) -> NDArray[np.float64]:
        laplacian = -self.overlap
        np.fill_diagonal(laplacian, 0.0)
        np.fill_diagonal(laplacian, -laplacian.sum(axis=1))
        return laplacian


@dataclass(frozen=True, eq=False)
class SparseCoupling:
    """W of probabilities that are sparse plus rank one, ``B = large + tail share^T``.

    What a row has in entries below `LARGEST_TAIL`, its `tail`, is spread over the columns in a
    common proportion, the `share`, which gives every column its true mass. Rows of B sum to 1 as
    those of P do, so W is a true coupling of the true masses, averaged among small probabilities.
    Long sums avoid BLAS, whose threads would wait for cores that the passes have just used.

    Attributes
    ----------
    large : (N, K + 1) sparse array
        The entries of P from `LARGEST_TAIL` on.
    weight : (N,) array
        The sample weights; 0 for loose rows, which couple each column with the last one alone.
    column_mass : (K + 1,) array
        The masses of the columns.
    loose_mass : (K + 1,) array or None
        What of these the loose rows have, where there are any.
    """

    large: sparse.csr_array
    weight: Vector
    column_mass: Vector
    loose_mass: Vector | None = None

    @cached_property
    def tail(self) -> Vector:
        """What each row has in small entries."""
        return np.asarray(1.0 - self.large.sum(axis=1, dtype=np.float64)).clip(min=0.0)

    @cached_property
    def share(self) -> Vector:
        """Proportion in which the tails are spread over the columns."""
        beyond = self.column_mass - self.large.T @ self.weight
        if self.loose_mass is not None:
            beyond = beyond - self.loose_mass
        beyond = beyond.clip(min=0.0)
        return np.asarray(beyond / (beyond.sum() or 1.0))

    def matrix(self, most_rows: int) -> NDArray[np.float64]:
        """Return W of the sparse plus rank-one probabilities, from evenly spaced rows."""
        every = max(1, -(-len(self.weight) // most_rows))
        large, weight, tail = self.large[::every], self.weight[::every], self.tail[::every]
        weight = weight * (self.weight.sum() / (weight.sum() or 1.0))
        weighted = large * weight[:, None]
        across = np.outer(weighted.T @ tail, self.share)
        beyond = (weight @ tail**2) * np.outer(self.share, self.share)
        matrix = np.asarray((weighted.T @ large).toarray() + across + across.T + beyond)
        if self.loose_mass is not None:
            matrix[:-1, -1] += self.loose_mass[:-1]
            matrix[-1, :-1] += self.loose_mass[:-1]
        return matrix

    @cached_property
    def _mass(self) -> Vector:
        """Row sums of W."""
        return self._image(np.ones(len(self.share)))

    @cached_property
    def _diagonal(self) -> Vector:
        weighted_tail = self.weight * self.tail
        return np.asarray(
            self.large.power(2).T @ self.weight
            + 2.0 * self.share * (self.large.T @ weighted_tail)
            + self.share**2 * (weighted_tail * self.tail).sum()
        )

    def _rows(self, prices: Vector) -> Vector:
        return np.asarray(self.large @ prices + self.tail * (self.share * prices).sum())

    def _image(self, prices: Vector) -> Vector:
        """Return the product of W with some prices."""
        rows = self.weight * self._rows(prices)
        image = np.asarray(self.large.T @ rows + self.share * (self.tail * rows).sum())
        if self.loose_mass is not None:
            image[:-1] += self.loose_mass[:-1] * prices[-1]
            image[-1] += (self.loose_mass[:-1] * prices[:-1]).sum()
        return image

    def solve(
        self, free: Indices, diagonal: Vector, gradient: Vector, epsilon: float, longest: float
    ) -> Vector:
        """Return the direction by preconditioned conjugate gradients; W is never formed."""
        jacobi = (self._mass - self._diagonal)[free] / epsilon + diagonal
        if not (jacobi > 0).all():
            raise LinAlgError("a free column has no curvature")

        def multiply(direction: Vector) -> Vector:
            everywhere = np.zeros(len(self.share))
            everywhere[free] = direction
            spread = self._mass * everywhere - self._image(everywhere)
            return np.asarray(spread[free] / epsilon + diagonal * direction)

        return _conjugate_gradients(multiply, gradient, jacobi, longest)


class JointCoupling:
    """W of rows that come in parts, each with the coupling that a pass over a part brings.

    Of sparse probabilities it keeps evenly spaced rows where all would be too many.
    """

    def __init__(self) -> None:
        self._overlap: NDArray[np.float64] | None = None
        self._parts: list[SparseCoupling] = []
        self._every = 1
        self._rows = 0
        self._entries = 0
        self._weight = 0.0

    def add(self, part: Coupling) -> None:
        """Add that of further rows."""
        if not isinstance(part, SparseCoupling):
            overlap = part.matrix(most_rows=np.iinfo(np.int64).max)
            self._overlap = overlap if self._overlap is None else self._overlap + overlap
            return
        self._parts.append(_some_rows(part, -self._rows % self._every, self._every))
        self._rows += len(part.weight)
        self._weight += float(part.weight.sum())
        self._entries += self._parts[-1].large.nnz
        while self._entries > MOST_LARGE_ENTRIES and len(self._parts[0].weight) > 1:
            self._every *= 2
            self._parts = [_some_rows(self._joint(), 0, 2)]
            self._entries = self._parts[0].large.nnz

    def result(self) -> Coupling:
        """Return that of all rows."""
        if self._overlap is not None:
            return DenseCoupling(self._overlap)
        joint = self._joint()
        return replace(joint, weight=joint.weight * (self._weight / (joint.weight.sum() or 1.0)))

    def _joint(self) -> SparseCoupling:
        """Return that of the kept rows, with the masses of all."""
        loose = [part.loose_mass for part in self._parts if part.loose_mass is not None]
        return SparseCoupling(
            large=sparse.vstack([part.large for part in self._parts], "csr"),
            weight=np.concatenate([part.weight for part in self._parts]),
            column_mass=np.sum([part.column_mass for part in self._parts], axis=0),
            loose_mass=np.sum(loose, axis=0) if loose else None,
        )


def _some_rows(coupling: SparseCoupling, first: int, every: int) -> SparseCoupling:
    """Return the coupling with each `every`-th row alone, of the weight that it has."""
    if every == 1:
        return coupling
    rows = slice(first, None, every)
    return replace(coupling, large=coupling.large[rows], weight=coupling.weight[rows])


@dataclass(frozen=True, eq=False)
class SolvedCoupling:
    """W of which only the Newton direction is known, that of the `System` of its row pass."""

    direction: Vector

    def solve(
        self, free: Indices, diagonal: Vector, gradient: Vector, epsilon: float, longest: float
    ) -> Vector:
        """Return the direction, shortened where `longest` has become less since."""
        direction = self.direction[free]
        length = np.abs(direction).max()
        return direction * (longest / length) if length > longest else direction

    def matrix(self, most_rows: int) -> NDArray[np.float64]:
        """Refuse: a pass without a `System` brings W."""
        raise NotImplementedError(
            "only the direction is known; make the pass with a system that is not whole"
        )


def _conjugate_gradients(
    multiply: Callable[[Vector], Vector], gradient: Vector, diagonal: Vector, longest: float
) -> Vector:
    """Solve a symmetric system roughly; any number of steps gives a direction of ascent.

    Stops where rounding hides the curvature. A direction that is too long is for damping to
    shorten: one cut off on the way lacks what is slow to converge, which matters most where steps
    are long.
    """
    direction = np.zeros_like(gradient)
    residual = gradient.copy()
    conditioned = residual / diagonal
    search, size = conditioned.copy(), residual @ conditioned
    goal = CG_ACCURACY * np.linalg.norm(gradient)
    for _ in range(CG_STEPS):
        image = multiply(search)
        curvature = search @ image
        if not curvature > 0.0:
            break
        step = size / curvature
        direction += step * search
        residual -= step * image
        is_found = np.linalg.norm(residual) <= goal
        if is_found or np.abs(direction).max() > FAR_TOO_LONG * longest:
            break
        conditioned = residual / diagonal
        size, previous = residual @ conditioned, size
        search = conditioned + (size / previous) * search
    if not direction.any() and gradient.any():
        direction = search * (longest / np.abs(search).max())
    return direction
