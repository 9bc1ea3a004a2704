import numpy as np
import pyarrow as pa
import pytest

from data.errors import DataError
from data.loading.parquet import StoredColumns
from tests.data.sample_data import (
    FEATURES,
    arrow_table,
    dataset_spec,
    random_rows,
    write_dataset,
    write_file,
    write_files,
)

NAMES = ["tags", "session", "price", "click"]


@pytest.mark.parametrize("sizes", [[30], [1] * 30, [7, 7, 7, 7, 2], [29, 1]])
def test_columns_are_unchanged(tmp_path, sizes):
    frame = random_rows(30)
    table, held = arrow_table(frame), list(FEATURES)
    chunks = [
        (held[:5], write_files(tmp_path, "a", table.select(held[:5]), [[4, 0, 9], [], [17]])),
        (held[5:], write_files(tmp_path, "b", table.select(held[5:]), [[30]])),
    ]
    stream = StoredColumns(dataset_spec(tmp_path, chunks), "test", NAMES).stream()
    blocks = [pa.table(stream.take(size), names=NAMES) for size in sizes]
    assert [len(block) for block in blocks] == sizes
    assert pa.concat_tables(blocks).combine_chunks() == table.select(NAMES)


def test_integers_of_every_width_are_kept(tmp_path):
    spec, frame = write_dataset(tmp_path, [[3]])
    kept = frame.assign(session=np.array([2**64 - 1, 2**63, 0], np.uint64))
    write_file(tmp_path / "part_0.parquet", arrow_table(kept, {"session": pa.uint64(), "item": pa.uint8()}), [3])
    session, item = StoredColumns(spec, "test", ["session", "item"]).stream().take(3)
    assert session.to_pylist() == [2**64 - 1, 2**63, 0] and session.type == pa.uint64() and item.type == pa.uint8()


def test_no_column_is_a_stream_of_nothing(tmp_path):
    spec, _ = write_dataset(tmp_path, [[3]])
    columns = StoredColumns(spec, "test", [])
    assert columns.schema.names == columns.stream().take(3) == []


def test_unknown_name(tmp_path):
    spec, _ = write_dataset(tmp_path, [[3]])
    with pytest.raises(DataError, match="mapping 'test' has no column note, x; it has user, item, .*, session$"):
        StoredColumns(spec, "test", ["note", "user", "x"])


def test_a_column_has_one_type_in_all_files(tmp_path):
    spec, frame = write_dataset(tmp_path, [[3], [3]])
    write_file(tmp_path / "part_1.parquet", arrow_table(frame[3:], {"user": pa.int32()}), [3])
    with pytest.raises(
        DataError, match="column 'user' is stored as int64 in .*part_0.parquet, int32 in .*part_1.parquet"
    ):
        StoredColumns(spec, "test", ["item", "user"])
    write_file(tmp_path / "part_1.parquet", arrow_table(frame[3:]).drop_columns(["user"]), [3])
    with pytest.raises(DataError, match="part_1.parquet: column 'user' must occur once"):
        StoredColumns(spec, "test", ["user"])
