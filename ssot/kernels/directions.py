"""Newton directions of several problems at once, on any device, without a word to the host."""

from __future__ import annotations

import torch
from torch import Tensor

from ssot.curvature import CG_ACCURACY

STEPS = 24
"""Steps of conjugate gradients: all are made, as the host would have to be asked when to stop."""


def newton_directions(
    *,
    overlap: Tensor,
    free: Tensor,
    diagonal: Tensor,
    gradient: Tensor,
    epsilon: Tensor,
    longest: Tensor,
) -> Tensor:
    """Return d with ``(L / epsilon + diag(diagonal)) d = gradient`` on the free columns, roughly.

    ``L = diag(W 1) - W``. A problem keeps its direction from where it is accurate, where an entry
    would exceed `longest`, or where rounding hides the curvature. A column without curvature, whose
    mass has underflowed, goes as far as it may towards its demand.

    Parameters
    ----------
    overlap : (A, K + 1, K + 1) tensor
        W, of which the diagonal does not matter.
    free : (A, K + 1) tensor of bool
        Which prices may change.
    diagonal, gradient : (A, K + 1) tensor
    epsilon, longest : (A, 1) tensor
    """
    mass = overlap.sum(dim=2)
    jacobi = (mass - overlap.diagonal(dim1=1, dim2=2)) / epsilon + diagonal
    is_free = free & (jacobi > 0)
    jacobi = torch.where(is_free, jacobi, 1.0)
    residual = torch.where(is_free, gradient, 0.0)
    direction = torch.zeros_like(residual)
    search = residual / jacobi
    size = (residual * search).sum(dim=1, keepdim=True)
    goal = CG_ACCURACY * torch.linalg.vector_norm(residual, dim=1, keepdim=True)
    first, goes_on = search, goal > 0
    for _ in range(STEPS):
        spread = mass * search - torch.bmm(overlap, search[..., None])[..., 0]
        image = torch.where(is_free, spread / epsilon + diagonal * search, 0.0)
        curvature = (search * image).sum(dim=1, keepdim=True)
        step = size / curvature
        longer = direction + step * search
        fits = longer.abs().amax(dim=1, keepdim=True) <= longest
        goes_on = goes_on & (curvature > 0) & fits
        direction = torch.where(goes_on, longer, direction)
        residual = torch.where(goes_on, residual - step * image, residual)
        goes_on = goes_on & (torch.linalg.vector_norm(residual, dim=1, keepdim=True) > goal)
        conditioned = residual / jacobi
        size, previous = (residual * conditioned).sum(dim=1, keepdim=True), size
        search = conditioned + (size / previous) * search
    size = first.abs().amax(dim=1, keepdim=True)
    too_short = (direction == 0).all(dim=1, keepdim=True) & (size > 0)
    direction = torch.where(too_short, first * (longest / size), direction)
    return torch.where(free & ~is_free, longest * gradient.sign(), direction)
