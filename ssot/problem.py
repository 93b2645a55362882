"""What to solve: the problem's data, and every check of the input with its message."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ssot.adjacency import GraphLike, SymmetricGraph, symmetric_graph
from ssot.arrays import HOST, Array, Place, Vector, isolated, namespace, to_place
from ssot.checks import (
    checked_cost,
    class_strengths,
    common_place,
    distribution,
    first_true,
    positive_number,
    semantic_strength,
    switch,
    transported_mass,
)


@dataclass(frozen=True, eq=False, init=False, repr=False)
class Problem:
    r"""A semantic-regularised progressive partial optimal-transport problem, checked and frozen.

    .. math::
        \min_{Q \ge 0} \langle C, Q \rangle - \lambda_s \langle S, Q Q^T \rangle
        + \sum_j \lambda_j \mathrm{KL}_j(Q^T 1 \,\|\, \rho \beta)
        + \varepsilon \Big[ \sum_{ij} Q_{ij} \log Q_{ij} + \sum_i \xi_i \log \xi_i \Big]
        \quad \text{with } \xi = \alpha - Q 1 \ge 0, \; \sum_{ij} Q_{ij} = \rho,

    where :math:`\mathrm{KL}_j(c \| r) = c_j \log(c_j / r_j) - c_j + r_j`. After construction
    `cost`, `graph` and `sample_weight` are in the caller's library and on the caller's device, and
    all else is on the host, in the form described below.

    Parameters
    ----------
    cost : (N, K) array, optional
        Cost :math:`C` of giving sample i to class j, in any unit; ``-log softmax(logits)`` in
        clustering. ``inf`` forbids a pair. float64 and float32 are computed as such, shorter
        ones in float32, integers in float64. Exactly one of `cost` and `logits` must be given.
    graph : sparse or dense (N, N) array, or (indices, weights), optional
        Semantic graph :math:`S`; only :math:`W = (S + S^T) / 2` matters, and is what the attribute
        holds. A SciPy sparse array, a sparse tensor of any layout, a dense array or tensor, or two
        (N, k) arrays or tensors: the neighbours of each sample and their weights.
    logits : (N, K) array, optional
        In place of `cost`. ``-inf`` masks a class: its plan is 0.
    rho : float
        Transported mass in (0, 1]: the fraction of the samples that is labelled. In training it
        is ramped from 0.1 to 1 (`ssot.schedule`). Default 1.
    epsilon : float
        Entropic smoothing, in the unit of the cost; 0.01 to 0.2 for log-probabilities.
        Default 0.1 (published).
    kl_weight : float or (K,) array
        Strength :math:`\lambda` that holds class j to its share ``rho * prior[j]``, in the unit of
        the cost; 0.3 to 10, ``inf`` for hard class sizes, which is also what ``1e15 * epsilon`` and
        more mean. Default 1 (published).
    semantic_weight : float, optional
        Strength :math:`\lambda_s` of the graph, in the unit of the cost times N. Default
        ``0.2 * N`` where a graph is given (the published strength at every N), else 0.
    prior : (K,) array, optional
        Class shares :math:`\beta`, summing to 1. Default uniform.
    sample_weight : (N,) array, optional
        Sample masses :math:`\alpha`, summing to 1. Default uniform.
    slack_entropy : bool
        Whether the slack :math:`\xi` has an entropy, as published. With False the last sum is left
        out, as in the entropic partial transport of Benamou et al. and of POT. With a price
        :math:`g_j` for each class and :math:`g_0` for the slack, the mass of row i is then
        :math:`\min(\alpha_i, s_i)` with :math:`s_i = \sum_j e^{(g_j - g_0 - C_{ij}) / \varepsilon}
        / N`, where with the entropy it is :math:`\alpha_i s_i / (s_i + \alpha_i)` for uniform
        weights: sure samples are labelled wholly. At ``rho=1`` there is no slack, and no
        difference. Default True.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what was given and how to fix it.

    Attributes
    ----------
    common_offset : float
        The finite cost nearest to 0 where all have one sign, else 0.
    forbids_pairs : bool
        Whether some cost is inf.
    place : Place
        The library and device of the caller's arrays, which results are returned in.

    References
    ----------
    Zhang, Ren and He, "SP2OT: Semantic-Regularized Progressive Partial Optimal Transport for
    Imbalanced Clustering", arXiv 2404.03446.

    Benamou, Carlier, Cuturi, Nenna and Peyré, "Iterative Bregman Projections for Regularized
    Transportation Problems", SIAM J. Sci. Comput. 37(2), 2015, proposition 5: partial transport
    without entropy of the slack.
    """

    cost: Array
    common_offset: float
    forbids_pairs: bool
    graph: SymmetricGraph | None
    rho: float
    epsilon: float
    kl_weight: Vector
    semantic_weight: float
    prior: Vector
    sample_weight: Array
    slack_entropy: bool
    place: Place

    def __init__(
        self,
        cost: ArrayLike | None = None,
        graph: GraphLike | None = None,
        *,
        logits: ArrayLike | None = None,
        rho: ArrayLike = 1.0,
        epsilon: ArrayLike = 0.1,
        kl_weight: ArrayLike = 1.0,
        semantic_weight: ArrayLike | None = None,
        prior: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        slack_entropy: bool = True,
    ) -> None:
        place = common_place(
            cost=cost,
            logits=logits,
            graph=graph,
            kl_weight=kl_weight,
            prior=prior,
            sample_weight=sample_weight,
        )
        with isolated(place):
            costs, common_offset, forbids_pairs = checked_cost(cost, logits, place)
            samples, classes = costs.shape
            w = None if graph is None else symmetric_graph(graph, costs)
            smoothing = positive_number(epsilon, "epsilon")
            checked = {
                "cost": costs,
                "common_offset": common_offset,
                "forbids_pairs": forbids_pairs,
                "graph": w,
                "rho": transported_mass(rho),
                "epsilon": smoothing,
                "kl_weight": class_strengths(kl_weight, classes, smoothing),
                "semantic_weight": semantic_strength(semantic_weight, w, costs),
                "prior": distribution(prior, classes, "prior", HOST),
                "sample_weight": distribution(sample_weight, samples, "sample_weight", place),
                "slack_entropy": switch(slack_entropy, "slack_entropy"),
                "place": place,
            }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        with isolated(place):
            _require_feasible(self)

    def __repr__(self) -> str:
        samples, classes = self.cost.shape
        return (
            f"Problem(samples={samples}, classes={classes}, {self.cost.dtype}, {self.place}, "
            f"rho={self.rho:g}, epsilon={self.epsilon:g}, semantic_weight={self.semantic_weight:g})"
        )

    @property
    def has_semantics(self) -> bool:
        """Whether the graph takes part in the problem."""
        return self.graph is not None and self.semantic_weight > 0

    def has_constraints_of(self, other: Problem) -> bool:
        """Whether a plan that is feasible for `other` is feasible here: same masses, same masks."""
        xp = namespace(self.cost)
        is_hard = np.isinf(self.kl_weight)
        return (
            self.rho == other.rho
            and np.array_equal(is_hard, np.isinf(other.kl_weight))
            and np.array_equal(self.prior[is_hard], other.prior[is_hard])
            and np.array_equal(self.prior > 0, other.prior > 0)
            and self.forbids_pairs == other.forbids_pairs
            and bool(xp.all(self.sample_weight == to_place(other.sample_weight, self.place)))
            and (
                not self.forbids_pairs
                or bool(xp.all(xp.isinf(self.cost) == xp.isinf(to_place(other.cost, self.place))))
            )
        )

    @cached_property
    def weight_entropy(self) -> float:
        """``sum alpha log alpha``, where 0 log 0 is 0."""
        xp, weight = namespace(self.sample_weight), self.sample_weight
        return float(xp.sum(weight * xp.log(xp.where(weight > 0, weight, 1.0))))

    @cached_property
    def reachable(self) -> NDArray[np.bool_]:
        """Whether some sample with mass may join class j, (K,): False where all costs are inf."""
        if not self.forbids_pairs:
            return np.ones(self.cost.shape[1], dtype=bool)
        xp = namespace(self.cost)
        has_mass = (self.sample_weight > 0)[:, None]
        reachable: NDArray[np.bool_] = to_place(
            xp.any(xp.isfinite(self.cost) & has_mass, axis=0), HOST
        )
        return reachable


def _require_feasible(problem: Problem) -> None:
    """Refuse masks that leave no room for the required masses."""
    stranded = ~problem.reachable & np.isinf(problem.kl_weight) & (problem.prior > 0)
    if stranded.any():
        raise ValueError(
            f"cost forbids class {int(np.argmax(stranded))} to every sample, but kl_weight = inf "
            "requires its share; set its prior to 0 or its kl_weight to a finite number"
        )
    if problem.reachable.any() and not (problem.reachable & (problem.prior > 0)).any():
        raise ValueError("prior is 0 for every class that cost allows; give one of them a share")
    if problem.forbids_pairs:
        _require_allowed_mass(problem)


def _require_allowed_mass(problem: Problem) -> None:
    xp = namespace(problem.cost)
    is_open = to_place(problem.reachable & (problem.prior > 0), problem.place)
    has_mass = problem.sample_weight > 0
    forbidden = xp.all(xp.isinf(problem.cost) | ~is_open, axis=1) & has_mass
    available = 1.0 - float(xp.sum(xp.where(forbidden, problem.sample_weight, 0.0)))
    if xp.any(forbidden) and (problem.rho == 1 or available < problem.rho):
        raise ValueError(
            f"cost forbids every class with a share to {int(xp.sum(forbidden))} samples, first in "
            f"row {first_true(forbidden)}, so that only {available:.6g} of the mass can be "
            f"labelled, but rho = {problem.rho}; lower rho or drop those samples"
        )
