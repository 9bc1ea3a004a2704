"""`main.py --predict`, and the model folder in a fresh process: the same numbers without a flag and without labels."""

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from data.encoding.encoder_files import save_encoders
from data.encoding.encoders import Numerical, Vocabulary
from data.errors import DataError
from main import main
from tests.helpers import ROOT, environment, make_dataset, metrics, must, words
from tests.trainer.metrics.workers import LocalWorkers
from trainer.cli import parse
from trainer.inputs import open_inputs
from trainer.lifecycle.errors import RejectedByAll
from trainer.process.worker_env import WorkerEnv
from trainer.raw_rows import encode_for_all, encoded_rows

MODEL = ["--model", "ple", "--expert_hidden_units", "16", "8", "--num_task_experts", "1", "--activation", "tanh"]
TRAINING = words("--global_batch_size 256 --eval_batch_size 300 --num_epochs 1 --deep_learning_rate 0.01")
TASKS = ("click", "conversion", "spend")
ROWS = 1000
# Predicts the rows of a mapping from a model folder alone, in a process without flags or a run.
PREDICT = """
import json, sys
from pathlib import Path
import numpy as np
from data.loading.loader import ParquetLoader
from data.spec.feature_spec import FeatureSpec
from trainer.checkpoint.load_model import load_model

folder, data, output = map(Path, sys.argv[1:])
saved = load_model(folder)
spec = FeatureSpec.read(data / "feature_spec.yaml")
(batch,) = ParquetLoader(spec, "test", global_batch_size=1000, shuffle=False).epoch(0)
np.save(output, saved.model(saved.layout.padded(batch.ids), batch.numerical).numpy())
described = [saved.model.name, [task.name for task in saved.tasks], saved.layout.id_columns]
ids = {name: encoder.encode([3, None, 99]).tolist() for name, encoder in saved.encoders.items()}
print(json.dumps([described, ids]))
"""


