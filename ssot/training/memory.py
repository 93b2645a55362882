"""The last predictions of a network, kept to be solved for together with its next ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ssot.arrays import isolated, place_of
from ssot.training.checks import checked_batch, checked_count

EMPTY = -1
"""What stands for the id of a slot that holds nothing."""


class MemoryBank:
    """A ring buffer of the logits of the last samples, one entry for each.

    Holds the latest entry of each distinct sample among the last `capacity` that were added: a
    sample that comes again replaces its older entry, and of two in one batch the last one counts.
    The replaced entry leaves its place empty until the ring comes round to it. The storage, of a
    fixed size, is made at the first batch, whose shape, dtype and device all others must have.

    Parameters
    ----------
    capacity : int
        Number of entries, 1 or above; about 10 to 100 for each class, so that the rare classes are
        among them.

    Raises
    ------
    TypeError, ValueError
        If `capacity` is not an integer, or below 1.

    Examples
    --------
    >>> import torch
    >>> from ssot.training import MemoryBank
    >>> bank = MemoryBank(capacity=4)
    >>> bank.add(torch.zeros(3, 2), torch.tensor([7, 8, 9]))
    >>> bank.add(torch.ones(2, 2), torch.tensor([8, 5]))
    >>> bank.ids, bank.logits[:, 0]
    (tensor([9, 8, 5]), tensor([0., 1., 1.]))
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = checked_count(capacity, "capacity")
        self._logits: Tensor | None = None  # (..., capacity, K), a slot for each entry
        self._ids: Tensor  # (capacity,)
        self._held: Tensor  # (n,), the slots in use, from the oldest entry on
        self._next = 0
        self.clear()

    def clear(self) -> None:
        """Forget all entries, and the shape, dtype and device that they had."""
        self._take(None, torch.full((self.capacity,), EMPTY), following=0)

    def __len__(self) -> int:
        return len(self._held)

    @property
    def logits(self) -> Tensor:
        """The logits held, (..., n, K), from the oldest to the newest; a copy."""
        if self._logits is None:
            raise ValueError("logits have no shape before the first batch; call add first")
        return self._logits.index_select(-2, self._held)

    @property
    def ids(self) -> Tensor:
        """The ids of the samples held, (n,), from the oldest to the newest; a copy."""
        return self._ids[self._held]

    def add(self, logits: Tensor, ids: Tensor) -> None:
        """Put in a batch, in place of the oldest entries.

        Parameters
        ----------
        logits : (..., B, K) tensor
            Of any floating-point type, on any device, with any leading dimensions (heads, views).
            Copied, without its history of gradients.
        ids : (B,) tensor of integers
            Which sample each row is, 0 or above.

        Raises
        ------
        TypeError
            If an argument is not a tensor of the right kind of number.
        ValueError
            If the batch is larger than the bank, unlike the batches before, or an id is negative.
        """
        ids = checked_batch(logits, ids)
        batch = len(ids)
        if batch > self.capacity:
            raise ValueError(
                f"logits must hold at most capacity = {self.capacity} samples, got {batch}; use a "
                "larger capacity or a smaller batch"
            )
        # A tensor made in inference mode could not be written to outside of it.
        with isolated(place_of(logits)):
            store = self._storage_for(logits)
            slots = (self._next + torch.arange(batch, device=ids.device)) % self.capacity
            store.index_copy_(-2, slots, logits)
            self._ids[slots] = ids
            self._next = (self._next + batch) % self.capacity
            self._drop_replaced()

    def positions(self, ids: Tensor) -> Tensor:
        """Return where samples lie among `ids`, and so along the last but one axis of `logits`.

        Parameters
        ----------
        ids : (B,) tensor of integers
            Samples that are held, in any order, also several times.

        Returns
        -------
        (B,) tensor of int64

        Raises
        ------
        ValueError
            If one of them is not held.
        """
        ordered, order = self.ids.sort()
        ids = ids.to(ordered).contiguous()  # or searchsorted warns
        places = torch.searchsorted(ordered, ids).clamp_(max=max(len(self) - 1, 0))
        is_missing = ordered[places] != ids if len(self) else torch.ones_like(ids, dtype=torch.bool)
        if is_missing.any():
            raise ValueError(
                f"ids must be held, got {ids[is_missing].tolist()[:5]}; add them first"
            )
        return order[places]

    def to(self, device: torch.device | str) -> MemoryBank:
        """Move the entries to a device; returns the bank itself."""
        if self._logits is not None:
            self._logits = self._logits.to(device)
            self._ids, self._held = self._ids.to(device), self._held.to(device)
        return self

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the state: numbers and tensors, as ``torch.save`` takes them."""
        return {
            "capacity": self.capacity,
            "next": self._next,
            "ids": self._ids.clone(),
            "logits": None if self._logits is None else self._logits.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a copy of a state, on the device that its tensors are on.

        Raises
        ------
        ValueError
            If it is the state of a bank of another capacity.
        """
        self._require_own(state)
        self._take(state["logits"], state["ids"], state["next"])

    def _require_own(self, state: Mapping[str, Any]) -> None:
        """Refuse the state of a bank of another capacity."""
        if state["capacity"] != self.capacity:
            raise ValueError(
                f"state must be of a bank of capacity {self.capacity}, got one of "
                f"{state['capacity']}; make the bank with capacity={state['capacity']}"
            )

    def _take(self, logits: Tensor | None, ids: Tensor, following: int) -> None:
        """Copy a state: the logits and ids by slot, and the slot that follows the newest entry."""
        with isolated(place_of(ids)):
            self._logits = None if logits is None else logits.clone()
            self._ids = ids.clone()
            self._next = following
            self._drop_replaced()

    def _storage_for(self, logits: Tensor) -> Tensor:
        """Return the storage, made for the first batch, or refuse a batch of another kind."""
        if self._logits is None:
            *leading, _, classes = logits.shape
            self._logits = logits.new_zeros((*leading, self.capacity, classes))
            self._ids = self._ids.to(logits.device)
        store = self._logits
        for name, held, given in (
            ("leading shape", tuple(store.shape[:-2]), tuple(logits.shape[:-2])),
            ("number of classes", store.shape[-1], logits.shape[-1]),
            ("dtype", store.dtype, logits.dtype),
            ("device", store.device, logits.device),
        ):
            if held != given:
                raise ValueError(
                    f"logits must have the {name} of the bank, {held}, got {given}; convert them, "
                    "call clear() to start anew, or to(device) to move the bank"
                )
        return store

    def _drop_replaced(self) -> None:
        """Keep the latest entry of each sample, and note where the entries are."""
        slots = (self._next + torch.arange(self.capacity, device=self._ids.device)) % self.capacity
        ids = self._ids[slots]  # from the oldest to the newest
        ordered, order = ids.sort(stable=True)
        is_latest = torch.ones_like(ids, dtype=torch.bool)
        is_latest[order[:-1]] = ordered[1:] != ordered[:-1]
        self._ids[slots] = torch.where(is_latest, ids, EMPTY)
        self._held = slots[is_latest & (ids != EMPTY)]
