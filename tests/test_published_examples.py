"""The published examples, by the commands that docs/published_examples.md shows, on the publishers' files."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from tests.documented import bash_blocks, bash_with_one_main
from tests.helpers import metrics, real_data
from trainer.logging.log import read_log

pytestmark = [pytest.mark.real_data, pytest.mark.long]
PAGE = "docs/published_examples.md"
HUGECTR, DEEPCTR = "HugeCTR's MMoE sample", "The annotated DeepCTR-Torch MMoE"
RECHUB = "torch-rechub's MMoE tutorial"
IDS = ["uid", "user_city", "item_id", "author_id", "item_city", "channel", "music_id", "device"]
FIELDS = [*IDS[:6], "finish", "like", *IDS[6:], "time", "duration_time"]
TRAINING_ROWS, OOV_BUCKETS = 160, 8
PATIENCE, EPOCHS = 5, 50


def blocks(heading: str, raw: Path, folder: Path) -> list[str]:
    """A section's blocks of commands, on the real data and in a folder of the test's own."""
    return [block.replace("raw/", f"{raw}/").replace("example/", f"{folder}/") for block in bash_blocks(PAGE, heading)]


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> Path:
    """What ByteRec's section and the first commands of Ali-CCP's leave behind."""
    raw = real_data("byterec").parent
    real_data("ali-ccp")
    folder = tmp_path_factory.mktemp("samples")
    first, *_ = blocks(RECHUB, raw, folder)
    bash_with_one_main("\n".join([*blocks(DEEPCTR, raw, folder), first]), folder, timeout=1500)
    return folder


@pytest.fixture(scope="module")
def other_models(samples) -> Path:
    """What the remaining commands of Ali-CCP's section leave behind, too."""
    first, *others = blocks(RECHUB, real_data("ali-ccp").parent, samples)
    variables = [line for line in first.splitlines() if re.match(r'\w+="', line)]
    (samples / "others").mkdir()
    bash_with_one_main("\n".join([*variables, *others]), samples / "others", timeout=1500)
    return samples


def auc(labels: pd.Series, scores: pd.Series) -> float:
    """From the ranks, ties halved (Mann and Whitney)."""
    positive, ranks = labels == 1, scores.rank()
    count = positive.sum()
    return (ranks[positive].sum() - count * (count + 1) / 2) / (count * (~positive).sum())


def log_loss(labels: pd.Series, scores: pd.Series) -> float:
    return -np.log(np.where(labels == 1, scores, 1 - scores)).mean()


def check_predictions(rows: pd.DataFrame, tasks: tuple[str, str], results: Path) -> None:
    """Every task's AUC, log loss, and the mean of the former, from the file alone."""
    found = metrics(results)
    for task in tasks:
        labels, scores = rows[f"label_{task}"], rows[f"prediction_{task}"]
        assert found[f"auc_roc/{task}"] == pytest.approx(auc(labels, scores), abs=1e-6)
        assert found[f"loss_val/{task}"] == pytest.approx(log_loss(labels, scores), rel=1e-5)
    assert found["auc_roc/mean"] == pytest.approx(np.mean([found[f"auc_roc/{task}"] for task in tasks]))


def array(model: Path, name: str, place: int = -1) -> np.ndarray:
    """An array of one of the checkpoints, by default the last."""
    steps = sorted((model / "checkpoints").iterdir(), key=lambda folder: int(folder.name.removeprefix("step-")))
    (file,) = (steps[place] / "arrays").glob(f"*-{name}.npy")
    return np.load(file)


@pytest.mark.slow
def test_byterec_reports_every_task(samples):
    rows = pq.read_table(samples / "byterec.parquet").to_pandas()
    assert list(rows) == ["row", "label_finish", "prediction_finish", "label_like", "prediction_like"]
    assert len(rows) == 40 and (rows["label_finish"].sum(), rows["label_like"].sum()) == (18, 2)
    check_predictions(rows, ("finish", "like"), samples / "byterec_test")
    trained, evaluated = metrics(samples / "byterec_training"), metrics(samples / "byterec_test")
    assert evaluated["auc_roc/finish"] == trained["auc_roc/finish"], "--checkpoint last is the last epoch"


def test_byterec_is_trained_as_the_article_does(samples):
    flags = json.loads((samples / "byterec_training" / "args.json").read_text())
    assert (flags["num_experts"], flags["expert_hidden_units"], flags["gate_hidden_units"]) == (3, [256, 128], [64])
    assert (flags["optimizer"], flags["global_batch_size"], flags["num_epochs"]) == ("adagrad", 32, 10)
    assert array(samples / "byterec_model", "embeddings-deep.uid").shape[1] == 4
    assert set(json.loads((samples / "byterec" / "widths.json").read_text()).values()) == {4}


