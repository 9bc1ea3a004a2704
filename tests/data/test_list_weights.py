"""Weights of the ids in lists: batches against the stored rows, and what is rejected."""

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
from data.checks.sample import draw_sample
from data.errors import DataError
from data.loading.batch import PAD, Batch
from data.loading.lists import Lists
from data.loading.loader import ParquetLoader
from data.loading.parquet import ParquetReader
from data.loading.part import Part
from data.spec.feature_spec import FeatureSpec
from tests.data.sample_data import (
    FEATURES,
    arrow_table,
    check_pads,
    check_rows,
    dataset_spec,
    decoded,
    nested,
    random_rows,
    write_chunks,
    write_dataset,
    write_files,
)
from tests.data.test_loader import small_windows

# Some lists are longer than max_hotness, and some ids replaced, on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:mapping 'train'")
WEIGHTS = ["tag_weights", "topic_weights"]
CHANGES: dict[str, Any] = {
    "tags": FEATURES["tags"] | {"weights": "tag_weights"},
    "topics": FEATURES["topics"] | {"weights": "topic_weights"},
    "tag_weights": {},
    "topic_weights": {"dtype": "float64"},
}
TYPES = {"tag_weights": pa.list_(pa.float32()), "topic_weights": pa.large_list(pa.float64())}
NAN, INF = float("nan"), float("inf")


def weighted_rows(rows: int, seed: int = 0) -> pd.DataFrame:
    """Rows of all columns with weights; some lists are longer than max_hotness."""
    frame, rng = random_rows(rows, seed), np.random.default_rng(seed + 1)
    for name, cardinality in (("tags", 50), ("topics", 9)):
        lengths = rng.integers(0, 6, rows)
        frame[name] = [rng.integers(0, cardinality, length).tolist() for length in lengths]
        frame[f"{name[:-1]}_weights"] = [(rng.integers(0, 50, length) / 4).tolist() for length in lengths]
    return frame


def write_weighted(
    folder: Path,
    files: Sequence[Sequence[int]],
    frame: pd.DataFrame,
    types: dict[str, pa.DataType] | None = None,
    apart: Sequence[Sequence[int]] | None = None,
    **changes: Any,
) -> FeatureSpec:
    """A dataset of the rows; the weights are in files of their own with the row groups `apart`, if these are given."""
    table = arrow_table(frame, TYPES | (types or {}))
    chunks = write_chunks(folder, table, files, WEIGHTS, apart)
    return dataset_spec(folder, chunks, **(CHANGES | changes))


def check_weights(batch: Batch, frame: pd.DataFrame) -> None:
    """Every row has the first weights of its lists, as many as ids; padding has none."""
    assert batch.number_lists.values.dtype == np.float32 and batch.number_lists.lengths.dtype == np.int32
    np.testing.assert_array_equal(batch.number_lists.lengths, batch.id_lists.lengths)
    for row, (tags, topics) in zip(batch.rows.tolist(), nested(batch.number_lists), strict=True):
        if row == PAD:
            assert tags == topics == []
        else:
            assert tags == np.float32(frame.tag_weights[row][:3]).tolist()
            assert topics == np.float32(frame.topic_weights[row][:1]).tolist()


def batches_of(spec: FeatureSpec, epoch: int = 0, **options: Any) -> list[Batch]:
    loader = ParquetLoader(spec, "train", **({"global_batch_size": 7, "shuffle": True} | options))
    with closing(loader.epoch(epoch)) as batches:
        return list(batches)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_weights_travel_with_their_ids(tmp_path_factory, data):
    files = data.draw(st.lists(st.lists(st.integers(0, 20), max_size=3), min_size=1, max_size=4).filter(sum_of))
    rows, frame = sum_of(files), weighted_rows(sum_of(files), seed=data.draw(st.integers(0, 99)))
    cut = data.draw(st.integers(0, rows))
    apart = data.draw(st.sampled_from([None, [[rows]], [[cut], [rows - cut]], [[1] * rows]]))
    item = data.draw(st.sampled_from([pa.float32(), pa.float64(), pa.uint8()]))
    if item == pa.uint8():
        frame["tag_weights"] = [[int(weight) for weight in cell] for cell in frame.tag_weights]
    kind = data.draw(st.sampled_from([pa.list_, pa.large_list]))
    spec = write_weighted(tmp_path_factory.mktemp("weights"), files, frame, {"tag_weights": kind(item)}, apart)
    workers, shuffle = data.draw(st.integers(1, 3)), data.draw(st.booleans())
    seen = []
    with small_windows(data.draw(st.integers(1, 50))):
        for worker in range(workers):
            for batch in batches_of(spec, worker=worker, workers=workers, shuffle=shuffle, epoch=1):
                check_rows(batch, frame)
                check_weights(batch, frame)
                check_pads(batch)
                seen += batch.rows[batch.rows != PAD].tolist()
    assert sorted(seen) == list(range(rows))


