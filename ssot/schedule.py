"""Schedules of a training run: the transported mass and the semantic weight as plain functions.

Each ramp maps the progress of the training, ``progress = step / total_steps``, to the transported
mass ``rho``. In a training loop::

    rho = sigmoid_ramp(step / total_steps)
    plan = sp2ot_plan(cost, graph, rho=rho, semantic_weight=semantic_weight(rho, len(cost)))
"""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from ssot.checks import PUBLISHED_SEMANTIC_STRENGTH


def sigmoid_ramp(progress: float, start: float = 0.1) -> float:
    r"""Return the published transported mass: slow at first, fast, and slow again near 1.

    .. math:: \rho = \rho_0 + (1 - \rho_0) \exp(-5 (1 - t / T)^2)

    with :math:`t / T` the progress and :math:`\rho_0` the `start`. At progress 0 this is
    :math:`\rho_0 + (1 - \rho_0) e^{-5}`, a little above `start`: 0.106 at the default.

    Parameters
    ----------
    progress : float
        Share of the training that is done, 0 or above. From 1 on the result stays 1.
    start : float
        The mass that the ramp sets out from, in (0, 1]; 0.05 to 0.3 in practice. Default 0.1
        (published).

    Returns
    -------
    float
        ``rho`` in (0, 1], non-decreasing in `progress`, exactly 1 at progress 1.

    Raises
    ------
    TypeError
        If an argument is not a number.
    ValueError
        If `progress` is negative or NaN, or `start` is not in (0, 1].

    References
    ----------
    Zhang, Ren and He, "SP2OT: Semantic-Regularized Progressive Partial Optimal Transport for
    Imbalanced Clustering", arXiv 2404.03446.
    """
    done = _progress(progress)
    return _rise(start, math.exp(-5.0 * (1.0 - done) ** 2))


def linear_ramp(progress: float, start: float = 0.1) -> float:
    r"""Return a transported mass that grows evenly, :math:`\rho_0 + (1 - \rho_0) \, t / T`.

    Parameters
    ----------
    progress : float
        Share of the training that is done, 0 or above. From 1 on the result stays 1.
    start : float
        The mass at progress 0, in (0, 1]; 0.05 to 0.3 in practice. Default 0.1.

    Returns
    -------
    float
        ``rho`` in (0, 1], non-decreasing in `progress`, exactly 1 at progress 1.

    Raises
    ------
    TypeError
        If an argument is not a number.
    ValueError
        If `progress` is negative or NaN, or `start` is not in (0, 1].
    """
    return _rise(start, _progress(progress))


def cosine_ramp(progress: float, start: float = 0.1) -> float:
    r"""Return a transported mass that follows half a cosine, level at both ends.

    .. math:: \rho = \rho_0 + (1 - \rho_0) \, (1 - \cos(\pi t / T)) / 2

    Parameters
    ----------
    progress : float
        Share of the training that is done, 0 or above. From 1 on the result stays 1.
    start : float
        The mass at progress 0, in (0, 1]; 0.05 to 0.3 in practice. Default 0.1.

    Returns
    -------
    float
        ``rho`` in (0, 1], non-decreasing in `progress`, exactly 1 at progress 1.

    Raises
    ------
    TypeError
        If an argument is not a number.
    ValueError
        If `progress` is negative or NaN, or `start` is not in (0, 1].
    """
    # sin^2 of the half angle is (1 - cos) / 2 without its cancellation near progress 0.
    return _rise(start, math.sin(0.5 * math.pi * _progress(progress)) ** 2)


def semantic_weight(
    rho: float, n_samples: int, strength: float = PUBLISHED_SEMANTIC_STRENGTH
) -> float:
    r"""Return the published strength of the graph, ``strength * n_samples * (1 - rho)``.

    It falls to 0 as the transported mass grows to 1. The factor `n_samples` makes a strength mean
    the same at every N: entries of the plan are of order 1 / N and the semantic term multiplies
    pairs of them, so at a fixed weight it would fade as 1 / N. Published is 1000 (1 - rho) at
    N = 5,120, which the default rounds to 1024 (1 - rho).

    Parameters
    ----------
    rho : float
        Transported mass, in (0, 1].
    n_samples : int
        Number of samples N that are solved for together, 1 or above.
    strength : float
        Weight for each sample, in the unit of the cost, 0 or above; 0.05 to 1 in practice.
        Default 0.2 (published, rounded).

    Returns
    -------
    float
        The ``semantic_weight`` of a problem with `n_samples` samples.

    Raises
    ------
    TypeError
        If an argument is not a number, or `n_samples` is not an integer.
    ValueError
        If an argument is out of its range.

    References
    ----------
    Zhang, Ren and He, "SP2OT: Semantic-Regularized Progressive Partial Optimal Transport for
    Imbalanced Clustering", arXiv 2404.03446.
    """
    left_out = 1.0 - _share(rho, "rho")
    if not isinstance(n_samples, Integral):
        raise TypeError(f"n_samples must be an integer, got {n_samples!r}; pass len(cost)")
    if n_samples < 1:
        raise ValueError(f"n_samples must be 1 or above, got {n_samples}; pass len(cost)")
    strength = _number(strength, "strength")
    if not 0 <= strength < math.inf:
        raise ValueError(f"strength must be a finite number, 0 or above, got {strength}")
    return strength * int(n_samples) * left_out


def _rise(start: float, shape: float) -> float:
    """Go from `start` to 1 as `shape` goes from 0 to 1; rounding can neither miss nor pass 1."""
    share = _share(start, "start")
    return share + (1.0 - share) * shape


def _progress(progress: Any) -> float:
    done = _number(progress, "progress")
    if not done >= 0:
        raise ValueError(
            f"progress must be 0 or above, got {done}; pass step / total_steps, counted from 0"
        )
    return min(done, 1.0)


def _share(value: Any, name: str) -> float:
    number = _number(value, name)
    if not 0 < number <= 1:
        raise ValueError(f"{name} must be in (0, 1], got {number}; it is a share of the samples")
    return number


def _number(value: Any, name: str) -> float:
    if not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}; pass float({name})")
    return float(value)
