"""Datasets in an object store: the loader reads row groups of objects through a cache of bounded size."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from data.errors import DataError, LostInputError
from data.files.parquet import add_checksums
from data.loading.loader import ParquetLoader
from data.loading.parquet import ParquetFile, StoredColumns
from data.loading.part import Part
from data.spec.feature_spec import FeatureSpec
from data.storage import range_cache, remote
from tests.data.sample_data import arrays_of, write_dataset
from tests.data.test_loader import loader_threads
from tests.helpers import ROOT, environment
from tests.object_store import BUCKET, Faults, proxy

FILES = [[400, 600], [1000], [300, 300, 400]]
ROW_GROUPS = 6


@pytest.fixture
def dataset(store, tmp_path):
    """The same dataset in a local folder and in the store."""
    spec = sealed_dataset(tmp_path / "local", FILES)
    return spec, pushed(spec, store)


def sealed_dataset(folder: Path, files: list[list[int]], **changes) -> FeatureSpec:
    folder.mkdir()
    spec, _ = write_dataset(folder, files, **changes)
    for path in spec.files("train"):
        add_checksums(path)
    return spec


def pushed(spec: FeatureSpec, url: str) -> FeatureSpec:
    spec.write(spec.folder / "feature_spec.yaml")
    remote.push_folder(spec.folder, url, "feature_spec.yaml")
    mirror = remote.pull_folder(url, "feature_spec.yaml", lambda name: not name.endswith(".parquet"))
    assert not list(mirror.rglob("*.parquet"))
    return FeatureSpec.read(mirror / "feature_spec.yaml")


def epochs(spec: FeatureSpec, numbers=(0, 1), **options) -> list[list]:
    """The arrays of the batches of some epochs of both workers."""
    options = {"global_batch_size": 640, "shuffle": True, "workers": 2, "with_group": True} | options
    found = []
    for worker in range(options["workers"]):
        loader = ParquetLoader(spec, "train", worker=worker, **options)
        for number in numbers:
            with closing(loader.epoch(number)) as batches:
                found += [arrays_of(batch) for batch in batches]
    return found


def assert_equal(found: list, expected: list) -> None:
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert len(one) == len(other) > 5
        for array, right in zip(one, other, strict=True):
            np.testing.assert_array_equal(array, right)


def cached() -> list[Path]:
    return sorted((remote.cache_dir() / range_cache.FOLDER).iterdir())


def disk_bytes() -> int:
    """What all files of the cache take on the disk."""
    total = 0
    for path in cached():
        try:
            total += path.stat().st_blocks * 512
        except FileNotFoundError:
            continue
    return total


@contextmanager
def watched_disk() -> Iterator[list[int]]:
    """Samples what the cache takes on the disk; never more than was seen in the folder at one moment."""
    folder, seen, ended = remote.cache_dir() / range_cache.FOLDER, [0], threading.Event()
    folder.mkdir(parents=True, exist_ok=True)

    def sample() -> None:
        while not ended.is_set():
            with range_cache._locked(folder):
                seen.append(disk_bytes())
            time.sleep(0.001)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("options", [{}, {"shuffle": False}, {"whole_groups": True}, {"extra_columns": ["user"]}])
def test_batches_equal_those_of_local_files(dataset, options):
    local, far = dataset
    assert_equal(epochs(far, **options), epochs(local, **options))
    assert loader_threads() == []


def test_files_without_checksums_and_column_groups_equal_local_ones(store, tmp_path):
    (tmp_path / "local").mkdir()
    local, _ = write_dataset(tmp_path / "local", FILES)
    far = pushed(local, store)
    assert all(file.checksums is None for file in map(ParquetFile.open, far.files("train")))
    assert_equal(epochs(far), epochs(local))
    held = Part(np.packbits(np.arange(3000) % 3 == 0), bit=True)
    assert_equal(epochs(far, part=held), epochs(local, part=held))
    found, expected = (StoredColumns(spec, "train", ["tags", "click"]).stream().take(3000) for spec in (far, local))
    assert [column.to_pylist() for column in found] == [column.to_pylist() for column in expected]


def test_a_long_footer_is_read(store, tmp_path, monkeypatch):
    monkeypatch.setattr("data.files.parquet._END_BYTES", 100)
    local = sealed_dataset(tmp_path / "local", FILES)
    assert_equal(epochs(pushed(local, store)), epochs(local))


def test_only_the_row_groups_and_columns_that_are_read_are_downloaded(dataset):
    _, far = dataset
    file = ParquetFile.open(far.files("train")[2])
    (footer,) = cached()
    list(file.read(1, ["user"]))
    (part,) = set(cached()) - {footer}
    chunk = file.metadata.row_group(1).column(file.schema.names.index("user"))
    assert part.stat().st_size == file.remote.size
    whole, held = remote.read_range(file.remote, 0, file.remote.size), part.read_bytes()
    start = chunk.dictionary_page_offset
    assert held[start : start + chunk.total_compressed_size] == whole[start : start + chunk.total_compressed_size]
    assert held.count(0) > len(held) / 2
    assert part.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("kind", ["error", "cut"])
def test_faults_of_the_store_change_nothing(dataset, server, monkeypatch, kind):
    local, far = dataset
    faults = Faults(kind)
    with proxy(server, faults) as broken:
        monkeypatch.setenv("AWS_ENDPOINT_URL", broken["AWS_ENDPOINT_URL"])
        assert_equal(epochs(far), epochs(local))
    assert faults.hit >= 2


def test_a_store_that_stalls_ends_with_its_url(dataset, server, monkeypatch):
    _, far = dataset
    loader = ParquetLoader(far, "train", global_batch_size=640, shuffle=True)
    with proxy(server, Faults("stall", 1)) as broken:
        monkeypatch.setenv("AWS_ENDPOINT_URL", broken["AWS_ENDPOINT_URL"])
        monkeypatch.setenv(remote.DEADLINE_VARIABLE, "2")
        monkeypatch.setattr(remote, "REQUEST_TIMEOUT", 1.0)
        with pytest.raises(LostInputError, match=rf"s3://{BUCKET}/.*parquet: cannot read after"):
            list(loader.epoch(0))
    assert loader_threads() == []


def test_the_cache_stays_below_its_limit(dataset, monkeypatch):
    local, far = dataset
    with closing(ParquetLoader(far, "train", global_batch_size=640, shuffle=True).epoch(0)) as batches:
        list(batches)
    limit = 2 * max(path.stat().st_blocks * 512 for path in cached())
    assert disk_bytes() > 2 * limit
    monkeypatch.setenv(range_cache.CACHE_LIMIT_VARIABLE, str(limit))
    assert range_cache.enforced_limit() == limit
    with watched_disk() as seen:
        found = epochs(far, numbers=(0, 1, 2))
    assert_equal(found, epochs(local, numbers=(0, 1, 2)))
    assert len(seen) > 20
    assert limit // 2 < max(seen) <= limit


def test_a_cache_smaller_than_a_row_group_is_rejected(dataset, monkeypatch):
    _, far = dataset
    loader = ParquetLoader(far, "train", global_batch_size=640, shuffle=True)
    monkeypatch.setenv(range_cache.CACHE_LIMIT_VARIABLE, "4096")
    with pytest.raises(DataError, match=r"s3://.*a row group takes .* may take 4,096; raise --cache_limit"):
        list(loader.epoch(0))


def test_read_ahead_is_bounded(dataset, monkeypatch):
    """While nothing is decoded, only so many row groups are downloaded."""
    _, far = dataset
    monkeypatch.setattr("data.loading.read_ahead.ROW_GROUPS_AHEAD", 2)
    fetched, may_decode = [], threading.Event()
    fetch, read = ParquetFile.fetch, ParquetFile.read
    monkeypatch.setattr(
        ParquetFile, "fetch", lambda self, *more: (fetched.append((self.path, more[0])), fetch(self, *more))
    )
    monkeypatch.setattr(ParquetFile, "read", lambda self, *more: (may_decode.wait(30), read(self, *more))[1])
    loader = ParquetLoader(far, "train", global_batch_size=640, shuffle=True)
    with closing(loader.epoch(0)) as batches:
        reading = threading.Thread(target=lambda: list(batches))
        reading.start()
        end = time.monotonic() + 20
        while len(fetched) < 4 and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.3)
        before = len(fetched)
        may_decode.set()
        reading.join()
    # Two of them may be with the threads that decode.
    assert 2 <= before <= 4
    assert len(set(fetched)) == len(fetched) <= ROW_GROUPS


READS = """
import sys
from contextlib import closing
from data.loading.loader import ParquetLoader
from data.spec.feature_spec import FeatureSpec
from pathlib import Path
spec = FeatureSpec.read(Path(sys.argv[1]))
rows = []
for epoch in range(2):
    with closing(ParquetLoader(spec, "train", global_batch_size=640, shuffle=True).epoch(epoch)) as batches:
        rows += [batch.onehot.tobytes().hex() for batch in batches]
