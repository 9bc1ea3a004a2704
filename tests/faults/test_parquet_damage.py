"""Damaged parquet files are rejected by name, or read as they were written."""

import ast
import random
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.checks.dataset import MappingSummary, check_mapping
from data.errors import DataError
from data.files import parquet as parquet_writer
from data.files.parquet import MAGIC, DatasetWriter, add_checksums, parquet_schema, read_footer
from data.loading.batch import Batch
from data.loading.loader import ParquetLoader
from data.spec.feature_spec import FeatureSpec
from tests.data.sample_data import FEATURES, arrow_table, check_rows, dataset_spec, random_rows
from tests.faults.matrix import record, tries
from tests.helpers import ROOT

CODECS = ("zstd", "snappy", "lz4", "none")
FRAME = random_rows(60)


class Written(NamedTuple):
    """A file written by this program, in two row groups of 40 and 20 rows."""

    spec: FeatureSpec
    path: Path
    content: bytes

    def damage(self, position: int, bit: int) -> None:
        content = bytearray(self.content)
        content[position] ^= 1 << bit
        self.path.write_bytes(content)


def write(folder: Path, codec: str = "snappy") -> Written:
    spec = dataset_spec(folder, [(list(FEATURES), ["train_0.parquet"])])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet_writer, "COMPRESSION", codec)
        patch.setattr(parquet_writer, "ROWS_PER_ROW_GROUP", 40)
        with DatasetWriter(folder, "train", parquet_schema(spec, list(FEATURES))) as writer:
            writer.write(arrow_table(FRAME))
    path = folder / "train_0.parquet"
    return Written(spec, path, path.read_bytes())


