"""NVTabular operators for Outbrain, for pandas and cuDF alike: what NVTabular's own operators do not do."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from data.encoding.encoders import Encoder, HashedRanks, Numerical, Vocabulary
from data.encoding.keys import KeyTable, as_keys
from data.encoding.nvtabular_operators import SumsByFold, map_distinct, to_host
from data.encoding.nvtabular_setup import dispatch, ops
from data.outbrain.aspects import Aspect
from data.outbrain.statistics import FoldCounts, OutOfFoldRates
from data.outbrain.tables import DAY_MS, TIMESTAMP_ORIGIN_MS

MOST_DAYS = 3650


class CountClicks(SumsByFold):
    """For each column NAME a column NAME_views, how many training rows have the row's value; and clicks beside it.

    Args:
        clicked: column of 0 and 1.
        fold: column of the rows' folds, in [0, num_folds).
        num_folds: how many there are.

    Attributes:
        counts: after the fit, `FoldCounts` per column.
    """

    def __init__(self, clicked: str, fold: str, num_folds: int) -> None:
        super().__init__(clicked, fold, num_folds)
        self.counts: dict[str, FoldCounts] = {}

    def fit_finalize(self, sums: dict[str, Any]) -> None:
        """Lays the counts out by value and fold."""
        frames = {name: to_host(frame).reset_index() for name, frame in sums.items()}
        everything = self._by_fold(np.zeros(len(frames[self.fold]), np.int64), 1, frames.pop(self.fold))
        for name, frame in frames.items():
            keys, rows = np.unique(as_keys(name, frame[name]), return_inverse=True)
            views, clicks = self._by_fold(rows, len(keys), frame)
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
        """Looks the views up."""
        result = type(df)()
        for name in col_selector.names:
            counts = self.counts[name]
            views = KeyTable(counts.keys, counts.views[:-1].sum(axis=1).astype(np.float64), default=0.0)
            result[f"{name}_views"] = map_distinct(df[name], partial(views.look_up, name), views.default)
        return result

    def column_mapping(self, col_selector: Any) -> dict[str, list[str]]:
        """New columns, and what they are made of."""
        return {f"{name}_views": [name] for name in col_selector.names}

    def clear(self) -> None:
        """Forgets what was fitted."""
        self.counts = {}


class DaysSince(ops.Operator):
    """Whole days from a time to the event, a column NAME_days_since_published per time: 0 outside [0, 3650], or null.

    Args:
        timestamp: column of the events' milliseconds since Outbrain's origin.
        times: columns of milliseconds of the Unix epoch.
    """

    output_dtype = np.float64

    def __init__(self, timestamp: str, times: Sequence[str]) -> None:
        super().__init__()
        self.timestamp, self.times = timestamp, tuple(times)

    def transform(self, col_selector: Any, df: Any) -> Any:
        """Subtracts the times."""
        result = type(df)()
        for name in self.times:
            days = (df[self.timestamp] + TIMESTAMP_ORIGIN_MS - df[name]) // DAY_MS
            possible = ((days >= 0) & (days <= MOST_DAYS)) | days.isna()
            result[f"{name}_days_since_published"] = days.where(possible, 0)
        return result

    def column_mapping(self, col_selector: Any) -> dict[str, list[str]]:
        """New columns, and what they are made of."""
        return {f"{name}_days_since_published": [name, self.timestamp] for name in self.times}


class Similarity(ops.Operator):
    """How alike two documents are, by `Aspect.similarity`, a column FIRST_SECOND_sim_ASPECT per aspect.

    NVTabular's ColumnSimilarity reads beyond its table for a document that it does not know.

    Args:
        first, second: columns of document ids.
        aspects: by name.
    """

    output_dtype = np.float64

    def __init__(self, first: str, second: str, aspects: Mapping[str, Aspect]) -> None:
        super().__init__()
        self.first, self.second, self.aspects = first, second, aspects

    def transform(self, col_selector: Any, df: Any) -> Any:
        """Computes the similarities on the host."""
        result = type(df)()
        first, second = (to_host(df[name]).to_numpy() for name in (self.first, self.second))
        for aspect in self.aspects:
            numbers = self.aspects[aspect].similarity(first, second)
            result[self._name(aspect)] = type(df[self.first])(numbers, index=df.index)
        return result

    def column_mapping(self, col_selector: Any) -> dict[str, list[str]]:
        """New columns, and what they are made of."""
        return {self._name(aspect): [self.first, self.second] for aspect in self.aspects}

    def _name(self, aspect: str) -> str:
        return f"{self.first}_{self.second}_sim_{aspect}"


class Encode(ops.Operator):
    """Features by fitted encoders, each from its column.

    Args:
        encoders: by feature.
    """

    def __init__(self, encoders: Mapping[str, Encoder]) -> None:
        super().__init__()
        self.encoders = dict(encoders)

    def transform(self, col_selector: Any, df: Any) -> Any:
        """Encodes; every distinct value once, but for plain numbers."""
        result = type(df)()
        for feature, encoder in self.encoders.items():
            column = df[encoder.column]
            if isinstance(encoder, Numerical) and encoder.table is None:
                result[feature] = type(column)(encoder.encode(to_host(column)), index=column.index)
            else:
                result[feature] = map_distinct(column, encoder.encode, encoder.encode([None])[0])
        return result

    def column_mapping(self, col_selector: Any) -> dict[str, list[str]]:
        """Features, and what they are made of."""
        return {feature: [encoder.column] for feature, encoder in self.encoders.items()}


class EncodeOutOfFold(ops.Operator):
    """Click rates of training rows, which leave out the clicks of their own fold.

    Args:
        rates: by feature.
        fold: column of the rows' folds.
    """

    output_dtype = np.float32

    def __init__(self, rates: Mapping[str, OutOfFoldRates], fold: str) -> None:
        super().__init__()
        self.rates, self.fold = dict(rates), fold

    def transform(self, col_selector: Any, df: Any) -> Any:
        """Looks the rates up."""
        result = type(df)()
        fold = to_host(df[self.fold]).to_numpy()
        for feature, rates in self.rates.items():
            column = df[rates.column]
            result[feature] = type(column)(rates.encode(to_host(column), fold), index=column.index)
        return result

    def column_mapping(self, col_selector: Any) -> dict[str, list[str]]:
        """Features, and what they are made of."""
        return {feature: [rates.column, self.fold] for feature, rates in self.rates.items()}


class EncodeTags(ops.Operator):
    """Lists of ids: the first tags of the row's document, per feature; a document without tags has an empty list.

    Args:
        document: column of document ids.
        encoders: by feature, of lists.
        aspects: by feature.
        most: tags per row.
    """

    output_dtype = np.int64

    def __init__(
        self, document: str, encoders: Mapping[str, Encoder], aspects: Mapping[str, Aspect], most: int
    ) -> None:
        super().__init__()
        self.document, self.encoders, self.aspects, self.most = document, dict(encoders), dict(aspects), most

    def transform(self, col_selector: Any, df: Any) -> Any:
        """Encodes the lists of the distinct documents, and hands every row its document's."""
        result = type(df)()
        rows_of, distinct = df[self.document].factorize()
        documents, rows = to_host(distinct).to_numpy(), np.asarray(to_host(type(df[self.document])(rows_of)))
        for feature, aspect in self.aspects.items():
            codes, lengths = aspect.lists(documents, self.most)
            ids = _encode_codes(self.encoders[feature], aspect, codes)
            result[feature] = _list_column(df[self.document], ids, lengths, rows)
        return result

    def column_mapping(self, col_selector: Any) -> dict[str, list[str]]:
        """Features, and what they are made of."""
        return {feature: [self.document] for feature in self.encoders}


