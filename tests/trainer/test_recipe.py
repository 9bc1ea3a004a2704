"""Settings that are chosen by the data."""

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy

from data.errors import DataError
from data.loading.loader import ParquetLoader
from data.movielens.prepare import prepare
from data.spec.feature_spec import FeatureSpec
from gen_csv import main as gen_csv
from main import main
from tests.data.sample_data import random_rows, write_dataset
from tests.helpers import ROOT, real_data
from trainer.cli import make_options, parse
from trainer.recipe import batch_size_for, choose, l2_for, scale_for
from transcode import main as transcode


def write_rows(folder: Path, rows: int, *, numbers: bool = False) -> None:
    """A dataset whose training mapping has so many rows; its two features share a table of 7 ids."""
    numerical = ", numerical: [price]" if numbers else ""
    items, clicks = pa.array(np.arange(rows) % 7, pa.int32()), pa.array(np.arange(rows) % 2, pa.int8())
    table = pa.table({"item": items, "shown": items, "click": clicks, "price": pa.array(np.ones(rows, np.float32))})
    half = rows // 2
    for number, part in enumerate((table.slice(0, half), table.slice(half))):
        pq.write_table(part, folder / f"{number}.parquet")
    (folder / "feature_spec.yaml").write_text(
        f"""
feature_spec: {{item: {{cardinality: 7}}, shown: {{cardinality: 7, table: item}}, price: {{}}, click: {{}}}}
source_spec:
  train: [{{type: parquet, features: [item, shown, click, price], files: [0.parquet, 1.parquet]}}]
  test: [{{type: parquet, features: [item, shown, click, price], files: [0.parquet]}}]
channel_spec: {{onehot_categorical: [item, shown], label: [click]{numerical}}}
"""
    )


@pytest.mark.parametrize(
    ("rows", "batch"),
    [(1, 256), (54_000, 256), (55_000, 512), (76_000, 512), (200_000, 1024), (610_000, 4096), (60_000_000, 65_536)],
)
def test_batch_size_gives_about_150_steps(rows, batch):
    assert batch_size_for(rows) == batch
    if 256 < batch < 65_536:
        assert 150 / 2**0.5 - 1 < rows / batch < 150 * 2**0.5 + 1


def test_l2_is_the_prior_of_the_mean_loss():
    # 1 / (2 * 610,000 * 0.04^2) = 0.000512...
    factors = {rows: l2_for(rows, are_small=False) for rows in (61, 61_000, 610_000, 6_100_000)}
    assert factors[610_000] == 0.00051 == pytest.approx(10 * factors[6_100_000], rel=0.02)
    assert factors[61_000] == factors[61] == 0.001


def test_numbers_are_a_multiple_of_the_prior():
    assert [scale_for(rows, 0.005) for rows in (100, 80_000, 609_000)] == [1.0, 0.088, 0.032]
    # From 55 million rows on, the prior has a deviation of 0.04.
    assert scale_for(100_000_000, l2_for(100_000_000, are_small=True)) == pytest.approx(0.1, abs=0.001)


def test_l2_of_small_embeddings_falls_to_the_prior():
    factors = [l2_for(rows, are_small=True) for rows in (300_000, 600_000, 6_000_000, 100_000_000)]
    # 1 / (2 * 300,000 * 0.013^2); a half; a half / 10^1.5; 1 / (2 * 100,000,000 * 0.04^2)
    assert factors == [0.0099, 0.0049, 0.00016, 3.1e-06]


def test_l2_of_small_embeddings_is_limited():
    factors = [l2_for(rows, are_small=True) for rows in (1000, 20_000, 64_000, 145_000, 160_000)]
    # 1 / (2 * 1000 * 0.02^2), and a twentieth of it; twice the limit; 1 / (2 * 160,000 * 0.013^2)
    assert factors == [1.2, 0.062, 0.02, 0.02, 0.018]


def test_l2_makes_up_for_the_weights_that_are_left_out(tmp_path):
    # 20 of 200 rows are positive; each of the others stands for 10: their mean is 0.1 + 0.9 * 10.
    write_labels(tmp_path / "data", {"click": np.arange(200) % 10 == 0}, negative_rate=0.1)
    factors = [
        make_options({"dataset_path": tmp_path / "data", "negatives": negatives}).training.l2_reg_embedding
        for negatives in ("weights", "logit")
    ]
    assert factors == [6.2, 56]


