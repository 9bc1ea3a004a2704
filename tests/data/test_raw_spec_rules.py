"""Mistakes in a raw specification: each is reported once, with its location and a fix."""

from pathlib import Path
from typing import Any

import pytest

from data.spec.feature_spec import FeatureSpec, FeatureSpecError
from data.spec.raw.reader import raw_spec_from_dict
from tests.data.raw_spec_samples import changed_raw, raw_problems
from tests.data.sample_specs import GONE, check_only_problem, document

F = "feature_spec"
REPORTED_WHERE_CHANGED = [
    # Keys and values.
    (f"{F}.click.colum", "x", "unknown key of a feature; did you mean 'column'?"),
    (f"{F}.click.role", "sample_weight", "at the top level: `sample_weight: COLUMN`"),
    (f"{F}.click.dtype", "str", "is the string 'str'; write one of string, timestamp, int8"),
    (f"{F}.click.column", 3, "write the name of a raw column, in quotes if it looks like a number"),
    (f"{F}.clicked.keep", "newest", "write one of first, last"),
    (f"{F}.clicked.separator", "", "write the separator of a list"),
    (f"{F}.item.encode", "vocabluary", "did you mean 'vocabulary'?"),
    (f"{F}.item.encode", "hash", "write {hash: 100000}, with the number of buckets"),
    (f"{F}.hour.encode", "hour", "write {timestamp: hour}"),
    (f"{F}.item.encode", {}, "names no encoding"),
    (f"{F}.item.encode.hsah", 10, "unknown key of encode; did you mean 'hash'?"),
    (f"{F}.item.encode.vocabulary.min_counts", 10, "unknown key of vocabulary; did you mean 'min_count'?"),
    (f"{F}.item.encode.vocabulary.min_count", 0, "write a whole number from 1"),
    (f"{F}.user.encode.hash", "1000", "is the string '1000'; write a whole number"),
    (f"{F}.hour.encode.timestamp", "month", "write one of hour, weekday, day"),
    (f"{F}.age_group.encode.boundaries", [1, 1], "do not ascend"),
    (f"{F}.age_group.encode.boundaries", [], "write a list of ascending numbers"),
    (f"{F}.age.encode.clip", [100, 0], "100 is not below 0"),
    (f"{F}.age.encode.clip", 100, "such as [0, 100]"),
    (f"{F}.price.encode[1]", {"fill": 0, "log1p": None}, "has 2 keys; write one step each"),
    (f"{F}.price.encode[0].fill", "zero", "write median, mean or a number"),
    (f"{F}.liked.encode.threshold", "4", 'write a comparison with a number, such as ">= 4"'),
    (f"{F}.sold.encode.map", {}, "write a mapping of texts"),
    (f"{F}.seen.history.last", GONE, "is missing from history"),
    (f"{F}.views.count.window", "7 days", "write a duration (7d, 12h, 30m, 60s)"),
    (f"{F}.seen.history.where", "click >", 'write a comparison, such as "rating >= 4"'),
    (f"{F}.item_rate.encode.target.label", GONE, "is missing from target"),
    ("where", {"column": "rating", "op": ">"}, "a condition has column, op and value"),
    ("where", {"column": "rating", "op": "=>", "value": 3}, "write one of ==, !=, <, <=, >, >= in quotes"),
    ("keep_negatives", 0, "write a fraction above 0, such as 0.1"),
    ("shuffle", "yes", "write true or false, without quotes"),
    ("seed", -1, "write a whole number from 0"),
    ("split.seed", 1, "write `seed:` at the top level"),
    ("split.valid_from", "yesterday", "write a date or time, such as 2014-10-29"),
    # Encodings, channels and types.
    (f"{F}.item.encode", {"hash": 10, "identity": None}, "combines hash, identity"),
    (f"{F}.price.encode", {"fill": 0, "log1p": None}, "write steps as a list in their order"),
    (f"{F}.site_by_hour.encode", {"cross": ["item", "hour"], "quantiles": 3}, "takes one of hash and vocabulary"),
    (f"{F}.item.encode", ["log1p"], "makes numbers, and the feature is in onehot_categorical"),
    (f"{F}.age.encode", {"quantiles": 4}, "does not make input numbers"),
    (f"{F}.age.encode", {"threshold": "> 3"}, "does not make input numbers"),
    (f"{F}.click.encode", ["log1p"], "is not for labels"),
    (f"{F}.note.encode", {"threshold": "> 3"}, "is for labels; list the feature in channel_spec.label"),
    (f"{F}.session.encode", {"hash": 10}, "groups rows by the raw value; remove it"),
    (f"{F}.price.encode", ["standardize", "minmax", {"fill": 0}], "scales twice"),
    (f"{F}.price.encode", [{"fill": 1}, {"fill": 2}], "fills missing values twice"),
    (f"{F}.item.dtype", "float64", "is float64, which the encoding does not take; write one of string, int64"),
    (f"{F}.price.dtype", "string", "is string, which the encoding does not take"),
    (f"{F}.clicked.dtype", "int64", "write one of string, or remove it"),
    (f"{F}.session.dtype", "float32", "write one of string, int8"),
    (f"{F}.sold.dtype", "int64", "write one of string, or remove it"),
    # Lists.
    (f"{F}.item.max_hotness", 3, "is only for multihot_categorical, and the feature is in onehot_categorical"),
    (f"{F}.price.separator", " ", "is only for multihot_categorical, and the feature is in numerical"),
    (f"{F}.clicked.separator", GONE, "is missing: CSV files hold lists as text"),
    (f"{F}.seen.max_hotness", 5, "is stated by history"),
    (f"{F}.note.keep", "last", "is only for lists"),
    (f"{F}.site_by_hour.keep", "last", "is only for multihot_categorical, and the feature is in onehot_categorical"),
    (f"{F}.clicked_by_slot.separator", " ", "is for values read from files, and those of encode.cross are not"),
    # Keys of one kind of encoding.
    (f"{F}.slot.cardinality", GONE, "is missing; write the largest id + 1"),
    (f"{F}.item.cardinality", 10, "is only for `encode: identity` and labels"),
    (f"{F}.age.embedding_dim", 10, "is only for categorical features"),
    (f"{F}.item.format", "%Y", "is for timestamps, and the encoding does not take them"),
    (f"{F}.hour.unit", "s", "is for numbers, and format for text"),
    (f"{F}.seen.column", "x", "is for values read from files, and those of history are not"),
    (f"{F}.site_by_hour.dtype", "string", "is for values read from files, and those of encode.cross are not"),
    (f"{F}.item.indicator", "x", "is only for input numbers with a fill"),
    # Names that rules add.
    # References.
    (f"{F}.clicked.encode.vocabulary_of", "itme", "'itme' is not in feature_spec; did you mean 'item'?"),
    (f"{F}.clicked.encode.vocabulary_of", "price", "'price' has no encoder of ids of one column"),
    (f"{F}.clicked.encode.vocabulary_of", "clicked", "depends on itself (clicked -> clicked)"),
    (f"{F}.site_by_hour.encode.cross[0]", "price", "'price' has no ids"),
    (f"{F}.site_by_hour.encode.cross[0]", "clicked",
     "'clicked' is a list, and the cross has an id for each item; list 'site_by_hour' in multihot_categorical"),
    (f"{F}.site_by_hour.encode.cross[0]", "clicked_by_slot", "'clicked_by_slot' is a list, and the cross has an id"),
    (f"{F}.clicked_by_slot.encode.cross[0]", "clicked_by_slot", "depends on itself through 'clicked_by_slot'"),
    (f"{F}.site_by_hour.encode.cross[0]", "ctr", "'ctr' is a number"),
    (f"{F}.site_by_hour.encode.cross[0]", "site_by_hour", "the cross depends on itself through 'site_by_hour'"),
    (f"{F}.item_rate.encode.target.label", "clik", "'clik' is not a label (channel_spec.label); did you mean"),
    (f"{F}.seen.history.of", "clicked", "'clicked' is a list; name a column with one value per row"),
    (f"{F}.seen.history.by", "views", "'views' is computed; name a raw column"),
    (f"{F}.seen.history.by", "site_by_hour", "'site_by_hour' is a cross; name a raw column"),
    (f"{F}.views.count.window", 7, "does not fit order 'ts', a timestamp; write a duration"),
    ("keep[0]", "item", "'item' is a feature; name its raw column, 'item_id'"),
    ("keep[0]", "ctr", "is stored as 'ctr', another column's name"),
    ("keep[0]", "a/b", "cannot be stored"),
    ("where", "ts >= 3", "compares 'ts', a timestamp, with a number; write a date"),
    ("where", "liked == 1", "'liked' is made from 'rating'; compare that, or write 'liked' alone for its positives"),
    ("where", "sold == 1", "'sold' is made from 'sold'"),
    ("where", "item_id < abc", "only == and != are defined"),
    # Mappings and files.
    ("split.from", "log", "'log' is not in source_spec; did you mean 'logs'?"),
    ("split.test_from", GONE, "is missing; write the first time of mapping test"),
    ("split.test_from", "2014-10-29", "is not later than valid_from"),
    ("split.by", "user_id", "is only for a split by random"),
    ("source_spec.logs[0].header", False, "is missing; write header: true"),
    ("source_spec.logs[0].features", ["a"], "is only for files without a header"),
    ("source_spec.logs[0].separator", "::", "write one character"),
    ("source_spec.logs[0].quote", ",", "is also the separator"),
    ("source_spec.logs[2].header", True, "is only for csv"),
    ("source_spec.logs[0].files[0]", "../logs", "leads out of the folder"),
    ("source_spec.logs[2].files[1]", "./more", "is already source_spec.logs[2].files[0]"),
    ("source_spec.train", [{"type": "parquet", "files": ["a"]}], "the split makes 'train' too"),
    ("channel_spec.numerical[0]", "viwes", "'viwes' is not in feature_spec; did you mean 'views'?"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "words"), REPORTED_WHERE_CHANGED)
