"""Rare conversions, in real data: tasks on their sample spaces, and together with what they are given on all rows."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from main import main
from tests.data.table_samples import preprocessed, rows_of
from tests.helpers import metrics, must, real_data, words
from trainer.logging.log import read_log

pytestmark = [
    pytest.mark.slow,
    pytest.mark.real_data,
    pytest.mark.filterwarnings("ignore:Initializing an NVTabular Dataset in CPU mode"),
]
BATCH, EPOCHS = 128, 1
SMALL = words("--expert_hidden_units 16 --tower_hidden_units 8 --num_experts 3 --cpu --recipe published --log_every 1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """MMoE trained on the published file, and its predictions for the test rows."""
    folder = tmp_path_factory.mktemp("hillstrom")
    preprocessed("hillstrom", real_data("hillstrom"), folder / "data")
    places = ["--dataset_path", str(folder / "data"), "--model_dir", str(folder / "models"), "--model", "mmoe", *SMALL]
    places += ["--global_batch_size", str(BATCH), "--num_epochs", str(EPOCHS)]
    predictions = ["--evaluate", "--predictions_file", str(folder / "predictions.parquet")]
    must(main([*places, "--results_dir", str(folder / "train")]))
    must(main([*places, "--results_dir", str(folder / "evaluate"), *predictions]))
    return folder


def test_batches_without_conversions_keep_losses_finite(folder):
    records = [record["data"] for record in read_log(folder / "train" / "log.json") if record["type"] == "LOG"]
    steps = [record for record in records if "loss/spend" in record]
    keys = ("loss", "loss/visit", "loss/conversion", "loss/spend")
    assert np.isfinite([[step[key] for key in keys] for step in steps]).all()
    rows = rows_of(folder / "data", "train")
    assert len(steps) == EPOCHS * -(-len(rows) // BATCH)
    without = np.mean([step["loss/spend"] == 0 for step in steps])  # it is taken over conversions alone
    assert without == pytest.approx((1 - rows["conversion"].mean()) ** BATCH, abs=0.05)


def brute_force(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The binary metrics over all rows given, from probabilities: all pairs.

    Scores are logits in float32, joint ones too (docs/metrics.md): probabilities that differ in the last bits of a
    float64 are ties.
    """
    positive, rate = labels == 1, labels.mean()
    scores = (np.log(probabilities) - np.log1p(-probabilities)).astype(np.float32)
    pairs = np.sign(scores[positive][:, None] - scores[~positive][None, :])
    loss = -np.where(positive, np.log(probabilities), np.log1p(-probabilities)).mean()
    precisions = [labels[scores >= score].mean() for score in scores[positive]]
    return {
        "loss_val": loss,
        "auc_roc": (pairs.mean() + 1) / 2,
        "pr_auc": np.mean(precisions),
        "normalized_entropy": loss / -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate)),
        "calibration": probabilities.sum() / labels.sum(),
    }


def test_joint_metrics_equal_those_of_predictions(folder):
    found = metrics(folder / "evaluate")
    rows = pd.read_parquet(folder / "predictions.parquet")
    visit, conversion = rows["prediction_visit"].to_numpy(), rows["prediction_conversion"].to_numpy()
    visited, converted = (rows["label_visit"] == 1).to_numpy(), (rows["label_conversion"] == 1).to_numpy()
    assert 0 < converted.sum() < 0.015 * len(rows) and not (converted & ~visited).any()
    expected = {
        "visit": brute_force(visit, visited.astype(float)),
        "conversion": brute_force(conversion[visited], converted[visited].astype(float)),
        "visit+conversion": brute_force(visit * conversion, converted.astype(float)),
    }
    for task, values in expected.items():
        for key, value in values.items():
            assert found[f"{key}/{task}"] == pytest.approx(value, rel=1e-6), (key, task)
    for key in expected["visit"]:
        values = [found[f"{key}/{task}"] for task in ("visit", "conversion", "spend") if f"{key}/{task}" in found]
        assert found[f"{key}/mean"] == pytest.approx(np.mean(values), rel=1e-12), "the joint event is no task"
    errors = (rows["prediction_spend"] - rows["label_spend"])[converted]
    assert found["rmse/spend"] == pytest.approx(np.sqrt(np.mean(errors**2)), rel=1e-6)
    assert found["mae/spend"] == pytest.approx(np.mean(np.abs(errors)), rel=1e-6)
    assert not any("spend" in key and "+" in key for key in found)
    assert np.isfinite(list(found.values())).all()
