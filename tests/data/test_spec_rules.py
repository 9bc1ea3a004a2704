"""Rules over several parts of a specification: each violation is reported once, with its location and a fix."""

from pathlib import Path
from typing import Any

import pytest

from data.errors import DataError
from data.spec.feature_spec import FeatureSpec, FeatureSpecError
from tests.data.sample_specs import COLUMNS, GONE, changed, check_only_problem, document, problems_of

REPORTED_WHERE_CHANGED = [
    # Channels.
    ("channel_spec.numerical[0]", "agee", "'agee' is not in feature_spec; did you mean 'age'?"),
    ("channel_spec.numerical[1]", "user", "'user' is already in channel_spec.onehot_categorical[0]; keep one"),
    ("channel_spec.label[2]", "click", "'click' is already in channel_spec.label[0]; keep one"),
    ("channel_spec.map[1]", "note", "'note' is a second feature in map; keep one"),
    ("channel_spec.map[1]", "user", "'user' is a second feature in map; keep one"),
    ("channel_spec.map[0]", "genres", "'genres' is already in channel_spec.multihot_categorical[0]; keep one"),
    ("channel_spec.map[0]", "click", "'click' is already in channel_spec.label[0]; keep one"),
    ("channel_spec", {"label": ["click", "buy"]},
     "has no input feature; list one under onehot_categorical, multihot_categorical, numerical"),
    # Keys against channels.
    ("feature_spec.user.cardinality", GONE, "is missing; write the largest id + 1"),
    ("feature_spec.genres.cardinality", GONE, "is missing; write the largest id + 1"),
    ("feature_spec.genres.max_hotness", GONE, "is missing; write the most ids that one row has"),
    ("feature_spec.user.max_hotness", 3, "is only for multihot_categorical and the feature is in onehot_categorical"),
    ("feature_spec.age.max_hotness", 3, "is only for multihot_categorical and the feature is in numerical"),
    ("feature_spec.age.embedding_dim", 3, "is only for categorical features and the feature is in numerical"),
    ("feature_spec.age.unseen_id", 2, "is only for categorical features and the feature is in numerical; remove it"),
    ("feature_spec.session.null_id", 1, "is only for categorical features and the feature is in map; remove it"),
    ("feature_spec.user.oov_buckets", 2, "has no effect without unseen_id, the first of these ids"),
    ("feature_spec.user.unseen_value", 0.5, "is only for numerical features and the feature is in onehot_categorical"),
    ("feature_spec.session.embedding_dim", 3, "is only for categorical features and the feature is in map"),
    ("feature_spec.user.dtype", "bool", "is bool but ids are integers; write one of int8, int16, int32, int64"),
    ("feature_spec.age.dtype", "bool", "is bool, which only a binary label can be; store numbers and write their"),
    ("feature_spec.weight.dtype", "bool", "is bool, which only a binary label can be"),
    ("feature_spec.session.dtype", "float64", "is float64 but the map feature holds ids; write one of int8"),
    ("feature_spec.age.task", "regression", "is only for labels; remove it or list 'age' in channel_spec.label"),
    ("feature_spec.user.loss_weight", 2, "is only for labels"),
    ("feature_spec.note.missing", "error", "is only for labels"),
    ("feature_spec.session.given", "click", "is only for labels"),
    ("feature_spec.weight.positive_weight", 2, "is only for labels"),
    # Labels.
    ("feature_spec.click.cardinality", 5, "is 5 but the task is binary; write task: multiclass, or remove it"),
    ("feature_spec.buy.given", "clicks", "'clicks' is not a label (channel_spec.label); did you mean 'click'?"),
    ("feature_spec.buy.given", "age", "'age' is not a label (channel_spec.label); expected click"),
    ("feature_spec.buy.given", "buy", "depends on itself (buy -> buy); remove one `given`"),
    ("feature_spec.click.given", "buy", "depends on itself (click -> buy -> click); remove one `given`"),
    # The weights of ids.
    ("feature_spec.genres.weights", "notes", "'notes' is not in feature_spec; did you mean 'note'?"),
    ("feature_spec.genres.weights", "age", "'age' is in numerical; name a column in no channel, with a weight for"),
    ("feature_spec.genres.weights", "click", "'click' is in label; name a column in no channel"),
    ("feature_spec.genres.weights", "genres", "'genres' is in multihot_categorical; name a column in no channel"),
    ("feature_spec.genres.weights", "weight", "'weight' is the sample_weight of rows; name another column"),
    ("feature_spec.genres.weights", 3, "put it in quotes"),
    ("feature_spec.user.weights", "note",
     "is only for multihot_categorical and the feature is in onehot_categorical; remove it or move the feature"),
    ("feature_spec.age.weights", "note", "is only for multihot_categorical and the feature is in numerical"),
    # The combiner.
    ("feature_spec.genres.combiner", "max", "is the string 'max'; write one of sum, mean"),
    ("feature_spec.user.combiner", "mean", "is only for multihot_categorical and the feature is in onehot_categorical"),
    # Features known only in training.
    ("feature_spec.user.serve", 2.5, "is 2.5, and ids are whole numbers in [0,"),
    ("feature_spec.user.serve", -1, "is -1, and ids are whole numbers in [0,"),
    ("feature_spec.genres.serve", 1, "is only for onehot_categorical and numerical, and the feature is in multihot_"),
    ("feature_spec.click.serve", 1, "is only for onehot_categorical and numerical, and the feature is in label"),
    ("feature_spec.age.serve", "old", "is the string 'old'; write a"),
    # The sample weight.
    ("feature_spec.note.role", "sample_weight", "is sample_weight, as is that of 'weight'; keep one"),
    ("feature_spec.click.negative_rate", 0.5, "is only for the column with role: sample_weight; remove it"),
    # Mappings and chunks.
    ("source_spec.train", GONE, "this mapping is missing; write a list of chunks"),
    ("source_spec.test", GONE, "this mapping is missing; write a list of chunks"),
    ("source_spec.train[1].type", "parquet",
     "is parquet but other chunks of the mapping are csv; one mapping has one type"),
    ("source_spec.valid[0].features[7]", "notes", "'notes' is not in feature_spec; did you mean 'note'?"),
    ("source_spec.valid[0].features[7]", "user", "'user' is already in source_spec.valid[0].features[0]; keep one"),
    ("source_spec.train[1].features[4]", "user", "'user' is already in source_spec.train[0].features[0]; keep one"),
    # Files.
    ("source_spec.train[0].files[1]", "/etc/passwd",
     "'/etc/passwd' is an absolute path; write a path relative to the specification's folder that stays under it"),
    ("source_spec.train[0].files[1]", "../a.csv", "'../a.csv' leads out of the folder; write a path relative to"),
    ("source_spec.train[0].files[1]", "x/../../a.csv", "'x/../../a.csv' leads out of the folder"),
    ("source_spec.train[0].files[1]", "..", "leads out of the folder"),
    ("source_spec.train[0].files[1]", ".", "is a folder; end it with / for all files below it"),
    ("source_spec.train[0].files[1]", "s3://bucket/a.csv", "'s3://bucket/a.csv' is a URL; write a path relative to"),
    ("source_spec.train[0].files[1]", "s3://me:secret@bucket/a", "'s3://***@bucket/a' is a URL"),
    ("source_spec.train[0].files[1]", "a_0.csv", "'a_0.csv' is already source_spec.train[0].files[0]; keep one"),
    ("source_spec.train[0].files[1]", "./x/../a_0.csv", "is already source_spec.train[0].files[0]; keep one"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "words"), REPORTED_WHERE_CHANGED)
