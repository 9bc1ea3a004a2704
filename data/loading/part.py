"""Read a part of a mapping's rows, such as those that are held out of training or all others."""

from typing import NamedTuple

import numpy as np

from data.loading.batch import Batch, copy_rows
from data.loading.decode import Decoded
from data.loading.parquet import ParquetReader


class Part(NamedTuple):
    """A part of the rows of a mapping.

    Attributes:
        mask: a bit per row of the mapping, packed into bytes (see `numpy.packbits`).
        bit: the bit of the rows in the part.
    """

    mask: np.ndarray
    bit: bool


class PartReader:
    """Reads a part of a mapping's rows, with the interface of `ParquetReader`.

    Rows are counted within the part, but `Batch.rows` and errors have their positions in the mapping.

    Args:
        reader: reader of the whole mapping.
        part: the part to read.
    """

    def __init__(self, reader: ParquetReader, part: Part):
        self._reader = reader
        self._starts = np.cumsum(reader.row_group_rows) - reader.row_group_rows
        self._part = part
        self.row_group_rows = np.array([len(self._positions(index)) for index in range(len(self._starts))], np.int64)
        self.rows = int(self.row_group_rows.sum())
        self.identity = reader.identity.part(self.rows, part.mask.tobytes(), part.bit)
        self.row_bytes, self.buffer_row_bytes = reader.row_bytes, reader.buffer_row_bytes
        self.list_bytes, self.row_group_bytes = reader.list_bytes, reader.row_group_bytes
        self.remote_bytes = reader.remote_bytes
        self.widest_list, self.longest_row_group = reader.widest_list, reader.longest_row_group
        self.allocate, self.allocate_batch = reader.allocate, reader.allocate_batch

    def fetch(self, row_group: int, start: int, stop: int) -> None:
        """Download what `decode` needs into the local cache; see `ParquetReader.fetch`."""
        positions = self._positions(row_group)[start:stop]
        self._reader.fetch(row_group, int(positions[0]), int(positions[-1]) + 1)

    def decode(self, row_group: int, start: int, stop: int, out: Batch) -> Decoded:
        """Decode the rows [start, stop) of the part of a row group into `out`; see `ParquetReader.decode`."""
        positions = self._positions(row_group)[start:stop]
        first, last = int(positions[0]), int(positions[-1]) + 1
        buffer = self._reader.allocate(last - first)
        decoded = self._reader.decode(row_group, first, last, buffer)
        copy_rows(buffer, positions - first, out)
        ids, numbers = (
            [column.take(positions - first) for column in columns]
            for columns in (decoded.id_lists, decoded.number_lists)
        )
        replaced = {name: _places_of(rows, positions - first) for name, rows in decoded.replaced.items()}
        return Decoded(ids, numbers, decoded.cut, replaced)

    def _positions(self, row_group: int) -> np.ndarray:
        """Return the positions of the part's rows in a row group, ascending."""
        begin, size = int(self._starts[row_group]), int(self._reader.row_group_rows[row_group])
        bits = np.unpackbits(self._part.mask[begin // 8 : (begin + size + 7) // 8])[begin % 8 :][:size]
        return np.flatnonzero(bits == self._part.bit)


def _places_of(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Return where each of the values is in the ascending `among`, without those that are not."""
    places = np.minimum(np.searchsorted(among, values), len(among) - 1)
    return places[among[places] == values]
