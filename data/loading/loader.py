"""Load the batches of a mapping from parquet in background threads."""

import queue
import threading
import warnings
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, overload

import numpy as np

from data.errors import DataError
from data.loading.batch import ITEM_BYTES, Batch, copy_rows, pad_rows, slice_rows
from data.loading.decode import Decoded, OovPolicy
from data.loading.groups import GroupedPlan, GroupedRows, read_groups
from data.loading.lists import ListColumns, empty_lists, join_rows, stack_columns
from data.loading.parquet import ParquetReader
from data.loading.part import Part, PartReader
from data.loading.read_ahead import ReadAhead
from data.loading.shuffle import OPEN_WINDOWS, SHUFFLE_ROWS, RowRange, SequentialPlan, ShuffledPlan, WindowSlice
from data.memory import check_fits
from data.spec.feature_spec import FeatureSpec

T = TypeVar("T")

DECODE_THREADS = 2
POSITION_BYTES = 4  # one int32 per row in a window's permutation
WIDE_BYTES = 2**12  # a feature whose lists are wider than this per row is named as the cause of a memory error
BATCHES_AHEAD = 4  # batches prefetched ahead of the consumer
# What becomes of ids outside of their table, by policy.
REPLACED = {
    "unseen": "the ids of unseen values were taken",
    "clip": "the nearest valid ids were taken",
    "drop": "their rows weigh 0",
}


class LoaderSize(NamedTuple):
    """What a loader holds in memory, and the sizes of its batches.

    Attributes:
        rows: number of rows that this worker reads in an epoch.
        batch_rows: number of rows of its batches.
        batches: number of batches that exist at once.
        row_bytes: bytes of a row in a batch.
        list_values: values per row in all lists, in the row groups that have the most of them.
        window_bytes: bytes of the open windows: buffers of decoded rows, their order, and the lists of one window.
        decoded_bytes: bytes that decoding the longest row group takes meanwhile.
        kept_bytes: bytes of the buffers that stay when an epoch has ended; the rest is returned to the system.
    """

    rows: int
    batch_rows: int
    batches: int
    row_bytes: int
    list_values: float
    window_bytes: int
    decoded_bytes: int
    kept_bytes: int


@dataclass
class _OpenWindow:
    """A window whose rows are being decoded; complete once `decoding` is empty.

    Attributes:
        part: the rows of the window to read, and the step that each of them belongs to.
        buffer: the decoded rows, except for their lists.
        decoding: for each range of rows to be waited for, its first position in `buffer` and its future, in order.
        lists: the lists of ids and of numbers of the decoded rows; None as long as `decoding` is not empty.
        replaced: by feature, the positions in `buffer` of the replaced ids.
    """

    part: WindowSlice
    buffer: Batch
    decoding: list[tuple[int, Future[Decoded]]]
    lists: tuple[ListColumns, ListColumns] | None
    replaced: dict[str, list[np.ndarray]]


