"""Corrected and calibrated probabilities from training to every output, by the commands that users run."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import export
import preprocess
from data.errors import DataError
from data.loading.loader import ParquetLoader
from data.spec.feature_spec import FeatureSpec
from main import main
from tests.helpers import ROOT, make_dataset, metrics, must, run_program, words
from tests.trainer.metrics.workers import LocalWorkers
from trainer.checkpoint.load_model import load_model
from trainer.checkpoint.manager import CheckpointManager
from trainer.checkpoint.store import CheckpointStore
from trainer.cli import parse
from trainer.comm import SingleWorker
from trainer.inputs import agree_on_inputs, check_run, open_inputs
from trainer.lifecycle.errors import RejectedByAll
from trainer.lifecycle.watchdog import SLOW_SECONDS, Watchdog
from trainer.logging.log import read_log
from trainer.metrics.rows import Rows
from trainer.process.worker_env import WorkerEnv
from trainer.report.curves import CALIBRATED, UNCALIBRATED, calibration_charts
from trainer.report.page import page
from trainer.report.runs import read_run
from trainer.tasks.calibrators import fit_isotonic
from trainer.tasks.logit_map import Platt

SMALL = words("--deep_hidden_units 8 --global_batch_size 256 --eval_batch_size 500 --cpu --recipe published")
SMALL += ["--deep_learning_rate", "0.01", "--deep_schedule", "constant"]


def arguments(folder: Path, *more: object, data: str = "data") -> list[str]:
    places = {"--dataset_path": folder / data, "--model_dir": folder / "models", "--results_dir": folder / "results"}
    return [*(str(part) for place in places.items() for part in place), *SMALL, *map(str, more)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Clicks and conversions (positive_weight 2, given a click), trained for two epochs with an isotonic calibrator."""
    folder = tmp_path_factory.mktemp("calibration")
    data = make_dataset(folder, ROOT / "feature_specs" / "three_tasks.yaml", rows=4000)
    document = yaml.safe_load((data / "feature_spec.yaml").read_text())
    (test,) = document["source_spec"]["test"]
    document["source_spec"]["valid"] = [test | {"files": test["files"][:2]}]
    document["source_spec"]["test"] = [test | {"files": test["files"][2:]}]
    (data / "feature_spec.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    flags = ["--num_epochs", 2, "--correct_positive_weight", "--calibrate", "isotonic"]
    must(main(arguments(folder, *flags)))
    return folder


def best(folder: Path) -> dict:
    checkpoint = CheckpointStore(folder / "models").best()
    return checkpoint.state["logit_maps"]


def test_calibrators_are_fitted_to_the_shifted_logits_of_valid(folder):
    saved = load_model(folder / "models" / "model")
    spec = FeatureSpec.read(folder / "data" / "feature_spec.yaml")
    (batch,) = ParquetLoader(spec, "valid", global_batch_size=10_000, shuffle=False).epoch(0)
    logits, (click, conversion, spend) = (
        saved.model(saved.layout.padded(batch.ids), batch.numerical).numpy(),
        saved.tasks,
    )
    clicked, weights = batch.labels[:, 0] == 1, batch.weights
    expected = fit_isotonic(Rows(logits[:, 0], batch.labels[:, 0], weights, None), SingleWorker())
    np.testing.assert_allclose(click.logit_map.calibrator.scores, expected.scores, atol=1e-5)
    np.testing.assert_allclose(click.logit_map.calibrator.logits, expected.logits, atol=1e-5)
    shifted = logits[clicked, 1] - np.float32(np.log(2))
    expected = fit_isotonic(Rows(shifted, batch.labels[clicked, 1], weights[clicked], None), SingleWorker())
    np.testing.assert_allclose(conversion.logit_map.calibrator.scores, expected.scores, atol=1e-5)
    assert click.logit_map.shift == 0 and conversion.logit_map.shift == pytest.approx(-np.log(2))
    assert not hasattr(spend, "logit_map") and set(best(folder)) == {"click", "conversion"}


def test_evaluation_prediction_and_export_apply_them(folder, capfd):
    must(main(arguments(folder, "--evaluate", "--predictions_file", folder / "evaluated.parquet")))
    assert "predictions: click: isotonic with" in capfd.readouterr().out
    must(main(arguments(folder, "--predict", folder / "predicted.parquet")))
    evaluated, predicted = (pd.read_parquet(folder / f"{name}.parquet") for name in ("evaluated", "predicted"))
    found = metrics(folder / "results")
    saved = load_model(folder / "models" / "model")
    spec = FeatureSpec.read(folder / "data" / "feature_spec.yaml")
    (batch,) = ParquetLoader(spec, "test", global_batch_size=10_000, shuffle=False).epoch(0)
    logits = saved.model(saved.layout.padded(batch.ids), batch.numerical).numpy()
    for index, name in enumerate(("click", "conversion")):
        wanted = saved.tasks[index].predictions(logits[:, index : index + 1])[:, 0]
        raw = 1 / (1 + np.exp(-logits[:, index]))
        assert np.abs(wanted - raw).max() > 0.05
        for frame in (evaluated, predicted):
            np.testing.assert_allclose(frame[f"prediction_{name}"], wanted, atol=1e-5)
    ratio = evaluated["prediction_click"].sum() / evaluated["label_click"].sum()
    assert found["calibration/click"] == pytest.approx(ratio, rel=1e-6)
    flags = ["--model_dir", folder / "models", "--output", folder / "exported", "--format", "savedmodel"]
    must(export.main([*map(str, flags), "--dataset_path", str(folder / "data")]))  # compares with the model


def test_the_report_draws_both_curves(folder):
    records = [record["data"] for record in read_log(folder / "results" / "log.json") if record["type"] == "LOG"]
    keys = {key for data in records for key in data}
    assert {f"uncalibrated_curve/{name}" for name in ("click", "conversion", "click+conversion")} < keys
    run = read_run(folder / "results", "run")
    charts, _ = calibration_charts([run])
    assert [[curve.task for curve in chart.curves] for chart in charts] == [[CALIBRATED, UNCALIBRATED]] * 3
    assert list(charts[0].curves[1].x) == run.uncalibrated["click"]["prediction"]
    text = page([run])
    assert CALIBRATED in text and UNCALIBRATED in text


def test_another_checkpoint_has_no_calibrator(folder, capfd):
    store = CheckpointStore(folder / "models")
    (other,) = set(store.steps()) - {store.best().step}
    must(main(arguments(folder, "--evaluate", "--checkpoint", store.folder / f"step-{other}")))
    out = capfd.readouterr().out
    assert "has no calibrator; --calibrate isotonic fits one" in out and "conversion: logit -0.69315" in out


def test_a_complete_run_is_calibrated_anew(folder, capfd):
    """The flags of the last run decide; a run that was stopped before its calibrators were fitted ends like this."""
    before = best(folder)
    must(main(arguments(folder, "--num_epochs", 2, "--use_checkpoint", "--calibrate", "platt")))
    out = capfd.readouterr().out
    assert "nothing to do" in out and "calibration_error/click on 'valid', before and after platt" in out
    saved = load_model(folder / "models" / "model")
    assert isinstance(saved.tasks[0].logit_map.calibrator, Platt) and saved.tasks[1].logit_map.shift == 0
    must(main(arguments(folder, "--num_epochs", 2, "--use_checkpoint")))
    assert best(folder) == {} and before != {}


# Errors, before TensorFlow is imported


def check(folder: Path, *more: object, **how: str) -> None:
    config = parse(arguments(folder, *more, **how), 1)
    check_run(config, open_inputs(config, WorkerEnv()), WorkerEnv())


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """A dataset whose mapping valid has no positive row; in `without` and `held_out` it has no mapping valid."""
    folder = tmp_path_factory.mktemp("plain")
    random = np.random.default_rng(0)
    features = {"item": {"cardinality": 9}, "click": {}, "stars": {}}
    chunk = {"type": "parquet", "features": list(features)}
    for mapping, clicks in (("train", [0, 1]), ("valid", [0]), ("test", [0, 1])):
        (folder / "data").mkdir(exist_ok=True)
        columns = {"item": random.integers(0, 9, 90), "click": random.choice(clicks, 90), "stars": random.random(90)}
        pq.write_table(pa.table(columns), folder / "data" / f"{mapping}.parquet")
    mappings = {name: [chunk | {"files": [f"{name}.parquet"]}] for name in ("train", "valid", "test")}
    channels = {"onehot_categorical": ["item"], "label": ["click"]}
    document = {"feature_spec": features, "source_spec": mappings, "channel_spec": channels}
    (folder / "data" / "feature_spec.yaml").write_text(yaml.safe_dump(document))
    features["stars"] = {"task": "regression"}
    document["channel_spec"] = channels | {"label": ["stars"]}
    (folder / "data" / "stars.yaml").write_text(yaml.safe_dump(document))
    document["source_spec"] = {name: mappings[name] for name in ("train", "test")}
    (folder / "data" / "without.yaml").write_text(yaml.safe_dump(document))
    features["stars"], document["channel_spec"] = {}, channels
    document["source_spec"]["train"] = mappings["valid"]
    (folder / "data" / "held_out.yaml").write_text(yaml.safe_dump(document))
    return folder


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--calibrate", "isotonic"], "--calibrate isotonic: label 'click' has no positive among the 90 rows.*valid"),
        (["--calibrate", "platt", "--fspec_file", "without.yaml"], "mapping 'valid', never on test, and the dataset"),
        (
            ["--calibrate", "platt", "--fspec_file", "held_out.yaml", "--recipe", "auto"],
            "'click' has no positive among the [0-9]+ held-out rows .* in mapping 'train' .* add a mapping 'valid'",
        ),
        (["--calibrate", "platt", "--eval_mapping", "test"], "--eval_mapping is test: remove --eval_mapping"),
        (["--calibrate", "platt", "--fspec_file", "stars.yaml"], "only binary labels have a probability"),
        (["--calibrate", "beta"], "invalid choice: 'beta'"),
        (["--negatives", "logit"], "does not say that it keeps only a share of its negatives .it has no sample weight"),
        (["--negatives", "weights", "logit"], "unrecognized arguments: logit"),
        (["--correct_positive_weight"], "no label of the feature specification has a positive_weight"),
    ],
)
def test_bad_input_is_reported_before_training(plain, flags, words):
    with pytest.raises(DataError, match=words):
        check(plain, *flags)


