"""Plan which rows make up each step of an epoch, as pure functions of a seed and row counts; no file is read.

A unit is a row group. A shuffled epoch concatenates the units in random order and cuts the result into lanes of equal
length. Every step takes the same number of rows from each lane, so that a worker that reads one lane of eight reads
an eighth of the data, while the rows of a global batch do not depend on the number of workers. Consecutive units of a
lane form a window, within which rows are shuffled:

    units in random order   |   u3    |   u0    |   u5    |   u1    |   u4    |
    lanes                   |         lane 0         |         lane 1         |
    windows of each lane    |     window 0      | w1 |   window 0   |window 1 |
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

# Approximate size of the shuffle buffer: one window of every lane. Windows hold whole units, so each can be up to
# a unit longer.
SHUFFLE_ROWS = 2**19
MOST_LANES = 16
WINDOWS_OPEN = 2  # per lane: the current window and the prefetched one
# A unit that crosses a lane border is read twice; with this many units per lane, the overhead is small.
UNITS_PER_LANE = 16


class Segment(NamedTuple):
    """A range [start, stop) of rows of one unit."""

    unit: int
    start: int
    stop: int


class Share(NamedTuple):
    """One worker's part of a window: the rows to read, and the step that each of them belongs to.

    Attributes:
        segments: row ranges to read, in order.
        steps: consecutive steps that use the rows.
        positions: for each step, [rows] int32 ascending positions among the rows read. No position occurs twice.
    """

    segments: tuple[Segment, ...]
    steps: range
    positions: tuple[np.ndarray, ...]


class ShuffledPlan:
    """A training epoch: every row once, in an order determined by the arguments alone.

    Args:
        unit_rows: [units] number of rows of each unit; units may be empty.
        global_batch_size: rows per step, summed over all workers.
        seed: seed of the order, at least 0.
        epoch: index of the epoch; every epoch has its own order.

    Attributes:
        steps: number of steps in the epoch; the last one may be short.
        lanes: number of lanes that every step draws rows from.
        window_rows: number of rows of the longest window.
        open_rows: maximum number of rows in simultaneously open windows, summed over lanes.
    """

    def __init__(self, unit_rows: np.ndarray, global_batch_size: int, *, seed: int, epoch: int):
        self._rows = int(np.sum(unit_rows))
        self.steps = -(-self._rows // global_batch_size)
        self.lanes = lane_count(unit_rows, global_batch_size)
        self._lane_batch = global_batch_size // self.lanes  # exact: `lane_count` returns a divisor
        self._borders = [lane * self._rows // self.lanes for lane in range(self.lanes + 1)]
        self._seed = [seed, epoch]
        # Stream 0 orders the units; streams (1, lane, window) order the rows of the windows.
        order = np.random.default_rng([*self._seed, 0]).permutation(len(unit_rows))
        self._windows = _windows(unit_rows, order, self._borders, SHUFFLE_ROWS // self.lanes)
        self.window_rows, self.open_rows = _longest(self._windows), _open_rows(self._windows)

    def shares(self, lane: int, worker: int, workers: int, first_step: int = 0) -> Iterator[Share]:
        """Yield the parts of a lane's windows that a worker needs from `first_step` on, in step order.

        The rows of a step, concatenated over lanes, are partitioned evenly among the workers in order of rank.
        Workers that share a lane each take the same fraction of every window of it.
        """
        asked = _Asked(0, 0, 0)
        for index, window in enumerate(self._windows[lane]):
            steps = window.steps(self._lane_batch, first_step)
            cuts = []
            for step in steps:
                begin, end = window.part(self._lane_batch, step)
                # A step that began in the window before has a quota left over from there.
                if step * self._lane_batch >= window.start:
                    asked = self._asked(lane, step, worker, workers)
                cut, asked = asked.split(end - begin)
                cuts.append(cut)
            if any(low < high for low, high in cuts):
                yield window.share(steps, self._draw(lane, index, steps, cuts))

    def _asked(self, lane: int, step: int, worker: int, workers: int) -> "_Asked":
        rows = min(self._lane_batch * self.lanes, self._rows - step * self._lane_batch * self.lanes)
        first, end = self._rows_before(lane, step), self._rows_before(lane + 1, step)
        # The overlap of the worker's range of the step's rows with those of the lane, [first, end).
        low, high = (min(max(rank * rows // workers, first), end) - first for rank in (worker, worker + 1))
        return _Asked(end - first, low, high)

    def _rows_before(self, lane: int, step: int) -> int:
        """Return how many of a step's rows come from earlier lanes; fewer than usual in the last, short step."""
        return min(lane * self._lane_batch, self._borders[lane] - lane * step * self._lane_batch)

    def _draw(self, lane: int, index: int, steps: range, cuts: list[tuple[int, int]]) -> list[np.ndarray]:
        window = self._windows[lane][index]
        # The permutation is independent of the worker: workers that share a window cut the same order.
        order = np.random.default_rng([*self._seed, 1, lane, index]).permutation(window.rows).astype(np.int32)
        parts = (slice(*window.part(self._lane_batch, step)) for step in steps)
        # Sorted before it is cut: a worker that shares the lane then needs about the same stretch of the window in
        # every step, instead of all of it.
        return [np.sort(order[part])[low:high] for part, (low, high) in zip(parts, cuts, strict=True)]