def write_labels(folder: Path, labels: dict[str, np.ndarray], *, negative_rate: float | None = None) -> None:
    """A dataset with a feature of 50 ids, these labels, and weights of 1 / negative_rate for the negatives."""
    folder.mkdir()
    features = {"item": {"cardinality": 50}} | {name: {"missing": "ignore"} for name in labels}
    columns = {name: pa.array(values.astype(np.float32), from_pandas=True) for name, values in labels.items()}
    rows = len(next(iter(labels.values())))
    columns["item"] = pa.array(np.arange(rows) % 50, pa.int32())
    if negative_rate is not None:
        features["weight"] = {"role": "sample_weight", "negative_rate": negative_rate}
        is_positive = np.any([values > 0 for values in labels.values()], axis=0)
        columns["weight"] = pa.array(np.where(is_positive, 1, 1 / negative_rate).astype(np.float32))
    pq.write_table(pa.table(columns), folder / "rows.parquet", row_group_size=100)
    chunk = [{"type": "parquet", "features": list(features), "files": ["rows.parquet"]}]
    document = {
        "feature_spec": features,
        "source_spec": {"train": chunk, "test": chunk},
        "channel_spec": {"onehot_categorical": ["item"], "label": list(labels)},
    }
    (folder / "feature_spec.yaml").write_text(json.dumps(document))


@pytest.mark.parametrize(("rows", "dropout", "units"), [(698, 0.2, (256, 128)), (700, 0.0, (400, 400, 400))])
def test_dropout_and_layers_follow_the_rows_per_id(tmp_path, rows, dropout, units):
    write_rows(tmp_path, rows)  # of 7 ids
    model = make_options({"dataset_path": tmp_path}).model
    assert model.deep_dropout == dropout and model.deep_hidden_units == units
    mmoe = make_options({"dataset_path": tmp_path, "model": "mmoe"}).model
    assert mmoe.deep_dropout == dropout and mmoe.expert_hidden_units == (256, 128)


@pytest.mark.parametrize(
    ("rows", "flags", "scale", "l2"),
    [
        (698, {}, 0.47, 1.8),  # 2.5 / sqrt(2 * 698 * 0.02) = 0.473...
        (700, {}, 1.0, 0.001),
        (698, {"xla": True}, 1.0, 0.001),
        (698, {"xla": True, "batch_norm": True}, 0.47, 1.8),
        (698, {"batch_norm": False}, 1.0, 0.001),
        (698, {"interaction": "dot"}, 1.0, 0.001),
        (698, {"interaction": "cross"}, 0.47, 1.8),
    ],
)
def test_embeddings_and_numbers_are_small_where_ids_are_rare(tmp_path, rows, flags, scale, l2):
    write_rows(tmp_path, rows, numbers=True)
    options = make_options({"dataset_path": tmp_path, **flags})
    assert (options.model.numerical_scale, options.training.l2_reg_embedding) == (scale, l2)
    write_rows(tmp_path, rows)
    assert make_options({"dataset_path": tmp_path, **flags}).model.numerical_scale == 1


EVERY = {period: np.arange(5_400) % period == 0 for period in (2, 6, 10)}


@pytest.mark.parametrize(
    ("labels", "dropout"),
    [
        ({"click": EVERY[2]}, 0.0),  # 108 rows for each of 50 ids
        ({"click": EVERY[10]}, 0.2),  # they count as 4 * 0.1 * 0.9 of 108
        ({"click": EVERY[6]}, 0.2),
        ({"click": EVERY[6], "like": EVERY[6]}, 0.0),  # twice 4 * 1/6 * 5/6 is more than 1
        ({"click": np.where(np.arange(5_400) % 4 < 2, EVERY[2], np.nan)}, 0.0),  # half of the known labels
    ],
)
def test_rows_with_rare_positives_count_less(tmp_path, labels, dropout):
    write_labels(tmp_path / "data", labels)
    assert make_options({"dataset_path": tmp_path / "data"}).model.deep_dropout == dropout


