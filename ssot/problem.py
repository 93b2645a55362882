"""What to solve: the problem's data, and every check of the input with its message."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.special import xlogy

from ssot.adjacency import GraphLike, symmetric_graph
from ssot.arrays import LARGEST, Library, largest_magnitude, library_of, to_number, to_numpy

FloatArray: TypeAlias = NDArray[np.floating[Any]]
Vector: TypeAlias = NDArray[np.float64]
PUBLISHED_SEMANTIC_STRENGTH = 0.2
"""Semantic weight for each sample: the published 1000 at N = 5,120, carried to every N."""

ROUNDING = 1e-6
"""How far the sum of `prior` or `sample_weight` may be from 1 and still count as rounding."""

HARD = 1e15
"""Class strength, in units of epsilon, beyond which rounding hides the difference from inf."""

BLOCK_ENTRIES = 1 << 16
"""Entries of a block of rows that stays in cache."""

FEW_ROUNDINGS = 1e-9
"""How far above 1 a computed `rho` may be and still mean 1."""


@dataclass(frozen=True, eq=False, init=False, repr=False)
class Problem:
    r"""A semantic-regularised progressive partial optimal-transport problem, checked and frozen.

    .. math::
        \min_{Q \ge 0} \langle C, Q \rangle - \lambda_s \langle S, Q Q^T \rangle
        + \sum_j \lambda_j \mathrm{KL}_j(Q^T 1 \,\|\, \rho \beta)
        + \varepsilon \Big[ \sum_{ij} Q_{ij} \log Q_{ij} + \sum_i \xi_i \log \xi_i \Big]
        \quad \text{with } \xi = \alpha - Q 1 \ge 0, \; \sum_{ij} Q_{ij} = \rho,

    where :math:`\mathrm{KL}_j(c \| r) = c_j \log(c_j / r_j) - c_j + r_j`. After construction every
    attribute is a NumPy value in the form described below, whatever was passed.

    Parameters
    ----------
    cost : (N, K) array, optional
        Cost :math:`C` of giving sample i to class j, in any unit; ``-log softmax(logits)`` in
        clustering. ``inf`` forbids a pair. float64 and float32 are computed as such, float16 in
        float32, integers in float64. Exactly one of `cost` and `logits` must be given.
    graph : sparse or dense (N, N) array, or (indices, weights), optional
        Semantic graph :math:`S`; only :math:`W = (S + S^T) / 2` matters. A SciPy sparse array, a
        dense array, or two (N, k) arrays: the neighbours of each sample and their weights.
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
    library : {"numpy", "torch"}
        The library that the caller's arrays came from, and that results are returned in.

    References
    ----------
    Zhang, Ren and He, "SP2OT: Semantic-Regularized Progressive Partial Optimal Transport for
    Imbalanced Clustering", arXiv 2404.03446.
    """

    cost: FloatArray
    common_offset: float
    forbids_pairs: bool
    graph: sparse.csr_array | None
    rho: float
    epsilon: float
    kl_weight: Vector
    semantic_weight: float
    prior: Vector
    sample_weight: Vector
    library: Library

    def __init__(
        self,
        cost: ArrayLike | None = None,
        graph: GraphLike | None = None,
        *,
        logits: ArrayLike | None = None,
        rho: float = 1.0,
        epsilon: float = 0.1,
        kl_weight: ArrayLike = 1.0,
        semantic_weight: float | None = None,
        prior: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> None:
        library = _common_library(
            cost=cost,
            logits=logits,
            graph=graph,
            kl_weight=kl_weight,
            prior=prior,
            sample_weight=sample_weight,
        )
        costs, common_offset, forbids_pairs = checked_cost(cost, logits)
        samples, classes = costs.shape
        w = None if graph is None else symmetric_graph(graph, samples, costs.dtype)
        smoothing = _positive_number(epsilon, "epsilon")
        checked = {
            "cost": costs,
            "common_offset": common_offset,
            "forbids_pairs": forbids_pairs,
            "graph": w,
            "rho": _transported_mass(rho),
            "epsilon": smoothing,
            "kl_weight": _class_strengths(kl_weight, classes, smoothing),
            "semantic_weight": _semantic_weight(semantic_weight, w, samples),
            "prior": _distribution(prior, classes, "prior"),
            "sample_weight": _distribution(sample_weight, samples, "sample_weight"),
            "library": library,
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        _require_feasible(self)

    def __repr__(self) -> str:
        samples, classes = self.cost.shape
        return (
            f"Problem(samples={samples}, classes={classes}, dtype={self.cost.dtype}, "
            f"rho={self.rho:g}, epsilon={self.epsilon:g}, semantic_weight={self.semantic_weight:g})"
        )

    @property
    def has_semantics(self) -> bool:
        """Whether the graph takes part in the problem."""
        return self.graph is not None and self.semantic_weight > 0

    def has_constraints_of(self, other: Problem) -> bool:
        """Whether a plan that is feasible for `other` is feasible here: same masses, same masks."""
        is_hard = np.isinf(self.kl_weight)
        return (
            self.rho == other.rho
            and np.array_equal(self.sample_weight, other.sample_weight)
            and np.array_equal(is_hard, np.isinf(other.kl_weight))
            and np.array_equal(self.prior[is_hard], other.prior[is_hard])
            and np.array_equal(self.prior > 0, other.prior > 0)
            and self.forbids_pairs == other.forbids_pairs
            and (
                not self.forbids_pairs or np.array_equal(np.isinf(self.cost), np.isinf(other.cost))
            )
        )

    @cached_property
    def weight_entropy(self) -> float:
        """``sum alpha log alpha``, where 0 log 0 is 0."""
        return float(xlogy(self.sample_weight, self.sample_weight).sum())

    @cached_property
    def reachable(self) -> NDArray[np.bool_]:
        """Whether some sample with mass may join class j, (K,): False where all costs are inf."""
        if not self.forbids_pairs:
            return np.ones(self.cost.shape[1], dtype=bool)
        has_mass = (self.sample_weight > 0)[:, None]
        cheapest = self.cost.min(axis=0, where=has_mass, initial=np.inf)
        return np.asarray(np.isfinite(cheapest))


def checked_cost(
    cost: ArrayLike | None, logits: ArrayLike | None
) -> tuple[FloatArray, float, bool]:
    """Return the checked, C-contiguous N x K cost, ``-log softmax(logits)`` where these are given.

    Also the common offset of its entries, and whether some are inf; see `Problem`.
    """
    if (cost is None) == (logits is None):
        given = "neither" if cost is None else "both"
        raise ValueError(f"exactly one of cost and logits must be given, got {given}")
    name, allowed_infinity = ("logits", -np.inf) if cost is None else ("cost", np.inf)
    array = to_numpy(logits if cost is None else cost, name)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(
            f"{name} must be a two-dimensional array (samples, classes) with at least one of each, "
            f"got shape {array.shape}"
        )
    array = np.ascontiguousarray(array, _computing_dtype(array.dtype))
    smallest, largest = float(array.min()), float(array.max())
    is_finite = math.isfinite(smallest) and math.isfinite(largest)
    if not is_finite:
        smallest, largest = _check_entries(array, name, allowed_infinity)
    limit = largest_magnitude(array.dtype)
    if max(-smallest, largest) > limit:
        raise ValueError(
            f"{name} has finite entries above {limit:.0e}, where sums of {array.dtype} overflow; "
            "divide cost, epsilon, kl_weight and semantic_weight by a common factor"
        )
    if name == "logits":
        return _negative_log_softmax(array), 0.0, not is_finite
    return array, max(smallest, 0.0) + min(largest, 0.0), not is_finite


def _negative_log_softmax(logits: FloatArray) -> FloatArray:
    """Return ``-log softmax`` of each row, by blocks of rows that stay in cache."""
    cost = np.empty_like(logits)
    height = max(1, BLOCK_ENTRIES // logits.shape[1])
    for start in range(0, len(logits), height):
        block = cost[start : start + height]
        given = logits[start : start + height]
        np.subtract(given.max(axis=1, keepdims=True), given, out=block)
        total = np.exp(-block).sum(axis=1, keepdims=True, dtype=np.float64)
        block += np.log(total).astype(block.dtype)
    return cost


def _common_library(**arguments: Any) -> Library:
    libraries = {
        name: library_of(value)
        for name, value in arguments.items()
        if isinstance(value, np.ndarray) or library_of(value) == "torch"
    }
    if len(set(libraries.values())) > 1:
        given = ", ".join(f"{name} from {library}" for name, library in libraries.items())
        raise TypeError(f"all arrays must come from one library, got {given}; convert one of them")
    return next(iter(libraries.values()), "numpy")


def _computing_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    is_single = dtype.kind == "f" and dtype.itemsize <= np.float32().itemsize
    return np.dtype(np.float32 if is_single else np.float64)


def _check_entries(array: FloatArray, name: str, allowed_infinity: float) -> tuple[float, float]:
    """Check an array that is not finite, and return its extreme finite entries, 0 without any."""
    if np.isnan(array).any() or (array == -allowed_infinity).any():
        raise ValueError(
            f"{name} must not contain NaN or {-allowed_infinity}, first seen in row "
            f"{int(np.argmax((np.isnan(array) | (array == -allowed_infinity)).any(axis=1)))}; "
            f"only {allowed_infinity} is allowed, for a forbidden pair"
        )
    if name == "logits" and np.isinf(array).all(axis=1).any():
        row = int(np.argmax(np.isinf(array).all(axis=1)))
        raise ValueError(f"logits row {row} masks every class; leave that sample out")
    is_finite = np.isfinite(array)
    smallest = float(array.min(where=is_finite, initial=np.inf))
    largest = float(array.max(where=is_finite, initial=-np.inf))
    return (smallest, largest) if smallest <= largest else (0.0, 0.0)


def _positive_number(value: Any, name: str) -> float:
    number = to_number(value, name)
    if not 1 / LARGEST <= number <= LARGEST:
        raise ValueError(
            f"{name} must be a number above 0, from {1 / LARGEST:.0e} to {LARGEST:.0e}, "
            f"got {number}"
        )
    return number


def _transported_mass(rho: Any) -> float:
    number = to_number(rho, "rho")
    if not 0 < number <= 1 + FEW_ROUNDINGS:
        raise ValueError(f"rho must be in (0, 1], got {number}; it is a fraction of the samples")
    return min(number, 1.0)


def _class_strengths(kl_weight: Any, classes: int, epsilon: float) -> Vector:
    array = to_numpy(kl_weight, "kl_weight").astype(np.float64)
    if array.shape not in ((), (1,), (classes,)):
        raise ValueError(
            f"kl_weight must be a number or one number per class, shape {(classes,)}, "
            f"got shape {array.shape}"
        )
    if not (array >= 1 / LARGEST).all():
        raise ValueError(
            f"kl_weight must be above 0, at least {1 / LARGEST:.0e} (inf for hard class sizes), "
            f"got {array.min()}; to ignore class sizes, use a small value such as 0.01 * epsilon"
        )
    return np.broadcast_to(np.where(array < HARD * epsilon, array, np.inf), classes)


def _semantic_weight(value: Any, w: sparse.csr_array | None, samples: int) -> float:
    if value is None:
        return 0.0 if w is None else PUBLISHED_SEMANTIC_STRENGTH * samples
    number = to_number(value, "semantic_weight")
    if number and w is None:
        raise ValueError(
            f"semantic_weight={number} needs a graph; pass graph=, for example from knn_graph, "
            "or leave semantic_weight out"
        )
    if w is None:
        return 0.0
    strongest_edge = float(np.abs(w.data).max()) if w.nnz else 0.0
    largest = largest_magnitude(w.dtype) / max(1.0, strongest_edge)
    if not 0 <= number <= largest:
        raise ValueError(
            f"semantic_weight must be finite, 0 or above, got {number}; above {largest:.0e} "
            f"sums of {w.dtype} overflow: divide cost, epsilon and kl_weight too, or use float64"
        )
    return number


def _distribution(value: Any, length: int, name: str) -> Vector:
    if value is None:
        return np.full(length, 1.0 / length)
    array = to_numpy(value, name).astype(np.float64)
    if array.shape != (length,):
        raise ValueError(f"{name} must have shape {(length,)} to match cost, got {array.shape}")
    is_valid = np.isfinite(array) & (array >= 0)
    if not is_valid.all():
        first = int(np.argmin(is_valid))
        raise ValueError(
            f"{name} must have finite entries, 0 or above, got {array[first]} at index {first}"
        )
    total = float(array.sum())
    if abs(total - 1) > ROUNDING:
        raise ValueError(f"{name} must sum to 1, got {total:.9g}; pass {name} / {name}.sum()")
    return array / total


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
    is_open = problem.reachable & (problem.prior > 0)
    forbidden = (np.isinf(problem.cost) | ~is_open).all(axis=1) & (problem.sample_weight > 0)
    available = 1.0 - float(problem.sample_weight[forbidden].sum())
    if forbidden.any() and (problem.rho == 1 or available < problem.rho):
        raise ValueError(
            f"cost forbids every class with a share to {int(forbidden.sum())} samples, first in "
            f"row {int(np.argmax(forbidden))}, so that only {available:.6g} of the mass can be "
            f"labelled, but rho = {problem.rho}; lower rho or drop those samples"
        )
