"""Plan epochs of whole groups: all rows with the same value of the map feature in one step, on one worker."""

from collections.abc import Iterator

import numpy as np

from data.errors import DataError
from data.loading.parquet import ParquetReader
from data.loading.part import Part, PartReader
from data.loading.shuffle import RowRange, WindowSlice
from data.spec.feature_spec import FeatureSpec
from data.spec.features import MAP


def read_groups(spec: FeatureSpec, mapping: str, part: Part | None) -> np.ndarray:
    """Return the value of the map feature in each row of a mapping, or of a part of it, [rows] int64.

    Raises:
        DataError: if the specification has no map feature, or the files do not hold it.
    """
    whole = ParquetReader(spec.only(MAP), mapping, with_group=True)
    reader = whole if part is None else PartReader(whole, part)
    groups, filled = np.empty(reader.rows, np.int64), 0
    for row_group, rows in enumerate(reader.row_group_rows.tolist()):
        if rows:
            batch = reader.allocate(rows)
            reader.decode(row_group, 0, rows, batch)
            groups[filled : filled + rows] = np.asarray(batch.group)
            filled += rows
    return groups


class GroupedRows:
    """The rows of a mapping by group, and the places of groups in the steps of an epoch.

    The groups are put into a random order once, and packed one after the other into steps of at most
    `global_batch_size` rows. A place has the size of its group. Places stay the same, so that all epochs have equally
    many steps, of the same sizes; in every epoch, each group is drawn into one of the places of its size.

    Memory: about 4 bytes per row and 40 per group.

    Args:
        groups: [rows] int64 group of each row; at least one row.
        global_batch_size: maximum number of rows per step, summed over all workers.
        seed: seed of all orders, at least 0.
        where: the rows and the feature, for the error message.

    Attributes:
        rows: number of rows.
        step_rows: [steps] int64 number of rows of each step, summed over all workers.

    Raises:
        DataError: if a group has more than `global_batch_size` rows.
    """

    def __init__(self, groups: np.ndarray, global_batch_size: int, *, seed: int, where: str):
        self.rows, self._seed = len(groups), seed
        by_group = np.argsort(groups, kind="stable").astype(np.int32)
        ordered = groups[by_group]
        firsts = np.concatenate([[0], np.flatnonzero(np.diff(ordered)) + 1])
        sizes = np.diff(firsts, append=len(ordered))
        if sizes.max() > global_batch_size:
            largest = int(np.argmax(sizes))
            raise DataError(
                f"{where}: group {ordered[firsts[largest]]} has {sizes[largest]:,} rows, and a step takes whole groups "
                f"of at most {global_batch_size:,} rows in all; raise --global_batch_size to at least "
                f"{sizes[largest]:,}, or group by a feature with smaller groups"
            )
        self._by_group, self._firsts, self._sizes = by_group, firsts, sizes
        # The places: [groups] size, and step. Generator 0 draws their order, generators (1, epoch) the groups in them.
        self._place_sizes = np.random.default_rng([seed, 0]).permutation(sizes)
        ends = np.cumsum(self._place_sizes)
        borders = [0]
        while borders[-1] < len(sizes):
            before = ends[borders[-1] - 1] if borders[-1] else 0
            borders.append(int(np.searchsorted(ends, before + global_batch_size, side="right")))
        self._place_steps = np.repeat(np.arange(len(borders) - 1), np.diff(borders))
        self.step_rows = np.add.reduceat(self._place_sizes, borders[:-1])
        self._place_starts = ends - self._place_sizes - (np.cumsum(self.step_rows) - self.step_rows)[self._place_steps]

    @property
    def steps(self) -> int:
        """Number of steps of an epoch."""
        return len(self.step_rows)

    def worker_rows(self, workers: int) -> np.ndarray:
        """Return the number of rows of each worker in each step, [workers, steps] int64.

        Workers take consecutive places, so that their rows differ by at most about the largest group.
        """
        flat = self._workers(workers) * self.steps + self._place_steps
        counts = np.bincount(flat, self._place_sizes, minlength=workers * self.steps)
        return counts.astype(np.int64).reshape(workers, self.steps)

    def positions(self, epoch: int, worker: int, workers: int) -> list[np.ndarray]:
        """Return a worker's rows in each step of an epoch, group after group, [rows] int32 each."""
        random = np.random.default_rng([self._seed, 1, epoch])
        drawn = np.empty(len(self._sizes), np.int64)  # the group in each place
        by_size = np.lexsort((random.random(len(self._sizes)), self._sizes))
        drawn[np.argsort(self._place_sizes, kind="stable")] = by_size
        own = self._workers(workers) == worker
        firsts, sizes = self._firsts[drawn[own]], self._place_sizes[own]
        offsets = np.repeat(firsts - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())
        return np.split(self._by_group[offsets], np.cumsum(self.worker_rows(workers)[worker])[:-1])

    def _workers(self, workers: int) -> np.ndarray:
        """Return the worker of each place, [groups] int64: that of the middle of its rows."""
        middles = 2 * self._place_starts + self._place_sizes
        return middles * workers // (2 * self.step_rows[self._place_steps])


class GroupedPlan:
    """A training epoch of whole groups. Since the rows of a group may be anywhere, all rows are one window.

    Args:
        grouped: the rows by group.
        row_group_rows: [row_groups] number of rows of each row group; some may be empty.
        epoch: index of the epoch; every epoch has its own order.
        worker: rank of the worker.
        workers: number of workers.

    Attributes:
        window_rows, open_rows: as in `ShuffledPlan`.
    """

    def __init__(self, grouped: GroupedRows, row_group_rows: np.ndarray, *, epoch: int, worker: int, workers: int):
        self._grouped, self._epoch, self._worker, self._workers = grouped, epoch, worker, workers
        self._ranges = tuple(RowRange(index, 0, rows) for index, rows in enumerate(row_group_rows.tolist()) if rows)
        self.window_rows = self.open_rows = grouped.rows

    def slices(self, first_step: int = 0) -> Iterator[WindowSlice]:
        """Yield the worker's rows from `first_step` on."""
        if first_step < self._grouped.steps:
            positions = self._grouped.positions(self._epoch, self._worker, self._workers)[first_step:]
            yield WindowSlice(self._ranges, range(first_step, self._grouped.steps), tuple(positions))