class StreamReader:
    """Prefetches the windows of one stream.

    Args:
        reader: reader that decodes the rows.
        slices: this worker's slices of the stream, in step order.
        window_rows: maximum number of rows of a window.
        spare: pool of free window buffers, shared between streams; buffers are taken from it and returned to it.
        submit: decodes a range of rows into a buffer, in the background.
        truncated: counter to update; see `ParquetLoader.truncated`.
        out_of_vocabulary: counter to update; see `ParquetLoader.out_of_vocabulary`.
    """

    def __init__(
        self,
        reader: ParquetReader | PartReader,
        slices: Iterator[WindowSlice],
        window_rows: int,
        spare: list[Batch],
        submit: Callable[[RowRange, Batch], Future[Decoded]],
        truncated: Counter[str],
        out_of_vocabulary: Counter[str],
    ):
        self._reader, self._slices, self._window_rows = reader, slices, window_rows
        self._submit, self._truncated, self._out_of_vocabulary = submit, truncated, out_of_vocabulary
        self._open: deque[_OpenWindow] = deque()
        self._spare = spare

    def open(self, windows: int) -> None:
        """Start decoding further windows until `windows` of them are open or the stream ends."""
        while len(self._open) < windows and (part := next(self._slices, None)) is not None:
            buffer = self._spare.pop() if self._spare else self._reader.allocate(self._window_rows)
            decoding, filled = [], 0
            for rows_range in part.ranges:
                end = filled + rows_range.stop - rows_range.start
                # The task writes to its own rows of the buffer, so ranges are decoded in parallel without locks.
                decoding.append((filled, self._submit(rows_range, slice_rows(buffer, filled, end))))
                filled = end
            self._open.append(_OpenWindow(part, buffer, decoding, None, {}))

    def rows_of_step(self, step: int) -> Iterator[tuple[Batch, tuple[ListColumns, ListColumns], np.ndarray]]:
        """Yield decoded rows, their lists of ids and of numbers, and the [rows] int32 positions of the step's rows.

        Must be called for every step, in order: a window's buffer is reused after its last step. Most steps use one
        window; a step that crosses a border uses several.
        """
        while self._open and self._open[0].part.steps.start <= step:
            window = self._open[0]
            lists = self._complete(window) if window.lists is None else window.lists
            positions = window.part.positions[step - window.part.steps.start]
            # Counted when used, not when decoded: workers that share a window may decode the same rows.
            for name, replaced in window.replaced.items():
                self._out_of_vocabulary[name] += sum(int(np.isin(rows, positions).sum()) for rows in replaced)
            yield window.buffer, lists, positions
            if step + 1 < window.part.steps.stop:
                return
            self._open.popleft()
            self._spare.append(window.buffer)
            self.open(OPEN_WINDOWS)

    def _complete(self, window: _OpenWindow) -> tuple[ListColumns, ListColumns]:
        """Wait for all ranges of a window, as the shuffled rows of a step come from anywhere in it, and join lists."""
        lists, weights = [], []
        for first, decoding in window.decoding:
            decoded = decoding.result()
            lists.append(decoded.id_lists)
            weights.append(decoded.number_lists)
            self._truncated.update(decoded.cut)
            for name, rows in decoded.replaced.items():
                window.replaced.setdefault(name, []).append(rows + first)
        window.decoding.clear()
        window.lists = stack_columns(lists, np.int32), stack_columns(weights, np.float32)
        return window.lists


