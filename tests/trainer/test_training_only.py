"""Features that are known only in training: what they add there, and the constants that predictions take."""

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
import yaml

from data.loading.loader import ParquetLoader
from data.spec.feature_spec import FeatureSpec
from export import main as export
from main import main
from tests.helpers import metrics, must, words
from tests.trainer.local_workers import run_workers
from tests.trainer.small_models import LAYOUT, Rows, make_batches, make_model, make_step, part, run_eagerly
from trainer.checkpoint.load_model import load_model
from trainer.embeddings.shards import Shards
from trainer.export.saved_model_folder import load_signatures
from trainer.importance_file import read_importance
from trainer.layout import RowValues, TrainingOnly
from trainer.models.step_context import StepContext
from trainer.models.training_only import rows_of

KNOWN = TrainingOnly(("position", "page", "size"), (7, 3), (2.0, 0.0, 0.5))
WITH_TOWER = replace(LAYOUT, training_only=KNOWN)
ROWS, ITEMS, POSITIONS, SERVED = 4000, 20, 5, 1
FLAGS = words(
    "--deep_hidden_units 16 --deep_dropout 0 --training_only_dropout 0 --global_batch_size 64 --eval_batch_size 300 "
    "--num_epochs 20 --deep_learning_rate 0.01 --deep_schedule constant --recipe published --cpu --deterministic"
)


