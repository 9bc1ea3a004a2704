import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from data.checks.labels import LabelStatistics, inspect_labels, read_statistics
from data.checks.sample import MAX_ROW_GROUPS, draw_sample, quotas_of, spread_row_groups
from data.errors import DataError
from data.loading.batch import Batch
from data.loading.parquet import ParquetReader
from data.spec.feature_spec import FeatureSpec
from data.spec.features import LABEL
from tests.data.sample_data import (
    FEATURES,
    arrow_table,
    check_rows,
    dataset_spec,
    random_rows,
    write_dataset,
    write_files,
)

LAYOUTS = [[[400]], [[7, 13], [], [0, 380]], [[1] * 400]]
FUNNEL = {"kind": {"given": "click"}, "stars": {"task": "regression", "missing": "ignore", "given": "kind"}}


def funnel_rows(rows: int = 400) -> pd.DataFrame:
    """A click, a purchase (`kind`) that may lack its click, and what was paid (`stars`), often unknown."""
    frame = random_rows(rows)
    frame["kind"] = frame["kind"] % 2
    return frame


def facts_of(spec: FeatureSpec) -> dict[str, LabelStatistics]:
    return {found.label.name: found for found in read_statistics(spec, ParquetReader(spec.only(LABEL), "train"))}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_statistics_equal_plain_counts(tmp_path, layout):
    frame = funnel_rows()
    frame["click"] = frame["click"].mask(frame["user"] % 10 == 0)
    may_miss = {"types": {"click": pa.float32()}, "click": {"missing": "ignore"}}
    spec, _ = write_dataset(tmp_path, layout, frame=frame, **may_miss, **FUNNEL)
    rows = frame.to_dict("records")
    clicked, bought = ([row for row in rows if row[label] == 1] for label in ("click", "kind"))
    paid = [row["stars"] for row in bought if not math.isnan(row["stars"])]
    facts = facts_of(spec)
    assert facts["click"].total == len(clicked)
    assert facts["click"].rows == len(clicked) + sum(row["click"] == 0 for row in rows) < len(rows)
    purchases = sum(row["kind"] for row in clicked)
    assert (facts["kind"].rows, facts["kind"].total) == (len(clicked), purchases)
    assert facts["stars"].rows == len(paid) < len(bought)
    assert (facts["stars"].least, facts["stars"].most) == pytest.approx((min(paid), max(paid)))
    orphans = [number for number, row in enumerate(rows) if row["kind"] == 1 and row["click"] == 0]
    assert (facts["kind"].orphans, facts["kind"].first_orphan) == (len(orphans), orphans[0])
    assert facts["click"].orphans == facts["stars"].orphans == 0


def test_facts_take_one_row_group_of_the_labels_at_a_time(tmp_path, monkeypatch):
    frame = random_rows(60)
    frame["user"] = -5  # could not be decoded
    spec, _ = write_dataset(tmp_path, [[20, 10], [30]], frame=frame)
    sizes, allocate = [], ParquetReader.allocate

    def counted(reader: ParquetReader, rows: int) -> Batch:
        sizes.append(rows)
        return allocate(reader, rows)

    monkeypatch.setattr(ParquetReader, "allocate", counted)
    assert facts_of(spec)["click"].rows == 60
    assert sizes == [20, 10, 30]


def test_unreadable_label_is_located(tmp_path):
    frame = random_rows(30)
    frame.loc[17, "click"] = 3
    spec, _ = write_dataset(tmp_path, [[10], [20]], frame=frame)
    with pytest.raises(DataError, match=r"part_1.parquet.*'click'.*row 7 "):
        inspect_labels(spec, "train")


def reported(tmp_path, frame: pd.DataFrame, **changes: object) -> tuple[tuple[str, ...], tuple[str, ...]]:
    spec, _ = write_dataset(tmp_path, [[100], [len(frame) - 100]], frame=frame, **changes)
    report = inspect_labels(spec, "train")
    return report.problems, report.warnings


def test_sound_labels_are_not_complained_of(tmp_path):
    frame = funnel_rows()
    frame.loc[frame["click"] == 0, "kind"] = 0
    assert reported(tmp_path, frame, **FUNNEL) == ((), ())
    assert reported(tmp_path, random_rows(400)) == ((), ())


@pytest.mark.parametrize(
    ("column", "values", "changes", "fragments"),
    [
        ("click", 0, {}, ["click: has no positive among 400 rows of mapping 'train'", "part_0.parquet"]),
        ("click", 1, {}, ["click: has no negative among 400 rows", "channel_spec.label"]),
        ("stars", 2.5, {}, ["stars: is always 2.5 among 400 rows"]),
        ("stars", np.nan, {}, ["stars: is known in no row of"]),
        ("kind", 3, {}, ["kind: is always 3 among 400 rows"]),
        (
            "kind",
            0,
            FUNNEL,
            ["kind: has no positive among", "rows with click = 1 of", "stars: is known in no row with"],
        ),
    ],
)
def test_constant_labels(tmp_path, column, values, changes, fragments):
    frame = funnel_rows() if changes else random_rows(400)
    frame[column] = values
    problems, warnings = reported(tmp_path, frame, **changes)
    assert not warnings
    for fragment in fragments:
        assert fragment in "\n".join(problems)


