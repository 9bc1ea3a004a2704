"""Raw specifications: what they mean, and what is reported where."""

import json
import re
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from data.spec.feature_spec import FeatureSpecError
from data.spec.raw.document import KEYS_OF, STEPS
from data.spec.raw.reader import plain_document, raw_spec_from_dict, read_raw_spec
from data.spec.raw.spec import (
    BoundariesRule,
    Condition,
    Count,
    CrossRule,
    HashRule,
    History,
    IdentityRule,
    KeepRule,
    LabelMapRule,
    LastSplit,
    NumberRule,
    NumberStep,
    QuantilesRule,
    RandomSplit,
    RawChunk,
    RawSpec,
    Reading,
    SharedVocabularyRule,
    TargetRule,
    ThresholdRule,
    TimeSplit,
    TimestampRule,
    VocabularyRule,
)
from tests.data.raw_spec_samples import raw_document, sequential_raw
from tests.data.spec_strategies import SCALARS, damaged

EXAMPLE = """
feature_spec:
  click: {dtype: float32}
  item: {column: item_id, encode: {vocabulary: {min_count: 5}}}
  clicked: {encode: {vocabulary_of: item}, separator: " ", max_hotness: 50, keep: last}
  seen: {history: {of: item, by: user_id, order: ts, where: click, last: 50}, encode: {vocabulary_of: item}}
  hour: {column: ts, encode: {timestamp: hour}}
  site_by_hour: {encode: {cross: [site_id, hour], hash: 100000}}
  price: {encode: [{fill: median}, log1p, standardize]}
source_spec:
  logs:
    - {type: csv, header: true, files: ["logs/*.csv.gz"], null: [NA]}
split: {from: logs, time: ts, valid_from: 2014-10-29, test_from: 2014-10-30}
channel_spec:
  onehot_categorical: [item, hour, site_by_hour]
  multihot_categorical: [clicked, seen]
  numerical: [price]
  label: [click]
"""


def test_example(tmp_path: Path) -> None:
    path = tmp_path / "feature_spec.yaml"
    path.write_text(EXAMPLE, encoding="utf-8")
    spec = read_raw_spec(path)
    assert spec.readings == {
        "click": Reading("click", "click", "float32"),
        "item_id": Reading("item_id", "item_id"),
        "clicked": Reading("clicked", "clicked", is_list=True, separator=" "),
        "ts": Reading("ts", "ts", "timestamp"),
        "price": Reading("price", "price", "float64"),
        "site_id": Reading("site_id", "site_id"),
        "user_id": Reading("user_id", "user_id"),
        "seen": Reading("seen", "seen", is_list=True),
    }
    seen = spec.features["seen"]
    assert seen.computed == History("item_id", "user_id", "ts", Condition("click", "!=", 0.0), 50)
    assert (seen.rule, seen.reading, seen.feature.max_hotness) == (SharedVocabularyRule("item"), "seen", 50)
    assert spec.features["site_by_hour"].rule == CrossRule(("site_id", "hour"), HashRule(100000))
    assert spec.features["site_by_hour"].reading is None
    assert spec.features["item"].rule == VocabularyRule(min_count=5)
    steps = NumberStep("fill", fill="median"), NumberStep("log1p"), NumberStep("standardize")
    assert spec.features["price"].rule == NumberRule(steps)
    assert spec.split == TimeSplit(("logs",), "ts", 1414540800_000_000, 1414627200_000_000)
    assert spec.sources["logs"][0].null == ("NA",)


def spec_of(folder: Path, features: dict[str, Any], channels: dict[str, list[str]], **sections: Any) -> RawSpec:
    """A specification of parquet files with a label `y` and some features."""
    parquet = [{"type": "parquet", "files": ["a"]}]
    document = {
        "feature_spec": {"y": {}} | features,
        "source_spec": {"train": parquet, "test": parquet},
        "channel_spec": {"label": ["y"]} | channels,
    }
    return raw_spec_from_dict(document | sections, folder)


