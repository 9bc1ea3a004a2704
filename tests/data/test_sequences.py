"""Sequences of behavior: what a specification says of them, and the lists that a batch has."""

import copy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data.spec.columns import Domain, describe_column
from data.spec.embedding_sizes import default_dim, embedding_dims
from data.spec.feature_spec import FeatureSpec
from data.spec.features import Chunk, FeatureSequence
from gen_embedding_sizes import random_sizes, rule_sizes
from tests.data.sample_specs import GONE, changed, check_only_problem, document, problems_of

STEPS = {
    "clicked": {"cardinality": 100, "table": "item", "max_hotness": 5},
    "clicked_kind": {"cardinality": 9, "table": "kinds", "max_hotness": 5, "dtype": "int16"},
    "clicked_age": {"dtype": "float64"},
    "seen": {"cardinality": 7, "max_hotness": 2},
    "seen_score": {"max_hotness": 2},
}


def sequence_document() -> dict[str, Any]:
    """A valid specification with two sequences."""
    valid = document()
    valid["feature_spec"] |= {"item": {"cardinality": 100}, "kind": {"cardinality": 9, "table": "kinds"}}
    valid["feature_spec"] |= copy.deepcopy(STEPS)
    for chunks in valid["source_spec"].values():
        chunks[0]["features"] = [*chunks[0]["features"], "item", "kind", *STEPS]
    valid["channel_spec"]["onehot_categorical"] = ["user", "item", "kind"]
    valid["channel_spec"]["sequence"] = {
        "clicks": {"features": ["clicked", "clicked_kind", "clicked_age"], "target": ["kind", "item"]},
        "views": {"features": ["seen_score", "seen"], "encoder": "sum", "order": "newest_first"},
    }
    return valid


def test_sequences_of_a_specification(tmp_path: Path) -> None:
    spec = FeatureSpec.from_dict(sequence_document(), tmp_path)
    assert spec.sequences == (
        FeatureSequence("clicks", ("clicked", "clicked_kind", "clicked_age"), ("kind", "item"), "din", length=5),
        FeatureSequence("views", ("seen_score", "seen"), (), "sum", "newest_first", 2),
    )
    assert spec.channels["sequence"] == ("clicked", "clicked_kind", "clicked_age", "seen_score", "seen")
    assert {spec.channel_of[name] for name in STEPS} == {"sequence"}
    names = {
        field: [feature.name for feature in getattr(spec, field)]
        for field in ("id_lists", "number_lists", "categorical")
    }
    assert names == {
        "id_lists": ["genres", "clicked", "clicked_kind", "seen"],
        "number_lists": ["clicked_age", "seen_score"],
        "categorical": ["user", "item", "kind", "genres", "clicked", "clicked_kind", "seen"],
    }


@pytest.mark.parametrize("change", [{}, {"feature_spec.genres.weights": "note"}])
def test_encoders_by_default(tmp_path: Path, change: dict[str, Any]) -> None:
    """`din` if there is a target, otherwise `mean`; neither is written."""
    wrong = changed({"channel_spec.sequence.views.encoder": GONE, **change}, sequence_document())
    spec = FeatureSpec.from_dict(wrong, tmp_path)
    assert [sequence.encoder for sequence in spec.sequences] == ["din", "mean"]
    written = spec.to_dict()["channel_spec"]["sequence"]
    assert written == wrong["channel_spec"]["sequence"]


def test_round_trip(tmp_path: Path) -> None:
    spec = FeatureSpec.from_dict(sequence_document(), tmp_path)
    spec.write(tmp_path / "feature_spec.yaml")
    assert FeatureSpec.read(tmp_path / "feature_spec.yaml") == spec
    assert spec.to_dict()["channel_spec"]["sequence"] == sequence_document()["channel_spec"]["sequence"]
    chunk = Chunk("parquet", tuple(spec.features), ("part_0.parquet",))
    moved = spec.with_sources({"train": [chunk], "test": [chunk]}, tmp_path / "parquet")
    assert (moved.sequences, moved.channels, moved.folder) == (spec.sequences, spec.channels, tmp_path / "parquet")


