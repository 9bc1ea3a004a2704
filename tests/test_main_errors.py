"""What main.py prints and returns for wrong input, before TensorFlow is imported, and on several workers."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from data.errors import DataError
from data.spec.feature_spec import FeatureSpec
from main import main
from tests.helpers import ROOT, environment, losses, make_dataset, must, run_program, words
from trainer.cli import parse
from trainer.config import Options
from trainer.inputs import check_labels, checks_labels, open_inputs
from trainer.lifecycle.records import prepare_records
from trainer.lifecycle.run_lock import RunLock
from trainer.process.worker_env import WorkerEnv

SMALL = words(
    "--deep_hidden_units 8 --global_batch_size 64 --eval_batch_size 64 --num_epochs 2 --cpu --recipe published"
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("dataset"), ROOT / "feature_specs" / "tiny.yaml", rows=400)


@pytest.fixture
def copy(dataset, tmp_path) -> Path:
    """A copy of the dataset to corrupt."""
    target = tmp_path / "data"
    target.mkdir()
    for path in dataset.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def arguments(data: Path, tmp_path: Path, *more: str) -> list[str]:
    paths = ["--model_dir", str(tmp_path / "models"), "--results_dir", str(tmp_path / "results")]
    return ["--dataset_path", str(data), *paths, *SMALL, *more]


def check_rejected(capsys, arguments: list[str], code: int, *fragments: str) -> None:  # type: ignore[no-untyped-def]
    assert main(arguments) == code
    message = capsys.readouterr().err
    assert message.count("main.py: error: ") == 1
    assert "Traceback" not in message
    for fragment in fragments:
        assert fragment in message


def change_spec(data: Path, change) -> None:  # type: ignore[no-untyped-def]
    path = data / "feature_spec.yaml"
    document = yaml.safe_load(path.read_text())
    change(document)
    path.write_text(yaml.safe_dump(document))


def test_a_missing_dataset_names_the_file(tmp_path, capsys):
    check_rejected(
        capsys, arguments(tmp_path / "nowhere", tmp_path), 2, str(tmp_path / "nowhere" / "feature_spec.yaml")
    )


def test_a_broken_specification_lists_every_problem(copy, tmp_path, capsys):
    def corrupt(document):  # type: ignore[no-untyped-def]
        document["feature_spec"]["user_id"]["cardinality"] = 0
        document["channel_spec"]["lable"] = document["channel_spec"].pop("label")

    change_spec(copy, corrupt)
    check_rejected(capsys, arguments(copy, tmp_path), 2, "feature_spec.user_id.cardinality", "lable", "label")


def test_a_missing_parquet_file_is_named(copy, tmp_path, capsys):
    file = sorted(copy.glob("train_*.parquet"))[0]
    file.unlink()
    check_rejected(capsys, arguments(copy, tmp_path), 2, str(file))


def test_file_that_is_not_parquet_is_named(copy, tmp_path, capsys):
    file = sorted(copy.glob("test_*.parquet"))[0]
    file.write_bytes(b"not parquet at all")
    check_rejected(capsys, arguments(copy, tmp_path), 2, str(file))


def test_a_mapping_of_csv_files_points_to_transcode(copy, tmp_path, capsys):
    change_spec(copy, lambda document: [chunk.update(type="csv") for chunk in document["source_spec"]["train"]])
    check_rejected(capsys, arguments(copy, tmp_path), 2, "transcode.py")


def test_unknown_mapping_lists_the_known_ones(dataset, tmp_path, capsys):
    check_rejected(capsys, arguments(dataset, tmp_path, "--train_mapping", "trian"), 2, "trian", "train", "test")


def test_metrics_that_the_evaluated_mapping_does_not_allow(dataset, tmp_path, capsys):
    words = arguments(dataset, tmp_path, "--slice", "user")
    check_rejected(capsys, words, 2, "mapping 'test' has no column 'user'; did you mean 'user_id'?")
    words = arguments(dataset, tmp_path, "--slice", "country")
    check_rejected(capsys, words, 2, "mapping 'test' has no column 'country'; it has liked, user_id")
    words = arguments(dataset, tmp_path, "--ranking_metrics", "ndcg@5")
    check_rejected(
        capsys, words, 2, "--ranking_metrics ndcg@5", "mapping 'test' has no map feature", "channel_spec.map"
    )


def test_missing_embedding_sizes_file_is_named(dataset, tmp_path, capsys):
    check_rejected(capsys, arguments(dataset, tmp_path, "--embedding_sizes_file", "no.json"), 2, "no.json")


def test_embedding_sizes_of_other_data_are_rejected(dataset, tmp_path, capsys):
    sizes = tmp_path / "sizes.json"
    sizes.write_text('{"no_such_feature": 8}')
    words = arguments(dataset, tmp_path, "--embedding_sizes_file", str(sizes))
    check_rejected(capsys, words, 2, f"{sizes}: names none of the categorical features")
    assert not (tmp_path / "models").exists()


def test_misspelled_embedding_size_gives_a_warning(dataset, tmp_path):
    sizes = tmp_path / "sizes.json"
    sizes.write_text('{"user_id": 5, "genre": 3}')
    words = arguments(dataset, tmp_path, "--embedding_sizes_file", str(sizes))
    (text,) = open_inputs(parse(words, 1), WorkerEnv()).warnings
    assert text.startswith(f"{sizes}: has widths for 'genre' (did you mean 'genres'?); ")


def test_an_unknown_column_to_keep_has_a_suggestion(dataset, tmp_path):
    words = arguments(dataset, tmp_path, "--predict", str(tmp_path / "p.parquet"), "--keep", "user_di")
    with pytest.raises(DataError, match=r"has no column user_di; it has liked, .*; did you mean user_id\?"):
        # A worker that does not read the checkpoint.
        open_inputs(parse(words, 2, reads_checkpoint=False), WorkerEnv(rank=1, size=2))


def test_training_never_overwrites_another_run(dataset, tmp_path, capsys):
    (tmp_path / "models" / "checkpoints" / "step-3").mkdir(parents=True)
    check_rejected(capsys, arguments(dataset, tmp_path), 2, "--use_checkpoint", "another --model_dir")


def test_a_results_folder_that_is_a_file_is_named(dataset, tmp_path, capsys):
    (tmp_path / "results").write_text("")
    check_rejected(capsys, arguments(dataset, tmp_path), 2, str(tmp_path / "results"))


@pytest.mark.parametrize(
    "more", [["--evaluate"], ["--use_checkpoint"], ["--predict", "p"], ["--evaluate", "--checkpoint", "/nowhere"]]
)
def test_commands_that_need_a_checkpoint_fail_without_one(dataset, tmp_path, capsys, more):
    check_rejected(capsys, arguments(dataset, tmp_path, *more), 4, "checkpoint")


def test_checkpoint_of_another_model_is_rejected(dataset, tmp_path, capsys):
    must(main(arguments(dataset, tmp_path, "--num_epochs", "1")))
    capsys.readouterr()
    other = arguments(dataset, tmp_path, "--evaluate", "--deep_hidden_units", "9")
    check_rejected(capsys, other, 2, "trained with --deep_hidden_units 8, not 9", "step-7")
    sizes = tmp_path / "sizes.json"
    sizes.write_text('{"user_id": 5}')
    other = arguments(dataset, tmp_path, "--evaluate", "--embedding_sizes_file", str(sizes))
    check_rejected(capsys, other, 2, "width 14", "width 5", "step-7")
    other = arguments(dataset, tmp_path, "--use_checkpoint", "--seed", "5")
    check_rejected(capsys, other, 2, "seed was 0 and is 5")


def test_unwritable_model_dir_is_rejected_first(dataset, tmp_path, capsys):
    (tmp_path / "models").write_text("")
    check_rejected(capsys, arguments(dataset, tmp_path), 2, f"--model_dir {tmp_path / 'models'}")
    assert not (tmp_path / "results").exists()


def test_second_run_is_rejected_and_names_the_first(dataset, tmp_path, capsys):
    (tmp_path / "models" / "checkpoints" / "step-3").mkdir(parents=True)
    with RunLock(tmp_path / "models", print):
        check_rejected(
            capsys, arguments(dataset, tmp_path), 1, "another run is training there", f"process {os.getpid()} on "
        )
    check_rejected(capsys, arguments(dataset, tmp_path), 2, "holds the checkpoints of an earlier run")


def test_rejected_run_leaves_only_its_cause(copy, tmp_path, capsys):
    set_column(copy, "liked", 0)
    check_rejected(capsys, arguments(copy, tmp_path), 2, "no positive")
    check_rejected(capsys, arguments(copy, tmp_path, "--num_epoch", "1"), 2, "did you mean --num_epochs?")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    prepare_records(tmp_path / "results", "job")
    check_rejected(capsys, arguments(copy, tmp_path, "--num_epoch", "1"), 2, "did you mean --num_epochs?")
    state = json.loads((tmp_path / "results" / "workers" / "worker-0.json").read_text())
    assert state["code"] == 2 and "did you mean --num_epochs?" in state["cause"]


def test_evaluation_keeps_the_log_of_training(dataset, tmp_path):
    must(main(arguments(dataset, tmp_path, "--num_epochs", "1")))
    trained = losses(tmp_path / "results")
    must(main(arguments(dataset, tmp_path, "--num_epochs", "1", "--evaluate")))
    assert losses(tmp_path / "results") == trained != {}


def test_wrong_argument_fails_before_tensorflow_loads(tmp_path):
    program = "import sys; from main import main; code = main(sys.argv[1:]); print('tensorflow' in sys.modules, code)"
    command = [sys.executable, "-c", program, "--num_epochs", "0"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "2"]
    assert "--num_epochs must be at least 1" in done.stderr
    assert "Traceback" not in done.stderr


def spoil_one_value(file: Path, column: str, row: int, value: float) -> None:
    table = pq.read_table(file)
    values = table[column].to_numpy().copy()
    values[row] = value
    index = table.column_names.index(column)
    field = table.schema.field(column)
    pq.write_table(table.set_column(index, field, pa.array(values, field.type)), file)


def set_column(data: Path, column: str, value: float) -> None:
    for file in data.glob("train_*.parquet"):
        table = pq.read_table(file)
        index, field = table.column_names.index(column), table.schema.field(column)
        pq.write_table(table.set_column(index, field, pa.array([value] * len(table), field.type)), file)


class PastTheChecks(Exception):
    """Raised where TensorFlow would be imported."""


@pytest.fixture
def without_tensorflow(monkeypatch) -> None:
    def stop() -> None:
        raise PastTheChecks

    monkeypatch.setattr("main.import_tensorflow", stop)


@pytest.mark.usefixtures("without_tensorflow")
def test_label_without_negative_is_rejected_unless_allowed(copy, tmp_path, capsys):
    set_column(copy, "liked", 1)
    paths = (str(copy / "train_0.parquet"), "--allow_degenerate_labels")
    check_rejected(
        capsys, arguments(copy, tmp_path), 2, "liked: has no negative among 400 rows of mapping 'train'", *paths
    )
    with pytest.raises(PastTheChecks):
        main(arguments(copy, tmp_path, "--allow_degenerate_labels"))
    assert "warning: liked: has no negative among 400 rows" in capsys.readouterr().err


@pytest.mark.usefixtures("without_tensorflow")
def test_conversion_without_click_is_rejected(tmp_path, capsys):
    data = make_dataset(tmp_path, ROOT / "feature_specs" / "three_tasks.yaml", rows=400)
    table = pq.read_table(data / "train_1.parquet")
    row = table["click"].to_pylist().index(0)
    spoil_one_value(data / "train_1.parquet", "conversion", row, 1)
    place = f"conversion: is 1 in 1 rows in which click is 0, the first in row {row} of {data / 'train_1.parquet'}"
    check_rejected(capsys, arguments(data, tmp_path), 2, place, "`given: click`", "--allow_degenerate_labels")


@pytest.mark.usefixtures("without_tensorflow")
def test_feature_that_determines_a_label_gives_a_warning(copy, tmp_path, capsys):
    for file in copy.glob("train_*.parquet"):
        table = pq.read_table(file)
        index = table.column_names.index("movie_age")
        pq.write_table(table.set_column(index, table.schema.field(index), table["liked"]), file)
    with pytest.raises(PastTheChecks):
        main(arguments(copy, tmp_path))
    assert "warning: movie_age: equals liked in all 400 sampled rows" in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--allow_degenerate_labels"]])
def test_sample_weight_among_features_is_rejected(copy, tmp_path, capsys, more):
    change_spec(copy, lambda document: document["feature_spec"]["movie_age"].update(role="sample_weight"))
    place = "feature_spec.movie_age.role: is sample_weight but the feature is in numerical"
    check_rejected(capsys, arguments(copy, tmp_path, *more), 2, place)


def test_only_new_training_runs_check_labels(copy, tmp_path):
    set_column(copy, "liked", 0)

    def options(*more: str) -> Options:
        return parse(arguments(copy, tmp_path, *more), 1, reads_checkpoint=False)

    for more in (["--evaluate"], ["--predict", "out.parquet"], ["--benchmark"], ["--use_checkpoint"]):
        assert not checks_labels(options(*more))
    assert checks_labels(options())
    with pytest.raises(DataError, match="no positive"):
        check_labels(options(), FeatureSpec.read(copy / "feature_spec.yaml"))


@pytest.mark.parametrize(("patience", "is_shown"), [(0.0, True), (60.0, False)])
def test_long_label_check_shows_its_progress(dataset, tmp_path, capsys, monkeypatch, patience, is_shown):
    monkeypatch.setattr("trainer.inputs.SECONDS_BETWEEN_REPORTS", patience)
    options = parse(arguments(dataset, tmp_path), 1, reads_checkpoint=False)
    spec = FeatureSpec.read(dataset / "feature_spec.yaml")
    check_labels(options, spec)
    found = re.findall(r"checking the labels of 'train': (\d+) of (\d+) (.*)", capsys.readouterr().err)
    assert bool(found) == is_shown
    counted = [int(done) for done, of, what in found if what == "features" and int(of) == len(spec.inputs)]
    assert counted == (list(range(1, len(spec.inputs))) if is_shown else [])


@pytest.mark.slow
@pytest.mark.horovod
def test_two_workers_report_wrong_labels_once(copy, tmp_path):
    set_column(copy, "liked", 0)
    done = run_program([ROOT / "main.py", *arguments(copy, tmp_path)], workers=2)
    assert done.returncode != 0
    assert len(re.findall("main.py: error:", done.stderr)) == 1
    assert "liked: has no positive" in done.stderr


@pytest.mark.horovod
def test_bad_value_of_one_worker_stops_both(copy, tmp_path):
    file = sorted(copy.glob("train_*.parquet"))[-1]
    spoil_one_value(file, "movie_age", 5, np.nan)
    done = run_program([ROOT / "main.py", *arguments(copy, tmp_path)], workers=2, timeout=180)
    assert done.returncode != 0
    message = next(line for line in done.stderr.splitlines() if "main.py: error:" in line)
    for fragment in (file.name, "row group", "movie_age", "nan"):
        assert fragment in message.lower()
    assert not list((tmp_path / "models").glob("**/step-*"))


@pytest.mark.horovod
def test_two_workers_report_wrong_arguments_once(tmp_path, dataset):
    done = run_program([ROOT / "main.py", *arguments(dataset, tmp_path, "--global_batch_size", "0")], workers=2)
    assert done.returncode == 2
    assert len(re.findall("main.py: error:", done.stderr)) == 1
    assert "--global_batch_size" in done.stderr


def test_workflow_outside_dataset_is_rejected(copy, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("main.import_tensorflow", lambda: pytest.fail("the checks were passed"))
    (tmp_path / "private").mkdir()
    (copy / "workflow").symlink_to(tmp_path / "private")
    check_rejected(capsys, arguments(copy, tmp_path), 2, "workflow: is a link that leads out of the folder")


def test_pipe_as_dataset_file_is_rejected(copy, tmp_path, capsys):
    (part,) = copy.glob("train_0.parquet")
    part.unlink()
    os.mkfifo(part)
    check_rejected(capsys, arguments(copy, tmp_path), 2, "train_0.parquet: is a pipe; expected a parquet file")