def test_several_workers_report_a_mapping_without_positives(plain):
    config = parse(arguments(plain, "--calibrate", "platt"), 2)

    def work(comm):
        env = WorkerEnv(rank=comm.rank, size=2)
        with pytest.raises(RejectedByAll, match="'click' has no positive"):
            agree_on_inputs(config, SimpleNamespace(spec=open_inputs(config, env).spec), comm, env)
        return True

    assert LocalWorkers(2).run(work) == [True, True]


# Kept negatives


RAW = """
feature_spec:
  click: {dtype: float32}
  item: {dtype: int64, encode: {vocabulary: {min_count: 2}}}
  price: {}
source_spec:
  logs:
    - {type: parquet, files: [logs.parquet]}
split: {random: {test: 0.4}, from: logs}
keep_negatives: 0.1
sample_weight: importance
channel_spec:
  onehot_categorical: [item]
  numerical: [price]
  label: [click]
"""


@pytest.fixture(scope="module")
def rare(tmp_path_factory) -> Path:
    """Rare clicks with a planted signal; a tenth of the negatives is kept, and rows have weights of their own."""
    folder = tmp_path_factory.mktemp("rare")
    random = np.random.default_rng(0)
    rows = 40_000
    item, price = random.integers(0, 20, rows), random.normal(size=rows)
    logits = -4.2 + random.normal(size=20)[item] + 0.8 * price
    click = random.random(rows) < 1 / (1 + np.exp(-logits))
    importance = random.choice([0.5, 2.0], rows)
    columns = {"click": click, "item": item, "price": price, "importance": importance}
    (folder / "raw").mkdir()
    pq.write_table(pa.table(columns), folder / "raw" / "logs.parquet")
    (folder / "raw" / "feature_spec.yaml").write_text(RAW)
    must(preprocess.main(["--input", str(folder / "raw"), "--output", str(folder / "data")]))
    return folder