def test_values_outside_the_sample_space(tmp_path):
    frame = funnel_rows()
    frame["kind"] = np.where(frame["click"] == 1, 1, 0)
    problems, _ = reported(tmp_path, frame, **FUNNEL)
    assert len(problems) == 1 and "kind: has no negative" in problems[0]


def test_purchases_without_a_click(tmp_path):
    frame = funnel_rows()
    frame.loc[frame["click"] == 0, "kind"] = 0
    frame.loc[[127, 300], ["click", "kind"]] = [0, 1]
    (problem,), _ = reported(tmp_path, frame, **FUNNEL)
    assert "kind: is 1 in 2 rows in which click is 0" in problem
    assert f"the first in row 27 of {tmp_path / 'part_1.parquet'}" in problem


def test_location_is_in_the_file_of_the_label(tmp_path):
    frame = funnel_rows(40)
    frame.loc[frame["click"] == 0, "kind"] = 0
    frame.loc[33, ["click", "kind"]] = [0, 1]
    table, others = arrow_table(frame), [name for name in FEATURES if name != "kind"]
    chunks = [
        (others, write_files(tmp_path, "a", table.select(others), [[40]])),
        (["kind"], write_files(tmp_path, "b", table.select(["kind"]), [[10, 10], [5, 15]])),
    ]
    (problem,) = inspect_labels(dataset_spec(tmp_path, chunks, **FUNNEL), "train").problems
    assert f"row 13 of {tmp_path / 'b_1.parquet'}" in problem


def test_classes_that_never_occur_are_a_warning(tmp_path):
    problems, warnings = reported(tmp_path, random_rows(400), kind={"task": "multiclass", "cardinality": 20})
    assert not problems
    assert len(warnings) == 1 and "kind: 16 of 20 classes are in no row" in warnings[0] and "(4, 5," in warnings[0]


def test_all_problems_at_once(tmp_path):
    frame = random_rows(400)
    frame["click"], frame["stars"] = 1, 0.0
    problems, _ = reported(tmp_path, frame)
    assert [problem.partition(":")[0] for problem in problems] == ["click", "stars"]


@pytest.mark.parametrize("max_rows", [100_000, 150, 50])
def test_a_sample_holds_rows_of_the_mapping_each_once(tmp_path, max_rows):
    spec, frame = write_dataset(tmp_path, [[100] * 3, [7, 93]], frame=random_rows(400))
    sample = draw_sample(ParquetReader(spec, "train"), max_rows)
    assert len(set(sample.rows.tolist())) == len(sample.rows) == min(400, max_rows)
    check_rows(sample, frame)
    again = draw_sample(ParquetReader(spec, "train"), max_rows)
    assert sample.rows.tolist() == again.rows.tolist() != sorted(sample.rows)
    assert set(sample.rows // 100) == {0, 1, 2, 3}


def test_every_second_row_of_a_sample_is_of_every_row_group(tmp_path):
    spec, _ = write_dataset(tmp_path, [[100] * 4], frame=random_rows(400))
    sample = draw_sample(ParquetReader(spec, "train"), 200)
    for half in (sample.rows[::2], sample.rows[1::2]):
        assert np.bincount(half // 100).tolist() == [25] * 4


@pytest.mark.parametrize(
    ("row_group_rows", "max_rows", "expected"),
    [
        ([1000] * 5, 100, 5),
        ([1000] * 100, 100, 8),
        ([10] * 1000, 100, 10),
        ([1] * 1000, 500, MAX_ROW_GROUPS),
    ],
)
def test_row_groups_are_few_enough_and_spread_to_both_ends(row_group_rows, max_rows, expected):
    row_groups = spread_row_groups(np.array(row_group_rows), max_rows)
    assert (len(row_groups), row_groups[0], row_groups[-1]) == (expected, 0, len(row_group_rows) - 1)
    gaps = np.diff(row_groups)
    assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("row_group_rows", [[5], [5, 1000, 1], [10, 10, 10], [40, 1, 40]])
def test_large_row_groups_make_up_for_small_ones(row_group_rows):
    for max_rows in range(1, 90):
        shares = quotas_of(np.array(row_group_rows), max_rows)
        assert (shares <= row_group_rows).all()
        assert shares.sum() == min(max_rows, sum(row_group_rows))
