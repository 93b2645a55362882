"""Choose the backend that solves a problem."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

from ssot.adjacency import graph_in
from ssot.arrays import HOST, Place, to_place
from ssot.kernels.numpy import NumpyKernel
from ssot.kernels.protocol import Bound, Kernel
from ssot.problem import Problem

BACKENDS = ("auto", "numba", "numpy", "torch")

_forked_from_numba = False
"""Whether this process was forked from one that had loaded Numba, whose threads are gone here."""


def _note_fork() -> None:
    global _forked_from_numba  # noqa: PLW0603
    _forked_from_numba = "numba" in sys.modules


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


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
    is_on_host = problem.place == HOST or problem.place.device.type == "cpu"
    if backend == "torch" or (backend == "auto" and not is_on_host):
        return _torch_kernel(problem)
    if not is_on_host:
        raise ValueError(
            f"backend={backend!r} computes on the CPU, but cost is on {problem.place.device}; use "
            "backend='auto' or 'torch', or pass cost.cpu()"
        )
    obstacle = None if backend == "numpy" else _obstacle_to_numba()
    if backend == "numba" and obstacle is not None:
        raise RuntimeError(f"backend='numba' {obstacle}; use backend='auto' or 'numpy'")
    if backend == "numpy" or obstacle is not None:
        return NumpyKernel(_bound(problem, HOST))
    from ssot.kernels.numba import NumbaKernel

    return NumbaKernel(_bound(problem, HOST))


def _torch_kernel(problem: Problem) -> Kernel:
    """Return the Torch kernel on the device of the problem; the CPU for NumPy arrays."""
    try:
        import torch
    except ImportError as error:
        raise RuntimeError(
            "backend='torch' needs Torch: install the package with its torch extra"
        ) from error
    from ssot.kernels.torch import TorchKernel

    place = Place("torch", torch.device("cpu")) if problem.place == HOST else problem.place
    return TorchKernel(_bound(problem, place))


def _bound(problem: Problem, place: Place) -> Bound:
    """Return the problem's arrays in the place of a kernel."""
    return Bound(
        cost=to_place(problem.cost, place),
        sample_weight=to_place(problem.sample_weight, place),
        graph=None if problem.graph is None else graph_in(problem.graph, place),
        semantic_weight=problem.semantic_weight,
        shift=problem.common_offset,
        slack_entropy=problem.slack_entropy,
    )


def _obstacle_to_numba() -> str | None:
    if find_spec("numba") is None:
        return "needs Numba: install the package with its numba extra"
    if _forked_from_numba:
        return "cannot be used in a process forked from one that has loaded Numba"
    try:
        import ssot.kernels.numba  # noqa: F401
    except ImportError as error:
        return f"needs a Numba that can be imported ({error})"
    return None
