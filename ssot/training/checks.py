"""The checks that the parts of a training loop share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def require_floats(value: Any, name: str) -> None:
    """Refuse what is not a tensor of floats."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        given = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a tensor of floats, got {given}; pass {name}.float()")


def require_logits(logits: Any) -> None:
    """Refuse what are not predictions of some samples for some classes."""
    require_floats(logits, "logits")
    if logits.ndim < 2 or 0 in logits.shape:
        raise ValueError(
            "logits must have shape (..., B, K) with at least one sample and class, got "
            f"{tuple(logits.shape)}"
        )


def checked_batch(logits: Tensor, ids: Tensor) -> Tensor:
    """Return the ids of a batch as int64 on the device of its logits, or say what is wrong."""
    require_logits(logits)
    ids = torch.as_tensor(ids, device=logits.device)
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"ids must hold integers, got {ids.dtype}; pass indices of the data set")
    if ids.shape != logits.shape[-2:-1]:
        raise ValueError(
            f"ids must have shape {tuple(logits.shape[-2:-1])}, one for each sample of the batch, "
            f"got {tuple(ids.shape)}"
        )
    if int(ids.min()) < 0:
        raise ValueError(f"ids must be 0 or above, got {int(ids.min())}")
    return ids.long()


def checked_count(value: Any, name: str) -> int:
    """Return an integer of at least 1."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value.__index__() < 1:
        raise ValueError(f"{name} must be 1 or above, got {value}")
    return int(value.__index__())