def test_mistakes(path: str, value: Any, words: str, tmp_path: Path) -> None:
    check_only_problem(raw_problems(changed_raw({path: value}), tmp_path), path, words)


REPORTED_ELSEWHERE = [
    ("document.splitt", {"splitt": {}}, "unknown key of the specification; did you mean 'split'?"),
    (f"{F}.price.encode[1].log2", {f"{F}.price.encode[1]": {"log2": None}},
     "unknown key of a step; did you mean 'log1p'"),
    (f"{F}.clicked_by_slot.encode.cross[1]", {f"{F}.clicked_by_slot.encode.cross[0]": "seen"},
     "'clicked' is a list, and so is 'seen': nothing says which of their items belong together; keep one of them"),
    (f"{F}.clicked_by_slot", {f"{F}.clicked_by_slot.encode.cross[1]": "item"},
     "has one value per row, and is in multihot_categorical; list it in another channel, or add an input that is a"),
    (f"{F}.note.max_hotness", {f"{F}.note": {"encode": {"cross": ["item", "slot"]}, "max_hotness": 3}},
     "is only for lists, and the cross has no input that is a list; remove it"),
    (f"{F}.note.keep", {f"{F}.note": {"encode": {"cross": ["item", "slot"]}, "keep": "last"}},
     "is only for lists, and the cross has no input that is a list; remove it"),
    (f"{F}.clicked_by_slot.weights", {f"{F}.clicked_by_slot.weights": "marks", f"{F}.marks": {"separator": " "}},
     "is for values read from files, and those of encode.cross are not; remove it"),
    (f"{F}.note.encode", {f"{F}.note": {"separator": " ", "encode": {"target": {"label": "click"}}}},
     "target is for one value per row, and this is a list; "
     "write an encoding of ids, such as {hash: 1000}, or add a column with one value per row"),
    (f"{F}.hour.format", {f"{F}.hour.dtype": "int64"}, "is for timestamps, and the dtype is int64"),
    ("split.format", {"split.format": "%d.%m.%Y"}, "differs from that of feature_spec.hour, which reads the same"),
    (f"{F}.price.indicator", {f"{F}.price.indicator": "age", "channel_spec.numerical[2]": GONE},
     "'age' is also a feature of the specification; rename one"),
    (f"{F}.item_rate.encode.target.outputs[0]", {f"{F}.price.indicator": "ctr", "channel_spec.numerical[2]": GONE},
     "'ctr' is already the name at feature_spec.price.indicator; rename one"),
    (f"{F}.price.indicator",
     {"channel_spec.onehot_categorical[8]": "price_missing", "channel_spec.numerical[2]": GONE},
     "'price_missing' is a number, and in onehot_categorical; list it in numerical"),
    (f"{F}.item_rate", {"channel_spec.numerical[4]": "item_rate"}, "is in numerical, but the encoding makes ctr"),
    (f"{F}.sample_weight", {f"{F}.sample_weight": {}}, "this is the name of the column of weights that is made"),
    (f"{F}.seen", {"keep[0]": "seen"}, "is the name of a raw column, too; rename the feature"),
    (f"{F}.sold.count", {f"{F}.sold": {"count": {"by": "user", "order": "ts"}}}, "is for inputs"),
    (f"{F}.seen", {f"{F}.seen.count": {"by": "user", "order": "ts"}}, "has history and count; keep one"),
    ("source_spec.test", {"split": GONE, "source_spec.train": [{"type": "parquet", "files": ["a"]}]},
     "this mapping is missing; write split: {from: logs, random: {test: 0.2}}"),
    ("split", {"split": {"from": "logs", "random": {"valid": 0.2}}},
     "mapping 'test' is missing: the split makes train, valid; add it to the split or to source_spec"),
    ("split.random", {"split": {"from": "logs", "random": {"valid": 0.7, "test": 0.7}}}, "add up to 1.4"),
    ("split.last.train", {"split": {"from": "logs", "last": {"train": 0.7, "test": 0.3}}}, "remove it"),
    ("split.valid_from", {"split.valid_from": 5}, "is a number, and 'ts' is a timestamp; write a date, or state"),
    ("keep_negatives", {f"{F}.click": {"task": "regression"}, f"{F}.liked": {"task": "regression", "column": "r"},
     f"{F}.sold": {"task": "regression"}}, "needs a binary label"),
    (f"{F}.price.indicator", {f"{F}.price.encode": ["log1p"]}, "has no effect without a fill"),
    (f"{F}.views.count.window", {f"{F}.views.count.order": "price"}, "does not fit order 'price', a number"),
    (f"{F}.site_by_hour.encode.cross[1]", {f"{F}.site_by_hour.encode.cross[0]": "hour"}, "is already an input"),
    ("split", {"split.time": GONE}, "lacks the way; write time, random or last"),
    ("split", {"split.random": {"test": 0.2}}, "states time and random; keep one"),
    ("keep[1]", {"keep[0]": "ts"}, "'ts' is already in keep; keep one"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "changes", "words"), REPORTED_ELSEWHERE)
