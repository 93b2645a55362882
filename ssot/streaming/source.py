"""What a streamed cost is read from: the public `RowBlocks`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from numbers import Integral
from typing import Any

BLOCK_ENTRIES = 1 << 24
"""Entries of a block where the caller names no number of rows."""

SHAPE = "(samples, classes)"


class RowBlocks:
    """A cost, or logits, that is read in blocks of rows, as often as the solver needs it.

    Pass it to `solve` in place of an array that does not fit in memory. The algorithm, the options
    and the certificate are those of arrays. Memory holds a block, a few numbers a sample, and at
    most 256 MB of rows spread evenly over the samples, from which the prices start.

    Parameters
    ----------
    source : array-like, tuple of two int, or iterable
        One of three: what has a ``shape`` (N, K) and can be sliced, ``source[start:stop]``, such as
        a `numpy.memmap`, a dataset of h5py, an array of Zarr; with `read`, the shape (N, K); or
        what can be iterated again and again and yields blocks of any height, such as a list of
        arrays, or a data loader that does not shuffle. A block is an array or a tensor.
    read : callable, optional
        ``read(start, stop)`` returns these rows, the same at every call: computed from features and
        a head, say, in evaluation mode and without gradients.
    rows : int, optional
        Rows in a block of what can be sliced. Default about ``2**24 / K``, 64 MB in float32.
    scratch : path, optional
        Folder, on a disk, for the files of a problem with a graph: two plans and a product, each of
        the size of the cost. They are gone with the solution, even of a killed process. Default the
        folder of `tempfile`.

    Attributes
    ----------
    reads : int
        Full passes over the source so far.

    Raises
    ------
    TypeError
        If the source can be read but once, as a generator, or not at all.
    ValueError
        If the shape is not that of a matrix, or `rows` is no whole number above 0.

    Examples
    --------
    >>> import numpy as np
    >>> from ssot import RowBlocks, solve
    >>> features, head = np.random.default_rng(0).standard_normal((500, 4)), np.eye(4)[:, :3]
    >>> logits = RowBlocks((500, 3), lambda start, stop: features[start:stop] @ head, rows=200)
    >>> solution = solve(logits=logits, rho=0.5)
    >>> [block.plan.shape for block in solution.blocks()]
    [(200, 3), (200, 3), (100, 3)]
    """

    def __init__(
        self,
        source: Any,
        read: Callable[[int, int], Any] | None = None,
        *,
        rows: int | None = None,
        scratch: str | os.PathLike[str] | None = None,
    ) -> None:
        self.reads = 0
        self.shape: tuple[int, int] | None = None
        self.scratch = scratch
        self._iterable: Iterable[Any] | None = None
        self._had_blocks = False
        self._read = read
        if read is not None and not callable(read):
            raise TypeError(f"read must be a function of start and stop, got {read!r}")
        if scratch is not None and not os.path.isdir(scratch):
            raise ValueError(f"scratch must be a folder that exists, got {os.fspath(scratch)!r}")
        if read is not None:
            self.shape = _checked_shape(source)
        elif hasattr(source, "shape") and hasattr(source, "__getitem__"):
            self.shape = _checked_shape(source.shape)
            self._read = lambda start, stop: source[start:stop]
        else:
            self._iterable = _checked_iterable(source, rows)
        if rows is not None and not (isinstance(rows, Integral) and rows >= 1):
            raise ValueError(
                f"rows must be a whole number of at least 1, got {rows!r}; leave it out for a "
                "default"
            )
        self._rows = rows

    def __repr__(self) -> str:
        size = "of unknown shape" if self.shape is None else f"of shape {self.shape}"
        return f"RowBlocks({size}, reads={self.reads})"

    def blocks(self) -> Iterator[tuple[slice, Any]]:
        """Yield the rows and the contents of each block, as the source gives them."""
        stop = 0
        for block in self._given():
            start, stop = stop, stop + len(block)
            if stop > start:
                yield slice(start, stop), block
        self.reads += 1

    def peek(self) -> Any:
        """Return the first row, or the first block of what is iterated; counts as no pass."""
        if self.shape is not None and self._read is not None:
            return self._read(0, min(1, self.shape[0]))
        return next(self._given(), [])

    def _given(self) -> Iterator[Any]:
        if self._iterable is not None:
            is_empty = True
            for block in self._iterable:
                is_empty, self._had_blocks = False, True
                yield block
            if is_empty and self._had_blocks:
                raise _read_once(self._iterable)
        elif self.shape is not None and self._read is not None:
            samples, classes = self.shape
            height = self._rows or max(1, BLOCK_ENTRIES // classes)
            for start in range(0, samples, height):
                stop = min(start + height, samples)
                block = self._read(start, stop)
                if len(block) != stop - start:
                    raise ValueError(
                        f"RowBlocks asked for rows {start} to {stop} and got {len(block)} rows; "
                        "return block[start:stop]"
                    )
                yield block


def peeked(value: Any) -> Any:
    """Return a value, or the first row of one that is streamed."""
    return value.peek() if isinstance(value, RowBlocks) else value


def _checked_shape(shape: Any) -> tuple[int, int]:
    try:
        sizes = tuple(int(size) for size in shape)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"RowBlocks with read needs the shape {SHAPE} first, got {shape!r}"
        ) from error
    if len(sizes) != 2 or min(sizes) < 1:
        raise ValueError(
            f"RowBlocks must have the shape {SHAPE} with at least one of each, got {sizes}; "
            "solve several problems one by one"
        )
    return sizes[0], sizes[1]


def _read_once(source: Any) -> TypeError:
    return TypeError(
        f"RowBlocks must be read again and again, but a {type(source).__name__} yields its "
        "blocks once; pass an object whose __iter__ starts anew, a list of blocks, or a shape "
        "and a function read(start, stop)"
    )


def _checked_iterable(source: Any, rows: int | None) -> Iterable[Any]:
    if isinstance(source, Iterator):
        raise _read_once(source)
    if not isinstance(source, Iterable):
        raise TypeError(
            "RowBlocks needs an array that can be sliced, a shape and a function "
            f"read(start, stop), or an iterable of blocks, got {type(source).__name__}"
        )
    if rows is not None:
        raise ValueError("rows must be left out where RowBlocks iterates: blocks come as they are")
    return source
