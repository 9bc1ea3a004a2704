"""Which rows make up each step of an epoch: pure functions of a seed and of row counts, without any file.

A unit is a row group. A shuffled epoch lays the units on a line in random order and cuts the line into
lanes of equal length. Every step takes equally many rows from each lane, so that a worker which serves
one lane of eight reads an eighth of the data, while the rows of a step are the same for any number of
workers. Successive units of a lane form a window, within which rows are shuffled.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

# Rows of all lanes' windows together, about. Windows hold whole units, so they can be a unit longer.
SHUFFLE_ROWS = 2**19
MOST_LANES = 16
WINDOWS_OPEN = 2  # per lane: the one in use and the next
# A unit on the border of two lanes is read for both; with this many units per lane that is little.
UNITS_PER_LANE = 16


class Segment(NamedTuple):
    """Consecutive rows of one unit: [start, stop)."""

    unit: int
    start: int
    stop: int


class Share(NamedTuple):
    """One worker's part of a window: what to read, and which of it goes into which step.

    Attributes:
        segments: what to read, one after the other.
        steps: the successive steps that take rows.
        positions: per step, [rows] int32 ascending positions among the rows read. No position occurs twice.
    """

    segments: tuple[Segment, ...]
    steps: range
    positions: tuple[np.ndarray, ...]


class ShuffledPlan:
    """A training epoch: every row once, in an order that depends on nothing but the arguments.

    Args:
        unit_rows: [units] rows of each unit; units may be empty.
        global_batch_size: rows of a step, of all workers together.
        seed: of the order, at least 0.
        epoch: number of the epoch; each has an order of its own.

    Attributes:
        steps: of the epoch; the last may be short.
        lanes: how many parts of the data every step draws from.
        window_rows: most rows of a window.
        open_rows: most rows of the windows that are open at the same time, over all lanes.
    """

    def __init__(self, unit_rows: np.ndarray, global_batch_size: int, *, seed: int, epoch: int):
        self._rows = int(np.sum(unit_rows))
        self.steps = -(-self._rows // global_batch_size)
        self.lanes = lane_count(unit_rows, global_batch_size)
        self._lane_batch = global_batch_size // self.lanes
        self._borders = [lane * self._rows // self.lanes for lane in range(self.lanes + 1)]
        self._seed = [seed, epoch]
        order = np.random.default_rng([*self._seed, 0]).permutation(len(unit_rows))
        self._windows = _windows(unit_rows, order, self._borders, SHUFFLE_ROWS // self.lanes)
        self.window_rows, self.open_rows = _longest(self._windows), _open_rows(self._windows)

    def shares(self, lane: int, worker: int, workers: int, first_step: int = 0) -> Iterator[Share]:
        """The parts of a lane's windows that a worker needs from `first_step` on, in the order of their steps.

        A step's rows, lane after lane, are divided evenly among the workers in order of rank. Where
        workers share a lane, each takes the same stretch of all its windows.
        """
        asked = _Asked(0, 0, 0)
        for index, window in enumerate(self._windows[lane]):
            steps = window.steps(self._lane_batch, first_step)
            cuts = []
            for step in steps:
                begin, end = window.part(self._lane_batch, step)
                if step * self._lane_batch >= window.start:
                    asked = self._asked(lane, step, worker, workers)
                cut, asked = asked.split(end - begin)
                cuts.append(cut)
            if any(low < high for low, high in cuts):
                yield window.share(steps, self._draw(lane, index, steps, cuts))

    def _asked(self, lane: int, step: int, worker: int, workers: int) -> "_Asked":
        rows = min(self._lane_batch * self.lanes, self._rows - step * self._lane_batch * self.lanes)
        first, end = self._rows_before(lane, step), self._rows_before(lane + 1, step)
        low, high = (min(max(rank * rows // workers, first), end) - first for rank in (worker, worker + 1))
        return _Asked(end - first, low, high)

    def _rows_before(self, lane: int, step: int) -> int:
        """How many of a step's rows come from lanes before this one."""
        return min(lane * self._lane_batch, self._borders[lane] - lane * step * self._lane_batch)

    def _draw(self, lane: int, index: int, steps: range, cuts: list[tuple[int, int]]) -> list[np.ndarray]:
        window = self._windows[lane][index]
        order = np.random.default_rng([*self._seed, 1, lane, index]).permutation(window.rows).astype(np.int32)
        parts = (slice(*window.part(self._lane_batch, step)) for step in steps)
        return [np.sort(order[part])[low:high] for part, (low, high) in zip(parts, cuts, strict=True)]