@pytest.mark.parametrize("empty", [GONE, None, {}])
def test_without_sequences_nothing_is_written(tmp_path: Path, empty: object) -> None:
    spec = FeatureSpec.from_dict(changed({"channel_spec.sequence": empty}, sequence_document()), tmp_path)
    assert spec.sequences == () and spec.channels["sequence"] == ()
    assert "sequence" not in spec.to_dict()["channel_spec"]


def test_a_sequence_may_be_the_only_input(tmp_path: Path) -> None:
    valid = document()
    valid["feature_spec"] |= {"seen": {"cardinality": 7, "max_hotness": 2}}
    for chunks in valid["source_spec"].values():
        chunks[0]["features"] = [*chunks[0]["features"], "seen"]
    valid["channel_spec"] = {"label": ["click", "buy"], "sequence": {"views": {"features": ["seen"]}}}
    for key in ("embedding_dim", "cardinality", "max_hotness"):
        valid["feature_spec"]["user"].pop(key, None)
    assert [feature.name for feature in FeatureSpec.from_dict(valid, tmp_path).inputs] == ["seen"]


SEQUENCE = "channel_spec.sequence"
CLICKS, VIEWS = f"{SEQUENCE}.clicks", f"{SEQUENCE}.views"
ONE_PROBLEM: list[tuple[str, dict[str, Any], str]] = [
    (SEQUENCE, {SEQUENCE: ["clicked"]}, "write a mapping of sequences, such as {clicks: "),
    (CLICKS, {CLICKS: ["clicked"]}, "write a mapping, such as {features: [clicked_item]"),
    (f"{CLICKS}.feature", {f"{CLICKS}.feature": ["seen"]}, "unknown key of a sequence; did you mean 'features'?"),
    (f"{CLICKS}.features", {f"{CLICKS}.features": GONE}, "is missing; a sequence has features"),
    (f"{CLICKS}.features", {f"{CLICKS}.features": []}, "write a list, such as [clicked_item"),
    (f"{CLICKS}.features", {f"{CLICKS}.features": None}, "write a list, such as [clicked_item"),
    (f"{CLICKS}.features[1]", {f"{CLICKS}.features[1]": 3}, "put it in quotes"),
    (f"{SEQUENCE}[3]", {f"{SEQUENCE}": {3: {"features": ["seen"]}}}, "put it in quotes"),
    (f"{CLICKS}.encoder", {f"{CLICKS}.encoder": "dien"}, "write one of sum, mean, din, self_attention"),
    (f"{CLICKS}.order", {f"{CLICKS}.order": "oldest"}, "write one of newest_last, newest_first"),
    (f"{CLICKS}.features[3]", {f"{CLICKS}.features[3]": "clickd"},
     "'clickd' is not in feature_spec; did you mean 'clicked'?"),
    (f"{CLICKS}.features[3]", {f"{CLICKS}.features[3]": "clicked"},
     "'clicked' is already in channel_spec.sequence.clicks.features[0]; keep one"),
    (f"{VIEWS}.features[2]", {f"{VIEWS}.features[2]": "clicked_age"},
     "'clicked_age' is already in channel_spec.sequence.clicks.features[2]; keep one"),
    (f"{VIEWS}.features[2]", {f"{VIEWS}.features[2]": "age"}, "'age' is already in channel_spec.numerical[0]; keep"),
    (f"{VIEWS}.features", {f"{VIEWS}.features": ["seen_score"]},
     "has no feature with ids, whose embeddings an encoder combines; list one"),
    (f"{VIEWS}.encoder", {f"{VIEWS}.encoder": "din"}, "is din, which compares steps with a target; write sum or mean"),
    (f"{VIEWS}.encoder", {f"{VIEWS}.encoder": "self_attention", f"{VIEWS}.target": []}, "is self_attention, which"),
    # Targets.
    (f"{CLICKS}.target", {f"{CLICKS}.target": "item"}, "write a list, such as [item, category]"),
    (f"{CLICKS}.target[1]", {f"{CLICKS}.target[1]": "itme"},
     "'itme' is not in onehot_categorical; did you mean 'item'?"),
    (f"{CLICKS}.target[1]", {f"{CLICKS}.target[1]": "note"}, "'note' is not in onehot_categorical"),
    (f"{CLICKS}.target[1]", {f"{CLICKS}.target[1]": "clicked"}, "'clicked' is in sequence; name a feature of onehot"),
    (f"{CLICKS}.target[1]", {f"{CLICKS}.target[1]": "genres"}, "'genres' is in multihot_categorical; name a feature"),
    (f"{CLICKS}.target[1]", {f"{CLICKS}.target[1]": "user"},
     "'user' shares its table with no feature of the sequence; write `table: user` for one of them"),
    (f"{CLICKS}.target[1]", {f"{CLICKS}.target[1]": "kind"}, "'kind' has the same table as the target 'kind'; keep"),
    (f"{CLICKS}.target[0]", {"feature_spec.kind.wide": "only"}, "'kind' is in the wide part only, and a target needs"),
    (f"{CLICKS}.target[1]",
     {"feature_spec.seen": {"cardinality": 100, "table": "item", "max_hotness": 5}, f"{CLICKS}.features[3]": "seen",
      f"{VIEWS}": GONE},
     "'item' shares its table with 'clicked' and 'seen'; give one of these a table of its own"),
    (f"{VIEWS}.target[0]", {f"{VIEWS}.target": ["user"], "feature_spec.user.table": "people"},
     "'user' shares its table with no feature of the sequence; write `table: people` for one of them"),
    # Features.
    ("feature_spec.clicked.cardinality", {"feature_spec.clicked.cardinality": 99},
     "is 99, and 100 for 'item', which has the same table"),
    ("feature_spec.clicked_kind.embedding_dim",
     {"feature_spec.kind.embedding_dim": 4, "feature_spec.clicked_kind.embedding_dim": 5},
     "is 5, and 4 for 'kind', which has the same table; write the same for both"),
    ("feature_spec.clicked_kind.max_hotness", {"feature_spec.clicked_kind.max_hotness": 6},
     "is 6, and 5 for 'clicked' of the same sequence; write the same for both"),
    ("feature_spec.clicked_age.max_hotness", {"feature_spec.clicked_age.max_hotness": 4}, "is 4, and 5 for 'clicked'"),
    ("feature_spec.clicked.max_hotness", {"feature_spec.clicked.max_hotness": GONE},
     "is missing; write the most steps that one row has"),
    ("feature_spec.clicked.weights", {"feature_spec.clicked.weights": "note"},
     "is only for multihot_categorical; remove it, and list the weights as one more feature of the sequence"),
    ("feature_spec.clicked_age.table", {"feature_spec.clicked_age.table": "item"},
     "is only for ids; write the cardinality of the ids, or remove it"),
    ("feature_spec.clicked_age.unseen_value", {"feature_spec.clicked_age.unseen_value": 1.0},
     "is only for numerical features and the feature is in sequence; remove it"),
    ("feature_spec.clicked.wide", {"feature_spec.clicked.wide": "only"}, "is only, and an encoder of sequences needs"),
    ("feature_spec.clicked_kind.dtype", {"feature_spec.clicked_kind.dtype": "bool"}, "is bool but ids are integers"),
    ("feature_spec.clicked.dtype",
     {f"feature_spec.{name}.{key}": value for name in ("clicked", "item")
      for key, value in (("cardinality", 129), ("dtype", "int8")) if (name, key) != ("item", "dtype")},
     "is int8, which cannot hold ids up to 128"),
    ("feature_spec.clicked_age.dtype", {"feature_spec.clicked_age.dtype": "bool"}, "is bool, which only a binary"),
    ("feature_spec.clicked_age.task", {"feature_spec.clicked_age.task": "binary"}, "is only for labels"),
    ("feature_spec.clicked_age.role", {"feature_spec.clicked_age.role": "sample_weight", "feature_spec.weight": {}},
     "is sample_weight but the feature is in sequence"),
    ("feature_spec.genres.weights", {"feature_spec.genres.weights": "clicked_age"},
     "'clicked_age' is in sequence; name a column in no channel"),
    ("source_spec.valid", {"source_spec.valid[0].features": [*document()["source_spec"]["valid"][0]["features"],
                                                             "item", "kind", "clicked", "clicked_kind", "seen"]},
     "lacks clicked_age, seen_score; add to the features of a chunk, or remove from channel_spec"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "changes", "words"), ONE_PROBLEM, ids=[words for _, _, words in ONE_PROBLEM])
