"""preprocess.py end to end, against an independent computation in pandas."""

import csv
import gzip
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import preprocess
from data.encoding.encoder_files import load_encoders
from data.preprocess.engine import Resources
from data.spec.feature_spec import FeatureSpec
from tests.data.scalar_hash import mix, scalar_hash, scalar_row_hash

SPEC = """
feature_spec:
  click: {dtype: float32}
  item: {column: item_id, encode: {vocabulary: {min_count: 2}}}
  device: {encode: {hash: 50}}
  clicked: {encode: {vocabulary_of: item}, separator: " ", max_hotness: 3, keep: last}
  hour: {column: ts, dtype: timestamp, unit: s, encode: {timestamp: hour}}
  device_by_hour: {encode: {cross: [device, hour], hash: 1000}}
  clicked_by_hour: {encode: {cross: [clicked, hour], vocabulary: {min_count: 2}}, max_hotness: 2}
  clicked_by_both: {encode: {cross: [device, clicked_by_hour], hash: 70}, max_hotness: 2, keep: last}
  price: {encode: [{fill: median}, log1p, standardize]}
source_spec:
  logs:
    - {type: csv, header: true, files: ["logs/*.csv*"], "null": ["-"]}
split: {from: logs, time: ts, test_from: 1414000000}
keep: [item_id]
channel_spec:
  onehot_categorical: [item, device, hour, device_by_hour]
  multihot_categorical: [clicked, clicked_by_hour, clicked_by_both]
  numerical: [price]
  label: [click]
"""
COLUMNS = ("click", "item_id", "device", "clicked", "ts", "price", "unused")
TEST_FROM = 1_414_000_000

texts = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=1, max_size=4)
items = st.sampled_from(["a", "b", "c", "ü", "日本", "x,y", 'q"q', "12"])
rows = st.fixed_dictionaries(
    {
        "click": st.sampled_from([0, 1]),
        "item_id": st.none() | items,
        "device": st.none() | texts.filter(lambda text: text != "-"),
        "clicked": st.none() | st.lists(items, min_size=1, max_size=5),
        "ts": st.integers(TEST_FROM - 100_000, TEST_FROM + 20_000),
        "price": st.none() | st.integers(0, 10_000).map(lambda cents: cents / 100),
    }
)


def _is_complete(table: list[dict]) -> bool:
    """Whether both mappings have rows, the training rows have a price, and some list shows its separator.

    Lists of one item like "x,y" alone look as if they were separated by commas, which is an error.
    """
    train = [row for row in table if row["ts"] < TEST_FROM]
    has_price = any(row["price"] is not None for row in train)
    return len(train) < len(table) and has_price and any(len(row["clicked"] or []) > 1 for row in table)


tables = st.lists(rows, min_size=2, max_size=40).filter(_is_complete)


