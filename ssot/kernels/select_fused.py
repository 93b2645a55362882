"""Choose the fused passes where they run, and the plain Torch operations elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssot.kernels.protocol import Bound
from ssot.kernels.torch_rows import to_device

logger = logging.getLogger(__name__)


@cache
def fused_passes(device: torch.device) -> Any:
    """Return the module of fused passes, or None where they cannot run.

    Triton compiles on first use and needs a C compiler for that, so it is tried out once.
    """
    if device.type != "cuda" or find_spec("triton") is None:
        return None
    try:
        from ssot.kernels import fused

        one = torch.ones(1, 2, dtype=torch.float64, device=device)
        number = one[0, :1]
        rows = fused.Rows([one], None, [number], shifts=number, pulls=number)
        fused.sum_rows(rows, torch.cat([one, one[:, :1]], dim=1), number)
        torch.cuda.synchronize(device)
    except Exception as error:  # whatever a compiler may raise
        logger.warning("Triton cannot be used, plain Torch operations are: %s", error)
        return None
    return fused


def fused_rows(bounds: Sequence[Bound], products: Sequence[Tensor | None]) -> tuple[Any, Any]:
    """Return the module of fused passes and the problems as it wants them, or None twice.

    They know only slacks with an entropy.
    """
    cost = bounds[0].cost
    fused = fused_passes(cost.device)
    given = [product for product in products if product is not None]
    is_known = all(bound.slack_entropy for bound in bounds)
    if fused is None or not is_known or len(given) not in (0, len(bounds)):
        return None, None
    numbers = np.array([[bound.shift, 2.0 * bound.semantic_weight] for bound in bounds]).T
    shifts, pulls = to_device(np.ascontiguousarray(numbers), cost.device)
    rows = fused.Rows(
        costs=[bound.cost for bound in bounds],
        products=given or None,
        weights=[bound.sample_weight for bound in bounds],
        shifts=shifts,
        pulls=pulls,
    )
    return (fused, rows) if fused.is_supported(rows) else (None, None)
