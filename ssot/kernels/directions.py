"""Newton directions of several problems at once, on any device, without a word to the host."""

from __future__ import annotations

import torch
from torch import Tensor


def newton_directions(
    *, overlap: Tensor, free: Tensor, diagonal: Tensor, gradient: Tensor, epsilon: Tensor
) -> Tensor:
    """Return d with ``(L / epsilon + diag(diagonal)) d = gradient`` on the free columns, else 0.

    ``L = diag(W 1) - W``. Where rounding hides that the matrix is definite, its diagonal alone
    makes the direction, which is one of ascent too.

    Parameters
    ----------
    overlap : (A, K + 1, K + 1) tensor
        W, of which the diagonal does not matter; it is used up.
    free : (A, K + 1) tensor of bool
        Which prices may change.
    diagonal, gradient : (A, K + 1) tensor
    epsilon : (A, 1) tensor

    Returns
    -------
    (A, K + 1) tensor
    """
    matrix = overlap.div_(-epsilon[..., None])
    matrix.diagonal(dim1=1, dim2=2).zero_()
    stiffness = diagonal - matrix.sum(dim=2)
    free = free & (stiffness > 0)
    # With a diagonal of 1 the factorisation does not depend on the units of the columns.
    scale = torch.where(free, stiffness, 1.0).rsqrt()
    matrix *= (free * scale)[..., None] * (free * scale)[:, None]
    matrix.diagonal(dim1=1, dim2=2).fill_(1.0)
    factor, failure = torch.linalg.cholesky_ex(matrix)
    scaled = torch.where(free, gradient * scale, 0.0)
    solution = torch.cholesky_solve(scaled[..., None], factor)[..., 0]
    is_right = (failure == 0)[:, None] & solution.isfinite().all(dim=1, keepdim=True)
    return torch.where(is_right, solution, scaled) * scale
