"""Lists of sequences: batches against the stored rows, and what is rejected."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.checks.dataset import Finding, MappingSummary, check_mapping
from data.checks.leaks import find_leaks
from data.checks.sample import draw_sample
from data.errors import DataError
from data.loading.batch import PAD, Batch
from data.loading.loader import ParquetLoader
from data.loading.parquet import ParquetReader
from data.loading.part import Part
from data.spec.feature_spec import FeatureSpec
from data.spec.features import LABEL
from tests.data.sample_data import (
    arrow_table,
    check_pads,
    dataset_spec,
    decoded,
    nested,
    random_rows,
    write_chunks,
)
from tests.data.test_loader import small_windows

# Some lists are longer than max_hotness, and some ids replaced, on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:mapping 'train'")
NAN, INF = float("nan"), float("inf")
STEPS: dict[str, Any] = {
    "clicked": {"cardinality": 7, "table": "item", "max_hotness": 4},
    "clicked_user": {"cardinality": 1000, "table": "user", "max_hotness": 4},
    "clicked_age": {},
    "score": {"dtype": "float64"},
    "seen": {"cardinality": 9, "max_hotness": 2},
}
TYPES = {
    "clicked": pa.list_(pa.int64()),
    "clicked_user": pa.large_list(pa.int32()),
    "clicked_age": pa.list_(pa.float32()),
    "score": pa.list_(pa.float64()),
    "seen": pa.list_(pa.int16()),
}
CLICKS, VIEWS = ["clicked", "clicked_user", "clicked_age"], ["score", "seen"]


def rows_of(rows: int, seed: int = 0) -> pd.DataFrame:
    """Rows of all columns; many sequences are longer than max_hotness."""
    frame, rng = random_rows(rows, seed), np.random.default_rng(seed + 1)
    for names, longest in ((CLICKS, 8), (VIEWS, 5)):
        lengths = rng.integers(0, longest, rows)
        for name in names:
            limit = STEPS[name].get("cardinality")
            frame[name] = [
                (rng.integers(0, limit, length) if limit else rng.integers(-20, 20, length) / 4).tolist()
                for length in lengths
            ]
    return frame


def write_sequences(
    folder: Path,
    files: Sequence[Sequence[int]],
    frame: pd.DataFrame,
    *,
    types: dict[str, pa.DataType] | None = None,
    apart: Sequence[Sequence[int]] | None = None,
    order: str = "newest_last",
    **changes: Any,
) -> FeatureSpec:
    """A dataset of the rows; `clicked_age` and `seen` are in files of their own, if their row groups are given."""
    table = arrow_table(frame, TYPES | (types or {}))
    chunks = write_chunks(folder, table, files, ["clicked_age", "seen"], apart)
    document = dataset_spec(folder, chunks, **(STEPS | changes)).to_dict()
    document["channel_spec"]["sequence"] = {
        "clicks": {"features": CLICKS, "target": ["item"], "order": order},
        "views": {"features": VIEWS, "order": "newest_first"},
    }
    return FeatureSpec.from_dict(document, folder)


def check_sequences(batch: Batch, frame: pd.DataFrame, order: str = "newest_last") -> None:
    """Every row has the newest steps of its lists, and padding has none."""
    assert batch.number_lists.values.dtype == np.float32
    assert len(batch.id_lists.lengths[0]) == 5 and len(batch.number_lists.lengths[0]) == 2

    def clicks(cell: Sequence[Any]) -> list[Any]:
        return list(cell)[:4] if order == "newest_first" else list(cell)[-4:]

    for row, ids, numbers in zip(batch.rows.tolist(), nested(batch.id_lists), nested(batch.number_lists), strict=True):
        if row == PAD:
            assert ids == [[]] * 5 and numbers == [[]] * 2
        else:
            cells = frame.loc[row]
            assert ids == [
                cells.tags[:3], cells.topics[:1], clicks(cells.clicked), clicks(cells.clicked_user), cells.seen[:2]
            ]  # fmt: skip
            assert numbers == [np.float32(clicks(cells.clicked_age)).tolist(), np.float32(cells.score[:2]).tolist()]


def batches_of(spec: FeatureSpec, epoch: int = 0, first_step: int = 0, **options: Any) -> list[Batch]:
    loader = ParquetLoader(spec, "train", **({"global_batch_size": 7, "shuffle": True} | options))
    with closing(loader.epoch(epoch, first_step)) as batches:
        return list(batches)


def row_numbers(batches: Sequence[Batch]) -> list[int]:
    return [row for batch in batches for row in batch.rows.tolist() if row != PAD]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_batches_have_the_newest_steps(tmp_path_factory, data):
    groups = st.lists(st.lists(st.integers(0, 20), max_size=3), min_size=1, max_size=4)
    files = data.draw(groups.filter(lambda drawn: sum(map(sum, drawn)) > 0))
    rows = sum(map(sum, files))
    frame = rows_of(rows, seed=data.draw(st.integers(0, 99)))
    cut = data.draw(st.integers(0, rows))
    apart = data.draw(st.sampled_from([None, [[rows]], [[cut], [rows - cut]], [[1] * rows]]))
    number = data.draw(st.sampled_from([pa.float32(), pa.float64(), pa.int8()]))
    if number == pa.int8():
        frame["clicked_age"] = [[int(age) for age in cell] for cell in frame.clicked_age]
    kind, order = data.draw(st.sampled_from([pa.list_, pa.large_list])), data.draw(st.sampled_from(ORDERS))
    types = {"clicked_age": kind(number), "clicked": kind(data.draw(st.sampled_from([pa.int8(), pa.float32()])))}
    folder = tmp_path_factory.mktemp("sequences")
    spec = write_sequences(folder, files, frame, types=types, apart=apart, order=order)
    options: dict[str, Any] = {"workers": data.draw(st.integers(1, 3)), "shuffle": data.draw(st.booleans())}
    seen = []
    with small_windows(data.draw(st.integers(1, 50))):
        for worker in range(options["workers"]):
            batches = batches_of(spec, epoch=1, worker=worker, **options)
            for batch in batches:
                check_sequences(batch, frame, order)
                check_pads(batch)
            first = data.draw(st.integers(0, len(batches)))
            resumed = batches_of(spec, epoch=1, first_step=first, worker=worker, **options)
            for batch, again in zip(batches[first:], resumed, strict=True):
                assert nested(batch.id_lists) == nested(again.id_lists)
                assert nested(batch.number_lists) == nested(again.number_lists)
            seen += row_numbers(batches)
    assert sorted(seen) == list(range(rows))


ORDERS = ["newest_last", "newest_first"]


def test_steps_of_whole_groups(tmp_path):
    frame = rows_of(60)
    frame["session"] = [row * row % 13 for row in range(60)]
    batches = batches_of(
        write_sequences(tmp_path, [[20, 9], [31]], frame), with_group=True, whole_groups=True, global_batch_size=20
    )
    for batch in batches:
        check_sequences(batch, frame)
    assert sorted(row_numbers(batches)) == list(range(60))


def test_labels_are_read_alone(tmp_path):
    frame = rows_of(40)
    reader = ParquetReader(write_sequences(tmp_path, [[40]], frame).only(LABEL), "train")
    batch = decoded(reader, 0, 0, 40)
    assert batch.labels[:, 0].tolist() == frame.click.tolist()
    assert batch.id_lists.lengths.shape == batch.number_lists.lengths.shape == (40, 0)


@pytest.mark.parametrize("apart", [None, [[25], [35]]])
def test_steps_of_a_part(tmp_path, apart):
    frame, mask = rows_of(60), np.random.default_rng(0).random(60) < 0.4
    spec = write_sequences(tmp_path, [[20, 9], [31]], frame, apart=apart)
    for bit in (True, False):
        batches = batches_of(spec, part=Part(np.packbits(mask), bit), shuffle=bit)
        for batch in batches:
            check_sequences(batch, frame)
        assert sorted(row_numbers(batches)) == np.flatnonzero(mask == bit).tolist()


@pytest.mark.parametrize("policy", ["clip", "drop", "unseen"])
def test_ids_out_of_vocabulary(tmp_path, policy):
    """They are replaced in their place; with "drop", their rows weigh 0, also if the id is among the steps cut."""
    frame = rows_of(40)
    frame["clicked"] = [[9 if step % 3 == 1 else id_ for step, id_ in enumerate(cell)] for cell in frame.clicked]
    spec = write_sequences(tmp_path, [[25, 15]], frame, clicked=STEPS["clicked"] | {"unseen_id": 2})
    with pytest.raises(
        DataError, match=r"column 'clicked' has \d+ unusable values, the first 9 .*unseen.*\(they become"
    ):
        batches_of(spec)
    expected = frame.assign(
        clicked=[[(2 if policy == "unseen" else 6) if id_ == 9 else id_ for id_ in cell] for cell in frame.clicked]
    )
    for batch in batches_of(spec, oov_policy=policy):
        check_sequences(batch, expected)
        for row, weight in zip(batch.rows.tolist(), batch.weights.tolist(), strict=True):
            is_dropped = row == PAD or (policy == "drop" and 9 in frame.clicked[row])
            assert (weight == 0) == is_dropped


def test_cut_lists_are_counted_and_reported(tmp_path):
    frame = rows_of(40)
    loader = ParquetLoader(write_sequences(tmp_path, [[40]], frame), "train", global_batch_size=40, shuffle=False)
    with pytest.warns(UserWarning, match="lists of feature 'clicked' are longer than its max_hotness and were cut"):
        list(loader.epoch(0))
    clicks = int((frame.clicked.str.len() > 4).sum())
    assert loader.truncated == {
        "tags": 0, "topics": 0, "clicked": clicks, "clicked_user": clicks, "seen": sum(frame.seen.str.len() > 2),
    }  # fmt: skip


def test_memory_counts_all_lists(tmp_path):
    frame = rows_of(40)
    for name in STEPS:
        frame[name] = [[1, 2, 1]] * 40
    frame["tags"], frame["topics"] = [[1, 2]] * 40, [[1]] * 40
    reader = ParquetReader(write_sequences(tmp_path, [[40]], frame), "train")
    assert reader.list_bytes == 4 * (2 + 1 + 3 * 3 + 2 * 2)  # scores and ids of views are cut to 2
    assert reader.widest_list[1] == 4 * 3


@pytest.mark.parametrize("order", ORDERS)
def test_a_sample_of_rows(tmp_path, order):
    frame = rows_of(60)
    spec = write_sequences(tmp_path, [[20, 9], [31]], frame, order=order)
    check_sequences(draw_sample(ParquetReader(spec, "train"), 35), frame, order)


def test_leaks_through_the_ids_of_steps(tmp_path):
    """A history that holds the item which was clicked afterwards determines the click."""
    frame = rows_of(4000)
    frame["clicked"] = [[6] if click else [5] for click in frame.click]
    frame["clicked_user"] = [[3]] * 4000
    frame["clicked_age"] = [[float(click)] for click in frame.click]
    reader = ParquetReader(spec := write_sequences(tmp_path, [[4000]], frame), "train")
    leaks = [(leak.feature, leak.label, leak.measure) for leak in find_leaks(spec, draw_sample(reader))]
    assert leaks == [("clicked", "click", "AUC")]


# What row 25 of 40 has instead, whether two columns are in a chunk of their own, the words of the loader and the rule
# that check_dataset.py reports.
UNEQUAL = "more or fewer values than steps"
BAD: dict[str, tuple[dict[str, Any], bool, str, str]] = {
    "a number too few": (
        {"clicked": [1, 2], "clicked_user": [1, 2], "clicked_age": [0.5]}, False,
        "row group 1: 1 rows have more or fewer values than steps, the first of them row 25 of the file: 2 steps in "
        "column 'clicked', 1 values in column 'clicked_age'; expected a value for each step: write both lists again. "
        "check_dataset.py lists all such rows.",
        UNEQUAL,
    ),
    "an id too many": (
        {"clicked": [1], "clicked_user": [1, 2], "clicked_age": [0.5]}, False,
        "1 steps in column 'clicked', 2 values in column 'clicked_user'", UNEQUAL,
    ),
    "an empty list": ({"score": [1.0], "seen": []}, False, "1 steps in column 'score', 0 values", UNEQUAL),
    "unequal lists beyond the cut": (
        {"clicked": [1] * 6, "clicked_user": [1] * 5, "clicked_age": [1.0] * 6}, False,
        "6 steps in column 'clicked', 5 values", UNEQUAL,
    ),
    "unequal lists in two chunks": (
        {"clicked": [1, 2], "clicked_user": [1, 2], "clicked_age": [0.5]}, True,
        "rest_0.parquet, row group 1: 1 rows have more or fewer values than steps, the first of them row 25 of the "
        "file: 2 steps in column 'clicked', 1 values in column 'clicked_age' in row 5 of", UNEQUAL,
    ),
    "NaN": (
        {"score": [1.0, NAN], "seen": [1, 1]}, False,
        "column 'score' has 1 unusable values, the first nan in row 25 of the file; expected a list of finite numbers "
        'such as "[0.5, -1]" within the range of float32, float64.', "not finite",
    ),
    "infinity": ({"score": [-INF], "seen": [1]}, False, "the first -inf in row 25", "not finite"),
    "a missing number": (
        {"clicked": [1, 2], "clicked_user": [1, 2], "clicked_age": [1.0, None]}, True,
        "column 'clicked_age' has 1 missing values (null), the first in row 5", "missing value",
    ),
    "a missing list": (
        {"score": [], "seen": None}, False, "column 'seen' has 1 missing values (null), the first in row 25",
        "missing value",
    ),
    "an id that is none": (
        {"score": [0.5, 1.0], "seen": [1, -1]}, False,
        "column 'seen' has 1 unusable values, the first -1 in row 25 of the file; expected a list of ids in [0, 9)",
        "id out of range",
    ),
}  # fmt: skip


def findings(spec: FeatureSpec) -> list[Finding]:
    return [one for one in check_mapping(spec, "train", MappingSummary()) if not one.is_warning]


@pytest.mark.parametrize(("cells", "is_apart", "words", "rule"), BAD.values(), ids=BAD)
def test_bad_sequences(tmp_path, cells, is_apart, words, rule):
    frame = rows_of(40)
    for name, value in cells.items():
        frame.at[25, name] = value
    spec = write_sequences(tmp_path, [[20, 20]], frame, apart=[[20], [20]] if is_apart else None)
    with pytest.raises(DataError) as caught:
        batches_of(spec)
    assert words in str(caught.value)
    (finding,) = findings(spec)
    assert (finding.what, finding.count) == (rule, 1)
    assert finding.rows == ((5,) if is_apart and rule != UNEQUAL else (25,))


@pytest.mark.parametrize("apart", [None, [[13], [27]]])
def test_the_check_lists_all_unequal_lists(tmp_path, apart):
    frame = rows_of(40)
    for row in (3, 21, 30):
        frame.at[row, "clicked"] = [1, 2]
        frame.at[row, "clicked_user"], frame.at[row, "clicked_age"] = [1] * (row % 2 + 2), [0.5] * (row % 2 + 3)
    spec = write_sequences(tmp_path, [[20], [20]], frame, apart=apart)
    found = {(finding.location, finding.rows): finding.values for finding in findings(spec)}
    ages = ("2 steps, 4 values", "2 steps, 4 values", "2 steps, 3 values")
    name = "part" if apart is None else "rest"
    users = {
        (f"{tmp_path}/{name}_0.parquet, row group 0, clicked_user", (3,)): ("2 steps, 3 values",),
        (f"{tmp_path}/{name}_1.parquet, row group 0, clicked_user", (1,)): ("2 steps, 3 values",),
    }
    if apart is None:
        assert found == users | {
            (f"{tmp_path}/part_0.parquet, row group 0, clicked_age", (3,)): ages[:1],
            (f"{tmp_path}/part_1.parquet, row group 0, clicked_age", (1, 10)): ages[1:],
        }
    else:
        assert found == users | {("train, clicked_age", (3, 21, 30)): ages}


def test_a_sound_dataset_has_no_finding(tmp_path):
    for apart in (None, [[13], [27]]):
        spec = write_sequences(tmp_path, [[20], [20]], rows_of(40), apart=apart)
        assert findings(spec) == []


WRONG_TYPES = {
    "numbers": ("score", pa.float64(), "lists of numbers"),
    "lists of texts": ("score", pa.list_(pa.string()), "lists of numbers"),
    "ids": ("seen", pa.int64(), "lists of integers"),
    "lists of truths": ("seen", pa.list_(pa.bool_()), "lists of integers"),
}


@pytest.mark.parametrize(("name", "stored", "expected"), WRONG_TYPES.values(), ids=WRONG_TYPES)
def test_another_type(tmp_path, name, stored, expected):
    frame = rows_of(4)
    empty: Any = [] if pa.types.is_list(stored) else 1
    frame["score"], frame["seen"] = [[]] * 4, [[]] * 4
    frame[name] = [empty] * 4
    spec = write_sequences(tmp_path, [[4]], frame, types={name: stored})
    with pytest.raises(DataError) as caught:
        ParquetReader(spec, "train")
    assert f"column '{name}' is stored as " in str(caught.value)
    assert f", expected {expected}; cast it" in str(caught.value)
    assert [finding.what for finding in findings(spec)] == ["column type"]


def test_numbers_that_float16_cannot_hold_are_a_warning(tmp_path):
    frame = rows_of(40)
    for row, numbers in ((3, [70_000.0, -90_000.0]), (21, [1e5, 1.0]), (30, [65_504.0, -1.0])):
        frame.at[row, "score"], frame.at[row, "seen"] = numbers, [1, 1]
    spec = write_sequences(tmp_path, [[20], [20]], frame)
    found = [one for one in check_mapping(spec, "train", MappingSummary()) if "float16" in one.what]
    assert [(one.count, one.rows, one.values, one.is_warning) for one in found] == [(2, (3,), ("100000",), True)]
    assert found[0].location == f"train, score, first in {tmp_path}/part_0.parquet, row group 0"