def write_raw(folder: Path, table: list[dict], files: int = 2) -> None:
    (folder / "logs").mkdir(parents=True)
    (folder / "feature_spec.yaml").write_text(SPEC)
    for number in range(files):
        opened = gzip.open if number % 2 else open
        suffix = ".csv.gz" if number % 2 else ".csv"
        with opened(folder / "logs" / f"part_{number}{suffix}", "wt", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for row in table[number::files]:
                cells = {**row, "clicked": " ".join(row["clicked"]) if row["clicked"] else None, "unused": "z"}
                writer.writerow(["-" if cells[name] is None else cells[name] for name in COLUMNS])


def in_file_order(table: list[dict], files: int = 2) -> pd.DataFrame:
    return pd.DataFrame([row for number in range(files) for row in table[number::files]], dtype=object)


def expected_of(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The training and test rows of the dataset, computed row by row."""
    train = table[table["ts"] < TEST_FROM]
    counts = Counter(item for item in train["item_id"] if item is not None)
    known = sorted((item for item in counts if counts[item] >= 2), key=lambda item: (-counts[item], item.encode()))
    ids = {item: 3 + rank for rank, item in enumerate(known)}
    prices = [price for price in train["price"] if price is not None]
    logs = [math.log1p(np.median(prices) if price is None else price) for price in train["price"]]
    mean, std = math.fsum(logs) / len(logs), np.std(logs, ddof=1) if len(set(logs)) > 1 else 0.0
    filled = [math.log1p(np.median(prices) if price is None else price) for price in table["price"]]
    hours = [3 + ts // 3600 % 24 for ts in table["ts"]]
    whole = [[ids.get(item, 2) for item in listed or []] for listed in table["clicked"]]
    is_train = (table["ts"] < TEST_FROM).to_numpy()
    by_hour = crossed_with_hours(whole, hours, is_train)
    devices = [1 if device is None else 2 + scalar_hash(device) % 50 for device in table["device"]]
    by_both = [
        [2 + scalar_hash(scalar_row_hash(device, one)) % 70 for one in crossed]
        for device, crossed in zip(devices, by_hour, strict=True)
    ]
    encoded = pd.DataFrame(
        {
            "clicked_by_hour": [crossed[:2] for crossed in by_hour],
            "clicked_by_both": [crossed[-2:] for crossed in by_both],
            "item": [1 if item is None else ids.get(item, 2) for item in table["item_id"]],
            "clicked": [clicked[-3:] for clicked in whole],
            "hour": hours,
            "price": [(value - mean) / (std or 1.0) for value in filled],
            "click": table["click"].to_numpy(),
            "item_id": table["item_id"].to_numpy(),
        },
    )
    return encoded[is_train].reset_index(drop=True), encoded[~is_train].reset_index(drop=True)


def crossed_with_hours(lists: list[list[int]], hours: list[int], is_train: np.ndarray) -> list[list[int]]:
    """The ids of all combinations of an item and the hour, by how often they occur in the training rows."""
    rows = zip(lists, hours, strict=True)
    keys = [[np.uint64(scalar_row_hash(item, hour)).astype(np.int64) for item in listed] for listed, hour in rows]
    counts = Counter(key for of_row, trains in zip(keys, is_train, strict=True) for key in of_row if trains)
    known = sorted((key for key in counts if counts[key] >= 2), key=lambda key: (-counts[key], key))
    ids = {key: 3 + rank for rank, key in enumerate(known)}
    return [[ids.get(key, 2) for key in of_row] for of_row in keys]


def run(*arguments: object) -> int:
    return preprocess.main([str(argument) for argument in arguments])


def read_mapping(dataset: Path, mapping: str) -> pa.Table:
    spec = FeatureSpec.read(dataset / "feature_spec.yaml")
    return pa.concat_tables(pq.read_table(dataset / file) for chunk in spec.chunks(mapping) for file in chunk.files)


@settings(max_examples=25, phases=[Phase.explicit, Phase.generate], deadline=None)
@given(table=tables)
def test_random_logs_match_pandas(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("random")
    write_raw(folder / "raw", table)
    assert run("--input", folder / "raw", "--output", folder / "data") == 0
    for mapping, expected in zip(("train", "test"), expected_of(in_file_order(table)), strict=True):
        found = read_mapping(folder / "data", mapping)
        for name in ("item", "clicked", "hour", "clicked_by_hour", "clicked_by_both", "click", "item_id"):
            assert found.column(name).to_pylist() == expected[name].to_list(), name
        np.testing.assert_allclose(
            found.column("price").to_numpy(), expected["price"].to_numpy(float), rtol=2e-6, atol=2e-6
        )


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> tuple[Path, Path]:
    """A raw folder with 3,000 rows, and the dataset of it."""
    folder, random = tmp_path_factory.mktemp("logs"), np.random.default_rng(7)
    names = [f"item-{number}" for number in range(40)]
    table = [
        {
            "click": int(random.integers(2)),
            "item_id": None if random.random() < 0.05 else names[int(40 * random.random() ** 3)],
            "device": f"{random.integers(200):x}",
            "clicked": [names[int(40 * random.random() ** 3)] for _ in range(random.integers(5))] or None,
            "ts": int(TEST_FROM + random.integers(-80_000, 20_000)),
            "price": None if random.random() < 0.1 else round(float(random.lognormal()), 2),
        }
        for _ in range(3000)
    ]
    write_raw(folder / "raw", table, files=3)
    assert run("--input", folder / "raw", "--output", folder / "data") == 0
    return folder / "raw", folder / "data"


def content(dataset: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(dataset.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("rows_per_block", [1, pytest.param(17, marks=pytest.mark.slow), 250])
def test_block_size_changes_no_bit(logs, tmp_path, monkeypatch, rows_per_block):
    raw, data = logs
    if rows_per_block == 1:
        raw = cut(raw, tmp_path / "raw", lines=40)
        assert run("--input", raw, "--output", tmp_path / "whole") == 0
        data = tmp_path / "whole"
    monkeypatch.setattr(Resources, "block_rows", lambda *_: rows_per_block)
    assert run("--input", raw, "--output", tmp_path / "data") == 0
    assert content(tmp_path / "data") == content(data)


def cut(raw: Path, folder: Path, lines: int) -> Path:
    """A copy of a raw folder with the first lines of its uncompressed files."""
    (folder / "logs").mkdir(parents=True)
    (folder / "feature_spec.yaml").write_bytes((raw / "feature_spec.yaml").read_bytes())
    for path in (raw / "logs").glob("*.csv"):
        (folder / "logs" / path.name).write_text("\n".join(path.read_text().split("\n")[:lines]) + "\n")
    return folder


def test_new_rows_get_the_same_values(logs, tmp_path):
    raw, data = logs
    assert run("--workflow", data / "workflow", "--input", raw / "logs", "--output", tmp_path / "new") == 0
    new = read_mapping(tmp_path / "new", "test")
    by_time = [read_mapping(data, mapping) for mapping in ("train", "test")]
    assert new.num_rows == sum(table.num_rows for table in by_time)
    columns = ["item", "device", "hour", "device_by_hour", "price", "click", "clicked_by_hour", "clicked_by_both"]
    found, together = (
        table.to_pandas()[columns].map(lambda cell: tuple(cell) if isinstance(cell, np.ndarray) else cell)
        for table in (new, pa.concat_tables(by_time))
    )
    pd.testing.assert_frame_equal(
        found.sort_values(columns).reset_index(drop=True), together.sort_values(columns).reset_index(drop=True)
    )


def test_new_rows_need_no_labels(logs, tmp_path):
    raw, data = logs
    frame = pd.read_csv(raw / "logs" / "part_0.csv", dtype=str, keep_default_na=False).drop(columns="click")
    frame.loc[0, "item_id"] = "never seen"
    frame.to_csv(tmp_path / "new.csv", index=False)
    arguments = ["--workflow", data / "workflow", "--input", tmp_path / "new.csv", "--output", tmp_path / "new"]
    assert run(*arguments, "--keep", "device") == 0
    new = read_mapping(tmp_path / "new", "test")
    assert new.column("click").null_count == new.num_rows
    assert new.column("item")[0].as_py() == load_encoders(data / "workflow")["item"].unseen_id == 2
    assert new.column("raw_device").to_pylist() == frame["device"].to_list()


def test_an_encoded_feature_can_also_be_the_group(logs, tmp_path):
    raw, data = logs
    spec = tmp_path / "grouped_raw.yaml"
    spec.write_text(SPEC + "  map: [device]\n")
    assert run("--input", raw, "--feature_spec_in", spec, "--output", tmp_path / "data") == 0
    for mapping in ("train", "test"):
        assert read_mapping(tmp_path / "data", mapping) == read_mapping(data, mapping)
    grouped = FeatureSpec.read(tmp_path / "data" / "feature_spec.yaml")
    assert grouped.map_feature in grouped.onehot
    assert grouped.channels | {"map": ()} == FeatureSpec.read(data / "feature_spec.yaml").channels


def test_parquet_gives_the_same_dataset(logs, tmp_path):
    raw, data = logs
    (tmp_path / "raw/logs").mkdir(parents=True)
    for path in sorted((raw / "logs").iterdir()):
        frame = pd.read_csv(path, dtype={"item_id": str, "device": str}, na_values=["-"], keep_default_na=False)
        frame["clicked"] = frame["clicked"].astype(object).where(frame["clicked"].notna(), None)
        pq.write_table(pa.Table.from_pandas(frame), tmp_path / "raw/logs" / f"{path.name.split('.')[0]}.parquet")
    chunk = '{type: csv, header: true, files: ["logs/*.csv*"], "null": ["-"]}'
    assert chunk in SPEC
    (tmp_path / "raw/feature_spec.yaml").write_text(SPEC.replace(chunk, "{type: parquet, files: [logs]}"))
    assert run("--input", tmp_path / "raw", "--output", tmp_path / "data") == 0
    for mapping in ("train", "test"):
        assert read_mapping(tmp_path / "data", mapping).equals(read_mapping(data, mapping))


def test_negatives_are_sampled_and_weighted(logs, tmp_path):
    raw, data = logs
    spec = SPEC + "keep_negatives: 0.25\n"
    sampled = tmp_path / "raw"
    sampled.mkdir()
    (sampled / "logs").symlink_to(raw / "logs")
    (sampled / "feature_spec.yaml").write_text(spec)
    assert run("--input", sampled, "--output", tmp_path / "data", "--allow_outside_paths") == 0
    train, every = read_mapping(tmp_path / "data", "train").to_pandas(), read_mapping(data, "train").to_pandas()
    assert (train["click"] == 1).sum() == (every["click"] == 1).sum()
    negatives, expected = int((train["click"] == 0).sum()), 0.25 * (every["click"] == 0).sum()
    assert abs(negatives - expected) < 4 * math.sqrt(expected)
    assert set(zip(train["click"], train["sample_weight"], strict=True)) == {(0.0, 4.0), (1.0, 1.0)}
    weight = FeatureSpec.read(tmp_path / "data" / "feature_spec.yaml").sample_weight
    assert weight is not None and weight.negative_rate == 0.25
    test = read_mapping(tmp_path / "data", "test").to_pandas()
    assert len(test) == read_mapping(data, "test").num_rows and set(test["sample_weight"]) == {1.0}


def test_workflow_holds_plain_data(logs):
    folder = logs[1] / "workflow"
    document = json.loads((folder / "raw_spec.json").read_text())
    assert document["feature_spec"]["item"] == {"column": "item_id", "encode": {"vocabulary": {"min_count": 2}}}
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".parquet"}


@pytest.mark.slow
def test_dask_workers_change_no_bit(logs, tmp_path):
    raw, data = logs
    assert run("--input", raw, "--output", tmp_path / "data", "--use_dask") == 0
    assert content(tmp_path / "data") == content(data)


HISTORY_SPEC = """
feature_spec:
  click: {}
  item: {}
  seen: {history: {of: item, by: user, order: ts, where: click, last: 3}, encode: {vocabulary_of: item}}
  views: {count: {of: item, by: user, order: ts, window: 50}}
source_spec:
  logs:
    - {type: csv, header: true, files: [logs.csv]}
split: {from: logs, time: ts, test_from: 800}
channel_spec:
  onehot_categorical: [item]
  multihot_categorical: [seen]
  numerical: [views]
  label: [click]
"""


@pytest.fixture(scope="module")
def clicks() -> pd.DataFrame:
    random = np.random.default_rng(3)
    columns = {"click": (2, "{}"), "item": (6, "item-{}"), "user": (20, "u{}"), "ts": (1000, "{}")}
    frame = {
        name: [form.format(value) for value in random.integers(n, size=400)] for name, (n, form) in columns.items()
    }
    return pd.DataFrame(frame).astype({"click": int, "ts": int})


def with_histories(frame: pd.DataFrame, folder: Path) -> Path:
    """Preprocess a log with histories and counts; return the dataset."""
    (folder / "raw").mkdir(parents=True)
    frame.to_csv(folder / "raw/logs.csv", index=False)
    (folder / "raw/feature_spec.yaml").write_text(HISTORY_SPEC)
    assert run("--input", folder / "raw", "--output", folder / "data") == 0
    return folder / "data"


def check_histories(found: pa.Table, rows: pd.DataFrame, everything: pd.DataFrame, dataset: Path) -> None:
    """Compare histories and counts with a loop over all earlier rows."""
    ids, columns = load_encoders(dataset / "workflow")["item"], found.to_pydict()
    for position, (_, row) in enumerate(rows.iterrows()):
        earlier = everything[(everything["user"] == row["user"]) & (everything["ts"] < row["ts"])]
        clicked = earlier[earlier["click"] == 1].sort_values("ts", kind="stable")["item"].to_list()[-3:]
        assert columns["seen"][position] == ids.encode(clicked).tolist()
        recent = earlier[(earlier["ts"] >= row["ts"] - 50) & (earlier["item"] == row["item"])]
        assert columns["views"][position] == len(recent)


def test_histories_hold_only_earlier_rows(clicks, tmp_path):
    dataset = with_histories(clicks, tmp_path)
    for mapping, chosen in (("train", clicks["ts"] < 800), ("test", clicks["ts"] >= 800)):
        check_histories(read_mapping(dataset, mapping), clicks[chosen], clicks, dataset)


def test_new_rows_continue_histories(clicks, tmp_path):
    earlier, later = clicks[clicks["ts"] < 900], clicks[clicks["ts"] >= 900]
    dataset = with_histories(earlier, tmp_path)
    later.to_csv(tmp_path / "later.csv", index=False)
    arguments = ["--workflow", dataset / "workflow", "--input", tmp_path / "later.csv", "--output", tmp_path / "new"]
    assert run(*arguments) == 0
    check_histories(read_mapping(tmp_path / "new", "test"), later, clicks, dataset)


def test_kept_times_and_lists_are_as_written(logs, tmp_path):
    raw, data = logs
    path = raw / "logs" / "part_0.csv"
    arguments = ["--workflow", data / "workflow", "--input", path, "--output", tmp_path / "new"]
    assert run(*arguments, "--keep", "ts", "clicked") == 0
    new, written = read_mapping(tmp_path / "new", "test"), pd.read_csv(path, dtype=str, na_values=["-"])
    assert new.column("ts").to_pylist() == written["ts"].to_list()
    assert (
        new.column("raw_clicked").to_pylist()
        == written["clicked"].astype(object).where(written["clicked"].notna(), None).to_list()
    )


def test_lists_in_no_channel_are_stored(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    rows = {"click": [0, 1] * 20, "ts": range(40), "item": ["a", "b"] * 20, "sizes": ["1|3", ""] * 20}
    pd.DataFrame(rows | {"words": ["y|x|y", "y"] * 20}).to_csv(raw / "logs.csv", index=False)
    features: dict[str, dict] = {"click": {}, "ts": {"dtype": "int64"}, "item": {}}
    features |= {"sizes": {"separator": "|", "encode": ["log1p"]}}
    features |= {"words": {"separator": "|", "encode": "vocabulary", "max_hotness": 2}}
    spec = {
        "feature_spec": features,
        "source_spec": {"logs": [{"type": "csv", "header": True, "files": ["logs.csv"]}]},
        "split": {"from": "logs", "time": "ts", "test_from": 30},
        "channel_spec": {"onehot_categorical": ["item"], "label": ["click"]},
    }
    (raw / "feature_spec.yaml").write_text(yaml.safe_dump(spec))
    assert run("--input", raw, "--output", tmp_path / "data") == 0
    stored = read_mapping(tmp_path / "data", "test")
    assert stored.column("words").to_pylist() == [[3, 4], [3]] * 5
    assert stored.column("sizes").to_pylist() == [np.float32([math.log(2), math.log(4)]).tolist(), []] * 5


def test_crosses_of_raw_lists_and_histories(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    rows = {"click": [0, 1] * 20, "ts": range(40), "item": ["a", "b"] * 20, "user": ["u"] * 40}
    rows |= {"tags": [["y", None, "x"], None, []] * 13 + [["x", "z", "z"]]}
    pq.write_table(pa.table(rows, pa.schema([
        ("click", pa.int64()), ("ts", pa.int64()), ("item", pa.string()), ("user", pa.string()),
        ("tags", pa.list_(pa.string())),
    ])), raw / "logs.parquet")  # fmt: skip
    features: dict[str, dict] = {"click": {}, "ts": {"dtype": "int64"}, "tag": {"column": "tags"}}
    history = {"of": "item", "by": "user", "order": "ts", "last": 2}
    features |= {"item": {"encode": "vocabulary"}, "seen": {"history": history, "encode": {"vocabulary_of": "item"}}}
    features |= {"tag_by_item": {"encode": {"cross": ["item", "tags"], "hash": 1000}}}
    features |= {"seen_by_item": {"encode": {"cross": ["seen", "item"], "hash": 1000}}}
    spec = {
        "feature_spec": features,
        "source_spec": {"logs": [{"type": "parquet", "files": ["logs.parquet"]}]},
        "split": {"from": "logs", "time": "ts", "test_from": 30},
        "channel_spec": {"multihot_categorical": ["tag", "tag_by_item", "seen_by_item"], "label": ["click"]},
    }
    (raw / "feature_spec.yaml").write_text(yaml.safe_dump(spec))
    assert run("--input", raw, "--output", tmp_path / "data") == 0
    items = {"a": 3, "b": 4}

    def crossed(first: int, second: int) -> int:
        return 2 + scalar_hash(int(np.uint64(mix(mix(first) ^ second)).astype(np.int64))) % 1000

    stored = FeatureSpec.read(tmp_path / "data" / "feature_spec.yaml").features
    assert [stored[name].max_hotness for name in ("tag", "tag_by_item", "seen_by_item")] == [3, 3, 2]
    assert stored["tag_by_item"].cardinality == 1002
    for mapping, start in (("train", 0), ("test", 30)):
        found = read_mapping(tmp_path / "data", mapping)
        for row, (tags, seen) in enumerate(
            zip(*(found[f"{x}_by_item"].to_pylist() for x in ("tag", "seen")), strict=True)
        ):
            at = start + row
            item = scalar_hash(items[rows["item"][at]])
            words = [0 if tag is None else scalar_hash(tag) for tag in rows["tags"][at] or []]
            assert tags == [crossed(item, word) for word in words]
            earlier = [scalar_hash(items[rows["item"][one]]) for one in range(max(0, at - 2), at)]
            assert seen == [crossed(one, item) for one in earlier]