ONEHOT, MULTIHOT, NUMERICAL = "onehot_categorical", "multihot_categorical", "numerical"
ENCODINGS = [
    (None, VocabularyRule(), "string"),
    ("vocabulary", VocabularyRule(), "string"),
    ({"vocabulary": None}, VocabularyRule(), "string"),
    ({"vocabulary": {"max_size": 9, "oov_buckets": 2}}, VocabularyRule(1, 9, 2), "string"),
    ({"hash": 10}, HashRule(10), "string"),
    ({"boundaries": [1, 2.5]}, BoundariesRule((1.0, 2.5)), "float64"),
    ({"quantiles": 4}, QuantilesRule(4), "float64"),
    ({"timestamp": "day"}, TimestampRule("day"), "timestamp"),
]


@pytest.mark.parametrize(("encode", "rule", "dtype"), ENCODINGS)
@pytest.mark.parametrize("channel", [ONEHOT, MULTIHOT])
def test_encodings_of_ids(channel: str, encode: Any, rule: object, dtype: str, tmp_path: Path) -> None:
    spec = spec_of(tmp_path, {"x": {} if encode is None else {"encode": encode}}, {channel: ["x"]})
    assert spec.features["x"].rule == rule
    assert (spec.readings["x"].dtype, spec.readings["x"].is_list) == (dtype, channel == MULTIHOT)


def test_identity(tmp_path: Path) -> None:
    raw = spec_of(tmp_path, {"x": {"encode": "identity", "cardinality": 7}}, {ONEHOT: ["x"]}).features["x"]
    assert (raw.rule, raw.feature.cardinality) == (IdentityRule(), 7)


FILL, LOG, SCALE = NumberStep("fill", fill=0.0), NumberStep("log1p"), NumberStep("standardize")
NUMBERS = [
    ({}, NumberRule()),
    ({"encode": "log1p"}, NumberRule((LOG,))),
    ({"encode": {"clip": [None, 3]}}, NumberRule((NumberStep("clip", high=3.0),))),
    ({"encode": ["minmax"]}, NumberRule((NumberStep("minmax"),))),
    ({"encode": [{"fill": 0}, {"log1p": None}, "standardize"]}, NumberRule((FILL, LOG, SCALE))),
    ({"encode": {"steps": [{"fill": 0}, "log1p"]}}, NumberRule((FILL, LOG))),
    ({"encode": {"fill": 0}, "indicator": "no_x"}, NumberRule((FILL,), "no_x")),
    ({"encode": {"fill": 0, "indicator": "no_x"}}, NumberRule((FILL,), "no_x")),
    ({"encode": {"steps": [{"fill": 0}], "indicator": "no_x"}}, NumberRule((FILL,), "no_x")),
]


@pytest.mark.parametrize(("keys", "rule"), NUMBERS)
def test_encodings_of_numbers(keys: dict[str, Any], rule: NumberRule, tmp_path: Path) -> None:
    names = ["x"] + (["no_x"] if rule.indicator else [])
    spec = spec_of(tmp_path, {"x": keys}, {NUMERICAL: names})
    assert (spec.features["x"].rule, spec.readings["x"].dtype) == (rule, "float64")
    assert spec.channels[NUMERICAL] == tuple(names)


def test_numbers_in_lists(tmp_path: Path) -> None:
    features = {"x": {"max_hotness": 3, "encode": ["log1p"]}}
    spec = spec_of(tmp_path, features | {"a": {}}, {ONEHOT: ["a"]})
    assert spec.readings["x"] == Reading("x", "x", "float64", is_list=True)


def test_target_statistics(tmp_path: Path) -> None:
    keys = {"target": {"label": "y", "outputs": ["rate", "count"]}}
    spec = spec_of(tmp_path, {"x": {"encode": keys}}, {NUMERICAL: ["rate", "count"]})
    assert spec.features["x"].rule == TargetRule("y", 20.0, 5, "rate", "count")
    spec = spec_of(tmp_path, {"x": {"encode": {"target": {"label": "y"}}}}, {NUMERICAL: ["x"]})
    assert spec.features["x"].rule == TargetRule("y", mean="x")


def test_labels(tmp_path: Path) -> None:
    features = {
        "y": {"encode": {"map": {"yes": 1, "no": 0}}},
        "z": {"column": "rating", "encode": {"threshold": ">= 4"}},
        "rating": {"task": "regression", "dtype": "float32"},
        "a": {},
    }
    labels = ["y", "z", "rating"]
    spec = spec_of(tmp_path, features, {ONEHOT: ["a"], "label": labels})
    rules = [LabelMapRule({"yes": 1.0, "no": 0.0}), ThresholdRule(">=", 4.0), KeepRule()]
    assert [spec.features[name].rule for name in labels] == rules
    assert [spec.features[name].reading for name in labels] == ["y", "rating:float64", "rating:float32"]


