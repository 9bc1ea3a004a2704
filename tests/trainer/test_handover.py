"""Arrays that one thread holds and another saves."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from data.parallel import in_parallel
from data.storage.arrays import ArraySource
from data.storage.checksummed_dir import StorageError
from trainer.checkpoint import background_writer
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


@pytest.mark.parametrize("collective", [(), ("table", "slot")])
@pytest.mark.parametrize("copied_bytes", [0, 1 << 20])
def test_what_is_saved_is_what_the_arrays_held(tmp_path, monkeypatch, saving, collective, copied_bytes):
    """The arrays change as soon as they may, while the last blocks are not written yet."""
    monkeypatch.setattr(background_writer, "COPIED_BYTES", copied_bytes)
    store = CheckpointStore(tmp_path)
    held = {"table": np.arange(200.0).reshape(100, 2), "slot": np.arange(90.0).reshape(45, 2), "step": np.array(7)}
    held["empty"] = np.zeros((0, 3), np.float32)
    expected = {name: array.copy() for name, array in held.items()}
    sources = [in_blocks(name, held[name]) for name in ("table", "slot")]
    sources += [ArraySource.from_array(name, held[name].copy()) for name in ("step", "empty")]
    handing = Handover(sources, collective)
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

    handing = Handover([in_blocks(name, np.zeros((300, 4)), on_block) for name in ("a", "b")], collective=("a", "b"))
    done = saving(handing.save, write)
    handing.fill()
    done.result()
    assert counts == {"read": 600, "written": 600}
    assert max(ahead) <= BLOCKS_AHEAD + 2


def test_the_owner_waits_for_large_arrays_and_not_for_small_ones(monkeypatch, saving):
    monkeypatch.setattr(background_writer, "COPIED_BYTES", 64)
    small, large = np.zeros((2, 4)), np.zeros((300, 4))
    handing = Handover([in_blocks("small", small), in_blocks("large", large)])
    filled = threading.Event()

    def fill() -> None:
        handing.fill()
        filled.set()

    def write(arrays: list[ArraySource]) -> None:
        waiting_for_large = not filled.wait(0.1)
        for _ in arrays[1].blocks():
            pass
        assert waiting_for_large and filled.wait(60)  # nobody has read the small one yet
        small[...] = -1
        assert not list(arrays[0].blocks())[0].any()

    saved = saving(handing.save, write)
    threading.Thread(target=fill, daemon=True).start()
    saved.result()


@pytest.mark.parametrize("after", [0, 1, 40])
def test_an_array_that_cannot_be_written_does_not_hold_up_the_others(monkeypatch, saving, after):
    """Reading a collective array goes on to its end, and so does that of the arrays behind it."""
    monkeypatch.setattr(background_writer, "COPIED_BYTES", 0)
    read = Counter[str]()

    def source(name: str) -> ArraySource:
        return in_blocks(name, np.zeros((300, 4)), lambda: read.update([name]))

    handing = Handover([source(name) for name in ("a", "b", "lent")], collective=("a", "b"))

    def write(arrays: list[ArraySource]) -> None:
        def write_one(array: ArraySource) -> None:
            with closing(iter(array.blocks())) as blocks:
                for number, _ in enumerate(blocks):
                    if array.name == "a" and number == after:
                        raise StorageError("the disk is full")

        in_parallel(write_one, arrays)

    done = saving(handing.save, write)
    filling = threading.Thread(target=handing.fill, daemon=True)
    filling.start()
    filling.join(60)
    assert not filling.is_alive() and read["a"] == read["b"] == 300
    with pytest.raises(StorageError, match="disk is full"):
        done.result()


@pytest.mark.parametrize("after", [0, 1, 40])
def test_a_save_that_fails_does_not_hold_up_who_fills_it(saving, after):
    read = []

    def write(arrays: list[ArraySource]) -> None:
        for number, _ in enumerate(arrays[0].blocks()):
            if number == after:
                break
        raise StorageError("the disk is full")

    handing = Handover([in_blocks("a", np.zeros((300, 4)), lambda: read.append(1))], collective=("a",))
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

    handing = Handover([ArraySource("a", (3, 4), np.float64, lost)], collective=("a",))
    saved = saving(handing.save, lambda arrays: store.save(1, arrays, {}))
    with pytest.raises(RuntimeError, match="a worker is gone"):
        handing.fill()
    with pytest.raises(StorageError, match="could not be read"):
        saved.result()
    assert not list(store.folder.iterdir())