def test_mistakes(tmp_path: Path, path: str, changes: dict[str, Any], words: str) -> None:
    check_only_problem(problems_of(changed(changes, sequence_document()), tmp_path), path, words)


def test_columns_of_sequences(tmp_path: Path) -> None:
    spec = FeatureSpec.from_dict(sequence_document(), tmp_path)
    columns = {name: describe_column(spec, name) for name in STEPS}
    assert {name: column.type for name, column in columns.items()} == {
        "clicked": pa.list_(pa.int64()),
        "clicked_kind": pa.list_(pa.int16()),
        "clicked_age": pa.list_(pa.float64()),
        "seen": pa.list_(pa.int64()),
        "seen_score": pa.list_(pa.float32()),
    }
    assert columns["clicked"].domain == Domain(0, 99, is_whole=True)
    assert columns["seen_score"].domain == Domain()
    assert columns["clicked"].expected == 'a list of ids in [0, 100) such as "[1, 2]", int64'
    assert columns["seen_score"].expected == 'a list of finite numbers such as "[0.5, -1]", float32'
    first = {name: column.aligned_with.name if column.aligned_with else None for name, column in columns.items()}
    assert first == {
        "clicked": None, "clicked_kind": "clicked", "clicked_age": "clicked", "seen_score": None, "seen": "seen_score",
    }  # fmt: skip
    assert [column.longest for column in columns.values()] == [5, 5, 5, 2, 2]
    for stored, takes_ids, takes_numbers in (
        (pa.list_(pa.int32()), True, True),
        (pa.large_list(pa.float32()), True, True),
        (pa.list_(pa.bool_()), False, False),
        (pa.list_(pa.string()), False, False),
        (pa.int64(), False, False),
    ):
        assert columns["clicked"].accepts(stored) == takes_ids
        assert columns["clicked_age"].accepts(stored) == takes_numbers


def test_widths_of_sequences(tmp_path: Path) -> None:
    """A width given for one of the features with a table is that of all, also of a sequence's."""
    changes = {"feature_spec.clicked_kind.embedding_dim": 6}
    spec = FeatureSpec.from_dict(changed(changes, sequence_document()), tmp_path)
    widths = embedding_dims(spec)
    assert widths["kind"] == widths["clicked_kind"] == 6
    assert widths["item"] == widths["clicked"] == default_dim(100)
    assert widths["seen"] == default_dim(7)
    assert list(widths) == ["user", "item", "kind", "genres", "clicked", "clicked_kind", "seen"]
    (tmp_path / "embedding_sizes.json").write_text('{"clicked": 3}')
    assert embedding_dims(spec)["item"] == 3
    assert rule_sizes(spec, 256)["clicked_kind"] == 6
    assert list(random_sizes(spec, 8, 0)) == list(widths)
