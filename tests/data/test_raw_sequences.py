"""Sequences in raw logs: lists and histories that become aligned columns, and what is rejected."""

import re
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
from data.spec.features import FeatureSequence
from data.spec.raw.reader import raw_spec_from_dict
from data.spec.raw.spec import NumberRule, SharedVocabularyRule, VocabularyRule
from tests.data.raw_spec_samples import raw_problems, sequential_raw
from tests.data.sample_data import nested
from tests.data.sample_specs import GONE, changed, check_only_problem
from tests.helpers import ROOT

HISTORY = {"by": "user", "order": "ts", "where": "click", "last": 4}
FEATURES: dict[str, dict[str, Any]] = {
    "click": {"dtype": "float32"},
    "ts": {"dtype": "int64"},
    "item": {},
    "price": {"encode": [{"fill": 0}]},
    "clicked": {"separator": " ", "table": "item", "max_hotness": 3},
    "kinds": {"separator": "|", "encode": {"hash": 20}},
    "ages": {"separator": " ", "encode": [{"fill": 1}, "log1p", "standardize"]},
    "offsets": {"separator": " ", "dtype": "float32"},
    "seen": {"table": "item", "history": HISTORY | {"of": "item"}},
    "paid": {"history": HISTORY | {"of": "price"}, "encode": [{"fill": "mean"}, "standardize"]},
}
READ, COMPUTED = ["clicked", "kinds", "ages", "offsets"], ["seen", "paid"]
TRAIN_ROWS, ROWS = 81, 120


def document(source: dict[str, Any], order: str) -> dict[str, Any]:
    return {
        "feature_spec": FEATURES,
        "source_spec": {"logs": [source]},
        "split": {"from": "logs", "time": "ts", "test_from": TRAIN_ROWS},
        "channel_spec": {
            "onehot_categorical": ["item"],
            "numerical": ["price"],
            "sequence": {
                "clicks": {"features": READ, "target": ["item"], "order": order},
                "views": {"features": COMPUTED, "encoder": "mean"},
            },
            "label": ["click"],
        },
    }


def raw_rows() -> pd.DataFrame:
    random = np.random.default_rng(3)
    lengths = random.integers(0, 6, ROWS)
    lists = {
        "clicked": [[f"i{random.integers(9)}" for _ in range(length)] for length in lengths],
        "kinds": [[f"k{random.integers(5)}" for _ in range(length)] for length in lengths],
        "ages": [[int(random.integers(50)) for _ in range(length)] for length in lengths],
        "offsets": [(random.integers(-20, 20, length) / 4).tolist() for length in lengths],
    }
    return pd.DataFrame(
        {
            "click": random.integers(0, 2, ROWS),
            # Several rows of a time, in the order of the log.
            "ts": np.arange(ROWS) // 3 * 3,
            "user": random.integers(0, 5, ROWS),
            "item": [None if random.random() < 0.1 else f"i{random.integers(9)}" for _ in range(ROWS)],
            "price": [None if random.random() < 0.2 else float(random.integers(1, 90)) for _ in range(ROWS)],
            **lists,
        }
    )


