"""Count the row passes that the hard grid of linear problems needs.

Prints one Markdown table. Run as ``python -m benchmarks.convergence``.
"""

import itertools

import numpy as np

from benchmarks.hard_problems import COST_FAMILIES, EPSILON, GRID, SHAPES
from ssot import Status, solve

TOL = {"float64": 1e-9, "float32": 1e-6}


def solve_grid(cost, tol):
    """Return the solutions of all parameters of the grid, in its order."""
    return [
        solve(cost, rho=rho, epsilon=epsilon, kl_weight=kl_weight, tol=tol, on_failure="return")
        for rho, epsilon, kl_weight in GRID
    ]


def describe(solutions):
    """Return a table cell: the median and the largest number of passes, and failures if any."""
    passes = [solution.certificate.row_passes for solution in solutions]
    failed = sum(solution.status is not Status.CONVERGED for solution in solutions)
    return f"{np.median(passes):g} / {max(passes)}" + (f" ({failed} failed)" if failed else "")


def main():
    """Print median / largest number of row passes by family, dtype and epsilon."""
    columns = [f"epsilon {epsilon:g}" for epsilon in EPSILON]
    print("| costs | shape | dtype, tol | all |", " | ".join(columns), "|")
    print("|" + "---|" * (4 + len(columns)))
    for (samples, classes), (family, make) in itertools.product(SHAPES, COST_FAMILIES.items()):
        for dtype, tol in TOL.items():
            solutions = solve_grid(make(samples, classes).astype(dtype), tol)
            cells = [
                describe([s for s in solutions if s.problem.epsilon == epsilon])
                for epsilon in EPSILON
            ]
            print(
                f"| {family} | {samples:,} x {classes} | {dtype}, {tol:g} |",
                " | ".join([describe(solutions), *cells]),
                "|",
            )


if __name__ == "__main__":
    main()
