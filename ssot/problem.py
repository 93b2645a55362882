"""What to solve: the problem's data, and every check of the input with its message."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ssot.adjacency import GraphLike, SymmetricGraph, symmetric_graph
from ssot.arrays import HOST, Array, Place, Vector, isolated, namespace, to_number, to_place
from ssot.checks import (
    class_strengths,
    common_place,
    distribution,
    first_true,
    masses,
    positive_number,
    semantic_strength,
    switch,
    transported_mass,
)
from ssot.ranks import Ranks, ranks_of
from ssot.rows import RowFacts, Totals, WeightSums, totals_of
from ssot.streaming.cost import (
    Cost,
    StreamedCost,
    mask_digest,
    outline_of,
    read_cost,
    row_blocks,
)
from ssot.streaming.source import RowBlocks, peeked


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
    cost : (N, K) array or RowBlocks, optional
        Cost :math:`C` of giving sample i to class j, in any unit; ``-log softmax(logits)`` in
        clustering. ``inf`` forbids a pair. float64 and float32 are computed as such, shorter
        ones in float32, integers in float64. Exactly one of `cost` and `logits` must be given.
    graph : sparse or dense (N, N) array, or (indices, weights), optional
        Semantic graph :math:`S`; only :math:`W = (S + S^T) / 2` matters, and is what the attribute
        holds. A SciPy sparse array, a sparse tensor of any layout, a dense array or tensor, or two
        (N, k) arrays or tensors: the neighbours of each sample and their weights.
    logits : (N, K) array or RowBlocks, optional
        In place of `cost`. ``-inf`` masks a class: its plan is 0.
    rho : float
        Transported mass in (0, 1]: the fraction of the samples that is labelled. In training it
        is ramped from 0.1 to 1 (`ssot.sigmoid_ramp`). Default 1.
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
    group : torch.distributed.ProcessGroup, optional
        The processes over which the rows are spread; see `solve`. Default this process alone.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what was given and how to fix it.

    Attributes
    ----------
    place : Place
        The library and device of the caller's arrays, which results are returned in.
    ranks : Ranks
        The processes that hold the rows; the arrays over samples are those of this one's rows.
    totals : Totals
        What the rows of all of them come to.
    reachable : (K,) array of bool
        Whether some sample with mass may join class j: False where all costs are inf.

    References
    ----------
    Zhang, Ren and He, "SP2OT: Semantic-Regularized Progressive Partial Optimal Transport for
    Imbalanced Clustering", arXiv 2404.03446.

    Benamou, Carlier, Cuturi, Nenna and Peyré, "Iterative Bregman Projections for Regularized
    Transportation Problems", SIAM J. Sci. Comput. 37(2), 2015, proposition 5: partial transport
    without entropy of the slack.
    """

    cost: Cost
    graph: SymmetricGraph | None
    rho: float
    epsilon: float
    kl_weight: Vector
    semantic_weight: float
    prior: Vector
    sample_weight: Array
    slack_entropy: bool
    place: Place
    ranks: Ranks
    totals: Totals
    reachable: NDArray[np.bool_]

    def __init__(
        self,
        cost: ArrayLike | RowBlocks | None = None,
        graph: GraphLike | None = None,
        *,
        logits: ArrayLike | RowBlocks | None = None,
        rho: ArrayLike = 1.0,
        epsilon: ArrayLike = 0.1,
        kl_weight: ArrayLike = 1.0,
        semantic_weight: ArrayLike | None = None,
        prior: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        slack_entropy: bool = True,
        group: Any = None,
    ) -> None:
        ranks = ranks_of(group)

        def find() -> tuple[dict[str, Any], RowFacts]:
            return _own_rows(
                cost,
                graph,
                logits=logits,
                rho=rho,
                epsilon=epsilon,
                kl_weight=kl_weight,
                semantic_weight=semantic_weight,
                prior=prior,
                sample_weight=sample_weight,
                slack_entropy=slack_entropy,
                fewest=int(ranks.size == 1),
            )

        parts, facts = ranks.share(find)
        totals, weight = totals_of(facts), parts.pop("weight")
        place, costs = parts["place"], parts["cost"]
        with isolated(place):
            outline = outline_of(costs)
            w = None if graph is None else symmetric_graph(graph, outline, ranks)
            parts.update(
                ranks=ranks,
                totals=totals,
                graph=w,
                semantic_weight=semantic_strength(semantic_weight, w, outline, totals.samples),
                sample_weight=to_place(np.full(len(costs), 1.0 / totals.samples), place)
                if weight is None
                else weight / totals.given_weight,
            )
        for name, value in parts.items():
            object.__setattr__(self, name, value)
        with isolated(place):
            rooms = _rooms(self)
            reachable = np.logical_or.reduce([room.reached for room in rooms])
            object.__setattr__(self, "reachable", reachable)
            _require_feasible(self, rooms)

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

    @property
    def is_streamed(self) -> bool:
        """Whether the cost is read block by block, and is a `StreamedCost` here."""
        return isinstance(self.cost, StreamedCost)

    def has_constraints_of(self, other: Problem) -> bool:
        """Whether a plan that is feasible for `other` is feasible here: same masses, same masks."""
        xp = namespace(self.sample_weight)
        is_hard = np.isinf(self.kl_weight)
        return (
            self.rho == other.rho
            and np.array_equal(is_hard, np.isinf(other.kl_weight))
            and np.array_equal(self.prior[is_hard], other.prior[is_hard])
            and np.array_equal(self.prior > 0, other.prior > 0)
            and self.totals.forbids_pairs == other.totals.forbids_pairs
            and bool(xp.all(self.sample_weight == to_place(other.sample_weight, self.place)))
            and (not self.totals.forbids_pairs or self._has_mask_of(other))
        )

    def _has_mask_of(self, other: Problem) -> bool:
        if self.is_streamed or other.is_streamed:
            return mask_digest(self.cost) == mask_digest(other.cost)
        xp = namespace(self.cost)
        return bool(xp.all(xp.isinf(self.cost) == xp.isinf(to_place(other.cost, self.place))))


