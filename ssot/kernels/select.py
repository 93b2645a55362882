"""Choose the backend that solves a problem."""

from __future__ import annotations

from ssot.kernels.numpy import NumpyKernel
from ssot.kernels.protocol import Kernel
from ssot.problem import Problem

BACKENDS = ("auto", "numpy")


def make_kernel(problem: Problem, backend: str) -> Kernel:
    """Return the kernel of the named backend, bound to the problem's arrays.

    Raises
    ------
    ValueError
        If `backend` is not one of `BACKENDS`.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}")
    return NumpyKernel(problem.cost, problem.sample_weight, problem.graph)
