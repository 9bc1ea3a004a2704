"""Models for many tasks under horovodrun: real processes, real files."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from main import main
from tests.helpers import ROOT, left_to_all, losses, make_dataset, metrics, must, run_program, selected, words
from trainer.importance_file import read_importance
from trainer.logging.log import read_log
from trainer.report.runs import read_run

pytestmark = pytest.mark.horovod
RUN_ALL = ROOT / "tests" / "distributed" / "programs" / "run_all.py"
ROWS, BATCH = 4000, 256
STOPPING = "loss_val/click+conversion"
MODELS = ("shared_bottom", "omoe", "mmoe", "cgc", "ple", "esmm", "aitm")
SMALL = words("--expert_hidden_units 16 8 --tower_hidden_units 8 --num_experts 3 --deep_hidden_units 16")
SMALL += [
    "--global_batch_size",
    str(BATCH),
    "--num_epochs",
    "2",
    "--log_every",
    "1",
    "--deep_dropout",
    "0",
    "--cpu",
    "--recipe",
    "published",
]
SMALL += ["--deep_learning_rate", "0.01", "--deep_schedule", "constant"]
VARIANTS = {model: ["--model", model] for model in MODELS}
VARIANTS |= {
    "mmoe_amp_xla": ["--model", "mmoe", "--amp", "--xla"],
    "mmoe_uncertainty": words("--model mmoe --loss_weighting uncertainty --wide_part --interaction cross"),
    "mmoe_pcgrad": ["--model", "mmoe", "--loss_weighting", "pcgrad"],
    "mmoe_gradnorm": ["--model", "mmoe", "--loss_weighting", "gradnorm"],
    # SGD does not amplify rounding, as rules do that divide by the size of small gradients.
    "mmoe_batch_norm": words("--model mmoe --batch_norm --xla --optimizer sgd --deep_learning_rate 0.2"),
    "wide_deep": [],
}
COMPARED = ("mmoe", "mmoe_uncertainty", "mmoe_pcgrad", "mmoe_gradnorm", "mmoe_batch_norm")
WITHOUT_GATES = ("wide_deep", "shared_bottom", "esmm", "aitm")
# scripts/test.sh --all trains the others, too.
USUAL = ("mmoe", "mmoe_batch_norm")


@pytest.fixture(scope="module")
def folder(request, tmp_path_factory) -> Path:
    """The variants under test on two workers (one launch), and the compared ones in this process."""
    folder = tmp_path_factory.mktemp("tasks")
    data = make_dataset(folder, ROOT / "feature_specs" / "three_tasks.yaml", rows=ROWS)

    def arguments(name: str, *more: str, models: str | None = None) -> list[str]:
        places = ["--dataset_path", str(data), "--results_dir", str(folder / name / "results")]
        return [*places, "--model_dir", str(folder / (models or name) / "models"), *SMALL, *more]

    # Tests that are not parametrized by a variant use mmoe.
    variants = ["mmoe", *(name for name in selected(request, "name") if name != "mmoe")]
    scenarios = [arguments(name, *VARIANTS[name]) for name in variants]
    stop = ["--early_stopping_metric", STOPPING, "--early_stopping_patience", "2", "--num_epochs", "40"]
    scenarios.append(arguments("stopped", *VARIANTS["mmoe"], *stop))
    saved = ["--evaluate", "--predictions_file", str(folder / "predictions.parquet"), "--checkpoint", "last"]
    scenarios.append(arguments("evaluation", *VARIANTS["mmoe"], *saved, models="mmoe"))
    importance = {workers: ["--importance", str(folder / f"importance_{workers}.json")] for workers in ("one", "two")}
    sharded = [*importance["two"], "--shard_embeddings", "on"]
    scenarios.append(arguments("importance", *VARIANTS["mmoe"], *sharded, models="mmoe"))
    (folder / "scenarios.json").write_text(json.dumps(scenarios))
    done = run_program([RUN_ALL, folder / "scenarios.json"], workers=2, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    (folder / "output.txt").write_text(done.stdout)
    for name in (name for name in variants if name in COMPARED):
        must(main(arguments(f"one_{name}", *VARIANTS[name])))
    must(main(arguments("one_importance", *VARIANTS["mmoe"], *importance["one"], models="mmoe")))
    return folder


@pytest.mark.parametrize("name", left_to_all(VARIANTS, USUAL))
def test_every_model_learns_and_logs_each_task(folder, name):
    assert np.isfinite(list(losses(folder / name / "results").values())).all()
    found = metrics(folder / name / "results")
    assert {"auc_roc/click", "auc_roc/conversion", "auc_roc/mean", "rmse/spend", "loss_val/mean"} <= set(found)
    # The mean over the binary tasks: in these few steps, not every model learns each of them from every start.
    assert found["auc_roc/mean"] > 0.55
    assert "auc_roc/spend" not in found and "rmse/click" not in found


@pytest.mark.parametrize("name", left_to_all(COMPARED, USUAL))
def test_two_workers_log_the_losses_of_one(folder, name):
    two, one = losses(folder / name / "results"), losses(folder / f"one_{name}" / "results")
    assert list(two) == list(one)
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-4)
    together, alone = metrics(folder / name / "results"), metrics(folder / f"one_{name}" / "results")
    for key in ("auc_roc/mean", "rmse/spend", "loss_val/mean"):
        assert together[key] == pytest.approx(alone[key], abs=1e-3)


def test_two_workers_log_the_gates_of_one(folder):
    two, one = (read_run(folder / name / "results", name).gates for name in ("mmoe", "one_mmoe"))
    assert [point.epoch for point in two] == [1, 2] and two[-1].values.keys() == one[-1].values.keys()
    for key, value in two[-1].values.items():
        assert value == pytest.approx(one[-1].values[key], abs=0.01), key


@pytest.mark.parametrize("name", left_to_all(VARIANTS, USUAL))
def test_gates_are_drawn_for_models_with_gates(folder, name):
    has_gates = name not in WITHOUT_GATES
    assert bool(read_run(folder / name / "results", name).gates) == has_gates
    assert (folder / name / "results" / "gates.png").is_file() == has_gates


def test_predictions_of_every_task_give_the_logged_metrics(folder):
    rows = pq.read_table(folder / "predictions.parquet").to_pandas()
    found = metrics(folder / "evaluation" / "results")
    clicked = rows[rows["label_click"] == 1]
    assert rows["prediction_click"].min() > 0 and rows["prediction_click"].max() < 1
    converted = clicked[clicked["label_conversion"] == 1]
    known = converted[converted["label_spend"].notna()]
    error = np.sqrt(np.mean((known["label_spend"] - known["prediction_spend"]) ** 2))
    assert found["rmse/spend"] == pytest.approx(error, rel=1e-5)
    positive, negative = (
        clicked.loc[clicked["label_conversion"] == label, "prediction_conversion"] for label in (1, 0)
    )
    assert found["auc_roc/conversion"] == pytest.approx(auc(positive, negative), abs=1e-9)
    both, product = rows["label_conversion"] == 1, rows["prediction_click"] * rows["prediction_conversion"]
    assert found["auc_roc/click+conversion"] == pytest.approx(auc(product[both], product[~both]), abs=1e-6)
    assert found["calibration/click+conversion"] == pytest.approx(product.sum() / both.sum(), rel=1e-6)


def auc(positive, negative) -> float:
    """The fraction of correctly ordered pairs."""
    pairs = np.sign(positive.to_numpy()[:, None] - negative.to_numpy()[None, :])
    return (pairs.mean() + 1) / 2


def test_two_workers_with_shards_measure_the_importance_of_one(folder):
    assert "tables are sharded over 2 worker(s)" in (folder / "output.txt").read_text()
    one, two = (read_importance(folder / f"importance_{workers}.json") for workers in ("one", "two"))
    assert one.rows == two.rows == ROWS and len(one.tasks) == 3
    for left, right in zip(one.tasks, two.tasks, strict=True):
        effects = [{part.feature: part.effects for part in task.features} for task in (left, right)]
        for feature, of_metrics in effects[0].items():
            for metric, effect in of_metrics.items():
                other = effects[1][feature][metric]
                assert other.change == pytest.approx(effect.change, abs=1e-6)
                assert other.standard_error == pytest.approx(effect.standard_error, abs=1e-6)


def test_early_stopping_keeps_the_best_epoch(folder):
    records = read_log(folder / "stopped" / "results" / "log.json")
    evaluated = {
        record["step"][0]: record["data"][STOPPING]
        for record in records
        if record["type"] == "LOG" and record["step"] and STOPPING in record["data"]
    }
    assert len(evaluated) < 40
    best = min(evaluated, key=evaluated.__getitem__)
    assert list(evaluated).index(best) == len(evaluated) - 3
    architecture = json.loads((folder / "stopped" / "models" / "model" / "architecture.json").read_text())
    assert architecture["step"] == best


def test_unknown_metric_is_rejected_with_known_ones(folder, capfd):
    places = ["--dataset_path", folder / "data", "--model_dir", folder / "x", "--results_dir", folder / "y"]
    assert main([*map(str, places), *SMALL, "--early_stopping_metric", "auc_roc/spend"]) == 2
    shown = capfd.readouterr().err
    assert "'auc_roc/spend' is not one of" in shown and "rmse/spend" in shown
    assert "Traceback" not in shown