def test_columns_that_are_read_in_several_ways(tmp_path: Path) -> None:
    features = {
        "age": {"dtype": "float32"},
        "age_value": {"column": "age", "dtype": "int64"},
        "age_text": {"column": "age"},
        "ages": {"column": "age"},
    }
    channels = {NUMERICAL: ["age"], ONEHOT: ["age_value", "age_text"], MULTIHOT: ["ages"]}
    spec = spec_of(tmp_path, features, channels, where="age > 3", keep=["age"])
    readings = {name: raw.reading for name, raw in spec.features.items()}
    assert readings == {
        "y": "y",
        "age": "age:float32",
        "age_value": "age:int64",
        "age_text": "age:string",
        "ages": "age:list of string",
    }
    assert (spec.where, spec.keep) == (Condition("age:float32", ">", 3.0), ("age:string",))


SECONDS = 1414584000  # 2014-10-29 12:00 in UTC
CONDITIONS = [
    ("y", Condition("y", "!=", 0.0)),
    ("clicked", Condition("clicked", "!=", 0.0)),
    ("rating>=4", Condition("rating", ">=", 4.0)),
    ("rating < -1.5e2", Condition("rating", "<", -150.0)),
    ("good", Condition("rating", ">=", 4.0)),
    ("sold", Condition("sold", "==", "yes")),
    ("sold == '?'", Condition("sold", "==", "?")),
    ("country == US", Condition("country", "==", "US")),
    ('country != "1"', Condition("country", "!=", "1")),
    ("country == 'a == b'", Condition("country", "==", "a == b")),
    ({"column": "country", "op": "==", "value": "US"}, Condition("country", "==", "US")),
    ({"column": "rating", "op": "!=", "value": 3}, Condition("rating", "!=", 3.0)),
    ({"column": "ts", "op": "<", "value": date(2014, 10, 29)}, Condition("ts", "<", 1414540800_000_000)),
    ("ts >= 2014-10-29 12:00", Condition("ts", ">=", SECONDS * 1_000_000)),
    ("ts >= 2014-10-29T14:00:00+02:00", Condition("ts", ">=", SECONDS * 1_000_000)),
    ("hour == '2014-10-29'", Condition("ts", "==", 1414540800_000_000)),
    ("new == true", Condition("new", "==", 1.0)),
    ("a b == 1", Condition("a b", "==", 1.0)),
]


@pytest.mark.parametrize(("written", "condition"), CONDITIONS)
def test_conditions(written: Any, condition: Condition, tmp_path: Path) -> None:
    features = {
        "good": {"column": "rating", "encode": {"threshold": ">= 4"}},
        "sold": {"encode": {"map": {"yes": 1, "no": 0, "?": 0}}},
        "country": {},
        "hour": {"column": "ts", "encode": {"timestamp": "hour"}},
        "new": {"dtype": "bool"},
    }
    spec = spec_of(tmp_path, features, {"label": ["y", "good", "sold"], ONEHOT: ["country", "hour"]}, where=written)
    assert spec.where == condition


TIMES = [
    ({"test_from": "2014-10-30"}, {}, "timestamp", None, 1414627200_000_000),
    ({"test_from": datetime(2014, 10, 30, 1)}, {}, "timestamp", None, 1414630800_000_000),
    ({"test_from": 20141030}, {}, "float64", None, 20141030),
    ({"test_from": 20141030, "valid_from": 20141029}, {"t": {"dtype": "int64"}}, "int64", 20141029, 20141030),
    ({"test_from": SECONDS}, {"t": {"dtype": "timestamp", "unit": "s"}}, "timestamp", None, SECONDS * 1_000_000),
    ({"test_from": SECONDS * 1000, "unit": "ms"}, {}, "timestamp", None, SECONDS * 1_000_000),
    ({"test_from": "2014-10-30"}, {"s": {"column": "t", "unit": "s"}}, "timestamp", None, 1414627200_000_000),
]


