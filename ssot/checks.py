"""The checks of a problem's arguments, each with its message."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ssot.adjacency import SymmetricGraph, largest_weight
from ssot.arrays import (
    HOST,
    LARGEST,
    Array,
    Place,
    Vector,
    checked_array,
    largest_magnitude,
    namespace,
    place_of,
    require_device,
    to_computing_dtype,
    to_number,
    to_numpy,
    to_place,
)

PUBLISHED_SEMANTIC_STRENGTH = 0.2
"""Semantic weight for each sample: the published 1000 at N = 5,120, carried to every N."""

ROUNDING = 1e-5
"""How far the sum of `prior` or `sample_weight` may be from 1 and still count as rounding."""

HARD = 1e15
"""Class strength, in units of epsilon, beyond which rounding hides the difference from inf."""

BLOCK_ENTRIES = 1 << 16
"""Entries of a block of rows that stays in cache."""

FEW_ROUNDINGS = 1e-9
"""How far above 1 a computed `rho` may be and still mean 1."""


class Extent(NamedTuple):
    """The smallest and the largest finite entry of a cost, and whether all are finite.

    ``(0, 0)`` for costs made of logits, which are 0 or above, and where no entry is finite.
    """

    smallest: float
    largest: float
    is_finite: bool


def checked_cost(
    cost: ArrayLike | None, logits: ArrayLike | None, place: Place, *, fewest: int = 1
) -> tuple[Array, Extent]:
    """Return the checked, C-contiguous N x K cost, ``-log softmax(logits)`` where these are given.

    It has at least the `fewest` samples.
    """
    name, given = one_of(cost, logits)
    array = to_place(checked_array(given, name), place)
    if array.ndim != 2 or array.shape[1] == 0 or len(array) < fewest:
        raise ValueError(
            f"{name} must be a two-dimensional array (samples, classes) with at least one of each, "
            f"got shape {tuple(array.shape)}; solve takes one more dimension for several problems"
        )
    array = to_computing_dtype(array)
    if not len(array):
        return array, Extent(math.inf, -math.inf, is_finite=True)
    extent = checked_entries(array, name)
    return (_negative_log_softmax(array) if name == "logits" else array), extent


def one_of(cost: Any, logits: Any) -> tuple[str, Any]:
    """Return the name of the one of the two that is given, and the one itself."""
    if (cost is None) == (logits is None):
        given = "neither" if cost is None else "both"
        raise ValueError(f"exactly one of cost and logits must be given, got {given}")
    return ("logits", logits) if cost is None else ("cost", cost)


def checked_entries(array: Array, name: str, first_row: int = 0) -> Extent:
    """Return the extent of some rows of a cost, or of that of logits; or say what is wrong."""
    xp = namespace(array)
    smallest, largest = xp.stack([xp.min(array), xp.max(array)]).tolist()
    is_finite = math.isfinite(smallest) and math.isfinite(largest)
    if not is_finite:
        smallest, largest = _check_infinities(array, name, first_row)
    limit = largest_magnitude(array)
    if max(-smallest, largest) > limit:
        raise ValueError(
            f"{name} has finite entries above {limit:.0e}, where sums of {array.dtype} overflow; "
            "divide cost, epsilon, kl_weight and semantic_weight by a common factor"
        )
    return Extent(0.0, 0.0, is_finite) if name == "logits" else Extent(smallest, largest, is_finite)


class LogPartition(NamedTuple):
    """The log-sum-exp of each row of logits, as its largest entry and what that leaves out."""

    peak: Array
    rest: Array

    @classmethod
    def of(cls, logits: Array) -> LogPartition:
        """Return that of some logits."""
        xp = namespace(logits)
        peak = xp.max(logits, axis=1)
        rest = xp.empty_like(peak)
        for rows in _cached_rows(logits):
            shares = xp.exp(logits[rows] - peak[rows, None])
            rest[rows] = xp.log(xp.sum(shares, axis=1, dtype=xp.float64))
        return cls(peak, rest)

    def of_rows(self, rows: slice) -> LogPartition:
        """Return that of some of the rows."""
        return LogPartition(self.peak[rows], self.rest[rows])

    def cost(self, logits: Array, out: Array) -> Array:
        """Return the cost ``-log softmax(logits)``, written to `out`."""
        for rows in _cached_rows(logits):
            block = out[rows]
            block[:] = self.peak[rows, None]
            block -= logits[rows]
            block += self.rest[rows, None]
        return out


def _negative_log_softmax(logits: Array) -> Array:
    if not isinstance(logits, np.ndarray):
        return logits.log_softmax(dim=1).neg_()
    cost = np.empty_like(logits)
    for rows in _cached_rows(logits):
        LogPartition.of(logits[rows]).cost(logits[rows], cost[rows])
    return cost


def _cached_rows(array: Array) -> Iterator[slice]:
    """Yield the rows of a NumPy array in blocks that stay in cache; those of a tensor at once."""
    height = len(array)
    if isinstance(array, np.ndarray):
        height = max(1, BLOCK_ENTRIES // array.shape[1])
    return (slice(start, start + height) for start in range(0, len(array), height))


def common_place(**arguments: Any) -> Place:
    """Return where the caller's arrays live; lists and SciPy's sparse arrays suit any place."""
    places: list[tuple[str, Place]] = []
    for name, value in arguments.items():
        for part in value if isinstance(value, tuple) else (value,):
            place = place_of(part)
            if place.library == "torch":
                require_device(part, name)
            if place != HOST or isinstance(part, np.ndarray):
                places.append((name, place))
    found = {place for _, place in places}
    if len(found) > 1:
        given = ", ".join(f"{name} from {place}" for name, place in places)
        raise TypeError(
            f"all arrays must come from one library and device, got {given}; convert one of them"
        )
    return next(iter(found), HOST)


def _check_infinities(array: Array, name: str, first_row: int) -> tuple[float, float]:
    """Check an array that is not finite, and return its extreme finite entries, 0 without any."""
    xp = namespace(array)
    allowed_infinity = -np.inf if name == "logits" else np.inf
    is_wrong = xp.any(xp.isnan(array) | (array == -allowed_infinity), axis=1)
    if xp.any(is_wrong):
        raise ValueError(
            f"{name} must not contain NaN or {-allowed_infinity}, first seen in row "
            f"{first_row + first_true(is_wrong)}; only {allowed_infinity} is allowed, for a "
            "forbidden pair"
        )
    is_masked = xp.all(xp.isinf(array), axis=1)
    if name == "logits" and xp.any(is_masked):
        raise ValueError(
            f"logits row {first_row + first_true(is_masked)} masks every class; leave that sample "
            "out"
        )
    is_finite = xp.isfinite(array)
    smallest = float(xp.min(xp.where(is_finite, array, math.inf)))
    largest = float(xp.max(xp.where(is_finite, array, -math.inf)))
    return (smallest, largest) if smallest <= largest else (0.0, 0.0)


def first_true(condition: Array) -> int:
    """Return the index of the first entry that is True."""
    return int(namespace(condition).nonzero(condition)[0][0])


def positive_number(value: Any, name: str) -> float:
    """Return a number above 0."""
    number = to_number(value, name)
    if not 1 / LARGEST <= number <= LARGEST:
        raise ValueError(
            f"{name} must be a number above 0, from {1 / LARGEST:.0e} to {LARGEST:.0e}, "
            f"got {number}"
        )
    return number


def transported_mass(rho: Any, name: str = "rho") -> float:
    """Return rho, in (0, 1]."""
    number = to_number(rho, name)
    if not 0 < number <= 1 + FEW_ROUNDINGS:
        raise ValueError(f"{name} must be in (0, 1], got {number}; it is a fraction of the samples")
    return min(number, 1.0)


def switch(value: Any, name: str) -> bool:
    """Return True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def class_strengths(kl_weight: Any, classes: int, epsilon: float) -> Vector:
    """Return one strength for each class, inf for hard ones."""
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


