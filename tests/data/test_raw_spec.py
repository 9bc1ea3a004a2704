"""Raw specifications: what they mean, and what is reported where."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.spec.feature_spec import FeatureSpecError
from data.spec.raw_reader import plain_document, raw_spec_from_dict, read_raw_spec
from data.spec.raw_spec import (
    Condition,
    Count,
    CrossRule,
    HashRule,
    History,
    NumberRule,
    NumberStep,
    RandomSplit,
    RawSpec,
    Reading,
    SharedVocabularyRule,
    TimeSplit,
    VocabularyRule,
)
from tests.data.raw_spec_samples import raw_document
from tests.data.spec_strategies import SCALARS

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


def check_meaning(spec: RawSpec) -> None:
    """Checks that every name in a specification refers to something."""
    assert all(name == reading.name for name, reading in spec.readings.items())
    for raw in spec.features.values():
        assert (raw.reading is None) == isinstance(raw.rule, CrossRule)
        assert raw.reading is None or raw.reading in spec.readings
        if isinstance(raw.rule, CrossRule):
            assert all(name in spec.features or name in spec.readings for name in raw.rule.inputs)
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
ENCODINGS = st.sampled_from([keys["encode"] for keys in raw_document()["feature_spec"].values() if "encode" in keys])
VALUES = st.recursive(
    SCALARS | NAMES | ENCODINGS | st.sampled_from(["string", "timestamp", "csv", ">= 4", "item == 'a'", "7d", "last"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS | NAMES, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def damaged_raw_documents(draw: Any) -> Any:
    """The valid document with other values at some places."""
    damaged = raw_document()
    for _ in range(draw(st.integers(1, 4))):
        node: Any = damaged
        while True:
            key = draw(st.sampled_from(range(len(node)) if isinstance(node, list) else list(node)))
            if not isinstance(node[key], dict | list) or not node[key] or draw(st.integers(0, 4)) == 0:
                break
            node = node[key]
        change = draw(st.sampled_from(["replace", "remove", "rename", "copy"]))
        if change == "replace" or (change == "rename" and isinstance(node, list)):
            node[key] = draw(VALUES)
        elif change == "copy":
            node[key] = copy.deepcopy(draw(st.sampled_from(list(damaged.values()) or [None])))
        else:
            value = node.pop(key)
            if change == "rename":
                node[draw(SCALARS | NAMES)] = value
        if not damaged:
            break
    return damaged


@given(document=damaged_raw_documents() | VALUES)
@settings(max_examples=500, deadline=None)
def test_damaged_documents(document: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    read(document, tmp_path_factory.getbasetemp())
