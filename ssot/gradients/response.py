r"""How the plan of a solved problem responds to its cost, and the adjoint of that.

Row i of the full plan, virtual cluster included, is ``alpha_i P_i`` with
``P_i = softmax((g - [C'_i, 0]) / epsilon)`` and ``C' = C - 2 semantic_weight W Q``; the prices g
make the column masses what the columns demand. With

    A = the row-wise alpha_i (diag(P_i) - P_i P_i^T) / epsilon,    R = diag(demand / kl_weight),
    H = 1^T A 1,    h(T) the solution of (H + R) h = 1^T A T,    Phi(T) = A (T - 1 h(T)),

a change of ``-C'`` by F changes the plan by ``Phi(F)``: Phi is symmetric and positive
semi-definite. For a loss with the gradient V in the plan, the chain rule asks for

    Z = Phi(X),    X = V + 2 semantic_weight W Z.

Where the slack has no entropy, a loose row, one with room, is ``exp((g - g_{K+1} - C'_i) /
epsilon) / N``, and A is on it the Laplacian of a star, ``Q_i (T_i - T_{i,K+1}) / epsilon`` on the
classes. The plan then has a derivative wherever no row is just full.

Without a graph ``X = V``. With one this is the linear system
``(Phi^{-1} - 2 semantic_weight W) Z = V``, symmetric, and definite where the plan is a strict local
minimum: conjugate gradients solve it, preconditioned by Phi.

Every N x K array is in the problem's dtype. Exponents, sums and the (K + 1)-dimensional system are
in float64, formed by blocks of rows; matrices of float32 are not multiplied, so Torch's settings
for the precision of such products have no effect.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from ssot.status import ConvergenceWarning

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
"""Relative residual of the adjoint system at which conjugate gradients stop."""

LARGEST_DRIFT = 10.0
"""True residual, in units of the tolerance, up to which the system counts as solved: rounding
separates it from the residual that the iteration knows."""

NOISE = 16.0
"""Part of a cotangent that may be its rounding, in units of the resolution of its dtype."""

MOST_ITERATIONS = 500
"""Most steps of conjugate gradients: plans on the verge of another one need hundreds."""

CACHED_ENTRIES = 1 << 18
"""Entries of a block of rows in float64 that a CPU works on from its cache."""

DEVICE_ENTRIES = 1 << 22
"""The same elsewhere: enough to hide the start of each operation, few next to the arrays."""


@dataclass(frozen=True, eq=False)
class Solved:
    """A problem with its solution: detached tensors on one device, see `Problem` and `Solution`.

    Attributes
    ----------
    cost, plan : (N, K) tensor
        float32 or float64, the same for both; an infinite cost forbids its pair.
    prices : (K + 1,) tensor
        float64, ``-inf`` for closed columns, the virtual cluster last.
    sample_weight, prior, kl_weight : (N,), (K,) and (K,) tensor
        float64; shares that sum to 1, and ``inf`` for a hard class size.
    rho, epsilon, semantic_weight : float
        The scalars of the problem.
    graph_product : callable or None
        Returns ``W X`` for an (N, K) tensor X, with the symmetrised graph W.
    slack_entropy : bool
        Whether the slack has an entropy.
    """

    cost: Tensor
    plan: Tensor
    prices: Tensor
    sample_weight: Tensor
    prior: Tensor
    kl_weight: Tensor
    rho: float
    epsilon: float
    semantic_weight: float
    graph_product: Callable[[Tensor], Tensor] | None
    slack_entropy: bool = True

    @property
    def target(self) -> Tensor:
        """``[rho prior, 1 - rho]``, (K + 1,)."""
        return pad(self.rho * self.prior, (0, 1), value=1.0 - self.rho)

    @property
    def strength(self) -> Tensor:
        """``[kl_weight, inf]``, (K + 1,)."""
        return pad(self.kl_weight, (0, 1), value=math.inf)

    def product(self, matrix: Tensor) -> Tensor:
        """Return ``W X``, 0 without a graph."""
        if self.graph_product is None:
            return matrix.new_zeros(()).expand_as(matrix)
        return self.graph_product(matrix)


class Adjoint(NamedTuple):
    """How the linear system behind a gradient of the plan was solved.

    Attributes
    ----------
    residual : float
        ``sqrt(<r, Phi(r)>)`` for ``r = V + 2 semantic_weight W Phi(X) - X``, over the same for V,
        measured at the end. What no plan notices, such as a constant in V, does not count in it.
    iterations : int
        Steps of conjugate gradients, 0 without a graph.
    converged : bool
        Whether the residual is small and all curvature positive: the gradient can be trusted.
    is_minimum : bool
        False if a direction of non-positive curvature ended the iteration: the plan is stationary,
        but no strict local minimum, and need not have a derivative.
    """

    residual: float
    iterations: int
    converged: bool
    is_minimum: bool


class Response:
    """The operator Phi at a solution.

    Attributes
    ----------
    solved : Solved
        The solution.
    probability : (N, K + 1) tensor
        P.
    log_partition : (N,) tensor
        The logarithm of what each row of P was divided by.
    demand : (K + 1,) tensor
        The mass that each column asks for at its price.
    """

    def __init__(self, solved: Solved) -> None:
        self.solved = solved
        self.probability, self.log_partition = probabilities(solved)
        demand = solved.target * torch.exp(-solved.prices / solved.strength)
        self.demand = torch.where(solved.prices.isfinite(), demand, 0)
        self._softness = self.demand / solved.strength
        self._weight = (solved.sample_weight / solved.epsilon)[:, None]
        self._root = self._root_of_inverse()

    def __call__(self, matrix: Tensor) -> tuple[Tensor, Tensor, float]:
        """Return ``Phi(T)`` and ``h(T)`` of an (N, K) matrix T, and ``<T, Phi(T)>``.

        The last as a sum of squares, ``<Y, A Y> + h^T R h`` for ``Y = T - 1 h``.
        """
        pull = torch.zeros_like(self.demand)
        for rows, p, weight in self._blocks():
            t = _with_virtual(matrix[rows])
            pull += (weight * p * (t - self._mean(p, t))).sum(dim=0)
        if not self.solved.slack_entropy:
            pull[-1] = -pull[:-1].sum()  # what loose rows take from their slack
        h = self._root @ (self._root.T @ pull)
        energy = self._softness @ h.square()
        image = torch.empty_like(matrix)
        for rows, p, weight in self._blocks():
            y = _with_virtual(matrix[rows]) - h
            y -= self._mean(p, y)
            moved = weight * p * y
            image[rows] = moved[:, :-1]
            energy += (moved * y).sum()
        return image, h, float(energy)

    def size(self, matrix: Tensor) -> float:
        """Return ``sum alpha P T^2 / epsilon``, which ``<T, Phi(T)>`` cannot exceed."""
        total = torch.zeros_like(self.demand[0])
        for rows, p, weight in self._blocks():
            total += (weight * p * _with_virtual(matrix[rows]).square()).sum()
        return float(total)

    def row_gradients(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return how ``<Y, alpha P>`` changes with alpha and epsilon, for ``Y = X - 1 h``.

        That is ``<Y_i, P_i>`` in each row, or ``Y_{i,K+1}`` in a loose one, and
        ``-<A Y, log(alpha P)>``.
        """
        by_weight = torch.empty_like(self.log_partition)
        by_epsilon = torch.zeros_like(h[0])
        for rows, p, weight in self._blocks():
            y = _with_virtual(x[rows]) - h
            mean = self._mean(p, y)
            by_weight[rows] = mean[:, 0]
            mass = (self.solved.epsilon * weight * p).clamp(min=torch.finfo(p.dtype).tiny)
            by_epsilon -= (weight * torch.xlogy(p, mass) * (y - mean)).sum()
        return by_weight, by_epsilon

    def price_of_opening(self, by_weight: Tensor) -> Tensor:
        """Return the limit of the virtual column's h where its mass goes to 0.

        Its first mass comes from the rows in proportion to ``alpha_i exp(-log_partition_i)``, which
        then lack it as if their weights were smaller; without entropy from the first of them alone.
        """
        alpha = self.solved.sample_weight
        log_share = torch.where(alpha > 0, alpha.log() - self.log_partition, -math.inf)
        if not self.solved.slack_entropy:
            return -by_weight[log_share.argmax()]
        return -torch.softmax(log_share, dim=0) @ by_weight

    def _root_of_inverse(self) -> Tensor:
        """Return B with ``B B^T = (H + R)^{-1}``, a pseudo-inverse.

        Rows of P sum to 1, so H is the Laplacian of ``P^T diag(alpha) P / epsilon``: formed from
        the entries off the diagonal, it has no rounding of its large entries in its small
        eigenvalues. Where all columns are hard it is singular along constants, which no plan
        notices. Columns without mass take no part.
        """
        coupling = torch.zeros_like(self.demand.diag())
        for _, p, weight in self._blocks():
            is_loose = self._is_loose(p)
            coupling += p.T @ (weight * p).masked_fill_(is_loose, 0)
            edges = (weight * p).masked_fill_(~is_loose, 0).sum(dim=0)
            coupling[-1] += edges
            coupling[:, -1] += edges
        coupling.fill_diagonal_(0)
        diagonal = coupling.sum(dim=1) + self._softness
        scale = torch.where(diagonal > 0, diagonal.rsqrt(), 0)
        values, vectors = torch.linalg.eigh(scale[:, None] * (diagonal.diag() - coupling) * scale)
        known = values > len(values) * torch.finfo(values.dtype).eps
        root: Tensor = scale[:, None] * vectors[:, known] * values[known].rsqrt()
        return root

    def _is_loose(self, p: Tensor) -> Tensor:
        """Return which rows have room, as a column: only without entropy of the slack."""
        return (p[:, -1:] > 0) & (not self.solved.slack_entropy)

    def _mean(self, p: Tensor, rows: Tensor) -> Tensor:
        """Return ``<P_i, T_i>`` of each row, or ``T_{i,K+1}`` of a loose one, as a column."""
        mean = (p * rows).sum(dim=1, keepdim=True)
        return torch.where(self._is_loose(p), rows[:, -1:], mean)

    def _blocks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield rows: which, their P, and their ``alpha / epsilon``."""
        for rows in row_blocks(self.probability):
            # Rows that rounding to float32 keeps from summing to 1 would respond to a constant.
            p = normalize(self.probability[rows].double(), p=1.0, dim=1)
            yield rows, p, self._weight[rows]


def solve_adjoint(response: Response, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Adjoint]:
    """Return Z, X and h(X) with ``Z = Phi(X)`` and ``X = V + 2 semantic_weight W Z``.

    If non-positive curvature ends the iteration, they are those of the last iterate; before the
    first one ``Z = Phi(V)``, which leaves out how the graph reacts.
    """
    solved = response.solved
    if solved.graph_product is None:
        z, h, _ = response(v)
        return z, v, h, Adjoint(0.0, 0, converged=True, is_minimum=True)
    dual, reference, iterations, is_minimum = _conjugate_gradients(response, v)
    z, h, _ = response(dual)
    x = torch.add(v, solved.product(z), alpha=2 * solved.semantic_weight)
    _, missing, energy = response(x - dual)
    residual = math.sqrt(energy / reference) if reference else 0.0
    converged = is_minimum and residual <= LARGEST_DRIFT * TOLERANCE[v.dtype]
    adjoint = Adjoint(residual, iterations, converged, is_minimum)
    if not converged:
        warnings.warn(f"{_advice(is_minimum)}: {adjoint}", ConvergenceWarning, stacklevel=2)
    return z, x, h + missing, adjoint


def _advice(is_minimum: bool) -> str:
    if is_minimum:
        return "the gradient of the plan is inexact; solve to a smaller tol, or raise epsilon"
    return (
        "the plan is no strict local minimum, and its gradient is not reliable; solve to a smaller "
        "tol, or from another start"
    )


def _conjugate_gradients(response: Response, v: Tensor) -> tuple[Tensor, float, int, bool]:
    """Solve ``(Phi^{-1} - 2 semantic_weight W) Z = V`` for a U with ``Z = Phi(U)``.

    Phi is singular and is never inverted: each direction p comes with an s for which
    ``p = Phi(s)``, by the same recurrence. Also returns the energy that residuals are relative to,
    the number of iterations, and whether all curvature was positive.
    """
    solved, tolerance = response.solved, TOLERANCE[v.dtype]
    residual, u, s = v.clone(), torch.zeros_like(v), v.clone()
    p, _, energy = response(residual)
    # A plan notices differences in V alone: of a V that is all but constant, perhaps the rounding.
    noise = NOISE * torch.finfo(v.dtype).eps
    reference = max(energy, (noise / tolerance) ** 2 * response.size(v))
    iterations, is_minimum = 0, True
    while energy > tolerance**2 * reference and iterations < MOST_ITERATIONS:
        q = torch.add(s, solved.product(p), alpha=-2 * solved.semantic_weight)
        curvature = float(inner(p, q))
        is_minimum = curvature > 0
        if not is_minimum:
            break
        u.add_(s, alpha=energy / curvature)
        residual.sub_(q, alpha=energy / curvature)
        image, _, following = response(residual)
        p.mul_(following / energy).add_(image)
        s.mul_(following / energy).add_(residual)
        energy = following
        iterations += 1
    return (u if iterations else v), reference, iterations, is_minimum


def probabilities(solved: Solved) -> tuple[Tensor, Tensor]:
    """Return P, (N, K + 1), and the logarithm of what each row was divided by, (N,).

    A row of weight 0 that no open column may take is 0, at a logarithm of ``-inf``. Where the slack
    has no entropy, a row with room has that of its brim, ``prices_{K+1} / epsilon + log(N alpha)``.
    """
    samples, classes = solved.cost.shape
    probability = solved.cost.new_empty(samples, classes + 1)
    log_partition = solved.prices.new_empty(samples)
    product = solved.product(solved.plan)
    for rows in row_blocks(probability):
        cost = solved.cost[rows].double() - 2 * solved.semantic_weight * product[rows].double()
        exponent = (solved.prices - pad(cost, (0, 1))) / solved.epsilon
        if not solved.slack_entropy:
            brim = exponent[:, -1] + (samples * solved.sample_weight[rows]).log()
            exponent[:, -1] = -math.inf
        highest = exponent.amax(dim=1, keepdim=True)
        terms = torch.exp(exponent - highest.clamp(min=torch.finfo(highest.dtype).min))
        total = terms.sum(dim=1, keepdim=True)
        probability[rows] = terms / total.clamp(min=1)  # at least 1 but in an empty row
        log_partition[rows] = (highest + total.log())[:, 0]
        if not solved.slack_entropy:
            log_filled = torch.where(log_partition[rows] < brim, log_partition[rows] - brim, 0)
            probability[rows] *= log_filled.exp()[:, None]
            probability[rows, -1] = -log_filled.expm1().to(probability.dtype)
            log_partition[rows] = torch.maximum(log_partition[rows], brim)
    return probability, log_partition


def row_blocks(matrix: Tensor) -> Iterator[slice]:
    """Yield the blocks of rows of a matrix."""
    samples, columns = matrix.shape
    entries = CACHED_ENTRIES if matrix.device.type == "cpu" else DEVICE_ENTRIES
    height = max(1, entries // columns)
    for start in range(0, samples, height):
        yield slice(start, start + height)


def inner(first: Tensor, second: Tensor) -> Tensor:
    """Return the inner product of two matrices, summed in float64."""
    total = torch.zeros((), dtype=torch.float64, device=first.device)
    for rows in row_blocks(first):
        total += (first[rows].double() * second[rows].double()).sum()
    return total


def _with_virtual(rows: Tensor) -> Tensor:
    """Return rows in float64 with a last column of 0."""
    return pad(rows.double(), (0, 1))
