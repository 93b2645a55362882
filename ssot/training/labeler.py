"""From the logits of a training step to its pseudo-labels, in one call."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import sparse
from torch import Tensor

from ssot.adjacency import Edges, GraphLike, GraphRows, graph_in
from ssot.arrays import HOST, isolated, place_of, to_numpy
from ssot.batch import SolutionBatch
from ssot.checks import (
    class_strengths,
    distribution,
    positive_number,
    semantic_strength,
    switch,
    transported_mass,
)
from ssot.kernels import check_backend
from ssot.ranks import ranks_of
from ssot.schedule import semantic_weight as published_semantic_weight
from ssot.schedule import sigmoid_ramp
from ssot.solve import OnFailure, check_on_failure, checked_tolerance, solve
from ssot.subgraph import between, graph_rows, require_range, restricted, row_count
from ssot.training.checks import checked_batch, checked_count
from ssot.training.memory import MemoryBank
from ssot.training.prior import AdaptivePrior


@dataclass(frozen=True, eq=False)
class PseudoLabels:
    """The pseudo-labels of a batch, and what they come from.

    Attributes
    ----------
    targets : (..., B, K) tensor
        Soft labels in the shape, dtype and device of the logits, without gradients. A row sums to
        the labelled share of its sample, in [0, 1]; over all samples solved for, the mean is rho.
    solutions : SolutionBatch
        The solution of each head and view, in the order of ``targets.flatten(0, -3)``, with status,
        certificate and objective; one where the logits have no leading dimension.
    ids : (n,) tensor of int64
        The samples that were solved for: the rows of each solution's plan.
    step : int
        Number of the call, from 1.
    rho : float
        Transported mass.
    semantic_weight : float
        Strength of the graph; 0 without one.
    """

    targets: Tensor
    solutions: SolutionBatch
    ids: Tensor
    step: int
    rho: float
    semantic_weight: float


class PseudoLabeler:
    """Pseudo-labels of each training step, by one batch of solves over all heads and views.

    Each call puts the batch into a memory bank, solves for all that the bank holds, starting from
    the prices of the call before, and returns the rows of the batch. Calls are counted from 1, and
    call t has the progress ``t / total_steps``, which sets rho and the semantic weight: the last
    one, and any after it, has the progress 1. Nothing tracks gradients.

    Parameters
    ----------
    total_steps : int
        Number of calls in the training, epochs times batches in each; the length of the schedules.
    capacity : int, optional
        Samples that are solved for together, the batch included; 10 to 100 for each class, so that
        the rare ones are among them. Default: the batch alone, with no bank.
    graph : sparse (N, N) array or tensor, or (indices, weights), optional
        Semantic graph of the whole data set, from `knn_graph` on frozen features; see
        `restrict_graph`. For logits on a device best a tensor there. Not copied: do not change it.
    ramp : callable or float
        Maps the progress to rho, or is rho. Default `sigmoid_ramp` (published).
    semantic_weight : callable, float or None
        Maps rho and the number of samples solved for to the strength of the graph, or is that
        strength; None is 0.2 for each of those samples, as in `solve`. Default
        `ssot.semantic_weight` (published).
    kl_weight : float or (K,) array
        See `solve`. Default 1 (published).
    epsilon : float
        See `solve`. Default 0.1 (published).
    slack_entropy : bool
        See `Problem`: with False sure samples are labelled wholly. Default True (published).
    prior : (K,) array or AdaptivePrior, optional
        Class shares; an adaptive one, with as many heads as the logits, takes note of the plans of
        each call whose solves succeeded. Default uniform.
    tol : float
        See `solve`. 1e-4 to 1e-2; default 1e-3, as labels need no more.
    backend : str
        See `solve`. Default "auto".
    on_failure : {"warn", "raise", "return"}
        See `solve`. A call that raises leaves step, prices and prior as they were. Default "warn".
    group : torch.distributed.ProcessGroup, optional
        The processes of a data-parallel training: all make each call, with a batch of their own,
        and label for the banks of all together. Each keeps, and saves, its own state.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what was given and how to fix it.

    Examples
    --------
    >>> import torch
    >>> from ssot.training import PseudoLabeler, soft_cross_entropy
    >>> labeler = PseudoLabeler(total_steps=100)
    >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.1, 0.0]], requires_grad=True)
    >>> labels = labeler(logits, torch.tensor([5, 0, 3]))
    >>> soft_cross_entropy(logits, labels.targets).backward()
    >>> labels.step, round(labels.rho, 4) == round(float(labels.targets.sum()) / 3, 4)
    (1, True)
    """

    def __init__(
        self,
        total_steps: int,
        *,
        capacity: int | None = None,
        graph: GraphLike | None = None,
        ramp: Callable[[float], float] | float = sigmoid_ramp,
        semantic_weight: Callable[[float, int], float] | float | None = published_semantic_weight,
        kl_weight: ArrayLike = 1.0,
        epsilon: float = 0.1,
        slack_entropy: bool = True,
        prior: ArrayLike | AdaptivePrior | None = None,
        tol: float = 1e-3,
        backend: str = "auto",
        on_failure: OnFailure = "warn",
        group: Any = None,
    ) -> None:
        self.total_steps = checked_count(total_steps, "total_steps")
        self.step = 0
        self.bank = None if capacity is None else MemoryBank(capacity)
        self.prior = prior
        self._ranks = ranks_of(group)
        self._rows = None if graph is None else _prepared(graph, on_host=self._ranks.size > 1)
        self._ramp = ramp if callable(ramp) else transported_mass(ramp, "ramp")
        self._semantic_weight = semantic_weight
        if not callable(semantic_weight):
            _strength(semantic_weight, samples=1)
        # The first logits tell whether there are as many classes as entries.
        smoothing, strengths = positive_number(epsilon, "epsilon"), to_numpy(kl_weight, "kl_weight")
        class_strengths(strengths, strengths.size, smoothing)
        if not (prior is None or isinstance(prior, AdaptivePrior)):
            shares = to_numpy(prior, "prior")
            distribution(shares, shares.size, "prior")
        check_backend(backend)
        check_on_failure(on_failure)
        # Lists suit logits on any device.
        self._options = {
            "kl_weight": strengths.tolist(),
            "epsilon": smoothing,
            "slack_entropy": switch(slack_entropy, "slack_entropy"),
            "tol": checked_tolerance(tol),
            "backend": backend,
            "on_failure": on_failure,
            "group": group,
        }
        self._leading: tuple[int, ...] | None = None
        self._prices: list[Tensor | None] = []  # of each head and view; None where a solve failed

    def __call__(self, logits: Tensor, ids: Tensor) -> PseudoLabels:
        """Return the pseudo-labels of a batch, and count a step.

        Parameters
        ----------
        logits : (..., B, K) tensor
            Predictions of each head and view: (B, K), (heads, B, K) or (heads, views, B, K). With a
            bank, of the same leading shape in all calls.
        ids : (B,) tensor of integers
            Which sample of the data set each row is, from 0; a row of the graph. Of a sample that
            is in the batch twice, the last row counts, and both get its labels.

        Returns
        -------
        PseudoLabels

        Raises
        ------
        TypeError, ValueError
            If an argument is not as described, or a row of logits has NaN, inf or no finite entry.
        ConvergenceError
            If a solve fails and `on_failure` is "raise".
        """
        with isolated(place_of(logits)):
            (rho, bank), told = self._ranks.share(lambda: self._remember(logits, ids))
            held, counts = zip(*told, strict=True)
            if len(set(counts)) > 1:
                raise ValueError(
                    "graph must be that of the whole data set, the same on all ranks, got graphs "
                    f"of {', '.join(map(str, counts))} samples on ranks 0 to {len(counts) - 1}"
                )
            return self._label(
                logits.detach(), torch.as_tensor(ids, device=logits.device), rho, bank, held
            )

    def _remember(
        self, logits: Tensor, ids: Tensor
    ) -> tuple[tuple[float, MemoryBank], tuple[Any, int | None]]:
        """Return rho and the bank with the batch in it, and what it holds of how many samples."""
        ids = checked_batch(logits, ids)
        count = None if self._rows is None else row_count(self._rows)
        if count is not None:
            require_range(ids, count, "ids")
        _require_usable(logits)  # or they would stay in the bank
        self._prior_rows(tuple(logits.shape[:-2]))
        progress = min((self.step + 1) / self.total_steps, 1.0)
        ramp = self._ramp
        rho = transported_mass(ramp(progress) if callable(ramp) else ramp, "ramp")
        bank = MemoryBank(len(ids)) if self.bank is None else self.bank
        bank.add(logits.detach(), ids)
        held = bank.ids if self._ranks.size == 1 else bank.ids.numpy(force=True)
        return (rho, bank), (held, count)

    def _label(
        self, logits: Tensor, ids: Tensor, rho: float, bank: MemoryBank, held: Sequence[Any]
    ) -> PseudoLabels:
        """Solve for what the banks of all ranks hold."""
        leading, classes = tuple(logits.shape[:-2]), logits.shape[-1]
        samples = sum(map(len, held))

        def find() -> tuple[dict[str, Any], None]:
            weight = self._weight(rho, samples)
            return {
                "logits": bank.logits.reshape(-1, len(bank), classes),
                "graph": self._graph_between(bank.ids, held) if weight else None,
                "rho": rho,
                "semantic_weight": weight,
                "prior": self._prior_rows(leading),
                "init": self._starts(leading, classes),
            }, None

        # What fails on one rank, as a function that the caller gave may, the others hear here.
        arguments, _ = self._ranks.share(find)
        solutions: Any = solve(**arguments, **self._options)
        rows = bank.positions(ids)
        plans = torch.stack([samples * solution.plan[rows] for solution in solutions])
        self._learn(solutions, leading)
        self.step += 1
        targets = plans.reshape(logits.shape).to(logits.dtype)
        weight = arguments["semantic_weight"]
        return PseudoLabels(targets, solutions, bank.ids, self.step, rho, weight)

    def _graph_between(self, own: Tensor, held: Sequence[Any]) -> Any:
        """Return the graph's rows of this rank's samples, with columns for those of all."""
        if self._rows is None or self._ranks.size == 1:
            return None if self._rows is None else restricted(self._rows, own)
        return between(self._rows, own.numpy(force=True), np.concatenate(held))

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the state: numbers and tensors, as ``torch.save`` takes them.

        Arguments of the constructor are not part of it. A run that loads it goes on as if it had
        not been interrupted.
        """
        return {
            "step": self.step,
            "leading": self._leading,
            "prices": [None if prices is None else prices.clone() for prices in self._prices],
            "bank": None if self.bank is None else self.bank.state_dict(),
            "prior": self.prior.state_dict() if isinstance(self.prior, AdaptivePrior) else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a copy of a state, on the device that its tensors are on; of a wrong one, none.

        Raises
        ------
        ValueError
            If it is the state of a labeler with another bank or prior.
        """
        parts: dict[str, Any] = {
            "bank": self.bank,
            "prior": self.prior if isinstance(self.prior, AdaptivePrior) else None,
        }
        for name, part in parts.items():
            if (part is None) != (state[name] is None):
                raise ValueError(
                    f"state must {'not ' * (part is None)}have a {name}, as this labeler "
                    f"does{' not' * (part is None)}; make both with the same arguments"
                )
            if part is not None:
                part._require_own(state[name])
        self.step, self._leading, self._prices = (
            state["step"],
            None if state["leading"] is None else tuple(state["leading"]),
            [None if p is None else p.to("cpu", copy=True) for p in state["prices"]],
        )
        for name, part in parts.items():
            if part is not None:
                part.load_state_dict(state[name])

    def _weight(self, rho: float, samples: int) -> float:
        """Return the semantic weight for a number of samples."""
        if self._rows is None:
            return 0.0
        weight = self._semantic_weight
        return _strength(weight(rho, samples) if callable(weight) else weight, samples)

    def _prior_rows(self, leading: tuple[int, ...]) -> list[Any] | None:
        """Return the prior of every problem, or of each: heads in order, and their views."""
        if self.prior is None:
            return None
        if not isinstance(self.prior, AdaptivePrior):
            shares: list[Any] = to_numpy(self.prior, "prior").tolist()
            return shares
        rows = self.prior.value
        heads = leading[0] if leading else 1
        if len(rows) != heads:
            raise ValueError(
                f"prior must have a row for each of the {heads} heads of the logits, got "
                f"{len(rows)}; pass AdaptivePrior(..., heads={heads})"
            )
        own: list[Any] = rows.repeat_interleave(math.prod(leading[1:]), dim=0).tolist()
        return own

    def _starts(self, leading: tuple[int, ...], classes: int) -> list[Any] | None:
        """Return the prices to start from, where they are of the same heads, views and classes."""
        known = [prices for prices in self._prices if prices is not None]
        if leading != self._leading or not known or len(known[0]) != classes + 1:
            return None
        return [None if prices is None else prices.numpy() for prices in self._prices]

    def _learn(self, solutions: SolutionBatch, leading: tuple[int, ...]) -> None:
        """Keep the prices and the class sizes, of successes alone."""
        self._leading = leading
        self._prices = [
            solution.prices.cpu() if solution.status.is_success else None for solution in solutions
        ]
        if isinstance(self.prior, AdaptivePrior):
            own = torch.stack([s.plan.sum(dim=0).double() * s.status.is_success for s in solutions])
            masses = self._ranks.sum(own.numpy(force=True).ravel())
            heads = leading[0] if leading else 1
            self.prior.update(torch.from_numpy(masses.reshape(heads, -1, own.shape[1])))


def _strength(value: Any, samples: int) -> float:
    """Return a semantic weight, which `solve` checks again with its own graph and dtype."""
    return semantic_strength(value, sparse.csr_array((1, 1)), np.empty(0), samples)


def _prepared(graph: GraphLike, *, on_host: bool) -> GraphRows:
    """Return the rows of a graph; in CPU memory as a SciPy array, which is restricted faster."""
    rows = graph_rows(graph)
    is_on_device = isinstance(rows, Edges) and rows.starts.device.type != "cpu" and not on_host
    return rows if is_on_device else graph_in(rows, HOST)


def _require_usable(logits: Tensor) -> None:
    # The largest entry of a row is NaN if one is, and -inf if all are.
    if not logits.amax(dim=-1).isfinite().all():
        raise ValueError(
            "logits must be finite in each row, or -inf for masked classes, not all of them; got "
            "NaN, inf or a row of -inf: leave that batch out"
        )