def test_given_flags_win(tmp_path):
    write_rows(tmp_path, 30_000)
    plain = make_options({"dataset_path": tmp_path})
    assert plain.training.global_batch_size == 256 and plain.deep_optimizer.rule == "adam" and plain.model.batch_norm
    given = {"global_batch_size": 99, "optimizer": "sgd", "batch_norm": False, "l2_reg_embedding": 0.0}
    changed = make_options({"dataset_path": tmp_path, **given})
    assert changed.training.global_batch_size == 99 and changed.deep_optimizer.rule == "sgd"
    assert not changed.model.batch_norm and changed.training.l2_reg_embedding == 0
    assert given.keys().isdisjoint(changed.reasons) and plain.reasons.keys() > changed.reasons.keys()
    rates = [options.reasons["deep_learning_rate"] for options in (plain, changed)]
    assert rates == ["Adam's usual rate", "Adam's usual rate; sgd may need another one"]


def test_batch_norm_can_be_turned_off(tmp_path):
    write_rows(tmp_path, 100)
    places = ["--dataset_path", str(tmp_path)]
    found = [parse([*places, *words.split()], 1).model.batch_norm for words in ("", "--batch_norm", "--batch_norm off")]
    assert found == [True, True, False]
    with pytest.raises(DataError, match="--batch_norm: expected on or off, got 'false'"):
        parse([*places, "--batch_norm", "false"], 1)


def test_nothing_is_chosen_where_nothing_is_trained(tmp_path):
    write_rows(tmp_path, 100)
    assert make_options({"dataset_path": tmp_path, "recipe": "published"}).reasons == {}
    assert choose({"dataset_path": tmp_path / "missing"}) == []
    published = make_options({"dataset_path": tmp_path, "recipe": "published"})
    assert published.training.global_batch_size == 131_072 and not published.model.batch_norm


