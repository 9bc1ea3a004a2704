"""Finds rows of a table by key: the left joins of this dataset, which never change the number of rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from data.errors import DataError


@dataclass(frozen=True, eq=False)
class LookupTable:
    """Columns by a unique integer key.

    Attributes:
        keys: [rows] int64, ascending.
        columns: [rows] int64, or float64 where values are missing (NaN).
    """

    keys: np.ndarray
    columns: Mapping[str, np.ndarray]

    @classmethod
    def build(cls, rows: pa.Table, key: str, path: Path) -> "LookupTable":
        """Sorts rows by their key.

        Args:
            rows: the key, and columns of numbers.
            key: the key's name.
            path: the file that the rows are from, in its order; for messages.

        Raises:
            DataError: a key occurs twice.
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
        """Row numbers of keys, [n] int64; -1 where the key (or NaN) is unknown."""
        return find_sorted(self.keys, wanted)

    def gather(self, wanted: np.ndarray, suffix: str = "") -> pd.DataFrame:
        """The columns for keys, [n] float64; NaN where the key or the value is missing.

        Args:
            wanted: [n] keys.
            suffix: of the columns' new names.
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
    """Positions of values in an ascending array without repetitions, [n] int64; -1 for those not in it."""
    if not len(ascending):
        return np.full(len(wanted), -1)
    positions = np.minimum(np.searchsorted(ascending, wanted), len(ascending) - 1)
    return np.where(ascending[positions] == wanted, positions, -1)


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("ms")).cast(pa.int64())
    return column.to_numpy()
