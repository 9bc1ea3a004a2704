"""Specifications inferred from samples of raw files, against how these were written."""

import bz2
import csv
import gzip
import io
import json
import re
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.raw.column_kinds import find_list, find_timestamp, is_number, kind_by_name, sampled_column
from data.raw.infer import infer
from data.raw.sampling import draw_sample
from data.spec.raw.reader import read_raw_spec
from data.spec.raw.spec import (
    KeepRule,
    LabelMapRule,
    NumberRule,
    NumberStep,
    RandomSplit,
    RawSpec,
    SharedVocabularyRule,
    ThresholdRule,
    TimeSplit,
    TimestampRule,
    VocabularyRule,
)
from data.synthetic_logs import write_logs
from tests.helpers import ROOT, real_data


def inferred(folder: Path, patterns: list[str] | str, *labels: str, **others: Any) -> tuple[RawSpec, str]:
    """The specification inferred for files in a folder, and its text."""
    patterns = [patterns] if isinstance(patterns, str) else patterns
    text = infer([str(folder / pattern) for pattern in patterns], labels, folder=folder, **others)
    path = folder / "inferred.yaml"
    path.write_text(text, encoding="utf-8")
    return read_raw_spec(path), text


def write(folder: Path, columns: dict[str, Any], name: str = "logs.csv") -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    pd.DataFrame(columns).to_csv(folder / name, index=False)
    return folder


def left_out(text: str) -> dict[str, str]:
    """{column: reason} of a specification's comments."""
    return dict(re.findall(r"^  # - (.*?): (.*)$", text, flags=re.MULTILINE))


def comment_of(text: str, feature: str) -> str:
    """The comment on a feature, beside or above it."""
    lines = text.splitlines()
    place = next(place for place, line in enumerate(lines) if line.startswith(f"  {feature}: "))
    return lines[place].split("  # ")[1] if "  # " in lines[place].strip() else lines[place - 1].strip(" #")


def kinds(spec: RawSpec) -> dict[str, str]:
    """{feature: channel}."""
    return {name: channel for channel, names in spec.channels.items() for name in names}


# Avazu-like logs.


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("logs") / "raw"
    write_logs(folder, rows=12_000, days=10)
    return folder


@pytest.fixture(scope="module")
def logs_spec(logs) -> tuple[RawSpec, str]:
    return inferred(logs, "logs/*.csv.gz", "click", "install", time="hour")


def test_types_of_click_logs(logs_spec):
    spec, text = logs_spec
    found = kinds(spec)
    assert {name for name, channel in found.items() if channel == "label"} == {"click", "install"}
    assert found["price"] == found["price_missing"] == "numerical"
    assert found["interests"] == "multihot_categorical"
    assert left_out(text).keys() == {"id"} and "differs in nearly every row" in left_out(text)["id"]
    ids = {name for name, channel in found.items() if channel == "onehot_categorical"}
    names = "C1 banner_pos site_id site_domain site_category app_id app_domain app_category device_id device_ip"
    names += " device_model device_type device_conn_type C14 C15 C16 C17 C18 C19 C20 C21 hour weekday"
    assert ids == set(names.split())


def test_encodings_of_click_logs(logs_spec):
    spec, _ = logs_spec
    rules = {name: feature.rule for name, feature in spec.features.items()}
    assert rules["hour"] == TimestampRule("hour") and rules["weekday"] == TimestampRule("weekday")
    hour = spec.features["hour"].reading
    assert hour is not None and spec.readings[hour].format == "%y%m%d%H"
    steps = (NumberStep("fill", fill="median"), NumberStep("log1p"), NumberStep("standardize"))
    assert rules["price"] == NumberRule(steps, "price_missing")
    assert rules["click"] == KeepRule()
    interests = spec.readings[spec.features["interests"].reading or ""]
    assert interests.is_list and interests.separator == "|"
    assert spec.features["interests"].feature.max_hotness == 5
    assert rules["device_ip"] == VocabularyRule(min_count=1)  # 12,000 rows are few