class ParquetLoader:
    """Iterates over one worker's batches of a mapping.

    With `shuffle` (training), the rows of a global batch depend only on the seed, the epoch, the row groups and the
    global batch size, not on the number of workers, and every row is in exactly one step of an epoch. Without it
    (evaluation), worker w of N reads rows [w * rows // N, (w + 1) * rows // N) in order, spread evenly over the steps.
    In both cases, any number of workers supports any global batch size: all workers run the same number of steps, and
    their row counts in a step differ by at most one.

    With `whole_groups` (training), the rows of a group, a value of the map feature, are next to each other in one batch
    of one worker. A step has at most `global_batch_size` rows, so that an epoch may have more steps, and the workers'
    rows differ by about a group. Memory holds all rows of the mapping.

    A row takes 4 * (one-hot and numerical features + values of vectors + labels) + 12 bytes (20 with the group), and
    each of its lists, of ids or of their weights, 12 bytes and 4 per value: 180 bytes for Outbrain's 29 features, with
    2 ids in each of 3 lists. In a window, a value of a vector takes 2 bytes if all of these are stored as float16.
    Memory holds BATCHES_AHEAD + 2 batches and two windows of each stream (see `data.loading.shuffle`) that the worker
    reads: about 2**20 rows divided by the number of workers, and at least two row groups. With `shuffle`, the window
    buffers, except for their lists, are kept between epochs.

    Windows are counted in rows, whatever the length of their lists, so that the order of the rows does not depend on
    it. Memory is bounded all the same: a list has at most max_hotness ids. Whether it suffices is checked for the ids
    per row of the row groups that have the most of them, according to the footers of the files.

    Args:
        spec: feature specification of the dataset.
        mapping: name of the mapping to read.
        global_batch_size: rows per step, summed over all workers.
        worker: rank of this worker.
        workers: number of workers.
        shuffle: whether to shuffle the rows (training) or to keep the dataset order (evaluation).
        seed: seed of the row order, at least 0.
        with_group: whether to return the values of the map feature in `Batch.group`.
        whole_groups: whether to keep groups together, with `shuffle` and `with_group`.
        extra_columns: names of the columns to return in `Batch.extra`.
        needs_labels: whether labels and sample weights are required. If False, absent or null labels are NaN and
            all sample weights are 1.
        oov_policy: how to handle ids outside [0, cardinality): "error", "unseen" (use the feature's `unseen_id`; an
            error if it states none), "clip" (use the nearest valid id) or "drop" (clip, and set the weight of the row
            to 0).
        part: the part of the mapping's rows to read; None for all rows.
        edit: changes each batch in place before it is returned; called with the batch and the epoch, in a background
            thread.

    Attributes:
        oov_policy: how ids outside [0, cardinality) are handled.
        rows: number of rows in the mapping, or in the part of it.
        steps_per_epoch: number of batches per worker and epoch; without `whole_groups`, rows / global_batch_size
            rounded up.
        local_batch_size: rows in each batch of this worker, including padding; the same in every step.
        row_bytes: bytes of a row in a batch; its lists have as many ids as in the row groups with the most ids per row.
        identity: what identifies the rows and their order.
        truncated: number of lists of ids longer than max_hotness that were cut, by feature, among the rows that
            this worker decoded in its latest epoch.
        out_of_vocabulary: number of ids outside [0, cardinality) that were replaced, by feature, in the batches that
            this worker built in its latest epoch. Summed over workers, each such id counts once.

    Raises:
        DataError: if `global_batch_size` is below 1, the files do not match the specification, a group has more rows
            than a step, or reading would need more memory than is available.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        mapping: str,
        *,
        global_batch_size: int,
        worker: int = 0,
        workers: int = 1,
        shuffle: bool,
        seed: int = 0,
        with_group: bool = False,
        whole_groups: bool = False,
        extra_columns: Sequence[str] = (),
        needs_labels: bool = True,
        oov_policy: OovPolicy = "error",
        part: Part | None = None,
        edit: Callable[[Batch, int], None] | None = None,
    ):
        if not 0 <= worker < workers:
            raise ValueError(f"worker must be in [0, {workers}), got {worker}")
        if global_batch_size < 1:
            raise DataError(f"a global batch must have at least 1 row, got {global_batch_size}")
        reader = ParquetReader(
            spec,
            mapping,
            with_group=with_group,
            extra_columns=extra_columns,
            needs_labels=needs_labels,
            oov_policy=oov_policy,
        )
        self._reader = reader if part is None else PartReader(reader, part)
        self._spec_folder, self._list_columns = spec.folder, (len(spec.id_lists), len(spec.number_lists))
        self._mapping, self._shuffle, self._seed = mapping, shuffle, seed
        self.oov_policy, self._edit = oov_policy, edit
        self._worker, self._workers = worker, workers
        self._global_batch_size = global_batch_size
        self._warned: set[tuple[str, str]] = set()
        self.rows, self.row_bytes = self._reader.rows, self._reader.row_bytes
        self.identity = self._reader.identity
        self.steps_per_epoch = -(-self.rows // global_batch_size)
        # No larger than a step can be, so that a small mapping is not padded to a huge batch. Unshuffled steps are
        # equally long, so they may be shorter than `global_batch_size`.
        rows_per_step = min(global_batch_size, self.rows) if shuffle else -(-self.rows // max(self.steps_per_epoch, 1))
        self.local_batch_size = max(1, -(-rows_per_step // workers))
        self._grouped: GroupedRows | None = None
        if whole_groups:
            where = f"mapping {mapping!r}, map feature {spec.map_feature.name if spec.map_feature else None!r}"
            groups = read_groups(spec, mapping, part)
            self._grouped = GroupedRows(groups, global_batch_size, seed=seed, where=where)
            self.steps_per_epoch = self._grouped.steps
            self.local_batch_size = int(self._grouped.worker_rows(workers).max())
        self.truncated: Counter[str] = Counter()
        self.out_of_vocabulary: Counter[str] = Counter()
        self._spare: list[Batch] = []
        self._check_memory()

    def rows_until(self, step: int) -> int:
        """Return how many rows the first `step` steps contain, over all workers; `step` may span several epochs."""
        epochs, steps = divmod(step, self.steps_per_epoch)
        if self._grouped is not None:
            return epochs * self.rows + int(self._grouped.step_rows[:steps].sum())
        return epochs * self.rows + min(steps * self._global_batch_size, self.rows)

    @overload
    def epoch(self, epoch: int, first_step: int = 0) -> Generator[Batch, None, None]: ...

    @overload
    def epoch(
        self, epoch: int, first_step: int = 0, prepare: Callable[[Batch], T] = ...
    ) -> Generator[T, None, None]: ...

    def epoch(
        self, epoch: int, first_step: int = 0, prepare: Callable[[Batch], Any] | None = None
    ) -> Generator[Any, None, None]:
        """Yield the batches of an epoch, starting at `first_step` without reading earlier rows.

        Close the generator when leaving it early, to stop its threads.

        Args:
            epoch: index of the epoch; it determines the shuffled order.
            first_step: index of the first step to yield, for resuming within an epoch.
            prepare: function of a batch, called in the loader's thread ahead of the consumer; its results are yielded
                instead of the batches.

        Yields:
            Batches of `local_batch_size` rows; the last rows may be padding.

        Raises:
            DataError: during iteration, if a file is damaged or a value is invalid.
        """
        self.truncated, self.out_of_vocabulary = Counter(), Counter()
        slices, window_rows = self._slices(epoch, first_step)
        # Window sizes depend on the order of the row groups, so a buffer of the last epoch can be too short.
        spare, self._spare = [rows for rows in self._spare if len(rows.rows) >= window_rows], []
        with _Background(self._reader) as background:
            streams = [
                StreamReader(
                    self._reader, stream, window_rows, spare, background.submit, self.truncated, self.out_of_vocabulary
                )
                for stream in slices
            ]
            batches = self._edited(streams, epoch, first_step)
            yield from background.run(batches if prepare is None else map(prepare, batches))
        if self._shuffle:
            self._spare = spare  # saves the next epoch from allocating the buffers again
        self._warn_of_changed_rows()

    def _slices(self, epoch: int, first_step: int) -> tuple[list[Iterator[WindowSlice]], int]:
        """Return this worker's slices of each stream, and the maximum number of rows of a window."""
        plan, worker, workers = self._plan(epoch), self._worker, self._workers
        if not isinstance(plan, ShuffledPlan):
            return [plan.slices(first_step)], plan.window_rows
        return [plan.slices(stream, worker, workers, first_step) for stream in range(plan.streams)], plan.window_rows

    def _plan(self, epoch: int) -> ShuffledPlan | SequentialPlan | GroupedPlan:
        row_group_rows, worker, workers = self._reader.row_group_rows, self._worker, self._workers
        if self._grouped is not None:
            return GroupedPlan(self._grouped, row_group_rows, epoch=epoch, worker=worker, workers=workers)
        if self._shuffle:
            return ShuffledPlan(row_group_rows, self._global_batch_size, seed=self._seed, epoch=epoch)
        return SequentialPlan(row_group_rows, self.local_batch_size, worker=worker, workers=workers)

    def size(self, workers: int) -> LoaderSize:
        """Return what the loader would hold as one of so many workers, with the same global batch."""
        plan, reader = self._plan(epoch=0), self._reader
        if workers == self._workers:
            batch_rows = self.local_batch_size
        else:
            batch_rows = max(1, -(-self.local_batch_size * self._workers // workers))
        # Without a shuffle, the plan is that of this worker's share of the rows.
        share = workers if self._shuffle else workers / self._workers
        open_rows = max(int(plan.open_rows / share), min(plan.window_rows, -(-self.rows // workers)))
        return LoaderSize(
            rows=-(-self.rows // workers),
            batch_rows=batch_rows,
            batches=min(self.steps_per_epoch, BATCHES_AHEAD + 2),
            row_bytes=self.row_bytes,
            list_values=reader.list_bytes / ITEM_BYTES,
            window_bytes=int(
                open_rows * (reader.buffer_row_bytes + POSITION_BYTES)
                + min(plan.window_rows, open_rows) * reader.list_bytes
            ),
            decoded_bytes=reader.row_group_bytes,
            kept_bytes=open_rows * reader.buffer_row_bytes if self._shuffle else 0,
        )

    def _check_memory(self) -> None:
        """Raise a DataError if the loader would need more memory than is available.

        The estimate sums the open windows, their row permutations, what decoding the longest row group takes, the
        prefetched batches, and the lists of one window, which takes those of its row groups.
        """
        size, row_bytes = self.size(self._workers), self.row_bytes
        windows, batches = size.window_bytes, size.batches * size.batch_rows * row_bytes
        widest, width_bytes = self._reader.widest_list
        location, rows = self._reader.longest_row_group
        if width_bytes > max(WIDE_BYTES, row_bytes // 2):
            cause = f"the lists of feature {widest!r} take {width_bytes:,} bytes per row"
            fix = "lower its max_hotness in the feature specification"
        elif self._grouped is not None:
            cause = f"all rows of {row_bytes:,} bytes are held in memory, to keep groups together,"
            fix = "use fewer features or rows, or a task type that needs no whole groups"
        elif batches > windows:
            cause = f"a batch has {self.local_batch_size:,} rows of {row_bytes:,} bytes"
            fix = "take a smaller batch (--global_batch_size, --eval_batch_size)"
        elif rows > SHUFFLE_ROWS:
            cause = f"row group {location.row_group} of {location.path} has {rows:,} rows"
            fix = "write the file again with about 65,536 rows in each row group"
        else:
            cause, fix = (
                f"a row takes {row_bytes:,} bytes",
                "use fewer features or shorter vectors, or more workers on more hosts",
            )
        what = f"{self._spec_folder}: reading mapping {self._mapping!r}, in which {cause},"
        check_fits(windows + batches + size.decoded_bytes, what, fix)

    def _edited(self, streams: list[StreamReader], epoch: int, first_step: int) -> Iterator[Batch]:
        for batch in self._batches(streams, range(first_step, self.steps_per_epoch)):
            if self._edit is not None:
                self._edit(batch, epoch)
            yield batch

    def _batches(self, streams: list[StreamReader], steps: range) -> Iterator[Batch]:
        # The first window of every stream before the second of any: the first step needs one window of each.
        for windows in range(1, OPEN_WINDOWS + 1):
            for stream in streams:
                stream.open(windows)
        for step in steps:
            # Each field of `batch` is [local_batch_size, ...]; stream after stream fills the next rows.
            batch, filled = self._reader.allocate_batch(self.local_batch_size), 0
            lists, weights = [], []
            for stream in streams:
                for rows, (window_lists, window_weights), positions in stream.rows_of_step(step):
                    copy_rows(rows, positions, slice_rows(batch, filled, filled + len(positions)))
                    lists.append(window_lists.take(positions))
                    weights.append(window_weights.take(positions))
                    filled += len(positions)
            pad_rows(slice_rows(batch, filled, self.local_batch_size))
            if padding := self.local_batch_size - filled:
                lists.append(empty_lists(padding, self._list_columns[0]))
                weights.append(empty_lists(padding, self._list_columns[1], np.float32))
            yield batch._replace(id_lists=join_rows(lists), number_lists=join_rows(weights))

    def _warn_of_changed_rows(self) -> None:
        for name, count in self.truncated.items():
            self._warn_once(
                "longer",
                name,
                count,
                f"{count} lists of feature {name!r} are longer than its max_hotness "
                "and were cut; raise max_hotness in the feature specification to keep them whole",
            )
        done = REPLACED.get(self.oov_policy, "")
        for name, count in self.out_of_vocabulary.items():
            self._warn_once(
                "outside",
                name,
                count,
                f"{count} ids of feature {name!r} lie outside [0, cardinality), and {done}; "
                "check_dataset.py lists them",
            )

    def _warn_once(self, kind: str, name: str, count: int, text: str) -> None:
        if count and (kind, name) not in self._warned:
            self._warned.add((kind, name))
            warnings.warn(f"mapping {self._mapping!r}: {text}", stacklevel=4)


class _Background:
    """Context manager that owns a thread prefetching batches, a pool of decoding threads, and those that download."""

    def __init__(self, reader: ParquetReader | PartReader) -> None:
        self._reader = reader
        self._pool = ThreadPoolExecutor(DECODE_THREADS, thread_name_prefix="loader-decode")
        self._ahead = ReadAhead(reader, self._pool) if reader.remote_bytes else None
        # None marks the end. The queue is bounded by `_room`, which `__exit__` can release to unblock the thread.
        self._ready: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._room = threading.Semaphore(BATCHES_AHEAD)
        self._is_closed = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "_Background":
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closed.set()
        self._room.release()  # wakes the thread up if it waits for room
        self._pool.shutdown(cancel_futures=True)
        if self._ahead is not None:
            self._ahead.close()
        if self._thread is not None:
            self._thread.join()

    def submit(self, rows: RowRange, out: Batch) -> Future[Decoded]:
        """Decode a range of rows into `out` in the background; see `ParquetReader.decode`."""
        if self._ahead is not None:
            return self._ahead.submit(rows, out)
        return self._pool.submit(self._reader.decode, *rows, out)

    def run(self, batches: Iterator[T]) -> Iterator[T]:
        """Yield the batches, built in the background; re-raise any exception from building them."""
        self._thread = threading.Thread(target=self._make, args=(batches,), name="loader-batches", daemon=True)
        self._thread.start()
        while (batch := self._ready.get()) is not None:
            if isinstance(batch, BaseException):
                raise batch
            self._room.release()
            yield batch

    def _make(self, batches: Iterator[Any]) -> None:
        try:
            for batch in batches:
                self._room.acquire()
                if self._is_closed.is_set():
                    return
                self._ready.put(batch)
            self._ready.put(None)
        except BaseException as error:  # forward any error, or the consumer would wait forever
            self._ready.put(error)
