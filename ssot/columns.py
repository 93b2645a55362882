"""The column side of the problem: K clusters and the virtual one, K + 1 columns of one kind."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import exprel

from ssot.arrays import Vector
from ssot.objective import kl_divergence
from ssot.problem import Problem

SHIFT_STEPS = 50
"""Newton steps allowed for a one-dimensional convex equation that needs one to ten."""


@dataclass(frozen=True, eq=False)
class Columns:
    """The open columns of a problem, each asked for a mass ``target`` with a given strength.

    A column of strength ``lambda_j`` and price ``g_j`` demands the mass
    ``target_j exp(-g_j / lambda_j)``. Storing the inverse strength makes a hard column (``lambda =
    inf``) an ordinary one whose demand does not react to its price. The virtual cluster is the last
    column: hard, of target ``1 - rho``. A column without target, or that no sample may join, is
    closed: it carries no mass, its price is ``-inf``, and it takes no part in anything here. So
    ``rho = 1`` merely closes the virtual column.

    Attributes
    ----------
    is_open : (K + 1,) array of bool
        Which columns are open; the arrays below have one entry for each open column.
    target : array
        ``rho prior_j``, and ``1 - rho``.
    inverse_strength : array
        ``1 / kl_weight_j``, and 0.
    soft_mass : float
        Sum of the targets of all soft columns, open or not.
    stranded_cost : float
        What the classes that no sample may join add to the objective by staying empty.
    slack_entropy : bool
        Whether the slack has an entropy.
    log_samples : float
        ``log N`` without entropy of the slack, else 0. The virtual cluster's price is then that of
        a slack for which rows ask for ``sum_j exp((g_j - g_{K+1} - C_ij) / epsilon) / N``: with any
        other unit than ``1 / N`` it would depend on N, and jump between values of epsilon.
    premium : array
        What a unit of mass is worth beyond the price of its column, at the problem's epsilon: 0,
        but for the virtual cluster ``epsilon (log N - 1)`` without entropy of the slack.
    """

    is_open: NDArray[np.bool_]
    target: Vector
    inverse_strength: Vector
    soft_mass: float
    stranded_cost: float
    slack_entropy: bool
    log_samples: float
    premium: Vector

    @classmethod
    def of(cls, problem: Problem) -> Columns:
        """Return the columns of a problem."""
        target = np.append(problem.rho * problem.prior, 1.0 - problem.rho)
        inverse_strength = np.append(1.0 / problem.kl_weight, 0.0)
        is_open = (target > 0) & np.append(problem.reachable, True)
        soft_mass = float(target[inverse_strength > 0].sum())
        stranded = ~is_open & (target > 0)
        stranded_cost = float((target[stranded] / inverse_strength[stranded]).sum())
        premium, log_samples = np.zeros(len(target)), 0.0
        if not problem.slack_entropy:
            log_samples = math.log(problem.totals.samples)
            premium[-1] = problem.epsilon * (log_samples - 1.0)
        return cls(
            is_open,
            target[is_open],
            inverse_strength[is_open],
            soft_mass,
            stranded_cost,
            problem.slack_entropy,
            log_samples,
            premium[is_open],
        )

    @property
    def has_gauge(self) -> bool:
        """Whether adding a constant to all prices changes nothing: no column is soft."""
        return not self.inverse_strength.any()

    @property
    def gauge(self) -> int | None:
        """The largest column, whose price may stand still, if a constant can be added to all."""
        return int(np.flatnonzero(self.is_open)[self.target.argmax()]) if self.has_gauge else None

    def demand(self, prices: Vector) -> Vector:
        """Return the mass that each column asks for at its price."""
        with np.errstate(over="ignore"):  # of prices whose rounding exceeds `kl_weight`
            demand: Vector = self.target * np.exp(-prices * self.inverse_strength)
        return demand

    def potential(self, prices: Vector) -> float:
        """Return ``sum_j target_j lambda_j (1 - exp(-g_j / lambda_j))``, ``target g`` if hard.

        A closed column adds its limit at an infinite price, ``target_j lambda_j``.
        """
        worth = prices * exprel(-prices * self.inverse_strength)
        return float(self.target @ (worth + self.premium)) + self.stranded_cost

    def duality_gap(self, prices: Vector, mass: Vector) -> float:
        """Return how far the plan of these prices is from the dual value, were it feasible.

        A soft column contributes ``lambda KL(mass || demand)``; a hard one the worth
        ``|g_j (mass - target)|`` of its violation, with prices measured from their mean where only
        their differences count.
        """
        soft = self.inverse_strength > 0
        rate = self.inverse_strength[soft]
        divergence = kl_divergence(mass[soft], self.target[soft], prices[soft] * rate) / rate
        return float(divergence.sum() + np.abs(self._hard_worth(prices, mass)).sum())

    def prices_of(self, mass: Vector, prices: Vector) -> Vector:
        """Return the prices at which soft columns demand the mass they have; others keep theirs."""
        known = (self.inverse_strength > 0) & (mass > 0)
        implied = prices.copy()
        surplus = np.log(self.target[known]) - np.log(mass[known])
        implied[known] = surplus / self.inverse_strength[known]
        return implied

    def shortfall_worth(self, prices: Vector, mass: Vector) -> float:
        """Return what it would add to the objective, to first order, to meet all hard targets."""
        return float(self._hard_worth(prices, mass).sum())

    def _hard_worth(self, prices: Vector, mass: Vector) -> Vector:
        """Return the worth of the mass that each hard column lacks, 0 for soft columns."""
        worth = prices + self.premium
        worth = worth - worth.mean() if self.has_gauge else worth
        lacking: Vector = worth * (self.target - mass)
        return np.where(self.inverse_strength > 0, 0.0, lacking)

    def balance(self, prices: Vector) -> Vector:
        """Add the constant to all prices that makes the demands sum to the mass of the samples.

        Rows do not notice a common constant, so this maximises the dual along it without a row
        pass. It also bounds every demand, so that no exponential can overflow. Where the constant
        is free, the prices get mean 0.
        """
        soft = self.inverse_strength > 0
        if not soft.any():
            return np.asarray(prices - prices.mean())
        rate = self.inverse_strength[soft]
        log_demand = np.log(self.target[soft]) - prices[soft] * rate
        shift = 0.0
        for _ in range(SHIFT_STEPS):
            terms = log_demand - rate * shift
            total = np.logaddexp.reduce(terms)
            step = (total - np.log(self.soft_mass)) / (np.exp(terms - total) @ rate)
            shift += step
            if abs(step) * rate.max() < 4 * np.finfo(np.float64).eps:
                break
        balanced: Vector = prices + shift
        return balanced

    def rescale(self, prices: Vector, mass: Vector, epsilon: float) -> Vector:
        """Return the prices after one sweep of matrix scaling, from the column masses at `prices`.

        Column by column this solves ``demand(g') = mass exp((g' - g) / epsilon)``: the exact
        maximiser of the full dual in that block, so it never lowers the dual. A virtual cluster
        without entropy follows as a block of its own, with the multiplier of each row's mass
        moving along: what the classes then have in total becomes what they should have. A mass of 0
        may have been lost below the range of float32, and counts as the least of that.
        """
        least = np.finfo(np.float32).tiny
        surplus = np.log(self.target) - np.log(np.where(mass > 0, mass, least))
        scaled = (surplus + prices / epsilon) / (self.inverse_strength + 1.0 / epsilon)
        if self.is_open[-1] and not self.slack_entropy:
            total = self.demand(scaled)[:-1].sum()
            scaled[-1] = prices[-1] + epsilon * np.log(total / (1.0 - self.target[-1]))
        return self.balance(scaled)

    def restrict(self, prices: Vector) -> Vector:
        """Return balanced prices of the open columns; one without a finite price gets the mean."""
        opened = prices[self.is_open]
        known = np.isfinite(opened)
        return self.balance(np.where(known, opened, opened[known].mean() if known.any() else 0.0))

    def of_sample(self, every: int) -> Columns:
        """Return the columns for each `every`-th sample, with weights that are scaled up."""
        if self.slack_entropy:
            return self
        return replace(self, log_samples=self.log_samples - math.log(every))

    def kernel_prices(self, prices: Vector, epsilon: float) -> Vector:
        """Return the prices of all K + 1 columns as a kernel takes them, whatever N is."""
        everywhere = self.expand(prices)
        everywhere[-1] += epsilon * self.log_samples
        return everywhere

    def expand(self, values: Vector, otherwise: float = -np.inf) -> Vector:
        """Return values, such as prices, for all K + 1 columns: `otherwise` where one is closed."""
        everywhere = np.full(len(self.is_open), otherwise)
        everywhere[self.is_open] = values
        return everywhere