@pytest.mark.parametrize(("keys", "features", "dtype", "valid", "test"), TIMES)
def test_splits_by_time(
    keys: dict[str, Any], features: Any, dtype: str, valid: float | None, test: float, tmp_path: Path
) -> None:
    logs = {"logs": [{"type": "parquet", "files": ["a"]}]}
    split = {"from": "logs", "time": "t"} | keys
    spec = spec_of(tmp_path, {"a": {}} | features, {ONEHOT: ["a"]}, source_spec=logs, split=split)
    assert spec.split == TimeSplit(("logs",), "t", valid, test)
    assert spec.readings["t"].dtype == dtype
    stated = features.get("t", {}).get("unit") or features.get("s", {}).get("unit") or keys.get("unit")
    assert spec.readings["t"].unit == stated


def test_a_time_split_beside_a_test_file(tmp_path: Path) -> None:
    parquet = [{"type": "parquet", "files": ["a"]}]
    split = {"from": "logs", "time": "t", "valid_from": "2014-10-30"}
    sources = {"logs": parquet, "test": parquet}
    spec = spec_of(tmp_path, {"a": {}}, {ONEHOT: ["a"]}, source_spec=sources, split=split)
    assert spec.split == TimeSplit(("logs",), "t", 1414627200_000_000, float("inf"))


SPLITS = [
    ({"from": "train", "random": {"valid": 0.1}}, RandomSplit(("train",), {"valid": 0.1}), ()),
    ({"from": "train", "random": {"valid": 0.1}, "by": "user", "key": "a"},
     RandomSplit(("train",), {"valid": 0.1}, "user"), ("a",)),
    ({"from": ["train", "test"], "last": {"valid": 0.1, "test": 0.2}},
     LastSplit(("train", "test"), {"valid": 0.1, "test": 0.2}), ()),
    ({"from": "test", "random": {"valid": 0.5, "test": 0.5}}, RandomSplit(("test",), {"valid": 0.5, "test": 0.5}), ()),
    ({"key": ["user", "a"]}, None, ("user", "a")),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "split", "key"), SPLITS)
def test_other_splits(keys: Any, split: Any, key: tuple[str, ...], tmp_path: Path) -> None:
    spec = spec_of(tmp_path, {"a": {}}, {ONEHOT: ["a"]}, split=keys, seed=4)
    assert (spec.split, spec.row_key, spec.seed) == (split, key, 4)


WINDOWS = [("7d", 7 * 86400), ("12h", 12 * 3600), ("30m", 1800), ("60s", 60)]


@pytest.mark.parametrize(("window", "seconds"), WINDOWS)
def test_windows(window: str, seconds: int, tmp_path: Path) -> None:
    count = {"of": "a", "by": "user", "order": "ts", "window": window, "where": "y"}
    raw = spec_of(tmp_path, {"n": {"count": count}}, {NUMERICAL: ["n"]}).features["n"]
    assert raw.computed == Count("a", "user", "ts", Condition("y", "!=", 0.0), seconds * 1_000_000)


def test_counts_in_units_of_a_number(tmp_path: Path) -> None:
    features = {"t": {"dtype": "int64"}, "n": {"count": {"by": "user", "order": "t", "window": 100}}}
    spec = spec_of(tmp_path, features, {NUMERICAL: ["n"]})
    assert spec.features["n"].computed == Count(None, "user", "t", None, 100)
    assert spec.readings["n"] == Reading("n", "n", "int64")


def test_a_chain_of_shared_vocabularies_names_its_end(tmp_path: Path) -> None:
    features = {
        "a": {"dtype": "int64"},
        "b": {"encode": {"vocabulary_of": "a"}},
        "c": {"encode": {"vocabulary_of": "b"}},
    }
    spec = spec_of(tmp_path, features, {ONEHOT: ["a", "b"], MULTIHOT: ["c"]})
    assert spec.features["c"].rule == SharedVocabularyRule("a")
    assert spec.readings["c"] == Reading("c", "c", "int64", is_list=True)


def test_crosses_of_crosses(tmp_path: Path) -> None:
    features = {"ab": {"encode": {"cross": ["a", "b"]}}, "abc": {"encode": {"cross": ["ab", "c"], "hash": 9}}}
    spec = spec_of(tmp_path, features, {ONEHOT: ["ab", "abc"]})
    assert spec.features["abc"].rule == CrossRule(("ab", "c"), HashRule(9))
    assert spec.features["ab"].rule == CrossRule(("a", "b"), VocabularyRule())
    assert set(spec.readings) == {"y", "a", "b", "c"}