def test_time_split_takes_the_last_fifth(logs_spec):
    spec, text = logs_spec
    assert isinstance(spec.split, TimeSplit)
    bounds = [datetime.fromtimestamp(bound / 1e6, UTC) for bound in (spec.split.valid_from, spec.split.test_from)]
    assert bounds == [datetime(2014, 10, 29, tzinfo=UTC), datetime(2014, 10, 30, tzinfo=UTC)]
    assert "80.0% train, 10.0% valid, 10.0% test" in text


def test_comments_state_what_pandas_counts(logs, logs_spec):
    _, text = logs_spec
    rows = pd.concat([pd.read_csv(path, dtype=str) for path in sorted((logs / "logs").iterdir())])
    assert text.startswith("# Inferred from all 12,000 rows of 10 files.")
    assert f"{rows['site_id'].nunique():,} values" in comment_of(text, "site_id")
    missing = f"{rows['device_model'].isna().mean():.2%}"[:3]
    assert f"{missing}" in comment_of(text, "device_model") and "missing" in comment_of(text, "device_model")
    assert f"{(rows['click'] == '1').mean():.1%} are 1" == comment_of(text, "click")
    assert "all in rows where click is 1" in comment_of(text, "install")


def test_a_sample_says_how_much_it_saw(logs):
    _, text = inferred(logs, "logs/*.csv.gz", "click", time="hour", rows=1000)
    assert text.startswith("# Inferred from ")
    header = text.splitlines()[0]
    assert "of 10 files" in header


def test_the_avazu_specification_fits_the_logs(logs):
    spec = read_raw_spec(ROOT / "feature_specs" / "avazu_raw.yaml")
    columns = pd.read_csv(next((logs / "logs").iterdir()), nrows=1).columns
    assert {reading.column for reading in spec.readings.values()} == set(columns[:24]) - {"id"}


# Real data.


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("path", "label", "ids", "numbers"),
    [
        ("criteo/criteo_sample.txt.gz", "label", [f"C{n}" for n in range(1, 27)], [f"I{n}" for n in range(1, 14)]),
        # Without a header the tenth number, with five values, is taken for an id.
        (
            "criteo/train.csv.gz",
            "column_1",
            [f"column_{n}" for n in [11, *range(15, 41)]],
            [f"column_{n}" for n in range(2, 15) if n != 11],
        ),
        (
            "hillstrom/hillstrom.csv.gz",
            "visit",
            ["history_segment", "mens", "womens", "zip_code", "newbie", "channel", "segment"],
            ["recency", "history"],
        ),
        (
            "adult/adult.data.gz",
            "column_15",
            [f"column_{n}" for n in (2, 4, 5, 6, 7, 8, 9, 10, 13, 14)],
            [f"column_{n}" for n in (1, 3, 11, 12)],
        ),
        ("ml-1m/ratings.csv.gz", "rating", ["user_id", "movie_id"], []),
        ("ml-100k/u.data.gz", "column_3", ["column_1", "column_2", "column_4_hour", "column_4_weekday"], []),
        ("ml-100k/u.user.gz", "column_3", ["column_4", "column_5"], ["column_2"]),
    ],
)
def test_types_of_real_data(tmp_path, path, label, ids, numbers):
    dataset, name = path.split("/")
    text = infer([str(real_data(dataset) / name)], [label], folder=tmp_path)
    (tmp_path / "inferred.yaml").write_text(text)
    spec = read_raw_spec(tmp_path / "inferred.yaml", allow_outside_paths=True)
    assert [name for name in spec.channels["onehot_categorical"] if not name.endswith("_value")] == ids
    assert [name for name in spec.channels["numerical"] if not name.endswith("_missing")] == numbers


@pytest.mark.real_data
def test_real_formats(tmp_path):
    def chunk(path: str, label: str):
        dataset, name = path.split("/")
        (tmp_path / "inferred.yaml").write_text(infer([str(real_data(dataset) / name)], [label], folder=tmp_path))
        return read_raw_spec(tmp_path / "inferred.yaml", allow_outside_paths=True).sources["logs"][0]

    criteo, adult = chunk("criteo/train.csv.gz", "column_1"), chunk("adult/adult.data.gz", "column_15")
    assert (criteo.separator, criteo.has_header, len(criteo.columns)) == ("\t", False, 40)
    assert (adult.separator, adult.trim, adult.null) == (",", True, ("?",))
    assert chunk("ml-100k/u.user.gz", "column_3").separator == "|"


