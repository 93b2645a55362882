"""Compare the safeguarded step with the published full step on problems where the latter cycles.

Prints one Markdown table. Both iterations start at the same plan and solve their inner problems
with the same solver, so that only the step differs. Run as
``python -m benchmarks.descent --seeds 0 1``.
"""

import argparse

import numpy as np

from benchmarks.hard_problems import SEMANTIC_SETTINGS, semantic_problem
from ssot import Problem, solve, solve_problem

FULL_STEPS = 100


def full_step_objectives(problem, steps=FULL_STEPS):
    """Return the objective along the published iteration: always the whole way to the surrogate."""
    linear = {name: getattr(problem, name) for name in ("rho", "epsilon", "kl_weight")}
    cost, inner, objectives = problem.cost, None, []
    for _ in range(steps + 1):
        inner = solve_problem(Problem(cost, **linear), tol=1e-9, init=inner, on_failure="raise")
        product = problem.graph @ inner.plan
        semantic = -problem.semantic_weight * np.vdot(inner.plan, product)
        transport = np.vdot(problem.cost - cost, inner.plan)
        objectives.append(inner.objective.total + transport + semantic)
        cost = problem.cost - 2 * problem.semantic_weight * product
    return np.array(objectives)


def rows(seed):
    """Yield one table row for each setting of one problem."""
    data = semantic_problem(seed)
    for rho, semantic_weight in SEMANTIC_SETTINGS:
        solution = solve(
            logits=data.logits, graph=data.graph, rho=rho, semantic_weight=semantic_weight
        )
        certificate = solution.certificate
        published = full_step_objectives(_in_double_precision(solution.problem))
        yield (
            f"| {seed} | {rho} | {solution.status.name.lower()} | {certificate.outer_steps} "
            f"| {certificate.row_passes} | {solution.seconds:.2f} | {solution.objective.total:.8f} "
            f"| {certificate.stationarity_gap:.1e} | {(np.diff(published) > 1e-9).sum()} "
            f"| {published[-1]:.8f} | {published[-3:].max() - published[-3:].min():.1e} |"
        )


def _in_double_precision(problem):
    return Problem(
        problem.cost.astype(np.float64),
        problem.graph,
        rho=problem.rho,
        epsilon=problem.epsilon,
        kl_weight=problem.kl_weight,
        semantic_weight=problem.semantic_weight,
    )


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    print(
        "| seed | rho | status | steps | row passes | seconds | objective | gap "
        f"| full step: rises in {FULL_STEPS} | its last objective | range of its last three |"
    )
    print("|" + "---|" * 11)
    for seed in parser.parse_args().seeds:
        for row in rows(seed):
            print(row, flush=True)


if __name__ == "__main__":
    main()
