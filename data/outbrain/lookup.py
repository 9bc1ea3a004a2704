"""Look up rows of a table by key: left joins that never change the number of rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from data.errors import DataError


@dataclass(frozen=True, eq=False)
class LookupTable:
    """Columns indexed by a unique integer key.

    Attributes:
        keys: [rows] int64 keys, ascending.
        columns: columns by name, each [rows] int64, or float64 if values are missing (NaN).
    """

    keys: np.ndarray
    columns: Mapping[str, np.ndarray]

    @classmethod
    def build(cls, rows: pa.Table, key: str, path: Path) -> "LookupTable":
        """Build a table by sorting rows by their key.

        Args:
            rows: table of the key and further numeric columns, in file order.
            key: name of the key column.
            path: path of the file that the rows are from, for messages.

        Raises:
            DataError: if a key occurs twice.
        """
        keys = rows.column(key).to_numpy()
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        repeated = np.flatnonzero(keys[1:] == keys[:-1])
        if len(repeated):
            first, second = order[repeated[0]] + 2, order[repeated[0] + 1] + 2
            raise DataError(
                f"{path}, line {second}: {key} {keys[repeated[0]]} is there a second time, after line {first} "
                f"({len(repeated)} such lines in all); joined rows would be doubled, keep one of them"
            )
        others = [name for name in rows.column_names if name != key]
        return cls(keys, {name: _numbers(rows.column(name))[order] for name in others})

    def find(self, wanted: np.ndarray) -> np.ndarray:
        """Return the rows of [n] keys, [n] int64; -1 for unknown keys and NaN."""
        return find_sorted(self.keys, wanted)

    def gather(self, wanted: np.ndarray, suffix: str = "") -> pd.DataFrame:
        """Return the columns at the given keys, [n] float64; NaN if the key or the value is missing.

        Args:
            wanted: [n] keys, possibly NaN.
            suffix: suffix to add to the column names.
        """
        rows = self.find(wanted)
        known = rows >= 0
        gathered = {}
        for name, column in self.columns.items():
            values = np.full(len(rows), np.nan)
            values[known] = column[rows[known]]
            gathered[name + suffix] = values
        return pd.DataFrame(gathered)


def find_sorted(ascending: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the positions of values in an ascending array of distinct values, [n] int64; -1 if absent."""
    if not len(ascending):
        return np.full(len(wanted), -1)
    # searchsorted returns len(ascending) for values above the last one, and for NaN.
    positions = np.minimum(np.searchsorted(ascending, wanted), len(ascending) - 1)
    return np.where(ascending[positions] == wanted, positions, -1)


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("ms")).cast(pa.int64())
    return column.to_numpy()
