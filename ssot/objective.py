"""The five terms of the objective, written once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ssot.arrays import Vector
from ssot.kernels.protocol import PlanSums
from ssot.problem import Problem


@dataclass(frozen=True)
class Objective:
    """The objective of a plan by term, each with its weight and sign; `total` is their sum.

    Attributes
    ----------
    transport : float
        ``<C, Q>``.
    semantic : float
        ``-semantic_weight <W, Q Q^T>``, negative where neighbours agree.
    class_size : float
        ``sum_j kl_weight_j KL_j(Q^T 1 || rho prior)`` over the classes of finite strength; for the
        others the certificate's column residual says how well their sizes are met.
    plan_entropy : float
        ``epsilon sum Q log Q``.
    slack_entropy : float
        ``epsilon sum xi log xi`` of the mass left in the virtual cluster, 0 without that entropy.
    """

    transport: float
    semantic: float
    class_size: float
    plan_entropy: float
    slack_entropy: float

    @property
    def total(self) -> float:
        """Sum of the five terms, the value that is minimised."""
        return sum(self.terms)

    def __float__(self) -> float:
        """Return the total."""
        return self.total

    @property
    def scale(self) -> float:
        """Sum of the magnitudes of the terms, against which rounding errors are small."""
        return sum(map(abs, self.terms))

    @property
    def terms(self) -> tuple[float, ...]:
        """The five terms, in the order of the attributes."""
        return (
            self.transport,
            self.semantic,
            self.class_size,
            self.plan_entropy,
            self.slack_entropy,
        )


def evaluate(problem: Problem, sums: PlanSums) -> Objective:
    """Evaluate the objective of a plan from its sums."""
    slack_entropy = sums.slack_entropy if problem.slack_entropy else 0.0
    return Objective(
        transport=sums.transport,
        semantic=-problem.semantic_weight * sums.semantic,
        class_size=_class_size_term(problem, sums.column_mass[:-1]),
        plan_entropy=problem.epsilon * sums.plan_entropy,
        slack_entropy=problem.epsilon * slack_entropy,
    )


def _class_size_term(problem: Problem, class_mass: Vector) -> float:
    soft = np.isfinite(problem.kl_weight) & (problem.prior > 0)
    wanted = problem.rho * problem.prior
    return float(problem.kl_weight[soft] @ kl_divergence(class_mass[soft], wanted[soft]))


def kl_divergence(mass: Vector, target: Vector, discount: Vector | float = 0.0) -> Vector:
    """Return ``mass log(mass / r) - mass + r`` for ``r = target exp(-discount)``.

    Without cancellation where mass and r agree, and finite where r underflows.
    """
    discounted = target * np.exp(-np.asarray(discount))
    log_ratio = np.log(mass / target, out=np.zeros_like(mass), where=mass > 0) + discount
    divergence: Vector = np.where(mass > 0, mass * log_ratio, 0.0) - mass + discounted
    near = np.abs(mass - discounted) < 1e-4 * discounted
    excess = mass[near] / discounted[near] - 1.0
    divergence[near] = discounted[near] * excess**2 * (0.5 - excess / 6.0)
    return divergence
