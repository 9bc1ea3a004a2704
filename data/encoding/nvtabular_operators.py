"""NVTabular operators of our own, for what NVTabular's operators do not do; for pandas and cuDF alike.

They work on the distinct values of a column: those go through the plain encoders of `data.encoding.encoders`
on the host, and the results are gathered on the device. So a GPU, a CPU and the serving side agree.
"""

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import dask
import numpy as np
import pandas as pd

from data.encoding.encoders import NOT_IN_A_FOLD, NULL_ID, Vocabulary
from data.encoding.keys import KeyTable, as_keys
from data.encoding.nvtabular_setup import dispatch, ops


class EncodeIds(ops.Categorify):
    """NVTabular's Categorify with ids that are the same everywhere.

    The counting is Categorify's. The ids are a `Vocabulary`'s: the same layout, but values of equal
    count are in the order of their values, unseen values go to their bucket by `data.encoding.hashing`, where
    Categorify's hash differs between pandas and cuDF, and frames of nothing but nulls, and buckets for
    lists, work, where Categorify raises.

    Args:
        oov_buckets: ids for values unseen in training, per column.
        out_path: a folder for Categorify's files, needed until the workflow is fitted.
        are_lists: whether the columns hold lists (multi-hot), none of them null.
        max_ids: largest cardinality of columns, as `Vocabulary.fit` takes it; none for columns not named.
        min_count: how often a value must occur to get an id of its own.

    Attributes:
        vocabularies: after the fit, a `Vocabulary` per column.
    """

    def __init__(
        self,
        oov_buckets: int,
        out_path: str,
        *,
        are_lists: bool = False,
        max_ids: Mapping[str, int] | None = None,
        min_count: int = 1,
    ) -> None:
        super().__init__(out_path=out_path, dtype=np.int64)
        self.oov_buckets, self.are_lists = oov_buckets, are_lists
        self.max_ids, self.min_count = dict(max_ids or {}), min_count
        self.vocabularies: dict[str, Vocabulary] = {}

    def fit_finalize(self, categories: dict[str, str]) -> None:
        """Builds the vocabularies from the counts that Categorify wrote."""
        super().fit_finalize(categories)
        for name, path in categories.items():
            # Of a column of nothing but nulls, Categorify writes no file.
            nothing = pd.DataFrame({name: [], f"{name}_size": []})
            counted = pd.read_parquet(path).dropna(subset=[name]) if os.path.exists(path) else nothing
            self.vocabularies[name] = Vocabulary.fit(
                name,
                counted[name],
                counted[f"{name}_size"],
                oov_buckets=self.oov_buckets,
                is_list=self.are_lists,
                max_ids=self.max_ids.get(name),
                min_count=self.min_count,
            )

    def transform(self, col_selector: Any, df: Any) -> Any:
        """Replaces values by ids."""
        encoded = df.copy(deep=False)
        for name in col_selector.names:
            vocabulary = self.vocabularies[name]
            if vocabulary.is_list:
                ids = map_distinct(dispatch.flatten_list_column_values(df[name]), vocabulary.encode_flat, NULL_ID)
                lists = dispatch.encode_list_column(df[name], ids.values, dtype=np.int64)
                lists.index = df.index
                encoded[name] = lists
            else:
                encoded[name] = map_distinct(df[name], vocabulary.encode_flat, NULL_ID)
        return encoded

    def get_embedding_sizes(self, columns: list[str]) -> dict[str, tuple[int, int]]:
        """Cardinality and NVTabular's proposal for the width, per column."""
        if not self.vocabularies:
            return super().get_embedding_sizes(columns)
        cardinalities = {name: self.vocabularies[name].cardinality for name in columns}
        return {name: (size, min(512, max(16, round(1.6 * size**0.56)))) for name, size in cardinalities.items()}

    def clear(self) -> None:
        """Forgets what was fitted."""
        super().clear()
        self.vocabularies = {}


class CountKeys(ops.StatOperator):
    """For each column NAME a column NAME_count: how many training rows hold the row's value, 0 for unseen and null.

    NVTabular's JoinGroupby does this on a GPU, and raises on a CPU for a value unseen in training.

    Attributes:
        tables: after the fit, a `KeyTable` per column.
    """

    output_dtype = np.float64

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[str, KeyTable] = {}

    def fit(self, col_selector: Any, ddf: Any) -> Any:
        """Counts the rows of each value; a Dask task."""
        return dask.delayed({name: ddf.groupby(name).size() for name in col_selector.names})

    def fit_finalize(self, counts: dict[str, Any]) -> None:
        """Keeps the counts as tables."""
        for name, series in counts.items():
            counted = to_host(series).sort_index()
            self.tables[name] = KeyTable(as_keys(name, counted.index), counted.to_numpy(np.float64), default=0.0)

    def transform(self, col_selector: Any, df: Any) -> Any:
        """Looks the counts up."""
        result = type(df)()
        for name in col_selector.names:
            table = self.tables[name]
            result[f"{name}_count"] = map_distinct(df[name], partial(table.look_up, name), table.default)
        return result

    def column_mapping(self, col_selector: Any) -> dict[str, list[str]]:
        """New columns, and what they are made of."""
        return {f"{name}_count": [name] for name in col_selector.names}

    def clear(self) -> None:
        """Forgets what was fitted."""
        self.tables = {}