def test_xla_goes_without_batch_norm(tmp_path):
    write_rows(tmp_path, 100)
    assert "batch_norm" not in make_options({"dataset_path": tmp_path, "xla": True}).reasons


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trains on a dataset without `valid`, with paths and a small model, and returns a function that runs on."""
    folder = tmp_path_factory.mktemp("run")
    spec, _ = write_dataset(folder, [[900], [1100]], frame=random_rows(2000))
    (folder / "feature_spec.yaml").write_text(spec.to_yaml())

    def run(*more: str) -> int:
        places = {"--dataset_path": folder, "--model_dir": folder / "models", "--results_dir": folder / "results"}
        words = [str(word) for place in places.items() for word in place]
        return main([*words, "--deep_hidden_units", "8", "--cpu", *more])

    return run


def test_run_reports_its_choices_and_holds_rows_out(run, capfd):
    assert run("--num_epochs", "2") == 0
    shown = capfd.readouterr().out
    assert "--global_batch_size 256: 8 steps per epoch for 2,000 rows" in shown and "--num_epochs" not in shown
    assert "chosen by loss_val/mean, on held-out rows of mapping 'train'" in shown
    assert run("--num_epochs", "3", "--use_checkpoint") == 0
    assert "resuming after step" in capfd.readouterr().out
    # The held-out rows are no rows of this run's training data any more.
    assert run("--num_epochs", "4", "--use_checkpoint", "--eval_mapping", "test") == 2
    assert "was trained on other rows than those of mapping" in capfd.readouterr().err
    assert run("--evaluate") == 0
    assert "on mapping 'test'" in capfd.readouterr().out


def test_a_resumed_run_keeps_its_settings(tmp_path):
    write_rows(tmp_path, 600)
    places = ["--dataset_path", tmp_path, "--model_dir", tmp_path / "models", "--results_dir", tmp_path / "results"]
    words = [*map(str, places), "--cpu", "--num_epochs"]
    first = "1 --deep_hidden_units 4 --recipe published --optimizer sgd --global_batch_size 200 --l2_reg_embedding 0.5"
    assert main([*words, *first.split()]) == 0
    resumed = parse([*words, "2", "--use_checkpoint"], 1)
    training, deep = resumed.training, resumed.deep_optimizer
    assert (training.recipe, training.global_batch_size, training.l2_reg_embedding) == ("published", 200, 0.5)
    assert (training.num_epochs, deep.rule, deep.schedule, resumed.model.batch_norm) == (2, "sgd", "steps", False)
    assert parse([*words, "2", "--use_checkpoint", "--optimizer", "adam"], 1).deep_optimizer.rule == "adam"


def one_hot(spec: FeatureSpec, mapping: str) -> tuple[scipy.sparse.csr_matrix, np.ndarray]:
    """All ids as 0 or 1, beside the numerical features and a constant; and the labels."""
    loader = ParquetLoader(spec, mapping, global_batch_size=10**6, shuffle=False)
    with closing(loader.epoch(0)) as batches:
        batch = next(batches)
    widths = [feature.max_hotness for feature in spec.multihot]
    matrix = np.concatenate([batch.onehot, batch.id_lists.padded(widths, -1)], axis=1)
    sizes = [feature.cardinality for feature in spec.onehot]
    sizes += [feature.cardinality for feature in spec.multihot for _ in range(feature.max_hotness)]
    places = matrix + np.concatenate([[0], np.cumsum(sizes)[:-1]])
    rows, columns = np.nonzero(matrix >= 0)
    shape = len(batch.labels), sum(sizes)
    ids = scipy.sparse.csr_matrix((np.ones(len(rows)), (rows, places[rows, columns])), shape)
    numbers = np.column_stack([batch.numerical, np.ones(len(batch.labels))])
    return scipy.sparse.hstack([ids, numbers], format="csr"), batch.labels[:, 0].astype(np.float64)


def logistic_regression(spec: FeatureSpec) -> float:
    """AUC on `test` of a regularized logistic regression, whose penalty is chosen on a twentieth of `train`."""
    x, labels = one_hot(spec, "train")
    is_valid = np.arange(len(labels)) % 20 == 0
    test, test_labels = one_hot(spec, "test")

    def loss(weights: np.ndarray, penalty: float) -> tuple[float, np.ndarray]:
        logits = x[~is_valid] @ weights
        wrong = np.logaddexp(0, np.where(labels[~is_valid] > 0, -logits, logits))
        gradient = x[~is_valid].T @ (scipy.special.expit(logits) - labels[~is_valid])
        return wrong.sum() + penalty * weights @ weights, gradient + 2 * penalty * weights

    found = []
    for penalty in (0.1, 1.0, 10.0):
        fitted = scipy.optimize.minimize(
            loss, np.zeros(x.shape[1]), (penalty,), jac=True, method="L-BFGS-B", options={"maxiter": 200}
        )
        found.append((rank_auc(x[is_valid] @ fitted.x, labels[is_valid]), rank_auc(test @ fitted.x, test_labels)))
    return max(found)[1]


def rank_auc(scores: np.ndarray, labels: np.ndarray) -> float:
    ranks, positives = scipy.stats.rankdata(scores), labels.sum()
    return (ranks[labels > 0].sum() - positives * (positives + 1) / 2) / (positives * (len(labels) - positives))


def lead_of_the_defaults(folder: Path) -> float:
    """Train on the dataset in `folder`/data at the defaults; return its lead in AUC over logistic regression."""
    places = ["--dataset_path", folder / "data", "--model_dir", folder / "model", "--results_dir", folder / "new"]
    assert main([*map(str, places), "--cpu"]) == 0
    assert main([*map(str, places), "--cpu", "--evaluate"]) == 0
    found = json.loads((folder / "new" / "metrics.json").read_text())["auc_roc"]
    return found - logistic_regression(FeatureSpec.read(folder / "data" / "feature_spec.yaml"))


@pytest.mark.slow
@pytest.mark.real_data
def test_small_data_at_the_defaults_beats_logistic_regression(tmp_path):
    prepare(real_data("ml-100k"), tmp_path / "data")
    assert lead_of_the_defaults(tmp_path) > 0.005


@pytest.mark.slow
def test_a_dozen_steps_per_epoch_are_enough(tmp_path):
    # The labels are those of a linear model, so that no other can be better.
    source, rows = str(tmp_path / "csv"), ["--size", "3000", "--signal", "2"]
    gen_csv(["--feature_spec_in", str(ROOT / "feature_specs/tiny.yaml"), "--output", source, *rows])
    transcode(["--input", source, "--output", str(tmp_path / "data")])
    assert lead_of_the_defaults(tmp_path) > -0.02
