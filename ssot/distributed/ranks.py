"""The processes of a `torch.distributed` group as the ranks of a problem."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ssot.arrays import HOST, Vector, to_place
from ssot.ranks import Found


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
        self.device = torch.device("cuda", torch.cuda.current_device()) if is_nccl else _CPU

    def gather(self, find: Callable[[], Found]) -> list[Found]:
        """Return what every rank finds, in their order; where one raises, all do."""
        failure: Exception | None = None
        found = None
        try:
            found = find()
        except Exception as error:
            failure = error
        answers: list[Any] = [None] * self.size
        own = (found, None if failure is None else (_kind(failure), str(failure)))
        dist.all_gather_object(answers, own, self.group)
        if failure is not None:
            raise failure
        for rank, (_, reason) in enumerate(answers):
            if reason is not None:
                kind, message = reason
                raise kind(f"on rank {rank}: {message}")
        return [answer for answer, _ in answers]

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
        """Return the sum of the ranks' tensors, in place, on the device of the group."""
        dist.all_reduce(tensor, group=self.group)
        return tensor


_CPU = torch.device("cpu")


def _kind(error: Exception) -> type[Exception]:
    return next((kind for kind in (ValueError, TypeError) if isinstance(error, kind)), RuntimeError)