@pytest.mark.real_data
def test_alimama_has_only_ids_and_one_number(tmp_path):
    path = real_data("alimama-display-ads") / "alimama_sampled_train.txt.gz"
    (tmp_path / "inferred.yaml").write_text(infer([str(path)], ["column_267"], folder=tmp_path))
    spec = read_raw_spec(tmp_path / "inferred.yaml", allow_outside_paths=True)
    assert "column_265" in spec.channels["numerical"]  # the price
    codes = {f"column_{n}" for n in range(251, 265)}  # user, ad, category, campaign, brand ...
    assert codes <= set(spec.channels["onehot_categorical"])


@pytest.mark.real_data
def test_consequences_of_a_label_are_left_out(tmp_path):
    reasons = left_out(infer([str(real_data("hillstrom") / "hillstrom.csv.gz")], ["visit"], folder=tmp_path))
    assert set(reasons) == {"conversion", "spend"}
    assert all("only where the label visit is 1" in reason for reason in reasons.values())


# Any table.

NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=8).filter(
    lambda name: name == name.strip() and not re.fullmatch(r"[\d.+-]*", name)
)
WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp", "Nd"]), min_size=1, max_size=6)
COLUMN_VALUES = {
    "text": st.lists(WORDS, min_size=2, max_size=5, unique=True),
    "number": st.lists(st.floats(-1e6, 1e6).map(lambda number: round(number, 3)), min_size=5, max_size=9, unique=True),
}


@st.composite
def raw_tables(draw) -> dict[str, list[str]]:
    """{column: cells} of 30 to 60 rows: a label "click", texts and numbers with missing cells."""
    size = draw(st.integers(30, 60))
    names = draw(st.lists(NAMES.filter(lambda name: name != "click"), min_size=1, max_size=4, unique=True))
    table = {"click": [str(number % 2) for number in range(size)]}
    for name in names:
        values = [str(value) for value in draw(draw(st.sampled_from(list(COLUMN_VALUES.values()))))]
        picks = draw(st.lists(st.integers(0, len(values)), min_size=size, max_size=size))
        table[name] = [values[pick] if pick < len(values) else "" for pick in picks]
    return table


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=raw_tables(), separator=st.sampled_from(",;\t|"), suffix=st.sampled_from([".csv", ".csv.gz", ".csv.bz2"]))
def test_any_table_gives_a_valid_specification(tmp_path, table, separator, suffix):
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=separator)
    writer.writerows([list(table), *zip(*table.values(), strict=True)])
    content = text.getvalue().encode()
    for old in tmp_path.iterdir():
        old.unlink()
    compress = {".csv": bytes, ".csv.gz": gzip.compress, ".csv.bz2": bz2.compress}[suffix]
    (tmp_path / f"logs{suffix}").write_bytes(compress(content))
    try:
        spec, inferred_text = inferred(tmp_path, f"logs{suffix}", "click")
    except DataError as error:
        assert "no column is of use" in str(error)
        return
    chunk = spec.sources["logs"][0]
    assert (chunk.has_header, chunk.separator) == (True, separator)
    used = {reading.column for reading in spec.readings.values()}
    # A column is used or listed with the reason, never dropped silently.
    reasons = inferred_text.split("# Left out")[1] if "# Left out" in inferred_text else ""
    assert all(name in used or name in reasons for name in table if name.isprintable())
    for feature in spec.features.values():
        if isinstance(feature.rule, NumberRule):
            cells = [cell for cell in table[spec.readings[feature.reading].column] if cell]
            assert all(np.isfinite(float(cell)) for cell in cells if cell not in spec.sources["logs"][0].null)


