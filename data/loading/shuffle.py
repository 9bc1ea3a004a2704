"""Plan which rows make up each step of an epoch, as pure functions of a seed and row counts; no file is read.

Shuffling rows across a whole dataset would need all of it in memory. Instead, a shuffled epoch concatenates the row
groups in random order, cuts the result into streams of equal length, and shuffles the rows within windows of
consecutive row groups of a stream. Every step takes the same number of rows from each stream:

    row groups, in random order   |   g3    |   g0    |   g5    |   g1    |   g4    |
    streams                       |        stream 0        |        stream 1        |
    windows of each stream        |     window 0      | w1 |     window 0 |window 1 |
    step 0 takes                   ##                       ##
    step 1 takes                     ##                       ##                        (## = rows anywhere
    step 2 takes                       ##                       ##                          in the window)

A worker that reads one stream of eight reads an eighth of the data, while the rows of a global batch do not depend on
the number of workers.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

# Approximate size of the shuffle buffer: one window of every stream. Windows hold whole row groups, so each can be up
# to a row group longer.
SHUFFLE_ROWS = 2**19
MAX_STREAMS = 16
OPEN_WINDOWS = 2  # per stream: the current window and the prefetched one
# A row group that crosses the border of a stream is read twice; with this many per stream, the overhead is small.
ROW_GROUPS_PER_STREAM = 16


class RowRange(NamedTuple):
    """A range [start, stop) of the rows of a row group."""

    row_group: int
    start: int
    stop: int


class WindowSlice(NamedTuple):
    """One worker's part of a window: the rows to read, and the step that each of them belongs to.

    Attributes:
        ranges: row ranges to read, in order.
        steps: consecutive steps that use the rows.
        positions: for each step, [rows] int32 positions among the rows read; none occurs twice.
    """

    ranges: tuple[RowRange, ...]
    steps: range
    positions: tuple[np.ndarray, ...]


class ShuffledPlan:
    """A training epoch: every row once, in an order determined by the arguments alone.

    Args:
        row_group_rows: [row_groups] number of rows of each row group; some may be empty.
        global_batch_size: rows per step, summed over all workers.
        seed: seed of the order, at least 0.
        epoch: index of the epoch; every epoch has its own order.

    Attributes:
        steps: number of steps in the epoch; the last one may be short.
        streams: number of streams that every step draws rows from.
        window_rows: number of rows of the longest window.
        open_rows: maximum number of rows in simultaneously open windows, summed over streams.
    """

    def __init__(self, row_group_rows: np.ndarray, global_batch_size: int, *, seed: int, epoch: int):
        self._rows = int(np.sum(row_group_rows))
        self.steps = -(-self._rows // global_batch_size)
        self.streams = stream_count(row_group_rows, global_batch_size)
        self._stream_batch = global_batch_size // self.streams  # exact: `stream_count` returns a divisor
        self._borders = [stream * self._rows // self.streams for stream in range(self.streams + 1)]
        self._seed = [seed, epoch]
        # Generator 0 orders the row groups; generators (1, stream, window) order the rows of the windows.
        order = np.random.default_rng([*self._seed, 0]).permutation(len(row_group_rows))
        self._windows = _windows(row_group_rows, order, self._borders, SHUFFLE_ROWS // self.streams)
        self.window_rows, self.open_rows = _longest(self._windows), _open_rows(self._windows)

    def slices(self, stream: int, worker: int, workers: int, first_step: int = 0) -> Iterator[WindowSlice]:
        """Yield the parts of a stream's windows that a worker needs from `first_step` on, in step order.

        The rows of a step, concatenated over streams, are partitioned evenly among the workers in order of rank.
        Workers that share a stream each take the same fraction of every window of it.
        """
        quota = _Quota(0, 0, 0)
        for index, window in enumerate(self._windows[stream]):
            steps = window.steps(self._stream_batch, first_step)
            cuts = []
            for step in steps:
                begin, end = window.part(self._stream_batch, step)
                # A step that began in the window before has a quota left over from there.
                if step * self._stream_batch >= window.start:
                    quota = self._start_quota(stream, step, worker, workers)
                cut, quota = quota.split(end - begin)
                cuts.append(cut)
            if any(low < high for low, high in cuts):
                yield window.select(steps, self._positions(stream, index, steps, cuts))

    def _start_quota(self, stream: int, step: int, worker: int, workers: int) -> "_Quota":
        rows = min(self._stream_batch * self.streams, self._rows - step * self._stream_batch * self.streams)
        first, end = self._rows_before(stream, step), self._rows_before(stream + 1, step)
        # The overlap of the worker's range of the step's rows with those of the stream, [first, end).
        low, high = (min(max(rank * rows // workers, first), end) - first for rank in (worker, worker + 1))
        return _Quota(end - first, low, high)

    def _rows_before(self, stream: int, step: int) -> int:
        """Return how many of a step's rows come from earlier streams; fewer than usual in the last, short step."""
        return min(stream * self._stream_batch, self._borders[stream] - stream * step * self._stream_batch)

    def _positions(self, stream: int, index: int, steps: range, cuts: list[tuple[int, int]]) -> list[np.ndarray]:
        window = self._windows[stream][index]
        # The permutation is independent of the worker: workers that share a window cut the same order.
        order = np.random.default_rng([*self._seed, 1, stream, index]).permutation(window.rows).astype(np.int32)
        parts = (slice(*window.part(self._stream_batch, step)) for step in steps)
        # Sorted before it is cut: a worker that shares the stream then needs about the same stretch of the window in
        # every step, instead of all of it.
        return [np.sort(order[part])[low:high] for part, (low, high) in zip(parts, cuts, strict=True)]


