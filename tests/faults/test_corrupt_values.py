"""One invalid value in a dataset: main.py stops and reports its location, or continues as --oov_policy says."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import main
from data.errors import DataError
from tests.faults.matrix import record
from tests.helpers import ROOT, losses, make_dataset, must
from trainer import inputs
from trainer.cli import parse
from trainer.inputs import Inputs, open_inputs
from trainer.process.worker_env import WorkerEnv

ROW, ROW_GROUP_ROWS = 25, 10
BAD_VALUES: dict[str, tuple[str, Any]] = {
    "an id beyond the table": ("user_id", 50),
    "a negative id": ("user_id", -1),
    "an id in a list": ("genres", [3, 8]),
    "not a number": ("movie_age", float("nan")),
    "infinite": ("movie_age", float("inf")),
    "a label of 2": ("liked", 2),
}
SMALL = ["--deep_hidden_units", "8", "--deep_dropout", "0", "--global_batch_size", "100", "--eval_batch_size", "100"]
SMALL += ["--num_epochs", "1", "--log_every", "1", "--cpu", "--recipe", "published"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """400 rows of training in eight files, with a sample weight of 1."""
    document = yaml.safe_load((ROOT / "feature_specs" / "tiny.yaml").read_text())
    document["feature_spec"]["importance"] = {"dtype": "float32", "role": "sample_weight"}
    for chunks in document["source_spec"].values():
        chunks[0]["features"].append("importance")
    folder = tmp_path_factory.mktemp("dataset")
    (folder / "spec.yaml").write_text(yaml.safe_dump(document))
    data = make_dataset(folder, folder / "spec.yaml", rows=400)
    for file in data.glob("*.parquet"):
        table = pq.read_table(file)
        write(file, {"importance": [1.0] * len(table)})
    return data


def write(file: Path, changes: dict[str, list[Any]]) -> None:
    """Rewrites a file with other columns, in small row groups."""
    table = pq.read_table(file)
    for name, values in changes.items():
        index, field = table.column_names.index(name), table.schema.field(name)
        table = table.set_column(index, field, pa.array(values, field.type))
    pq.write_table(table, file, row_group_size=ROW_GROUP_ROWS, write_page_checksum=True)


def corrupted(dataset: Path, folder: Path, changes: dict[str, Any], name: str = "train_2.parquet") -> tuple[Path, Path]:
    """Returns a copy of the dataset with other values in one row of a file, and the path of that file."""
    folder.mkdir()
    for path in dataset.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    table = pq.read_table(folder / name)
    columns = {column: table[column].to_pylist() for column in changes}
    for column, value in changes.items():
        columns[column][ROW] = value
    write(folder / name, columns)
    return folder, folder / name


def run(data: Path, results: Path, *more: str) -> int:
    paths = ["--model_dir", str(results / "models"), "--results_dir", str(results)]
    return main.main(["--dataset_path", str(data), *paths, *SMALL, *more])


@pytest.fixture(params=["label check", "plain", "--xla"])
def flags(request, monkeypatch) -> Iterator[list[str]]:
    """Flags. A value that the label check does not sample is found in training, with and without XLA."""
    if request.param != "label check":
        monkeypatch.setattr(inputs, "check_labels", lambda *_: ())
    return ["--xla"] if request.param == "--xla" else []


@pytest.mark.parametrize("kind", BAD_VALUES)
def test_invalid_value_stops_the_run_with_its_location(dataset, tmp_path, capsys, flags, kind):
    column, value = BAD_VALUES[kind]
    data, file = corrupted(dataset, tmp_path / "data", {column: value})
    code = run(data, tmp_path / "results", *flags)
    message = capsys.readouterr().err
    parts = (f"{file}, row group {ROW // ROW_GROUP_ROWS}: column {column!r}", f"in row {ROW} of the file", "expected ")
    is_located = code == 2 and message.count("main.py: error: ") == 1 and all(part in message for part in parts)
    record("an impossible id, number or label in one row", 1, int(is_located and "Traceback" not in message))
    assert is_located, (code, message)
    assert "Traceback" not in message
    assert not (tmp_path / "results" / "metrics.json").exists()


def test_invalid_value_in_evaluation_rows_is_located(dataset, tmp_path, capsys):
    data, file = corrupted(dataset, tmp_path / "data", {"user_id": 50}, name="test_1.parquet")
    assert run(data, tmp_path / "results") == 2
    message = capsys.readouterr().err
    assert f"{file}, row group 2: column 'user_id'" in message and f"in row {ROW} of the file" in message
    assert "--oov_policy clip or drop" in message


def test_dataset_lost_during_a_run_is_a_failure(dataset, tmp_path, capsys, monkeypatch):
    """It is not wrong input, which would prevent a restart: the disk may come back."""
    data, _ = corrupted(dataset, tmp_path / "data", {})
    import_tensorflow = main.import_tensorflow

    def lose() -> None:
        for path in data.glob("*.parquet"):
            path.unlink()
        import_tensorflow()

    monkeypatch.setattr(main, "import_tensorflow", lose)
    assert run(data, tmp_path / "results") == 1
    message = capsys.readouterr().err
    assert re.search(
        r"main.py: error: .*/train_\d.parquet, row group \d: can no longer be read \(.*No such file", message
    )
    assert "Traceback" not in message
    assert run(data, tmp_path / "results") == 2
    assert "no such file" in capsys.readouterr().err


def test_clip_and_drop_train_and_dropped_rows_weigh_0(dataset, tmp_path):
    bad, _ = corrupted(dataset, tmp_path / "bad", {"user_id": 50, "genres": [-1, 3]})
    clipped, _ = corrupted(dataset, tmp_path / "clipped", {"user_id": 49, "genres": [0, 3]})
    weightless, _ = corrupted(dataset, tmp_path / "weightless", {"user_id": 49, "genres": [0, 3], "importance": 0})
    runs = {
        "drop": (bad, ["--oov_policy", "drop"]),
        "weightless": (weightless, []),
        "clip": (bad, ["--oov_policy", "clip"]),
        "clipped": (clipped, []),
    }
    for name, (data, flags) in runs.items():
        # One step of all rows, so that the corrupted one is in the first.
        must(run(data, tmp_path / name, *flags, "--global_batch_size", "400"))
    first = {name: losses(tmp_path / name)[1] for name in runs}
    assert first["drop"] == pytest.approx(first["weightless"], rel=1e-6)
    assert first["clip"] == pytest.approx(first["clipped"], rel=1e-6)
    assert abs(first["drop"] - first["clip"]) > 1e-5


@pytest.mark.parametrize("flags", [["--predict", "out.parquet"], ["--evaluate", "--predictions_file", "out.parquet"]])
def test_predictions_of_dropped_rows_are_rejected(dataset, flags):
    def open_for(policy: str) -> Inputs:
        arguments = ["--dataset_path", str(dataset), *SMALL, *flags, "--oov_policy", policy]
        # A worker that does not read the checkpoint.
        return open_inputs(parse(arguments, 2, reads_checkpoint=False), WorkerEnv(rank=1, size=2))

    with pytest.raises(
        DataError, match="out.parquet has a line for each row .* predict with --oov_policy unseen or clip"
    ):
        open_for("drop")
    assert open_for("clip").eval_loader.rows
