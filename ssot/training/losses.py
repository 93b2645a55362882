"""Losses of partial soft labels: cross-entropy with a view's own targets, or the other views'."""

from __future__ import annotations

import torch
from torch import Tensor

from ssot.training.checks import require_floats, require_logits


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    r"""Return the cross-entropy of partial soft labels.

    .. math:: -\frac{1}{B} \sum_{i=1}^{B} \sum_{k=1}^{K} t_{ik} \log \mathrm{softmax}(z_i)_k

    averaged over leading dimensions. A sample that is half labelled (a row of targets that sums to
    0.5) counts half, one that is not labelled does not count, and a batch without any labels has
    the loss 0 and the gradient 0. So the loss grows with the labelled mass, as rho does; divide by
    ``targets.sum(dim=(-2, -1)).mean()`` for a loss for each labelled sample.

    Parameters
    ----------
    logits : (..., B, K) tensor
        Any leading dimensions: heads, views. ``-inf`` masks a class that has no target; each row
        needs a finite entry. Half precision is computed in float32.
    targets : (..., B, K) tensor
        Of the same shape, 0 or above, rows summing to 1 or less; no gradient flows into them.

    Returns
    -------
    tensor
        One number, differentiable in `logits`.

    Raises
    ------
    TypeError
        If an argument is not a tensor of floats.
    ValueError
        If the shapes differ, or leave no samples or classes.
    """
    _check(logits, targets)
    log_probabilities = _at_least_single(logits).log_softmax(dim=-1)
    targets = targets.detach().to(log_probabilities.dtype)
    # A masked class without a target would count 0 * inf.
    counted = torch.where(targets > 0, log_probabilities, 0.0)
    return -(targets * counted).sum(dim=-1).mean()


def swapped_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    r"""Return the cross-entropy of each view with the mean of the other views' targets.

    .. math:: \frac{1}{V} \sum_{v=1}^{V} \ell\Big(z_v, \frac{1}{V - 1} \sum_{w \ne v} t_w\Big)

    with :math:`\ell` the `soft_cross_entropy`: swapped prediction, by which a network must give
    two augmentations of an image the same label.

    Parameters
    ----------
    logits : (..., V, B, K) tensor
        The third dimension from the end counts the views, at least two; see `soft_cross_entropy`.
    targets : (..., V, B, K) tensor
        Of the same shape; row i is the same sample in each view.

    Returns
    -------
    tensor
        One number, differentiable in `logits`.

    Raises
    ------
    TypeError
        If an argument is not a tensor of floats.
    ValueError
        If the shapes differ, or there are fewer than two views.

    References
    ----------
    Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments",
    arXiv 2006.09882.
    """
    _check(logits, targets)
    views = logits.shape[-3] if logits.ndim > 2 else 1
    if views < 2:
        raise ValueError(
            "logits must have shape (..., views, B, K) with at least 2 views, got "
            f"{tuple(logits.shape)}; use soft_cross_entropy for one view"
        )
    targets = _at_least_single(targets.detach())
    # Sums of numbers that are not negative never fall, so no difference is below 0.
    others = (targets.sum(dim=-3, keepdim=True) - targets) / (views - 1)
    return soft_cross_entropy(logits, others)


def _at_least_single(values: Tensor) -> Tensor:
    return values.float() if values.element_size() < torch.float32.itemsize else values


def _check(logits: Tensor, targets: Tensor) -> None:
    require_floats(targets, "targets")
    require_logits(logits)
    if targets.shape != logits.shape:
        raise ValueError(
            f"targets must have the shape of logits, {tuple(logits.shape)}, got "
            f"{tuple(targets.shape)}; class indices need torch.nn.functional.one_hot first"
        )