# Without ids of unseen values, which change rows at random, the fitted rows are those of the files.
RARE = ["--optimizer", "adam", "--unseen_share", 0, "--global_batch_size", 128]


def mean_error_among_kept(rare: Path, predictions: Path) -> float:
    """The mean prediction less the mean label over the training rows, relative to the latter, among the kept rows."""
    frame = pd.read_parquet(predictions)
    spec = FeatureSpec.read(rare / "data" / "feature_spec.yaml")
    (batch,) = ParquetLoader(spec, "train", global_batch_size=20_000, shuffle=False).epoch(0)
    labels, present = batch.labels[:, 0], batch.rows >= 0
    own = (batch.weights * np.where(labels == 1, 1, 0.1))[present].astype(float)
    assert set(np.unique(own.round(5))) == {0.5, 2.0} and (frame["label_click"] == labels[present]).all()
    p = frame["prediction_click"].to_numpy().astype(float)
    kept = p / (p + 0.1 * (1 - p))
    return float(own @ (kept - labels[present]) / (own @ labels[present]))


@pytest.mark.parametrize("negatives", ["weights", "logit"])
def test_probabilities_are_calibrated_after_negatives_were_left_out(rare, tmp_path, negatives, capfd):
    flags = [*RARE, "--num_epochs", 6, "--negatives", negatives]
    places = ["--model_dir", tmp_path / "models", "--results_dir", tmp_path / "results"]
    must(main([*arguments(rare, *flags), *map(str, places)]))
    intercept = float(re.search("intercept of 'click', .* training rows: logit (.*)", capfd.readouterr().out)[1])
    must(main([*arguments(rare, "--evaluate"), *map(str, places)]))
    found = metrics(tmp_path / "results")
    # Within the noise of some hundred positive rows; without a correction, it would be several times as high.
    assert found["calibration"] == pytest.approx(1, abs=0.12) and found["auc_roc"] > 0.75
    architecture = json.loads((tmp_path / "models/model/architecture.json").read_text())
    known = np.log(0.1) if negatives == "logit" else 0
    assert architecture["logit_maps"]["click"]["shift"] == pytest.approx(known + intercept, abs=1e-5)
    # The last steps at a constant rate and small batches have moved the mean prediction.
    assert abs(intercept) > 1e-3
    predictions = tmp_path / "train.parquet"
    more = ["--evaluate", "--eval_mapping", "train", "--predictions_file", predictions]
    must(main([*arguments(rare, *more), *map(str, places)]))
    assert mean_error_among_kept(rare, predictions) == pytest.approx(0, abs=1e-5)
    if negatives == "logit":
        # A resumed run cannot weigh rows in another way.
        again = [*RARE, "--num_epochs", 7, "--use_checkpoint"]
        assert main([*arguments(rare, *again), *map(str, places)]) == 2
        assert "negatives was 'logit' and is 'weights'" in capfd.readouterr().err


