"""Small parquet datasets with every kind of column, and what a batch of them must hold, row by row."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from data.loading.batch import PAD, Batch
from data.loading.lists import Lists, empty_lists, join_columns
from data.loading.parquet import ParquetReader
from data.spec.feature_spec import FeatureSpec

FEATURES: dict[str, dict[str, Any]] = {
    "user": {"cardinality": 1000},
    "item": {"cardinality": 7},
    "tags": {"cardinality": 50, "max_hotness": 3},
    "topics": {"cardinality": 9, "max_hotness": 1},
    "price": {},
    "age": {"dtype": "int16"},
    "click": {},
    "stars": {"task": "regression", "missing": "ignore"},
    "kind": {"task": "multiclass", "cardinality": 4},
    "importance": {"role": "sample_weight"},
    "session": {},
}
CHANNELS = {
    "onehot_categorical": ["user", "item"],
    "multihot_categorical": ["tags", "topics"],
    "numerical": ["price", "age"],
    "label": ["click", "stars", "kind"],
    "map": ["session"],
}
TYPES = {
    "user": pa.int64(),
    "item": pa.int8(),
    "tags": pa.list_(pa.int64()),
    "topics": pa.large_list(pa.int32()),
    "price": pa.float32(),
    "age": pa.int16(),
    "click": pa.int64(),
    "stars": pa.float64(),
    "kind": pa.int32(),
    "importance": pa.float64(),
    "session": pa.int64(),
    "note": pa.string(),
}


def random_rows(rows: int, seed: int = 0) -> pd.DataFrame:
    """Rows of all columns; lists are as long as max_hotness at most, some stars are missing."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "user": rng.integers(0, 1000, rows),
            "item": rng.integers(0, 7, rows),
            "tags": [rng.integers(0, 50, rng.integers(0, 4)).tolist() for _ in range(rows)],
            "topics": [rng.integers(0, 9, rng.integers(0, 2)).tolist() for _ in range(rows)],
            "price": rng.normal(size=rows).astype(np.float32),
            "age": rng.integers(-5, 100, rows),
            "click": rng.integers(0, 2, rows),
            "stars": np.where(rng.random(rows) < 0.2, np.nan, rng.normal(size=rows)),
            "kind": rng.integers(0, 4, rows),
            "importance": rng.random(rows) + 0.5,
            "session": rng.integers(-(2**62), 2**62, rows),
            "note": [f"row {index}" for index in range(rows)],
        }
    )


def arrow_table(frame: pd.DataFrame, types: dict[str, pa.DataType] | None = None) -> pa.Table:
    types = TYPES | (types or {})
    return pa.table({name: pa.array(frame[name].tolist(), types[name]) for name in frame.columns})


def write_file(path: Path, table: pa.Table, row_groups: Sequence[int]) -> None:
    """One file with row groups of the given sizes."""
    assert sum(row_groups) == table.num_rows
    with pq.ParquetWriter(path, table.schema, compression="snappy", write_page_checksum=True) as writer:
        start = 0
        for rows in row_groups:
            writer.write_table(table.slice(start, rows), row_group_size=max(rows, 1))
            start += rows


def write_files(folder: Path, prefix: str, table: pa.Table, files: Sequence[Sequence[int]]) -> list[str]:
    """Files with row groups of the given sizes; returns their names."""
    names, start = [], 0
    for number, row_groups in enumerate(files):
        names.append(f"{prefix}_{number}.parquet")
        write_file(folder / names[-1], table.slice(start, sum(row_groups)), row_groups)
        start += sum(row_groups)
    return names


def write_chunks(
    folder: Path,
    table: pa.Table,
    files: Sequence[Sequence[int]],
    own: Sequence[str],
    apart: Sequence[Sequence[int]] | None,
) -> list[tuple[list[str], list[str]]]:
    """The chunks (features, files) of a table; the columns `own` are in files of their own with the row groups `apart`.

    If these are not given, all columns are in the same files.
    """
    if apart is None:
        return [(table.column_names, write_files(folder, "part", table, files))]
    rest = table.drop_columns(list(own))
    return [
        (rest.column_names, write_files(folder, "rest", rest, files)),
        (list(own), write_files(folder, "own", table.select(own), apart)),
    ]


