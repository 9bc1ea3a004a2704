"""Weights of ids in raw logs: read with their ids, cut with them, and rejected with their row."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import check_dataset
import preprocess
from data.encoding.encoder_files import load_encoders
from data.loading.loader import ParquetLoader
from data.spec.feature_spec import FeatureSpec
from data.spec.raw.reader import raw_spec_from_dict
from data.spec.raw.spec import NumberRule
from tests.data.raw_spec_samples import changed_raw, raw_problems
from tests.data.sample_data import nested
from tests.data.sample_specs import GONE, changed, check_only_problem

FEATURES: dict[str, dict[str, Any]] = {
    "click": {"dtype": "float32"},
    "ts": {"dtype": "int64"},
    "item": {},
    "tags": {"separator": "|", "max_hotness": 3, "keep": "last", "weights": "confidence", "combiner": "mean"},
    "confidence": {"separator": "|", "encode": [{"fill": 0.5}]},
    "shared": {"column": "tags", "separator": "|", "table": "item", "weights": "logs"},
    "logs": {"column": "confidence", "separator": "|", "encode": [{"fill": "mean"}, "log1p"]},
    "hashed": {"column": "tags", "separator": "|", "max_hotness": 2, "encode": {"hash": 9}, "weights": "counts"},
    "counts": {"separator": ";", "dtype": "int32"},
    "slots": {"separator": " ", "encode": "identity", "cardinality": 7, "weights": "shares"},
    "shares": {"separator": " ", "encode": [{"clip": [0, 1]}]},
}
LISTS = {"tags": "confidence", "shared": "logs", "hashed": "counts", "slots": "shares"}
TRAIN_ROWS, ROWS = 60, 90


def document(source: dict[str, Any], **features: Any) -> dict[str, Any]:
    stated = {name: keys for name, keys in (FEATURES | features).items() if keys is not None}
    return {
        "feature_spec": stated,
        "source_spec": {"logs": [source]},
        "split": {"from": "logs", "time": "ts", "test_from": TRAIN_ROWS},
        "channel_spec": {
            "onehot_categorical": ["item"],
            "multihot_categorical": [name for name in LISTS if name in stated],
            "label": ["click"],
        },
    }


def raw_rows() -> dict[str, list[Any]]:
    """Rows of lists. A list may be missing, and so may tags and confidences, unless alone: text writes [None] as []."""
    random = np.random.default_rng(5)
    lengths = random.integers(0, 6, ROWS)

    def lists(draw: Any, missing: float = 0) -> list[list[Any] | None]:
        return [
            [None if length > 1 and random.random() < missing else draw() for _ in range(length)] or None
            for length in lengths
        ]

    return {
        "click": random.integers(0, 2, ROWS).tolist(),
        "ts": list(range(ROWS)),
        "item": [f"t{random.integers(5)}" for _ in range(ROWS)],
        "tags": lists(lambda: f"t{random.integers(9)}", missing=0.1),
        "confidence": lists(lambda: float(random.integers(1, 9)) / 4, missing=0.1),
        "counts": lists(lambda: int(random.integers(0, 50))),
        "slots": lists(lambda: int(random.integers(0, 7))),
        "shares": lists(lambda: float(random.integers(-4, 9)) / 4),
    }


SEPARATORS = {"tags": "|", "confidence": "|", "counts": ";", "slots": " ", "shares": " "}


def write_csv(rows: dict[str, list[Any]], path: Path) -> None:
    def cell(items: list[Any] | None, separator: str) -> str:
        return separator.join("" if item is None else str(item) for item in items or [])

    cells = {name: [cell(each, mark) for each in rows[name]] for name, mark in SEPARATORS.items()}
    pd.DataFrame(rows | cells).to_csv(path, index=False)


def write_raw(folder: Path, kind: str, rows: dict[str, list[Any]], **features: Any) -> Path:
    folder.mkdir(parents=True)
    if kind == "csv":
        write_csv(rows, folder / "logs.csv")
        wrong = document({"type": "csv", "header": True, "files": ["logs.csv"]}, **features)
    else:
        pq.write_table(pa.table(rows), folder / "logs.parquet")
        bare = {name: {key: value for key, value in FEATURES[name].items() if key != "separator"} for name in FEATURES}
        wrong = document({"type": "parquet", "files": ["logs.parquet"]}, **(bare | features))
    (folder / "feature_spec.yaml").write_text(yaml.safe_dump(wrong, sort_keys=False))
    return folder


def run(*arguments: object) -> int:
    return preprocess.main([str(argument) for argument in arguments])


def read(dataset: Path, mapping: str) -> dict[str, list[Any]]:
    spec = FeatureSpec.read(dataset / "feature_spec.yaml")
    return pa.concat_tables([pq.read_table(file) for file in spec.files(mapping)]).to_pydict()


def expected_weights(rows: dict[str, list[Any]]) -> dict[str, list[list[float]]]:
    """The weights of all rows, by plain Python."""
    known = [each for cell in rows["confidence"][:TRAIN_ROWS] for each in cell or [] if each is not None]
    mean = np.mean(known)

    def encoded(name: str, encode: Any, kept: slice = slice(None)) -> list[list[float]]:
        return [np.float32([encode(each) for each in (cell or [])[kept]]).tolist() for cell in rows[name]]

    return {
        "confidence": encoded("confidence", lambda each: 0.5 if each is None else each, slice(-3, None)),
        "logs": encoded("confidence", lambda each: np.log(1 + (mean if each is None else each))),
        "counts": encoded("counts", float, slice(0, 2)),
        "shares": encoded("shares", lambda each: min(max(each, 0), 1)),
    }


@pytest.fixture(scope="module", params=["csv", "parquet"])
def made(request, tmp_path_factory) -> tuple[dict[str, list[Any]], str, Path, Path]:
    """Raw rows, their format, their folder, and the dataset made of them."""
    folder, rows = tmp_path_factory.mktemp("weights"), raw_rows()
    raw = write_raw(folder / "raw", request.param, rows)
    assert run("--input", raw, "--output", folder / "data") == 0
    return rows, request.param, raw, folder / "data"


def check(found: dict[str, list[Any]], rows: dict[str, list[Any]], part: slice) -> None:
    for name, weights in expected_weights(rows).items():
        for one, other in zip(found[name], weights[part], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=0)
    for name, weights in LISTS.items():
        assert [len(ids) for ids in found[name]] == [len(own) for own in found[weights]]
    assert found["slots"] == [cell or [] for cell in rows["slots"][part]]


def test_weights_are_stored_beside_their_ids(made):
    rows, _, _, data = made
    check(read(data, "train"), rows, slice(0, TRAIN_ROWS))
    check(read(data, "test"), rows, slice(TRAIN_ROWS, ROWS))


def test_a_weight_belongs_to_its_id(made):
    """The pairs of tag and weight are those of the raw rows: the last three, with missing tags under the id of null."""
    rows, _, _, data = made
    values = load_encoders(data / "workflow")["tags"].values.to_pylist()
    ids = {None: 1} | {value: 3 + rank for rank, value in enumerate(values)}
    found = read(data, "train")
    for row in range(TRAIN_ROWS):
        tags, weights = rows["tags"][row] or [], rows["confidence"][row] or []
        pairs = [
            (ids.get(tag, 2), 0.5 if own is None else own) for tag, own in zip(tags[-3:], weights[-3:], strict=True)
        ]
        assert list(zip(found["tags"][row], found["confidence"][row], strict=True)) == pairs


def test_the_dataset_states_weights_and_combiner(made, capsys):
    _, _, _, data = made
    spec = FeatureSpec.read(data / "feature_spec.yaml")
    assert {feature.name: feature.weights for feature in spec.weighted} == LISTS
    assert {feature.name: feature.combiner for feature in spec.multihot if feature.combiner} == {"tags": "mean"}
    for name in LISTS.values():
        assert (spec.features[name].dtype, spec.features[name].max_hotness) == ("float32", None)
    assert check_dataset.main([str(data)]) == 0
    assert "column in no channel" not in capsys.readouterr().out


def test_the_loader_reads_them(made):
    _, _, _, data = made
    spec, found = FeatureSpec.read(data / "feature_spec.yaml"), read(data, "train")
    for batch in ParquetLoader(spec, "train", global_batch_size=16, shuffle=True).epoch(0):
        for row, weights in zip(batch.rows.tolist(), nested(batch.number_lists), strict=True):
            assert row < 0 or weights == [found[name][row] for name in LISTS.values()]


def test_new_rows_have_weights(made, tmp_path):
    rows, kind, raw, data = made
    assert run("--workflow", data / "workflow", "--input", raw / f"logs.{kind}", "--output", tmp_path / "new") == 0
    found = read(tmp_path / "new", "test")
    check(found, rows, slice(0, ROWS))
    both = {name: read(data, "train")[name] + read(data, "test")[name] for name in (*LISTS, *LISTS.values())}
    assert both == {name: found[name] for name in both}
    assert len(FeatureSpec.read(tmp_path / "new" / "feature_spec.yaml").weighted) == len(LISTS)


# What row 7 of the log has instead, changes of features, and the words of the message.
BAD: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a weight too few": (
        {"tags": ["a", "b"], "confidence": [0.5]}, {},
        "column 'tags' has 2 items and column 'confidence', with their weights, 1; expected a weight for each item",
    ),
    "no weights": ({"tags": ["a"], "confidence": None}, {}, "column 'tags' has 1 items and column 'confidence', with"),
    "weights without ids": ({"tags": None, "confidence": [1.0, 2.0]}, {}, "column 'tags' has 0 items and"),
    "a negative weight": (
        {"tags": ["a", "b"], "confidence": [-1.0, 0.5]}, {},
        "column 'confidence' has the weight -1; expected finite numbers of at least 0: say what replaces it, as with "
        "`encode: [{clip: [0, null]}]`",
    ),
    "a negative fill": (
        {"tags": ["a", "b"], "confidence": [None, 0.5]},
        {"confidence": FEATURES["confidence"] | {"encode": [{"fill": -1}]}}, "column 'confidence' has a missing weight",
    ),
    "a missing weight without fill": (
        {"tags": ["a", "b"], "confidence": [None, 0.5]},
        {"confidence": {"separator": "|"}, "logs": None, "shared": None},
        "column 'confidence' has a missing weight; expected finite numbers of at least 0: say what replaces it, as "
        "with `encode: [{fill: 1}]`",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("cells", "features", "words"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_mistakes_in_rows(tmp_path, capsys, kind, cells, features, words):
    rows = raw_rows()
    lengths = [len(cell or []) for cell in rows["slots"]]
    for name, item in (("tags", "t1"), ("confidence", 1.0), ("counts", 2), ("slots", 3), ("shares", 1.0)):
        rows[name] = [[item] * length for length in lengths]
    for name, value in cells.items():
        rows[name][7] = value
    if kind == "parquet":
        features = {
            name: keys and {key: value for key, value in keys.items() if key != "separator"}
            for name, keys in features.items()
        }
    raw = write_raw(tmp_path / "raw", kind, rows, **features)
    assert run("--input", raw, "--output", tmp_path / "data") == 2
    error = capsys.readouterr().err
    assert words in error
    assert f"logs.{kind}, {'line 9' if kind == 'csv' else 'row 8'}: column" in error
    assert not (tmp_path / "data").exists()


F = "feature_spec"
WEIGHTED: dict[str, Any] = {f"{F}.clicked.weights": "strength", f"{F}.strength": {"separator": " "}}
MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    (f"{F}.clicked.weights", {f"{F}.clicked.weights": "strenght"}, "is not in feature_spec; did you mean 'strength'?"),
    (f"{F}.clicked.weights", {f"{F}.clicked.weights": "price"}, "'price' is in numerical; name a column in no channel"),
    (f"{F}.clicked.weights", {f"{F}.clicked.weights": "price_missing"}, "'price_missing' is in numerical; name a"),
    (f"{F}.seen.weights", {f"{F}.seen.weights": "strength", f"{F}.clicked.weights": GONE},
     "is for values read from files, and those of history are not; remove it"),
    (f"{F}.item.weights", {f"{F}.item.weights": "note"}, "is only for multihot_categorical, and the feature is in"),
    (f"{F}.strength.max_hotness", {f"{F}.strength.max_hotness": 3},
     "is only for lists of ids, and these are the weights of 'clicked'; remove it"),
    (f"{F}.strength.keep", {f"{F}.strength.keep": "last"}, "is that of 'clicked', whose weights these are; state it"),
    (f"{F}.strength.encode", {f"{F}.strength.encode": {"hash": 10}}, "makes no numbers, which weights are; write"),
    (f"{F}.strength.encode", {f"{F}.strength.encode": ["standardize"]}, "makes numbers below 0 of weights; write"),
    (f"{F}.strength.encode", {f"{F}.strength.encode": ["minmax"]}, "makes numbers below 0 of weights"),
    (f"{F}.strength.separator", {f"{F}.strength.separator": GONE}, "is missing: CSV files hold lists as text"),
    (f"{F}.strength.dtype", {f"{F}.strength.dtype": "string"}, "is string, which the encoding does not take"),
    (f"{F}.clicked.weights",
     {f"{F}.strength": {"history": {"of": "price", "by": "user_id", "order": "ts", "last": 5}}},
     "'strength' is computed; name a feature whose lists are read from files"),
    (f"{F}.clicked.weights",
     {f"{F}.clicked.weights": "tax_missing", f"{F}.strength": {}, f"{F}.tax": {"encode": [{"fill": 1}], "indicator":
                                                                               "tax_missing"}},
     "'tax_missing' is one number per row, made by an encoding; name a feature of lists"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "changes", "words"), MISTAKES)
def test_mistakes_in_specifications(tmp_path, path, changes, words):
    check_only_problem(raw_problems(changed(changes, changed_raw(WEIGHTED)), tmp_path), path, words)


def test_weights_are_numbers_without_an_encoding(tmp_path):
    features = raw_spec_from_dict(changed_raw(WEIGHTED), tmp_path).features
    assert features["strength"].rule == NumberRule()
    assert features["clicked"].feature.weights == "strength"