def draw_values(rows: int, seed: int = 0) -> np.ndarray:
    """Ids and numbers of KNOWN, [rows, 3] float32."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, 7, rows), rng.integers(0, 3, rows), rng.normal(size=rows)], axis=1).astype("f4")


class WithValues(NamedTuple):
    """The rows of a batch, with features known only in training."""

    ids: tf.Tensor
    numerical: tf.Tensor
    labels: tf.Tensor
    weights: tf.Tensor
    values: np.ndarray

    def input(self, model):
        rows = Rows(*self[:4]).input(model)
        return rows._replace(values=rows.values._replace(training_only=(tf.constant(self.values),)))


def tower_by_hand(model, values: np.ndarray) -> np.ndarray:
    weights = {name.split("/training_only/")[-1]: weight.numpy() for name, weight in model.weights_by_name.items()}
    embedded = [weights["id.position"][values[:, 0].astype(int)], weights["id.page"][values[:, 1].astype(int)]]
    x = np.concatenate([*embedded, values[:, 2:]], axis=1)
    hidden = np.maximum(x @ weights["hidden/layer_1/kernel"] + weights["hidden/layer_1/bias"], 0)
    return hidden @ weights["head/kernel"]


@pytest.mark.parametrize("name", ["wide_deep", "mmoe"])
def test_the_tower_adds_its_logits(name):
    tasks = ("click", "buy")
    model = make_model(model=name, layout=WITH_TOWER, tasks=tasks)
    batch, values = make_batches(1)[0], draw_values(16)
    embedded = model.embeddings.pool_padded(batch.ids)
    served = np.tile(np.array(KNOWN.serve, np.float32), (16, 1))
    as_served = model.logits(embedded, RowValues(batch.numerical))
    logged = model.logits(embedded, RowValues(batch.numerical, training_only=(tf.constant(values),)))
    added = tower_by_hand(model, values) - tower_by_hand(model, served)
    np.testing.assert_allclose(logged - as_served, added, atol=1e-5)
    np.testing.assert_allclose(model(batch.ids, batch.numerical), as_served, atol=1e-6)


def test_other_parts_do_not_see_them():
    plain, model = make_model(layout=LAYOUT), make_model(layout=WITH_TOWER)
    others = {name for name in model.weights_by_name if "/training_only/" not in name}
    assert others == plain.weights_by_name.keys()
    assert all(model.weights_by_name[name].shape == weight.shape for name, weight in plain.weights_by_name.items())


def test_gradients_of_small_tables_equal_those_of_a_product():
    table, ids = (
        tf.Variable(np.random.default_rng(1).normal(size=(5, 3)).astype("f4")),
        tf.constant([4, 0, 4, 2], tf.int64),
    )
    factors = tf.constant(np.random.default_rng(2).normal(size=(4, 3)).astype("f4"))
    with tf.GradientTape(persistent=True) as tape:
        own = tf.reduce_sum(rows_of(table, ids) * factors)
        product = tf.reduce_sum(tf.one_hot(ids, 5) @ table * factors)
    np.testing.assert_allclose(tape.gradient(own, table), tape.gradient(product, table), atol=1e-6)


@pytest.mark.parametrize("xla", [pytest.param(False, marks=pytest.mark.slow), True])
def test_several_workers_equal_one(xla):
    batches, values = make_batches(4), draw_values(16)

    def work(comm):
        shards = Shards(comm.rank, comm.size, comm.exchange_values, smallest=20) if comm.size > 1 else None
        model = make_model(layout=WITH_TOWER, shards=shards, training_only_dropout=0.0)
        step, losses = make_step(model, comm=comm, xla=xla), []
        bounds = slice(0, 16) if comm.size == 1 else slice(0, 9) if comm.rank == 0 else slice(9, 16)
        for number, batch in enumerate(batches, start=1):
            rows = WithValues(*part(batch, bounds), values[bounds])
            losses.append(run_eagerly(step, rows, number).losses.numpy())
        return model, losses

    [(_, alone)] = run_workers(1, work)
    together = run_workers(2, work)
    for _, losses in together:
        np.testing.assert_allclose(losses, alone, rtol=1e-4)


def test_some_rows_of_training_are_served():
    model = make_model(layout=WITH_TOWER, training_only_dropout=0.25)
    rows, found = 4000, []
    values = tf.constant(draw_values(rows))
    logged, served = (model.training_only(own).numpy() for own in (values, model.training_only.served))
    for seed in (1, 1, 2):
        context = StepContext(tf.constant([seed, 64]), tf.ones(rows), lambda own: own)
        found.append(model.training_only(values, context=context).numpy())
    is_served = np.isclose(found[0], served, atol=1e-6).all(axis=1)
    np.testing.assert_allclose(found[0], np.where(is_served[:, np.newaxis], served, logged), atol=1e-5)
    assert is_served.mean() == pytest.approx(0.25, abs=0.03)
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).any()


def write_dataset(folder: Path, *, held: tuple[str, ...] = ("train", "test")) -> Path:
    """Clicks that depend on an item's quality and on its position, which follows from the item most of the time.

    Only the mappings in `held` have the position.
    """
    rng, files = np.random.default_rng(0), {}
    for mapping in ("train", "test"):
        item = rng.integers(0, ITEMS, ROWS)
        # Poor items are shown first, most of the time.
        position = np.where(rng.random(ROWS) < 0.7, item * POSITIONS // ITEMS, rng.integers(0, POSITIONS, ROWS))
        logits = item / 5 - 1.2 * position
        columns = {"item": item, "click": (rng.random(ROWS) < 1 / (1 + np.exp(-logits))).astype("f4")}
        if mapping in held:
            columns["position"] = position
        files[mapping] = columns
        folder.mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), folder / f"{mapping}.parquet")
    document = {
        "feature_spec": {
            "item": {"cardinality": ITEMS},
            "position": {"cardinality": POSITIONS, "serve": SERVED},
            "click": {},
        },
        "channel_spec": {"onehot_categorical": ["item", "position"], "label": ["click"]},
        "source_spec": {
            mapping: [{"type": "parquet", "features": list(columns), "files": [f"{mapping}.parquet"]}]
            for mapping, columns in files.items()
        },
    }
    (folder / "feature_spec.yaml").write_text(yaml.safe_dump(document))
    return folder


def epoch_of(data: Path, mapping: str, **more: bool):
    spec = FeatureSpec.read(data / "feature_spec.yaml")
    return next(iter(ParquetLoader(spec, mapping, global_batch_size=ROWS, shuffle=False, **more).epoch(0)))


def test_batches_have_logged_values_or_what_is_served(tmp_path):
    data = write_dataset(tmp_path / "data", held=("train",))
    position = pd.read_parquet(data / "train.parquet")["position"].to_numpy()
    np.testing.assert_array_equal(epoch_of(data, "train").training_only[:, 0], position)
    np.testing.assert_array_equal(epoch_of(data, "test").training_only[:, 0], SERVED)
    np.testing.assert_array_equal(epoch_of(data, "train", needs_labels=False).training_only[:, 0], SERVED)
    assert epoch_of(data, "train").onehot.shape == (ROWS, 1)


def run(data: Path, folder: Path, *more: str) -> int:
    places = {"--dataset_path": data, "--model_dir": folder / "models", "--results_dir": folder / "results"}
    return main([*(str(part) for place in places.items() for part in place), *FLAGS, *more])


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a run, with predictions of rows without the position."""
    folder = tmp_path_factory.mktemp("position")
    must(run(write_dataset(folder / "data"), folder))
    new = write_dataset(folder / "new", held=("train",))
    must(run(new, folder, "--predict", str(folder / "predictions.parquet")))
    return folder


