"""Batches of whole groups: every row once, groups together, the same steps for any number of workers."""

from contextlib import closing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.loading.batch import PAD
from data.loading.groups import GroupedRows
from data.loading.loader import ParquetLoader
from data.loading.part import Part
from tests.data.sample_data import check_pads, check_rows, write_dataset


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_each_row_once_in_steps_of_whole_groups(data):
    groups = np.array(
        data.draw(st.lists(st.integers(-(2**63), -(2**63) + 9) | st.integers(0, 3), min_size=1)), np.int64
    )
    largest = int(np.unique(groups, return_counts=True)[1].max())
    batch, workers = data.draw(st.integers(largest, 3 * largest)), data.draw(st.integers(1, 4))
    epoch = data.draw(st.integers(0, 2))
    grouped = GroupedRows(groups, batch, seed=data.draw(st.integers(0, 5)), where="rows")
    alone = grouped.positions(epoch, 0, 1)
    shares = [grouped.positions(epoch, worker, workers) for worker in range(workers)]
    assert [len(rows) for rows in alone] == grouped.step_rows.tolist()
    assert grouped.step_rows.sum() == len(groups) and (grouped.step_rows <= batch).all()
    assert sorted(row for rows in alone for row in rows.tolist()) == list(range(len(groups)))
    for step, rows in enumerate(alone):
        parts = [share[step] for share in shares]
        assert np.concatenate(parts).tolist() == rows.tolist()
        homes = [group for part in parts for group in np.unique(groups[part])]
        assert len(set(homes)) == len(homes)
        for part in parts:
            runs = np.count_nonzero(np.diff(groups[part].astype(object))) + 1 if len(part) else 0
            assert runs == len(np.unique(groups[part]))
    assert grouped.worker_rows(workers).tolist() == [[len(rows) for rows in share] for share in shares]


def test_steps_are_full_and_epochs_differ():
    groups = np.random.default_rng(0).integers(0, 400, 4000)
    grouped = GroupedRows(groups, 100, seed=1, where="rows")
    assert grouped.steps < 1.15 * 40
    first, second = ([set(rows.tolist()) for rows in grouped.positions(epoch, 0, 1)] for epoch in (0, 1))
    assert [len(rows) for rows in first] == [len(rows) for rows in second] and first != second
    per_worker = grouped.worker_rows(4)
    assert per_worker.max() <= 25 + np.bincount(groups).max()


def test_a_group_larger_than_a_step_is_rejected():
    with pytest.raises(DataError, match="train: group 7 has 3 rows, .* raise --global_batch_size to at least 3"):
        GroupedRows(np.array([7, 1, 7, 7]), 2, seed=0, where="train")


@pytest.mark.parametrize("workers", [1, 3])
def test_the_loader_yields_whole_groups_and_resumes_between_them(tmp_path, workers):
    spec, frame = write_dataset(tmp_path, [[40, 0, 25], [60]])
    sizes = frame["session"].value_counts()
    options = {"global_batch_size": int(sizes.max()) + 5, "workers": workers, "shuffle": True, "seed": 3}
    options |= {"with_group": True, "whole_groups": True}
    found: list[list[list[int]]] = []
    for worker in range(workers):
        loader = ParquetLoader(spec, "train", worker=worker, **options)
        with closing(loader.epoch(1)) as batches:
            own = list(batches)
        assert len(own) == loader.steps_per_epoch and loader.rows_until(len(own)) == len(frame)
        for batch in own:
            assert len(batch.weights) == loader.local_batch_size
            check_rows(batch, frame)
            check_pads(batch)
        found.append([[row for row in batch.rows.tolist() if row != PAD] for batch in own])
        with closing(loader.epoch(1, first_step=2)) as batches:
            assert [batch.rows.tolist() for batch in batches] == [batch.rows.tolist() for batch in own[2:]]
    steps = [[row for part in step for row in part] for step in zip(*found, strict=True)]
    assert sorted(sum(steps, [])) == list(range(len(frame)))
    assert [loader.rows_until(step) for step in range(3)] == [0, len(steps[0]), len(steps[0]) + len(steps[1])]
    for step in steps:
        assert all(len(rows) == sizes[group] for group, rows in frame.iloc[step].groupby("session"))


def test_a_part_of_the_rows_has_its_own_groups(tmp_path):
    spec, frame = write_dataset(tmp_path, [[40], [30]])
    mask = np.arange(70) % 3 > 0
    loader = ParquetLoader(
        spec, "train", global_batch_size=70, shuffle=True, with_group=True, whole_groups=True,
        part=Part(np.packbits(mask), bit=True),
    )  # fmt: skip
    with closing(loader.epoch(0)) as batches:
        rows = np.concatenate([batch.rows for batch in batches])
    assert sorted(rows.tolist()) == np.flatnonzero(mask).tolist()
