import gc
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.loading import parquet
from data.loading import shuffle as epoch_plan
from data.loading.batch import PAD, Batch
from data.loading.decode import Decoded
from data.loading.lists import empty_lists
from data.loading.loader import ParquetLoader
from data.loading.parquet import ParquetReader
from data.spec.feature_spec import FeatureSpec
from tests.data.sample_data import arrays_of, check_pads, check_rows, random_rows, write_dataset


@contextmanager
def small_windows(shuffle_rows: int, row_groups_per_stream: int = 2) -> Iterator[None]:
    """Windows and streams as large datasets have them, on few rows."""
    with (
        mock.patch.object(epoch_plan, "SHUFFLE_ROWS", shuffle_rows),
        mock.patch.object(epoch_plan, "ROW_GROUPS_PER_STREAM", row_groups_per_stream),
    ):
        yield


def epoch_of(
    spec: FeatureSpec, *, batch: int, workers: int = 1, shuffle: bool = True, epoch: int = 0, **options: Any
) -> list[list[Batch]]:
    """All batches, [workers][steps]."""
    result = []
    for worker in range(workers):
        loader = ParquetLoader(
            spec, "train", global_batch_size=batch, worker=worker, workers=workers, shuffle=shuffle, **options
        )
        with closing(loader.epoch(epoch)) as batches:
            result.append(list(batches))
        assert len(result[-1]) == loader.steps_per_epoch == -(-loader.rows // batch)
        assert {len(array) for one in result[-1] for array in one[:-1] if array is not None} == {
            loader.local_batch_size
        }
        assert loader.local_batch_size <= -(-min(batch, loader.rows) // workers)
    return result


def rows_in(batches: list[Batch]) -> list[int]:
    return [row for batch in batches for row in batch.rows.tolist() if row != PAD]


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("loader-")]


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[list[int]], int, int, int]:
    """Row groups of files around the batch size, workers, global batch size and rows per shuffle."""
    workers = draw(st.integers(1, 8))
    batch = draw(st.integers(1, 6 * workers))
    sizes = st.sampled_from([0, 1, 7, batch - 1, batch, batch + 1])
    files = draw(st.lists(st.lists(sizes, max_size=4), min_size=1, max_size=5).filter(lambda all: any(map(sum, all))))
    return files, workers, batch, draw(st.integers(1, 100))


@settings(max_examples=25, deadline=None)
@given(layouts(), st.booleans(), st.integers(0, 2))
def test_each_row_once_in_any_layout(tmp_path_factory, layout, shuffle, epoch):
    files, workers, batch, shuffle_rows = layout
    spec, frame = write_dataset(tmp_path_factory.mktemp("layout"), files)
    with small_windows(shuffle_rows):
        by_worker = epoch_of(spec, batch=batch, workers=workers, shuffle=shuffle, epoch=epoch, with_group=True)
        alone = epoch_of(spec, batch=batch, shuffle=shuffle, epoch=epoch)[0]
    assert sorted(row for batches in by_worker for row in rows_in(batches)) == list(range(len(frame)))
    if shuffle:
        for step, whole in enumerate(alone):
            assert sorted(rows_in([batches[step] for batches in by_worker])) == sorted(rows_in([whole]))
    for shares in zip(*by_worker, strict=True):
        counts = [len(rows_in([share])) for share in shares]
        assert max(counts) - min(counts) <= 1
    for batches in by_worker:
        for one in batches:
            check_rows(one, frame)
            check_pads(one)


def test_many_streams_and_windows(tmp_path):
    spec, frame = write_dataset(tmp_path, [[9, 10, 11]] * 12 + [[3]])
    with small_windows(80, row_groups_per_stream=4):
        by_worker = epoch_of(spec, batch=24, workers=3)
    assert sorted(row for batches in by_worker for row in rows_in(batches)) == list(range(len(frame)))
    for batches in by_worker:
        check_rows(batches[4], frame)


def test_workers_share_the_last_step_evenly(tmp_path):
    spec, _ = write_dataset(tmp_path, [[40], [27]])
    last = [len(rows_in(batches[-1:])) for batches in epoch_of(spec, batch=20, workers=4)]
    assert sorted(last) == [1, 2, 2, 2]


