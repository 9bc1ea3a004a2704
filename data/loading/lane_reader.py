"""The rows of one lane of an epoch, decoded in the background ahead of the steps that take them."""

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
    """A window whose rows are being decoded into `rows`, or have been when all `decoding` is done.

    Attributes:
        share: what of it goes into which step.
        rows: the arrays.
        decoding: per segment its first position in `rows`, and the result to come.
        replaced: by feature the positions of ids that were replaced, of the segments that are done.
    """

    share: Share
    rows: Batch
    decoding: list[tuple[int, Future[Decoded]]]
    replaced: dict[str, list[np.ndarray]]


class LaneReader:
    """Keeps the next windows of a lane decoded or under way, in `spare` arrays that are used again and again.

    Adds to `truncated` and `out_of_vocabulary` what the attributes of these names of `ParquetLoader` count.
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
        """Starts to decode until so many windows are open."""
        while len(self._open) < windows and (share := next(self._shares, None)) is not None:
            rows = self._spare.pop() if self._spare else self._reader.allocate(self._window_rows)
            decoding, filled = [], 0
            for segment in share.segments:
                end = filled + segment.stop - segment.start
                result = self._pool.submit(self._reader.decode, *segment, slice_rows(rows, filled, end))
                decoding.append((filled, result))
                filled = end
            self._open.append(_OpenWindow(share, rows, decoding, {}))

    def pieces(self, step: int) -> Iterator[tuple[Batch, np.ndarray]]:
        """Decoded rows, and the positions in them that belong to the step. Ask for every step, in order."""
        while self._open and self._open[0].share.steps.start <= step:
            window = self._open[0]
            while window.decoding:
                self._take(window, *window.decoding.pop())
            positions = window.share.positions[step - window.share.steps.start]
            # Not when they are decoded: workers that share a window decode the same rows.
            for name, replaced in window.replaced.items():
                self._out_of_vocabulary[name] += sum(int(np.isin(rows, positions).sum()) for rows in replaced)
            yield window.rows, positions
            if step + 1 < window.share.steps.stop:
                return
            self._open.popleft()
            self._spare.append(window.rows)
            self.open(WINDOWS_OPEN)

    def _take(self, window: _OpenWindow, first: int, decoding: Future[Decoded]) -> None:
        """Waits for a segment, whose rows lie in the window from `first` on."""
        decoded = decoding.result()
        self._truncated.update(decoded.cut)
        for name, rows in decoded.replaced.items():
            window.replaced.setdefault(name, []).append(rows + first)