def test_predictions_rank_items_by_quality_and_not_by_position(trained):
    rows = pd.read_parquet(trained / "predictions.parquet")
    rows["item"] = pd.read_parquet(trained / "new" / "test.parquet")["item"]
    means = rows.groupby("item")["prediction_click"].mean()
    assert rows.groupby("item")["prediction_click"].nunique().max() == 1
    truth = pd.Series(1 / (1 + np.exp(-(np.arange(ITEMS) / 5 - 1.2 * SERVED))), means.index)
    # Items at the far end of the ranking were hardly ever shown first.
    assert means.corr(truth, method="spearman") > 0.9
    assert (means - truth).abs().mean() < 0.15


def test_evaluation_sees_the_logged_positions(trained):
    logged = pd.read_parquet(trained / "data" / "test.parquet")
    chances = 1 / (1 + np.exp(-(logged["item"] / 5 - 1.2 * logged["position"])))
    best = -np.mean(np.where(logged["click"] == 1, np.log(chances), np.log1p(-chances)))
    assert metrics(trained / "results")["loss_val"] == pytest.approx(best, abs=0.02)


def test_importance_is_that_for_predictions(trained, tmp_path):
    must(run(trained / "data", trained, "--importance", str(tmp_path / "importance.json")))
    [task] = read_importance(tmp_path / "importance.json").tasks
    assert [feature.feature for feature in task.features] == ["item"]
    served = pd.read_parquet(trained / "predictions.parquet")["prediction_click"].astype(float)
    clicked = pd.read_parquet(trained / "data" / "test.parquet")["click"]
    loss = -np.mean(np.where(clicked == 1, np.log(served), np.log1p(-served)))
    assert task.intact["loss_val"] == pytest.approx(loss, abs=1e-5)


def test_exports_take_no_position_and_serve_the_constant(trained, tmp_path):
    must(export(["--model_dir", str(trained / "models"), "--output", str(tmp_path / "out"), "--format", "savedmodel"]))
    items = np.arange(ITEMS, dtype=np.int32)[:, np.newaxis]
    [output] = load_signatures(tmp_path / "out")["serving_default"]({"item": items}).values()
    model = load_model(trained / "models" / "model").model
    expected = tf.sigmoid(model(tf.constant(items, tf.int32), tf.zeros((ITEMS, 0))))
    np.testing.assert_allclose(output, expected, atol=1e-6)
    assert json.loads((trained / "results" / "args.json").read_text())["training_only_dropout"] == 0


def test_a_checkpoint_with_another_constant_is_rejected(trained, capsys):
    other = write_dataset(trained / "other")
    text = (other / "feature_spec.yaml").read_text()
    (other / "feature_spec.yaml").write_text(text.replace(f"serve: {SERVED}", "serve: 0"))
    assert run(other, trained, "--evaluate") == 2
    assert "serve 1.0 and is" in capsys.readouterr().err
