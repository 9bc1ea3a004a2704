"""NVTabular operators for Outbrain (for both pandas and cuDF), and the encoders fitted from what they count.

Counts are integers, so results do not depend on the order of rows.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd

from data.encoding.encoders import NOT_IN_A_FOLD, Encoder, HashedRanks, Numerical, Vocabulary
from data.encoding.keys import KeyIndex, KeyTable, Values, as_keys
from data.encoding.nvtabular_setup import dispatch, ops
from data.outbrain.raw_tables import DAY_MS, TIMESTAMP_ORIGIN_MS
from data.outbrain.side_tables import DocumentTags

MAX_DAYS = 3650
# Standard deviations below this fraction of the mean are rounding errors.
ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class FoldCounts:
    """Views and clicks of the values of a column over the training rows, by fold.

    Attributes:
        column: name of the column.
        keys: [size] int64 distinct values, ascending.
        views: [size + 1, folds] int64 number of rows; the last row is for null.
        clicks: [size + 1, folds] int64 number of clicks; the last row is for null.
    """

    column: str
    keys: np.ndarray
    views: np.ndarray
    clicks: np.ndarray


@dataclass(frozen=True, eq=False)
class OutOfFoldRates:
    """Click rates of training rows over the other folds, so that a row's own click does not enter its rate.

    Attributes:
        column: name of the column with the keys.
        keys: [size] int64 keys, ascending.
        rates: [size + 1, folds] float32 standardized rates; the last row is for null.
    """

    column: str
    keys: np.ndarray
    rates: np.ndarray

    def encode(self, values: Values, fold: np.ndarray) -> np.ndarray:
        """Return the rates of rows, [n] float32.

        Args:
            values: [n] keys, each null or fitted on.
            fold: [n] int64 fold of each row.

        Raises:
            ValueError: if a row has no fold; such rows need the encoder over all folds.
        """
        if (fold == NOT_IN_A_FOLD).any():
            raise ValueError("rows in no fold have no rate out of fold")
        codes, _, positions = KeyIndex(self.column, self.keys).find(values)
        return self.rates[np.append(positions, -1)[codes], fold]


def save_out_of_fold(rates: Mapping[str, OutOfFoldRates], folder: Path) -> None:
    """Write rates, by feature name, to an existing folder."""
    for feature, entry in rates.items():
        np.savez(folder / f"{feature}.npz", column=np.array(entry.column), keys=entry.keys, rates=entry.rates)


def load_out_of_fold(folder: Path) -> dict[str, OutOfFoldRates]:
    """Load the rates that `save_out_of_fold` wrote, by feature name."""
    loaded = {}
    for path in sorted(folder.glob("*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            loaded[path.stem] = OutOfFoldRates(str(arrays["column"]), arrays["keys"], arrays["rates"])
    return loaded


def published_rate(counts: FoldCounts, least_views: int) -> Numerical:
    """Fit clicks / views of a key, not standardized; 0 below `least_views` views, for unseen keys and for null."""
    views, clicks = counts.views[:-1].sum(axis=1), counts.clicks[:-1].sum(axis=1)
    rates = np.where(views >= least_views, clicks / np.maximum(views, 1), 0.0)
    return Numerical.standardized(counts.column, KeyTable(counts.keys, rates, 0.0))


def log_views(counts: FoldCounts) -> Numerical:
    """Fit ln(1 + views) of a key, standardized over the training rows; unseen keys and null have 0 views."""
    views = counts.views[:-1].sum(axis=1)
    weights = np.append(views, counts.views[-1].sum())
    mean, std = moments(np.log1p(np.append(views, 0)), weights)
    table = KeyTable(counts.keys, views.astype(np.float64), 0.0)
    return Numerical.standardized(counts.column, table, log=True, mean=mean, std=std)


def smoothed_rates(counts: FoldCounts, smoothing: float) -> tuple[Numerical, OutOfFoldRates]:
    """Fit (clicks + smoothing * prior) / (views + smoothing) of a key, standardized.

    The prior is the click rate of all rows, which unseen keys and null get. Rows to predict use the counts of all
    folds, training rows those of the folds other than their own; both are standardized with the moments of the latter.

    Args:
        counts: views and clicks by fold.
        smoothing: weight of the prior, in views.

    Returns:
        The encoder for rows to predict, and the out-of-fold rates for training rows.
    """
    views, clicks = _without_each_fold(counts.views[:-1]), _without_each_fold(counts.clicks[:-1])
    all_views = _without_each_fold(counts.views.sum(axis=0, keepdims=True))
    all_clicks = _without_each_fold(counts.clicks.sum(axis=0, keepdims=True))
    priors = all_clicks / np.maximum(all_views, 1)
    rates = np.vstack([(clicks + smoothing * priors) / (views + smoothing), priors])
    mean, std = moments(rates[:, :-1], counts.views)
    table = KeyTable(counts.keys, rates[:-1, -1], float(rates[-1, -1]))
    encoder = Numerical.standardized(counts.column, table, mean=mean, std=std)
    scaled = ((rates[:, :-1] - mean) / (std if std > 0 else 1.0)).astype(np.float32)
    return encoder, OutOfFoldRates(counts.column, counts.keys, scaled)


def days_encoder(column: str, days: KeyTable, *, standardized: bool) -> Numerical:
    """Fit ln(1 + days), with the training median for missing days.

    Args:
        column: name of the column with whole days.
        days: number of training rows by number of days, without nulls.
        standardized: whether to standardize with the moments of the training rows that have days.
    """
    numbers, counts = days.keys.to_numpy(), days.numbers.astype(np.int64)
    median = weighted_median(numbers, counts)
    if not standardized:
        return Numerical.standardized(column, fill=median, log=True)
    mean, std = moments(np.log1p(numbers), counts)
    return Numerical.standardized(column, fill=median, log=True, mean=mean, std=std)


def weighted_median(ascending: np.ndarray, counts: np.ndarray) -> float:
    """Return the exact median of ascending values with the given counts; 0 if there are none."""
    ends = np.cumsum(counts)
    if not len(ends) or not ends[-1]:
        return 0.0
    middle = [(ends[-1] - 1) // 2, ends[-1] // 2]
    return float(np.mean(ascending[np.searchsorted(ends, middle, side="right")]))


def moments(numbers: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Return the mean and the standard deviation (with n - 1) of numbers with the given counts.

    The mean of no numbers is 0. The deviation is 0 if there are fewer than two numbers, or if it is within the rounding
    error of equal numbers.
    """
    total = int(counts.sum())
    mean = float((numbers * counts).sum() / total) if total else 0.0
    std = float(np.sqrt((counts * (numbers - mean) ** 2).sum() / (total - 1))) if total > 1 else 0.0
    return mean, std if std > ROUNDING * abs(mean) else 0.0


