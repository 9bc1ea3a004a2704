"""Transfer of arrays to a save in another thread, a few blocks at a time."""

import queue
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

import numpy as np

from data.storage.arrays import ArraySource
from data.storage.checksummed_dir import StorageError

T = TypeVar("T")

# Maximum number of blocks waiting to be written: 64 MiB, as a block has 16 MiB unless a single row is longer.
BLOCKS_AHEAD = 4


class Handover:
    """Passes arrays from the thread that owns them to a thread that saves them, without copying them all at once.

    The owner calls `fill` and may modify the arrays once it returns; the saving thread calls `save` concurrently.

    Args:
        sources: the arrays. Their blocks are read by the owner only, and each block is a copy.
    """

    def __init__(self, sources: Sequence[ArraySource]):
        self._sources = sources
        # None marks the end of each array; an error makes the save fail.
        self._blocks: queue.Queue[np.ndarray | StorageError | None] = queue.Queue(BLOCKS_AHEAD)
        self._is_over = False

    def fill(self) -> None:
        """Reads every block, waiting while BLOCKS_AHEAD blocks have not been written yet.

        All blocks are read even if the save has failed, because reading them may be a collective that other workers
        take part in. If reading fails, the save fails as well.
        """
        try:
            for source in self._sources:
                for block in source.blocks():
                    self._put(block)
                self._put(None)
        except BaseException:
            self._put(StorageError("the values to be saved could not be read"))
            raise

    def _put(self, block: np.ndarray | StorageError | None) -> None:
        if not self._is_over:
            self._blocks.put(block)

    def save(self, write: Callable[[list[ArraySource]], T]) -> T:
        """Calls `write` with the arrays and returns its result.

        Args:
            write: function that reads each array once, in order.

        Raises:
            StorageError: if the owner could not read the arrays.
        """
        try:
            return write([replace(source, blocks=self._taken) for source in self._sources])
        finally:
            self._is_over = True
            with suppress(queue.Empty):
                while True:  # make room, so that an owner blocked in `put` continues
                    self._blocks.get_nowait()

    def _taken(self) -> Iterator[np.ndarray]:
        while (block := self._blocks.get()) is not None:
            if isinstance(block, StorageError):
                raise block
            yield block
