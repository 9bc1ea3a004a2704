"""Arrays on their way to a save in another thread, a few blocks at a time."""

import queue
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

import numpy as np

from trainer.sealed.arrays import ArraySource
from trainer.sealed.errors import CheckpointError

T = TypeVar("T")

# Blocks that wait to be written: 64 MiB, as a block has 16 (but for rows that are longer).
BLOCKS_AHEAD = 4


class Handover:
    """Lets one thread hold arrays and another save them, without a second copy of them all.

    The holder calls `fill`, and may change the arrays once that returns. The saving thread calls `save` meanwhile.

    Args:
        sources: the arrays; only the holder reads their blocks, each of which is a copy.
    """

    def __init__(self, sources: Sequence[ArraySource]):
        self._sources = sources
        # None stands at the end of each array.
        self._blocks: queue.Queue[np.ndarray | CheckpointError | None] = queue.Queue(BLOCKS_AHEAD)
        self._is_over = False

    def fill(self) -> None:
        """Reads every block. Waits while BLOCKS_AHEAD of them are not written yet.

        All are read even where the save has failed, since other workers may take part in reading them. Where reading
        fails, the save does too.
        """
        try:
            for source in self._sources:
                for block in source.blocks():
                    self._put(block)
                self._put(None)
        except BaseException:
            self._put(CheckpointError("the values to be saved could not be read"))
            raise

    def _put(self, block: np.ndarray | CheckpointError | None) -> None:
        if not self._is_over:
            self._blocks.put(block)

    def save(self, write: Callable[[list[ArraySource]], T]) -> T:
        """Gives what `write` makes of the arrays, each of which it reads once and in their order.

        Raises:
            CheckpointError: the arrays could not be read.
        """
        try:
            return write([replace(source, blocks=self._taken) for source in self._sources])
        finally:
            self._is_over = True
            with suppress(queue.Empty):
                while True:  # so that a holder that waits for room goes on
                    self._blocks.get_nowait()

    def _taken(self) -> Iterator[np.ndarray]:
        while (block := self._blocks.get()) is not None:
            if isinstance(block, CheckpointError):
                raise block
            yield block
