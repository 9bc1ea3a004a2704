"""NVTabular operators for Outbrain that complement those of NVTabular, for both pandas and cuDF."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from data.outbrain.aspects import Aspect
from data.outbrain.raw_tables import DAY_MS, TIMESTAMP_ORIGIN_MS
from data.outbrain.statistics import FoldCounts, OutOfFoldRates
from data.preprocess.encoders import Encoder, HashedRanks, Numerical, Vocabulary
from data.preprocess.keys import KeyTable, as_keys
from data.preprocess.nvtabular_operators import SumsByFold, map_distinct, to_host
from data.preprocess.nvtabular_setup import dispatch, ops

MOST_DAYS = 3650


class CountClicks(SumsByFold):
    """Adds NAME_views for each column NAME: the number of training rows with the row's value. Also counts clicks.

    Args:
        clicked: name of the column with clicks, 0 or 1.
        fold: name of the column with the fold of each row, in [0, num_folds).
        num_folds: number of folds.

    Attributes:
        counts: fitted `FoldCounts` of each column, by name; empty before the fit.
    """

    def __init__(self, clicked: str, fold: str, num_folds: int) -> None:
        super().__init__(clicked, fold, num_folds)
        self.counts: dict[str, FoldCounts] = {}

    def fit_finalize(self, sums: dict[str, Any]) -> None:
        """Arrange the counts by value and fold."""
        frames = {name: to_host(frame).reset_index() for name, frame in sums.items()}
        everything = self._by_fold(np.zeros(len(frames[self.fold]), np.int64), 1, frames.pop(self.fold))
        for name, frame in frames.items():
            keys, rows = np.unique(as_keys(name, frame[name]), return_inverse=True)
            views, clicks = self._by_fold(rows, len(keys), frame)
            # groupby drops null values: their counts are what the other values leave of the total.
            nulls = [whole - part.sum(axis=0) for whole, part in zip(everything, (views, clicks), strict=True)]
            self.counts[name] = FoldCounts(name, keys, np.vstack([views, nulls[0]]), np.vstack([clicks, nulls[1]]))

    def _by_fold(self, rows: np.ndarray, size: int, frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        tables = []
        for quantity in ("count", "sum"):
            table = np.zeros((size, self.num_folds), np.int64)
            table[rows, frame[self.fold].to_numpy()] = frame[quantity].to_numpy()
            tables.append(table)
        return tables[0], tables[1]

    def transform(self, col_selector: Any, df: Any) -> Any:
        """Look up the views."""
        result = type(df)()
        for name in col_selector.names:
            counts = self.counts[name]
            views = KeyTable(counts.keys, counts.views[:-1].sum(axis=1).astype(np.float64), default=0.0)
            result[f"{name}_views"] = map_distinct(df[name], partial(views.look_up, name), views.default)
        return result

    def column_mapping(self, col_selector: Any) -> dict[str, list[str]]:
        """Return the source columns of each new column, by name."""
        return {f"{name}_views": [name] for name in col_selector.names}

    def clear(self) -> None:
        """Discard the fitted state."""
        self.counts = {}


class DaysSince(ops.Operator):
    """Adds NAME_days_since_published for each time NAME: whole days from the time to the event.

    Days outside [0, 3650] become 0; null stays null.

    Args:
        timestamp: name of the column with the time of the event, in milliseconds since Outbrain's origin.
        times: names of the columns with times, in milliseconds since the Unix epoch.
    """

    output_dtype = np.float64

    def __init__(self, timestamp: str, times: Sequence[str]) -> None:
        super().__init__()
        self.timestamp, self.times = timestamp, tuple(times)

    def transform(self, col_selector: Any, df: Any) -> Any:
        """Compute the days."""
        result = type(df)()
        for name in self.times:
            days = (df[self.timestamp] + TIMESTAMP_ORIGIN_MS - df[name]) // DAY_MS
            possible = ((days >= 0) & (days <= MOST_DAYS)) | days.isna()
            result[f"{name}_days_since_published"] = days.where(possible, 0)
        return result

    def column_mapping(self, col_selector: Any) -> dict[str, list[str]]:
        """Return the source columns of each new column, by name."""
        return {f"{name}_days_since_published": [name, self.timestamp] for name in self.times}


class Similarity(ops.Operator):
    """Adds FIRST_SECOND_sim_ASPECT for each aspect: the similarity of two documents (see `Aspect.similarity`).

    It replaces NVTabular's ColumnSimilarity, which reads out of bounds for unknown documents.

    Args:
        first, second: names of the columns with document ids.
        aspects: aspects by name.
    """

    output_dtype = np.float64

    def __init__(self, first: str, second: str, aspects: Mapping[str, Aspect]) -> None:
        super().__init__()
        self.first, self.second, self.aspects = first, second, aspects

    def transform(self, col_selector: Any, df: Any) -> Any:
        """Compute the similarities on the host."""
        result = type(df)()
        first, second = (to_host(df[name]).to_numpy() for name in (self.first, self.second))
        for aspect in self.aspects:
            numbers = self.aspects[aspect].similarity(first, second)
            result[self._name(aspect)] = type(df[self.first])(numbers, index=df.index)
        return result

    def column_mapping(self, col_selector: Any) -> dict[str, list[str]]:
        """Return the source columns of each new column, by name."""
        return {self._name(aspect): [self.first, self.second] for aspect in self.aspects}

    def _name(self, aspect: str) -> str:
        return f"{self.first}_{self.second}_sim_{aspect}"


class Encode(ops.Operator):
    """Computes features with fitted encoders.

    Args:
        encoders: encoder of each feature, by feature name.
    """

    def __init__(self, encoders: Mapping[str, Encoder]) -> None:
        super().__init__()
        self.encoders = dict(encoders)

    def transform(self, col_selector: Any, df: Any) -> Any:
        """Encode the columns, via their distinct values unless they hold plain numbers."""
        result = type(df)()
        for feature, encoder in self.encoders.items():
            column = df[encoder.column]
            if isinstance(encoder, Numerical) and encoder.table is None:
                result[feature] = type(column)(encoder.encode(to_host(column)), index=column.index)
            else:
                result[feature] = map_distinct(column, encoder.encode, encoder.encode([None])[0])
        return result

    def column_mapping(self, col_selector: Any) -> dict[str, list[str]]:
        """Return the source columns of each feature, by name."""
        return {feature: [encoder.column] for feature, encoder in self.encoders.items()}


class EncodeOutOfFold(ops.Operator):
    """Computes click rates of training rows that exclude the clicks of their own fold.

    Args:
        rates: out-of-fold rates of each feature, by feature name.
        fold: name of the column with the fold of each row.
    """

    output_dtype = np.float32

    def __init__(self, rates: Mapping[str, OutOfFoldRates], fold: str) -> None:
        super().__init__()
        self.rates, self.fold = dict(rates), fold

    def transform(self, col_selector: Any, df: Any) -> Any:
        """Look up the rates."""
        result = type(df)()
        fold = to_host(df[self.fold]).to_numpy()
        for feature, rates in self.rates.items():
            column = df[rates.column]
            result[feature] = type(column)(rates.encode(to_host(column), fold), index=column.index)
        return result

    def column_mapping(self, col_selector: Any) -> dict[str, list[str]]:
        """Return the source columns of each feature, by name."""
        return {feature: [rates.column, self.fold] for feature, rates in self.rates.items()}


class EncodeTags(ops.Operator):
    """Computes lists of ids of the first tags of a row's document; the list is empty for documents without tags.

    Args:
        document: name of the column with document ids.
        encoders: list encoder of each feature, by feature name.
        aspects: aspect of each feature, by feature name.
        most: maximum number of tags per row.
    """

    output_dtype = np.int64

    def __init__(
        self, document: str, encoders: Mapping[str, Encoder], aspects: Mapping[str, Aspect], most: int
    ) -> None:
        super().__init__()
        self.document, self.encoders, self.aspects, self.most = document, dict(encoders), dict(aspects), most

    def transform(self, col_selector: Any, df: Any) -> Any:
        """Encode the lists of the distinct documents, and gather them by row."""
        result = type(df)()
        rows_of, distinct = df[self.document].factorize()
        documents, rows = to_host(distinct).to_numpy(), np.asarray(to_host(type(df[self.document])(rows_of)))
        for feature, aspect in self.aspects.items():
            codes, lengths = aspect.lists(documents, self.most)
            ids = _encode_codes(self.encoders[feature], aspect, codes)
            result[feature] = _list_column(df[self.document], ids, lengths, rows)
        return result

    def column_mapping(self, col_selector: Any) -> dict[str, list[str]]:
        """Return the source columns of each feature, by name."""
        return {feature: [self.document] for feature in self.encoders}


def _encode_codes(encoder: Encoder, aspect: Aspect, codes: np.ndarray) -> np.ndarray:
    """Return the ids of tags given by their codes, [n] int64; each distinct tag is encoded once."""
    if not isinstance(encoder, Vocabulary | HashedRanks):
        raise TypeError(f"{type(encoder).__name__} does not encode lists")
    distinct, positions = np.unique(codes, return_inverse=True)
    return encoder.encode_flat(aspect.values[distinct])[positions]


def _list_column(like: Any, ids: np.ndarray, lengths: np.ndarray, rows: np.ndarray) -> Any:
    """Build a column with the list of each row's document.

    Args:
        like: pandas or cuDF series whose type and index the column gets.
        ids: [ids] ids of all documents, concatenated.
        lengths: [documents] number of ids of each document.
        rows: [rows] document of each row, -1 for none.
    """
    starts = np.cumsum(lengths) - lengths
    if isinstance(like, pd.Series):
        lists = np.empty(len(lengths) + 1, object)
        for number, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
            lists[number] = ids[start : start + length]
        lists[-1] = ids[:0]  # for document -1
        return pd.Series(lists[rows], like.index)
    row_lengths = np.append(lengths, 0)[rows]
    offsets = np.concatenate([[0], np.cumsum(row_lengths)])
    positions = np.repeat(np.append(starts, 0)[rows] - offsets[:-1], row_lengths) + np.arange(offsets[-1])
    column = dispatch.create_multihot_col(type(like)(offsets), type(like)(ids[positions]))
    column.index = like.index
    return column
