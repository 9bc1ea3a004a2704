from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.loading import shuffle as epoch_plan
from data.loading.shuffle import SequentialPlan, ShuffledPlan, WindowSlice, stream_count


@contextmanager
def small_windows(shuffle_rows: int, row_groups_per_stream: int = 1) -> Iterator[None]:
    """Windows and streams as large datasets have them, on few rows."""
    with (
        mock.patch.object(epoch_plan, "SHUFFLE_ROWS", shuffle_rows),
        mock.patch.object(epoch_plan, "ROW_GROUPS_PER_STREAM", row_groups_per_stream),
    ):
        yield


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[int], int, int, int]:
    """Unit sizes around the batch size, workers, global batch size and rows per shuffle."""
    workers = draw(st.integers(1, 8))
    batch = draw(st.integers(1, 12 * workers))
    sizes = st.one_of(st.sampled_from([0, 1, 7, batch - 1, batch, batch + 1]), st.integers(0, 60))
    row_groups = draw(st.lists(sizes, min_size=1, max_size=24).filter(any))
    return row_groups, workers, batch, draw(st.integers(1, 200))


def rows_of(part: WindowSlice, row_groups: list[int]) -> np.ndarray:
    """The dataset rows that a part reads, in the order of reading."""
    starts = np.cumsum([0, *row_groups])
    for row_group, start, stop in part.ranges:
        assert 0 <= start < stop <= row_groups[row_group]
    return np.concatenate(
        [np.arange(starts[row_group] + start, starts[row_group] + stop) for row_group, start, stop in part.ranges]
    )


def add_rows(steps: list[list[int]], slices: Iterator[WindowSlice], row_groups: list[int]) -> None:
    for part in slices:
        rows = rows_of(part, row_groups)
        assert len(part.steps) == len(part.positions)
        for step, positions in zip(part.steps, part.positions, strict=True):
            assert positions.dtype == np.int32
            assert np.all(np.diff(positions) > 0)
            steps[step] += rows[positions].tolist()


def shuffled_rows(
    row_groups: list[int], batch: int, workers: int, *, seed: int = 0, epoch: int = 0, first_step: int = 0
) -> list[list[list[int]]]:
    """Dataset rows, [workers][steps][rows]."""
    plan = ShuffledPlan(np.array(row_groups), batch, seed=seed, epoch=epoch)
    result = []
    for worker in range(workers):
        steps: list[list[int]] = [[] for _ in range(plan.steps)]
        for stream in range(plan.streams):
            add_rows(steps, plan.slices(stream, worker, workers, first_step), row_groups)
        result.append(steps)
    return result


def sequential_rows(
    row_groups: list[int], local_batch: int, workers: int, first_step: int = 0
) -> list[list[list[int]]]:
    result = []
    for worker in range(workers):
        plan = SequentialPlan(np.array(row_groups), local_batch, worker=worker, workers=workers)
        steps: list[list[int]] = [[] for _ in range(plan.steps)]
        add_rows(steps, plan.slices(first_step), row_groups)
        result.append(steps)
    return result


def step_sets(by_worker: list[list[list[int]]]) -> list[list[int]]:
    return [sorted(sum(parts, [])) for parts in zip(*by_worker, strict=True)]


@settings(deadline=None)
@given(layouts(), st.integers(0, 5))
def test_every_row_is_in_exactly_one_step_of_one_worker(layout, epoch):
    row_groups, workers, batch, shuffle_rows = layout
    with small_windows(shuffle_rows):
        by_worker = shuffled_rows(row_groups, batch, workers, epoch=epoch)
    assert sorted(row for steps in by_worker for rows in steps for row in rows) == list(range(sum(row_groups)))