def _without_each_fold(counts: np.ndarray) -> np.ndarray:
    """Return sums over all folds but one, [n, folds] to [n, folds + 1]; the last column sums all folds."""
    everything = counts.sum(axis=1, keepdims=True)
    return np.hstack([everything - counts, everything])


class CountIds(ops.Categorify):
    """Makes a vocabulary of each column, with at most so many ids; leaves the columns unchanged.

    NVTabular's Categorify counts the values, and a `Vocabulary` assigns the ids, in the same layout. Unlike
    Categorify's, they do not depend on the order of the rows (ties are broken by value), unseen values have the same
    hash on pandas and cuDF, and a column may hold nothing but nulls.

    Args:
        out_path: folder for Categorify's files, needed until the workflow is fitted.
        max_ids: maximum cardinality by column (see `Vocabulary.fit`); columns not named have no maximum.

    Attributes:
        vocabularies: fitted `Vocabulary` of each column, by name; empty before the fit.
    """

    def __init__(self, out_path: str, max_ids: Mapping[str, int]) -> None:
        super().__init__(out_path=out_path, dtype=np.int64)
        self.max_ids = dict(max_ids)
        self.vocabularies: dict[str, Vocabulary] = {}

    def fit_finalize(self, categories: dict[str, str]) -> None:
        """Build the vocabularies from the counts that Categorify wrote."""
        super().fit_finalize(categories)
        for name, path in categories.items():
            # Categorify writes no file for a column with only nulls.
            nothing = pd.DataFrame({name: [], f"{name}_size": []})
            counted = pd.read_parquet(path).dropna(subset=[name]) if os.path.exists(path) else nothing
            counts = counted[f"{name}_size"]
            self.vocabularies[name] = Vocabulary.fit(name, counted[name], counts, max_ids=self.max_ids.get(name))

    def transform(self, col_selector: Any, df: Any) -> Any:
        return df[col_selector.names]

    def get_embedding_sizes(self, columns: list[str]) -> dict[str, tuple[int, int]]:
        """Return the cardinality and the embedding width by NVTabular's rule of thumb, by column."""
        if not self.vocabularies:
            return super().get_embedding_sizes(columns)
        cardinalities = {name: self.vocabularies[name].cardinality for name in columns}
        return {name: (size, min(512, max(16, round(1.6 * size**0.56)))) for name, size in cardinalities.items()}

    def clear(self) -> None:
        super().clear()
        self.vocabularies = {}


