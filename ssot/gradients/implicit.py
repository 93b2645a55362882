r"""Gradients of the plan and of the optimal value in every input, without unrolling the solver.

The plan's follow from the adjoint of its response to the cost (see `ssot.gradients.response`), the
value's from the envelope theorem. Beyond the problem and its solution that takes about eleven N x K
arrays with a graph, and five without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssot.arrays import isolated, place_of
from ssot.gradients.response import (
    Adjoint,
    Response,
    Solved,
    inner,
    probabilities,
    row_blocks,
    solve_adjoint,
)

__all__ = [
    "Adjoint",
    "Gradients",
    "Solved",
    "differentiable",
    "plan_gradients",
    "value_gradients",
]


class Gradients(NamedTuple):
    """Gradients by input: `cost` in its dtype, the others in float64, scalars 0-dimensional.

    `prior` and `sample_weight` are those of the problem that divides both by their sums. Where an
    input is at the end of its range, so that mass appears at an infinite slope, the gradient is 0:
    for a class of prior 0, and in the value for a sample of weight 0 and, if the slack has an
    entropy, for `rho` at 1. The plan's gradient in these two is the one-sided derivative.
    """

    cost: Tensor
    sample_weight: Tensor
    prior: Tensor
    kl_weight: Tensor
    rho: Tensor
    epsilon: Tensor
    semantic_weight: Tensor


def plan_gradients(solved: Solved, cotangent: Tensor) -> tuple[Gradients, Adjoint]:
    r"""Return the gradients of a loss whose gradient in the plan is given.

    .. math::
        \frac{dL}{dC} = -Z, \quad
        \frac{dL}{d\lambda_s} = 2 \langle W Q, Z \rangle, \quad
        \frac{dL}{d\alpha_i} = \langle Y_i, P_i \rangle, \quad
        \frac{dL}{d\varepsilon} = -\langle Z, \log P \rangle, \quad
        \frac{dL}{dr_j} = h_j \frac{m_j}{r_j}, \quad
        \frac{dL}{d\lambda_j} = h_j \frac{m_j g_j}{\lambda_j^2}

    for the targets :math:`r = [\rho \beta, 1 - \rho]`, the demands :math:`m`, :math:`h = h(X)` and
    :math:`Y = X - 1 h`, with Z, X and h as in `ssot.gradients.response`.

    Parameters
    ----------
    solved : Solved
        The problem and its solution.
    cotangent : (N, K) tensor
        ``V = dL/dQ``. Entries of pairs that can carry no mass do not count, whatever they are.

    Returns
    -------
    gradients : Gradients
    adjoint : Adjoint
        Whether they can be trusted.
    """
    with isolated(place_of(solved.plan)):
        response = Response(solved)
        v = torch.where(response.probability[:, :-1] > 0, cotangent, 0).to(solved.plan.dtype)
        z, x, h, adjoint = solve_adjoint(response, v)
        by_weight, by_epsilon = response.row_gradients(x, h)
        is_open = solved.prices.isfinite()
        by_target = torch.where(is_open, h * response.demand / solved.target, 0)
        if not is_open[-1]:
            by_target[-1] = response.price_of_opening(by_weight)
        by_strength = h * response.demand * solved.prices / solved.strength.square()
        gradients = Gradients(
            cost=-z,
            sample_weight=by_weight - solved.sample_weight @ by_weight,
            prior=_by_prior(solved, by_target),
            kl_weight=torch.where(is_open, by_strength, 0)[:-1],
            rho=_by_rho(solved, by_target),
            epsilon=by_epsilon,
            semantic_weight=2 * inner(solved.plan, solved.product(z)),
        )
        return gradients, adjoint


def value_gradients(solved: Solved) -> Gradients:
    r"""Return the gradients of the optimal value.

    .. math::
        \frac{dV}{dC} = Q, \quad
        \frac{dV}{d\lambda_s} = -\langle Q, W Q \rangle, \quad
        \frac{dV}{d\alpha_i} = \varepsilon (\log \alpha_i - \ell_i), \quad
        \frac{dV}{d\varepsilon} = \sum_{ij} Q_{ij} \log Q_{ij} + \sum_i \xi_i \log \xi_i,
    .. math::
        \frac{dV}{dr_j} = \lambda_j (1 - e^{-g_j / \lambda_j}), \quad
        \frac{dV}{d\lambda_j} = \mathrm{KL}_j(Q^T 1 \,\|\, r)

    for the targets :math:`r = [\rho \beta, 1 - \rho]` and the logarithms :math:`\ell` of what rows
    were divided by; :math:`dV/dr_j = g_j` for a hard column. Without entropy of the slack, its sum
    is left out, and :math:`dV/dr_{K+1}` is the least :math:`\varepsilon (\ell_i - \log \alpha_i -
    1)`, from which a row is not full. The gradient in the cost is the plan itself, not a copy.
    """
    with isolated(place_of(solved.plan)):
        plan, alpha, epsilon = solved.plan, solved.sample_weight, solved.epsilon
        probability, log_partition = probabilities(solved)
        has_weight = alpha > 0
        by_weight = torch.where(has_weight, epsilon * (alpha.log() - log_partition), 0)
        by_target = _value_by_target(solved)
        if not solved.slack_entropy:
            by_target[-1] = epsilon * ((log_partition - alpha.log())[has_weight].min() - 1)
        by_rho = _by_rho(solved, by_target)
        target, mass = solved.target[:-1], plan.sum(dim=0, dtype=torch.float64)
        divergence = torch.xlogy(mass, mass / target) - mass + target
        is_soft = solved.kl_weight.isfinite() & (target > 0)
        slack = alpha * probability[:, -1]
        return Gradients(
            cost=plan,
            sample_weight=torch.where(has_weight, by_weight - alpha @ by_weight, 0),
            prior=_by_prior(solved, by_target),
            kl_weight=torch.where(is_soft, divergence, 0),
            rho=by_rho if solved.rho < 1 or not solved.slack_entropy else torch.zeros_like(by_rho),
            epsilon=_entropy(plan) + (_entropy(slack[:, None]) if solved.slack_entropy else 0.0),
            semantic_weight=-inner(plan, solved.product(plan)),
        )


def differentiable(
    solved: Solved,
    inputs: Mapping[str, Tensor],
    value: float,
    report: Callable[[Adjoint], None],
) -> tuple[Tensor, Tensor]:
    """Return the plan and the optimal value as functions of inputs of the problem.

    Parameters
    ----------
    solved : Solved
        Must stay as it is until the backward pass.
    inputs : mapping of str to Tensor
        What to differentiate in, by the names of `Gradients`, in any floating-point dtype and on
        any device. Scalars have shape () or (1,), and so may `kl_weight`.
    value : float
        The optimal value.
    report : callable
        Called with the `Adjoint` at each backward pass through the plan.

    Returns
    -------
    plan : (N, K) tensor
        Shares the memory of ``solved.plan``.
    value : tensor
        0-dimensional, float64.
    """
    plan, optimum = _Implicit.apply(  # type: ignore[no-untyped-call]
        solved, value, report, tuple(inputs), *inputs.values()
    )
    return plan, optimum


class _Implicit(torch.autograd.Function):
    """The plan and the optimal value, as a node of the autograd graph."""

    @staticmethod
    def forward(
        ctx: Any,
        solved: Solved,
        value: float,
        report: Callable[[Adjoint], None],
        names: tuple[str, ...],
        *inputs: Tensor,
    ) -> tuple[Tensor, Tensor]:
        plan = solved.plan.detach()
        ctx.solved, ctx.report, ctx.names = solved, report, names
        # They may share memory with `solved`: what is saved cannot be overwritten unnoticed.
        shared = [] if solved.cost.is_inference() else [solved.cost]
        ctx.save_for_backward(plan, *shared, *inputs)
        ctx.set_materialize_grads(False)
        return plan, torch.tensor(value, dtype=torch.float64, device=plan.device)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        by_plan, by_value = cotangents
        inputs = ctx.saved_tensors[-len(ctx.names) :]
        terms: list[Gradients] = []
        with torch.no_grad():
            if by_plan is not None:
                gradients, adjoint = plan_gradients(ctx.solved, by_plan)
                ctx.report(adjoint)
                terms.append(gradients)
            if by_value is not None:
                gradients = value_gradients(ctx.solved)
                terms.append(Gradients(*(by_value * gradient for gradient in gradients)))
        by_input = []
        for name, given, is_needed in zip(ctx.names, inputs, ctx.needs_input_grad[4:], strict=True):
            if is_needed and terms:
                gradient = _shaped_like(given, [getattr(term, name) for term in terms])
                by_input.append(_Once.apply(gradient, *cotangents, *inputs))  # type: ignore[no-untyped-call]
            else:
                by_input.append(None)
        return None, None, None, None, *by_input


class _Once(torch.autograd.Function):
    """A gradient, and what it depends on in ways that are not differentiated."""

    @staticmethod
    def forward(_ctx: Any, gradient: Tensor, *_depends_on: Tensor | None) -> Tensor:
        return gradient

    @staticmethod
    def backward(_ctx: Any, *_cotangents: Tensor) -> Any:
        raise RuntimeError(
            "the gradient of a plan is computed implicitly and cannot be differentiated again; "
            "detach it, or take differences of gradients"
        )


def _shaped_like(given: Tensor, terms: list[Tensor]) -> Tensor:
    """Return the sum of some gradients in the shape and dtype, and on the device, of an input."""
    with torch.no_grad():
        total = sum(terms[1:], start=terms[0])
        if total.shape != given.shape:  # one number for all classes, or () for (1,)
            total = total.sum().reshape(given.shape)
        return total.to(given)


def _by_prior(solved: Solved, by_target: Tensor) -> Tensor:
    """Return the gradient in a prior that is divided by its sum, from that in the targets."""
    by_share = solved.rho * by_target[:-1]
    return torch.where(solved.prior > 0, by_share - solved.prior @ by_share, 0)


def _by_rho(solved: Solved, by_target: Tensor) -> Tensor:
    """Return the gradient in rho from that in the targets."""
    return solved.prior @ by_target[:-1] - by_target[-1]


def _value_by_target(solved: Solved) -> Tensor:
    """Return the slope of the value in the target of each column, (K + 1,).

    A class that no sample may join costs ``kl_weight`` for each unit of mass that it should have.
    """
    strength, price = solved.strength, solved.prices
    worth = torch.where(strength.isfinite(), -strength * torch.expm1(-price / strength), price)
    stranded = torch.where(solved.target > 0, strength, 0)
    return torch.where(price.isfinite(), worth, stranded)


def _entropy(masses: Tensor) -> Tensor:
    """Return ``sum x log x`` of a matrix, in float64."""
    total = torch.zeros((), dtype=torch.float64, device=masses.device)
    for rows in row_blocks(masses):
        block = masses[rows].double()
        total += torch.xlogy(block, block).sum()
    return total