FORMATS = (
    "%Y-%m-%d",
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%dT%H:%M:%SZ",
    "%Y/%m/%d %H:%M:%S",
    "%Y%m%d",
    "%Y%m%d%H%M%S",
    "%y%m%d%H",
    "%d-%b-%Y",
)


@given(
    moments=st.lists(st.datetimes(datetime(2001, 1, 1), datetime(2039, 1, 1)), min_size=15, max_size=30),
    format=st.sampled_from(FORMATS),
)
@settings(deadline=None)
def test_formats_of_timestamps(moments, format):
    texts = [moment.strftime(format) for moment in moments]
    found = find_timestamp(sampled_column("event_time", pa.array(texts)))
    assert found is not None and found.format == format
    expected = {(datetime.strptime(text, format) - datetime(1970, 1, 1)) // timedelta(microseconds=1) for text in texts}
    assert set(found.micros) == expected


@pytest.mark.parametrize(("unit", "factor"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
def test_epoch_times(unit, factor):
    seconds = np.arange(1_413_849_600, 1_413_849_600 + 500 * 3600, 3600)
    found = find_timestamp(sampled_column("column_4", pa.array(seconds * factor).cast(pa.string())))
    assert found is not None and found.unit == unit
    assert set(found.micros) == set(seconds * 1_000_000)


@pytest.mark.parametrize("cells", [["14", "15"], ["20141021", "99999999"], ["a", "b"], ["2014-10-21", "soon"]])
def test_not_timestamps(cells):
    assert find_timestamp(sampled_column("hour", pa.array(cells))) is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("user_id", "id"),
        ("userId", "id"),
        ("cms_segid", "id"),
        ("zip_code", "id"),
        ("age", "number"),
        ("user_age", "number"),
        ("age_level", "id"),
        ("item_price", "number"),
        ("bid", "number"),
        ("column_3", None),
    ],
)
def test_names_say_what_a_column_is(name, kind):
    assert kind_by_name(name) == kind


def test_numbers_without_a_telling_name():
    rng = np.random.default_rng(0)

    def column(values):
        return sampled_column("x", pa.array(np.asarray(values)))

    assert is_number(column(rng.lognormal(3, 1.5, 5000).astype(int)))  # counts
    assert is_number(column(rng.normal(40, 12, 5000).astype(int)))  # ages
    assert is_number(column(rng.integers(-100, 100, 500)))
    assert is_number(column([0.5, 1.0, 2.0]))
    assert not is_number(column(rng.integers(10**6, 10**7, 5000)))  # hashes
    assert not is_number(column(rng.permutation(900)[rng.zipf(1.5, 5000) % 900]))  # ids of different popularity
    assert not is_number(column([0, 1] * 50))
    assert not is_number(sampled_column("x", pa.array(["007", "011", "120"])))


@pytest.mark.parametrize("separator", ["|", ";", ", ", ",", " "])
def test_lists_of_ids(separator):
    rng = np.random.default_rng(1)
    cells = [separator.join(f"i{item}" for item in rng.integers(0, 50, rng.integers(1, 8))) for _ in range(300)]
    found = find_list(sampled_column("basket", pa.array(cells)))
    assert found is not None and found.separator == separator
    assert found.items.distinct == 50
    assert list(np.bincount(found.lengths)) == list(np.bincount([len(cell.split(separator)) for cell in cells]))


@pytest.mark.parametrize(
    "cells",
    [
        ["Womens E-Mail", "No E-Mail", "Mens E-Mail"] * 20,
        [f"Movie number {word} (1995)" for word in "abcdefghijklmnopqrstuvwxyz"],
        [f"1.{minor}.{patch}" for minor in range(9) for patch in range(9)],
        ["US>CA>807", "GB", "US>NY>501"] * 20,
    ],
)
def test_texts_that_are_no_lists(cells):
    assert find_list(sampled_column("x", pa.array(cells))) is None


def test_a_history_shares_the_vocabulary_of_its_items(tmp_path):
    rng = np.random.default_rng(2)
    items = [f"i{item}" for item in rng.integers(0, 100, 500)]
    history = [" ".join(f"i{item}" for item in rng.integers(0, 100, size)) for size in rng.integers(0, 60, 500)]
    spec, text = inferred(
        write(tmp_path, {"click": [0, 1] * 250, "item_id": items, "clicked_items": history}), "logs.csv", "click"
    )
    feature = spec.features["clicked_items"]
    assert feature.rule == SharedVocabularyRule("item_id") and feature.keep == "last"
    assert feature.feature.max_hotness == max(len(cell.split()) for cell in history)


# Labels.


def test_labels_as_texts_thresholds_and_numbers(tmp_path):
    columns = {
        "a": ["no", "yes", "no", "no"] * 10,
        "b": [">50K", "<=50K", "<=50K", "<=50K"] * 10,
        "c": [1, 2, 2, 2] * 10,
        "d": [1.0, None, 0.0, 0.0] * 10,
        "spend": [0, 1.5, 20, 3] * 10,
        "x": list("abca") * 10,
    }
    spec, text = inferred(write(tmp_path, columns), "logs.csv", "a", "b", "c", "d", "spend")
    rules = {name: feature.rule for name, feature in spec.features.items()}
    assert rules["a"] == LabelMapRule({"no": 0, "yes": 1})
    assert rules["b"] == LabelMapRule({"<=50K": 0, ">50K": 1})  # the rarer value
    assert rules["c"] == ThresholdRule(">=", 2)
    assert rules["d"] == KeepRule() and spec.features["d"].feature.missing == "ignore"
    assert spec.features["spend"].feature.task == "regression"
    assert "25.0% are 'yes', taken as 1" in text


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("clck", "--label clck: no such column in .*; did you mean 'click'?"),
        ("country", "--label country: has 30 different texts, such as .*; a label is 0 or 1"),
        ("nothing", "--label nothing: is empty in all 30 rows of the sample"),
    ],
)
def test_useless_labels(tmp_path, label, message):
    columns = {"click": [0, 1] * 15, "country": [f"c{n}" for n in range(30)], "nothing": [None] * 30}
    with pytest.raises(DataError, match=message):
        inferred(write(tmp_path, columns), "logs.csv", label)