def _own_rows(
    cost: ArrayLike | RowBlocks | None,
    graph: GraphLike | None,
    *,
    logits: ArrayLike | RowBlocks | None,
    rho: ArrayLike,
    epsilon: ArrayLike,
    kl_weight: ArrayLike,
    semantic_weight: ArrayLike | None,
    prior: ArrayLike | None,
    sample_weight: ArrayLike | None,
    slack_entropy: bool,
    fewest: int,
) -> tuple[dict[str, Any], RowFacts]:
    """Check the arguments of one rank; return parts of its problem, and what others must know."""
    place = common_place(
        cost=peeked(cost),
        logits=peeked(logits),
        graph=graph,
        kl_weight=kl_weight,
        prior=prior,
        sample_weight=sample_weight,
    )
    with isolated(place):
        costs, extent = read_cost(cost, logits, place, fewest=fewest)
        samples, classes = costs.shape
        weight = sample_weight
        if weight is not None:
            weight = masses(weight, samples, "sample_weight", place)
        smoothing = positive_number(epsilon, "epsilon")
        settings = {
            "rho": transported_mass(rho),
            "epsilon": smoothing,
            "kl_weight": class_strengths(kl_weight, classes, smoothing),
            "prior": distribution(prior, classes, "prior"),
            "slack_entropy": switch(slack_entropy, "slack_entropy"),
        }
        strength = semantic_weight
        if strength is not None:
            strength = to_number(strength, "semantic_weight")
        return {"cost": costs, "weight": weight, "place": place, **settings}, RowFacts(
            shape=(samples, classes),
            dtype=str(costs.dtype),
            is_streamed=isinstance(costs, StreamedCost),
            extent=extent,
            weight=None if weight is None else WeightSums.of(weight),
            settings={**settings, "graph": graph is not None, "semantic_weight": strength},
        )


class _Room(NamedTuple):
    """What the masks of one rank's rows leave room for.

    Attributes
    ----------
    reached : (K,) array of bool
        Whether some sample with mass may join class j.
    lost_mass : float
        Of the samples that may join no class with a share.
    lost : int
        How many of these have mass.
    first_lost : int
        The row of the first one.
    """

    reached: NDArray[np.bool_]
    lost_mass: float
    lost: int
    first_lost: int


def _rooms(problem: Problem) -> list[_Room]:
    """Return what there is room for on each rank, from one reading of a cost that has inf."""
    classes = problem.cost.shape[1]
    if not problem.totals.forbids_pairs:
        return [_Room(np.ones(classes, dtype=bool), 0.0, 0, 0)]

    def find() -> tuple[None, _Room]:
        weight = problem.sample_weight
        xp = namespace(weight)
        has_share = to_place(problem.prior > 0, problem.place)
        reached, is_lost = np.zeros(classes, dtype=bool), weight > 0
        for rows, cost in row_blocks(problem.cost):
            is_allowed = xp.isfinite(cost) & (weight[rows] > 0)[:, None]
            reached |= to_place(xp.any(is_allowed, axis=0), HOST)
            is_lost[rows] &= ~xp.any(is_allowed & has_share, axis=1)
        mass, count = float(xp.sum(xp.where(is_lost, weight, 0.0))), int(xp.sum(is_lost))
        return None, _Room(reached, mass, count, first_true(is_lost) if count else 0)

    return problem.ranks.share(find)[1]


def _require_feasible(problem: Problem, rooms: list[_Room]) -> None:
    """Refuse masks that leave no room for the required masses."""
    stranded = ~problem.reachable & np.isinf(problem.kl_weight) & (problem.prior > 0)
    if stranded.any():
        raise ValueError(
            f"cost forbids class {int(np.argmax(stranded))} to every sample, but kl_weight = inf "
            "requires its share; set its prior to 0 or its kl_weight to a finite number"
        )
    if problem.reachable.any() and not (problem.reachable & (problem.prior > 0)).any():
        raise ValueError("prior is 0 for every class that cost allows; give one of them a share")
    available = 1.0 - math.fsum(room.lost_mass for room in rooms)
    count = sum(room.lost for room in rooms)
    if count and (problem.rho == 1 or available < problem.rho):
        rank, first = next((i, room.first_lost) for i, room in enumerate(rooms) if room.lost)
        place = f"row {first}" + (f" of rank {rank}" if problem.ranks.size > 1 else "")
        raise ValueError(
            f"cost forbids every class with a share to {count} samples, first in {place}, so that "
            f"only {available:.6g} of the mass can be labelled, but rho = {problem.rho}; lower rho "
            "or drop those samples"
        )
