"""Problems larger than memory: costs that are read block by block, again and again."""

from ssot.streaming.source import RowBlocks

__all__ = ["RowBlocks"]