def test_an_unknown_label_without_a_header(tmp_path):
    (tmp_path / "logs.csv").write_text("0,a,3.5\n1,b,2.5\n0,a,1.5\n")
    with pytest.raises(DataError, match="no header, so columns are numbered; its first row is column_1=0, column_2=a"):
        inferred(tmp_path, "logs.csv", "click")


# Columns of no use.


def test_what_is_left_out_and_why(tmp_path):
    rng = np.random.default_rng(3)
    click = rng.integers(0, 2, 400)
    words = ["red", "green", "blue", "big", "small", "old", "new"]
    columns = {
        "click": click,
        "row": range(400),
        "request": [f"{word:x}" for word in rng.integers(2**40, 2**44, 400)],
        "version": ["v1"] * 400,
        "nothing": [None] * 400,
        "title": [" ".join(rng.choice(words, 6)) + f" {number}" for number in range(400)],
        "answer": np.where(click, "hit", "miss"),
        "site": rng.choice(["a", "b", "c"], 400),
        "items": [f"[{a}, {b}]" for a, b in rng.integers(0, 30, (400, 2))],
        "user_id": rng.permutation(400) * 7919,
    }
    spec, text = inferred(write(tmp_path, columns), "logs.csv", "click")
    reasons = left_out(text)
    assert reasons["row"] == "numbers its rows"
    assert reasons["request"].startswith("differs in nearly every row, as a row id does: 400 values in 400 rows")
    assert reasons["version"] == "always 'v1'"
    assert reasons["nothing"] == "empty"
    assert reasons["title"].startswith("free text, 7 words")
    assert reasons["items"].startswith("lists in brackets")
    assert reasons["answer"].startswith("tells the label click")
    assert spec.channels["onehot_categorical"] == ("site", "user_id")
    assert "almost every row has its own" in comment_of(text, "user_id")


