"""Ids outside of their table under each policy but error: what the loader makes of them, and what it counts."""

import warnings
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from data.errors import DataError
from data.loading.batch import PAD, Batch
from data.loading.loader import ParquetLoader
from data.loading.parquet import ParquetReader
from data.spec.feature_spec import FeatureSpec
from tests.data.sample_data import FEATURES, arrow_table, dataset_spec, nested, random_rows, write_dataset, write_files
from tests.data.test_loader import small_windows

LIMITS = {"user": 1000, "item": 7, "tags": 50, "topics": 9}


def spoilt_rows(rows: int = 90, seed: int = 5) -> pd.DataFrame:
    """Rows with bad ids in a tenth of the rows of every feature, some of them in the cut ends of lists."""
    frame = random_rows(rows, seed)
    rng = np.random.default_rng(seed)
    for name in LIMITS:
        for row in rng.permutation(rows)[: rows // 10]:
            bad = int(rng.choice([-1, -100, LIMITS[name], 101]))
            bad = -3 if 0 <= bad < LIMITS[name] else bad
            frame.at[row, name] = [1, 2, 3, bad, bad] if name in ("tags", "topics") else bad
    return frame


def bad_ids(frame: pd.DataFrame) -> dict[str, list[int]]:
    """By feature, how many ids of each row lie outside of their table."""
    return {
        name: [sum(not 0 <= one < limit for one in (np.atleast_1d(value).tolist())) for value in frame[name]]
        for name, limit in LIMITS.items()
    }


def batches_of(spec: FeatureSpec, **options: Any) -> tuple[list[Batch], Counter[str]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loader = ParquetLoader(spec, "train", global_batch_size=12, **options)
        return list(loader.epoch(1)), loader.out_of_vocabulary


def with_unseen_ids(spec: FeatureSpec, **ids: int) -> FeatureSpec:
    stated = {name: replace(spec.features[name], unseen_id=own) for name, own in ids.items()}
    return replace(spec, features=spec.features | stated)


UNSEEN = {"user": 999, "item": 2, "tags": 0, "topics": 5}


@pytest.mark.parametrize("workers", [1, 2])
def test_unseen_ids_replace_ids_outside(tmp_path, workers):
    frame = spoilt_rows()
    spec, _ = write_dataset(tmp_path, [[20, 9], [31], [0, 30]], frame=frame)
    spec, rows = with_unseen_ids(spec, **UNSEEN), 0

    def replaced(name: str, ids: list[int]) -> list[int]:
        return [int(one) if 0 <= one < LIMITS[name] else UNSEEN[name] for one in ids]

    together: Counter[str] = Counter()
    for worker in range(workers):
        batches, counted = batches_of(spec, worker=worker, workers=workers, shuffle=False, oov_policy="unseen")
        together += counted
        for batch in batches:
            here = batch.rows != PAD
            given = frame.iloc[batch.rows[here]]
            assert batch.onehot[here, 0].tolist() == replaced("user", given.user)
            assert batch.onehot[here, 1].tolist() == replaced("item", given.item)
            expected = [
                [replaced("tags", tags)[:3], replaced("topics", topics)[:1]]
                for tags, topics in zip(given.tags, given.topics, strict=True)
            ]
            assert nested(batch.id_lists.take(np.flatnonzero(here))) == expected
            assert batch.weights[here].tolist() == given.importance.astype(np.float32).tolist()
            rows += len(given)
    assert rows == len(frame)
    assert together == Counter({name: sum(counts) for name, counts in bad_ids(frame).items()})


def test_unseen_is_an_error_without_an_unseen_id(tmp_path):
    frame = random_rows(10)
    frame.loc[4, "user"] = 1000
    spec, _ = write_dataset(tmp_path, [[10]], frame=frame)
    message = "row 4 .* state the unseen_id of the feature, or pass --oov_policy clip or drop"
    with pytest.raises(DataError, match=message):
        batches_of(with_unseen_ids(spec, item=2), shuffle=False, oov_policy="unseen")
    with pytest.raises(DataError, match=r"pass --oov_policy unseen \(they become 2\), or --oov_policy clip or drop"):
        batches_of(with_unseen_ids(spec, user=2), shuffle=False)


def check(batch: Batch, frame: pd.DataFrame, policy: str) -> None:
    here = batch.rows != PAD
    rows = frame.iloc[batch.rows[here]]
    assert batch.onehot[here, 0].tolist() == np.clip(rows.user.tolist(), 0, 999).tolist()
    assert batch.onehot[here, 1].tolist() == np.clip(rows.item.tolist(), 0, 6).tolist()
    lists = [
        [np.clip(tags, 0, 49).astype(int).tolist()[:3], np.clip(topics, 0, 8).astype(int).tolist()[:1]]
        for tags, topics in zip(rows.tags, rows.topics, strict=True)
    ]
    assert nested(batch.id_lists.take(np.flatnonzero(here))) == lists
    is_bad = np.sum(list(bad_ids(rows).values()), axis=0) > 0
    weights = np.where(is_bad & (policy == "drop"), 0, rows.importance.astype(np.float32))
    assert batch.weights[here].tolist() == weights.tolist()
    assert np.all(batch.weights[~here] == 0)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("policy", ["clip", "drop"])
def test_replaced_ids_are_counted_once(tmp_path, policy, workers, shuffle):
    frame = spoilt_rows()
    spec, _ = write_dataset(tmp_path, [[20, 9], [31], [0, 30]], frame=frame)
    found = bad_ids(frame)
    assert min(map(sum, found.values())) >= 9
    together: Counter[str] = Counter()
    with small_windows(35, row_groups_per_stream=1):
        for worker in range(workers):
            batches, counted = batches_of(spec, worker=worker, workers=workers, shuffle=shuffle, oov_policy=policy)
            rows = [row for batch in batches for row in batch.rows.tolist() if row != PAD]
            assert counted == Counter({name: sum(np.array(counts)[rows]) for name, counts in found.items()})
            together += counted
            for batch in batches:
                check(batch, frame, policy)
    assert together == Counter({name: sum(counts) for name, counts in found.items()})


def test_an_epoch_that_starts_late_counts_what_it_gives_out(tmp_path):
    frame = spoilt_rows()
    spec, _ = write_dataset(tmp_path, [[90]], frame=frame)
    with pytest.warns(UserWarning, match="outside"):
        loader = ParquetLoader(spec, "train", global_batch_size=12, shuffle=True, oov_policy="clip")
        rows = [row for batch in loader.epoch(0, 6) for row in batch.rows.tolist() if row != PAD]
    assert 0 < len(rows) < 30
    assert loader.out_of_vocabulary["user"] == sum(np.array(bad_ids(frame)["user"])[rows])


@pytest.mark.parametrize(
    ("stored", "values"),
    [
        (pa.int64(), [-(2**63), 2**63 - 1, 2**32, -1, 1000, 999]),
        (pa.uint64(), [2**64 - 1, 2**63, 2**32, 1000, 999, 0]),
        (pa.int32(), [-(2**31), 2**31 - 1, -1, 1000, 999, 0]),
        (pa.uint32(), [2**32 - 1, 1000, 999, 0, 1, 2]),
        (pa.int16(), [-(2**15), 2**15 - 1, -1, 1000, 999, 0]),
        (pa.uint16(), [2**16 - 1, 1000, 999, 0, 1, 2]),
        (pa.int8(), [-128, -1, 127, 0, 1, 2]),  # holds no id as large as the last
    ],
)
@pytest.mark.parametrize("policy", ["unseen", "clip", "drop"])
def test_the_policy_holds_for_ids_of_every_stored_type(tmp_path, policy, stored, values):
    frame = random_rows(6).astype({"user": object})
    frame["user"] = values
    spec, _ = write_dataset(tmp_path, [[6]], frame=frame, types={"user": stored})
    (batch,), counted = batches_of(with_unseen_ids(spec, user=500), shuffle=False, oov_policy=policy)
    is_bad = [not 0 <= value < 1000 for value in values]
    nearest = [min(max(value, 0), 999) for value in values]
    unseen = [500 if bad else value for bad, value in zip(is_bad, values, strict=True)]
    assert batch.onehot[:6, 0].tolist() == (unseen if policy == "unseen" else nearest)
    assert (batch.weights[:6] == 0).tolist() == [bad and policy == "drop" for bad in is_bad]
    assert counted == {"user": sum(is_bad)}


@pytest.mark.parametrize("weights_first", [True, False])
@pytest.mark.parametrize("layouts", [([[13], [27]], [[10, 10, 20]]), ([[10, 10, 20]], [[13], [27]])])
def test_rows_are_dropped_wherever_their_weights_are_stored(tmp_path, weights_first, layouts):
    frame = spoilt_rows(40)
    table = arrow_table(frame)
    others = [name for name in FEATURES if name != "importance"]
    chunks = [
        (others, write_files(tmp_path, "a", table.select(others), layouts[0])),
        (["importance"], write_files(tmp_path, "b", table.select(["importance"]), layouts[1])),
    ]
    spec = dataset_spec(tmp_path, chunks[::-1] if weights_first else chunks)
    for shuffle in (True, False):
        for batch in batches_of(spec, shuffle=shuffle, oov_policy="drop")[0]:
            check(batch, frame, "drop")


def test_bad_ids_are_warned_of_once_by_feature(tmp_path):
    frame = random_rows(30)
    frame.loc[[3, 4, 20], "user"] = 5000
    spec, _ = write_dataset(tmp_path, [[30]], frame=frame)
    loader = ParquetLoader(spec, "train", global_batch_size=10, shuffle=True, oov_policy="drop")
    with pytest.warns(UserWarning) as caught:
        list(loader.epoch(0))
        list(loader.epoch(1))
    assert [str(warning.message) for warning in caught] == [
        "mapping 'train': 3 ids of feature 'user' lie outside [0, cardinality), and their rows weigh 0; "
        "check_dataset.py lists them"
    ]


@pytest.mark.parametrize("policy", ["clip", "drop"])
def test_policies_without_bad_ids(tmp_path, policy):
    spec, frame = write_dataset(tmp_path, [[30]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader = ParquetLoader(spec, "train", global_batch_size=10, shuffle=True, oov_policy=policy)
        for batch in loader.epoch(0):
            check(batch, frame, policy)
    assert not loader.out_of_vocabulary


@pytest.mark.parametrize(
    ("name", "value"),
    [("price", np.nan), ("price", np.inf), ("click", 2), ("kind", 4), ("importance", -1), ("age", None)],
)
@pytest.mark.parametrize("policy", ["clip", "drop"])
def test_values_that_are_no_ids_stay_errors(tmp_path, policy, name, value):
    frame = random_rows(10).astype({name: object})
    frame.at[4, name] = value
    spec, _ = write_dataset(tmp_path, [[10]], frame=frame)
    reader = ParquetReader(spec, "train", oov_policy=policy)
    with pytest.raises(DataError, match=f"column '{name}' .* in row 4 of the file"):
        reader.decode(0, 0, 10, reader.allocate(10))