def sum_of(files: Sequence[Sequence[int]]) -> int:
    return sum(map(sum, files))


def test_batches_own_their_weights(tmp_path):
    frame = weighted_rows(60)
    with small_windows(10, row_groups_per_stream=1000):
        batches = batches_of(write_weighted(tmp_path, [[10] * 6], frame))
        for batch in batches:
            batch.number_lists.values[:] = -1
        for batch in batches_of(write_weighted(tmp_path, [[10] * 6], frame)):
            check_weights(batch, frame)


def test_ids_of_a_batch_hold_the_weights(tmp_path):
    frame = weighted_rows(9)
    (batch,) = batches_of(write_weighted(tmp_path, [[9]], frame), global_batch_size=9)
    rows = np.array([4, 0, 4])
    taken = batch.ids.take(rows)
    assert nested(taken.number_lists) == [nested(batch.number_lists)[row] for row in rows]


def test_only_some_features_have_weights(tmp_path):
    frame = weighted_rows(30)
    spec = write_weighted(tmp_path, [[30]], frame, tags=FEATURES["tags"])
    assert [feature.name for feature in spec.weighted] == ["topics"]
    for batch in batches_of(spec):
        assert batch.number_lists.lengths.shape == (len(batch.rows), 1)
        np.testing.assert_array_equal(batch.number_lists.lengths, batch.id_lists.lengths[:, 1:])


def test_without_weights_there_are_no_columns(tmp_path):
    spec, _ = write_dataset(tmp_path, [[20, 9], [3]])
    with small_windows(10, row_groups_per_stream=1):
        for batch in batches_of(spec, workers=2):
            assert batch.number_lists.lengths.shape == (len(batch.rows), 0)
            assert (batch.number_lists.values.dtype, batch.number_lists.values.size) == (np.float32, 0)


def test_weights_of_whole_groups(tmp_path):
    frame = weighted_rows(60)
    frame["session"] = [row * row % 13 for row in range(60)]
    spec = write_weighted(tmp_path, [[20, 9], [31]], frame)
    batches = batches_of(spec, with_group=True, whole_groups=True, global_batch_size=20)
    for batch in batches:
        check_weights(batch, frame)
    assert sorted(row for batch in batches for row in batch.rows.tolist() if row != PAD) == list(range(60))


@pytest.mark.parametrize("apart", [None, [[25], [35]]])
def test_weights_of_a_part(tmp_path, apart):
    frame, mask = weighted_rows(60), np.random.default_rng(0).random(60) < 0.4
    spec = write_weighted(tmp_path, [[20, 9], [31]], frame, apart=apart)
    for bit in (True, False):
        batches = batches_of(spec, part=Part(np.packbits(mask), bit), shuffle=bit)
        for batch in batches:
            check_weights(batch, frame)
        rows = [row for batch in batches for row in batch.rows.tolist() if row != PAD]
        assert sorted(rows) == np.flatnonzero(mask == bit).tolist()


@pytest.mark.parametrize("policy", ["clip", "drop", "unseen"])
def test_replaced_ids_keep_their_weights(tmp_path, policy):
    frame = weighted_rows(40)
    frame["tags"] = [[number + 48 for number in range(len(tags))] for tags in frame.tags]
    spec = write_weighted(tmp_path, [[40]], frame, tags=CHANGES["tags"] | {"unseen_id": 2})
    batches = batches_of(spec, oov_policy=policy)
    for batch in batches:
        check_weights(batch, frame)
    ids = {number for batch in batches for tags, _ in nested(batch.id_lists) for number in tags}
    assert ids == {48, 49, 2 if policy == "unseen" else 49}


@pytest.mark.parametrize("item", [np.float16, np.float32, np.int64])
def test_lists_of_fixed_size(tmp_path, item):
    frame = weighted_rows(50)
    frame["tags"] = [[row % 50, 3, 4, 5] for row in range(50)]
    frame["tag_weights"] = [[row % 7, 0, 2, 1] for row in range(50)]
    table = arrow_table(frame, TYPES | {"tags": pa.list_(pa.int32(), 4)})
    flat = pa.array(np.array(frame.tag_weights.tolist(), item).reshape(-1))
    index = table.schema.get_field_index("tag_weights")
    table = table.set_column(index, "tag_weights", pa.FixedSizeListArray.from_arrays(flat, 4))
    names = write_files(tmp_path, "part", table, [[20], [30]])
    spec = dataset_spec(tmp_path, [([*FEATURES, *WEIGHTS], names)], **CHANGES)
    for batch in batches_of(spec):
        check_weights(batch, frame)