@pytest.fixture(scope="module", params=CODECS)
def of_each_codec(request, tmp_path_factory) -> Written:
    return write(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture
def written(tmp_path) -> Written:
    return write(tmp_path)


def read(spec: FeatureSpec) -> list[Batch]:
    loader = ParquetLoader(spec, "train", global_batch_size=25, shuffle=False, with_group=True)
    return list(loader.epoch(0))


def are_correct(batches: list[Batch]) -> bool:
    try:
        for batch in batches:
            check_rows(batch, FRAME)
    except AssertionError:
        return False
    return sorted(row for batch in batches for row in batch.rows.tolist() if row >= 0) == list(range(len(FRAME)))


def error_of(spec: FeatureSpec) -> str:
    with pytest.raises(DataError) as error:
        read(spec)
    return str(error.value)


def first_bytes_of_chunks(path: Path) -> list[int]:
    """Offsets of the column chunks; each starts with a page header of at least 14 bytes."""
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    chunks = [group.column(index) for group in groups for index in range(group.num_columns)]
    return [chunk.dictionary_page_offset or chunk.data_page_offset for chunk in chunks]


def test_random_bit_flip_is_rejected_or_has_no_effect(of_each_codec):
    chosen, count = random.Random(repr(of_each_codec.path.parent.name)), tries(6, 60)
    assert are_correct(read(of_each_codec.spec))
    outcomes = []
    for _ in range(count):
        position, bit = chosen.randrange(len(of_each_codec.content)), chosen.randrange(8)
        of_each_codec.damage(position, bit)
        try:
            outcome = are_correct(read(of_each_codec.spec))
        except DataError as error:
            outcome = str(of_each_codec.path) in str(error)
        except Exception as error:  # counted before it is reported
            outcomes.append((position, bit, repr(error)))
            continue
        if not outcome:
            outcomes.append((position, bit, "silently wrong, or rejected without its name"))
    of_each_codec.path.write_bytes(of_each_codec.content)
    record("a random bit flipped in parquet, per codec", count, count - len(outcomes))
    assert not outcomes


def test_every_bit_of_page_headers_is_checked(written):
    starts = first_bytes_of_chunks(written.path)
    for number, start in enumerate(starts[:: tries(7, 1)]):
        for position in range(14) if tries(0, 1) else [number % 14]:
            for bit in range(8):
                written.damage(start + position, bit)
                assert "does not match its checksum" in error_of(written.spec)
    written.damage(starts[0], 0)
    message = error_of(written.spec)
    assert message.startswith(f"{written.path}, row group 0: cannot be decoded (column 'user' ")


def test_every_bit_of_the_footer_is_checked(written):
    length, end = int.from_bytes(written.content[-8:-4], "little"), 8 * len(written.content)
    # All of the last 64 bits: they locate the footer.
    for number in [*range(end - 64 - 8 * length, end - 64, tries(229, 1)), *range(end - 64, end)]:
        written.damage(number // 8, number % 8)
        assert str(written.path) in error_of(written.spec)


def test_damaged_checksum_never_changes_values(written):
    start = written.content.rindex(MAGIC)
    for position in range(start - 8, start + len(MAGIC)):
        written.damage(position, 5)
        if position < start:
            assert str(written.path) in error_of(written.spec)
        else:
            assert are_correct(read(written.spec))


def test_check_dataset_finds_what_the_loader_rejects(written):
    def findings() -> list[str]:
        return [str(finding) for finding in check_mapping(written.spec, "train", MappingSummary())]

    assert findings() == []
    written.damage(first_bytes_of_chunks(written.path)[-1], 2)
    (finding,) = findings()
    assert f"{written.path}, row group 1" in finding and "checksum" in finding
    written.damage(len(written.content) - 100, 2)
    assert "checksum" in findings()[0]


def test_only_columns_that_are_read_are_checked(written):
    metadata, checksums, _ = read_footer(written.path)
    assert checksums is not None and checksums.sums.shape == (2, metadata.num_columns)
    user, *_, session = first_bytes_of_chunks(written.path)[: metadata.num_columns]
    written.damage(user, 3)
    checksums.check(0, ["item", "tags"])
    checksums.check(1, ["user"])
    for column in (["user"], list(FEATURES)):
        with pytest.raises(ValueError, match="column 'user' does not match its checksum"):
            checksums.check(0, column)
    written.damage(session, 3)
    with pytest.raises(ValueError, match="'session'"):
        checksums.check(0, ["session"])


def test_lists_and_names_with_dots_are_checked(tmp_path):
    table = pa.table({"a.b": [1, 2], "a": [[1], [2]]})
    pq.write_table(table, tmp_path / "x.parquet")
    add_checksums(tmp_path / "x.parquet")
    checksums = read_footer(tmp_path / "x.parquet").checksums
    content = (tmp_path / "x.parquet").read_bytes()
    for name, start in zip(table.column_names, first_bytes_of_chunks(tmp_path / "x.parquet"), strict=True):
        damaged = bytearray(content)
        damaged[start] ^= 1
        (tmp_path / "x.parquet").write_bytes(damaged)
        with pytest.raises(ValueError, match="checksum"):
            checksums.check(0, [name])


def test_checksummed_parquet_is_plain_parquet(written):
    table = pq.read_table(written.path, page_checksum_verification=True)
    assert table.num_rows == len(FRAME) and table["user"].to_pylist() == FRAME.user.tolist()
    pq.write_table(table, written.path)
    assert read_footer(written.path).checksums is None
    assert are_correct(read(written.spec))


def test_a_file_without_rows_gets_checksums(tmp_path):
    pq.write_table(pa.table({"x": pa.array([], pa.int64())}), tmp_path / "x.parquet")
    add_checksums(tmp_path / "x.parquet")
    metadata, checksums, _ = read_footer(tmp_path / "x.parquet")
    assert metadata.num_rows == 0 and checksums is not None and checksums.sums.size == metadata.num_row_groups


def calls_of(path: Path, names: tuple[str, ...]) -> list[ast.Call]:
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [call for call in calls if ast.unparse(call.func).endswith(names)]


def test_all_written_parquet_has_page_checksums():
    writers = {
        f"{path.relative_to(ROOT)}:{call.lineno}": {word.arg: ast.unparse(word.value) for word in call.keywords}
        for folder in ("data", "trainer")
        for path in (ROOT / folder).rglob("*.py")
        for call in calls_of(path, ("pq.ParquetWriter", "pq.write_table", "[chosen].to_parquet"))
    }
    assert len(writers) > 8
    assert not [position for position, words in writers.items() if words.get("write_page_checksum") != "True"]


def test_pages_without_our_checksums_are_verified(written):
    pq.write_table(pq.read_table(written.path), written.path, write_page_checksum=True, compression="none")
    column = pq.read_metadata(written.path).row_group(0).column(0)
    content = bytearray(written.path.read_bytes())
    content[column.data_page_offset + column.total_compressed_size // 4] ^= 1
    written.path.write_bytes(content)
    assert "CRC" in error_of(written.spec)
