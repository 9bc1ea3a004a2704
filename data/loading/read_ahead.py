"""Download the row groups of remote files a few ahead of the threads that decode them."""

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from data.loading.batch import Batch
from data.loading.decode import Decoded
from data.loading.parquet import ParquetReader
from data.loading.part import PartReader
from data.loading.shuffle import RowRange
from data.storage.range_cache import enforced_limit

FETCH_THREADS = 4
ROW_GROUPS_AHEAD = 8
# Part of the cache that row groups may take that were downloaded but not decoded: others need room, too.
SHARE_OF_CACHE = 8


class ReadAhead:
    """Decodes row ranges in the order in which they are submitted, and downloads the next ones meanwhile.

    At most ROW_GROUPS_AHEAD row groups are downloaded ahead, fewer or none if the limit of the cache leaves no room for
    that. What the cache has lost in the meantime is downloaded again when it is decoded. `close` it in the end.

    Args:
        reader: reader of remote files.
        pool: threads to decode with.
    """

    def __init__(self, reader: ParquetReader | PartReader, pool: ThreadPoolExecutor):
        self._reader, self._pool = reader, pool
        self._most = min(ROW_GROUPS_AHEAD, enforced_limit() // SHARE_OF_CACHE // max(1, reader.remote_bytes))
        self._fetching = ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="loader-fetch")
        self._lock = threading.Lock()
        # By number of submission: what is not fetched yet, and the downloads of what nobody decodes yet.
        self._waiting: deque[tuple[int, RowRange]] = deque()
        self._fetched: dict[int, Future[None]] = {}
        self._submitted, self._begun = 0, -1

    def close(self) -> None:
        """Wait for the downloads that are under way, and start no others."""
        with self._lock:
            self._waiting.clear()
        self._fetching.shutdown(cancel_futures=True)

    def submit(self, rows: RowRange, out: Batch) -> Future[Decoded]:
        """Decode a range of rows into `out` in the background; see `ParquetReader.decode`."""
        with self._lock:
            number, self._submitted = self._submitted, self._submitted + 1
            self._waiting.append((number, rows))
            self._fetch_next()
        return self._pool.submit(self._decode, number, rows, out)

    def _decode(self, number: int, rows: RowRange, out: Batch) -> Decoded:
        with self._lock:
            self._begun = max(self._begun, number)
            fetched = self._fetched.pop(number, None)
            self._fetch_next()
        if fetched is not None and not fetched.cancel():
            fetched.result()
        return self._reader.decode(*rows, out)

    def _fetch_next(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._begun + self._most:
            number, rows = self._waiting.popleft()
            if number > self._begun:
                self._fetched[number] = self._fetching.submit(self._reader.fetch, *rows)
