"""Arrays that one thread holds and another saves."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from data.storage.arrays import ArraySource
from data.storage.checksummed_dir import StorageError
from trainer.checkpoint.background_writer import BLOCKS_AHEAD, Handover
from trainer.checkpoint.store import CheckpointStore


def in_blocks(name: str, array: np.ndarray, on_block: Callable[[], None] = lambda: None) -> ArraySource:
    """An array of which each row is a block, and each block a copy."""

    def blocks() -> Iterator[np.ndarray]:
        for row in range(len(array)):
            on_block()
            yield array[row : row + 1].copy()

    return ArraySource(name, array.shape, array.dtype, blocks)


@pytest.fixture
def saving() -> Iterator[Callable[..., Future[Any]]]:
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit


def test_what_is_saved_is_what_the_arrays_held(tmp_path, saving):
    """The arrays change as soon as they may, while the last blocks are not written yet."""
    store = CheckpointStore(tmp_path)
    held = {"table": np.arange(200.0).reshape(100, 2), "step": np.array(7), "empty": np.zeros((0, 3), np.float32)}
    expected = {name: array.copy() for name, array in held.items()}
    sources = [in_blocks("table", held["table"])]
    sources += [ArraySource.from_array(name, held[name].copy()) for name in ("step", "empty")]
    handing = Handover(sources)
    saved = saving(handing.save, lambda arrays: store.save(1, arrays, {}))
    handing.fill()
    for array in held.values():
        array[...] = -1
    saved.result()
    for name, array in expected.items():
        np.testing.assert_array_equal(store.open("last").read(name), array)


def test_a_save_holds_a_few_blocks_at_a_time(saving):
    counts = {"read": 0, "written": 0}
    ahead = []

    def on_block() -> None:
        counts["read"] += 1
        ahead.append(counts["read"] - counts["written"])

    def write(arrays: list[ArraySource]) -> None:
        for array in arrays:
            for _ in array.blocks():
                counts["written"] += 1

    handing = Handover([in_blocks(name, np.zeros((300, 4)), on_block) for name in ("a", "b")])
    done = saving(handing.save, write)
    handing.fill()
    done.result()
    assert counts == {"read": 600, "written": 600}
    assert max(ahead) <= BLOCKS_AHEAD + 2


@pytest.mark.parametrize("after", [0, 1, 40])
def test_a_save_that_fails_does_not_hold_up_who_fills_it(saving, after):
    read = []

    def write(arrays: list[ArraySource]) -> None:
        for number, _ in enumerate(arrays[0].blocks()):
            if number == after:
                break
        raise StorageError("the disk is full")

    handing = Handover([in_blocks("a", np.zeros((300, 4)), lambda: read.append(1))])
    done = saving(handing.save, write)
    filling = threading.Thread(target=handing.fill, daemon=True)
    filling.start()
    filling.join(60)
    assert not filling.is_alive() and len(read) == 300
    with pytest.raises(StorageError, match="disk is full"):
        done.result()


def test_values_that_cannot_be_read_end_the_save(tmp_path, saving):
    store = CheckpointStore(tmp_path)

    def lost() -> Iterator[np.ndarray]:
        yield np.zeros((1, 4))
        raise RuntimeError("a worker is gone")

    handing = Handover([ArraySource("a", (3, 4), np.float64, lost)])
    saved = saving(handing.save, lambda arrays: store.save(1, arrays, {}))
    with pytest.raises(RuntimeError, match="a worker is gone"):
        handing.fill()
    with pytest.raises(StorageError, match="could not be read"):
        saved.result()
    assert not list(store.folder.iterdir())