class SequentialPlan:
    """A pass in dataset order: worker w of N holds the rows from w * rows // N to (w + 1) * rows // N.

    All workers have equally many steps; those of a worker with fewer rows can be empty at the end.

    Args:
        unit_rows: [units] rows of each unit; units may be empty.
        local_batch_size: rows of a worker's step.
        worker: rank of the worker.
        workers: how many there are.

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
        """The worker's rows from `first_step` on, in order."""
        for window in self._windows:
            steps = window.steps(self._local_batch_size, first_step)
            if steps:
                parts = (window.part(self._local_batch_size, step) for step in steps)
                yield window.share(steps, [np.arange(*part, dtype=np.int32) for part in parts])


def lane_count(unit_rows: np.ndarray, global_batch_size: int) -> int:
    """How many lanes an epoch has: a divisor of the batch size, so that every lane gives equally much.

    There are at most as many as windows of one unit fit into SHUFFLE_ROWS, and few enough that the
    units on their borders do not count. Small datasets have one lane.
    """
    units, longest = np.count_nonzero(unit_rows), int(np.max(unit_rows, initial=1))
    most = min(MOST_LANES, units // UNITS_PER_LANE, SHUFFLE_ROWS // max(longest, 1))
    return next((lanes for lanes in range(most, 1, -1) if global_batch_size % lanes == 0), 1)


class _Asked(NamedTuple):
    """Of the rows of a step that a lane has yet to give: how many there are, and which a worker gets."""

    rows: int
    low: int
    high: int

    def split(self, first: int) -> tuple[tuple[int, int], "_Asked"]:
        """Takes the worker's part of the first rows in proportion, and leaves the rest to ask for."""
        low, high = self.low * first // self.rows, self.high * first // self.rows
        return (low, high), _Asked(self.rows - first, self.low - low, self.high - high)


class _Window(NamedTuple):
    """Rows [start, stop) of a lane, which are in memory together.

    The arrays [segments] say where the rows come from: unit, first row in the unit, and the position
    in the window, with the window's length at the end.
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
        """The steps from `first_step` on that take rows of the window."""
        return range(max(self.start // batch_size, first_step), -(-self.stop // batch_size))

    def part(self, batch_size: int, step: int) -> tuple[int, int]:
        """The stretch of the window, in the order of use, that belongs to a step."""
        begin, end = max(step * batch_size, self.start), min((step + 1) * batch_size, self.stop)
        return begin - self.start, end - self.start

    def share(self, steps: range, positions: list[np.ndarray]) -> Share:
        """The share that takes these positions of the window; at least one step takes some."""
        lowest = min(part[0] for part in positions if len(part))
        highest = max(part[-1] for part in positions if len(part))
        begin = int(np.searchsorted(self.positions, lowest, side="right")) - 1
        end = int(np.searchsorted(self.positions, highest, side="right"))
        first_rows = self.first_rows[begin:end]
        stops = first_rows + np.diff(self.positions[begin : end + 1])
        segments = map(Segment, self.units[begin:end].tolist(), first_rows.tolist(), stops.tolist())
        skipped = int(self.positions[begin])
        return Share(tuple(segments), steps, tuple(part - skipped for part in positions))


def _windows(unit_rows: np.ndarray, order: np.ndarray, borders: list[int], target: int) -> list[list[_Window]]:
    """Lays units on a line in the given order, cuts lanes at the borders, and lanes into windows of about `target`.

    Windows hold whole units as far as lanes do.
    """
    sizes = np.asarray(unit_rows, np.int64)[order]
    ends = np.cumsum(sizes)
    cuts = np.unique(np.concatenate([ends, borders]))
    cuts = cuts[(cuts >= borders[0]) & (cuts <= borders[-1])]
    starts = cuts[:-1]
    places = np.searchsorted(ends, starts, side="right")
    first_rows = starts - (ends - sizes)[places]
    lanes: list[list[_Window]] = []
    for begin, end in pairwise(borders):
        lane = slice(*np.searchsorted(cuts, [begin, end]))
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
