"""Arrays on their way to a save in another thread, a few blocks at a time."""

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

import numpy as np

from trainer.sealed.arrays import ArraySource
from trainer.sealed.errors import CheckpointError

T = TypeVar("T")

# Copies that wait to be written: 64 MiB, as a block has 16 (but for rows that are longer).
BLOCKS_AHEAD = 4


class Handover:
    """Lets one thread hold arrays and another save them, without a second copy of them all.

    The holder calls `fill`, and may change the arrays once that returns: what is not written by then has been copied.
    The saving thread calls `save` meanwhile.

    Args:
        sources: the arrays; only the holder reads their blocks.
    """

    def __init__(self, sources: Sequence[ArraySource]):
        self._sources = sources
        # None stands at the end of each array.
        self._blocks: queue.Queue[np.ndarray | CheckpointError | None] = queue.Queue(BLOCKS_AHEAD)
        self._is_over = False

    def fill(self) -> None:
        """Copies every block. Waits while BLOCKS_AHEAD of them are not written yet.

        Where there is no memory for a copy, it waits until the block itself is written. All blocks are read even where
        the save has failed, since other workers may take part in reading them. Where reading fails, the save does too.
        """
        try:
            for source in self._sources:
                for block in source.blocks():
                    try:
                        self._put(np.array(block))
                    except MemoryError:
                        self._put(block)
                        self._wait_until_written()
                self._put(None)
        except BaseException:
            self._put(CheckpointError("the values to be saved could not be read"))
            raise

    def _put(self, block: np.ndarray | CheckpointError | None) -> None:
        if not self._is_over:
            self._blocks.put(block)

    def _wait_until_written(self) -> None:
        while self._blocks.unfinished_tasks and not self._is_over:
            time.sleep(0.01)

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
            self._blocks.task_done()
        self._blocks.task_done()