class Work:
    """A dataset with encoders, and one training run."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.data = make_dataset(folder, ROOT / "feature_specs" / "three_tasks.yaml", rows=ROWS)
        encoders = {
            "ad_id": Vocabulary.fit("ad", [3, 7], [1, 5]),
            "ad_id_ctr": Numerical.standardized("ctr", mean=1, std=2),
        }
        save_encoders(encoders, self.data / "workflow")
        self._add_unlabelled_mapping()
        must(main(self.arguments(*MODEL, *TRAINING)))
        self.metrics = metrics(folder / "results")

    def arguments(self, *more: str) -> list[str]:
        places = ["--model_dir", str(self.folder / "models"), "--results_dir", str(self.folder / "results")]
        return [
            "--dataset_path",
            str(self.data),
            *places,
            "--cpu",
            "--recipe",
            "published",
            "--eval_batch_size",
            "128",
            *more,
        ]

    def predicted(self, name: str, *more: str) -> pa.Table:
        """Returns the predictions that a command writes."""
        must(main(self.arguments(*(str(self.folder / name) if part == "OUT" else part for part in more))))
        return pq.read_table(self.folder / name)

    def _add_unlabelled_mapping(self) -> None:
        path = self.data / "feature_spec.yaml"
        document = yaml.safe_load(path.read_text())
        (chunk,) = document["source_spec"]["test"]
        features = [name for name in chunk["features"] if name not in TASKS]
        tables = [pq.read_table(self.data / file).select([*features, "conversion"]) for file in chunk["files"]]
        table = pa.concat_tables(tables)
        table = table.append_column("request", pa.array([f"r{row}" for row in range(ROWS)]))
        pq.write_table(table, self.data / "new.parquet", row_group_size=300)
        document["feature_spec"]["request"] = {}
        new = {"type": "parquet", "features": [*features, "conversion", "request"], "files": ["new.parquet"]}
        document["source_spec"]["new"] = [new]
        path.write_text(yaml.safe_dump(document, sort_keys=False))


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Work:
    return Work(tmp_path_factory.mktemp("predict"))


@pytest.fixture(scope="module")
def predictions(work) -> pd.DataFrame:
    return work.predicted("test.parquet", "--predict", "OUT", "--keep", "ad_id", "topic_id_list").to_pandas()


def columns(*names: str) -> list[str]:
    return [f"prediction_{name}" for name in names]


def test_predictions_equal_those_of_the_evaluation(work, predictions):
    assert metrics(work.folder / "results") == work.metrics
    table = work.predicted("evaluated.parquet", "--evaluate", "--predictions_file", "OUT", "--eval_batch_size", "512")
    assert list(predictions) == [*table.column_names, "ad_id", "topic_id_list"]
    assert table.column_names == ["row", *(f"{part}_{task}" for task in TASKS for part in ("label", "prediction"))]
    evaluated = table.to_pandas()
    np.testing.assert_allclose(predictions[columns(*TASKS)], evaluated[columns(*TASKS)], rtol=1e-5)
    labels = [f"label_{task}" for task in TASKS]
    pd.testing.assert_frame_equal(predictions[labels], evaluated[labels])


def test_kept_columns_are_those_of_the_files(work, predictions):
    stored = pd.concat([pd.read_parquet(file) for file in sorted(work.data.glob("test_*.parquet"))])
    assert (predictions["ad_id"].to_numpy() == stored["ad_id"].to_numpy()).all()
    assert [list(ids) for ids in predictions["topic_id_list"]] == [list(ids) for ids in stored["topic_id_list"]]


def test_rows_without_labels_are_predicted(work, predictions):
    arguments = ["--predict", "OUT", "--eval_mapping", "new", "--keep", "request"]
    found = work.predicted("new.parquet", *arguments).to_pandas()
    assert list(found) == ["row", "prediction_click", "label_conversion", *columns("conversion", "spend"), "request"]
    np.testing.assert_allclose(found[columns(*TASKS)], predictions[columns(*TASKS)], atol=1e-6)
    assert list(found["request"]) == [f"r{row}" for row in range(ROWS)]
    assert (found["label_conversion"] == predictions["label_conversion"]).all()


def encode_new(workflow, inputs, output, keep=()):
    """Stands in for the engine: the "raw" rows are encoded already, and only laid out as it does."""
    assert (workflow / "encoders.json").is_file()
    rows = pa.concat_tables([pq.read_table(path) for path in inputs])
    features = [name for name in rows.column_names if name != "request"]
    kept = rows.select(keep).rename_columns([f"raw_{name}" if name in features else name for name in keep])
    rows = rows.select(features)
    for column in kept.schema:
        rows = rows.append_column(column, kept[column.name])
    output.mkdir()
    pq.write_table(rows, output / "new.parquet")
    document = yaml.safe_load((workflow.parent / "feature_spec.yaml").read_text())
    entry = {"type": "parquet", "features": [*features, *kept.column_names], "files": ["new.parquet"]}
    document["feature_spec"] |= {name: {} for name in [*kept.column_names, "more"]}
    document["source_spec"] = {"train": document["source_spec"]["train"], "test": [entry]}
    (output / "feature_spec.yaml").write_text(yaml.safe_dump(document))
    return output


@pytest.fixture
def engine(monkeypatch):
    monkeypatch.setitem(sys.modules, "data.preprocess.engine", SimpleNamespace(encode_new=encode_new))


def test_raw_rows_are_encoded_and_predicted(work, predictions, engine, capsys):
    raw, out = work.data / "new.parquet", work.folder / "raw.csv"
    must(main(work.arguments("--predict", str(out), "--raw", str(raw), "--keep", "request", "ad_id")))
    found = pd.read_csv(out)
    assert list(found)[-2:] == ["request", "ad_id"]
    np.testing.assert_allclose(found[columns(*TASKS)], predictions[columns(*TASKS)], atol=1e-6)
    assert list(found["request"]) == [f"r{row}" for row in range(ROWS)]
    assert (found["ad_id"] == predictions["ad_id"]).all()
    assert not list((work.folder / "results").glob(".raw_rows*"))
    assert json.loads((work.folder / "results" / "args.json").read_text())["raw"] == [str(raw)]
    assert f"data: {raw}  checkpoints: " in capsys.readouterr().out


KILLED = """
import os, sys
from pathlib import Path
from types import SimpleNamespace

sys.modules["data.preprocess.engine"] = SimpleNamespace(encode_new=lambda *_, **__: os.kill(os.getpid(), 9))
from trainer.cli import parse
from trainer.raw_rows import encoded_rows

with encoded_rows(parse(sys.argv[1:], 1)):
    pass
