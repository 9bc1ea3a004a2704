"""Sizes that files, specifications and flags declare are compared with the memory there is before it is allocated."""

import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import gen_csv
from data import memory
from data.errors import DataError
from data.loading.loader import ParquetLoader
from data.loading.shuffle import SequentialPlan, ShuffledPlan
from data.memory import available_memory, check_fits
from data.spec.feature_spec import FeatureSpec
from tests.data.sample_data import FEATURES, dataset_spec, random_rows, write_dataset
from tests.helpers import ROOT


@pytest.fixture
def bounded(monkeypatch):
    """Sets the number of bytes of available memory."""

    def bound(available: int) -> None:
        monkeypatch.setattr(memory, "available_memory", lambda processes=1: available // processes)

    return bound


def refusal(spec: FeatureSpec, **options) -> str:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError) as caught:
        ParquetLoader(spec, "train", **({"global_batch_size": 2, "shuffle": True} | options))
    return str(caught.value)


def with_max_hotness(folder: Path, max_hotness: int) -> FeatureSpec:
    """The dataset in a folder, with another max_hotness of `tags`."""
    files = sorted(path.name for path in folder.glob("*.parquet"))
    return dataset_spec(folder, [(list(FEATURES), files)], tags={"cardinality": 50, "max_hotness": max_hotness})


def test_lists_too_long_for_memory_are_rejected_by_name(tmp_path, bounded):
    frame = random_rows(9)
    frame["tags"] = [[1] * 2000 if row in (3, 4, 5) else [] for row in range(9)]
    write_dataset(tmp_path, [[3, 3], [3]], frame=frame)
    bounded(10_000)
    message = refusal(with_max_hotness(tmp_path, 5000))
    assert (
        f"{tmp_path}: reading mapping 'train', in which the lists of feature 'tags' take 8,000 bytes per row" in message
    )
    assert "MiB of memory, and" in message and "lower its max_hotness" in message
    assert "take 4,800 bytes per row" in refusal(with_max_hotness(tmp_path, 1200))  # longer lists are cut


def test_a_large_max_hotness_takes_no_memory(tmp_path, bounded):
    """The ids that there are do, by the footers of the files: those of an empty list count as one."""
    write_dataset(tmp_path, [[20, 1], [30, 7]])
    frame = pd.concat([pd.read_parquet(path) for path in sorted(tmp_path.glob("*.parquet"))])
    densest = [
        max(
            sum(max(len(ids), 1) for ids in part) / len(part) for part in np.split(frame[name].to_numpy(), [20, 21, 51])
        )
        for name in ("tags", "topics")
    ]
    list_bytes = sum(math.ceil(4 * ids) for ids in densest)
    # 2 one-hot and 2 numerical features, 3 labels and the weight; the row's position; 2 lists.
    row_bytes = 4 * (2 + 2 + 3 + 1) + 8 + 2 * 12 + list_bytes
    bounded(100_000)
    loader = ParquetLoader(with_max_hotness(tmp_path, 2 * 10**9), "train", global_batch_size=2, shuffle=True)
    assert loader.row_bytes == row_bytes
    assert sum(len(batch.id_lists.values) for batch in loader.epoch(0)) == sum(map(len, [*frame.tags, *frame.topics]))


def constant_file(folder: Path, rows: int, row_group_rows: int | None = None) -> FeatureSpec:
    """A small file that declares many rows, normally all in one row group: one value, repeated."""
    column = pa.array(np.zeros(rows, np.int64))
    table = pa.table({"user": column, "click": column})
    pq.write_table(table, folder / "part_0.parquet", row_group_size=row_group_rows or rows, compression="zstd")
    part = [{"type": "parquet", "features": ["user", "click"], "files": ["part_0.parquet"]}]
    document = {
        "feature_spec": {"user": {"cardinality": 10}, "click": {}},
        "source_spec": {"train": part, "test": part},
        "channel_spec": {"onehot_categorical": ["user"], "label": ["click"]},
    }
    return FeatureSpec.from_dict(document, folder)


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_row_group_too_long_for_memory_names_the_file(shuffle, tmp_path, bounded):
    rows = 10**6
    spec = constant_file(tmp_path, rows)
    assert (tmp_path / "part_0.parquet").stat().st_size < 10_000
    # One window: 2 numbers, weight and row number; its order; both columns unpacked, and side by side. And a batch.
    needed = rows * (2 * 4 + 4 + 8 + 4 + 2 * 8 + 2 * 4) + 6 * 2 * 20
    bounded(needed - 1)
    message = refusal(spec, shuffle=shuffle)
    assert (
        f"row group 0 of {tmp_path / 'part_0.parquet'} has 1,000,000 rows" in message
        and "write the file again" in message
    )
    bounded(needed)
    ParquetLoader(spec, "train", global_batch_size=2, shuffle=shuffle)


