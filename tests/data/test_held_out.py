"""Rows that are held out of a mapping, and the loader of a part of it."""

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from data.encoding.held_out import draw_held_out
from data.errors import DataError
from data.loading.batch import PAD, Batch
from data.loading.loader import ParquetLoader
from data.loading.part import Part
from data.spec.feature_spec import FeatureSpec
from tests.data.sample_data import random_rows, write_dataset
from tests.data.test_out_of_vocabulary import spoilt_rows

FILES = [[40, 0, 25], [1, 90], [63]]
ROWS = 219


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> FeatureSpec:
    return write_dataset(tmp_path_factory.mktemp("data"), FILES)[0]


def batches_of(
    spec: FeatureSpec, part: Part | None, *, workers: int = 1, shuffle: bool = False, batch: int = 16
) -> Iterator[Batch]:
    for worker in range(workers):
        loader = ParquetLoader(
            spec, "train", global_batch_size=batch, worker=worker, workers=workers, shuffle=shuffle, part=part
        )
        with closing(loader.epoch(0)) as batches:
            yield from batches


def drawn(spec: FeatureSpec, rows: int, share: float = 0.05, seed: int = 0) -> np.ndarray:
    return np.unpackbits(draw_held_out(spec, "train", share, seed))[:rows].astype(bool)


@settings(max_examples=20, deadline=None)
@given(
    mask=st.lists(st.booleans(), min_size=ROWS, max_size=ROWS).filter(lambda bits: 0 < sum(bits) < ROWS),
    workers=st.integers(1, 3),
    shuffle=st.booleans(),
)
def test_two_parts_have_each_row_once(spec, mask, workers, shuffle):
    for bit in (True, False):
        part = Part(np.packbits(mask), bit)
        batches = batches_of(spec, part, workers=workers, shuffle=shuffle)
        rows = [row for batch in batches for row in batch.rows.tolist() if row != PAD]
        assert sorted(rows) == np.flatnonzero(np.array(mask) == bit).tolist()


def test_rows_of_a_part_equal_those_of_the_mapping(spec):
    whole = next(batches_of(spec, None, batch=ROWS))
    for bit in (True, False):
        part = next(batches_of(spec, Part(draw_held_out(spec, "train", 0.05, seed=3), bit), batch=ROWS))
        for name, values in part._asdict().items():
            if isinstance(values, np.ndarray):
                np.testing.assert_array_equal(values, getattr(whole, name)[part.rows], err_msg=name)


def test_replaced_ids_are_counted_in_their_part(tmp_path):
    frame = spoilt_rows()
    spec, _ = write_dataset(tmp_path, [[20, 9], [31], [0, 30]], frame=frame)
    mask = draw_held_out(spec, "train", 0.05, seed=1)
    counted = []
    for part in (None, Part(mask, True), Part(mask, False)):
        loader = ParquetLoader(spec, "train", global_batch_size=12, shuffle=False, oov_policy="clip", part=part)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            list(loader.epoch(0))
        counted.append(loader.out_of_vocabulary)
    whole, held_out, kept = counted
    assert held_out and held_out + kept == whole and isinstance(whole, Counter)


def test_share_and_seed_decide_what_is_drawn(tmp_path):
    rows = 20_000
    spec, _ = write_dataset(tmp_path, [[rows]], frame=random_rows(rows))
    first = drawn(spec, rows)
    assert abs(first.mean() - 0.05) < 4 * (0.05 * 0.95 / rows) ** 0.5
    np.testing.assert_array_equal(first, drawn(spec, rows))
    both = first & drawn(spec, rows, seed=1)
    assert 0 < both.mean() < 0.01
    # A larger share has the rows of a smaller one.
    assert not (first & ~drawn(spec, rows, share=0.3)).any()


def test_small_mappings_hold_out_a_larger_share(tmp_path):
    spec, _ = write_dataset(tmp_path, [[600]], frame=random_rows(600))
    assert 0.1 < drawn(spec, 600).mean() < 0.3


def test_groups_are_held_out_as_a_whole(tmp_path):
    frame = random_rows(3000)
    frame["session"] = np.random.default_rng(0).integers(-50, 50, 3000)
    spec, _ = write_dataset(tmp_path, [[1000, 500], [1500]], frame=frame)
    held_out = drawn(spec, 3000, share=0.1)
    assert held_out.any()
    assert not set(frame["session"][held_out]) & set(frame["session"][~held_out])


def test_groups_that_are_an_input_are_in_both_parts(tmp_path):
    spec, frame = write_dataset(tmp_path, [[3000]], frame=random_rows(3000))
    by_user = FeatureSpec.from_dict(yaml.safe_load(spec.to_yaml().replace("map: [session]", "map: [user]")), tmp_path)
    assert [feature.name for feature in by_user.channel("map")] == ["user"]
    held_out = drawn(by_user, 3000, share=0.1)
    # About 900 users have rows among the others.
    assert len(set(frame["user"][held_out]) & set(frame["user"][~held_out])) > 100


def test_nothing_to_hold_out_is_an_error(tmp_path):
    spec, _ = write_dataset(tmp_path, [[1]], frame=random_rows(1))
    with pytest.raises(DataError, match="of its 1 rows would be held out for validation; add a `valid` mapping"):
        draw_held_out(spec, "train", 0.05, seed=0)
