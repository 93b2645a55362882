"""Newton directions of several problems at once, on any device, without a word to the host."""

from __future__ import annotations

import torch
from torch import Tensor

NEGLIGIBLE_STIFFNESS = 1e12
"""How many times too long a column's own step is where its curvature is no more than rounding."""


def newton_directions(
    *,
    overlap: Tensor,
    free: Tensor,
    diagonal: Tensor,
    gradient: Tensor,
    epsilon: Tensor,
    longest: Tensor,
) -> Tensor:
    """Return d with ``(L / epsilon + diag(diagonal)) d = gradient`` on the free columns, else 0.

    ``L = diag(W 1) - W``. A d of which an entry exceeds `longest` is shortened. Where rounding
    hides that the matrix is definite, its diagonal alone makes the direction, which is one of
    ascent too. A column without curvature, whose mass has underflowed, goes as far as it may
    towards its demand.

    Parameters
    ----------
    overlap : (A, K + 1, K + 1) tensor
        W, of which the diagonal does not matter.
    free : (A, K + 1) tensor of bool
        Which prices may change.
    diagonal, gradient : (A, K + 1) tensor
    epsilon, longest : (A, 1) tensor

    Returns
    -------
    (A, K + 1) tensor
    """
    matrix = overlap / -epsilon[..., None]
    matrix.diagonal(dim1=1, dim2=2).zero_()
    stiffness = diagonal - matrix.sum(dim=2)
    is_bent = free & (gradient.abs() < NEGLIGIBLE_STIFFNESS * stiffness * longest)
    # With a diagonal of 1 the factorisation does not depend on the units of the columns.
    scale = torch.where(is_bent, stiffness, 1.0).rsqrt()
    matrix *= (is_bent * scale)[..., None] * (is_bent * scale)[:, None]
    matrix.diagonal(dim1=1, dim2=2).fill_(1.0)
    factor, failure = torch.linalg.cholesky_ex(matrix)
    scaled = torch.where(is_bent, gradient * scale, 0.0)
    solution = torch.cholesky_solve(scaled[..., None], factor)[..., 0]
    is_right = (failure == 0)[:, None] & solution.isfinite().all(dim=1, keepdim=True)
    direction = torch.where(is_right, solution, scaled) * scale
    length = direction.abs().amax(dim=1, keepdim=True)
    direction = torch.where(length > longest, direction * (longest / length), direction)
    return torch.where(free & ~is_bent, longest * gradient.sign(), direction)
