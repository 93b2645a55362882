"""Problem in, solution out."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike

from ssot.adjacency import GraphLike
from ssot.arrays import isolated, to_number, to_place
from ssot.batch import SolutionBatch, is_batch, problems_of, split_arguments, split_init
from ssot.certificate import certify
from ssot.gradients import refuse_gradients, with_gradients
from ssot.kernels import Plan
from ssot.kernels.select import make_kernels
from ssot.lockstep import run
from ssot.mm import Limits, minimise
from ssot.problem import Problem
from ssot.ranks import ranks_of
from ssot.solution import Solution
from ssot.start import starts_from
from ssot.status import ConvergenceWarning, Progress
from ssot.streaming.source import RowBlocks

Callback: TypeAlias = Callable[[Progress], bool | None]
OnFailure: TypeAlias = Literal["raise", "warn", "return"]


class ConvergenceError(RuntimeError):
    """A solve ended before its tolerance was met, and the caller asked for an exception.

    Attributes
    ----------
    solution : Solution or SolutionBatch
        The plan so far, with its status and certificate.
    """

    def __init__(self, message: str, solution: Solution | SolutionBatch) -> None:
        super().__init__(message)
        self.solution = solution

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.solution)


def sp2ot_plan(
    cost: ArrayLike | RowBlocks | None = None,
    graph: GraphLike | None = None,
    *,
    on_failure: OnFailure = "warn",
    **options: Any,
) -> Any:
    """Return the SP²OT plan: how much of each sample's mass each class receives.

    The plan alone of `solve`, which documents every argument.

    Returns
    -------
    (N, K) or (B, N, K) array
        In the library and on the device of `cost`: masses that sum to `rho`, row i at most
        ``sample_weight[i]``. As pseudo-labels, divide by the sample weights: ``N * plan`` for
        uniform ones. Differentiable in tensors that require gradients.

    Examples
    --------
    >>> import numpy as np
    >>> from ssot import sp2ot_plan
    >>> plan = sp2ot_plan(np.array([[0.1, 2.0], [1.5, 0.3], [0.9, 0.8]]), rho=0.5)
    >>> plan.shape, round(float(plan.sum()), 6)
    ((3, 2), 0.5)
    """

    def check() -> tuple[None, None]:
        check_on_failure(on_failure)
        return None, None

    ranks_of(options.get("group")).share(check)
    result = solve(cost, graph, on_failure="return", **options)
    _settle(list(result) if isinstance(result, SolutionBatch) else [result], result, on_failure)
    return result.plan


def solve(
    cost: ArrayLike | RowBlocks | None = None,
    graph: GraphLike | None = None,
    *,
    logits: ArrayLike | RowBlocks | None = None,
    rho: ArrayLike = 1.0,
    epsilon: ArrayLike = 0.1,
    kl_weight: ArrayLike = 1.0,
    semantic_weight: ArrayLike | None = None,
    prior: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    slack_entropy: bool | ArrayLike = True,
    tol: float = 1e-6,
    max_steps: int = 200,
    max_passes: int = 2000,
    init: Solution | SolutionBatch | ArrayLike | None = None,
    callback: Callback | None = None,
    on_failure: OnFailure = "warn",
    backend: str = "auto",
    group: Any = None,
) -> Solution | Any:
    """Solve a semantic-regularised progressive partial optimal-transport problem.

    One function for the whole family: ``semantic_weight=0`` is P²OT; with ``rho=1`` that is
    semi-relaxed unbalanced transport, and with ``kl_weight=inf`` too balanced Sinkhorn;
    ``kl_weight=inf`` alone is partial transport, with ``slack_entropy=False`` that of POT.

    Parameters
    ----------
    cost, graph, logits, rho, epsilon, kl_weight, semantic_weight, prior, sample_weight, \
    slack_entropy
        The problem; see `Problem` for the formula, shapes, units and ranges. A cost or logits of
        shape (B, N, K) make a batch of B problems, solved together. Any other argument may then
        have a leading dimension B as well, the graph as a list; without one it holds for all. A
        cost or logits larger than memory come as `RowBlocks`.
    tol : float
        Stop when the stationarity gap (in the objective's unit), the column residual and the mass
        error (L1, of a total mass of 1) are at most this; the gap may also be below the rounding
        errors of the objective. 1e-9 to 1e-4; in float32 not below 1e-6. Default 1e-6.
    max_steps : int
        Most majorise-minimise steps. Default 200; 5 to 50 are usual.
    max_passes : int
        Most times that the cost is read, over all steps. Default 2000; 10 to 100 are usual.
    init : Solution or (K + 1,) array, optional
        A solution to start from, or its prices alone, of a problem with the same classes. The plan
        of a solution is used as well where it has the same number of samples: for other samples of
        the same number pass ``solution.prices``. For B problems: one for all, or one for each.
    callback : callable, optional
        Called with a `Progress` at each outer step, and for a streamed cost at each reading on the
        way as well; stops the solve by returning True.
    on_failure : {"warn", "raise", "return"}
        What to do when the tolerance is not met: issue a `ConvergenceWarning`, raise a
        `ConvergenceError`, or leave it to the caller to look at ``status``. Default "warn".
    backend : {"auto", "numba", "numpy", "torch"}
        What computes. Default "auto": Torch for tensors that are not on the CPU; else Numba where
        it is installed, or NumPy. Numba compiles on first use, 7 to 15 seconds for each dtype and
        kind of slack, and keeps the result on disk.
    group : torch.distributed.ProcessGroup, optional
        The processes that solve one problem together, each of which makes this call with its own
        rows: of the cost, any number, also none; of `sample_weight`, which sums to 1 over all; and
        of the graph, (its rows, samples of all), the samples numbered through the ranks in their
        order. All else is the same on all ranks. So are prices, objective, status and certificate
        of the solutions, whose plans, labels and confidences are those of the own rows. Where a
        process dies, or stays silent for the timeout of the group, the others raise.

    Returns
    -------
    Solution
        For a cost of shape (B, N, K), a `SolutionBatch`: B solutions, and their arrays stacked.

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
    arguments: dict[str, Any] = {
        "cost": cost,
        "graph": graph,
        "logits": logits,
        "rho": rho,
        "epsilon": epsilon,
        "kl_weight": kl_weight,
        "semantic_weight": semantic_weight,
        "prior": prior,
        "sample_weight": sample_weight,
        "slack_entropy": slack_entropy,
    }

    def check() -> tuple[tuple[Limits, list[dict[str, Any]], list[Any]], tuple[Any, ...]]:
        check_on_failure(on_failure)
        limits = _checked_limits(tol, max_steps, max_passes, callback)
        refuse_gradients(arguments, group)
        several = is_batch(arguments)
        each = split_arguments(arguments) if several else [arguments]
        inits = split_init(init, len(each)) if several else [init]
        shares_graph = all(own["graph"] is each[0]["graph"] for own in each)
        return (limits, each, inits), (several, len(each), shares_graph)

    (limits, each, inits), told = ranks_of(group).share(check)
    _require_same(told, "the leading dimension of cost and graph")
    several = told[0][0]
    problems = problems_of(each, group) if several else [Problem(**arguments, group=group)]
    solved = _solve_together(problems, inits, limits, callback, backend)
    solutions = [with_gradients(*pair) for pair in zip(solved, each, strict=True)]
    result = SolutionBatch(tuple(solutions)) if several else solutions[0]
    _settle(solutions, result, on_failure)
    return result


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
    """Solve a `Problem` that is already made and checked; see `solve` for the arguments.

    A problem does not know what its tensors were computed from: its plan has no gradients.
    """
    if not isinstance(problem, Problem):
        raise TypeError(
            f"problem must be a Problem, got {type(problem).__name__}; pass arrays to solve"
        )

    def check() -> tuple[Limits, None]:
        check_on_failure(on_failure)
        return _checked_limits(tol, max_steps, max_passes, callback), None

    limits, _ = problem.ranks.share(check)
    solution = _solve_together([problem], [init], limits, callback, backend)[0]
    _settle([solution], solution, on_failure)
    return solution


def _solve_together(
    problems: Sequence[Problem],
    inits: Sequence[Any],
    limits: Limits,
    callback: Callback | None,
    backend: str,
) -> list[Solution]:
    """Return the solutions of problems of one shape."""
    began = time.perf_counter()
    callback = _agreed_callback(problems[0], limits, callback)
    kernels = make_kernels(problems, backend)
    with isolated(problems[0].place), isolated(kernels[0].place):
        starts = starts_from(inits, problems, kernels[0].place)
        callbacks = _callbacks(callback, len(problems))
        outcomes = run(
            minimise(problem, kernel, limits, start, told)
            for problem, kernel, start, told in zip(
                problems, kernels, starts, callbacks, strict=True
            )
        )
        certificates = [certify(*pair) for pair in zip(problems, outcomes, strict=True)]
        seconds = time.perf_counter() - began
        return [
            Solution(
                problem=problem,
                objective=outcome.objective,
                status=outcome.status,
                certificate=certificate,
                tol=limits.tol,
                backend=kernel.name,
                seconds=seconds,
                _plan=outcome.plan
                if problem.is_streamed
                else Plan(*(to_place(part, problem.place) for part in outcome.plan)),
                _prices=outcome.prices,
            )
            for problem, kernel, outcome, certificate in zip(
                problems, kernels, outcomes, certificates, strict=True
            )
        ]


def _agreed_callback(
    problem: Problem, limits: Limits, callback: Callback | None
) -> Callback | None:
    """Return a callback that stops all ranks when that of one would; None where none has one.

    Ranks with different limits would end apart, and the first to go on would wait for the others.
    """
    _, told = problem.ranks.share(lambda: (None, (limits, callback is not None)))
    _require_same([of_rank for of_rank, _ in told], "tol, max_steps and max_passes")
    if problem.ranks.size == 1 or not any(has_one for _, has_one in told):
        return callback

    def ask(progress: Progress) -> bool:
        def find() -> tuple[None, bool]:
            return None, callback is not None and bool(callback(progress))

        return any(problem.ranks.share(find)[1])

    return ask


def _require_same(told: Sequence[Any], names: str) -> None:
    if any(of_rank != told[0] for of_rank in told):
        raise ValueError(
            f"{names} must be the same on all ranks, got "
            f"{' and '.join(map(str, dict.fromkeys(told)))}"
        )


def _callbacks(callback: Callback | None, problems: int) -> list[Callback | None]:
    """Return a callback for each problem, which tells its index."""
    if callback is None or problems == 1:
        return [callback] * problems

    def with_index(index: int) -> Callback:
        return lambda progress: callback(replace(progress, problem=index))

    return [with_index(index) for index in range(problems)]


def _settle(solutions: Sequence[Solution], result: Any, on_failure: OnFailure) -> None:
    """Do what the caller of a public function wants about failures."""
    failed = [(i, s) for i, s in enumerate(solutions) if not s.status.is_success]
    if not failed or on_failure == "return":
        return
    index, first = failed[0]
    found = first.certificate
    message = (
        f"{first.status.advice} (stationarity gap {found.stationarity_gap:.2g}, column residual "
        f"{found.column_residual:.2g}, mass error {found.mass_error:.2g}; tol {first.tol:.2g})"
    )
    if len(solutions) > 1:
        message = f"{len(failed)} of {len(solutions)} problems failed, first {index}: {message}"
    if on_failure == "raise":
        raise ConvergenceError(message, result)
    warnings.warn(message, ConvergenceWarning, stacklevel=3)


def check_on_failure(on_failure: str) -> None:
    """Refuse what says nothing about failures."""
    if on_failure not in get_args(OnFailure):
        raise ValueError(f"on_failure must be one of {get_args(OnFailure)}, got {on_failure!r}")


def checked_tolerance(tol: float) -> float:
    """Return a finite number above 0."""
    tolerance = to_number(tol, "tol")
    if not 0 < tolerance < np.inf:
        raise ValueError(f"tol must be a finite number above 0, got {tol}")
    return tolerance


def _checked_limits(
    tol: float, max_steps: int, max_passes: int, callback: Callback | None
) -> Limits:
    numbers = {"max_steps": max_steps, "max_passes": max_passes}
    counts = {name: to_number(value, name) for name, value in numbers.items()}
    for name, count in counts.items():
        if not (count >= 1 and count.is_integer()):
            raise ValueError(f"{name} must be a whole number of at least 1, got {numbers[name]}")
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be a function of a Progress, or None, got {callback!r}")
    return Limits(checked_tolerance(tol), int(counts["max_steps"]), int(counts["max_passes"]))
