import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.errors import DataError
from data.loading.parquet import StoredColumns
from data.spec.feature_spec import FeatureSpec
from tests.data.sample_data import CHANNELS, FEATURES, TYPES, arrow_table, random_rows
from tests.trainer.metrics.workers import LocalWorkers
from trainer import predictions
from trainer.metrics.calibration import probability
from trainer.outputs import check_file_path
from trainer.predictions import PredictionWriter, check_column_names, is_predictions
from trainer.tasks.binary import BinaryTask
from trainer.tasks.multiclass import MulticlassTask
from trainer.tasks.regression import RegressionTask

TASKS = [BinaryTask("click"), BinaryTask("buy")]


def dataset(rows: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(rows)
    labels = random.integers(0, 2, (rows, 2)).astype(np.float32)
    labels[random.random((rows, 2)) < 0.2] = np.nan
    return {
        "rows": np.arange(rows),
        "labels": labels,
        "logits": (4 * random.standard_normal((rows, 2))).astype(np.float32),
    }


def stored(folder, rows: int) -> StoredColumns:
    """Columns in two chunks, whose files and row groups are cut differently."""
    folder.mkdir()
    frame = random_rows(rows)
    for name, chunk in {"a": ["session", "note"], "b": ["tags", "user", "item", "topics", "price", "age"]}.items():
        size = {"a": 11, "b": 17}[name]
        pq.write_table(arrow_table(frame[chunk]), folder / f"{name}.parquet", row_group_size=size)
    features = {name: FEATURES.get(name, {}) for name in TYPES if name not in ("importance", "click", "stars", "kind")}
    chunks = [
        {"type": "parquet", "features": ["session", "note"], "files": ["a.parquet"]},
        {"type": "parquet", "features": ["tags", "user", "item", "topics", "price", "age"], "files": ["b.parquet"]},
    ]
    document = {
        "feature_spec": features | {"click": {}},
        "source_spec": {
            "test": chunks,
            "train": [{"type": "parquet", "features": [*features, "click"], "files": ["t"]}],
        },
        "channel_spec": CHANNELS | {"label": ["click"]},
    }
    return StoredColumns(FeatureSpec.from_dict(document, folder), "test", ["session", "tags", "note", "price"])


def write(path, columns, *, workers=1, batch_size=7, borders=None, **more):
    count = len(columns["rows"])
    edges = borders or [worker * count // workers for worker in range(workers + 1)]

    def work(comm):
        writer = PredictionWriter(path, TASKS, **more)
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
    write(tmp_path / "out.parquet", columns, workers=workers, kept=stored(tmp_path / "data", 101))
    table = pq.read_table(tmp_path / "out.parquet")
    predicted = ["row", "label_click", "prediction_click", "label_buy", "prediction_buy"]
    assert table.column_names == [*predicted, "session", "tags", "note", "price"]
    assert table["row"].to_pylist() == list(range(101))
    kept = arrow_table(random_rows(101)).select(["session", "tags", "note", "price"])
    assert table.select(kept.column_names).combine_chunks() == kept
    for index, task in enumerate(["click", "buy"]):
        known = [None if np.isnan(label) else label for label in columns["labels"][:, index]]
        assert table[f"label_{task}"].to_pylist() == known
        expected = 1 / (1 + np.exp(-columns["logits"][:, index].astype(np.float64)))
        np.testing.assert_allclose(table[f"prediction_{task}"].to_numpy(), expected, rtol=1e-15)


def test_file_is_independent_of_workers_and_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(predictions, "_BLOCK_ROWS", 16)
    columns = dataset(64)
    write(tmp_path / "one.parquet", columns)
    write(tmp_path / "four.parquet", columns, borders=[0, 0, 5, 40, 64], workers=4, batch_size=64)
    assert pq.read_table(tmp_path / "one.parquet").equals(pq.read_table(tmp_path / "four.parquet"))


def test_column_types_and_unknown_labels(tmp_path):
    write(tmp_path / "out.parquet", dataset(5), labelled=["click"])
    assert pq.read_schema(tmp_path / "out.parquet").equals(
        pa.schema(
            {
                "row": pa.int64(),
                "label_click": pa.float32(),
                "prediction_click": pa.float64(),
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
        writer = PredictionWriter(tmp_path / "out.parquet", TASKS)
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


def test_full_disk_fails_on_all_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(predictions, "_BLOCK_ROWS", 10)
    path = tmp_path / "out.parquet"
    path.write_bytes(b"old")
    monkeypatch.setattr(pq.ParquetWriter, "write_table", fail)
    columns = dataset(60)

    def work(comm):
        writer = PredictionWriter(path, TASKS)
        mine = slice(comm.rank * 20, (comm.rank + 1) * 20)
        writer.add(**{name: column[mine] for name, column in columns.items()})
        writer.write(comm)

    for outcome in LocalWorkers(3).outcomes(work):
        assert isinstance(outcome, OSError)
        assert "out.parquet: the predictions cannot be written: No space left" in str(outcome)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_rows_that_leave_a_gap_are_rejected():
    columns = dataset(10)
    writer = PredictionWriter("out.parquet", TASKS)
    writer.add(**{name: column[:4] for name, column in columns.items()})
    with pytest.raises(ValueError, match="expected rows from 4 on"):
        writer.add(**{name: column[5:] for name, column in columns.items()})


def test_rows_out_of_order_are_rejected(tmp_path):
    columns = dataset(10)

    def work(comm):
        writer = PredictionWriter(tmp_path / "out.parquet", TASKS)
        mine = slice(5, 10) if comm.rank == 0 else slice(0, 5)
        writer.add(**{name: column[mine] for name, column in columns.items()})
        writer.write(comm)

    for outcome in LocalWorkers(2).outcomes(work):
        assert isinstance(outcome, ValueError)
        assert "worker 0 has rows from 5 on, expected 0" in str(outcome)
    assert list(tmp_path.iterdir()) == []


def test_columns_of_classes_and_regressions(tmp_path):
    tasks = [RegressionTask("stars"), MulticlassTask("kind", num_classes=3), BinaryTask("click")]
    logits = np.array([[2.5, 0, 0, 0, 0], [-1.5, 1000, -1000, 1000, 3], [0, 1, 2, 3, -3]], np.float32)
    labels = np.array([[1, 2, 0], [np.nan, 0, 1], [3, np.nan, np.nan]])
    writer = PredictionWriter(tmp_path / "out.parquet", tasks)
    writer.add(np.arange(3), labels, logits)
    LocalWorkers(1).run(writer.write)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.field("prediction_kind").type == pa.list_(pa.float64())
    assert table["prediction_stars"].to_pylist() == [2.5, -1.5, 0]
    assert table["label_kind"].to_pylist() == [2, 0, None]
    e = np.exp([1, 2, 3])
    expected = [[1 / 3] * 3, [0.5, 0, 0.5], e / e.sum()]
    np.testing.assert_allclose(table["prediction_kind"].to_pylist(), expected, rtol=1e-14)
    np.testing.assert_allclose(table["prediction_click"].to_numpy(), 1 / (1 + np.exp([0, -3, 3])), rtol=1e-15)


def test_changed_kept_column_file_fails_on_all_workers(tmp_path):
    kept = stored(tmp_path / "data", 60)
    (tmp_path / "data" / "b.parquet").write_bytes(b"changed")
    path = tmp_path / "out.parquet"
    path.write_bytes(b"old")
    columns = dataset(60)

    def work(comm):
        writer = PredictionWriter(path, TASKS, kept=kept)
        mine = slice(comm.rank * 30, (comm.rank + 1) * 30)
        writer.add(**{name: column[mine] for name, column in columns.items()})
        writer.write(comm)

    for outcome in LocalWorkers(2).outcomes(work):
        assert isinstance(outcome, OSError)
        assert "b.parquet" in str(outcome)
    assert path.read_bytes() == b"old"


def test_a_csv_file_holds_the_same_values(tmp_path, monkeypatch):
    monkeypatch.setattr(predictions, "_BLOCK_ROWS", 16)
    columns = dataset(101)
    more = {"kept": stored(tmp_path / "data", 101), "kept_names": ["session", "tags", "the note", "price"]}
    write(tmp_path / "out.csv", columns, workers=2, **more)
    write(tmp_path / "out.parquet", columns, **more)
    found = pd.read_csv(tmp_path / "out.csv", float_precision="round_trip", keep_default_na=False, na_values=[""])
    wanted = pq.read_table(tmp_path / "out.parquet")
    assert list(found) == wanted.column_names
    assert list(found)[-2:] == ["the note", "price"]
    for name in ("row", "label_click", "prediction_click", "prediction_buy", "price"):
        values = wanted[name].to_numpy()
        np.testing.assert_array_equal(found[name].to_numpy().astype(values.dtype), values)
    lists = [None if tags is None else f"[{', '.join(map(str, tags))}]" for tags in wanted["tags"].to_pylist()]
    assert [None if pd.isna(cell) else cell for cell in found["tags"]] == lists
    assert is_predictions(tmp_path / "out.csv") and is_predictions(tmp_path / "out.parquet")


def test_class_probabilities_and_null_lists_in_csv(tmp_path):
    writer = PredictionWriter(tmp_path / "out.csv", [MulticlassTask("kind", num_classes=2)])
    writer.add(np.arange(2), np.array([[1], [np.nan]]), np.array([[0, 0], [1000, -1000]], np.float32))
    LocalWorkers(1).run(writer.write)
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines == ['"row","label_kind","prediction_kind"', '0,1,"[0.5, 0.5]"', '1,,"[1, 0]"']
    lists = pa.table({"a": pa.array([["x"], ["a", None], [], None], pa.list_(pa.string()))})
    assert predictions._as_cells(lists.slice(1))["a"].to_pylist() == ["[a, ]", "[]", None]


@pytest.mark.parametrize("text", ["", "row,user\n1,2\n", "user,prediction_click\n", '"row', "\0\0"])
def test_another_csv_file_is_not_taken_for_ours(tmp_path, text):
    (tmp_path / "other.csv").write_text(text)
    assert not is_predictions(tmp_path / "other.csv")


@pytest.mark.parametrize("name", ["row", "label_click", "prediction_click"])
def test_kept_column_with_a_reserved_name_is_rejected(name):
    with pytest.raises(DataError, match=f"two columns {name}.*Rename"):
        check_column_names(["user", name], ["click"])


def test_probabilities_are_monotonic_at_extremes():
    logits = np.sort(np.concatenate([np.linspace(-90, 90, 10_001), [-3e38, -800, 800, 3e38]])).astype(np.float32)
    probabilities = probability(logits)
    assert (np.diff(probabilities) >= 0).all()
    assert probabilities[[0, -1]].tolist() == [0, 1]
    assert probability(np.float32([0])).tolist() == [0.5]


def test_neighbouring_logits_give_different_probabilities():
    logits = np.random.default_rng(0).uniform(-20, 20, 10_000).astype(np.float32)
    assert (probability(np.nextafter(logits, np.float32(99))) > probability(logits)).all()


@pytest.mark.parametrize(
    ("path", "message"),
    [("", "is a folder; expected a file"), ("absent/out.parquet", "mkdir -p"), ("file/out.parquet", "mkdir -p")],
)
def test_unwritable_path_is_rejected_before_evaluation(tmp_path, path, message):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=message):
        check_file_path(tmp_path / path, "out.parquet")


def test_a_path_that_can_be_written_passes(tmp_path):
    check_file_path(tmp_path / "out.parquet", "out.parquet")
