"""Users or items: their raw ids and their features, each encoded once."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from data.encoding.encoders import FIRST_OOV_ID, Encoder
from data.encoding.keys import KeyIndex, Values, as_keys
from data.errors import DataError
from trainer.recommender.columns import CATEGORICAL, RawColumn, encode_column, read_column


class RawEntities:
    """Users or items before encoding.

    Args:
        column: name of the column of raw ids.
        ids: raw id of each interaction.
        table: features of the entities, one row per id with the id in `column`; None if there are none.
        kinds: kind of each column of the table by name.
        steps: names of the columns that belong to sequences.

    Attributes:
        keys: [n] int64 or strings, all ids in ascending order.
        rows: [interactions] int64, position of each interaction's id among the keys.
        columns: the id column and the table's columns, [n + 1] values each; the last value stands for unknown ids.

    Raises:
        DataError: if an id occurs twice in the table, or ids are missing or of mixed types.
    """

    def __init__(
        self,
        column: str,
        ids: pd.Series,
        table: pd.DataFrame | None,
        kinds: Mapping[str, str],
        steps: Collection[str],
    ):
        self.column = column
        table = pd.DataFrame({column: ids[:0]}) if table is None else table
        listed, used = as_keys(column, table[column]), as_keys(column, ids)
        is_repeated = pd.Series(listed).duplicated()
        if is_repeated.any():
            twice = listed[is_repeated].tolist()[0]
            raise DataError(f"the table of {column!r} has {twice!r} twice; keep one row of each")
        known = [keys for keys in (listed, used) if len(keys)]
        if len({keys.dtype for keys in known}) > 1:
            raise DataError(f"column {column!r} holds integers in one table and strings in another; convert one")
        self.keys = np.unique(np.concatenate(known))
        self.rows = find_positions(KeyIndex(column, self.keys), used)
        rows = find_positions(KeyIndex(column, listed), self.keys)  # table row of each key; len(listed) if it has none
        self.columns = [RawColumn(column, CATEGORICAL, with_unknown(self.keys))]
        for name in table.columns.drop(column):
            raw = read_column(table[name], kinds[name], is_step=name in steps)
            self.columns.append(replace(raw, values=with_unknown(with_unknown(raw.values)[rows])))

    def encoded(self, encoders: Mapping[str, Encoder], dimensions: Mapping[str, int]) -> "Entities":
        """Encode the columns with fitted encoders, given by column name like the dimensions of vectors."""
        features = {
            column.name: encode_column(encoders[column.name], column.values, dimensions.get(column.name))
            for column in self.columns
        }
        # The last entry, None, is encoded as null; as an entity's id it has to be an unseen value instead.
        features[self.column][-1] = FIRST_OOV_ID
        return Entities(self.column, self.keys, features)


def with_unknown(values: np.ndarray) -> np.ndarray:
    """Return the values as objects with a None appended, [n + 1]."""
    return np.append(values.astype(object), np.array([None]))


def find_positions(index: KeyIndex, values: Values) -> np.ndarray:
    """Return positions of raw ids among an index's keys, [n] int64; the number of keys for unknown ids and null."""
    codes, _, places = index.find(values)
    found = np.append(places, -1)[codes]
    return np.where(found < 0, len(index.keys), found)


@dataclass(frozen=True, eq=False)
class Entities:
    """Encoded users or items.

    Attributes:
        column: name of the column of raw ids.
        keys: [n] int64 or strings, the raw ids.
        features: encoded features by name, each [n + 1] ids, lists of ids, or numbers. The last entry stands for
            unknown entities: the id of unseen values, null for categories, and the median for numbers.
    """

    column: str
    keys: np.ndarray
    features: dict[str, np.ndarray]

    def positions(self, values: Values) -> np.ndarray:
        """Look up raw ids.

        Args:
            values: raw ids.

        Returns:
            Positions of the ids in `features`, [n] int64; len(keys) for unknown ids and null.

        Raises:
            DataError: if the ids are strings and the known ids are integers, or vice versa.
        """
        return find_positions(self._index, values)

    @cached_property
    def _index(self) -> KeyIndex:
        return KeyIndex(self.column, self.keys)
