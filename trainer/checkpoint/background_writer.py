"""Transfer of arrays to a save in other threads, while the thread that owns them waits until it may change them."""

import queue
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from threading import Event, Lock, Semaphore
from typing import TypeVar

import numpy as np

from data.storage.arrays import ArraySource
from data.storage.checksummed_dir import StorageError

T = TypeVar("T")

# Bytes of arrays that are copied, so that the owner does not wait until they are written.
COPIED_BYTES = 1 << 26
# Maximum number of blocks of collective arrays waiting to be written: 64 MiB, as a block has 4 MiB unless a single row
# is longer.
BLOCKS_AHEAD = 16


class Handover:
    """Passes arrays from the thread that owns them to threads that save them, without copying them all at once.

    The owner creates this object, calls `fill`, and may modify the arrays once it returns; another thread calls `save`
    concurrently. The smallest arrays are copied at once. Large ones are read by the threads that write them, several at
    a time, for which `fill` waits.

    Args:
        sources: the arrays, whose blocks are copies.
        collective: names of the arrays that only the owner may read, in order, since other workers take part in it.
    """

    def __init__(self, sources: Sequence[ArraySource], collective: Collection[str] = ()):
        self._collective = [source for source in sources if source.name in collective]
        # None marks the end of an array; an error makes the save fail.
        self._blocks: dict[str, queue.SimpleQueue[np.ndarray | StorageError | None]] = {
            source.name: queue.SimpleQueue() for source in self._collective
        }
        self._room = Semaphore(BLOCKS_AHEAD)  # taken by each block in a queue
        self._lock = Lock()  # held while blocks are put into a queue, or the queue is dropped
        self._no_longer_read: dict[str, Event] = {}
        handed: dict[str, ArraySource] = {}
        room = COPIED_BYTES
        for source in sorted(sources, key=lambda source: source.nbytes):
            if source.name in collective:
                handed[source.name] = replace(source, blocks=partial(self._taken, source.name))
            elif source.nbytes <= room:
                room -= source.nbytes
                handed[source.name] = replace(source, blocks=list(source.blocks()).copy)
            else:
                self._no_longer_read[source.name] = Event()
                handed[source.name] = replace(source, blocks=partial(self._lent, source))
        self._handed = [handed[source.name] for source in sources]

    def fill(self) -> None:
        """Read the collective arrays, and wait until the others have been read.

        At most BLOCKS_AHEAD blocks of collective arrays wait to be written. All of its blocks are read even if the
        save has failed, because other workers take part in it. If reading fails, the save fails as well.
        """
        try:
            for source in self._collective:
                for block in source.blocks():
                    self._room.acquire()
                    if not self._put(source.name, block):
                        self._room.release()
                self._put(source.name, None)
        except BaseException:
            for name in list(self._blocks):
                self._put(name, StorageError("the values to be saved could not be read"))
            raise
        for event in self._no_longer_read.values():
            event.wait()

    def save(self, write: Callable[[list[ArraySource]], T]) -> T:
        """Call `write` with the arrays and return its result.

        Args:
            write: function that reads each array once, in any threads, but begins them in order.

        Raises:
            StorageError: if the owner could not read the arrays.
        """
        try:
            return write(self._handed)
        finally:
            for event in self._no_longer_read.values():
                event.set()
            for name in list(self._blocks):
                self._drop(name)

    def _put(self, name: str, block: np.ndarray | StorageError | None) -> bool:
        """Hand a block on, unless the array is no longer read; return whether it is."""
        with self._lock:
            if (blocks := self._blocks.get(name)) is not None:
                blocks.put(block)
            return blocks is not None

    def _taken(self, name: str) -> Iterator[np.ndarray]:
        blocks = self._blocks[name]
        try:
            while (block := blocks.get()) is not None:
                if isinstance(block, StorageError):
                    raise block
                self._room.release()
                yield block
        finally:
            self._drop(name)

    def _drop(self, name: str) -> None:
        """Make the owner drop all further blocks of an array."""
        with self._lock:
            blocks = self._blocks.pop(name, None)
        with suppress(queue.Empty):
            while blocks is not None:  # make room, so that the owner continues
                if isinstance(blocks.get_nowait(), np.ndarray):
                    self._room.release()

    def _lent(self, source: ArraySource) -> Iterator[np.ndarray]:
        try:
            yield from source.blocks()
        finally:
            self._no_longer_read[source.name].set()
