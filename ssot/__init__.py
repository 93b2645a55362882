"""Optimal-transport pseudo-labels for imbalanced clustering: one solver, certified plans."""

import logging

from ssot.batch import SolutionBatch
from ssot.certificate import Certificate
from ssot.graph import knn_graph
from ssot.objective import Objective
from ssot.problem import Problem
from ssot.schedule import cosine_ramp, linear_ramp, semantic_weight, sigmoid_ramp
from ssot.solution import Solution
from ssot.solve import (
    ConvergenceError,
    solve,
    solve_problem,
    sp2ot_plan,
)
from ssot.status import ConvergenceWarning, Progress, Status
from ssot.streaming import RowBlocks
from ssot.subgraph import restrict_graph

logging.getLogger(__name__).addHandler(logging.NullHandler())

__version__ = "0.1.0"

__all__ = [
    "Certificate",
    "ConvergenceError",
    "ConvergenceWarning",
    "Objective",
    "Problem",
    "Progress",
    "RowBlocks",
    "Solution",
    "SolutionBatch",
    "Status",
    "cosine_ramp",
    "knn_graph",
    "linear_ramp",
    "restrict_graph",
    "semantic_weight",
    "sigmoid_ramp",
    "solve",
    "solve_problem",
    "sp2ot_plan",
]