def test_a_batch_too_large_for_memory_is_rejected(tmp_path, bounded):
    spec = constant_file(tmp_path, 3 * 10**6, row_group_rows=2**16)
    bounded(6 * 10**7)
    message = refusal(spec, global_batch_size=10**6)
    assert "in which a batch has 1,000,000 rows of 20 bytes, needs" in message and "--global_batch_size" in message
    ParquetLoader(spec, "train", global_batch_size=10**4, shuffle=True)


def test_a_wide_row_is_rejected_where_nothing_else_is_large(tmp_path, bounded):
    spec, _ = write_dataset(tmp_path, [[3] * 100])
    bounded(1000)
    assert "in which a row takes " in refusal(spec)


def test_row_group_of_too_many_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("data.loading.parquet.MOST_ROWS", 2)
    spec, _ = write_dataset(tmp_path, [[3]])
    assert "part_0.parquet: cannot be read as parquet (a row group of 3 rows; expected at most 2)" in refusal(spec)


@pytest.mark.parametrize("plan", [ShuffledPlan, SequentialPlan])
def test_open_rows(plan):
    units = np.full(64, 2**18)
    if plan is ShuffledPlan:
        made = ShuffledPlan(units, 64, seed=0, epoch=0)
        assert made.streams > 1 and made.open_rows == 2 * made.streams * made.window_rows
    else:
        made = SequentialPlan(units, 64, worker=0, workers=1)
        assert made.open_rows == 2 * made.window_rows


def test_processes_share_the_machine():
    assert available_memory(4) == pytest.approx(available_memory() / 4, rel=0.2)


def test_what_fits_is_taken_and_both_figures_are_named(bounded):
    bounded(2**30)
    check_fits(2**30, "it", "fix it")
    with pytest.raises(
        DataError, match=r"^it needs 1.50 GiB of memory, and 512.0 MiB|0.50 GiB are available to each of 2"
    ):
        check_fits(3 * 2**29, "it", "fix it", processes=2)


@pytest.fixture
def csv_spec(tmp_path):  # type: ignore[no-untyped-def]
    """The path of a CSV specification, and its document."""
    path = tmp_path / "spec.yaml"
    path.write_text((ROOT / "feature_specs" / "tiny.yaml").read_text())
    return path


def gen(csv_spec, capsys, *flags: str) -> str:  # type: ignore[no-untyped-def]
    assert gen_csv.main(["--feature_spec_in", str(csv_spec), "--output", str(csv_spec.parent / "out"), *flags]) == 2
    assert not (csv_spec.parent / "out").exists()
    return capsys.readouterr().err


def test_random_rows_too_long_for_memory_are_rejected(csv_spec, capsys):
    document = yaml.safe_load(csv_spec.read_text())
    document["feature_spec"]["genres"]["max_hotness"] = 2 * 10**9
    csv_spec.write_text(yaml.safe_dump(document))
    message = gen(csv_spec, capsys)
    assert "feature 'genres', with up to 2,000,000,000 ids in each of 1,000 rows, needs" in message


def test_random_rows_too_many_for_the_disk_are_rejected(csv_spec, capsys, monkeypatch):
    usage = shutil.disk_usage(csv_spec.parent)
    monkeypatch.setattr("gen_csv.shutil.disk_usage", lambda _: usage._replace(free=1000))
    assert "1,000 rows in each mapping take at least" in gen(csv_spec, capsys)