print("".join(rows))
"""


@pytest.mark.parametrize("row_groups", [pytest.param(3, marks=pytest.mark.slow), 1000])
def test_processes_share_the_cache(dataset, server, monkeypatch, row_groups):
    """Whether or not there is room for all row groups; in the latter case each of them is downloaded once."""
    local, far = dataset
    file = ParquetFile.open(far.files("train")[1])
    limit = row_groups * (file.stored_bytes(0, file.schema.names) // 4096 + 2) * 4096
    monkeypatch.setenv(range_cache.CACHE_LIMIT_VARIABLE, str(limit))
    faults = Faults()
    with proxy(server, faults) as counted, watched_disk() as seen:
        running = [
            subprocess.Popen(
                [sys.executable, "-c", READS, far.folder / "feature_spec.yaml"],
                env=environment(AWS_ENDPOINT_URL=counted["AWS_ENDPOINT_URL"]),
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]
        outputs = [process.communicate(timeout=120)[0].strip() for process in running]
    expected = subprocess.run(
        [sys.executable, "-c", READS, local.folder / "feature_spec.yaml"],
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.strip()
    assert len(expected) > 1000
    assert outputs == [expected, expected]
    assert max(seen) <= limit
    # Per loader and file, a description in three requests at most; per part, one to look and one to read.
    descriptions = 3 * 2 * 2 * len(FILES)
    if row_groups == 1000:
        assert faults.requests <= descriptions + 2 * (ROW_GROUPS + len(FILES))


def test_the_draft_of_a_dead_process_makes_room(dataset, monkeypatch):
    _, far = dataset
    file = ParquetFile.open(far.files("train")[1])
    folder = remote.cache_dir() / range_cache.FOLDER
    dead = folder / ".dead.unfinished"
    dead.write_bytes(bytes(100_000))
    monkeypatch.setenv(range_cache.CACHE_LIMIT_VARIABLE, "100000")
    assert {len(column) for _, column in file.read(0, file.schema.names)} == {1000}
    assert not dead.exists()


def test_a_part_in_use_is_not_removed(dataset, monkeypatch):
    _, far = dataset
    file = ParquetFile.open(far.files("train")[1])
    assert file.remote.size > 3 * 4096
    monkeypatch.setenv(range_cache.CACHE_LIMIT_VARIABLE, str(3 * 4096))
    monkeypatch.setattr(range_cache, "ROOM_PATIENCE", 0.2)
    with range_cache.open_ranges(file.remote, [(0, 2 * 4096)]) as used:
        with pytest.raises(LostInputError, match="has had no room for .* raise --cache_limit"):
            range_cache.open_ranges(file.remote, [(4096, 3 * 4096)])
        assert os.fstat(used.fileno()).st_nlink == 1
    with range_cache.open_ranges(file.remote, [(4096, 3 * 4096)]):
        assert len(cached()) == 1


def test_a_damaged_copy_is_downloaded_again(dataset):
    local, far = dataset
    file = ParquetFile.open(far.files("train")[1])
    expected = list(file.read(0, ["user"]))
    for path in cached():
        path.chmod(0o600)
        content = path.read_bytes()
        path.write_bytes(content[:4] + bytes(len(content) // 2) + content[4 + len(content) // 2 :])
    assert list(file.read(0, ["user"])) == expected


@pytest.mark.parametrize("damaged", ["user", "session"])
def test_a_copy_with_a_damaged_column_is_downloaded_again(store, tmp_path, damaged):
    """Also if it is found only when the columns before it have been read, for lack of checksums of whole columns."""
    (tmp_path / "local").mkdir()
    local, _ = write_dataset(tmp_path / "local", FILES)
    file = ParquetFile.open(pushed(local, store).files("train")[1])
    names = ["user", "tags", "session"]
    expected = list(file.read(0, names))
    chunks = map(file.metadata.row_group(0).column, range(file.metadata.num_columns))
    start = next(chunk.dictionary_page_offset for chunk in chunks if chunk.path_in_schema == damaged)
    for path in cached():
        path.chmod(0o600)
        content = bytearray(path.read_bytes())
        content[start : start + 8] = bytes(8)
        path.write_bytes(content)
    with mock.patch("data.loading.parquet.forget_ranges", side_effect=range_cache.forget_ranges) as forgotten:
        assert list(file.read(0, names)) == expected
    assert forgotten.call_count == 1


@pytest.mark.parametrize("read_of_end", [100, 2**16])
def test_a_copy_with_a_damaged_footer_is_downloaded_again(dataset, monkeypatch, read_of_end):
    monkeypatch.setattr("data.files.parquet._END_BYTES", read_of_end)
    path = dataset[1].files("train")[0]
    sound = ParquetFile.open(path)
    for part in cached():
        content = bytearray(part.read_bytes())
        content[-40] ^= 1
        part.write_bytes(content)
    assert ParquetFile.open(path).sha256 == sound.sha256


def test_a_damaged_object_is_rejected_with_its_url(dataset):
    local, far = dataset
    path = local.files("train")[1]
    content = bytearray(path.read_bytes())
    content[300:400] = bytes(100)
    path.write_bytes(content)
    url = remote.url_of(far.files("train")[1])
    remote.put(path, url)
    file = ParquetFile.open(far.files("train")[1])
    with pytest.raises(DataError, match=rf"{url}, row group 0: cannot be decoded .*: the file is damaged"):
        list(file.read(0, file.schema.names))


def test_a_truncated_object_is_rejected_with_its_url(dataset):
    local, far = dataset
    path, url = local.files("train")[1], remote.url_of(far.files("train")[1])
    path.write_bytes(path.read_bytes()[:-1000])
    remote.put(path, url)
    with pytest.raises(DataError, match=f"{url}: cannot be read as parquet"):
        ParquetLoader(far, "train", global_batch_size=640, shuffle=True)


def test_an_object_replaced_between_epochs_ends_the_run(dataset, monkeypatch):
    local, far = dataset
    loader = ParquetLoader(far, "train", global_batch_size=640, shuffle=True)
    expected = epochs(local, numbers=[0], workers=1, with_group=False)
    assert_equal([arrays_of(batch) for batch in loader.epoch(0)], expected)
    path, url = local.files("train")[1], remote.url_of(far.files("train")[1])
    path.write_bytes(path.read_bytes()[::-1])  # of the same size
    remote.put(path, url)
    for part in cached():  # as if other row groups had taken the place
        part.unlink()
    with pytest.raises(LostInputError, match=f"{url}: was replaced while it was in use"):
        list(loader.epoch(1))


@pytest.mark.parametrize("text", ["", "0", "-1", "20 GB", "1.5GiB", "many"])
def test_a_limit_that_is_no_size_is_rejected(text):
    with pytest.raises(DataError, match="is no size"):
        range_cache.parse_size(text)


def test_sizes():
    sizes = {"4096": 4096, "500MiB": 500 * 2**20, "20GiB": 20 * 2**30, "1 TiB": 2**40}
    assert {text: range_cache.parse_size(text) for text in sizes} == sizes
