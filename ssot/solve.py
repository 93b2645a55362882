"""Problem in, solution out."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike

from ssot.adjacency import GraphLike
from ssot.arrays import LARGEST, to_number, to_numpy
from ssot.certificate import certify
from ssot.kernels import Plan, make_kernel
from ssot.lockstep import run_alone
from ssot.mm import Limits, Start, minimise
from ssot.problem import Problem
from ssot.solution import Solution
from ssot.status import Progress

Callback: TypeAlias = Callable[[Progress], bool | None]
OnFailure: TypeAlias = Literal["raise", "warn", "return"]


class ConvergenceWarning(UserWarning):
    """A solve ended before its tolerance was met."""


class ConvergenceError(RuntimeError):
    """A solve ended before its tolerance was met, and the caller asked for an exception.

    Attributes
    ----------
    solution : Solution
        The plan so far, with its status and certificate.
    """

    def __init__(self, message: str, solution: Solution) -> None:
        super().__init__(message)
        self.solution = solution


def sp2ot_plan(
    cost: ArrayLike | None = None,
    graph: GraphLike | None = None,
    *,
    on_failure: OnFailure = "warn",
    **options: Any,
) -> Any:
    """Return the SP²OT plan: how much of each sample's mass each class receives.

    The plan alone of `solve`, which documents every argument.

    Returns
    -------
    (N, K) array
        In the library of `cost`: masses that sum to `rho`, row i at most ``sample_weight[i]``. As
        pseudo-labels, divide by the sample weights: ``N * plan`` for uniform ones.

    Examples
    --------
    >>> import numpy as np
    >>> from ssot import sp2ot_plan
    >>> plan = sp2ot_plan(np.array([[0.1, 2.0], [1.5, 0.3], [0.9, 0.8]]), rho=0.5)
    >>> plan.shape, round(float(plan.sum()), 6)
    ((3, 2), 0.5)
    """
    _check_on_failure(on_failure)
    return _settle(solve(cost, graph, on_failure="return", **options), on_failure).plan


def solve(
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
    tol: float = 1e-6,
    max_steps: int = 200,
    max_passes: int = 2000,
    init: Solution | ArrayLike | None = None,
    callback: Callback | None = None,
    on_failure: OnFailure = "warn",
    backend: str = "auto",
) -> Solution:
    """Solve a semantic-regularised progressive partial optimal-transport problem.

    One function for the whole family: ``semantic_weight=0`` is P²OT; with ``rho=1`` that is
    semi-relaxed unbalanced transport, and with ``kl_weight=inf`` too balanced Sinkhorn;
    ``kl_weight=inf`` alone is partial transport.

    Parameters
    ----------
    cost, graph, logits, rho, epsilon, kl_weight, semantic_weight, prior, sample_weight
        The problem; see `Problem` for the formula, shapes, units and ranges.
    tol : float
        Stop when the stationarity gap (in the objective's unit), the column residual and the mass
        error (L1, of a total mass of 1) are at most this. 1e-9 to 1e-4; in float32 not below 1e-6.
        Default 1e-6.
    max_steps : int
        Most majorise-minimise steps. Default 200; 5 to 50 are usual.
    max_passes : int
        Most times that the cost is read, over all steps. Default 2000; 10 to 100 are usual.
    init : Solution or (K + 1,) array, optional
        A solution to start from, or its prices alone, of a problem with the same classes. The plan
        of a solution is used as well where it has the same number of samples: for another batch of
        the same size pass ``solution.prices``.
    callback : callable, optional
        Called with a `Progress` at each outer step; stops the solve by returning True.
    on_failure : {"warn", "raise", "return"}
        What to do when the tolerance is not met: issue a `ConvergenceWarning`, raise a
        `ConvergenceError`, or leave it to the caller to look at ``status``. Default "warn".
    backend : {"auto", "numba", "numpy"}
        What computes. Default "auto": Numba where it is installed, else NumPy. Numba compiles on
        first use, 7 to 15 seconds for each dtype, and keeps the result on disk.

    Returns
    -------
    Solution

    Raises
    ------
    TypeError, ValueError
        Before any work, naming the argument, what was given and how to fix it.
    RuntimeError
        If the backend asked for cannot be used here.
    ConvergenceError
        If the solve fails and `on_failure` is "raise".

    References
    ----------
    SP²OT, arXiv 2404.03446; P²OT, arXiv 2401.09266.
    """
    _check_on_failure(on_failure)
    problem = Problem(
        cost,
        graph,
        logits=logits,
        rho=rho,
        epsilon=epsilon,
        kl_weight=kl_weight,
        semantic_weight=semantic_weight,
        prior=prior,
        sample_weight=sample_weight,
    )
    solution = solve_problem(
        problem,
        tol=tol,
        max_steps=max_steps,
        max_passes=max_passes,
        init=init,
        callback=callback,
        on_failure="return",
        backend=backend,
    )
    return _settle(solution, on_failure)


def solve_problem(
    problem: Problem,
    *,
    tol: float = 1e-6,
    max_steps: int = 200,
    max_passes: int = 2000,
    init: Solution | ArrayLike | None = None,
    callback: Callback | None = None,
    on_failure: OnFailure = "warn",
    backend: str = "auto",
) -> Solution:
    """Solve a `Problem` that is already made and checked; see `solve` for the arguments."""
    began = time.perf_counter()
    _check_on_failure(on_failure)
    _check_options(tol, max_steps, max_passes, callback)
    start = _start(init, problem)
    kernel = make_kernel(problem, backend)
    limits = Limits(tol, max_steps, max_passes)
    outcome = run_alone(minimise(problem, kernel, limits, start, callback))
    certificate = certify(problem, outcome)
    solution = Solution(
        problem=problem,
        objective=outcome.objective,
        status=outcome.status,
        certificate=certificate,
        tol=float(tol),
        backend=kernel.name,
        seconds=time.perf_counter() - began,
        _plan=outcome.plan,
        _prices=outcome.prices,
    )
    return _settle(solution, on_failure)


def _settle(solution: Solution, on_failure: OnFailure) -> Solution:
    """Return a solution, or do what the caller of a public function wants about a failure."""
    if solution.status.is_success or on_failure == "return":
        return solution
    found = solution.certificate
    message = (
        f"{solution.status.advice} (stationarity gap {found.stationarity_gap:.2g}, column residual "
        f"{found.column_residual:.2g}, mass error {found.mass_error:.2g}; "
        f"tol {solution.tol:.2g})"
    )
    if on_failure == "raise":
        raise ConvergenceError(message, solution)
    warnings.warn(message, ConvergenceWarning, stacklevel=3)
    return solution


def _check_on_failure(on_failure: str) -> None:
    if on_failure not in get_args(OnFailure):
        raise ValueError(f"on_failure must be one of {get_args(OnFailure)}, got {on_failure!r}")


def _check_options(tol: float, max_steps: int, max_passes: int, callback: Callback | None) -> None:
    if not 0 < to_number(tol, "tol") < np.inf:
        raise ValueError(f"tol must be a finite number above 0, got {tol}")
    for name, value in (("max_steps", max_steps), ("max_passes", max_passes)):
        if not (to_number(value, name) >= 1 and float(value).is_integer()):
            raise ValueError(f"{name} must be a whole number of at least 1, got {value}")
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be a function of a Progress, or None, got {callback!r}")


def _start(init: Solution | ArrayLike | None, problem: Problem) -> Start:
    if init is None:
        return Start()
    classes = problem.cost.shape[1]
    if not isinstance(init, Solution):
        try:
            prices = to_numpy(init, "init").astype(np.float64)
        except TypeError as error:
            raise TypeError(
                "init must be a Solution returned by solve, or its prices, "
                f"got {type(init).__name__}"
            ) from error
        if prices.shape != (classes + 1,):
            raise ValueError(
                f"init must be a Solution, or the {classes + 1} prices of one, "
                f"got an array of shape {prices.shape}"
            )
        is_price = (prices == -np.inf) | (np.abs(prices) <= LARGEST)
        if not is_price.all():
            first = int(np.argmin(is_price))
            raise ValueError(
                f"init must be finite, at most {LARGEST:.0e}, or -inf for a closed class, "
                f"got {prices[first]} at index {first}"
            )
        return Start(prices)
    samples_before, classes_before = init.problem.cost.shape
    if classes != classes_before:
        raise ValueError(
            f"init must have the classes of the problem, {classes}, got a solution of "
            f"{classes_before}; leave it out to start cold"
        )
    if samples_before != problem.cost.shape[0]:
        return Start(init._prices)
    matrix = init._plan.matrix.astype(problem.cost.dtype, copy=False)
    is_feasible = problem.has_constraints_of(init.problem)
    return Start(init._prices, Plan(matrix, init._plan.slack), is_feasible)