def test_crosses_of_lists(tmp_path: Path) -> None:
    features: dict[str, dict[str, Any]] = {
        "tag": {"column": "tags", "separator": "|"},
        "weekday": {"column": "ts", "encode": {"timestamp": "weekday"}},
        "seen": {"history": {"of": "item", "by": "user", "order": "ts", "last": 5}},
        "of_ids": {"encode": {"cross": ["item", "tag"], "hash": 9}, "max_hotness": 4, "keep": "last"},
        "of_raw": {"encode": {"cross": ["tags", "item"]}},
        "of_cross": {"encode": {"cross": ["weekday", "of_raw"]}},
        "of_history": {"encode": {"cross": ["seen", "item"], "hash": 9}},
        "as_text": {"encode": {"cross": ["tags", "item"], "hash": 9}},
    }
    crosses = ["of_ids", "of_raw", "of_history"]
    spec = spec_of(tmp_path, features, {ONEHOT: ["as_text"], MULTIHOT: ["tag", "seen", *crosses]})
    assert spec.features["of_ids"].rule == CrossRule(("item", "tag"), HashRule(9), "tag")
    assert (spec.features["of_ids"].feature.max_hotness, spec.features["of_ids"].keep) == (4, "last")
    assert spec.features["of_history"].rule == CrossRule(("seen", "item"), HashRule(9), "seen")
    assert spec.features["of_cross"].rule == CrossRule(("weekday", "of_raw"), VocabularyRule(), "of_raw")
    # The same column is a list in a cross that is one, and text in another.
    lists, text = "tags:list of string", "tags:string"
    assert spec.features["of_raw"].rule == CrossRule((lists, "item"), VocabularyRule(), lists)
    assert spec.features["as_text"].rule == CrossRule((text, "item"), HashRule(9))
    assert spec.readings[lists] == Reading(lists, "tags", is_list=True, separator="|")
    assert spec.features["tag"].reading == lists and not spec.readings[text].is_list
    assert {name for name in spec.features if spec.is_list(name)} == {"tag", "seen", "of_cross", *crosses}


def test_a_raw_list_is_crossed_as_keys(tmp_path: Path) -> None:
    features = {"size": {"column": "sizes", "separator": "|", "encode": {"quantiles": 4}}}
    cross = {"encode": {"cross": ["sizes", "item"], "hash": 9}, "max_hotness": 2}
    spec = spec_of(tmp_path, features | {"x": cross, "y": {}}, {MULTIHOT: ["size"]})
    assert spec.features["x"].rule == CrossRule(("sizes:list of string", "item"), HashRule(9), "sizes:list of string")
    assert spec.readings["sizes:list of float64"].separator == spec.readings["sizes:list of string"].separator == "|"


def test_chunks(tmp_path: Path) -> None:
    text = EXAMPLE.replace(
        'header: true, files: ["logs/*.csv.gz"], null: [NA]',
        "features: [click, x], files: [a.tsv, b], separator: \"\\t\", quote: , null: '?', trim: true",
    )
    path = tmp_path / "feature_spec.yaml"
    path.write_text(text, encoding="utf-8")
    chunk = RawChunk("csv", ("a.tsv", "b"), ("click", "x"), False, "\t", None, ("?",), True)
    assert read_raw_spec(path).sources == {"logs": (chunk,)}


def check_meaning(spec: RawSpec) -> None:
    """Checks that every name in a specification refers to something."""
    assert all(name == reading.name for name, reading in spec.readings.items())
    for raw in spec.features.values():
        assert (raw.reading is None) == isinstance(raw.rule, CrossRule)
        assert raw.reading is None or raw.reading in spec.readings
        if isinstance(raw.rule, CrossRule):
            assert all(name in spec.features or name in spec.readings for name in raw.rule.inputs)
            assert raw.rule.list_input is None or raw.rule.list_input in raw.rule.inputs
        if isinstance(raw.rule, SharedVocabularyRule):
            assert not isinstance(spec.features[raw.rule.feature].rule, SharedVocabularyRule)
        if isinstance(raw.computed, History | Count):
            assert {raw.computed.by, raw.computed.order, raw.computed.of} <= {*spec.readings, None}
    assert spec.where is None or spec.where.reading in spec.readings
    assert spec.sample_weight is None or spec.sample_weight in spec.readings
    assert spec.split is None or isinstance(spec.split, RandomSplit) or spec.split.reading in spec.readings
    assert set(spec.keep) <= set(spec.readings)


