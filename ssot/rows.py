"""What the rows of a problem come to, on all of its ranks together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssot.arrays import Array, namespace
from ssot.checks import Extent, whole


@dataclass(frozen=True)
class WeightSums:
    """Sums over the sample weights: ``sum alpha``, ``sum alpha log alpha``, and the largest."""

    total: float
    entropy: float
    largest: float

    @classmethod
    def of(cls, weight: Array) -> WeightSums:
        """Return the sums of some weights, where 0 log 0 is 0."""
        if not len(weight):
            return cls(0.0, 0.0, 0.0)
        xp = namespace(weight)
        log = xp.log(xp.where(weight > 0, weight, 1.0))
        sums = [xp.sum(weight), xp.sum(weight * log), xp.max(weight)]
        return cls(*xp.stack(sums).tolist())


@dataclass(frozen=True)
class RowFacts:
    """What one rank knows of its rows.

    Attributes
    ----------
    shape : tuple of int
        Of its part of the cost.
    dtype : str
        Of the computation.
    is_streamed : bool
        Whether its cost is read block by block.
    extent : Extent
        Of its costs.
    weight : WeightSums or None
        Of its sample weights, where some were given.
    settings : dict of str to object
        What must be the same on all ranks, by the names of the arguments.
    """

    shape: tuple[int, int]
    dtype: str
    is_streamed: bool
    extent: Extent
    weight: WeightSums | None
    settings: dict[str, Any]


@dataclass(frozen=True)
class Totals:
    """What the rows of all ranks come to.

    Attributes
    ----------
    samples : int
        N.
    common_offset : float
        The finite cost nearest to 0 where all have one sign, else 0.
    forbids_pairs : bool
        Whether some cost is inf.
    is_streamed : bool
        Whether some rank reads its cost block by block.
    given_weight : float
        What the given sample weights sum to, 1 but for rounding; 0 where none were given.
    weight_entropy : float
        ``sum alpha log alpha``, of weights that sum to 1.
    largest_weight : float
        The largest of these.
    """

    samples: int
    common_offset: float
    forbids_pairs: bool
    is_streamed: bool
    given_weight: float
    weight_entropy: float
    largest_weight: float


def totals_of(ranks: Sequence[RowFacts]) -> Totals:
    """Return what the rows come to, or say in what the ranks differ."""
    _require_alike(ranks)
    samples = sum(facts.shape[0] for facts in ranks)
    if samples == 0:
        raise ValueError("cost must have at least one sample, got none on all ranks")
    smallest = min(facts.extent.smallest for facts in ranks)
    largest = max(facts.extent.largest for facts in ranks)
    weights = [facts.weight for facts in ranks if facts.weight is not None]
    total, entropy, heaviest = 0.0, -math.log(samples), 1.0 / samples
    if weights:
        total = whole(math.fsum(weight.total for weight in weights), "sample_weight")
        entropy = math.fsum(weight.entropy for weight in weights) / total - math.log(total)
        heaviest = max(weight.largest for weight in weights) / total
    return Totals(
        samples=samples,
        common_offset=max(smallest, 0.0) + min(largest, 0.0),
        forbids_pairs=not all(facts.extent.is_finite for facts in ranks),
        is_streamed=any(facts.is_streamed for facts in ranks),
        given_weight=total,
        weight_entropy=entropy,
        largest_weight=heaviest,
    )


def _require_alike(ranks: Sequence[RowFacts]) -> None:
    for rank, facts in enumerate(ranks[1:], start=1):
        kinds = {
            "cost": ((facts.shape[1], facts.dtype), (ranks[0].shape[1], ranks[0].dtype)),
            "sample_weight": (facts.weight is not None, ranks[0].weight is not None),
            **{name: (facts.settings[name], ranks[0].settings[name]) for name in facts.settings},
        }
        for name, (own, first) in kinds.items():
            if not np.array_equal(own, first):
                raise ValueError(
                    f"{name} must be the same on all ranks (of cost the classes and the dtype, of "
                    f"sample_weight and graph whether they are given), got {first} on rank 0 and "
                    f"{own} on rank {rank}"
                )
