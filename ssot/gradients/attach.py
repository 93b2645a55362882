"""Solutions of problems made of tensors that require gradients."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ssot.arrays import HOST, Array, isolated, place_of, to_computing_dtype, to_place
from ssot.kernels import make_kernel
from ssot.problem import Problem
from ssot.solution import Report, Solution, Tracked
from ssot.streaming.source import RowBlocks, peeked


def with_gradients(solution: Solution, arguments: Mapping[str, Any]) -> Solution:
    """Return a solution whose plan and value are functions of the tensors that require gradients.

    Parameters
    ----------
    solution : Solution
        Of the problem that the arguments make.
    arguments : mapping of str to object
        The arguments of `Problem`.
    """
    torch = sys.modules.get("torch")
    is_array = solution.problem.place == HOST
    if torch is None or is_array or not torch.is_grad_enabled():
        return solution
    from ssot.gradients.implicit import Gradients, differentiable

    inputs = {
        name: value
        for name, value in {**arguments, "cost": _cost(arguments)}.items()
        if name in Gradients._fields and place_of(value).library == "torch" and value.requires_grad
    }
    if not inputs:
        return solution
    report = Report()
    solved = _solved(solution, by_graph="semantic_weight" in inputs)
    plan, value = differentiable(solved, inputs, solution.objective.total, report)
    return replace(solution, _tracked=Tracked(plan, value, report))


def refuse_gradients(arguments: Mapping[str, Any], group: Any) -> None:
    """Refuse tensors that require gradients where the plan has none: streamed, or on ranks."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.is_grad_enabled():
        return
    is_streamed = any(isinstance(value, RowBlocks) for value in arguments.values())
    if group is None and not is_streamed:
        return
    for name, value in arguments.items():
        given = peeked(value)
        if place_of(given).library == "torch" and given.requires_grad:
            raise ValueError(
                f"{name} must not require gradients, as the plan of RowBlocks or of a group has "
                "none; solve under torch.no_grad(), or detach it"
            )


def _graph_product(problem: Problem) -> Callable[[Array], Array]:
    kernel = make_kernel(problem, "torch")
    return lambda matrix: kernel.graph_product(matrix, None)


def _cost(arguments: Mapping[str, Any]) -> Any:
    """Return the cost as a differentiable function of the logits, where these are given."""
    logits = arguments["logits"]
    if place_of(logits).library != "torch" or not logits.requires_grad:
        return arguments["cost"]
    import torch

    with torch.autocast(logits.device.type, enabled=False):
        return -to_computing_dtype(logits).log_softmax(dim=1)


def _solved(solution: Solution, *, by_graph: bool) -> Any:
    """Return what gradients need; also the graph at weight 0 if its weight is an input."""
    from ssot.gradients.implicit import Solved

    problem = solution.problem
    place = problem.place
    has_graph = problem.has_semantics or (by_graph and problem.graph is not None)
    with isolated(place):
        return Solved(
            cost=problem.cost,
            plan=solution._plan.matrix,
            prices=to_place(solution._prices, place),
            sample_weight=problem.sample_weight,
            prior=to_place(problem.prior, place),
            kl_weight=to_place(problem.kl_weight, place),
            rho=problem.rho,
            epsilon=problem.epsilon,
            semantic_weight=problem.semantic_weight,
            graph_product=_graph_product(problem) if has_graph else None,
            slack_entropy=problem.slack_entropy,
        )
