"""Class sizes that follow the plans of a training run, in place of a fixed prior."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ssot.arrays import isolated, place_of, to_number
from ssot.training.checks import checked_count


class AdaptivePrior:
    r"""Class shares estimated from the column masses of past plans, and smoothed.

    .. math::
        m \leftarrow \mu m + (1 - \mu) \, c / \textstyle\sum_k c_k, \qquad
        \beta = (1 - u) \, m + u / K,

    with c the column masses of a plan, :math:`\mu` the `momentum`, u the share `uniform`, and m
    uniform at first. A uniform prior pays for splitting frequent classes and for filling up rare
    ones, the more so the larger `kl_weight` and rho are. This one asks for the class sizes that the
    plans have shown, so that a strong `kl_weight` holds them steady instead. It is meant for
    long-tailed data, once the large classes are told apart: a low rho early in the training, and a
    high momentum, give the network that time. The risk is that the rich get richer: a class that is
    small by accident is asked to stay so and may die out. `uniform` bounds that, as no share falls
    below ``uniform / K``. Where classes are known to be of one size, leave the prior uniform.

    Parameters
    ----------
    n_classes : int
        Number of classes K.
    heads : int
        Rows of the prior: heads number their classes differently. Default 1.
    momentum : float
        Weight of the past in each update, in [0, 1): the shares are a mean over about the last
        ``1 / (1 - momentum)`` updates. 0.9 to 0.999 in practice; default 0.99.
    uniform : float
        Share of the uniform prior, in [0, 1]; 0.05 to 0.5 in practice, at 1 the prior stays
        uniform. Default 0.1.

    Raises
    ------
    TypeError, ValueError
        If an argument is not a number of its range.

    Examples
    --------
    >>> import torch
    >>> from ssot.training import AdaptivePrior
    >>> prior = AdaptivePrior(n_classes=2, momentum=0.5, uniform=0.2)
    >>> prior.update(torch.tensor([[0.3, 0.1]]))
    >>> prior.value
    tensor([[0.6000, 0.4000]], dtype=torch.float64)
    """

    def __init__(
        self, n_classes: int, *, heads: int = 1, momentum: float = 0.99, uniform: float = 0.1
    ) -> None:
        momentum, uniform = to_number(momentum, "momentum"), to_number(uniform, "uniform")
        if not 0 <= momentum < 1:
            raise ValueError(
                f"momentum must be in [0, 1), got {momentum}; 0.9 to 0.999 in practice"
            )
        if not 0 <= uniform <= 1:
            raise ValueError(f"uniform must be in [0, 1], got {uniform}; 0.1 to 0.5 in practice")
        shape = checked_count(heads, "heads"), checked_count(n_classes, "n_classes")
        self.momentum, self.uniform = momentum, uniform
        self._shares = torch.full(shape, 1.0 / n_classes, dtype=torch.float64, device="cpu")

    @property
    def value(self) -> Tensor:
        """The prior of each head, (heads, K): float64 on the CPU, rows that sum to 1."""
        return (1.0 - self.uniform) * self._shares + self.uniform / self._shares.shape[1]

    def update(self, masses: Tensor) -> None:
        """Take note of the class sizes of new plans.

        Parameters
        ----------
        masses : (heads, K) or (heads, views, K) tensor
            Column masses, ``plan.sum(dim=-2)``, in any unit and on any device. Views of a head are
            averaged; a head whose masses are all 0 keeps its shares.

        Raises
        ------
        ValueError
            If the shape is wrong, or an entry is negative or not finite.
        """
        heads, classes = self._shares.shape
        if masses.ndim not in (2, 3) or (masses.shape[0], masses.shape[-1]) != (heads, classes):
            raise ValueError(
                f"masses must have shape (heads, K) = {(heads, classes)}, or with views between, "
                f"got {tuple(masses.shape)}"
            )
        with isolated(place_of(masses)):
            seen = masses.to("cpu", torch.float64).reshape(heads, -1, classes).mean(dim=1)
            total = seen.sum(dim=1, keepdim=True)
            if not ((seen >= 0).all() and total.isfinite().all()):
                raise ValueError("masses must be finite, and 0 or above")
            learnt = torch.lerp(seen / total, self._shares, self.momentum)
            self._shares = torch.where(total > 0, learnt, self._shares)

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the state: numbers and tensors, as ``torch.save`` takes them."""
        return {"shares": self._shares.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a copy of a state.

        Raises
        ------
        ValueError
            If it is the state of a prior of other heads or classes.
        """
        self._require_own(state)
        self._shares = state["shares"].to("cpu", torch.float64, copy=True)

    def _require_own(self, state: Mapping[str, Any]) -> None:
        """Refuse the state of a prior of other heads or classes."""
        given, own = tuple(state["shares"].shape), tuple(self._shares.shape)
        if given != own:
            raise ValueError(f"state must be of a prior of (heads, K) = {own}, got one of {given}")