"""


def test_leftovers_of_killed_runs_are_removed(work, engine):
    raw = ["--predict", str(work.folder / "raw.csv"), "--raw", str(work.data / "new.parquet")]
    command = [sys.executable, "-c", KILLED, *work.arguments(*raw)]
    assert subprocess.run(command, cwd=ROOT, env=environment(), check=False).returncode == -9
    results = work.folder / "results"
    (left,) = results.glob(".raw_rows*")
    config = parse(work.arguments(*raw), 1)
    with encoded_rows(config) as first, encoded_rows(config):  # the folder of a run that is alive stays
        assert not left.exists() and (first / "dataset" / "feature_spec.yaml").is_file()
    assert not list(results.glob(".raw_rows*"))


def test_one_worker_encodes_raw_rows_for_all(work, engine, tmp_path):
    raw = [str(work.data / "new.parquet")]
    config = parse(work.arguments("--predict", str(tmp_path / "out.csv"), "--raw", *raw, "--keep", "request"), 2)
    results = config.data.results_dir

    def job(comm):
        with ExitStack() as resources:
            changed = encode_for_all(config, comm, resources)
            found = open_inputs(changed, WorkerEnv(comm.rank, 2))
            comm.broadcast_bytes(b"")  # worker 0 removes the rows only now
            return found

    inputs = LocalWorkers(2).run(job)
    assert [found.eval_loader.rows for found in inputs] == [ROWS] * 2
    assert [found.labelled for found in inputs] == [("conversion",)] * 2
    assert not list(results.glob(".raw_rows*"))

    def fails(*_arguments, **_more):
        raise DataError("new.csv, line 3: wrong")

    sys.modules["data.preprocess.engine"].encode_new = fails
    for outcome in LocalWorkers(2).outcomes(lambda comm: encode_for_all(config, comm, ExitStack())):
        assert isinstance(outcome, RejectedByAll) and str(outcome) == "new.csv, line 3: wrong"
    assert not list(results.glob(".raw_rows*"))


def test_model_folder_alone_predicts_the_same(work, predictions):
    folder = work.folder / "model_elsewhere"
    (work.folder / "models" / "model").rename(folder)
    command = [sys.executable, "-c", PREDICT, folder, work.data, work.folder / "logits.npy"]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    described, encoded = json.loads(done.stdout.splitlines()[-1])
    assert described == ["ple", list(TASKS), 6]
    assert encoded["ad_id"] == [4, 1, 2]
    assert encoded["ad_id_ctr"] == [1, -0.5, 49]
    logits = np.load(work.folder / "logits.npy").astype(np.float64)
    logits[:, :2] = 1 / (1 + np.exp(-logits[:, :2]))
    np.testing.assert_allclose(logits, predictions[columns(*TASKS)], rtol=0, atol=1e-6)


def error_of(work: Work, *more: str) -> str:
    """Returns the message of a command that exits with code 2 before TensorFlow is imported."""
    program = "import sys; from main import main; code = main(sys.argv[1:]); print('tensorflow' in sys.modules, code)"
    command = [sys.executable, "-c", program, *work.arguments(*more)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "2"]
    return done.stderr


@pytest.mark.parametrize("action", [["--predict", "out.parquet"], ["--evaluate"], ["--use_checkpoint"]])
def test_conflicting_model_flag_is_rejected(work, action):
    message = error_of(work, *action, "--model", "ple", "--expert_hidden_units", "8", "--num_experts", "3")
    assert "trained with --expert_hidden_units 16 8, not 8, --num_experts 8, not 3. Omit" in message
    assert "step-4" in message


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--predict", "out.parquet", "--keep", "request"], "mapping 'test' has no column request; it has click, conv"),
        (["--evaluate", "--eval_mapping", "new"], "mapping 'new' has no column 'click'"),
        (["--predict", "nowhere/out.parquet"], "mkdir -p nowhere"),
        (["--raw", "new.csv"], "--raw names raw files to predict: add --predict FILE"),
        (["--predict", "out.csv", "--raw", "absent.csv"], "--raw absent.csv: does not exist"),
        (["--predict", "nowhere/out.csv", "--raw", "README.md"], "mkdir -p nowhere"),
        (["--predict", "out.csv", "--raw", "README.md", "--eval_mapping", "new"], "remove --eval_mapping"),
    ],
)
def test_wrong_requests_fail_before_tensorflow_loads(work, more, message):
    assert message in error_of(work, *more)


def test_benchmark_ignores_checkpoints(work):
    small = ["--benchmark", "--benchmark_warmup_steps", "1", "--benchmark_steps", "3", "--deep_hidden_units", "4"]
    must(main(work.arguments(*small, "--model", "wide_deep", "--global_batch_size", "64")))
