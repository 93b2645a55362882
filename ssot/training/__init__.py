"""Pseudo-labels in a Torch training loop: memory bank, labeler, class sizes and losses."""

try:
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError(
        "ssot.training needs Torch: install the package with its torch extra"
    ) from error

from ssot.training.labeler import PseudoLabeler, PseudoLabels
from ssot.training.losses import soft_cross_entropy, swapped_cross_entropy
from ssot.training.memory import MemoryBank
from ssot.training.prior import AdaptivePrior

__all__ = [
    "AdaptivePrior",
    "MemoryBank",
    "PseudoLabeler",
    "PseudoLabels",
    "soft_cross_entropy",
    "swapped_cross_entropy",
]
