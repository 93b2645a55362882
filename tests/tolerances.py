"""The one table of tolerances, for each backend and dtype."""

from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from ssot.arrays import HOST, Place


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
    ("cuda", "float64"): Tolerance(solve=1e-10, plan=1e-9, value=1e-10),
    ("cuda", "float32"): Tolerance(solve=1e-6, plan=1e-4, value=1e-6),
}


@dataclass(frozen=True)
class Setting:
    """A backend and dtype with their tolerances; "cuda" is Torch on a CUDA device."""

    name: str
    dtype: np.dtype
    tolerance: Tolerance

    def __str__(self) -> str:
        return f"{self.name}-{self.dtype}"

    @property
    def backend(self) -> str:
        return "torch" if self.is_on_device else self.name

    @property
    def is_on_device(self) -> bool:
        return self.name == "cuda"

    @property
    def place(self) -> Place:
        """Where the arrays are that a test gives to the solver."""
        if not self.is_on_device:
            return HOST
        import torch

        return Place("torch", torch.device("cuda", 0))

    @property
    def lacks(self) -> str | None:
        """What this machine lacks to run the setting."""
        if self.backend != "numpy" and find_spec(self.backend) is None:
            return f"{self.backend} is not installed"
        return "there is no CUDA device" if self.is_on_device and not _has_cuda() else None


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


EVERY_SETTING = [
    Setting(name, np.dtype(dtype), tolerance) for (name, dtype), tolerance in TOLERANCES.items()
]

SETTINGS = [setting for setting in EVERY_SETTING if setting.lacks is None]
"""The settings that run here; `test_kernels.py` says which do not, and why."""