class SequentialPlan:
    """A pass in dataset order: worker w of N reads rows [w * rows // N, (w + 1) * rows // N).

    All workers have the same number of steps; the last ones can be empty for a worker with fewer rows.

    Args:
        row_group_rows: [row_groups] number of rows of each row group; some may be empty.
        local_batch_size: rows per step of one worker.
        worker: rank of the worker.
        workers: number of workers.

    Attributes:
        steps, streams, window_rows, open_rows: as in `ShuffledPlan`.
    """

    streams = 1

    def __init__(self, row_group_rows: np.ndarray, local_batch_size: int, *, worker: int, workers: int):
        rows = int(np.sum(row_group_rows))
        self.steps = -(-rows // (local_batch_size * workers))
        self._local_batch_size = local_batch_size
        borders = [rank * rows // workers for rank in (worker, worker + 1)]
        (self._windows,) = _windows(row_group_rows, np.arange(len(row_group_rows)), borders, SHUFFLE_ROWS)
        self.window_rows, self.open_rows = _longest([self._windows]), _open_rows([self._windows])

    def slices(self, first_step: int = 0) -> Iterator[WindowSlice]:
        """Yield the worker's rows from `first_step` on, in dataset order."""
        for window in self._windows:
            steps = window.steps(self._local_batch_size, first_step)
            if steps:
                parts = (window.part(self._local_batch_size, step) for step in steps)
                yield window.select(steps, [np.arange(*part, dtype=np.int32) for part in parts])


def stream_count(row_group_rows: np.ndarray, global_batch_size: int) -> int:
    """Return the number of streams: a divisor of the batch size, so that all streams contribute equally to a step.

    It is at most MAX_STREAMS and the number of row groups that fit into SHUFFLE_ROWS, and leaves at least
    ROW_GROUPS_PER_STREAM row groups per stream. Small datasets have one stream.
    """
    row_groups, longest = np.count_nonzero(row_group_rows), int(np.max(row_group_rows, initial=1))
    limit = min(MAX_STREAMS, row_groups // ROW_GROUPS_PER_STREAM, SHUFFLE_ROWS // max(longest, 1))
    return next((streams for streams in range(limit, 1, -1) if global_batch_size % streams == 0), 1)


class _Quota(NamedTuple):
    """The rows that a step still takes from a stream: their number, and the range [low, high) of one worker."""

    rows: int
    low: int
    high: int

    def split(self, first: int) -> tuple[tuple[int, int], "_Quota"]:
        """Return the worker's proportional range of the next `first` rows, and what remains after them."""
        low, high = self.low * first // self.rows, self.high * first // self.rows
        return (low, high), _Quota(self.rows - first, self.low - low, self.high - high)


class _Window(NamedTuple):
    """Rows [start, stop) of a stream, which are shuffled together in memory.

    Attributes:
        start, stop: range of the window within the stream, in rows.
        row_groups: [ranges] row group that each range comes from.
        first_rows: [ranges] first row of each range within its row group.
        positions: [ranges + 1] where each range begins in the window, followed by the window's length.
    """

    start: int
    stop: int
    row_groups: np.ndarray
    first_rows: np.ndarray
    positions: np.ndarray

    @property
    def rows(self) -> int:
        return self.stop - self.start

    def steps(self, batch_size: int, first_step: int) -> range:
        """Return the steps from `first_step` on that use rows of the window."""
        return range(max(self.start // batch_size, first_step), -(-self.stop // batch_size))

    def part(self, batch_size: int, step: int) -> tuple[int, int]:
        """Return the range [begin, end) of the window's shuffled order that belongs to a step."""
        begin, end = max(step * batch_size, self.start), min((step + 1) * batch_size, self.stop)
        return begin - self.start, end - self.start

    def select(self, steps: range, positions: list[np.ndarray]) -> WindowSlice:
        """Return the slice with these positions of the window, of which there must be at least one.

        Ranges before the first and after the last position are not read.

        Args:
            steps: steps that use the rows.
            positions: for each step, [rows] int32 ascending positions in the window.
        """
        lowest = min(part[0] for part in positions if len(part))
        highest = max(part[-1] for part in positions if len(part))
        begin = int(np.searchsorted(self.positions, lowest, side="right")) - 1
        end = int(np.searchsorted(self.positions, highest, side="right"))
        first_rows = self.first_rows[begin:end]
        stops = first_rows + np.diff(self.positions[begin : end + 1])
        ranges = map(RowRange, self.row_groups[begin:end].tolist(), first_rows.tolist(), stops.tolist())
        skipped = int(self.positions[begin])  # positions count from the first row read
        return WindowSlice(tuple(ranges), steps, tuple(part - skipped for part in positions))


def _windows(row_group_rows: np.ndarray, order: np.ndarray, borders: list[int], target: int) -> list[list[_Window]]:
    """Concatenate row groups in the given order, and cut streams, and from these windows of about `target` rows.

    Only stream borders cut through row groups; window borders do not.

    Args:
        row_group_rows: [row_groups] number of rows of each row group.
        order: [row_groups] permutation of the row groups.
        borders: [streams + 1] stream borders, in rows of the concatenated row groups.
        target: approximate number of rows per window.
    """
    sizes = np.asarray(row_group_rows, np.int64)[order]
    ends = np.cumsum(sizes)
    # Ranges end where a row group or a stream does; np.unique drops the empty ones.
    cuts = np.unique(np.concatenate([ends, borders]))
    cuts = cuts[(cuts >= borders[0]) & (cuts <= borders[-1])]
    starts = cuts[:-1]
    positions = np.searchsorted(ends, starts, side="right")
    first_rows = starts - (ends - sizes)[positions]
    streams: list[list[_Window]] = []
    for begin, end in pairwise(borders):
        stream = slice(*np.searchsorted(cuts, [begin, end]))
        # A window is the run of ranges that start within the same `target` rows of the stream.
        numbers = (starts[stream] - begin) // max(target, 1)
        firsts = np.flatnonzero(np.diff(numbers, prepend=-1)) + stream.start
        streams.append(
            [
                _Window(
                    int(starts[first] - begin),
                    int(cuts[stop] - begin),
                    order[positions[first:stop]],
                    first_rows[first:stop],
                    cuts[first : stop + 1] - starts[first],
                )
                for first, stop in pairwise([*firsts, stream.stop])
            ]
        )
    return streams


def _longest(streams: list[list[_Window]]) -> int:
    return max((window.rows for stream in streams for window in stream), default=0)


def _open_rows(streams: list[list[_Window]]) -> int:
    total = 0
    for stream in streams:
        rows = [window.rows for window in stream]
        total += max((sum(rows[first : first + OPEN_WINDOWS]) for first in range(len(rows))), default=0)
    return total
