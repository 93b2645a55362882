"""The processes that hold the rows of one problem between them: usually there is but one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from ssot.arrays import Vector

Own = TypeVar("Own")
Told = TypeVar("Told")


class Ranks(Protocol):
    """What the processes of one solve, its ranks, ask of each other.

    All ranks run the same algorithm on the same numbers: a rank's rows reach the others only as
    sums. Every method must be called by all ranks alike.

    Attributes
    ----------
    size : int
        How many there are.
    """

    size: int

    def share(self, find: Callable[[], tuple[Own, Told]]) -> tuple[Own, list[Told]]:
        """Return what this rank finds for itself, and what all tell, in their order.

        Where one raises, all do. What they tell is sent as bytes: let it be small.
        """
        ...

    def sum(self, numbers: Vector, agreed: bytes = b"") -> Vector:
        """Return the sum of the ranks' numbers, the same to the last bit on all of them.

        All must call it with the same `agreed`; an error tells where they do not.
        """
        ...


class Alone:
    """The one rank of a problem that is whole."""

    size = 1

    def share(self, find: Callable[[], tuple[Own, Told]]) -> tuple[Own, list[Told]]:
        """Return what there is to find."""
        own, told = find()
        return own, [told]

    def sum(self, numbers: Vector, agreed: bytes = b"") -> Vector:
        """Return the numbers."""
        return numbers


ALONE = Alone()


def ranks_of(group: Any) -> Ranks:
    """Return the ranks of a `torch.distributed` process group; without one, this process alone."""
    if group is None:
        return ALONE
    from ssot.distributed import GroupRanks

    ranks = GroupRanks(group)
    return ranks if ranks.size > 1 else ALONE