def test_nothing_but_the_label(tmp_path):
    with pytest.raises(DataError, match="no column is of use as an input .*always 'v1'"):
        inferred(write(tmp_path, {"click": [0, 1] * 20, "version": ["v1"] * 40}), "logs.csv", "click")


# The split.


def test_a_split_by_uneven_times_counts_rows(tmp_path):
    times = [datetime(2020, 1, 1)] * 5 + [datetime(2024, 1, day) for day in range(1, 31) for _ in range(10)]
    columns = {"ts": times, "click": np.arange(305) % 2, "x": list("abcde") * 61}
    spec, text = inferred(write(tmp_path, columns), "logs.csv", "click", time="ts")
    assert isinstance(spec.split, TimeSplit)
    stamps = pd.Series(times).astype("datetime64[us]").astype("int64")
    shares = [(stamps < spec.split.valid_from).mean(), (stamps >= spec.split.test_from).mean()]
    assert 0.7 < shares[0] < 0.9 and 0.05 < shares[1] < 0.2


def test_a_split_by_numbers(tmp_path):
    columns = {"step": np.arange(200), "click": np.arange(200) % 2, "x": list("abcde") * 40}
    spec, _ = inferred(write(tmp_path, columns), "logs.csv", "click", time="step")
    assert spec.split == TimeSplit(("logs",), "step", 160, 180)


def test_a_split_by_days_of_a_week_states_the_format(tmp_path):
    days = [f"2024030{day}" for day in range(1, 6) for _ in range(40)]
    columns = {"day": days, "click": np.arange(200) % 2, "x": list("abcde") * 40}
    spec, text = inferred(write(tmp_path, columns), "logs.csv", "click", time="day")
    assert isinstance(spec.split, TimeSplit)
    assert spec.readings[spec.split.reading].format == "%Y%m%d"
    assert "timestamps without different hours" in left_out(text)["day"]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("x", "--time x: holds 'a', which is not recognized as a timestamp"),
        ("constant", "--time constant: is the same in all rows"),
        ("click", "--time click: is a label, too"),
        ("gaps", "--time gaps: is missing in 20 of 40 sampled rows"),
        ("hours", "--time hours: no such column in .*; did you mean 'hour'"),
    ],
)
def test_useless_times(tmp_path, column, message):
    columns = {"hour": range(40), "click": [0, 1] * 20, "x": list("abca") * 10, "constant": ["2024-01-01"] * 40}
    columns["gaps"] = ["2024-01-01", None] * 20
    with pytest.raises(DataError, match=message):
        inferred(write(tmp_path, columns), "logs.csv", "click", time=column)


def test_random_split_hints_at_time_and_user(tmp_path):
    times = pd.date_range("2024-01-01", periods=300, freq="h").astype(str)
    columns = {"user_id": np.arange(300) % 30, "ts": times, "click": np.arange(300) % 2}
    spec, text = inferred(write(tmp_path, columns), "logs.csv", "click")
    assert spec.split == RandomSplit(("logs",), {"valid": 0.1, "test": 0.1})
    assert "--time ts would split by time; `by: user_id` keeps all rows of a user in one mapping" in text


# Files.


def test_parquet_and_csv_of_the_same_values(tmp_path):
    rng = np.random.default_rng(4)
    size = 500
    columns = {
        "click": rng.integers(0, 2, size),
        "site": rng.choice(["a", "b", "c"], size),
        "user_id": rng.integers(0, 50, size),
        "price": np.round(rng.lognormal(size=size), 2),
        "score": pd.array(rng.integers(0, 1000, size), dtype="Int64"),
    }
    frame = pd.DataFrame(columns)
    frame.loc[::9, "score"] = pd.NA
    frame.to_csv(tmp_path / "logs.csv", index=False)
    frame.to_parquet(tmp_path / "logs.parquet")
    texts = [inferred(tmp_path, name, "click")[1] for name in ("logs.csv", "logs.parquet")]
    sections = [re.sub(r"source_spec:.*?\n\n", "", text, flags=re.DOTALL) for text in texts]
    assert sections[0] == sections[1]


