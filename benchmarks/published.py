"""The published algorithms, in float64 Torch with a dense graph, written from the papers' formulas.

They run on the device of the problem's cost; NumPy's arrays are on the CPU.

The linear problem is solved by matrix scaling. With ``M = exp(-[C, 0] / epsilon)``, whose last
column is the virtual cluster's, two vectors take turns:

    a = alpha / (M b),   b = (target / (M^T a))^f,   f = kl_weight / (kl_weight + epsilon)

where ``target = [rho prior, 1 - rho]``, and f = 1 for the virtual cluster and for hard classes. The
semantic problem is solved by majorise-minimise steps that always go the whole way.

The scaling stops when no entry of b changes by more than 1e-6 of itself, or after 1,000 sweeps.
That says little about the plan, so the scaling can also be run on until the column residual is
small.
"""

from dataclasses import dataclass

import numpy as np
import torch

from ssot.adjacency import Edges

MOST_SWEEPS = 1000
MOST_STEPS = 100
SMALL_CHANGE = 1e-6
SWEEPS_BETWEEN_CHECKS = 10


@dataclass(frozen=True)
class Result:
    """A plan (N, K), how many sweeps it took, and whether the stopping rule was met in time."""

    plan: torch.Tensor
    sweeps: int
    converged: bool


class LinearProblem:
    """What the scaling needs of a problem, as float64 tensors on the device of its cost."""

    def __init__(self, problem):
        has_virtual = problem.rho < 1
        self.epsilon = problem.epsilon
        cost = torch.as_tensor(problem.cost)
        self.cost = _with_virtual(cost.double(), has_virtual)
        self.alpha = torch.as_tensor(problem.sample_weight)
        self.classes = problem.cost.shape[1]
        target = problem.rho * problem.prior
        strength = problem.kl_weight
        if has_virtual:
            target, strength = np.append(target, 1 - problem.rho), np.append(strength, np.inf)
        self.target = torch.from_numpy(target).to(cost.device)
        self.price_per_log = torch.from_numpy(problem.epsilon / strength).to(cost.device)
        self.exponent = 1 / (1 + self.price_per_log)

    def linearised(self, bonus):
        """Return the cost (N, K + 1) less what agreement with the neighbours is worth."""
        cost = self.cost.clone()
        cost[:, : self.classes] -= bonus
        return cost

    def column_residual(self, b, product):
        """Return the L1 distance of the column masses ``b (M^T a)`` from what the prices demand."""
        demand = self.target * b ** (-self.price_per_log)
        return (b * product - demand).abs().sum().item()


def dense_graph(problem):
    """Return the graph of a semantic problem, (N, N) in float64, on the device of its cost."""
    graph = problem.graph.to_scipy() if isinstance(problem.graph, Edges) else problem.graph
    return torch.from_numpy(graph.toarray()).double().to(torch.as_tensor(problem.cost).device)


def _with_virtual(cost, has_virtual):
    return torch.nn.functional.pad(cost, (0, 1)) if has_virtual else cost


def scale(problem, *, cost=None, most_sweeps=MOST_SWEEPS, residual=None):
    """Solve a linear problem by matrix scaling.

    Parameters
    ----------
    problem : LinearProblem
    cost : (N, K) or (N, K + 1) tensor, optional
        In place of the problem's own, for a linearised semantic problem.
    residual : float, optional
        Run on until the column residual is at most this; by default the published rule decides.
    """
    m = ((problem.cost if cost is None else cost) / -problem.epsilon).exp_()
    b = torch.ones_like(problem.target)
    converged, sweep = False, 0
    while not converged and sweep < most_sweeps:
        sweep += 1
        product = m.T @ (problem.alpha / (m @ b))
        if residual is not None and sweep % SWEEPS_BETWEEN_CHECKS == 0:
            converged = problem.column_residual(b, product) <= residual
            if converged:
                break
        before, b = b, (problem.target / product) ** problem.exponent
        if residual is None:
            converged = bool(((b - before).abs() <= SMALL_CHANGE * b).all())
    a = problem.alpha / (m @ b)
    plan = (a[:, None] * m[:, : problem.classes]).mul_(b[: problem.classes])
    return Result(plan, sweep, converged)


def majorise_minimise(problem, graph, semantic_weight, *, most_steps=MOST_STEPS):
    """Solve a semantic problem by full steps, until one changes the plan by 1e-6 of its norm.

    Parameters
    ----------
    problem : LinearProblem
        The problem without its graph.
    graph : (N, N) tensor
        As `dense_graph` makes it.
    """
    plan = graph.new_zeros(len(graph), problem.classes)
    sweeps, converged = 0, False
    for _ in range(most_steps):
        bonus = 2 * semantic_weight * (graph @ plan)
        result = scale(problem, cost=problem.linearised(bonus))
        sweeps += result.sweeps
        change = torch.linalg.vector_norm(result.plan - plan)
        plan = result.plan
        converged = bool(change <= SMALL_CHANGE * torch.linalg.vector_norm(plan))
        if converged:
            break
    return Result(plan, sweeps, converged)
