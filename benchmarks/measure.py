"""How good a plan is: measures that are the same for everybody and look at nothing but the plan.

All compute in float64, whatever computed the plan. `residual` and `distance` also take tensors, and
compute on their device; the other measures take NumPy's arrays, which `on_host` makes.

`residual` asks by how much the plan misses the conditions that an optimal plan meets: row sums,
total mass, and class masses. A class of finite strength has the mass ``rho prior_j exp(-price_j /
kl_weight_j)`` that its price demands, and prices are not part of a plan. `implied_prices` finds
those that explain it best.
"""

import numpy as np

from ssot import Problem, solve_problem
from ssot.arrays import HOST, namespace, to_place

SMALLEST = float(np.finfo(np.float64).tiny)
ENTRIES_AT_A_TIME = 2**22
MOST_ENTRIES_OF_A_REFERENCE = 2**24
REFERENCE_TOLERANCE = 1e-12


def on_host(problem):
    """Return the same problem in NumPy's arrays."""
    if problem.place == HOST:
        return problem
    options, cost = _linear_options(problem), to_place(problem.cost, HOST)
    if problem.graph is None:
        return Problem(cost, **options)
    graph = problem.graph.to_scipy()
    return Problem(cost, graph, semantic_weight=problem.semantic_weight, **options)


def in_double_precision(problem, cost=None):
    """Return the linear problem with the given cost, or its own, in float64."""
    cost = np.asarray(problem.cost if cost is None else cost, np.float64)
    return Problem(cost, **_linear_options(problem))


def _linear_options(problem):
    return {
        "rho": problem.rho,
        "epsilon": problem.epsilon,
        "kl_weight": problem.kl_weight,
        "prior": problem.prior,
        "sample_weight": to_place(problem.sample_weight, HOST),
    }


def linearised(problem, plan):
    """Return the linear problem that a stationary plan of the semantic problem solves."""
    if not problem.has_semantics:
        return problem
    worth = problem.graph.astype(np.float64) @ np.asarray(plan, np.float64)
    return in_double_precision(problem, problem.cost - 2 * problem.semantic_weight * worth)


def residual(problem, plan):
    """Return the L1 violation of what a solution satisfies, for a total mass of at most 1.

    The sum of: negative masses; row sums above the sample weights (at rho = 1: different from
    them); the error of the total mass; the error of the class masses, which for a class of finite
    strength is measured against what its implied price demands. Infinite for a plan with NaN.

    With a graph, measured in the problem that is linear at the plan.
    """
    plan = np.asarray(plan) if problem.place == HOST else plan
    xp = namespace(plan)
    if not xp.all(xp.isfinite(plan)):
        return np.inf
    rows = xp.sum(plan, axis=1, dtype=xp.float64) - problem.sample_weight
    classes = to_place(xp.sum(plan, axis=0, dtype=xp.float64), HOST)
    is_soft = np.isfinite(problem.kl_weight)
    demand = problem.rho * problem.prior
    if is_soft.any():
        prices = implied_prices(linearised(problem, plan), plan)
        demand[is_soft] *= np.exp(-prices[is_soft] / problem.kl_weight[is_soft])
    excess = xp.clip(rows, min=0.0) if problem.rho < 1 else abs(rows)
    return float(
        float(-xp.sum(xp.clip(plan, max=0.0), dtype=xp.float64))
        + float(xp.sum(excess))
        + abs(classes.sum() - problem.rho)
        + abs(classes - demand).sum()
    )


def implied_prices(problem, plan):
    r"""Return the class prices (K,) that explain a plan best, by weighted least squares.

    At a solution ``epsilon log Q_ij + C_ij = row term_i + price_j`` for all entries, the virtual
    class's with its cost of 0 included, and ``price_j = -kl_weight_j log(mass_j / (rho prior_j))``
    for all classes of finite strength. Where the two disagree, the first is given the weight
    ``Q_ij / epsilon`` and the second ``mass_j / kl_weight_j``, the curvatures of the dual problem.
    What is left of the disagreement is then the mass that one more scaling sweep would move.

    The normal equations are a graph Laplacian plus a diagonal. With its diagonal summed from the
    other entries, and each equation divided by its own, they are accurate for masses of any size.
    """
    classes = plan.shape[1]
    coupling, balance, masses = _couplings(problem, plan)
    strength = np.append(problem.kl_weight, np.inf)[: len(masses)]
    demand = masses / strength
    target = np.append(problem.rho * problem.prior, 1.0)[: len(masses)]
    log_excess = np.log(masses / target)
    np.fill_diagonal(coupling, 0)
    diagonal = coupling.sum(axis=1) + demand
    matrix = -coupling
    np.fill_diagonal(matrix, diagonal)
    # mass / strength * price, in a form that is 0 rather than NaN for hard classes
    right = balance - masses * log_excess * np.isfinite(strength)
    return np.linalg.solve(matrix / diagonal[:, None], right / diagonal)[:classes]


