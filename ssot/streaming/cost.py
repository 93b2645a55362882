"""A streamed cost, checked in its first reading, and arrays and streams seen alike."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from ssot.arrays import (
    HOST,
    Array,
    Place,
    checked_array,
    is_single,
    namespace,
    place_of,
    to_computing_dtype,
    to_place,
)
from ssot.checks import (
    Extent,
    LogPartition,
    checked_cost,
    checked_entries,
    one_of,
)
from ssot.streaming.source import RowBlocks

KEPT_BYTES = 1 << 28
"""Most memory for the rows that are kept: 67 a class at K = 1000 in float32."""

CHANGE = 1e-4
"""Relative change of the squares of a row between readings that is more than rounding."""

Cost: TypeAlias = Any
"""An N x K array, or a `StreamedCost`."""


class StreamedCost:
    """An N x K cost that is read in blocks, in the dtype of the computation.

    The first reading, on construction, checks every entry as those of arrays are, and keeps every
    `every`-th row. Later ones check that they see what the first one saw.

    Attributes
    ----------
    source : RowBlocks
        What it is read from.
    shape : tuple of int
    dtype : dtype
        Of NumPy or Torch.
    place : Place
        The library and the device of the blocks.
    extent : Extent
        Of all entries.
    every : int
        How far the kept rows are apart.
    kept : array
        Rows 0, `every`, 2 `every` and so on of the cost.
    """

    shape: tuple[int, int]
    dtype: Any
    extent: Extent

    def __init__(self, source: RowBlocks, name: str, place: Place) -> None:
        self.source = source
        self.place = place
        self._name = name
        self._marks: dict[int, float] = {}
        self._partition: LogPartition | None = None
        self._scan()

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        """As of an array."""
        return 2

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        """Yield the rows and the costs of each block; the next may overwrite those of the last."""
        stop, buffer = 0, None
        for rows, given in self.source.blocks():
            stop = rows.stop
            self._require_unchanged(rows, given)
            block = self._array(given)
            if self._partition is not None:
                if buffer is None or len(buffer) < len(block):
                    buffer = namespace(block).empty_like(block)
                block = self._partition.of_rows(rows).cost(block, buffer[: len(block)])
            yield rows, block
        if stop != self.shape[0]:
            raise self.changed(f"it ended after {stop} rows")

    def changed(self, how: str) -> RuntimeError:
        """Return the error of a reading under way that sees what the first one did not."""
        return RuntimeError(
            f"{self._name} must be the same at every reading, but {how} in reading "
            f"{self.source.reads + 1}; switch off dropout (model.eval()), shuffling and "
            "augmentation, and leave the file alone while it is solved"
        )

    def _array(self, given: Any) -> Array:
        array = to_place(checked_array(given, self._name), self.place)
        return to_computing_dtype(array)

    def _scan(self) -> None:
        first: Array = None
        extents, partitions = [], []
        rows = slice(0, 0)
        keeper = _Keeper(self.source.shape)
        for rows, given in self.source.blocks():
            block = self._array(given)
            first = block[:1] if first is None else first
            self._require_alike(block, first, rows)
            extents.append(checked_entries(block, self._name, rows.start))
            self._marks[rows.start] = _mark(given)
            if self._name == "logits":
                partitions.append(LogPartition.of(block))
                block = partitions[-1].cost(block, namespace(block).empty_like(block))
            keeper.add(block, rows.start)
        if first is None:
            raise ValueError(f"{self._name} must have at least one sample, got no block with rows")
        self.shape = rows.stop, first.shape[1]
        self.dtype = first.dtype
        self.every, self.kept = keeper.every, keeper.rows()
        self.extent = _joint(extents)
        if partitions:
            concat = namespace(first).concat
            self._partition = LogPartition(*map(concat, zip(*partitions, strict=True)))

    def _require_alike(self, block: Array, first: Array, rows: slice) -> None:
        classes = self.source.shape[1] if self.source.shape else first.shape[-1]
        if block.ndim != 2 or block.shape[1] != classes or classes == 0:
            raise ValueError(
                f"{self._name} must have blocks of shape (rows, classes), with the same classes, "
                f"{classes}, in all, got {tuple(block.shape)} at row {rows.start}"
            )
        if block.dtype != first.dtype:
            raise ValueError(
                f"{self._name} must have one dtype in all blocks, got {first.dtype} first and "
                f"{block.dtype} at row {rows.start}; convert them"
            )

    def _require_unchanged(self, rows: slice, given: Any) -> None:
        if rows.stop > self.shape[0]:
            raise self.changed(f"it has more than {self.shape[0]} rows")
        if tuple(given.shape[1:] if hasattr(given, "shape") else ()) not in ((), self.shape[1:]):
            raise self.changed(f"the block at row {rows.start} has shape {tuple(given.shape)}")
        before = self._marks.get(rows.start)
        if before is not None and not math.isclose(_mark(given), before, rel_tol=CHANGE):
            raise self.changed(f"row {rows.start} differs")


class _Keeper:
    """Keeps rows that are evenly spaced, of a stream whose end may be unknown."""

    def __init__(self, shape: tuple[int, int] | None) -> None:
        self.every = 1
        self._samples = None if shape is None else shape[0]
        self._room: Array = None
        self._count = 0

    def add(self, block: Array, start: int) -> None:
        """Keep rows of a block of costs."""
        if self._room is None:
            self._reserve(block)
        while True:
            rows = block[-start % self.every :: self.every]
            end = self._count + len(rows)
            if end <= len(self._room):
                break
            kept = self.rows()[::2]
            self._room[: len(kept)] = namespace(kept).asarray(kept, copy=True)
            self._count, self.every = len(kept), 2 * self.every
        self._room[self._count : end] = rows
        self._count = end

    def rows(self) -> Array:
        """Return the rows kept so far."""
        return self._room[: self._count]

    def _reserve(self, block: Array) -> None:
        """Make room, for all rows that will be kept where their number is known."""
        most = max(1, KEPT_BYTES // (block.dtype.itemsize * block.shape[1]))
        if self._samples is not None:
            self.every = -(-self._samples // most)
            most = -(-self._samples // self.every)
        dtype = np.float32 if is_single(block) else np.float64
        self._room = to_place(np.empty((most, block.shape[1]), dtype), place_of(block))


def _joint(extents: list[Extent]) -> Extent:
    smallest = min(extent.smallest for extent in extents)
    largest = max(extent.largest for extent in extents)
    return Extent(smallest, largest, all(extent.is_finite for extent in extents))


def _mark(given: Any) -> float:
    """Return a number by which to tell a block from another: the squares of its first row."""
    row = to_place(checked_array(given[:1], "block"), HOST).astype(np.float64)
    return float(np.square(row, where=np.isfinite(row), out=np.zeros_like(row)).sum())


def read_cost(
    cost: ArrayLike | RowBlocks | None,
    logits: ArrayLike | RowBlocks | None,
    place: Place,
    *,
    fewest: int = 1,
) -> tuple[Cost, Extent]:
    """Return the checked cost, streamed where it is given so; see `checked_cost`."""
    name, given = one_of(cost, logits)
    if not isinstance(given, RowBlocks):
        array: tuple[Cost, Extent] = checked_cost(
            **{"cost": None, "logits": None, name: given}, place=place, fewest=fewest
        )
        return array
    streamed = StreamedCost(given, name, place)
    return streamed, streamed.extent


def row_blocks(cost: Cost) -> Iterator[tuple[slice, Array]]:
    """Yield the rows and the costs of each block; an array is one block."""
    if isinstance(cost, StreamedCost):
        yield from cost.blocks()
    else:
        yield slice(0, len(cost)), cost


def outline_of(cost: Cost) -> Array:
    """Return an array of the shape, dtype and place of a cost; no memory is taken if streamed."""
    if not isinstance(cost, StreamedCost):
        return cost
    xp = namespace(cost.kept)
    return xp.broadcast_to(cost.kept[:1, :1], cost.shape)


def mask_digest(cost: Cost) -> bytes:
    """Return what is the same for costs that forbid the same pairs, whatever their blocks."""
    digest = hashlib.sha256()
    for _, block in row_blocks(cost):
        mask = to_place(namespace(block).isinf(block), HOST)
        digest.update(np.packbits(mask, axis=1).tobytes())
    return digest.digest()
