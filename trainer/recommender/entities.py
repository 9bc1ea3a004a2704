"""Users, or items: their raw ids, and every feature of theirs encoded once."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from data.encoding.encoders import FIRST_OOV_ID, Encoder
from data.encoding.keys import KeyIndex, Values, as_keys
from data.errors import DataError
from trainer.recommender.columns import CATEGORICAL, RawColumn, read_column


class RawEntities:
    """Users or items before they are encoded.

    Args:
        column: of the raw ids.
        ids: of the interactions.
        table: what is known of them, a row per id with the id in `column`; None where nothing is.
        kinds: of the table's columns, where they are not to be told by the values.

    Attributes:
        keys: [n] int64 or texts, every id there is, ascending.
        rows: [interactions] int64, the position of each one's id among the keys.
        columns: the ids and the table's columns, [n + 1] values each; the last is of an id that is unknown.

    Raises:
        DataError: the table has an id twice, or ids are missing or of several kinds.
    """

    def __init__(self, column: str, ids: pd.Series, table: pd.DataFrame | None, kinds: Mapping[str, str]):
        self.column = column
        table = pd.DataFrame({column: ids[:0]}) if table is None else table
        listed, used = as_keys(column, table[column]), as_keys(column, ids)
        is_repeated = pd.Series(listed).duplicated()
        if is_repeated.any():
            twice = listed[is_repeated].tolist()[0]
            raise DataError(f"the table of {column!r} has {twice!r} twice; keep one row of each")
        known = [keys for keys in (listed, used) if len(keys)]
        if len({keys.dtype for keys in known}) > 1:
            raise DataError(f"column {column!r} holds integers in one table and texts in another; convert one of them")
        self.keys = np.unique(np.concatenate(known))
        self.rows = find_positions(KeyIndex(column, self.keys), used)
        rows = find_positions(KeyIndex(column, listed), self.keys)
        self.columns = [RawColumn(column, CATEGORICAL, with_unknown(self.keys))]
        for name in table.columns.drop(column):
            raw = read_column(table, name, kinds)
            values = with_unknown(raw.values)
            self.columns.append(RawColumn(name, raw.kind, with_unknown(values[rows])))

    def encoded(self, encoders: Mapping[str, Encoder]) -> "Entities":
        """With the features that fitted encoders make of the columns."""
        features = {column.name: encoders[column.name].encode(column.values) for column in self.columns}
        features[self.column][-1] = FIRST_OOV_ID
        return Entities(self.column, self.keys, features)


def with_unknown(values: np.ndarray) -> np.ndarray:
    """The values as objects and None behind them."""
    return np.append(values.astype(object), np.array([None]))


def find_positions(index: KeyIndex, values: Values) -> np.ndarray:
    """Positions of raw ids among an index's keys, [n] int64; the number of keys for unknown ones and null."""
    codes, _, places = index.find(values)
    found = np.append(places, -1)[codes]
    return np.where(found < 0, len(index.keys), found)


@dataclass(frozen=True, eq=False)
class Entities:
    """Users or items.

    Attributes:
        column: of the raw ids.
        keys: [n] int64 or texts.
        features: by name, [n + 1] ids, lists of ids or numbers. The last is of an unknown one: the id of unseen
            values, null for its categories and the median for its numbers.
    """

    column: str
    keys: np.ndarray
    features: dict[str, np.ndarray]

    def positions(self, values: Values) -> np.ndarray:
        """Where raw ids stand in `features`, [n] int64; len(keys) for unknown ones and null.

        Raises:
            DataError: the ids are texts and those known are integers, or the other way round.
        """
        return find_positions(self._index, values)

    @cached_property
    def _index(self) -> KeyIndex:
        return KeyIndex(self.column, self.keys)
