"""The processes of a `torch.distributed` group as the ranks of a problem."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from ssot.arrays import HOST, Vector, to_place
from ssot.ranks import Own, Told


class GroupRanks:
    """Ranks that exchange sums by gloo, NCCL or another backend of `torch.distributed`.

    A rank that dies, or does not answer within the timeout of the group, makes the calls of the
    others raise the error of that backend.

    Attributes
    ----------
    size, rank : int
        How many there are, and which one this is.
    device : torch.device
        Where the backend exchanges tensors.
    exchanges, payload : Counter of str
        By the kind of exchange, how often the ranks have exchanged numbers, and how many bytes this
        one has handed over: what is added up, what the first rank tells, and rows for others.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        if not isinstance(group, dist.ProcessGroup):
            raise TypeError(
                "group must be a torch.distributed.ProcessGroup, for example dist.group.WORLD "
                f"after dist.init_process_group, got {type(group).__name__}"
            )
        self.group = group
        self.size = dist.get_world_size(group)
        self.rank = dist.get_rank(group)
        if self.rank < 0:
            raise ValueError("group must contain the calling process; do not solve on this rank")
        is_nccl = dist.get_backend(group) == "nccl"
        self.exchanges: Counter[str] = Counter()
        self.payload: Counter[str] = Counter()
        self.device = torch.device("cuda", torch.cuda.current_device()) if is_nccl else _CPU

    def share(self, find: Callable[[], tuple[Own, Told]]) -> tuple[Own, list[Told]]:
        """Return what this rank finds for itself, and what all tell; where one raises, all do."""
        answers: list[Any] = [None] * self.size
        try:
            own, told = find()
        except Exception as error:
            dist.all_gather_object(answers, _Failure(_kind(error), str(error)), self.group)
            raise
        dist.all_gather_object(answers, told, self.group)
        for rank, answer in enumerate(answers):
            if isinstance(answer, _Failure):
                raise answer.kind(f"on rank {rank}: {answer.message}")
        return own, answers

    def sum(self, numbers: Vector, agreed: bytes = b"") -> Vector:
        """Return the sum of the ranks' numbers, the same to the last bit on all of them."""
        mark = float(zlib.crc32(agreed))
        total = self.sum_tensor(torch.from_numpy(np.append(numbers, mark)).to(self.device))
        summed: Vector = to_place(total, HOST)
        if summed[-1] != mark * self.size:
            raise RuntimeError(
                "the ranks of group have come to different prices or steps; give all of them the "
                "same arguments, versions and kind of processor"
            )
        return summed[:-1]

    def sum_tensor(self, tensor: Tensor) -> Tensor:
        """Add up the ranks' tensors, in place, on the device of the group."""
        dist.all_reduce(tensor, group=self.group)
        self._count("all_reduce", tensor)
        return tensor

    def from_first(self, tensor: Tensor) -> Tensor:
        """Replace a tensor on the device of the group by that of the first rank."""
        dist.broadcast(tensor, dist.get_global_rank(self.group, 0), self.group)
        self._count("broadcast", tensor)
        return tensor

    def exchange(self, parts: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Send each rank its part, a vector, and return what all have sent to this one."""
        lengths = torch.tensor([len(part) for part in parts], device=self.device)
        heights = torch.empty_like(lengths)
        ones = [1] * self.size
        self.swap(lengths, ones, heights, ones)
        counts = heights.tolist()
        sent = torch.from_numpy(np.concatenate(parts)).to(self.device)
        received = sent.new_empty(sum(counts))
        self.swap(sent, lengths.tolist(), received, counts)
        return np.split(to_place(received, HOST), np.cumsum(counts)[:-1])

    def swap(
        self, sent: Tensor, counts: list[int], received: Tensor, their_counts: list[int]
    ) -> None:
        """Send each rank so many rows of a tensor, and fill another with what all have sent."""
        dist.all_to_all_single(received, sent, their_counts, counts, group=self.group)
        self._count("all_to_all", sent[counts[self.rank] :])

    def _count(self, kind: str, handed_over: Tensor) -> None:
        self.exchanges[kind] += 1
        self.payload[kind] += handed_over.nbytes


_CPU = torch.device("cpu")


class _Failure(NamedTuple):
    """Why a rank cannot tell what it was asked."""

    kind: type[Exception]
    message: str


def _kind(error: Exception) -> type[Exception]:
    return next((kind for kind in (ValueError, TypeError) if isinstance(error, kind)), RuntimeError)
