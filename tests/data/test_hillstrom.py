import random

import pandas as pd
import pytest

from tests.data.scalar_hash import scalar_row_hash
from tests.data.table_samples import (
    check_features,
    in_training_order,
    labels_of,
    preprocessed,
    refusal,
    rows_of,
    taken,
    write_lines,
)
from tests.helpers import real_data

pytestmark = pytest.mark.filterwarnings("ignore:Initializing an NVTabular Dataset in CPU mode")

SEED, OOV_BUCKETS, TEST, VALID = 3, 2, 0.25, 0.2
HEADER = "recency,history_segment,history,mens,womens,zip_code,newbie,channel,segment,visit,conversion,spend"
CODES, NUMBERS = ("mens", "womens", "newbie"), ("recency", "history", "spend")
TEXTS = ("history_segment", "zip_code", "channel", "segment")


def make_rows(count: int, seed: int) -> list[dict[str, str]]:
    draw = random.Random(seed)
    rows = []
    for row in range(count):
        visit = draw.random() < 0.5
        conversion = visit and draw.random() < 0.5
        rows.append(
            {
                "recency": str(draw.randrange(1, 13)),
                "history_segment": draw.choice(["1) $0 - $100", "2) $100 - $200", '"6) $750 - $1,000"']),
                "history": f"{draw.uniform(29, 3000):.2f}",
                "mens": str(draw.randrange(2)),
                "womens": str(draw.randrange(2)),
                "zip_code": "Lunar" if row in ONLY_IN_TEST else draw.choice(["Urban", "Surburban", "Rural"]),
                "newbie": str(draw.randrange(2)),
                "channel": draw.choice(["Phone", "Web", "Multichannel"]),
                "segment": draw.choice(["Mens E-Mail", "Womens E-Mail", "No E-Mail"]),
                "visit": str(int(visit)),
                "conversion": str(int(conversion)),
                "spend": f"{draw.uniform(30, 500):.2f}" if conversion else "0",
            }
        )
    return rows


def mapping_of(row: int, seed: int = SEED) -> str:
    fraction = scalar_row_hash(seed, 0, row) / 2**64
    return "test" if fraction < TEST else "valid" if fraction < TEST + VALID else "train"


COUNT = 80
ONLY_IN_TEST = [row for row in range(COUNT) if mapping_of(row) == "test"][:3]
ROWS = make_rows(COUNT, 4)


def write_raw(folder, rows=ROWS, name="hillstrom.csv"):
    return write_lines(folder / name, [HEADER, *(",".join(row.values()) for row in rows)])


def raw_columns():
    raw = {name: [row[name].strip('"') for row in ROWS] for name in HEADER.split(",")}
    for name in NUMBERS:
        raw[name] = [float(text) for text in raw[name]]
    for name in CODES:
        raw[name] = [int(text) for text in raw[name]]
    return raw


def expected_rows(seed: int = SEED):
    rows = {mapping: [row for row in range(COUNT) if mapping_of(row, seed) == mapping] for mapping in ("valid", "test")}
    return {"train": in_training_order(set(range(COUNT)) - set(rows["valid"]) - set(rows["test"]), seed), **rows}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hillstrom")
    split = {"from": "customers", "random": {"test": TEST, "valid": VALID}}
    raw = write_raw(folder / "raw")
    return preprocessed("hillstrom", raw, folder / "out", seed=SEED, oov_buckets=OOV_BUCKETS, split=split)


@pytest.mark.parametrize("mapping", ["train", "valid", "test"])
def test_features_and_labels_match_their_definition(dataset, mapping):
    split = expected_rows()
    expected = taken(raw_columns(), split[mapping])
    check_features(
        dataset,
        mapping,
        taken(raw_columns(), split["train"]),
        expected,
        onehot=TEXTS + CODES,
        numerical=["recency"],
        heavy_tailed=["history"],
        oov_buckets=OOV_BUCKETS,
    )
    rows = rows_of(dataset, mapping)
    for label in ("visit", "conversion", "spend"):
        assert rows[label].tolist() == pytest.approx([float(value) for value in expected[label]]), label


def test_labels_are_a_funnel_and_no_row_is_missing(dataset):
    assert labels_of(dataset) == [
        ("visit", "binary", None),
        ("conversion", "binary", "visit"),
        ("spend", "regression", "conversion"),
    ]
    rows = pd.concat([rows_of(dataset, mapping) for mapping in ("train", "valid", "test")])
    assert len(rows) == COUNT and {0.0, 1.0} == set(rows["conversion"]), "rows without a visit are kept"
    assert rows_of(dataset, "test")["zip_code"].isin([2, 3]).sum() == len(ONLY_IN_TEST) > 0


def test_shipped_split_of_the_published_file(tmp_path):
    name = "Kevin_Hillstrom_MineThatData_E-MailAnalytics_DataMiningChallenge_2008.03.20.csv.gz"
    out = preprocessed("hillstrom", write_raw(tmp_path / "raw", name=name), tmp_path / "out")
    test = [row for row in range(COUNT) if scalar_row_hash(0, 0, row) / 2**64 < 0.2]
    train = in_training_order(set(range(COUNT)) - set(test), 0)
    assert not list(out.glob("valid*"))
    for mapping, expected in (("train", train), ("test", test)):
        visits = [float(ROWS[row]["visit"]) for row in expected]
        assert rows_of(out, mapping)["visit"].tolist() == visits


def changed(row, **cells):
    return [*ROWS[:row], ROWS[row] | cells, *ROWS[row + 1 :]]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"visit": "0", "conversion": "1", "spend": "5"}, "line 7: conversion is 1, expected 0 where visit is 0"),
        ({"visit": "1", "conversion": "0", "spend": "5"}, "line 7: spend is 5, expected 0 where conversion is 0"),
        ({"visit": "2"}, "line 7: the label visit is 2; expected 0 or 1"),
        ({"history": "-1"}, "column 'history' holds -1; expected a number above -1"),
        ({"mens": "yes"}, "line 7: column 'mens' is 'yes'; expected a whole number"),
        ({"history_segment": "6) $750 - $1,000"}, "line 7: 13 cells, expected 12"),
    ],
)
def test_a_wrong_cell_is_named(tmp_path, capsys, cells, message):
    raw = write_raw(tmp_path / "raw", changed(5, **cells))
    assert message in refusal("hillstrom", raw, tmp_path / "out", capsys)


@pytest.mark.real_data
def test_the_published_file_has_the_published_counts(tmp_path):
    preprocessed("hillstrom", real_data("hillstrom"), tmp_path / "out")
    rows = pd.concat([rows_of(tmp_path / "out", mapping) for mapping in ("train", "test")])
    assert len(rows) == 48_000
    assert round(100 * rows["visit"].mean(), 2) == 14.70
    assert rows["conversion"].sum() == 435
    assert round(rows["spend"][rows["conversion"] == 1].mean(), 2) == 116.71
    assert 0.19 < len(rows_of(tmp_path / "out", "test")) / 48_000 < 0.21
