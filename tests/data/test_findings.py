import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import check_dataset
from data.encoding.encoder_files import save_encoders
from data.encoding.encoders import CrossedIds, CrossInput, Numerical, Vocabulary
from data.preprocess import findings
from data.preprocess.findings import DatasetCounts, auc_standard_error, unseen_ids, used_columns
from data.spec.feature_spec import FeatureSpec
from data.spec.features import Chunk, Feature
from data.spec.raw.spec import CrossRule, HashRule, KeepRule, RawFeature, RawSpec, SharedVocabularyRule

ROWS = 4000
# user has 100 ids: 0 padding, 1 null, 2 unseen.
FEATURES = {
    "user": Feature(name="user", dtype="int32", cardinality=100, unseen_id=2),
    "items": Feature(name="items", dtype="int32", cardinality=200, max_hotness=3, unseen_id=2, oov_buckets=2),
    "price": Feature(name="price", dtype="float32"),
    "click": Feature(name="click", dtype="float32"),
    "bought": Feature(name="bought", dtype="float32", given="click"),
}
CHANNELS = {
    "onehot_categorical": ("user",),
    "multihot_categorical": ("items",),
    "numerical": ("price",),
    "label": ("click", "bought"),
}


def spec_of(features=FEATURES, channels=CHANNELS):
    every = {name: tuple(channels.get(name, ())) for name in (*CHANNELS, "map")}
    return FeatureSpec(Path(), dict(features), {}, every, {})


def usual(rows=ROWS, **changed):
    rng = np.random.default_rng(rows)
    clicks = (np.arange(rows) % 2).astype(np.float32)
    columns = {
        "user": rng.integers(3, 100, rows).astype(np.int32),
        "items": [list(range(4, 4 + row % 3)) for row in range(rows)],
        "price": rng.random(rows, np.float32),
        "click": clicks,
        "bought": clicks * (np.arange(rows) % 4 == 1),
    }
    columns |= changed
    return pa.table(columns | {"items": pa.array(columns["items"], pa.list_(pa.int32()))})


def found(spec=None, train=None, test=None, **options):
    counts = DatasetCounts(spec or spec_of(), **options)
    for mapping, rows in (("train", train or usual()), ("test", test or usual())):
        for start in range(0, rows.num_rows, 999):
            counts.add(mapping, rows.slice(start, 999))
    return counts.texts()


def test_usual_rows_have_nothing_to_report():
    assert found() == []