def test_a_sample_of_rows_has_weights(tmp_path):
    frame = weighted_rows(60)
    check_weights(draw_sample(ParquetReader(write_weighted(tmp_path, [[20, 9], [31]], frame), "train"), 35), frame)


def test_only_ids_count_as_cut(tmp_path):
    frame = weighted_rows(60)
    reader = ParquetReader(write_weighted(tmp_path, [[60]], frame), "train")
    cut = reader.decode(0, 0, 60, reader.allocate(60)).cut
    assert cut == {"tags": sum(frame.tags.str.len() > 3), "topics": sum(frame.topics.str.len() > 1)}


def test_memory_counts_weights(tmp_path):
    frame = weighted_rows(40)
    frame["tags"], frame["tag_weights"] = [[1, 2]] * 40, [[1.0, 0.5]] * 40
    frame["topics"], frame["topic_weights"] = [[1]] * 40, [[1.0]] * 40
    weighted = ParquetReader(write_weighted(tmp_path, [[40]], frame), "train")
    plain = ParquetReader(
        write_weighted(tmp_path, [[40]], frame, tags=FEATURES["tags"], topics=FEATURES["topics"]), "train"
    )
    assert weighted.list_bytes == 2 * plain.list_bytes == 2 * 4 * (2 + 1)
    # Each of two further lists has a length of 4 bytes and a position of 8.
    assert weighted.row_bytes == plain.row_bytes + 2 * 12 + 4 * (2 + 1)
    assert (weighted.widest_list, plain.widest_list) == (("tags", 16), ("tags", 8))


# What row 25 of 40 has instead, whether the weights are in a chunk of their own, the words of the loader and the rule
# that check_dataset.py reports.
BAD: dict[str, tuple[dict[str, Any], bool, str, str]] = {
    "a weight too few": (
        {"tags": [1, 2], "tag_weights": [0.5]}, False,
        "row group 1: 1 rows have more or fewer weights than ids, the first of them row 25 of the file: 2 ids in "
        "column 'tags', 1 weights in column 'tag_weights'; expected a weight for each id",
        "more or fewer weights than ids",
    ),
    "an empty list of weights": (
        {"tags": [1], "tag_weights": []}, False, "1 ids in column 'tags', 0 weights", "more or fewer weights than ids"
    ),
    "a weight too many": (
        {"topics": [], "topic_weights": [1.0]}, False, "0 ids in column 'topics', 1 weights in column 'topic_weights'",
        "more or fewer weights than ids",
    ),
    "unequal lists beyond the cut": (
        {"tags": [1] * 5, "tag_weights": [1.0] * 4}, False, "5 ids in column 'tags', 4 weights",
        "more or fewer weights than ids",
    ),
    "unequal lists in two chunks": (
        {"tags": [1, 2], "tag_weights": [0.5]}, True,
        "rest_0.parquet, row group 1: 1 rows have more or fewer weights than ids, the first of them row 25 of the "
        "file: 2 ids in column 'tags', 1 weights in column 'tag_weights' in row 5 of",
        "more or fewer weights than ids",
    ),
    "a negative weight": (
        {"tags": [1], "tag_weights": [-0.5]}, False,
        "column 'tag_weights' has 1 unusable values, the first -0.5 in row 25 of the file; expected a list of finite "
        'numbers of at least 0 such as "[0.5, 1]", float32. check_dataset.py lists them all.',
        "not a weight",
    ),
    "NaN": ({"tags": [1, 2], "tag_weights": [1.0, NAN]}, True, "the first nan in row 5 of the file", "not a weight"),
    "infinity": ({"tags": [1], "tag_weights": [INF]}, False, "the first inf in row 25", "not a weight"),
    "a weight beyond float32": (
        {"topics": [1], "topic_weights": [1e39]}, False,
        'such as "[0.5, 1]" within the range of float32, float64.', "not a weight",
    ),
    "a missing weight": (
        {"tags": [1, 2], "tag_weights": [1.0, None]}, False,
        "column 'tag_weights' has 1 missing values (null), the first in row 25 of the file; expected a list of finite",
        "missing value",
    ),
    "a missing list of weights": (
        {"tags": [], "tag_weights": None}, False,
        "column 'tag_weights' has 1 missing values (null), the first in row 25", "missing value",
    ),
}  # fmt: skip