def test_parquet_lists_and_timestamps(tmp_path):
    rng = np.random.default_rng(5)
    times = pd.date_range("2024-01-01", periods=300, freq="h")
    lists = [rng.integers(0, 40, length).tolist() for length in rng.integers(0, 6, 300)]
    table = pa.table({"click": np.arange(300) % 2, "ts": times, "tags": lists, "extra": [{"a": 1}] * 300})
    pq.write_table(table, tmp_path / "logs.parquet", row_group_size=100)
    spec, text = inferred(tmp_path, "logs.parquet", "click", time="ts")
    tags = spec.readings[spec.features["tags"].reading or ""]
    assert tags.is_list and tags.separator is None and spec.features["tags"].feature.max_hotness == 5
    assert spec.features["ts_hour"].rule == TimestampRule("hour")
    assert left_out(text)["extra"].startswith("values of type struct")


def test_keys_of_folders_are_columns(tmp_path):
    for day in range(1, 6):
        write(tmp_path / f"logs/day=2024-03-0{day}", {"click": [0, 1] * 20, "x": list("abca") * 10})
    spec, text = inferred(tmp_path, "logs", "click", time="day")
    assert isinstance(spec.split, TimeSplit) and spec.readings[spec.split.reading].column == "day"
    assert spec.sources["logs"][0].files == ("logs",)
    assert "200 rows of 5 files" in text


def test_quotes_nulls_spaces_and_a_byte_order_mark(tmp_path):
    rows = [f'{n % 2},"shop {n % 3}, {"x" * (n % 2)}", {"NA" if n % 5 == 0 else n * 1.5}' for n in range(60)]
    (tmp_path / "logs.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(["click,shop,amount", *rows]).encode())
    spec, _ = inferred(tmp_path, "logs.csv", "click")
    assert spec.sources["logs"][0].null == ("NA",) and spec.sources["logs"][0].trim
    assert spec.channels["numerical"] == ("amount", "amount_missing")


def test_numbers_whose_values_repeat_are_also_ids(tmp_path):
    rng, rows = np.random.default_rng(0), 2000
    columns = {
        "click": np.arange(rows) % 2,
        "age": rng.permutation(np.arange(rows) % 100 + 1),  # each value 20 times
        "duration": rng.permutation(np.arange(rows) % 101 + 1),  # one value 19 times
        "price": rng.random(rows).round(6),
        "discount": rng.permutation(np.arange(rows) % 2 / 2),
    }
    write(tmp_path, {name: values.tolist() for name, values in columns.items()})
    spec, text = inferred(tmp_path, "logs.csv", "click")
    assert spec.channels["numerical"] == ("age", "duration", "price", "discount")
    assert spec.channels["onehot_categorical"] == ("age_value",)
    reading = spec.features["age_value"].reading
    assert reading is not None and spec.readings[reading].column == "age"
    assert spec.features["age_value"].rule == VocabularyRule(min_count=1)
    assert comment_of(text, "age_value") == "the number age as ids, 100 values"


def test_names_that_no_feature_can_have(tmp_path):
    columns = {"click": [0, 1] * 30, "a/b": list("xyz") * 20, "a_b": list("uvw") * 20, ".c": list("rst") * 20}
    write(tmp_path, columns)
    spec, _ = inferred(tmp_path, "logs.csv", "click")
    named = {feature: spec.readings[found.reading or ""].column for feature, found in spec.features.items()}
    assert named == {"click": "click", "a_b_": "a/b", "a_b": "a_b", "_c": ".c"}


def test_an_index_without_a_name_is_left_out(tmp_path):
    frame = pd.DataFrame({"click": [0, 1] * 30, "x": list("abc") * 20})
    frame.to_csv(tmp_path / "logs.csv")
    _, text = inferred(tmp_path, "logs.csv", "click")
    assert "no printable name" in text


def large_log(path: Path, rows: int = 400_000) -> None:
    """A log whose column `ts` grows steadily."""
    seconds = np.arange(rows) + 1_700_000_000
    text = "\n".join(f"{second % 2},s{second % 101},{second}" for second in seconds.tolist())
    content = f"click,site,ts\n{text}\n".encode()
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)