def test_the_watchdog_allows_time_around_the_pass_over_the_training_rows(rare, tmp_path, monkeypatch):
    places = ["--model_dir", tmp_path / "models", "--results_dir", tmp_path / "results"]
    allowed: list[float] = []
    seen = {}
    beat, restore = Watchdog.beat, CheckpointManager.restore_weights

    def recorded(watchdog: Watchdog, allow: float = 0.0) -> None:
        allowed.append(allow)
        beat(watchdog, allow)

    def restored(*given: Any) -> Any:
        seen["restore"] = allowed[-1]
        return restore(*given)

    def fitted(*given: Any) -> float:
        seen["fit"] = allowed[-1]
        return 0.0

    monkeypatch.setattr(Watchdog, "beat", recorded)
    monkeypatch.setattr(CheckpointManager, "restore_weights", restored)
    monkeypatch.setattr("trainer.tasks.intercept.fit_intercept", fitted)
    must(main([*arguments(rare, *RARE, "--num_epochs", 1), *map(str, places)]))
    assert seen == {"restore": SLOW_SECONDS, "fit": SLOW_SECONDS}


def test_many_rows_are_sampled(rare, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("trainer.tasks.intercept.MAX_ROWS", 1000)
    places = ["--model_dir", tmp_path / "models", "--results_dir", tmp_path / "results"]
    must(main([*arguments(rare, *RARE, "--num_epochs", 1), *map(str, places)]))
    assert "intercept of 'click', fitted to 1,024 training rows" in capfd.readouterr().out  # eight batches of 128


@pytest.mark.horovod
def test_two_workers_fit_the_intercept_to_the_rows_of_both(rare, tmp_path):
    places = ["--model_dir", tmp_path / "models", "--results_dir", tmp_path / "results"]
    predictions = tmp_path / "train.parquet"
    for more in (
        [*RARE, "--num_epochs", 2],
        ["--evaluate", "--eval_mapping", "train", "--predictions_file", predictions],
    ):
        done = run_program([ROOT / "main.py", *arguments(rare, *more), *places], workers=2)
        assert done.returncode == 0, done.stderr
    assert mean_error_among_kept(rare, predictions) == pytest.approx(0, abs=1e-5)


def test_training_batches_have_the_weights_of_their_rows(rare):
    """With the shift, those of the raw file; otherwise ten times as much in negative rows."""

    def weights(negatives: str) -> np.ndarray:
        config = parse(arguments(rare, "--negatives", negatives), 1)
        loader = open_inputs(config, WorkerEnv()).train_loader
        return np.concatenate([np.stack([b.rows, b.labels[:, 0], b.weights], axis=1) for b in loader.epoch(0)])

    own, scaled = weights("logit"), weights("weights")
    assert (own[:, 0] == scaled[:, 0]).all()
    real = own[:, 0] >= 0
    assert set(np.unique(own[real, 2])) == {0.5, 2.0}
    factor = np.where(own[real, 1] == 1, 1, 10)
    np.testing.assert_allclose(scaled[real, 2], own[real, 2] * factor, rtol=1e-6)