def semantic_strength(value: Any, w: SymmetricGraph | None, cost: Array, samples: int) -> float:
    """Return the semantic weight, by default the published one for the samples of all ranks."""
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
    largest = largest_magnitude(cost) / max(1.0, largest_weight(w))
    if not 0 <= number <= largest:
        raise ValueError(
            f"semantic_weight must be finite, 0 or above, got {number}; above {largest:.0e} "
            f"sums of {cost.dtype} overflow: divide cost, epsilon and kl_weight too, or use float64"
        )
    return number


def distribution(value: Any, length: int, name: str) -> Vector:
    """Return shares that sum to 1; uniform by default."""
    if value is None:
        return np.full(length, 1.0 / length)
    shares: Vector = masses(value, length, name, HOST)
    return shares / whole(float(shares.sum()), name)


def masses(value: Any, length: int, name: str, place: Place) -> Array:
    """Return numbers of 0 or above, in float64 and in the given place."""
    array = to_place(checked_array(value, name), place)
    xp = namespace(array)
    array = xp.astype(array, xp.float64)
    if tuple(array.shape) != (length,):
        raise ValueError(
            f"{name} must have shape {(length,)} to match cost, got {tuple(array.shape)}"
        )
    is_wrong = ~xp.isfinite(array) | (array < 0)
    if xp.any(is_wrong):
        first = first_true(is_wrong)
        raise ValueError(
            f"{name} must have finite entries, 0 or above, got {array[first]} at index {first}"
        )
    return array


def whole(total: float, name: str) -> float:
    """Return a sum that is 1 but for rounding."""
    if abs(total - 1) > ROUNDING:
        raise ValueError(f"{name} must sum to 1, got {total:.9g}; pass {name} / {name}.sum()")
    return total
