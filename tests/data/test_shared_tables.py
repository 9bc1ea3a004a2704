"""Features that share an embedding table: one vocabulary, one width, and errors where they do not fit together."""

from collections import Counter
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

import preprocess
from data.encoding.encoder_files import load_encoders
from data.errors import DataError
from data.spec.embedding_sizes import default_dim, embedding_dims
from data.spec.feature_spec import FeatureSpec, FeatureSpecError
from data.spec.raw.reader import raw_spec_from_dict
from data.spec.raw.spec import QuantilesRule, SharedVocabularyRule, VocabularyRule
from tests.data.raw_spec_samples import raw_document
from tests.data.sample_specs import changed

SPEC = """
feature_spec:
  click: {dtype: float32}
  item: {encode: {vocabulary: {min_count: 2}}, embedding_dim: 4}
  ts: {dtype: int64}
  promoted: {table: item}
  clicked: {table: item, separator: " ", encode: {vocabulary: {min_count: 2}}}
  seen: {table: item, history: {of: item, by: user, order: ts, last: 3}}
  wished: {table: item, encode: {vocabulary_of: item}}
  both: {encode: {cross: [item, promoted], hash: 50}, wide: only}
source_spec:
  logs: [{type: csv, header: true, files: [logs.csv]}]
split: {from: logs, time: ts, test_from: 60}
channel_spec:
  onehot_categorical: [item, promoted, wished, both]
  multihot_categorical: [clicked, seen]
  label: [click]
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> tuple[pd.DataFrame, FeatureSpec]:
    """Raw rows, and the dataset made of them."""
    raw, output = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("out") / "data"
    rows = pd.DataFrame(
        {
            "click": [number % 2 for number in range(90)],
            "user": [number % 7 for number in range(90)],
            "ts": range(90),
            "item": [f"i{number * number % 11}" for number in range(90)],
            "promoted": [f"i{number % 5 + 8}" if number % 3 else None for number in range(90)],
            "clicked": [" ".join(f"i{(number + step) % 17}" for step in range(number % 4)) for number in range(90)],
            "wished": [f"w{number % 4}" for number in range(90)],
        }
    )
    rows.to_csv(raw / "logs.csv", index=False)
    (raw / "feature_spec.yaml").write_text(SPEC)
    assert preprocess.main(["--input", str(raw), "--output", str(output)]) == 0
    return rows, FeatureSpec.read(output / "feature_spec.yaml")


def read(spec: FeatureSpec, mapping: str) -> pd.DataFrame:
    return pd.concat([pq.read_table(file).to_pandas() for file in spec.files(mapping)], ignore_index=True)


def test_one_vocabulary_is_counted_over_all_of_them(dataset):
    rows, spec = dataset
    encoders = load_encoders(spec.folder / "workflow")
    values, encoded, in_train = encoders["item"].values.to_pylist(), read(spec, "train"), rows[:60]
    names = dict(enumerate(values, start=3))  # after padding, null, and unseen values
    counts = Counter(in_train["item"])
    counts.update(in_train["promoted"].dropna())
    counts.update(item for cell in in_train["clicked"] for item in cell.split())
    assert values == sorted((v for v, n in counts.items() if n >= 2), key=lambda value: (-counts[value], value))
    assert set(values) > set(in_train["item"])  # other features have added some
    for feature in ("item", "promoted"):
        assert [names.get(i) for i in encoded[feature]] == [v if v in values else None for v in in_train[feature]]
    lists = [[names.get(number) for number in cell] for cell in encoded["clicked"]]
    assert lists == [[v if v in values else None for v in cell.split()] for cell in in_train["clicked"]]
    assert set(encoded["wished"]) == {spec.features["item"].unseen_id}  # encoded with it, and not counted


def test_the_dataset_states_the_table(dataset):
    _, spec = dataset
    *features, both, clicked, seen = spec.onehot + spec.multihot
    features += [clicked, seen]
    tables = {feature.name: feature.table for feature in features}
    assert tables == {"item": None, "promoted": "item", "wished": "item", "clicked": "item", "seen": "item"}
    assert len({feature.cardinality for feature in features}) == 1
    assert {embedding_dims(spec)[feature.name] for feature in features} == {4}  # which is stated for one of them
    assert (both.table, both.wide, clicked.wide) == (None, "only", "too")


def test_rules_of_a_raw_specification(tmp_path):
    """`item` states its encoding; the others take it, and all but the history count."""
    document = raw_document()
    features = document["feature_spec"]
    features["promoted"] = {"table": "item"}
    features["clicked"] = {"table": "item", "separator": " "}
    features["seen"].pop("encode")
    features["seen"]["table"] = "item"
    features["other_price"] = {"table": "price_group", "dtype": "float64"}
    document["channel_spec"]["onehot_categorical"] += ["promoted", "other_price"]
    rules = {name: raw.rule for name, raw in raw_spec_from_dict(document, tmp_path).features.items()}
    assert rules["item"] == VocabularyRule(min_count=5)
    assert rules["promoted"] == rules["clicked"] == SharedVocabularyRule("item", is_counted=True)
    assert rules["seen"] == SharedVocabularyRule("item", is_counted=False)
    assert rules["price_group"] == QuantilesRule(10)
    assert rules["other_price"] == SharedVocabularyRule("price_group", is_counted=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"promoted": {"table": "item", "encode": {"hash": 10}}},
            "feature_spec.promoted.encode: differs from that of 'item', which has the same table 'item'",
        ),
        (
            {"promoted": {"table": "item", "embedding_dim": 8}},
            "feature_spec.promoted.embedding_dim: is 8, and 16 for 'item', which has the same table",
        ),
        ({"age": {"table": "item"}}, "feature_spec.age.table: is only for categorical features; remove it"),
    ],
)
def test_mistakes_in_a_raw_specification(tmp_path, changes, message):
    document = raw_document()
    document["feature_spec"] |= changes
    document["channel_spec"]["onehot_categorical"].append("promoted")
    document["feature_spec"].setdefault("promoted", {})
    with pytest.raises(FeatureSpecError) as caught:
        raw_spec_from_dict(document, tmp_path)
    assert any(problem.startswith(message) for problem in caught.value.problems), caught.value.problems


def sharing(folder: Path, **stated: int) -> FeatureSpec:
    """`user` has 100 ids, and `genres` has the same table."""
    changes = {f"feature_spec.{name}": value for name, value in stated.items()}
    same = {"feature_spec.genres.table": "user", "feature_spec.genres.cardinality": 100}
    return FeatureSpec.from_dict(changed(same | changes), folder)


def test_mistakes_in_an_encoded_specification(tmp_path):
    for key, value, found in (("cardinality", 101, 100), ("embedding_dim", 5, 4)):
        stated = {"user.embedding_dim": 4, f"genres.{key}": value}
        with pytest.raises(FeatureSpecError, match=f"genres.{key}: is {value}, and {found} for 'user', which has the"):
            sharing(tmp_path, **stated)
    with pytest.raises(FeatureSpecError, match="table: is only for categorical features"):
        FeatureSpec.from_dict(changed({"feature_spec.age.table": "user"}), tmp_path)


def test_a_width_of_one_feature_is_that_of_its_table(tmp_path):
    assert embedding_dims(sharing(tmp_path)) == {"user": default_dim(100), "genres": default_dim(100)}
    assert embedding_dims(sharing(tmp_path, **{"genres.embedding_dim": 9})) == {"user": 9, "genres": 9}
    sizes = tmp_path / "sizes.json"
    sizes.write_text('{"user": 3}')
    assert embedding_dims(sharing(tmp_path), sizes) == {"user": 3, "genres": 3}
    sizes.write_text('{"user": 3, "genres": 5}')
    with pytest.raises(DataError, match="sizes.json: 'genres' has width 5 and 'user' 3, but they share the table"):
        embedding_dims(sharing(tmp_path), sizes)
