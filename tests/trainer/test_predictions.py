import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.errors import DataError
from tests.trainer.metrics.workers import LocalWorkers
from trainer import predictions
from trainer.metrics.calibration import probability
from trainer.predictions import PredictionWriter, check_predictions_path

TASKS = ["click", "buy"]


def dataset(rows: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(rows)
    labels = random.integers(0, 2, (rows, 2)).astype(np.float32)
    labels[random.random((rows, 2)) < 0.2] = np.nan
    return {
        "rows": np.arange(rows),
        "labels": labels,
        "logits": (4 * random.standard_normal((rows, 2))).astype(np.float32),
        "group": random.integers(0, 2**60, rows),
    }


def write(path, columns, *, workers=1, batch_size=7, group_name="user", borders=None):
    count = len(columns["rows"])
    edges = borders or [worker * count // workers for worker in range(workers + 1)]

    def work(comm):
        writer = PredictionWriter(path, TASKS, group_name)
        first, last = edges[comm.rank : comm.rank + 2]
        for start in range(first, last, batch_size):
            batch = {name: column[start : min(start + batch_size, last)] for name, column in columns.items()}
            writer.add(**batch)
        writer.write(comm)

    LocalWorkers(workers).run(work)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_every_row_stands_in_the_file_in_dataset_order(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(predictions, "_BLOCK_ROWS", 16)
    columns = dataset(101)
    write(tmp_path / "out.parquet", columns, workers=workers)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["row", "label_click", "prediction_click", "label_buy", "prediction_buy", "user"]
    assert table["row"].to_pylist() == list(range(101))
    assert table["user"].to_pylist() == columns["group"].tolist()
    for index, task in enumerate(TASKS):
        known = [None if np.isnan(label) else label for label in columns["labels"][:, index]]
        assert table[f"label_{task}"].to_pylist() == known
        expected = 1 / (1 + np.exp(-columns["logits"][:, index].astype(np.float64)))
        np.testing.assert_allclose(table[f"prediction_{task}"].to_numpy(), expected, rtol=1e-15)


def test_the_file_does_not_depend_on_the_number_of_workers_or_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(predictions, "_BLOCK_ROWS", 16)
    columns = dataset(64)
    write(tmp_path / "one.parquet", columns)
    write(tmp_path / "four.parquet", columns, borders=[0, 0, 5, 40, 64], workers=4, batch_size=64)
    assert pq.read_table(tmp_path / "one.parquet").equals(pq.read_table(tmp_path / "four.parquet"))


def test_types_are_stated_and_without_groups_there_is_no_group_column(tmp_path):
    columns = dataset(5)
    del columns["group"]
    write(tmp_path / "out.parquet", columns, group_name=None)
    assert pq.read_schema(tmp_path / "out.parquet").equals(
        pa.schema(
            {
                "row": pa.int64(),
                "label_click": pa.float32(),
                "prediction_click": pa.float64(),
                "label_buy": pa.float32(),
                "prediction_buy": pa.float64(),
            }
        )
    )


def test_an_empty_dataset_gives_a_file_without_rows(tmp_path):
    write(tmp_path / "out.parquet", dataset(0), workers=2)
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 0


def test_no_worker_is_sent_more_than_a_block_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(predictions, "_BLOCK_ROWS", 10)
    columns = dataset(200)

    def work(comm):
        writer = PredictionWriter(tmp_path / "out.parquet", TASKS, "user")
        mine = slice(comm.rank * 50, (comm.rank + 1) * 50)
        writer.add(**{name: column[mine] for name, column in columns.items()})
        writer.write(comm)
        return comm.largest_receipt

    assert LocalWorkers(4).run(work) == [10] * 4


def test_pages_carry_checksums(tmp_path):
    path = tmp_path / "out.parquet"
    write(path, dataset(1000))
    damaged = bytearray(path.read_bytes())
    middle = pq.ParquetFile(path).metadata.row_group(0).column(2)
    damaged[middle.data_page_offset + middle.total_compressed_size // 2] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(OSError):
        pq.read_table(path, page_checksum_verification=True)


def fail(*_args, **_kwargs):
    raise OSError("No space left on device")


def test_a_full_disk_fails_on_all_workers_and_keeps_the_old_file(tmp_path, monkeypatch):
    monkeypatch.setattr(predictions, "_BLOCK_ROWS", 10)
    path = tmp_path / "out.parquet"
    path.write_bytes(b"old")
    monkeypatch.setattr(pq.ParquetWriter, "write_table", fail)
    columns = dataset(60)

    def work(comm):
        writer = PredictionWriter(path, TASKS, "user")
        mine = slice(comm.rank * 20, (comm.rank + 1) * 20)
        writer.add(**{name: column[mine] for name, column in columns.items()})
        writer.write(comm)

    for outcome in LocalWorkers(3).outcomes(work):
        assert isinstance(outcome, OSError)
        assert "out.parquet: the predictions cannot be written: No space left" in str(outcome)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_rows_that_leave_a_gap_are_refused():
    columns = dataset(10)
    writer = PredictionWriter("out.parquet", TASKS, "user")
    writer.add(**{name: column[:4] for name, column in columns.items()})
    with pytest.raises(ValueError, match="expected rows from 4 on"):
        writer.add(**{name: column[5:] for name, column in columns.items()})


def test_workers_whose_rows_are_out_of_order_are_refused(tmp_path):
    columns = dataset(10)

    def work(comm):
        writer = PredictionWriter(tmp_path / "out.parquet", TASKS, "user")
        mine = slice(5, 10) if comm.rank == 0 else slice(0, 5)
        writer.add(**{name: column[mine] for name, column in columns.items()})
        writer.write(comm)

    for outcome in LocalWorkers(2).outcomes(work):
        assert isinstance(outcome, ValueError)
        assert "worker 0 has rows from 5 on, expected 0" in str(outcome)
    assert list(tmp_path.iterdir()) == []


def test_missing_groups_are_refused():
    columns = dataset(3) | {"group": None}
    with pytest.raises(ValueError, match="'user'"):
        PredictionWriter("out.parquet", TASKS, "user").add(**columns)


def test_a_map_feature_that_is_named_like_another_column_is_refused():
    with pytest.raises(DataError, match="rename the map feature 'row'"):
        PredictionWriter("out.parquet", TASKS, "row")


def test_probabilities_rise_with_the_logits_and_stand_extremes():
    logits = np.sort(np.concatenate([np.linspace(-90, 90, 10_001), [-3e38, -800, 800, 3e38]])).astype(np.float32)
    probabilities = probability(logits)
    assert (np.diff(probabilities) >= 0).all()
    assert probabilities[[0, -1]].tolist() == [0, 1]
    assert probability(np.float32([0])).tolist() == [0.5]


def test_neighbouring_logits_up_to_20_have_different_probabilities():
    logits = np.random.default_rng(0).uniform(-20, 20, 10_000).astype(np.float32)
    assert (probability(np.nextafter(logits, np.float32(99))) > probability(logits)).all()


@pytest.mark.parametrize(
    ("path", "message"),
    [("", "this is a folder"), ("absent/out.parquet", "mkdir -p"), ("file/out.parquet", "mkdir -p")],
)
def test_a_path_that_cannot_be_written_is_told_before_the_evaluation(tmp_path, path, message):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=message):
        check_predictions_path(tmp_path / path)


def test_a_path_that_can_be_written_passes(tmp_path):
    check_predictions_path(tmp_path / "out.parquet")
