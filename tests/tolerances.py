"""The one table of tolerances, for each backend and dtype."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tolerance:
    """What a test may ask of a backend in a dtype.

    `solve` is the `tol` passed to the solver, `plan` the L1 distance allowed between plans (of
    total mass at most 1), `value` the distance allowed between objective values of size 1.
    """

    solve: float
    plan: float
    value: float


TOLERANCES = {
    ("numba", "float64"): Tolerance(solve=1e-10, plan=1e-9, value=1e-10),
    ("numba", "float32"): Tolerance(solve=1e-6, plan=1e-4, value=1e-6),
    ("numpy", "float64"): Tolerance(solve=1e-10, plan=1e-9, value=1e-10),
    ("numpy", "float32"): Tolerance(solve=1e-6, plan=1e-4, value=1e-6),
    ("torch", "float64"): Tolerance(solve=1e-10, plan=1e-9, value=1e-10),
    ("torch", "float32"): Tolerance(solve=1e-6, plan=1e-4, value=1e-6),
}


@dataclass(frozen=True)
class Setting:
    """A backend and dtype with their tolerances."""

    backend: str
    dtype: np.dtype
    tolerance: Tolerance


SETTINGS = [
    Setting(backend, np.dtype(dtype), tolerance)
    for (backend, dtype), tolerance in TOLERANCES.items()
]
