"""Training that starts at the best constant prediction, against formulas by hand."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.spec.features import Feature
from main import main
from tests.helpers import losses, must, words
from tests.trainer.small_models import make_batches, make_model
from trainer.models import MODELS
from trainer.tasks.best_constant import LARGEST_LOG, best_constants
from trainer.tasks.binary import BinaryTask
from trainer.tasks.multiclass import MulticlassTask
from trainer.tasks.pairwise import PairwiseTask
from trainer.tasks.task import task_type
from trainer.tasks.ziln import MIN_SIGMA

ROWS = 3000
RNG = np.random.default_rng(0)
AMOUNTS = np.where(RNG.random(ROWS) < 0.6, 0, np.exp(RNG.normal(2, 1, ROWS))).astype(np.float32)
CLICKS = (RNG.random(ROWS) < 0.02).astype(np.float32)
WEIGHTS = RNG.random(ROWS).astype(np.float32)


def mean(values: np.ndarray, weights: np.ndarray = WEIGHTS) -> float:
    return float(np.average(values.astype(float), weights=weights.astype(float)))


def lognormal() -> list[float]:
    above = AMOUNTS > 0
    logs, weights = np.log(AMOUNTS[above].astype(float)), WEIGHTS[above]
    share, mu = mean(above), mean(logs, weights)
    sigma = math.sqrt(mean((logs - mu) ** 2, weights))
    return [math.log(share / (1 - share)), mu, math.log(math.expm1(sigma - MIN_SIGMA))]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("regression", [mean(AMOUNTS)]),
        ("log1p", [mean(np.log1p(AMOUNTS))]),
        ("poisson", [math.log(mean(AMOUNTS))]),
        ("tweedie", [math.log(mean(AMOUNTS))]),
        ("weighted_logistic", [math.log(mean(AMOUNTS) / mean(AMOUNTS == 0))]),
        ("ziln", lognormal()),
    ],
)
def test_constants_of_amounts_are_their_means(kind, expected):
    task = task_type(kind).of(Feature(name="spent", dtype="float32", task=kind), None)
    np.testing.assert_allclose(best_constants([task], AMOUNTS[:, np.newaxis], WEIGHTS), expected, rtol=1e-3)


def test_constants_of_probabilities_are_log_odds_within_the_sample_space():
    bought = np.where(np.arange(ROWS) % 3 == 0, 1.0, 0.0).astype(np.float32)
    bought[::7] = np.nan
    tasks = (BinaryTask("click", positive_weight=3.0), BinaryTask("buy", given=0), PairwiseTask("order"))
    found = best_constants(tasks, np.stack([CLICKS, bought, CLICKS], axis=1), WEIGHTS)
    share = mean(CLICKS)
    counts = (CLICKS == 1) & ~np.isnan(bought)
    given = mean(bought[counts], WEIGHTS[counts])
    expected = [math.log(3 * share / (1 - share)), math.log(given / (1 - given)), 0]
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_constants_of_classes_are_their_shares():
    classes = RNG.choice(4, ROWS, p=[0.5, 0.3, 0.15, 0.05]).astype(np.float32)
    found = best_constants([MulticlassTask("rank", num_classes=4)], classes[:, np.newaxis], WEIGHTS)
    shares = np.exp(found) / np.exp(found).sum()
    np.testing.assert_allclose(shares, [mean(classes == own) for own in range(4)], atol=1e-3)


def test_labels_without_variation_have_finite_constants():
    zeros, nothing = np.zeros((50, 1), np.float32), np.full((50, 1), np.nan, np.float32)
    (never,) = best_constants([BinaryTask("click")], zeros, np.ones(50, np.float32))
    assert -LARGEST_LOG <= never < -5
    np.testing.assert_array_equal(best_constants([BinaryTask("click")], nothing, np.ones(50, np.float32)), [0])


@pytest.mark.parametrize("model", MODELS)
def test_every_model_starts_at_the_constants(model):
    tasks = (BinaryTask("click"), BinaryTask("buy", given=0))
    net, batch = make_model(model=model, tasks=tasks), make_batches(1)[0]
    before = net(batch.ids, batch.numerical)
    net.network.start_at(np.float32([-3.0, 1.5]))
    after = net(batch.ids, batch.numerical)
    np.testing.assert_allclose(after - before, np.tile([-3.0, 1.5], (16, 1)), atol=1e-5)


def test_towers_of_different_shapes_start_at_their_own_constants():
    tasks = (BinaryTask("click"), MulticlassTask("rank", num_classes=3), BinaryTask("buy"))
    towers = {"click": (4,), "rank": (), "buy": (4,)}
    net, batch = make_model(model="mmoe", tasks=tasks, tower_hidden_units=towers), make_batches(1)[0]
    before = net(batch.ids, batch.numerical)
    start = np.float32([1, 2, 3, 4, 5])
    net.network.start_at(start)
    np.testing.assert_allclose(net(batch.ids, batch.numerical) - before, np.tile(start, (16, 1)), atol=1e-5)


SPECIFICATION = """
feature_spec:
  item: {cardinality: 7}
  click: {dtype: float32}
  weight: {dtype: float32, role: sample_weight, negative_rate: 0.1}
source_spec:
  train: [{type: parquet, features: [item, click, weight], files: [rows.parquet]}]
  test: [{type: parquet, features: [item, click, weight], files: [rows.parquet]}]
channel_spec: {onehot_categorical: [item], label: [click]}
"""


@pytest.mark.parametrize(
    ("negatives", "share"), [pytest.param("weights", 100 / 2100, marks=pytest.mark.slow), ("logit", 1 / 3)]
)
def test_the_first_loss_is_that_of_the_share_of_positive_rows(tmp_path, negatives, share):
    """Of 2,000 negatives, 200 are kept; their weight of 10 counts unless --negatives logit drops it."""
    click = (np.arange(300) % 3 == 0).astype(np.float32)
    columns = {"item": (np.arange(300) % 7).astype(np.int32), "click": click, "weight": np.where(click, 1, 10)}
    pq.write_table(pa.table(columns | {"weight": columns["weight"].astype(np.float32)}), tmp_path / "rows.parquet")
    (tmp_path / "feature_spec.yaml").write_text(SPECIFICATION)

    def first_loss(*more: str) -> float:
        name = more[0] if more else "zero"
        folders = {"--model_dir": tmp_path / name, "--results_dir": tmp_path / name / "results"}
        folders["--dataset_path"] = tmp_path
        flags = words("--recipe published --cpu --num_epochs 1 --global_batch_size 300 --deep_hidden_units 8")
        flags += ["--embedding_init_std", "0.001", "--negatives", negatives, *more]
        must(main([*(str(word) for pair in folders.items() for word in pair), *flags]))
        return losses(tmp_path / name / "results")[1]

    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert first_loss("--output_bias", "base_rate") == pytest.approx(entropy, abs=1e-3)
    assert first_loss() == pytest.approx(math.log(2), abs=1e-3)