def test_constant_features_are_listed():
    train = usual(
        user=np.full(ROWS, 7, np.int32), items=[[5, 5]] * ROWS, price=pa.array([0.5, None] * (ROWS // 2), pa.float32())
    )
    assert found(train=train) == [
        "constant feature: train, user (always 7), train, items (always 5), train, price (always 0.5); nothing can be "
        "learned from it; leave it out"
    ]
    empty = usual(items=pa.array([[]] * ROWS, pa.list_(pa.int32())))
    assert found(train=empty)[0].startswith("constant feature: train, items (no value)")
    # Of one value, but not everywhere.
    assert found(train=usual(items=[[5], []] * (ROWS // 2))) == []


def test_values_unseen_in_training_are_counted():
    unseen = np.where(np.arange(ROWS) % 8 < 5, 2, 50).astype(np.int32)
    assert found(test=usual(user=unseen)) == [
        "feature whose values were mostly unseen in training: test, user (62.5% of 4,000); it looks like a date or a "
        "session id, from which nothing can be learned; leave it out"
    ]
    assert found(test=usual(user=np.where(np.arange(ROWS) % 2, 2, 50).astype(np.int32))) == []
    (text,) = found(test=usual(items=[[2, 3, 9]] * ROWS))
    assert "test, items (66.7% of 12,000)" in text
    assert found(test=usual(price=np.full(ROWS, 2, np.float32))) == []


def test_ids_with_nearly_as_many_values_as_rows():
    features = FEATURES | {"user": Feature(name="user", dtype="int32", cardinality=2103, unseen_id=2)}
    users = np.arange(ROWS) % 2100 + 3
    assert found(spec_of(features), usual(user=users)) == [
        "nearly as many ids as values: train, user (2,100 ids for 4,000 values); most occur once or twice, too rarely "
        "to learn from; encode it with a min_count, or leave it out"
    ]
    (text,) = found(train=usual(user=np.where(np.arange(ROWS) % 10, 2, 50)))
    assert text.startswith("feature whose training values are mostly rare: train, user (90.0% share the id of unseen")


def hanley_mcneil(auc, positives, negatives):
    q1, q2 = auc / (2 - auc), 2 * auc * auc / (1 + auc)
    numerator = auc * (1 - auc) + (positives - 1) * (q1 - auc * auc) + (negatives - 1) * (q2 - auc * auc)
    return math.sqrt(numerator / (positives * negatives))


def test_the_error_of_an_auc_is_that_of_random_samples():
    # The formula holds for exponential scores; with a mean of 7/3 and 1 the AUC is 7/3 / (7/3 + 1) = 0.7.
    rng = np.random.default_rng(0)
    aucs = []
    for _ in range(2000):
        positives, negatives = rng.exponential(7 / 3, 30), rng.exponential(1, 200)
        aucs.append((positives[:, None] > negatives).mean())
    assert np.mean(aucs) == pytest.approx(0.7, abs=0.005)
    assert auc_standard_error(0.7, 30, 200) == pytest.approx(np.std(aucs), rel=0.05)
    assert auc_standard_error(0.7, 30, 200) == pytest.approx(hanley_mcneil(0.7, 30, 200))


def test_few_positives_to_evaluate_on():
    rare = (np.arange(ROWS) < 50).astype(np.float32)
    texts = found(train=usual(click=rare, bought=rare * 0), test=usual(click=rare, bought=rare * 0))
    assert texts == [
        "few rows to evaluate on: test, click (50 positives of 4,000; standard error of an AUC of 0.7: 0.042); smaller "
        "differences between models mean nothing; evaluate on more rows"
    ]


def test_base_rates_that_differ():
    often, rarely = (np.arange(ROWS) % 4 == 1), (np.arange(ROWS) % 20 == 1)
    (text,) = [text for text in found(test=usual(bought=rarely.astype(np.float32))) if "few rows" not in text]
    # Of the rows with a click, every second one: 50% and 10%, each of 2,000 rows.
    error = math.sqrt(0.3 * 0.7 * 2 / 2000)
    assert text.startswith(
        "base rate that differs between mappings: bought, train and test (50% and 10% positive, "
        f"{0.4 / error:.0f} standard errors)"
    )
    assert found(train=usual(bought=often.astype(np.float32))) == []
    # By a factor of 2, but only by chance.
    few = usual(40, click=np.ones(40, np.float32), bought=(np.arange(40) < 10).astype(np.float32))
    assert all("base rate" not in text or "click" in text for text in found(test=few))


def test_weights_undo_a_sample_of_the_negatives():
    features = FEATURES | {"weight": Feature(name="weight", dtype="float32", role="sample_weight")}
    positive = np.arange(ROWS) % 2 == 0
    sampled = usual(click=positive.astype(np.float32), bought=positive * 1.0, weight=np.where(positive, 1.0, 9.0))
    rare = np.arange(ROWS) % 10 == 0
    everything = usual(click=rare.astype(np.float32), bought=rare * 1.0, weight=np.ones(ROWS))
    assert [text for text in found(spec_of(features), sampled, everything) if "base rate" in text] == []
    unweighted = found(train=sampled, test=everything)
    assert any("click, train and test (50% and 10% positive" in text for text in unweighted)


def test_columns_in_no_channel():
    features = FEATURES | {name: Feature(name=name, dtype="int32", cardinality=9) for name in ("city", "hour", "text")}
    encoders = {
        "city": Vocabulary("city", pa.array(["a"]), np.array([1])),
        "hour": Vocabulary("hour", pa.array(["a"]), np.array([1])),
    }
    (text,) = found(spec_of(features))
    assert text == "column in no channel: city (int32), hour (int32), text (int32); no model sees it; see channel_spec"
    (text,) = found(spec_of(features), encoders=encoders)
    assert text.startswith("column in no channel: city (int32), hour (int32);")
    crosses = encoders | {"cross": CrossedIds((CrossInput("city", True), CrossInput("x", False)), encoders["hour"])}
    (text,) = found(spec_of(features), encoders=crosses)
    assert text.startswith("column in no channel: hour (int32);")
    assert found(spec_of(features), encoders=encoders, on_purpose=["city", "hour"]) == []


def test_columns_that_a_raw_specification_uses():
    rules = {"a": CrossRule(("b", "c"), HashRule(9)), "d": SharedVocabularyRule("e"), "f": KeepRule()}
    features = {name: RawFeature(Feature(name=name), name, rule) for name, rule in rules.items()}
    spec = RawSpec(Path(), {}, features, {}, None, {}, keep=("g",))
    assert used_columns(spec) == {"b", "c", "e", "g"}


def test_unseen_ids_come_from_the_encoders_of_older_datasets():
    features = {name: Feature(name=name, dtype="int32", cardinality=100) for name in ("user", "items")}
    vocabulary = Vocabulary("user", pa.array(["a"]), np.array([1]), oov_buckets=3)
    spec = spec_of(FEATURES | features)
    assert unseen_ids(spec) == {}
    assert unseen_ids(spec, {"user": vocabulary, "price": Numerical("price")}) == {"user": range(2, 5)}
    assert unseen_ids(spec_of()) == {"user": range(2, 3), "items": range(2, 4)}


def test_check_dataset_prints_notes(tmp_path, capsys):
    for mapping in ("train", "test"):
        user = np.full(ROWS, 2 if mapping == "test" else 4, np.int32)
        pq.write_table(usual(user=user), tmp_path / f"{mapping}.parquet")
    features = FEATURES | {"user": Feature(name="user", dtype="int32", cardinality=100)}
    sources = {name: (Chunk("parquet", tuple(FEATURES), (f"{name}.parquet",)),) for name in ("train", "test")}
    spec_of(features).with_sources(sources, tmp_path).write(tmp_path / "feature_spec.yaml")
    save_encoders({"user": Vocabulary("user", pa.array(["a"]), np.array([1]))}, tmp_path / "workflow")
    assert check_dataset.main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "note: constant feature: train, user (always 4); nothing can be learned from it; leave it out" in lines
    assert any("mostly unseen in training: test, user (100.0% of 4,000)" in line for line in lines)
    assert lines[-1] == "no findings besides 2 notes"


GROUPED = spec_of(FEATURES | {"page": Feature(name="page", dtype="int64")}, CHANNELS | {"map": ("page",)})


def pages(first: int, last: int) -> pa.Array:
    return pa.array(np.random.default_rng(first).permutation(np.resize(np.arange(first, last), ROWS)), pa.int64())


@pytest.mark.parametrize("sampled", [findings.SAMPLED_GROUPS, 64])
def test_groups_in_several_mappings_are_reported(monkeypatch, sampled):
    monkeypatch.setattr(findings, "SAMPLED_GROUPS", sampled)
    train, test = usual().append_column("page", pages(0, 1000)), usual().append_column("page", pages(800, 1600))
    (line,) = found(GROUPED, train, test)
    assert line.startswith("groups with rows in several mappings: train and test, page (")
    share = float(line.partition("page (")[2].partition("%")[0])
    # 200 of 800; the standard error of a share of at least 30 sampled groups is 8%.
    assert share == 25 if sampled > 1000 else 0 < share < 57


def test_groups_of_one_mapping_each_and_users_are_not_reported():
    apart = usual().append_column("page", pages(0, 1000)), usual().append_column("page", pages(1000, 1600))
    assert found(GROUPED, *apart) == []
    assert found(spec_of(channels=CHANNELS | {"map": ("user",)})) == []