def findings(spec: FeatureSpec) -> list[Finding]:
    return list(check_mapping(spec, "train", MappingSummary()))


@pytest.mark.parametrize(("cells", "is_apart", "words", "rule"), BAD.values(), ids=BAD)
def test_bad_weights(tmp_path, cells, is_apart, words, rule):
    frame = weighted_rows(40)
    for name, value in cells.items():
        frame.at[25, name] = value
    spec = write_weighted(tmp_path, [[20, 20]], frame, apart=[[20], [20]] if is_apart else None)
    with pytest.raises(DataError) as caught:
        batches_of(spec)
    assert words in str(caught.value)
    (finding,) = [finding for finding in findings(spec) if not finding.is_warning]
    assert (finding.what, finding.count) == (rule, 1)
    assert finding.rows == ((5,) if is_apart and rule == "not a weight" else (25,))


@pytest.mark.parametrize("apart", [None, [[13], [27]]])
def test_the_check_lists_all_unequal_lists(tmp_path, apart):
    frame = weighted_rows(40)
    for row in (3, 21, 30):
        frame.at[row, "tags"], frame.at[row, "tag_weights"] = [1, 2], [0.5] * (row % 2 + 3)
    spec = write_weighted(tmp_path, [[20], [20]], frame, apart=apart)
    found = [finding for finding in findings(spec) if not finding.is_warning]
    assert {finding.what for finding in found} == {"more or fewer weights than ids"}
    assert all("tag_weights" in finding.location for finding in found)
    if apart is None:
        assert [(finding.rows, finding.values) for finding in found] == [
            ((3,), ("2 ids, 4 weights",)),
            ((1, 10), ("2 ids, 4 weights", "2 ids, 3 weights")),
        ]
    else:
        (finding,) = found
        assert str(finding) == (
            "error: train, tag_weights: more or fewer weights than ids; in 3 rows of the mapping (3, 21, 30); found "
            "'2 ids, 4 weights', '2 ids, 4 weights', '2 ids, 3 weights'; expected a weight for each id of 'tags'"
        )


def test_a_sound_dataset_has_no_finding(tmp_path):
    frame = weighted_rows(40)
    for apart in (None, [[13], [27]]):
        spec = write_weighted(tmp_path, [[20], [20]], frame, apart=apart)
        assert [finding.what for finding in findings(spec) if not finding.is_warning] == []


WRONG_TYPES = {"numbers": pa.float64(), "lists of texts": pa.list_(pa.string()), "truths": pa.list_(pa.bool_())}


@pytest.mark.parametrize("stored", WRONG_TYPES.values(), ids=WRONG_TYPES)
def test_weights_stored_in_another_type(tmp_path, stored):
    frame = weighted_rows(4)
    value: Any = [] if pa.types.is_list(stored) else 0.5
    frame["tags"], frame["tag_weights"] = [[]] * 4, [value] * 4
    spec = write_weighted(tmp_path, [[4]], frame, {"tag_weights": stored})
    with pytest.raises(DataError) as caught:
        ParquetReader(spec, "train")
    assert "column 'tag_weights' is stored as " in str(caught.value)
    assert ", expected lists of numbers; cast it" in str(caught.value)
    assert [finding.what for finding in findings(spec) if not finding.is_warning] == ["column type"]


def test_unused_weights_are_not_checked(tmp_path):
    """Neither those of a feature without `weights`, nor those of one in no channel."""
    frame = weighted_rows(10)
    frame["tag_weights"] = [[-1.0]] * 10
    spec = write_weighted(tmp_path, [[10]], frame, tags=FEATURES["tags"])
    assert decoded(ParquetReader(spec, "train"), 0, 0, 10).number_lists.lengths.shape == (10, 1)
    assert [finding for finding in findings(spec) if not finding.is_warning] == []
    document = write_weighted(tmp_path, [[10]], frame).to_dict()
    document["channel_spec"]["multihot_categorical"] = ["topics"]
    spec = FeatureSpec.from_dict(document, tmp_path)
    assert decoded(ParquetReader(spec, "train"), 0, 0, 10).number_lists.lengths.shape == (10, 1)
    assert [finding for finding in findings(spec) if not finding.is_warning] == []


def test_lists_without_columns_take_and_join_rows():
    empty = Lists(np.empty(0, np.float32), np.empty((3, 0), np.int32))
    taken = empty.take(np.array([2, 2, 0, 1, 1]))
    assert (taken.lengths.shape, taken.values.dtype) == ((5, 0), np.float32)