def test_unshuffled_rows_are_consecutive(tmp_path):
    spec, _ = write_dataset(tmp_path, [[8], [0], [15]])
    first, second = epoch_of(spec, batch=8, workers=2, shuffle=False)
    assert rows_in(first) == list(range(11))
    assert rows_in(second) == list(range(11, 23))
    assert [batch.rows.tolist() for batch in first][-1] == [8, 9, 10, PAD]


@pytest.mark.parametrize("shuffle", [True, False])
def test_one_row_on_eight_workers(tmp_path, shuffle):
    spec, frame = write_dataset(tmp_path, [[0], [1], []])
    by_worker = epoch_of(spec, batch=8, workers=8, shuffle=shuffle)
    assert [len(batches) for batches in by_worker] == [1] * 8
    assert sorted(rows_in(batches) for batches in by_worker) == [[]] * 7 + [[0]]
    for batches in by_worker:
        check_rows(batches[0], frame)
        check_pads(batches[0])


def test_epochs_are_reproducible(tmp_path):
    spec, _ = write_dataset(tmp_path, [[30], [30, 30]])
    first = ParquetLoader(spec, "train", global_batch_size=16, shuffle=True, seed=3)
    second = ParquetLoader(spec, "train", global_batch_size=16, shuffle=True, seed=3)
    orders = []
    for epoch in (0, 1, 0):
        ours, theirs = list(first.epoch(epoch)), list(second.epoch(epoch))
        for one, other in zip(ours, theirs, strict=True):
            for left, right in zip(arrays_of(one), arrays_of(other), strict=True):
                np.testing.assert_array_equal(left, right)
        orders.append(rows_in(ours))
    assert orders[0] == orders[2] != orders[1]
    other_seed = ParquetLoader(spec, "train", global_batch_size=16, shuffle=True, seed=4)
    assert rows_in(list(other_seed.epoch(0))) != orders[0]


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_can_start_at_any_step(tmp_path, shuffle):
    spec, _ = write_dataset(tmp_path, [[20, 10]] * 4)
    with small_windows(30):
        loader = ParquetLoader(spec, "train", global_batch_size=14, worker=1, workers=2, shuffle=shuffle)
        whole = [batch.rows.tolist() for batch in loader.epoch(2)]
        for step in (0, 1, 5, len(whole) - 1, len(whole)):
            assert [batch.rows.tolist() for batch in loader.epoch(2, step)] == whole[step:]


def test_starting_late_does_not_read_what_lies_before(tmp_path):
    spec, _ = write_dataset(tmp_path, [[10]] * 30)
    loader = ParquetLoader(spec, "train", global_batch_size=10, shuffle=True)
    with (
        small_windows(20, row_groups_per_stream=1000),
        mock.patch.object(ParquetReader, "decode", autospec=True) as decode,
    ):
        decode.return_value = Decoded([empty_lists(10, 1)] * 2, [], {}, {})
        list(loader.epoch(0, loader.steps_per_epoch - 1))
    assert 1 <= decode.call_count <= 2


def test_batches_are_arrays_of_their_own(tmp_path):
    spec, frame = write_dataset(tmp_path, [[10]] * 20)
    with small_windows(10, row_groups_per_stream=1000):
        loader = ParquetLoader(spec, "train", global_batch_size=10, shuffle=True)
        for batch in list(loader.epoch(0)):
            check_rows(batch, frame)
            assert all(array.flags.owndata for array in batch if isinstance(array, np.ndarray))
            assert batch.id_lists.values.flags.writeable


def test_extra_columns_travel_with_their_rows(tmp_path):
    spec, frame = write_dataset(tmp_path, [[7], [6]])
    for shuffle in (True, False):
        batches = epoch_of(spec, batch=5, shuffle=shuffle, extra_columns=["note", "session"])[0]
        for batch in batches:
            note, session = batch.extra
            held = batch.rows != PAD
            assert note[held].tolist() == frame.note[batch.rows[held]].tolist()
            assert session[held].tolist() == frame.session[batch.rows[held]].tolist()
            assert note[~held].tolist() == [None] * sum(~held)
            assert session[~held].tolist() == [0] * sum(~held)