def read(document: Any, folder: Path) -> RawSpec | FeatureSpecError:
    """Returns the specification or the error; any other exception fails the test."""
    try:
        spec = raw_spec_from_dict(document, folder)
    except FeatureSpecError as error:
        assert error.problems
        return error
    check_meaning(spec)
    return spec


def test_everything_at_once(tmp_path: Path) -> None:
    assert isinstance(read(raw_document(), tmp_path), RawSpec)


def test_a_document_survives_json(tmp_path: Path) -> None:
    stored = json.loads(json.dumps(plain_document(raw_document())))
    assert raw_spec_from_dict(stored, tmp_path) == raw_spec_from_dict(raw_document(), tmp_path)


NAMES = st.sampled_from([*raw_document()["feature_spec"], "item_id", "ts", "price_missing", "ctr", "logs", "train"])
RULES = st.sampled_from([keys["encode"] for keys in raw_document()["feature_spec"].values() if "encode" in keys])
VALUES = st.recursive(
    SCALARS | NAMES | RULES | st.sampled_from(["string", "timestamp", "csv", ">= 4", "item == 'a'", "7d", "last"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS | NAMES, inner, max_size=3),
    max_leaves=6,
)


@given(
    document=damaged(raw_document, VALUES, SCALARS | NAMES) | damaged(sequential_raw, VALUES, SCALARS | NAMES) | VALUES
)
@settings(max_examples=500, deadline=None)
def test_damaged_documents(document: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    read(document, tmp_path_factory.getbasetemp())


PAGE = (Path(__file__).parents[2] / "docs" / "features.md").read_text(encoding="utf-8")
CHAPTER = PAGE.split("## Raw specifications")[1]


def test_every_key_is_documented() -> None:
    keys = {key for _, keys in KEYS_OF.values() for key in keys}
    assert [key for key in sorted(keys) if not re.search(rf"[`{{ ]{key}\b", PAGE)] == []


def test_the_documented_example() -> None:
    example = yaml.safe_load(CHAPTER.split("```yaml")[1].split("```")[0])
    assert example == yaml.safe_load(EXAMPLE.replace(", null: [NA]", ""))


def test_documented_features(tmp_path: Path) -> None:
    features = re.findall(r"^\|.*\| `(\w+: {.*})` \|$", CHAPTER, re.MULTILINE)
    assert len(features) == 16
    for text in features:
        ((name, keys),) = yaml.safe_load(text.replace("\\|", "|")).items()
        channel = "label" if "given" in keys else MULTIHOT if "separator" in keys else ONEHOT
        names = [name]
        if "indicator" in keys:
            channel, names = NUMERICAL, [name, keys["indicator"]]
        keys |= {"encode": {"timestamp": "day"}} if keys.get("dtype") == "timestamp" else {}
        channels: dict[str, list[str]] = {"label": ["click"], ONEHOT: ["x"]}
        channels[channel] = [*channels.get(channel, []), *names]
        others = {keys["weights"]: {"separator": " "}} if "weights" in keys else {}
        spec_of(tmp_path, {"click": {}, "x": {}, name: keys} | others, channels)


def test_documented_encodings(tmp_path: Path) -> None:
    encodings = re.findall(r"^\|.*\| `({(?!from|key).*}|\w+)` \|$", CHAPTER, re.MULTILINE)
    assert len(encodings) == 13
    for text in encodings:
        encode = yaml.safe_load(text)
        is_number = next(iter(encode)) in STEPS if isinstance(encode, dict) else encode in STEPS
        keys = {"encode": encode} | ({"cardinality": 9} if encode == "identity" else {})
        channels = {NUMERICAL if is_number else ONEHOT: ["x"], MULTIHOT: ["item"]}
        spec_of(tmp_path, {"item": {}, "x": keys}, channels)