class SumsByFold(ops.StatOperator):
    """Counts rows and sums a target by value and fold: what operators have in common that keep a row's fold out.

    A subclass makes something of the sums in `fit_finalize`.

    Args:
        target: column of numbers.
        fold: column of the rows' folds.
        num_folds: how many there are.
    """

    output_dtype = np.float64

    def __init__(self, target: str, fold: str, num_folds: int) -> None:
        super().__init__()
        self.target, self.fold, self.num_folds = target, fold, num_folds

    @property
    def dependencies(self) -> list[str]:
        """Columns that are read besides the selected ones."""
        return [self.target, self.fold]

    def compute_selector(self, input_schema: Any, selector: Any, parents_selector: Any, _: Any) -> Any:
        """The columns of values: the selected ones, without those only read."""
        self._validate_matching_cols(input_schema, parents_selector, "computing input selector")
        return parents_selector

    def fit(self, col_selector: Any, ddf: Any) -> Any:
        """`count` and `sum` by value and fold for each column, and by fold alone under the fold's name; a Dask task."""
        groups = {name: [name, self.fold] for name in col_selector.names} | {self.fold: [self.fold]}
        return dask.delayed(
            {name: ddf.groupby(keys)[self.target].agg(["count", "sum"]) for name, keys in groups.items()}
        )


class OutOfFoldMean(SumsByFold):
    """For each column NAME a column NAME_mean: the target's mean over the training rows with the row's value.

    A training row's mean is taken over the other folds, so that its own target is not in it; a row in
    no fold (-1: not a training row) gets the mean over all of them. Both are smoothed:
    (sum + smoothing * prior) / (count + smoothing), the prior being the target's mean over the same folds.
    Unseen and null get the prior.

    NVTabular's TargetEncoding draws its folds by row position, and for rows to predict as well.

    Args:
        target: column of numbers.
        fold: column of the rows' folds, in [0, num_folds) or -1; only the rows fitted on may have one.
        num_folds: at least 2.
        smoothing: weight of the prior, in rows, > 0.

    Attributes:
        tables: after the fit, a `KeyTable` per column: the means over all folds.
    """

    def __init__(self, target: str, fold: str, num_folds: int, smoothing: float) -> None:
        super().__init__(target, fold, num_folds)
        self.smoothing = smoothing
        self.tables: dict[str, KeyTable] = {}
        self._rows: dict[str, KeyTable] = {}
        self._means: dict[str, np.ndarray] = {}

    def fit_finalize(self, sums: dict[str, Any]) -> None:
        """Turns the sums into means, for every value and every fold left out."""
        frames = {name: to_host(frame).reset_index() for name, frame in sums.items()}
        everything = frames.pop(self.fold)
        _, counts, totals = self._without_fold(np.zeros(len(everything)), everything)
        priors = np.divide(totals, counts, out=np.zeros_like(totals), where=counts > 0)
        for name, frame in frames.items():
            keys, counts, totals = self._without_fold(as_keys(name, frame[name]), frame)
            means = (totals + self.smoothing * priors) / (counts + self.smoothing)
            self._rows[name] = KeyTable(keys, np.arange(len(keys), dtype=np.float64), default=len(keys))
            self._means[name] = np.vstack([means, priors])
            self.tables[name] = KeyTable(keys, means[:, -1], default=float(priors[0, -1]))

    def transform(self, col_selector: Any, df: Any) -> Any:
        """Looks the means up: without the row's fold where it has one."""
        result = type(df)()
        fold = df[self.fold].where(df[self.fold] != NOT_IN_A_FOLD, self.num_folds)
        for name in col_selector.names:
            rows = self._rows[name]
            row = map_distinct(df[name], partial(rows.look_up, name), rows.default)
            means = type(fold)(self._means[name].reshape(-1))
            result[f"{name}_mean"] = gather(means, (row * (self.num_folds + 1) + fold).astype(np.int64), df.index)
        return result

    def column_mapping(self, col_selector: Any) -> dict[str, list[str]]:
        """New columns, and what they are made of."""
        return {f"{name}_mean": [name] for name in col_selector.names}

    def clear(self) -> None:
        """Forgets what was fitted."""
        self.tables, self._rows, self._means = {}, {}, {}

    def _without_fold(self, keys: np.ndarray, frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Distinct keys [size], and counts and sums of the target [size, num_folds + 1], each without one fold.

        The last column leaves no fold out.
        """
        distinct, positions = np.unique(keys, return_inverse=True)
        columns = []
        for quantity in ("count", "sum"):
            by_fold = np.zeros((len(distinct), self.num_folds))
            np.add.at(by_fold, (positions, frame[self.fold].to_numpy()), frame[quantity].to_numpy(np.float64))
            everything = by_fold.sum(axis=1, keepdims=True)
            columns.append(np.hstack([everything - by_fold, everything]))
        return distinct, columns[0], columns[1]


class Log64(ops.LogOp):
    """NVTabular's LogOp, log(1 + x), in float64, so that nothing is lost before `Normalize`."""

    output_dtype = np.float64


def map_distinct(series: Any, mapped: Callable[[np.ndarray], np.ndarray], null: float) -> Any:
    """A series of `mapped` values, where `mapped` sees every distinct value once, on the host; nulls become `null`."""
    codes, distinct = series.factorize()
    numbers = mapped(np.asarray(to_host(distinct)))
    numbers = np.concatenate([np.asarray([null], numbers.dtype), numbers])
    return gather(type(series)(numbers), codes + 1, series.index)


def gather(numbers: Any, positions: Any, index: Any) -> Any:
    """Numbers at positions, as a series with an index."""
    taken = numbers.take(positions)
    taken.index = index
    return taken


def to_host(data: Any) -> Any:
    """A pandas series, index or frame of one that may lie on a GPU."""
    return data.to_pandas() if hasattr(data, "to_pandas") else data