def _couplings(problem, plan):
    """Return the couplings of the columns, the right-hand side, and the column masses.

    In blocks of rows, so that a large plan needs little more memory. Zeros become the smallest
    number, which says that the exact entry is no larger.
    """
    xp = namespace(plan)
    coupling = balance = masses = 0.0
    for rows in _row_blocks(plan):
        block, cost = (xp.astype(part[rows], xp.float64) for part in (plan, problem.cost))
        if problem.rho < 1:
            slack = problem.sample_weight[rows] - xp.sum(block, axis=1)
            block = xp.concat([block, slack[:, None]], axis=1)
            cost = xp.concat([cost, xp.zeros_like(slack)[:, None]], axis=1)
        block = xp.clip(block, min=SMALLEST)
        level = problem.epsilon * xp.log(block) + cost
        share = block / xp.sum(block, axis=1, keepdims=True)
        level -= xp.sum(share * level, axis=1, keepdims=True)
        coupling = coupling + share.T @ block / problem.epsilon
        balance = balance + xp.sum(block * level, axis=0) / problem.epsilon
        masses = masses + xp.sum(block, axis=0)
    return tuple(to_place(part, HOST) for part in (coupling, balance, masses))


def _row_blocks(plan):
    size = max(1, ENTRIES_AT_A_TIME // (plan.shape[1] + 1))
    return (slice(start, start + size) for start in range(0, len(plan), size))


def objective(problem, plan):
    """Return the value that is minimised, semantic term included, at a plan."""
    plan = np.asarray(plan, np.float64)
    slack = (problem.sample_weight - plan.sum(axis=1)).clip(min=0)
    value = (problem.cost * plan).sum() + problem.epsilon * (_entropy(plan) + _entropy(slack))
    if problem.has_semantics:
        worth = (plan * (problem.graph.astype(np.float64) @ plan)).sum()
        value -= problem.semantic_weight * worth
    masses, target = plan.sum(axis=0), problem.rho * problem.prior
    is_soft = np.isfinite(problem.kl_weight) & (masses > 0)
    divergence = masses * np.log(masses / target, where=is_soft, out=np.zeros_like(masses))
    divergence += target - masses
    return float(value + problem.kl_weight[is_soft] @ divergence[is_soft])


def _entropy(masses):
    return (masses * np.log(np.maximum(masses, SMALLEST))).sum()


def stationarity_gap(problem, plan):
    """Return the generalised Frank-Wolfe gap of a plan of a semantic problem with rho < 1.

    How much the problem that is linear at the plan can still be lowered; 0 exactly at a stationary
    plan. A plan may miss the total mass, which then is charged at the optimal price.
    """
    plan = np.asarray(plan, np.float64)
    linear = linearised(problem, plan)
    best = solve_problem(linear, tol=1e-9, on_failure="raise")
    charge = float(best.prices[-1] * (plan.sum() - best.plan.sum()))
    return objective(linear, plan) - objective(linear, best.plan) + charge


def reference_plan(problem):
    """Return the optimal plan to `REFERENCE_TOLERANCE`; None where it is large or not unique."""
    if problem.has_semantics or problem.cost.size > MOST_ENTRIES_OF_A_REFERENCE:
        return None
    solution = solve_problem(
        in_double_precision(problem), tol=REFERENCE_TOLERANCE, on_failure="return"
    )
    return solution.plan


def distance(plan, reference):
    """Return the L1 distance of two plans; infinite for a plan with NaN."""
    xp = namespace(reference)
    plan = np.asarray(plan) if isinstance(reference, np.ndarray) else plan
    total = 0.0
    for rows in _row_blocks(plan):
        difference = xp.astype(plan[rows], xp.float64) - xp.astype(reference[rows], xp.float64)
        total = total + xp.sum(xp.abs(difference))
    return float(total) if np.isfinite(float(total)) else np.inf