class SequentialPlan:
    """A pass in dataset order: worker w of N reads rows [w * rows // N, (w + 1) * rows // N).

    All workers have the same number of steps; the last ones can be empty for a worker with fewer rows.

    Args:
        unit_rows: [units] number of rows of each unit; units may be empty.
        local_batch_size: rows per step of one worker.
        worker: rank of the worker.
        workers: number of workers.

    Attributes:
        steps, lanes, window_rows, open_rows: as in `ShuffledPlan`.
    """

    lanes = 1

    def __init__(self, unit_rows: np.ndarray, local_batch_size: int, *, worker: int, workers: int):
        rows = int(np.sum(unit_rows))
        self.steps = -(-rows // (local_batch_size * workers))
        self._local_batch_size = local_batch_size
        borders = [rank * rows // workers for rank in (worker, worker + 1)]
        (self._windows,) = _windows(unit_rows, np.arange(len(unit_rows)), borders, SHUFFLE_ROWS)
        self.window_rows, self.open_rows = _longest([self._windows]), _open_rows([self._windows])

    def shares(self, first_step: int = 0) -> Iterator[Share]:
        """Yield the worker's rows from `first_step` on, in dataset order."""
        for window in self._windows:
            steps = window.steps(self._local_batch_size, first_step)
            if steps:
                parts = (window.part(self._local_batch_size, step) for step in steps)
                yield window.share(steps, [np.arange(*part, dtype=np.int32) for part in parts])


def lane_count(unit_rows: np.ndarray, global_batch_size: int) -> int:
    """Return the number of lanes: a divisor of the batch size, so that all lanes contribute equally to a step.

    It is at most MOST_LANES and the number of units that fit into SHUFFLE_ROWS, and leaves at least UNITS_PER_LANE
    units per lane. Small datasets have one lane.
    """
    units, longest = np.count_nonzero(unit_rows), int(np.max(unit_rows, initial=1))
    most = min(MOST_LANES, units // UNITS_PER_LANE, SHUFFLE_ROWS // max(longest, 1))
    return next((lanes for lanes in range(most, 1, -1) if global_batch_size % lanes == 0), 1)


class _Asked(NamedTuple):
    """The rows that a step still takes from a lane: their number, and the range [low, high) of one worker."""

    rows: int
    low: int
    high: int

    def split(self, first: int) -> tuple[tuple[int, int], "_Asked"]:
        """Return the worker's proportional range of the next `first` rows, and what remains after them."""
        low, high = self.low * first // self.rows, self.high * first // self.rows
        return (low, high), _Asked(self.rows - first, self.low - low, self.high - high)


class _Window(NamedTuple):
    """Rows [start, stop) of a lane, which are shuffled together in memory.

    Attributes:
        start, stop: range of the window within the lane, in rows.
        units: [segments] unit that each segment comes from.
        first_rows: [segments] first row of each segment within its unit.
        positions: [segments + 1] where each segment begins in the window, followed by the window's length.
    """

    start: int
    stop: int
    units: np.ndarray
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

    def share(self, steps: range, positions: list[np.ndarray]) -> Share:
        """Return the share that uses these positions of the window, of which there must be at least one.

        Segments before the first and after the last position are not read.

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
        segments = map(Segment, self.units[begin:end].tolist(), first_rows.tolist(), stops.tolist())
        skipped = int(self.positions[begin])  # positions count from the first row read
        return Share(tuple(segments), steps, tuple(part - skipped for part in positions))


def _windows(unit_rows: np.ndarray, order: np.ndarray, borders: list[int], target: int) -> list[list[_Window]]:
    """Concatenate units in the given order, cut lanes at the borders, and lanes into windows of about `target` rows.

    Only lane borders cut through units; window borders do not.

    Args:
        unit_rows: [units] number of rows of each unit.
        order: [units] permutation of the units.
        borders: [lanes + 1] lane borders, in rows of the concatenated units.
        target: approximate number of rows per window.
    """
    sizes = np.asarray(unit_rows, np.int64)[order]
    ends = np.cumsum(sizes)
    # Segments end where a unit or a lane does; np.unique drops the empty ones.
    cuts = np.unique(np.concatenate([ends, borders]))
    cuts = cuts[(cuts >= borders[0]) & (cuts <= borders[-1])]
    starts = cuts[:-1]
    places = np.searchsorted(ends, starts, side="right")
    first_rows = starts - (ends - sizes)[places]
    lanes: list[list[_Window]] = []
    for begin, end in pairwise(borders):
        lane = slice(*np.searchsorted(cuts, [begin, end]))
        # A window is the run of segments that start within the same `target` rows of the lane.
        numbers = (starts[lane] - begin) // max(target, 1)
        firsts = np.flatnonzero(np.diff(numbers, prepend=-1)) + lane.start
        lanes.append(
            [
                _Window(
                    int(starts[first] - begin),
                    int(cuts[stop] - begin),
                    order[places[first:stop]],
                    first_rows[first:stop],
                    cuts[first : stop + 1] - starts[first],
                )
                for first, stop in pairwise([*firsts, lane.stop])
            ]
        )
    return lanes


def _longest(lanes: list[list[_Window]]) -> int:
    return max((window.rows for lane in lanes for window in lane), default=0)


def _open_rows(lanes: list[list[_Window]]) -> int:
    total = 0
    for lane in lanes:
        rows = [window.rows for window in lane]
        total += max((sum(rows[first : first + WINDOWS_OPEN]) for first in range(len(rows))), default=0)
    return total