def test_cut_lists_are_counted(tmp_path):
    frame = random_rows(40)
    frame["tags"] = [list(range(row % 5)) for row in range(40)]
    spec, _ = write_dataset(tmp_path, [[15, 10], [15]], frame=frame)
    loader = ParquetLoader(spec, "train", global_batch_size=16, shuffle=True)
    with pytest.warns(UserWarning) as caught:
        for batch in loader.epoch(0):
            check_rows(batch, frame)
            assert not caught.list
    assert [str(warning.message) for warning in caught] == [
        "mapping 'train': 8 lists of feature 'tags' are longer than its max_hotness and were cut; "
        "raise max_hotness in the feature specification to keep them whole"
    ]
    assert loader.truncated == {"tags": 8, "topics": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(loader.epoch(1))
    assert loader.truncated["tags"] == 8


def test_nothing_is_warned_of_where_no_list_is_cut(tmp_path):
    spec, _ = write_dataset(tmp_path, [[40]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        epoch_of(spec, batch=16)


@pytest.mark.parametrize(
    ("batch", "workers", "shuffled", "in_order"), [(131_072, 1, 50, 50), (131_072, 3, 17, 17), (40, 3, 14, 9)]
)
def test_no_room_is_made_for_rows_that_do_not_exist(tmp_path, batch, workers, shuffled, in_order):
    """In order, 50 rows are two steps of at most 9 rows of each of three workers."""
    spec, _ = write_dataset(tmp_path, [[50]])
    for shuffle, room in ((True, shuffled), (False, in_order)):
        loader = ParquetLoader(spec, "train", global_batch_size=batch, workers=workers, shuffle=shuffle)
        assert {len(one.rows) for one in loader.epoch(0)} == {loader.local_batch_size} == {room}


def test_rows_until_a_step_count_rows_and_no_pads(tmp_path):
    spec, _ = write_dataset(tmp_path, [[25]])
    loader = ParquetLoader(spec, "train", global_batch_size=10, workers=3, shuffle=True)
    assert [loader.rows_until(step) for step in range(8)] == [0, 10, 20, 25, 35, 45, 50, 60]


def test_invalid_batch_size_and_worker(tmp_path):
    spec, _ = write_dataset(tmp_path, [[5]])
    with pytest.raises(DataError, match="at least 1 row, got 0"):
        ParquetLoader(spec, "train", global_batch_size=0, shuffle=True)
    with pytest.raises(ValueError, match=r"worker must be in \[0, 2\), got 2"):
        ParquetLoader(spec, "train", global_batch_size=2, worker=2, workers=2, shuffle=True)


def bad_row_in_the_third_file(tmp_path: Path) -> FeatureSpec:
    frame = random_rows(60)
    frame.loc[55, "user"] = -1
    return write_dataset(tmp_path, [[20], [20], [20]], frame=frame)[0]


def test_error_in_the_background(tmp_path):
    loader = ParquetLoader(bad_row_in_the_third_file(tmp_path), "train", global_batch_size=10, shuffle=False)
    batches = []
    with small_windows(20), pytest.raises(DataError, match="column 'user' has 1 unusable .* in row 15 of the file"):
        for batch in loader.epoch(0):
            batches.append(batch)
    assert rows_in(batches) == list(range(40))
    assert loader_threads() == []


def test_an_error_of_any_kind_surfaces(tmp_path):
    spec, _ = write_dataset(tmp_path, [[20]])
    loader = ParquetLoader(spec, "train", global_batch_size=10, shuffle=True)
    for error in (MemoryError("no room"), KeyboardInterrupt()):
        with (
            mock.patch.object(ParquetReader, "decode", side_effect=error),
            pytest.raises(type(error)),
        ):
            list(loader.epoch(0))
        assert loader_threads() == []


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_closing_an_epoch_stops_its_threads(tmp_path, taken):
    spec, _ = write_dataset(tmp_path, [[10]] * 40)
    loader = ParquetLoader(spec, "train", global_batch_size=10, shuffle=True)
    batches = loader.epoch(0)
    for _ in range(taken):
        next(batches)
    assert bool(loader_threads()) == bool(taken)
    batches.close()
    assert loader_threads() == []
    assert list(batches) == []


def test_no_threads_are_left(tmp_path):
    spec, _ = write_dataset(tmp_path, [[10]] * 40)
    loader = ParquetLoader(spec, "train", global_batch_size=10, shuffle=True)
    batches = loader.epoch(0)
    next(batches)
    del batches
    gc.collect()
    assert loader_threads() == []
    list(loader.epoch(1))
    assert loader_threads() == []


def test_closing_cancels_pending_row_groups(tmp_path):
    spec, _ = write_dataset(tmp_path, [[10]] * 40)
    loader = ParquetLoader(spec, "train", global_batch_size=10, shuffle=False)
    decode = ParquetReader.decode
    decoded = []

    def slow(self: ParquetReader, unit: int, *rest: Any) -> Decoded:
        time.sleep(0.02)
        decoded.append(unit)
        return decode(self, unit, *rest)

    with small_windows(200), mock.patch.object(ParquetReader, "decode", slow):
        batches = loader.epoch(0)
        next(batches)
        batches.close()
    # The first window took 20 row groups; those of the second had hardly begun.
    assert 20 <= len(decoded) < 40


def test_only_a_few_batches_are_made_ahead(tmp_path):
    spec, _ = write_dataset(tmp_path, [[10]] * 40)
    loader = ParquetLoader(spec, "train", global_batch_size=10, shuffle=False)
    allocate, sizes = parquet.empty_batch, []

    def counting(spec: FeatureSpec, rows: int, **options: Any) -> Batch:
        sizes.append(rows)
        return allocate(spec, rows, **options)

    with small_windows(25), mock.patch.object(parquet, "empty_batch", counting):
        batches = loader.epoch(0)
        next(batches)
        deadline = time.monotonic() + 30
        while sizes.count(10) < 6 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)  # for a seventh, if there is no limit
        batches.close()
    # One was taken, four wait, one more is in hand; and two windows are open.
    assert sizes.count(10) == 6
    assert len(sizes) == 6 + 2


def test_two_epochs_can_run_at_the_same_time(tmp_path):
    spec, frame = write_dataset(tmp_path, [[10]] * 5)
    loader = ParquetLoader(spec, "train", global_batch_size=8, shuffle=True)
    pairs = list(zip(loader.epoch(0), loader.epoch(1), strict=True))
    assert sorted(rows_in([first for first, _ in pairs])) == list(range(50))
    assert sorted(rows_in([second for _, second in pairs])) == list(range(50))


def test_later_epochs_reuse_rows_from_memory(tmp_path):
    spec, frame = write_dataset(tmp_path, [[3, 14, 9], [20, 1, 11]])
    allocate, sizes = parquet.empty_batch, []

    def counting(spec: FeatureSpec, rows: int, **options: Any) -> Batch:
        sizes.append(rows)
        return allocate(spec, rows, **options)

    loader = ParquetLoader(spec, "train", global_batch_size=8, shuffle=True)
    with mock.patch.object(parquet, "empty_batch", counting):
        for epoch in range(6):
            batches = list(loader.epoch(epoch))
            assert sorted(rows_in(batches)) == list(range(len(frame)))
            for batch in batches:
                check_rows(batch, frame)
                check_pads(batch)
    assert [rows for rows in sizes if rows != 8] == [len(frame)]
    with small_windows(20), closing(loader.epoch(0)) as batches:  # windows of other sizes
        assert sorted(rows_in(list(batches))) == list(range(len(frame)))


def test_rows_and_labels_stay_together_at_full_size(tmp_path):
    rows = 150_000
    frame = pd.DataFrame(random_rows(10).loc[np.zeros(rows, int)].reset_index(drop=True))
    frame["user"] = np.arange(rows) % 1000
    frame["session"] = np.arange(rows)
    spec, _ = write_dataset(tmp_path, [[65_536, 65_536, rows - 2 * 65_536]], frame=frame)
    seen = np.zeros(rows, int)
    for worker in range(2):
        loader = ParquetLoader(
            spec, "train", global_batch_size=4096, worker=worker, workers=2, shuffle=True, with_group=True
        )
        for batch in loader.epoch(0):
            held = batch.rows != PAD
            assert np.array_equal(batch.group[held], batch.rows[held])
            assert np.array_equal(batch.onehot[held, 0], batch.rows[held] % 1000)
            seen[batch.rows[held]] += 1
    assert np.all(seen == 1)


def test_the_data_side_needs_no_tensorflow():
    program = "import sys, data.loading.loader; sys.exit(any(name in sys.modules for name in ('tensorflow', 'keras')))"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False).returncode == 0


def test_files_of_other_integer_types_mix(tmp_path):
    spec, frame = write_dataset(tmp_path, [[6], [6]], types={"user": pa.int16()})
    check_rows(epoch_of(spec, batch=12)[0][0], frame)