def test_violations(path: str, value: Any, words: str, tmp_path: Path) -> None:
    check_only_problem(problems_of(changed({path: value}), tmp_path), path, words)


REPORTED_ELSEWHERE = [
    ("feature_spec.user.dtype", {"feature_spec.user": {"dtype": "int8", "cardinality": 129}},
     "is int8, which cannot hold ids up to 128; write a wider one"),
    ("feature_spec.user.null_id", {"feature_spec.user": {"cardinality": 5, "null_id": 5, "unseen_id": 4}},
     "is 5 but ids lie in [0, 5); write a smaller one"),
    ("feature_spec.user.unseen_id", {"feature_spec.user": {"cardinality": 5, "null_id": 4, "unseen_id": 5}},
     "is 5 but ids lie in [0, 5); write a smaller one"),
    ("feature_spec.user.unseen_id", {"feature_spec.user": {"cardinality": 5, "unseen_id": 2, "oov_buckets": 4}},
     "is 2 with 4 buckets but ids lie in [0, 5); write a smaller one"),
    ("feature_spec.age.unseen_with", {"feature_spec.age.unseen_value": 0.5},
     "is missing; unseen_with and unseen_value need each other"),
    ("feature_spec.age.unseen_value", {"feature_spec.age.unseen_with": "user"},
     "is missing; unseen_with and unseen_value need each other"),
    ("feature_spec.age.unseen_with", {"feature_spec.age": {"unseen_with": "genres", "unseen_value": 0.5}},
     "'genres' is in multihot_categorical; name a feature of onehot_categorical"),
    ("feature_spec.age.unseen_with", {"feature_spec.age": {"unseen_with": "users", "unseen_value": 0.5}},
     "'users' is not in feature_spec; did you mean 'user'?"),
    ("feature_spec.buy.dtype", {"feature_spec.buy": {"task": "multiclass", "dtype": "int8", "cardinality": 129}},
     "is int8, which cannot hold classes up to 128; write a wider one"),
    ("feature_spec.buy.positive_weight", {"feature_spec.buy": {"task": "regression", "positive_weight": 1}},
     "is only for binary labels and the task is regression; remove it"),
    ("feature_spec.buy.tweedie_power", {"feature_spec.buy": {"task": "poisson", "tweedie_power": 1.2}},
     "is only for labels with task: tweedie and the task is poisson; remove it"),
    ("feature_spec.buy.positive_weight", {"feature_spec.buy": {"task": "listwise", "positive_weight": 2}},
     "is only for binary labels and the task is listwise; remove it"),
    ("feature_spec.buy.given", {"feature_spec.click.task": "jrc"},
     "a label with task: jrc has no part in a sample space"),
    ("feature_spec.buy.cardinality", {"feature_spec.buy": {"task": "multiclass"}},
     "is missing; write the number of classes, at least 2"),
    ("feature_spec.buy.cardinality", {"feature_spec.buy": {"task": "multiclass", "cardinality": 1}},
     "is 1; write the number of classes, at least 2"),
    ("feature_spec.buy.given", {"feature_spec.click.task": "regression"},
     "'click' has task regression; name a binary label"),
    ("feature_spec.note.max_hotness", {"feature_spec.genres.weights": "note", "feature_spec.note.max_hotness": 3},
     "is only for lists of ids, and these are the weights of 'genres'; remove it"),
    ("feature_spec.note.weights", {"feature_spec.note.weights": "note"},
     "is only for lists of ids, and these are the weights of 'note'; remove it"),
    ("feature_spec.note.dtype", {"feature_spec.genres.weights": "note", "feature_spec.note.dtype": "bool"},
     "is bool, which only a binary label can be; store numbers and write their dtype"),
    ("feature_spec.spare.weights",
     {"feature_spec.genres.weights": "note", "feature_spec.spare": {"max_hotness": 3, "weights": "note"}},
     "'note' has the weights of 'genres'; store the column a second time for these"),
    ("source_spec.valid", {"feature_spec.genres.weights": "note", "source_spec.valid[0].features": COLUMNS[:6]},
     "lacks note; add to the features of a chunk"),
    ("feature_spec.weight.role", {"channel_spec.numerical[1]": "weight"},
     "is sample_weight but the feature is in numerical; a weight is in no channel: keep one"),
    ("channel_spec.label", {"channel_spec.label": [], "feature_spec.buy": {}, "feature_spec.click": {}},
     "has no feature; list at least one label"),
    ("channel_spec.map[0]",
     {"source_spec.test[0].features": COLUMNS, "source_spec.train[0].features[3]": "session"},
     "'session' is only in mapping train; add it to a chunk of test, or empty the map channel"),
    ("source_spec.train", {"source_spec.train": GONE, "source_spec.trian": document()["source_spec"]["train"]},
     "this mapping is missing; is it the one called 'trian'?"),
    ("source_spec.train", {"source_spec.train[1].features": COLUMNS[4:]},
     "lacks click; add to the features of a chunk, or remove from channel_spec"),
    ("source_spec.train", {"source_spec.train[0].features": COLUMNS[:4], "source_spec.train[1].features": COLUMNS[4:5]},
     "lacks weight; add to the features of a chunk"),
    ("feature_spec.user.wide", {"feature_spec.user.serve": 1, "feature_spec.user.wide": "no"},
     "has no meaning for a feature with `serve`"),
    ("feature_spec.user.serve", {"feature_spec.user.serve": 1, "feature_spec.user.cardinality": 10_001},
     "is for at most 10,000 ids, and the feature has 10,001; remove it"),
    ("feature_spec.genres.table", {"feature_spec.user.serve": 1, "feature_spec.genres.table": "user",
                                   "feature_spec.user.cardinality": 8},
     "'user' has `serve`, so that predictions do not know it; name another feature"),
    ("feature_spec.age.unseen_with", {"feature_spec.user.serve": 1, "feature_spec.age.unseen_with": "user",
                                      "feature_spec.age.unseen_value": 0.5},
     "'user' has `serve`, so that predictions do not know it; name another feature"),
    ("channel_spec", {"feature_spec.age.serve": 0.5, "channel_spec.onehot_categorical": [],
                      "channel_spec.multihot_categorical": []},
     "has only features with `serve`, which predictions do not know; list another one"),
    ("source_spec.train", {"feature_spec.age.serve": 0.5, "source_spec.train[0].features": ["user", "genres"]},
     "lacks age; add to the features of a chunk"),
    ("source_spec.test", {"source_spec.test[0].features": ["note", "session"]},
     "lacks user, genres, age; add"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "changes", "words"), REPORTED_ELSEWHERE)
