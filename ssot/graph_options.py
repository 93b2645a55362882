"""What `knn_graph` accepts, checked once for all libraries, and in which unit it computes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

Kernel: TypeAlias = Literal["gaussian", "cosine", "binary"]
Method: TypeAlias = Literal["auto", "exact", "approximate"]

NEGLIGIBLE = 1e-30
"""Length, relative to the largest entry of all, below which the cosine kernel sees a zero vector.

Far above the smallest float32, so that dividing by a longer length cannot overflow.
"""


def unit_scale(largest: float, exponents: int) -> float:
    """Return the power of two to divide by, without rounding, so that no square can overflow.

    `largest` is the largest magnitude of all features, and `exponents` what `numpy.finfo` calls
    ``maxexp``.
    """
    limit = exponents - 2
    return math.ldexp(1.0, min(max(math.frexp(largest)[1], -limit), limit))


def check_real(is_real: bool, dtype: Any) -> None:
    """Refuse features of a dtype that does not hold real numbers."""
    if not is_real:
        raise TypeError(f"features must hold real numbers, got dtype {dtype}")


def check_shape(shape: Sequence[int]) -> None:
    """Refuse features that are not samples with coordinates, (N, D)."""
    if len(shape) != 2 or shape[0] < 2 or shape[1] < 1:
        raise ValueError(
            "features must have shape (N, D) with at least 2 samples of 1 feature, "
            f"got shape {tuple(shape)}; features.reshape(len(features), -1) flattens further axes"
        )


def check_finite(exceptions: int, library: str) -> None:
    """Refuse features of which some entries are not finite."""
    if exceptions:
        raise ValueError(
            f"features must be finite, got {exceptions} entries that are NaN or infinite; "
            f"drop those samples or fill the entries with {library}.nan_to_num"
        )


def check_choice(value: Any, choices: Any, name: str) -> None:
    """Refuse all but the listed names."""
    if value not in get_args(choices):
        raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}; got {value!r}")


def check_flag(value: Any, name: str) -> None:
    """Refuse all but True and False."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_integer(value: Any, name: str, smallest: int, largest: int, meaning: str) -> None:
    """Refuse all but the integers of a range; `meaning` says what its end is."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}; pass int({name})")
    if not smallest <= int(value) <= largest:
        raise ValueError(
            f"{name} must be from {smallest} to {largest} ({meaning}), got {value}; "
            f"pass {name}={min(max(smallest, int(value)), largest)}"
        )


def check_bandwidth(bandwidth: Any, kernel: Kernel) -> None:
    """Refuse a bandwidth that is no length, or that the kernel does not have."""
    if kernel != "gaussian":
        raise ValueError(
            f"bandwidth belongs to kernel='gaussian', got {bandwidth!r} with kernel={kernel!r}; "
            "leave bandwidth out"
        )
    if not isinstance(bandwidth, Real) or isinstance(bandwidth, bool):
        raise TypeError(f"bandwidth must be a number or None, got {bandwidth!r}")
    if not 0 < float(bandwidth) < math.inf:
        raise ValueError(
            f"bandwidth must be finite and above 0, got {bandwidth}; "
            "bandwidth=None takes the median distance to the neighbours"
        )