def dataset_spec(folder: Path, chunks: Sequence[tuple[Sequence[str], Sequence[str]]], **changes: Any) -> FeatureSpec:
    """The specification of chunks (features, files), which serve both mappings; a change of None drops a feature."""
    dropped = [name for name, entry in changes.items() if entry is None]
    features = {name: entry for name, entry in (FEATURES | changes).items() if name not in dropped}
    parts = [
        {
            "type": "parquet",
            "features": [name for name in held if name in features],
            "files": list(files),
        }
        for held, files in chunks
    ]
    document = {
        "feature_spec": features,
        "source_spec": {"train": parts, "test": parts},
        "channel_spec": {channel: [name for name in names if name in features] for channel, names in CHANNELS.items()},
        "metadata": {},
    }
    return FeatureSpec.from_dict(document, folder)


def write_dataset(
    folder: Path,
    files: Sequence[Sequence[int]],
    *,
    frame: pd.DataFrame | None = None,
    types: dict[str, pa.DataType] | None = None,
    **changes: Any,
) -> tuple[FeatureSpec, pd.DataFrame]:
    """A dataset of one chunk in files with row groups of the given sizes, and its rows."""
    frame = random_rows(sum(map(sum, files))) if frame is None else frame
    names = write_files(folder, "part", arrow_table(frame, types), files)
    return dataset_spec(folder, [(list(FEATURES), names)], **changes), frame


def decoded(reader: ParquetReader, row_group: int, start: int, stop: int) -> Batch:
    """The rows [start, stop) of a row group."""
    rows = reader.allocate(stop - start)
    lists = reader.decode(row_group, start, stop, rows)
    id_lists, number_lists = table_of(lists.id_lists, len(rows.rows)), table_of(lists.number_lists, len(rows.rows))
    return rows._replace(id_lists=id_lists, number_lists=number_lists)


def table_of(columns: Sequence[Lists], rows: int) -> Lists:
    """Columns of lists side by side; there may be none."""
    return join_columns(columns) if columns else empty_lists(rows, 0)


def nested(lists: Lists) -> list[list[list[Any]]]:
    """The lists of a table by row and column."""
    ends = np.cumsum([0, *lists.lengths.reshape(-1).tolist()]).tolist()
    flat = [lists.values[begin:end].tolist() for begin, end in pairwise(ends)]
    width = lists.lengths.shape[1]
    return [flat[row * width : (row + 1) * width] for row in range(len(lists.lengths))]


def arrays_of(batch: Batch) -> list[np.ndarray]:
    """The arrays of a batch."""
    arrays = [batch.id_lists.values, batch.id_lists.lengths, *batch[:-1], *batch.extra]
    return [array for array in arrays if isinstance(array, np.ndarray)]


def check_rows(batch: Batch, frame: pd.DataFrame) -> None:
    """Every row of the batch that is no pad holds what the frame has at its position."""
    held, lists = np.flatnonzero(batch.rows != PAD), nested(batch.id_lists)
    for index, row in zip(held, frame.iloc[batch.rows[held]].to_dict("records"), strict=True):
        assert batch.onehot[index].tolist() == [row["user"], row["item"]]
        assert lists[index] == [list(row["tags"][:3]), list(row["topics"][:1])]
        assert batch.numerical[index].tolist() == [np.float32(row["price"]), row["age"]]
        np.testing.assert_array_equal(batch.labels[index], np.float32([row["click"], row["stars"], row["kind"]]))
        assert batch.weights[index] == np.float32(row["importance"])
        assert batch.group is None or batch.group[index] == row["session"]


def check_pads(batch: Batch) -> None:
    """Everything of the rows that only fill the batch up."""
    pads = batch.rows == PAD
    assert np.all(batch.weights[pads] == 0)
    assert np.all(batch.onehot[pads] == 0)
    assert np.all(batch.id_lists.lengths[pads] == 0)
    assert np.all(batch.numerical[pads] == 0)
    assert np.all(batch.labels[pads] == 0)
    assert batch.group is None or np.all(batch.group[pads] == 0)
