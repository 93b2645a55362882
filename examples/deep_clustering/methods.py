"""The methods: settings of the one solver."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ssot


def all_of_the_mass(_progress: float) -> float:
    """Label every sample from the start: rho = 1."""
    return 1.0


@dataclass(frozen=True)
class Method:
    """Parameters of `ssot.solve` during a training.

    Attributes
    ----------
    ramp
        Maps the progress of the training to rho, the share of the samples that is labelled.
    kl_weight
        How strongly class sizes are drawn to the prior; inf for hard sizes.
    semantic_strength
        Strength of the neighbour graph for each sample; it stays the same during the training.
    adaptive_prior
        Whether the prior follows the sizes of the clusters found; otherwise it is uniform.
    """

    ramp: Callable[[float], float] = ssot.sigmoid_ramp
    kl_weight: float = 1.75
    semantic_strength: float = 0.0
    adaptive_prior: bool = False

    def settings(self) -> dict[str, Any]:
        """Return the settings as JSON stores them."""
        return {
            "ramp": self.ramp.__name__,
            "kl_weight": "inf" if math.isinf(self.kl_weight) else self.kl_weight,
            "semantic_strength": self.semantic_strength,
            "adaptive_prior": self.adaptive_prior,
        }


METHODS = {
    "balanced Sinkhorn": Method(ramp=all_of_the_mass, kl_weight=math.inf),
    "UOT": Method(ramp=all_of_the_mass),
    "POT": Method(kl_weight=math.inf),
    "P²OT": Method(),
    "SP²OT": Method(semantic_strength=0.8),
    "SP²OT, adaptive prior": Method(semantic_strength=0.8, adaptive_prior=True),
}
"""Unbalanced (UOT) and partial transport (POT) relax one side of the balanced problem each."""