def _encode_codes(encoder: Encoder, aspect: Aspect, codes: np.ndarray) -> np.ndarray:
    """Ids of tags given by their codes, [n] int64."""
    if not isinstance(encoder, Vocabulary | HashedRanks):
        raise TypeError(f"{type(encoder).__name__} does not encode lists")
    distinct, positions = np.unique(codes, return_inverse=True)
    return encoder.encode_flat(aspect.values[distinct])[positions]


def _list_column(like: Any, ids: np.ndarray, lengths: np.ndarray, rows: np.ndarray) -> Any:
    """A column of lists: for each row that of its document."""
    starts = np.cumsum(lengths) - lengths
    if isinstance(like, pd.Series):
        lists = np.empty(len(lengths) + 1, object)
        for number, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
            lists[number] = ids[start : start + length]
        lists[-1] = ids[:0]
        return pd.Series(lists[rows], like.index)
    row_lengths = np.append(lengths, 0)[rows]
    offsets = np.concatenate([[0], np.cumsum(row_lengths)])
    positions = np.repeat(np.append(starts, 0)[rows] - offsets[:-1], row_lengths) + np.arange(offsets[-1])
    column = dispatch.create_multihot_col(type(like)(offsets), type(like)(ids[positions]))
    column.index = like.index
    return column
