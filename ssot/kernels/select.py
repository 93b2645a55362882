"""Choose the backend that solves a problem."""

from __future__ import annotations

from importlib.util import find_spec

from ssot.kernels.numpy import NumpyKernel
from ssot.kernels.protocol import Kernel
from ssot.problem import Problem

BACKENDS = ("auto", "numba", "numpy")


def make_kernel(problem: Problem, backend: str) -> Kernel:
    """Return the kernel of the named backend, bound to the problem's arrays.

    Raises
    ------
    ValueError
        If `backend` is not one of `BACKENDS`.
    RuntimeError
        If the backend cannot be used here.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}")
    obstacle = None if backend == "numpy" else _obstacle_to_numba()
    if backend == "numba" and obstacle is not None:
        raise RuntimeError(f"backend='numba' {obstacle}; use backend='auto' or 'numpy'")
    smallest, largest = problem.cost_range
    bound_to = (
        problem.cost,
        problem.sample_weight,
        problem.graph,
        problem.semantic_weight,
        max(smallest, 0.0) + min(largest, 0.0),
    )
    if backend == "numpy" or obstacle is not None:
        return NumpyKernel(*bound_to)
    from ssot.kernels.numba import NumbaKernel

    return NumbaKernel(*bound_to)


def _obstacle_to_numba() -> str | None:
    if find_spec("numba") is None:
        return "needs Numba: install the package with its numba extra"
    from ssot.kernels.numba import is_forked

    if is_forked():
        return "cannot be used in a process forked from one that has used it"
    return None