def write_raw(folder: Path, kind: str, rows: pd.DataFrame, order: str = "newest_last") -> Path:
    folder.mkdir(parents=True)
    if kind == "csv":
        marks = {name: FEATURES[name]["separator"] for name in READ}
        rows.assign(
            **{name: [mark.join(map(str, cell)) for cell in rows[name]] for name, mark in marks.items()}
        ).to_csv(folder / "logs.csv", index=False)
        raw = document({"type": "csv", "header": True, "files": ["logs.csv"]}, order)
    else:
        pq.write_table(pa.Table.from_pandas(rows, preserve_index=False), folder / "logs.parquet")
        raw = document({"type": "parquet", "files": ["logs.parquet"]}, order)
        raw["feature_spec"] = {
            name: {key: value for key, value in keys.items() if key != "separator"} for name, keys in FEATURES.items()
        }
    (folder / "feature_spec.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    return folder


def run(*arguments: object) -> int:
    return preprocess.main([str(argument) for argument in arguments])


def read(dataset: Path, mapping: str) -> dict[str, list[Any]]:
    spec = FeatureSpec.read(dataset / "feature_spec.yaml")
    return pa.concat_tables([pq.read_table(file) for file in spec.files(mapping)]).to_pydict()


@pytest.fixture(scope="module", params=[("csv", "newest_last"), ("parquet", "newest_first")], ids="-".join)
def made(request, tmp_path_factory) -> tuple[pd.DataFrame, str, str, Path, Path]:
    """Raw rows, their format and order, their folder, and the dataset made of them."""
    kind, order = request.param
    folder, rows = tmp_path_factory.mktemp("sequences"), raw_rows()
    raw = write_raw(folder / "raw", kind, rows, order)
    assert run("--input", raw, "--output", folder / "data") == 0
    return rows, kind, order, raw, folder / "data"


def histories(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """For each row the last four earlier clicks of its user on a known item, oldest first."""
    entering = rows[(rows.click == 1) & rows["item"].notna()]
    return [
        entering[(entering.user == row.user) & (entering.ts < row.ts)].sort_values("ts", kind="stable").tail(4)
        for row in rows.itertuples()
    ]


def standardized(cells: list[list[float]]) -> list[list[float]]:
    """Numbers by the mean and the standard deviation of those of the training rows."""
    known = np.concatenate(cells[:TRAIN_ROWS])
    return [((np.array(cell) - known.mean()) / known.std(ddof=1)).tolist() for cell in cells]


def item_ids(data: Path, cells: list[list[str]]) -> list[list[int]]:
    values = load_encoders(data / "workflow")["item"].values.to_pylist()
    ids = {value: 3 + rank for rank, value in enumerate(values)}
    return [[ids.get(value, 2) for value in cell] for cell in cells]


def check(found: dict[str, list[Any]], expected: dict[str, list[Any]], part: slice) -> None:
    for name, cells in expected.items():
        assert [len(cell) for cell in found[name]] == [len(cell) for cell in cells[part]]
        for one, other in zip(found[name], cells[part], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def expected_columns(rows: pd.DataFrame, order: str, data: Path) -> dict[str, list[Any]]:
    """All columns of the sequences but the hashed one, by plain Python and pandas."""
    newest = slice(-3, None) if order == "newest_last" else slice(0, 3)
    ages = standardized([np.log1p(cell).tolist() for cell in rows.ages])
    seen = histories(rows)
    prices = np.concatenate([one.price.to_numpy() for one in seen[:TRAIN_ROWS]])
    paid = [one.price.fillna(np.nanmean(prices)).tolist() for one in seen]
    return {
        "clicked": [cell[newest] for cell in item_ids(data, rows.clicked.tolist())],
        "ages": [cell[newest] for cell in ages],
        "offsets": [cell[newest] for cell in rows.offsets],
        "seen": item_ids(data, [one["item"].tolist() for one in seen]),
        "paid": standardized(paid),
    }


def test_columns_of_sequences(made):
    rows, _, order, _, data = made
    expected = expected_columns(rows, order, data)
    for mapping, part in (("train", slice(0, TRAIN_ROWS)), ("test", slice(TRAIN_ROWS, ROWS))):
        found = read(data, mapping)
        check(found, expected, part)
        assert [len(cell) for cell in found["kinds"]] == [len(cell) for cell in found["clicked"]]
        assert max(map(len, found["seen"])) == 4


def test_hashed_ids_are_the_newest(made):
    rows, _, order, _, data = made
    found = read(data, "train")["kinds"]
    ids: dict[str, int] = {}
    for cell, kinds in zip(found, rows.kinds.tolist(), strict=False):
        for one, kind in zip(cell, kinds[-3:] if order == "newest_last" else kinds[:3], strict=True):
            assert ids.setdefault(kind, one) == one
    assert set(ids) == {f"k{number}" for number in range(5)}


def test_the_specification_of_the_dataset(made, capsys):
    _, _, order, _, data = made
    spec = FeatureSpec.read(data / "feature_spec.yaml")
    assert spec.sequences == (
        FeatureSequence("clicks", tuple(READ), ("item",), "din", order, 3),  # type: ignore[arg-type]
        FeatureSequence("views", tuple(COMPUTED), (), "mean", "newest_last", 4),
    )
    assert [feature.name for feature in spec.sequence_ids] == ["clicked", "kinds", "seen"]
    assert {spec.features[name].max_hotness for name in READ} == {3}
    assert spec.features["clicked"].cardinality == spec.features["seen"].cardinality
    assert spec.features["clicked"].unseen_id == 2 and spec.features["clicked"].table == "item"
    assert spec.features["ages"].dtype == "float32"
    assert check_dataset.main([str(data)]) == 0
    assert "column in no channel" not in capsys.readouterr().out


def test_the_loader_reads_them(made):
    _, _, _, _, data = made
    spec, found = FeatureSpec.read(data / "feature_spec.yaml"), read(data, "train")
    for batch in ParquetLoader(spec, "train", global_batch_size=16, shuffle=True).epoch(0):
        lists = zip(batch.rows.tolist(), nested(batch.id_lists), nested(batch.number_lists), strict=True)
        for row, ids, numbers in lists:
            assert row < 0 or ids == [found[name][row] for name in ("clicked", "kinds", "seen")]
            assert row < 0 or numbers == [found[name][row] for name in ("ages", "offsets", "paid")]


def test_new_rows_continue_the_histories(made, tmp_path):
    """Rows that are not earlier than those of the dataset have the histories that they would have had in it."""
    rows, kind, order, raw, data = made
    whole = raw_rows()
    later = whole.iloc[-30:].assign(ts=whole.ts.iloc[-30:] + ROWS)
    folder = write_raw(tmp_path / "later", kind, later, order)
    assert run("--workflow", data / "workflow", "--input", folder / f"logs.{kind}", "--output", tmp_path / "new") == 0
    expected = expected_columns(pd.concat([rows, later], ignore_index=True), order, data)
    check(read(tmp_path / "new", "test"), expected, slice(ROWS, ROWS + 30))


def test_without_a_limit_a_sequence_is_as_long_as_its_longest_list(tmp_path):
    rows = raw_rows()
    raw = write_raw(tmp_path / "raw", "csv", rows)
    changed = yaml.safe_load((raw / "feature_spec.yaml").read_text())
    del changed["feature_spec"]["clicked"]["max_hotness"]
    (raw / "feature_spec.yaml").write_text(yaml.safe_dump(changed))
    assert run("--input", raw, "--output", tmp_path / "data") == 0
    spec = FeatureSpec.read(tmp_path / "data" / "feature_spec.yaml")
    assert spec.sequences[0].length == max(map(len, rows.clicked))
    assert read(tmp_path / "data", "test")["offsets"] == rows.offsets[rows.ts >= TRAIN_ROWS].tolist()


# What row 7 of the log has instead, and the words of the message.
BAD = {
    "an item too few": (
        {"clicked": ["a", "b"], "kinds": ["c"], "ages": [1, 2], "offsets": [1.0, 2.0]},
        "column 'clicked' has 2 items and column 'kinds', of the same sequence, 1; expected as many: correct the row",
    ),
    "an empty list": (
        {"clicked": ["a"], "kinds": ["c"], "ages": [1], "offsets": []},
        "column 'clicked' has 1 items and column 'offsets', of the same sequence, 0",
    ),
}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(("cells", "words"), BAD.values(), ids=BAD)
def test_mistakes_in_rows(tmp_path, capsys, kind, cells, words):
    rows = raw_rows()
    for name, value in cells.items():
        rows.at[7, name] = value
    raw = write_raw(tmp_path / "raw", kind, rows)
    assert run("--input", raw, "--output", tmp_path / "data") == 2
    error = capsys.readouterr().err
    assert words in error and f"logs.{kind}, {'line 9' if kind == 'csv' else 'row 8'}: column" in error
    assert not (tmp_path / "data").exists()


F, S = "feature_spec", "channel_spec.sequence"
HISTORY_OF_PRICE = f"{F}.viewed_price.history"
MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    (f"{S}.buys.feature", {f"{S}.buys.feature": []}, "unknown key of a sequence; did you mean 'features'?"),
    (f"{S}.buys.features", {f"{S}.buys.features": GONE}, "is missing from a sequence; add it"),
    (f"{S}.buys.features[2]", {f"{S}.buys.features[2]": "bougt_age"}, "did you mean 'bought_age'?"),
    (f"{S}.buys.features[2]", {f"{S}.buys.features[2]": "age"}, "'age' is already in channel_spec.numerical"),
    (f"{S}.buys.encoder", {f"{S}.buys.encoder": "dinn"}, "write one of sum, mean, din, self_attention"),
    (f"{S}.buys.target[0]", {f"{F}.bought.table": GONE},
     "'item' shares its table with no feature of the sequence; write `table: item` for one of them"),
    (f"{S}.buys.target[1]", {f"{S}.buys.target[1]": "clicked"}, "'clicked' is in multihot_categorical; name a feature"),
    (f"{S}.buys.features", {f"{S}.buys": {"features": ["bought_age"]}}, "has no feature with ids, whose embeddings"),
    (f"{S}.buys.features", {f"{S}.buys.features": ["bought", "viewed", "viewed_price"], f"{S}.views": GONE,
                            f"{S}.buys.target": []},
     "has the history 'viewed' and 'bought', which is none: nothing says that their steps are the same; make two"),
    (f"{S}.views.order", {f"{S}.views.order": "newest_first"}, "is newest_first, and a history ends with its newest"),
    (HISTORY_OF_PRICE, {f"{HISTORY_OF_PRICE}.last": 49}, "differs from that of 'viewed' of the same sequence; write"),
    (HISTORY_OF_PRICE, {f"{HISTORY_OF_PRICE}.where": GONE}, "write the same by, order, where and last for both"),
    (HISTORY_OF_PRICE, {f"{HISTORY_OF_PRICE}.by": "session"}, "differs from that of 'viewed' of the same sequence"),
    (f"{F}.bought_slot.max_hotness", {f"{F}.bought_slot.max_hotness": 8},
     "is 8, and 9 for 'bought' of the same sequence; write the same for both"),
    (f"{F}.viewed.max_hotness", {f"{F}.viewed.max_hotness": 8}, "is stated by history: {last: ...}; remove it"),
    (f"{F}.bought.keep", {f"{F}.bought.keep": "last"}, "follows from the order of the sequence, whose newest steps"),
    (f"{F}.bought.weights", {f"{F}.bought.weights": "note"}, "is only for multihot_categorical; remove it, and list"),
    (f"{F}.bought.wide", {f"{F}.bought.wide": "only"}, "is only, and an encoder of sequences needs embeddings"),
    (f"{F}.bought.separator", {f"{F}.bought.separator": GONE}, "is missing: CSV files hold lists as text"),
    (f"{F}.bought_age.table", {f"{F}.bought_age.table": "item"}, "is only for categorical features; remove it"),
    (f"{F}.bought.embedding_dim", {f"{F}.bought.embedding_dim": 8}, "is 8, and 16 for 'item', which has the same"),
    (f"{F}.bought_age.encode", {f"{F}.bought_age.encode": {"target": {"label": "click"}}},
     "is not for lists in sequence; write another encoding of ids, or steps of numbers"),
    (f"{F}.bought_age.encode", {f"{F}.bought_age": {"encode": {"cross": ["clicked", "slot"], "hash": 9}}},
     "is not for lists in sequence"),
    (f"{F}.bought_age.indicator", {f"{F}.bought_age.encode": [{"fill": 0}], f"{F}.bought_age.indicator": "no_age"},
     "is not for lists; remove it"),
    (f"{F}.bought_age", {f"{F}.bought_age": {"count": {"by": "user_id", "order": "ts"}, "encode": ["log1p"]}},
     "has one value per row, and is in sequence; list it in numerical"),
    (f"{F}.viewed_price.encode", {f"{F}.viewed_price.encode": GONE}, "and the values are float64; write another"),
    (f"{F}.bought.encode", {f"{F}.bought.encode": {"hash": 10}}, "differs from that of 'item', which has the same"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "changes", "words"), MISTAKES, ids=[words for _, _, words in MISTAKES])
def test_mistakes_in_specifications(tmp_path, path, changes, words):
    check_only_problem(raw_problems(changed(changes, sequential_raw()), tmp_path), path, words)


def test_encodings_of_sequences(tmp_path):
    """Without `encode`, a feature has ids, or numbers if its dtype is a floating-point type."""
    changes = {f"{F}.bought_age": {"separator": " ", "dtype": "float32"}, f"{F}.bought_slot.table": GONE,
               f"{F}.bought_slot.encode": GONE, f"{F}.bought_slot.cardinality": GONE}  # fmt: skip
    valid = changed(changes | {f"{S}.buys.target": ["item"]}, sequential_raw())
    spec = raw_spec_from_dict(valid, tmp_path)
    rules = {name: spec.features[name].rule for name in ("bought", "bought_slot", "bought_age", "viewed")}
    assert rules == {
        "bought": SharedVocabularyRule("item", is_counted=True),
        "bought_slot": VocabularyRule(),
        "bought_age": NumberRule(),
        "viewed": SharedVocabularyRule("item", is_counted=False),
    }
    assert [sequence.encoder for sequence in spec.sequences] == ["din", "self_attention"]
    assert {spec.features[name].feature.max_hotness for name in ("bought", "bought_slot", "bought_age")} == {9}
    assert spec.features["viewed_price"].computed.steps == spec.features["viewed"].computed.of


def test_the_examples_of_the_documentation(tmp_path):
    chapter = (ROOT / "docs" / "features.md").read_text().split("\n## Sequences\n")[1].split("\n## ")[0]
    encoded, raw = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", chapter, flags=re.DOTALL))
    for example in (encoded, raw):
        example["feature_spec"]["click"] = {}
        example["channel_spec"]["label"] = ["click"]
    chunk = {"type": "csv", "features": list(encoded["feature_spec"]), "files": ["a.csv"]}
    spec = FeatureSpec.from_dict(encoded | {"source_spec": {"train": [chunk], "test": [chunk]}}, tmp_path)
    assert [feature.name for feature in spec.sequence_numbers] == ["clicked_age"]
    source = {"type": "csv", "header": True, "files": ["a.csv"]}
    raw_spec = raw_spec_from_dict(raw | {"source_spec": {"train": [source], "test": [source]}}, tmp_path)
    assert [sequence.encoder for sequence in raw_spec.sequences] == ["din", "din"]
