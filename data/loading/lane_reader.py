"""Decode the rows of one lane of an epoch in the background, ahead of the steps that use them."""

from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from data.loading.batch import Batch
from data.loading.batch_arrays import slice_rows
from data.loading.column_decoder import Decoded
from data.loading.epoch_plan import WINDOWS_OPEN, Share
from data.loading.parquet_reader import ParquetReader


class _OpenWindow(NamedTuple):
    """A window whose rows are being decoded; complete once every future in `decoding` is done.

    Attributes:
        share: the rows to read, and the step that each of them belongs to.
        rows: buffer of the decoded rows.
        decoding: for each segment still to be waited for, its first position in `rows` and its future.
        replaced: by feature, the positions in `rows` of the replaced ids in finished segments.
    """

    share: Share
    rows: Batch
    decoding: list[tuple[int, Future[Decoded]]]
    replaced: dict[str, list[np.ndarray]]


class LaneReader:
    """Prefetches the windows of one lane.

    Args:
        reader: reader that decodes the rows.
        shares: this worker's shares of the lane, in step order.
        window_rows: maximum number of rows of a window.
        spare: pool of free window buffers, shared between lanes; buffers are taken from it and returned to it.
        pool: threads to decode with.
        truncated: counter to update; see `ParquetLoader.truncated`.
        out_of_vocabulary: counter to update; see `ParquetLoader.out_of_vocabulary`.
    """

    def __init__(
        self,
        reader: ParquetReader,
        shares: Iterator[Share],
        window_rows: int,
        spare: list[Batch],
        pool: ThreadPoolExecutor,
        truncated: Counter[str],
        out_of_vocabulary: Counter[str],
    ):
        self._reader, self._shares, self._window_rows = reader, shares, window_rows
        self._pool, self._truncated, self._out_of_vocabulary = pool, truncated, out_of_vocabulary
        self._open: deque[_OpenWindow] = deque()
        self._spare = spare

    def open(self, windows: int) -> None:
        """Start decoding further windows until `windows` of them are open or the lane ends."""
        while len(self._open) < windows and (share := next(self._shares, None)) is not None:
            rows = self._spare.pop() if self._spare else self._reader.allocate(self._window_rows)
            decoding, filled = [], 0
            for segment in share.segments:
                end = filled + segment.stop - segment.start
                # The task writes to its own rows of the buffer, so segments are decoded in parallel without locks.
                result = self._pool.submit(self._reader.decode, *segment, slice_rows(rows, filled, end))
                decoding.append((filled, result))
                filled = end
            self._open.append(_OpenWindow(share, rows, decoding, {}))

    def pieces(self, step: int) -> Iterator[tuple[Batch, np.ndarray]]:
        """Yield decoded rows and the [rows] int32 positions in them that belong to the step.

        Must be called for every step, in order: a window's buffer is reused after its last step. Most steps use one
        window; a step that crosses a border uses several.
        """
        while self._open and self._open[0].share.steps.start <= step:
            window = self._open[0]
            # Wait for all segments: the shuffled rows of a step come from anywhere in the window.
            while window.decoding:
                self._take(window, *window.decoding.pop())
            positions = window.share.positions[step - window.share.steps.start]
            # Counted when used, not when decoded: workers that share a window may decode the same rows.
            for name, replaced in window.replaced.items():
                self._out_of_vocabulary[name] += sum(int(np.isin(rows, positions).sum()) for rows in replaced)
            yield window.rows, positions
            if step + 1 < window.share.steps.stop:
                return
            self._open.popleft()
            self._spare.append(window.rows)
            self.open(WINDOWS_OPEN)

    def _take(self, window: _OpenWindow, first: int, decoding: Future[Decoded]) -> None:
        """Wait for a segment, whose rows begin at position `first` of the window, and add its counts."""
        decoded = decoding.result()
        self._truncated.update(decoded.cut)
        for name, rows in decoded.replaced.items():
            window.replaced.setdefault(name, []).append(rows + first)