def test_unseen_ids_share_untrained_buckets(samples):
    raw = pd.read_csv(real_data("byterec") / "byterec_sample.txt", sep="\t", names=FIELDS)
    train, test = raw[:TRAINING_ROWS], raw[TRAINING_ROWS:]
    encoded = pq.read_table(samples / "byterec" / "test_0.parquet").to_pandas()
    for name in IDS:
        unseen = ~test[name].isin(train[name]) & (test[name] != -1)
        bucket = encoded[name].between(2, 1 + OOV_BUCKETS)
        assert bucket.tolist() == unseen.tolist(), name
    assert not test["uid"].isin(train["uid"]).any()
    assert encoded["uid"].nunique() == OOV_BUCKETS
    before, after = (array(samples / "byterec_model", "embeddings-deep.uid", place) for place in (-2, -1))
    buckets = slice(2, 2 + OOV_BUCKETS)
    assert (before[buckets] == after[buckets]).all()
    assert (before[buckets.stop :] != after[buckets.stop :]).any(axis=1).all(), "every user of the training rows"


def test_aliccp_stops_five_epochs_after_its_best(samples):
    key = "auc_roc/click+purchase"
    lines = [line for line in read_log(samples / "aliccp_training" / "log.json") if line["type"] == "LOG"]
    values = {line["step"][0]: line["data"][key] for line in lines if line["step"] and key in line["data"]}
    best = max(values, key=values.__getitem__)
    assert len(values) < EPOCHS
    assert list(values).index(best) == len(values) - 1 - PATIENCE
    saved = json.loads((samples / "aliccp_mmoe" / "model" / "architecture.json").read_text())
    assert saved["step"] == best


def test_aliccp_measures_purchases_on_clicks(samples):
    rows = pq.read_table(samples / "aliccp.parquet").to_pandas()
    found = metrics(samples / "aliccp_test")
    clicked = rows[rows["label_click"] == 1]
    assert (len(rows), len(clicked)) == (50, 2)
    of_clicks = auc(clicked["label_purchase"], clicked["prediction_purchase"])
    both = auc(rows["label_purchase"], rows["prediction_click"] * rows["prediction_purchase"])
    assert found["auc_roc/click"] == pytest.approx(auc(rows["label_click"], rows["prediction_click"]))
    assert found["auc_roc/purchase"] == pytest.approx(of_clicks)
    assert found["auc_roc/click+purchase"] == pytest.approx(both)


@pytest.mark.slow
def test_losses_of_aliccp_are_weighted_while_training(other_models):
    assert (array(other_models / "aliccp_ple", "loss_log_variance") != 0).all()
    weights = array(other_models / "aliccp_three", "gradnorm_weights")
    assert weights.sum() == pytest.approx(3, abs=1e-5)
    assert np.abs(weights - 1).max() > 0.1


@pytest.mark.slow
def test_aliccp_mixes_task_types_with_own_towers(other_models):
    spec = yaml.safe_load((other_models / "aliccp" / "three_tasks.yaml").read_text())
    assert spec["channel_spec"]["label"] == ["click", "purchase", "D853"]
    assert "D853" not in spec["channel_spec"]["numerical"]
    found = metrics(other_models / "aliccp_three_training")
    assert {"auc_roc/click", "auc_roc/purchase", "rmse/D853", "loss_val/mean"} <= found.keys()
    assert found["loss_val/D853"] == pytest.approx(found["rmse/D853"] ** 2)
    flags = json.loads((other_models / "aliccp_three_training" / "args.json").read_text())
    assert flags["tower_hidden_units"] == {"click": [8], "purchase": [16, 8], "D853": []}


@pytest.mark.slow
def test_census_reaches_its_aucs_and_exports(tmp_path):
    script = "\n".join(blocks(HUGECTR, real_data("census-income").parent, tmp_path))
    bash_with_one_main(script, tmp_path, timeout=1500)
    for model in ("mmoe", "shared"):
        found = metrics(tmp_path / f"{model}_test")
        assert found["auc_roc/income"] >= 0.945 and found["auc_roc/never_married"] >= 0.992
        assert {"pr_auc/income", "calibration/never_married", "normalized_entropy/mean"} <= found.keys()
    rows = pq.read_table(tmp_path / "mmoe.parquet").to_pandas()
    assert len(rows) == len(pq.read_table(tmp_path / "census" / "test_0.parquet"))
    check_predictions(rows, ("income", "never_married"), tmp_path / "mmoe_test")
