"""How a solve is going, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from ssot.arrays import Vector


class ConvergenceWarning(UserWarning):
    """A solve ended before its tolerance was met, or so did the system behind a gradient."""


class Status(Enum):
    """Why the solve ended; `advice` says what to do next.

    Converged and stopped are successes, the others failures in the sense of `on_failure`.
    """

    CONVERGED = (
        "converged: residuals are within tol, and so is the gap, or it is below rounding errors; "
        "use the plan"
    )
    STOPPED = (
        "stopped by the callback: the certificate says how far the plan has come; pass this "
        "solution as init= to go on"
    )
    MAX_STEPS = (
        "max_steps outer steps did not bring the stationarity gap down to tol: pass this solution "
        "as init= to go on, or raise max_steps or tol"
    )
    MAX_PASSES = (
        "max_passes row passes did not bring the residuals down to tol: check that hard class "
        "sizes (kl_weight=inf) can be met under the forbidden pairs; else raise max_passes, "
        "epsilon or tol"
    )
    STALLED = (
        "rounding errors stop progress before tol is met: pass float64 arrays, or raise tol or "
        "epsilon (the cost's range over epsilon sets the attainable accuracy)"
    )

    @property
    def advice(self) -> str:
        """What happened, and what to do next."""
        return self.value

    @property
    def is_success(self) -> bool:
        """Whether the plan is what was asked for."""
        return self in (Status.CONVERGED, Status.STOPPED)


@dataclass(frozen=True)
class Progress:
    """What a callback sees at each outer step, and at each reading of a streamed cost.

    Attributes
    ----------
    step : int
        Outer steps made so far.
    objective : float
        Objective of the current plan.
    gap : float
        Its stationarity gap. Both are inf before the first plan of a streamed cost with a graph.
    row_passes : int
        Times the cost was read so far.
    problem : int
        Index of the problem in its batch, 0 for a single one.
    prices : (K + 1,) array
        What to save, as a NumPy array of float64: a solve that is killed goes on from
        ``init=prices``.
    """

    step: int
    objective: float
    gap: float
    row_passes: int
    problem: int = 0
    prices: Vector = field(default_factory=lambda: np.empty(0), repr=False, compare=False)
