"""Choose the backend that solves a problem."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec

from ssot.adjacency import graph_in
from ssot.arrays import HOST, Array, Place, to_place
from ssot.kernels.numpy import NumpyKernel
from ssot.kernels.protocol import BlockKernel, Bound, Kernel
from ssot.problem import Problem

BACKENDS = ("auto", "numba", "numpy", "torch")

_forked_from_numba = False
"""Whether this process was forked from one that had loaded Numba, whose threads are gone here."""


def _note_fork() -> None:
    global _forked_from_numba  # noqa: PLW0603
    _forked_from_numba = "numba" in sys.modules


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def check_backend(backend: str) -> None:
    """Refuse what is not the name of a backend."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}")


def make_kernel(problem: Problem, backend: str) -> Kernel:
    """Return the kernel of the named backend, bound to the problem's arrays on all ranks."""
    return make_kernels([problem], backend)[0]


def make_kernels(problems: Sequence[Problem], backend: str) -> list[Kernel]:
    """Return the kernels of problems of the same ranks, which take one exchange for all of them.

    Raises
    ------
    ValueError
        If `backend` is not one of `BACKENDS`.
    RuntimeError
        If the backend cannot be used here.
    """
    ranks = problems[0].ranks

    def find() -> tuple[list[Kernel], list[tuple[int, bool]]]:
        kernels = [_own_kernel(problem, backend) for problem in problems]
        return kernels, [(kernel.kept_every or 0, kernel.adds_up) for kernel in kernels]

    kernels, told = ranks.share(find)
    if ranks.size == 1:
        return kernels
    from ssot.distributed import ShardedKernel

    sharded: list[Kernel] = []
    for own, problem, of_ranks in zip(kernels, problems, zip(*told, strict=True), strict=True):
        kept_every, adds_up = zip(*of_ranks, strict=True)
        samples, every = problem.totals.samples, max(kept_every) or None
        sharded.append(ShardedKernel(own, problem, samples, every, sums_there=all(adds_up)))
    return sharded


def _own_kernel(problem: Problem, backend: str) -> Kernel:
    """Return the kernel of this rank's rows."""
    check_backend(backend)
    kind, place = _chosen(problem.place, backend)
    if not problem.is_streamed:
        return kind(_bound(problem, problem.cost, place))
    from ssot.streaming.kernel import StreamingKernel

    on_host = kind if place == HOST else _chosen(HOST, "auto")[0]
    return StreamingKernel(problem.cost, _bound(problem, problem.cost.kept, place), kind, on_host)


def _chosen(place: Place, backend: str) -> tuple[Callable[[Bound], BlockKernel], Place]:
    """Return the kernel of a backend for arrays in a place, and where it computes."""
    is_on_host = place == HOST or place.device.type == "cpu"
    if backend == "torch" or (backend == "auto" and not is_on_host):
        return _torch_kernel(place)
    if not is_on_host:
        raise ValueError(
            f"backend={backend!r} computes on the CPU, but cost is on {place.device}; use "
            "backend='auto' or 'torch', or pass cost.cpu()"
        )
    obstacle = None if backend == "numpy" else _obstacle_to_numba()
    if backend == "numba" and obstacle is not None:
        raise RuntimeError(f"backend='numba' {obstacle}; use backend='auto' or 'numpy'")
    if backend == "numpy" or obstacle is not None:
        return NumpyKernel, HOST
    from ssot.kernels.numba import NumbaKernel

    return NumbaKernel, HOST


def _torch_kernel(place: Place) -> tuple[Callable[[Bound], BlockKernel], Place]:
    """Return the Torch kernel, for the device of the arrays; the CPU for NumPy's."""
    try:
        import torch
    except ImportError as error:
        raise RuntimeError(
            "backend='torch' needs Torch: install the package with its torch extra"
        ) from error
    from ssot.kernels.torch import TorchKernel

    return TorchKernel, Place("torch", torch.device("cpu")) if place == HOST else place


def _bound(problem: Problem, cost: Array, place: Place) -> Bound:
    """Return the problem's arrays, with all of its cost or with some rows, where a kernel is."""
    return Bound(
        cost=to_place(cost, place),
        sample_weight=to_place(problem.sample_weight, place),
        graph=None if problem.graph is None else graph_in(problem.graph, place),
        semantic_weight=problem.semantic_weight,
        shift=problem.totals.common_offset,
        slack_entropy=problem.slack_entropy,
        ranks=problem.ranks,
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