def test_violations_by_several_parts(path: str, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    check_only_problem(problems_of(changed(changes), tmp_path), path, words)


def test_unchanged_document_is_valid(tmp_path: Path) -> None:
    assert FeatureSpec.from_dict(document(), tmp_path).sample_weight is not None


ALLOWED = {
    "a cardinality that just fits the dtype": {"feature_spec.user": {"dtype": "int8", "cardinality": 128}},
    "integers as numerical features": {"feature_spec.age.dtype": "int16"},
    "a multiclass label": {"feature_spec.buy": {"task": "multiclass", "cardinality": 2}},
    "a regression label within a sample space": {"feature_spec.buy.task": "regression"},
    "a ranked label within a sample space": {"feature_spec.buy.task": "pairwise"},
    "a Tweedie label within a sample space": {"feature_spec.buy": {"task": "tweedie", "tweedie_power": 1.2}},
    "a cardinality of 2 at a binary label": {"feature_spec.click.cardinality": 2},
    "keys of a list column at a feature in no channel": {
        "feature_spec.note": {"dtype": "int64", "cardinality": 5, "max_hotness": 2, "embedding_dim": 4}
    },
    "a feature known only in training that only train has": {
        "feature_spec.age.serve": -0.5,
        "source_spec.test[0].features": [name for name in (*COLUMNS, "session") if name != "age"],
    },
    "weights of ids": {"feature_spec.genres.weights": "note", "feature_spec.note.dtype": "int16"},
    "weights of a feature in no channel": {
        "feature_spec.spare": {"max_hotness": 3, "weights": "spare_weights"},
        "feature_spec.spare_weights": {},
    },
    "ids of null and of unseen values that just fit": {
        "feature_spec.user": {"cardinality": 5, "null_id": 4, "unseen_id": 2, "oov_buckets": 3},
        "feature_spec.note": {"unseen_id": 7},
    },
    "the value of a number that is unseen with a user": {
        "feature_spec.age": {"unseen_with": "user", "unseen_value": 3},
    },
    "the same with a feature in no channel": {"feature_spec.age": {"unseen_with": "note", "unseen_value": 0.5}},
    "a feature that no file holds": {"feature_spec.spare": {"cardinality": 5}},
    "the map feature in a mapping of any other name": {
        "source_spec.fold_3": document()["source_spec"]["test"],
        "source_spec.test": document()["source_spec"]["valid"],
    },
    "a map feature that is also a one-hot feature": {"channel_spec.map": ["user"]},
    "the map feature everywhere": {
        "source_spec.train[1].features[4]": "session",
        "source_spec.valid[0].features[7]": "session",
    },
    "files in folders": {"source_spec.train[0].files[1]": "train/parts/a_1.csv"},
    "a path that goes up and down under the folder": {"source_spec.train[0].files[1]": "parts/../a_1.csv"},
    "a file name that begins with dots": {"source_spec.train[0].files[1]": "..a"},
    "one file in two mappings": {"source_spec.valid[0].files": ["c.csv"]},
}


@pytest.mark.parametrize("changes", ALLOWED.values(), ids=ALLOWED)
def test_valid_changes_are_accepted(changes: dict[str, Any], tmp_path: Path) -> None:
    FeatureSpec.from_dict(changed(changes), tmp_path)


@pytest.mark.parametrize("name", ["row", "label_click", "prediction_buy"])
def test_map_feature_against_prediction_columns(name: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {f"feature_spec.{name}": {}, "channel_spec.map": [name]}
    changes |= {"source_spec.test[0].features[7]": name}
    what = "this is the name of a column that predictions have beside the map feature; rename the feature"
    check_only_problem(problems_of(changed(changes), tmp_path), f"feature_spec.{name}", what)


@pytest.mark.parametrize("labels", [["mean"], ["mean", "click"]])
def test_label_named_mean(labels: list[str], tmp_path: Path) -> None:
    changes: dict[str, Any] = {"feature_spec.mean": {}, "channel_spec.label": labels, "feature_spec.buy": {}}
    changes |= {"feature_spec.click": {}, "source_spec.train[1].features[4]": "mean"}
    changes |= {"source_spec.test[0].features[8]": "mean", "source_spec.valid[0].features[7]": "mean"}
    if len(labels) == 1:
        FeatureSpec.from_dict(changed(changes), tmp_path)
        return
    fix = "this name is reserved for the mean over the labels; rename it"
    check_only_problem(problems_of(changed(changes), tmp_path), "feature_spec.mean", fix)


def with_labels(given: dict[str, str | None]) -> Any:
    """The valid document with these labels alone."""
    changes: dict[str, Any] = {"feature_spec.click": {}, "feature_spec.buy": {}, "channel_spec.label": list(given)}
    changes |= {f"feature_spec.{name}": {"given": label} if label else {} for name, label in given.items()}
    wrong = changed(changes)
    for mapping in wrong["source_spec"].values():
        mapping[-1]["features"] = list(dict.fromkeys([*mapping[-1]["features"], *given]))
    return wrong


def test_label_with_the_joint_name_of_others(tmp_path: Path) -> None:
    wrong = with_labels({"click": None, "buy": "click", "click+buy": None})
    words = "in metrics, click, buy together are called 'click+buy', as is the label 'click+buy'; rename one"
    check_only_problem(problems_of(wrong, tmp_path), "feature_spec.buy", words)


def test_two_equal_joint_names(tmp_path: Path) -> None:
    wrong = with_labels({"a": None, "b+c": "a", "a+b": None, "c": "a+b"})
    words = "in metrics, a+b, c together are called 'a+b+c', as is the combination of a, b+c; rename one"
    check_only_problem(problems_of(wrong, tmp_path), "feature_spec.c", words)


@pytest.mark.parametrize("given", [{"a+b": None, "a": None, "b": None}, {"a": None, "b": "a", "b+a": "a"}])
def test_plus_in_a_name_is_accepted(given: dict[str, str | None], tmp_path: Path) -> None:
    FeatureSpec.from_dict(with_labels(given), tmp_path)


def test_each_cycle_is_reported_once(tmp_path: Path) -> None:
    wrong = document()
    for name, given in zip("abcde", "bcbda", strict=True):
        wrong["feature_spec"][name] = {"given": given}
        wrong["channel_spec"]["label"].append(name)
        for mapping in wrong["source_spec"].values():
            mapping[-1]["features"].append(name)
    assert problems_of(wrong, tmp_path) == [
        "feature_spec.b.given: the label depends on itself (b -> c -> b); remove one `given`",
        "feature_spec.d.given: the label depends on itself (d -> d); remove one `given`",
    ]


@pytest.mark.parametrize(
    ("count", "ending"), [(12, "number_10, number_11;"), (13, "number_10, number_11, ... (13 in all);")]
)
def test_first_dozen_of_many_names_are_listed(count: int, ending: str, tmp_path: Path) -> None:
    wrong = document()
    names = [f"number_{number}" for number in range(count)]
    wrong["feature_spec"] |= {name: {} for name in names}
    wrong["channel_spec"]["numerical"] += names
    for mapping in ("train", "test"):
        wrong["source_spec"][mapping][-1]["features"] += names
    check_only_problem(problems_of(wrong, tmp_path), "source_spec.valid", "lacks number_0, number_1, number_2, ")
    check_only_problem(problems_of(wrong, tmp_path), "source_spec.valid", ending)


def test_all_violations_are_reported_at_once(tmp_path: Path) -> None:
    changes = {
        "feature_spec.user.cardinality": "100",
        "feature_spec.genres.max_hotnes": 3,
        "feature_spec.click.loss_weight": -1,
        "channel_spec.numerical[1]": "usr",
        "source_spec.train[0].files[1]": "/a.csv",
        "source_spec.test[0].type": "tsv",
        "source_spec.valid": [],
    }
    assert {problem.split(": ")[0] for problem in problems_of(changed(changes), tmp_path)} == set(changes)


def test_message_lists_file_count_and_problems(tmp_path: Path) -> None:
    path = tmp_path / "feature_spec.yaml"
    path.write_text("feature_spec: {age: {dtype: int9}}\nsource_spec: {}\nchannel_spec: {numerical: [age]}\n")
    with pytest.raises(DataError) as caught:
        FeatureSpec.read(path)
    assert isinstance(caught.value, FeatureSpecError)
    first, *rest = str(caught.value).split("\n  ")
    assert first == f"{path}: 4 problems in the feature specification:"
    assert rest == caught.value.problems
    places = [problem.split(": ")[0] for problem in rest]
    assert places == ["feature_spec.age.dtype", "channel_spec.label", "source_spec.train", "source_spec.test"]


def test_single_problem(tmp_path: Path) -> None:
    with pytest.raises(FeatureSpecError, match=r"^dataset\.yaml: 1 problem in the feature specification:"):
        FeatureSpec.from_dict(changed({"source_spec.valid": []}), tmp_path, source="dataset.yaml")


@pytest.mark.parametrize("file", ["link/a.csv", "link/../a.csv"])
def test_link_out_of_the_folder(file: str, tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "dataset" / "link").symlink_to("../elsewhere")
    path = "source_spec.train[0].files[1]"
    problems = problems_of(changed({path: file}), tmp_path / "dataset")
    check_only_problem(problems, path, f"'{file}' is a link that leads out of the folder (to '")


def test_links_within_and_to_the_folder(tmp_path: Path) -> None:
    (tmp_path / "real" / "parts").mkdir(parents=True)
    (tmp_path / "real" / "parts" / "a.csv").touch()
    (tmp_path / "real" / "link").symlink_to("parts")
    (tmp_path / "dataset").symlink_to("real")
    spec = FeatureSpec.from_dict(changed({"source_spec.valid[0].files[0]": "link/a.csv"}), tmp_path / "dataset")
    assert spec.files("valid")[0].is_file()


def test_link_to_itself_is_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("link")
    spec = FeatureSpec.from_dict(changed({"source_spec.valid[0].files[0]": "link"}), tmp_path)
    assert spec.files("valid") == (tmp_path / "link",)


def test_suggestions_are_capped(tmp_path: Path) -> None:
    wrong = document()
    wrong["feature_spec"] = {f"feature_{number}": {} for number in range(5_000)}
    wrong["channel_spec"] = {"numerical": [f"feeture_{number}" for number in range(5_000)], "label": ["feature_1"]}
    with pytest.raises(FeatureSpecError) as caught:
        FeatureSpec.from_dict(wrong, tmp_path)
    problems = [problem for problem in caught.value.problems if problem.startswith("channel_spec")]
    assert len(problems) == 5_000
    first, *rest, last = str(caught.value).split("\n  ")
    assert rest == caught.value.problems[:100]
    assert last == f"... and {len(caught.value.problems) - 100} more"
    assert 1 <= sum("did you mean" in problem for problem in problems) < 100
