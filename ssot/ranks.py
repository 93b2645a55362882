"""The processes that hold the rows of one problem between them: usually there is but one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from ssot.arrays import Vector

Found = TypeVar("Found")


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

    def gather(self, find: Callable[[], Found]) -> list[Found]:
        """Return what every rank finds, in their order; where one raises, all do."""
        ...

    def sum(self, numbers: Vector, agreed: bytes = b"") -> Vector:
        """Return the sum of the ranks' numbers, the same to the last bit on all of them.

        All must call it with the same `agreed`; an error tells where they do not.
        """
        ...


class Alone:
    """The one rank of a problem that is whole."""

    size = 1

    def gather(self, find: Callable[[], Found]) -> list[Found]:
        """Return what there is to find."""
        return [find()]

    def sum(self, numbers: Vector, agreed: bytes = b"") -> Vector:
        """Return the numbers."""
        return numbers


ALONE = Alone()


def ranks_of(group: Any) -> Ranks:
    """Return the ranks of a `torch.distributed` process group; without one, this process alone."""
    if group is None:
        return ALONE
    from ssot.distributed import GroupRanks

    return GroupRanks(group)