@pytest.mark.parametrize("name", ["large.csv", "large.csv.gz"])
def test_the_sample_spans_a_large_file(tmp_path, name):
    large_log(tmp_path / name)
    sample = draw_sample([tmp_path / name], 30_000, ["click"])
    seconds = np.array(sample.table["ts"].to_pylist(), dtype=np.int64) - 1_700_000_000
    assert len(seconds) < 200_000 and len(set(seconds)) == len(seconds)
    assert seconds.min() == 0 and seconds.max() == 399_999
    middle = seconds[(seconds > 150_000) & (seconds < 250_000)]
    assert len(middle) > 5000
    assert sample.is_spread and not sample.is_complete
    assert sample.estimated_rows == pytest.approx(400_000, rel=0.05)


def test_large_compressed_files_are_read_at_their_start(tmp_path, monkeypatch):
    monkeypatch.setattr("data.raw.sampling.MAX_COMPRESSED_BYTES", 1000)
    large_log(tmp_path / "large.csv.gz")
    spec, text = inferred(tmp_path, "large.csv.gz", "click", time="ts", rows=30_000)
    assert "Only the start of each file was read" in text
    assert isinstance(spec.split, TimeSplit)


def test_files_are_found_from_the_folder_of_the_specification(tmp_path, monkeypatch):
    write(tmp_path / "raw" / "logs", {"click": [0, 1] * 20, "x": list("abca") * 10})
    monkeypatch.chdir(tmp_path)
    found = [infer([pattern], ["click"], folder=Path("raw")) for pattern in ("raw/logs/*.csv", "logs/*.csv")]
    assert found[0] == found[1] and 'files: ["logs/*.csv"]' in found[0]


def zipped(content: bytes) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.csv", content)
        file.writestr("b.csv", content)
    return archive.getvalue()


GOOD = b"click,x\n0,a\n1,b\n"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no file matches"),
        ({"a.csv": b""}, "is empty"),
        ({"a.csv": b"click,x\n"}, "holds no rows"),
        ({"a.csv": gzip.compress(GOOD)}, r"rename it to a.csv.gz"),
        ({"a.csv.gz": GOOD}, "is not a .gz file"),
        ({"a.csv.gz": gzip.compress(GOOD)[:-9]}, "is not a complete .gz file"),
        ({"a.csv.zip": zipped(GOOD)}, "holds 2 files"),
        ({"a.csv": "click,x\n0,é\n".encode("latin-1")}, "line 2: not UTF-8"),
        ({"a.csv": "click,x\n0,a\n".encode("utf-16")}, "UTF-16"),
        ({"a.csv": b"click,x\n0,a\n1,b\n1,b,c,d\n" * 1}, "line 4: 4 fields, expected 2"),
        ({"a.csv": b"click,x,x\n0,a,b\n"}, "two columns are called 'x'"),
        ({"a.csv": GOOD, "b.csv": b"click,y\n0,a\n"}, "b.csv, line 1: 'click, y' is not the header of .*a.csv"),
        ({"a.csv": GOOD, "b.csv": b"PAR1"}, "is CSV and .* is parquet"),
        ({"a.csv": b"PAR1 and more"}, "cannot be read as parquet"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        inferred(tmp_path, "*.csv*", "click")


def test_synthetic_logs_depend_on_the_seed(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_logs(tmp_path / name, rows=1000, days=3, seed=seed)
    read = {name: (tmp_path / name / "logs" / "2014-10-22.csv.gz").read_bytes() for name in "abc"}
    assert read["a"] == read["b"] != read["c"]
    rows = pd.read_csv(tmp_path / "a" / "logs" / "2014-10-22.csv.gz", dtype=str)
    assert len(rows) == 334 and not ((rows["install"] == "1") & (rows["click"] == "0")).any()
    new = pd.read_csv(tmp_path / "a" / "new.csv", dtype=str)
    assert "click" not in new and (~new["device_id"].isin(rows["device_id"])).mean() > 0.2
    assert json.loads((tmp_path / "a" / "synthetic.json").read_text())["rows"] == 1000