@settings(deadline=None)
@given(layouts())
def test_steps_are_full_and_shared_evenly(layout):
    row_groups, workers, batch, shuffle_rows = layout
    with small_windows(shuffle_rows):
        by_worker = shuffled_rows(row_groups, batch, workers)
    counts = np.array([[len(rows) for rows in steps] for steps in by_worker])
    assert counts.shape == (workers, -(-sum(row_groups) // batch))
    assert np.all(counts[:, :-1].sum(axis=0) == batch)
    assert np.all(counts.max(axis=0) - counts.min(axis=0) <= 1)


@settings(deadline=None)
@given(layouts(), st.integers(0, 3))
def test_a_step_has_the_same_rows_for_any_number_of_workers(layout, epoch):
    row_groups, workers, batch, shuffle_rows = layout
    with small_windows(shuffle_rows):
        assert step_sets(shuffled_rows(row_groups, batch, workers, epoch=epoch)) == step_sets(
            shuffled_rows(row_groups, batch, 1, epoch=epoch)
        )


@settings(deadline=None)
@given(layouts(), st.data())
def test_starting_at_a_step_gives_the_rest_of_the_epoch(layout, data):
    row_groups, workers, batch, shuffle_rows = layout
    with small_windows(shuffle_rows):
        whole = shuffled_rows(row_groups, batch, workers)
        first_step = data.draw(st.integers(0, len(whole[0])))
        rest = shuffled_rows(row_groups, batch, workers, first_step=first_step)
    for steps, late in zip(whole, rest, strict=True):
        assert late == [[]] * first_step + steps[first_step:]


def test_starting_late_reads_only_what_is_still_needed():
    with small_windows(shuffle_rows=128, row_groups_per_stream=4):
        plan = ShuffledPlan(np.full(32, 32), 16, seed=0, epoch=0)
        assert plan.streams > 1
        read = sum(
            stop - start
            for stream in range(plan.streams)
            for part in plan.slices(stream, 0, 1, first_step=plan.steps - 1)
            for _, start, stop in part.ranges
        )
    assert read <= plan.streams * plan.window_rows


@settings(deadline=None)
@given(layouts())
def test_one_worker_reads_every_row_once(layout):
    row_groups, _, batch, shuffle_rows = layout
    with small_windows(shuffle_rows):
        plan = ShuffledPlan(np.array(row_groups), batch, seed=0, epoch=0)
        slices = [part for stream in range(plan.streams) for part in plan.slices(stream, 0, 1)]
    read = np.concatenate([rows_of(part, row_groups) for part in slices])
    assert sorted(read) == list(range(sum(row_groups)))
    assert max(len(rows_of(part, row_groups)) for part in slices) <= plan.window_rows


@pytest.mark.parametrize("workers", [2, 4, 8])
def test_workers_that_divide_the_streams(workers):
    row_groups = [100] * 128
    with small_windows(shuffle_rows=800, row_groups_per_stream=16):
        plan = ShuffledPlan(np.array(row_groups), 64, seed=0, epoch=0)
        assert plan.streams == 8
        for worker in range(workers):
            slices = [part for stream in range(8) for part in plan.slices(stream, worker, workers)]
            assert sum(len(part.ranges) for part in slices) == 128 // workers


def test_workers_share_the_windows_of_a_stream():
    with small_windows(shuffle_rows=16_000, row_groups_per_stream=1000):
        plan = ShuffledPlan(np.full(64, 1000), 6400, seed=0, epoch=0)
        assert plan.streams == 1
        for worker in range(4):
            reads = [len(part.ranges) for part in plan.slices(0, worker, 4)]
            # A quarter of a window's 16 row groups, and those beside them, which a few rows fall into by chance.
            assert len(reads) == 4
            assert max(reads) <= 4 + 2


def test_order_depends_on_seed_and_epoch():
    row_groups = [50] * 8
    orders = [shuffled_rows(row_groups, 20, 1, seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len({str(order) for order in orders}) == 6
    assert shuffled_rows(row_groups, 20, 1, seed=1, epoch=2) == orders[-1]


def test_steps_draw_evenly_from_all_of_a_window():
    row_groups = [1000] * 8
    steps = shuffled_rows(row_groups, 400, 1)[0]
    counts = np.array([np.bincount(np.array(rows) // 1000, minlength=8) for rows in steps])
    # Hypergeometric: 400 of 8000 rows, 50 expected of each row_group, deviation 6.5.
    assert np.abs(counts - 50).max() < 5 * 6.5
    assert np.abs(counts - 50).max() > 6.5


def test_every_lane_gives_equally_much_to_a_step():
    with small_windows(shuffle_rows=64, row_groups_per_stream=4):
        plan = ShuffledPlan(np.full(16, 16), 8, seed=0, epoch=0)
        assert plan.streams == 4
        for stream in range(4):
            sizes = {len(positions) for part in plan.slices(stream, 0, 1) for positions in part.positions}
            assert sizes == {2}


def test_stream_count():
    assert stream_count(np.full(4096, 65_536), 16_384) == 8
    assert stream_count(np.full(4096, 131_072), 16_384) == 4
    assert stream_count(np.full(4096, 4_096), 16_384) == 16
    assert stream_count(np.full(4096, 4_096), 3 * 7) == 7
    assert stream_count(np.full(4096, 4_096), 10_007) == 1
    assert stream_count(np.full(4096, 2**20), 16_384) == 1
    assert stream_count(np.full(40, 4_096), 16_384) == 2
    assert stream_count(np.array([0]), 16_384) == 1


@settings(deadline=None)
@given(layouts())
def test_sequential_plan(layout):
    row_groups, workers, batch, shuffle_rows = layout
    rows = sum(row_groups)
    with small_windows(shuffle_rows):
        by_worker = sequential_rows(row_groups, -(-batch // workers), workers)
    local = -(-batch // workers)
    assert {len(steps) for steps in by_worker} == {-(-rows // (local * workers))}
    for worker, steps in enumerate(by_worker):
        held = list(range(worker * rows // workers, (worker + 1) * rows // workers))
        assert steps == [held[step * local : (step + 1) * local] for step in range(len(steps))]


@settings(deadline=None)
@given(layouts(), st.data())
def test_in_order_a_pass_can_start_at_any_step(layout, data):
    row_groups, workers, batch, shuffle_rows = layout
    with small_windows(shuffle_rows):
        whole = sequential_rows(row_groups, -(-batch // workers), workers)
        first_step = data.draw(st.integers(0, len(whole[0])))
        rest = sequential_rows(row_groups, -(-batch // workers), workers, first_step)
    assert rest == [[[]] * first_step + steps[first_step:] for steps in whole]


def test_one_row_on_eight_workers():
    assert sorted(shuffled_rows([0, 1, 0], 8, 8)) == [[[]]] * 7 + [[[0]]]
    assert sorted(sequential_rows([0, 1, 0], 1, 8)) == [[[]]] * 7 + [[[0]]]