def test_mistakes_with_two_causes(path: str, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    check_only_problem(raw_problems(changed_raw(changes), tmp_path), path, words)


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    wrong = changed_raw({f"{F}.item.encode": "hash", f"{F}.age.unit": "s", "split.from": "x", "keep[0]": ""})
    assert [problem.split(": ")[0] for problem in raw_problems(wrong, tmp_path)] == [
        "feature_spec.item.encode", "keep[0]", "feature_spec.age.unit", "split.from",
    ]  # fmt: skip


@pytest.mark.parametrize("changes", [{}, {"split": {"from": "nowhere"}}, {f"{F}.item.encode": "hash"}])
def test_training_on_a_raw_specification(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(FeatureSpecError) as caught:
        FeatureSpec.from_dict(changed_raw(changes), tmp_path)
    path, words = (
        "split",
        "only a raw specification says this; turn its files into a dataset with `python preprocess.py",
    )
    check_only_problem(caught.value.problems, path, words)


@pytest.mark.parametrize(
    ("path", "section", "value"),
    [
        ("feature_spec.user.encode", "feature_spec", {"user": {"encode": "vocabulary"}}),
        ("feature_spec.user.dtype", "feature_spec", {"user": {"dtype": "string"}}),
        ("source_spec.train[0].header", "source_spec", {"train": [{"type": "csv", "header": True, "files": ["a"]}]}),
    ],
)
def test_key_that_reveals_a_raw_specification(path: str, section: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(FeatureSpecError) as caught:
        FeatureSpec.from_dict(document() | {section: value}, tmp_path)
    check_only_problem(caught.value.problems, path, "only a raw specification says this")


def test_preprocessing_an_encoded_specification(tmp_path: Path) -> None:
    check_only_problem(raw_problems(document(), tmp_path), "document", "pass the dataset to main.py, or its CSV files")


def test_outside_paths_can_be_allowed(tmp_path: Path) -> None:
    outside = changed_raw({"source_spec.new[0].files[0]": "/logs/*.parquet"})
    assert "is an absolute path" in raw_problems(outside, tmp_path)[0]
    spec = raw_spec_from_dict(outside, tmp_path, allow_outside_paths=True)
    assert spec.sources["new"][0].files == ("/logs/*.parquet",)


def test_columns_of_files_without_header(tmp_path: Path) -> None:
    changes = {
        "source_spec": {
            name: [{"type": "csv", "features": ["y", "a", "b"], "files": [f"{name}.csv"]}] for name in ("train", "test")
        },
        "feature_spec": {"a": {}, "c": {"column": "bb"}, "y": {}, "d": {"encode": {"cross": ["b", "x"], "hash": 9}}},
        "channel_spec": {"onehot_categorical": ["a", "c", "d"], "label": ["y"]},
    }
    problems = raw_problems(changes, tmp_path)
    assert [problem.split("; ")[0] for problem in problems] == [
        "feature_spec.c.column: 'bb' is neither a feature nor a column of the files",
        "feature_spec.d.encode.cross[1]: 'x' is neither a feature nor a column of the files",
    ]
    changes["source_spec"]["train"][0]["files"] = ["day=1/train.csv"]  # the key of a folder is a column, too
    assert raw_spec_from_dict(changes, tmp_path).readings["x"].column == "x"