class CountKeys(ops.StatOperator):
    """Counts the training rows with each value of each column; leaves the columns unchanged.

    Attributes:
        tables: fitted `KeyTable` of each column, by name; it gives 0 to unseen values and null. Empty before the fit.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[str, KeyTable] = {}

    def fit(self, col_selector: Any, ddf: Any) -> Any:
        """Return a Dask task that counts the rows of each value."""
        return dask.delayed({name: ddf.groupby(name).size() for name in col_selector.names})

    def fit_finalize(self, counts: dict[str, Any]) -> None:
        for name, series in counts.items():
            counted = to_host(series).sort_index()
            self.tables[name] = KeyTable(as_keys(name, counted.index), counted.to_numpy(np.float64), default=0.0)

    def clear(self) -> None:
        self.tables = {}


class CountClicks(ops.StatOperator):
    """Counts the views and clicks of each value of each column, by fold; leaves the columns unchanged.

    Args:
        clicked: name of the column with clicks, 0 or 1.
        fold: name of the column with the fold of each row, in [0, num_folds).
        num_folds: number of folds.

    Attributes:
        counts: fitted `FoldCounts` of each column, by name; empty before the fit.
    """

    def __init__(self, clicked: str, fold: str, num_folds: int) -> None:
        super().__init__()
        self.clicked, self.fold, self.num_folds = clicked, fold, num_folds
        self.counts: dict[str, FoldCounts] = {}

    @property
    def dependencies(self) -> list[str]:
        """Names of the columns that are read in addition to the selected ones."""
        return [self.clicked, self.fold]

    def compute_selector(self, input_schema: Any, selector: Any, parents_selector: Any, _: Any) -> Any:
        """Return the selected columns, without the dependencies, so that only they are transformed."""
        self._validate_matching_cols(input_schema, parents_selector, "computing input selector")
        return parents_selector

    def fit(self, col_selector: Any, ddf: Any) -> Any:
        """Return a Dask task for `count` and `sum` of the clicks, by column name.

        The entry of a column is grouped by value and fold; the entry under the fold's name, by fold alone.
        """
        groups = {name: [name, self.fold] for name in col_selector.names} | {self.fold: [self.fold]}
        return dask.delayed(
            {name: ddf.groupby(keys)[self.clicked].agg(["count", "sum"]) for name, keys in groups.items()}
        )

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

    def clear(self) -> None:
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
        result = type(df)()
        for name in self.times:
            days = (df[self.timestamp] + TIMESTAMP_ORIGIN_MS - df[name]) // DAY_MS
            possible = ((days >= 0) & (days <= MAX_DAYS)) | days.isna()
            result[f"{name}_days_since_published"] = days.where(possible, 0)
        return result

    def column_mapping(self, col_selector: Any) -> dict[str, list[str]]:
        return {f"{name}_days_since_published": [name, self.timestamp] for name in self.times}


class Similarity(ops.Operator):
    """Adds FIRST_SECOND_sim_KIND for each kind of tags: the similarity of two documents (`DocumentTags.similarity`).

    It replaces NVTabular's ColumnSimilarity, which reads out of bounds for unknown documents.

    Args:
        first, second: names of the columns with document ids.
        tags: tags of documents, by kind.
    """

    output_dtype = np.float64

    def __init__(self, first: str, second: str, tags: Mapping[str, DocumentTags]) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.tags = {f"{first}_{second}_sim_{kind}": of_kind for kind, of_kind in tags.items()}

    def transform(self, col_selector: Any, df: Any) -> Any:
        """Compute the similarities on the host."""
        result = type(df)()
        first, second = (to_host(df[name]).to_numpy() for name in (self.first, self.second))
        for feature, tags in self.tags.items():
            result[feature] = type(df[self.first])(tags.similarity(first, second), index=df.index)
        return result

    def column_mapping(self, col_selector: Any) -> dict[str, list[str]]:
        return {feature: [self.first, self.second] for feature in self.tags}


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
        result = type(df)()
        fold = to_host(df[self.fold]).to_numpy()
        for feature, rates in self.rates.items():
            column = df[rates.column]
            result[feature] = type(column)(rates.encode(to_host(column), fold), index=column.index)
        return result

    def column_mapping(self, col_selector: Any) -> dict[str, list[str]]:
        return {feature: [rates.column, self.fold] for feature, rates in self.rates.items()}


class EncodeTags(ops.Operator):
    """Computes lists of ids of the first tags of a row's document; the list is empty for documents without tags.

    Args:
        document: name of the column with document ids.
        encoders: list encoder of each feature, by feature name.
        tags: tags of documents that each feature is computed from, by feature name.
        most: maximum number of tags per row.
    """

    output_dtype = np.int64

    def __init__(
        self, document: str, encoders: Mapping[str, Encoder], tags: Mapping[str, DocumentTags], most: int
    ) -> None:
        super().__init__()
        self.document, self.encoders, self.tags, self.most = document, dict(encoders), dict(tags), most

    def transform(self, col_selector: Any, df: Any) -> Any:
        """Encode the lists of the distinct documents, and gather them by row."""
        result = type(df)()
        rows_of, distinct = df[self.document].factorize()
        documents, rows = to_host(distinct).to_numpy(), np.asarray(to_host(type(df[self.document])(rows_of)))
        for feature, tags in self.tags.items():
            codes, lengths = tags.lists(documents, self.most)
            ids = _encode_codes(self.encoders[feature], tags, codes)
            result[feature] = _list_column(df[self.document], ids, lengths, rows)
        return result

    def column_mapping(self, col_selector: Any) -> dict[str, list[str]]:
        return {feature: [self.document] for feature in self.encoders}


def _encode_codes(encoder: Encoder, tags: DocumentTags, codes: np.ndarray) -> np.ndarray:
    """Return the ids of tags given by their codes, [n] int64; each distinct tag is encoded once."""
    if not isinstance(encoder, Vocabulary | HashedRanks):
        raise TypeError(f"{type(encoder).__name__} does not encode lists")
    distinct, positions = np.unique(codes, return_inverse=True)
    return encoder.encode_flat(tags.values[distinct])[positions]


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


def map_distinct(series: Any, mapped: Callable[[np.ndarray], np.ndarray], null: float) -> Any:
    """Map a series through its distinct values.

    Args:
        series: pandas or cuDF series.
        mapped: maps the [distinct] values, on the host, to [distinct] numbers.
        null: number that replaces null.
    """
    codes, distinct = series.factorize()
    numbers = mapped(np.asarray(to_host(distinct)))
    numbers = np.concatenate([np.asarray([null], numbers.dtype), numbers])
    taken = type(series)(numbers).take(codes + 1)
    taken.index = series.index
    return taken


def to_host(data: Any) -> Any:
    """Return a pandas copy of a cuDF series, index or frame; pandas objects are returned as they are."""
    return data.to_pandas() if hasattr(data, "to_pandas") else data
