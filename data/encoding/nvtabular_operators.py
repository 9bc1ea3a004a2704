"""NVTabular operators that complement those of NVTabular, for both pandas and cuDF.

`FitFeatures` fits and applies the encoders of a raw specification on Arrow memory. The other operators pass the
distinct values of a column through the encoders of `data.encoding.encoders` on the host, and gather the results on
the device. Results are the same on GPU, on CPU and at serving time.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
import pyarrow as pa

from data.encoding.encoders import (
    NULL_ID,
    CrossedIds,
    Encoded,
    Encoder,
    NumberEncoder,
    Vocabulary,
    encode_feature,
)
from data.encoding.fitting import FittedFeatures, Fitter, Scratch
from data.encoding.keys import KeyTable, as_arrow, as_keys
from data.encoding.nvtabular_setup import ON_GPU, dispatch, global_dask_client, ops
from data.spec.raw.spec import RawSpec

# States of partitions to merge at a time.
FAN_IN = 8
# Bytes of the states of all features and of one, if nothing else is said.
STATE_BYTES, LEAST_STATE_BYTES = 2**29, 2**20


class FitFeatures(ops.StatOperator):
    """Fits the encoders of a raw specification on staged training rows, and encodes rows with them.

    Its input columns are `inputs`, in Arrow memory (see `to_frame`). Its outputs are the encoded features: int32 ids,
    float32 numbers, and Arrow lists of these.

    Args:
        spec: the raw specification.
        scratch: existing folder for what does not fit into memory during the fit.
        encoders: encoders of an earlier fit, by feature name; None before the fit.
        memory: bytes of the states of all features to keep in memory during the fit.
        threads: number of features to work on at a time; None for one per CPU.

    Attributes:
        is_training: whether the rows to transform are the training rows, whose target statistics leave out their fold.
    """

    def __init__(
        self,
        spec: RawSpec,
        scratch: Path,
        encoders: Mapping[str, Encoder] | None = None,
        *,
        memory: int = STATE_BYTES,
        threads: int | None = None,
    ) -> None:
        super().__init__()
        self._spec = spec
        self._features = FittedFeatures(spec, encoders)
        self._scratch = Scratch(scratch, max(LEAST_STATE_BYTES, memory // max(1, len(spec.features))))
        self._threads = threads or len(os.sched_getaffinity(0))
        self._ddf: Any = None
        self.fitted = encoders is not None
        self.is_training = False

    @property
    def encoders(self) -> dict[str, Encoder]:
        """Fitted encoders by feature name, including features that rules add; empty before the fit."""
        return self._features.encoders

    @property
    def inputs(self) -> list[str]:
        """Names of the columns that the operator reads."""
        return self._features.inputs

    def fit(self, col_selector: Any, ddf: Any) -> Any:
        """Return a Dask task for the states of all features but crosses of encoded ones."""
        self._ddf = ddf
        return _fit_task(self._features.fitters(self._scratch), ddf, self._threads)

    def fit_finalize(self, states: dict[str, Any]) -> None:
        """Make the encoders; crosses of encoded features take further passes over the rows."""
        fitters = self._features.fitters(self._scratch)
        while fitters:
            finish = partial(_finish, fitters, states)
            self._features.add(dict(zip(fitters, in_threads(finish, fitters, self._threads), strict=True)))
            fitters = self._features.fitters(self._scratch)
            if fitters:
                # As NVTabular computes: with Dask's client if there is one, else in this thread.
                scheduler = None if global_dask_client() else "synchronous"
                (states,) = dask.compute(_fit_task(fitters, self._ddf, self._threads), scheduler=scheduler)
        self._ddf = None

    def transform(self, col_selector: Any, df: Any) -> Any:
        """Return the encoded features, in the same row order."""
        table, encoders = to_table(df), self.encoders
        columns = dict(zip(table.column_names, table.columns, strict=True))

        def encode(name: str) -> Encoded:
            means = self._features.out_of_fold.get(name) if self.is_training else None
            encoder = encoders[name]
            return encoder.encode(columns[encoder.column]) if means is None else means.encode(table)

        single = [name for name, encoder in encoders.items() if not isinstance(encoder, CrossedIds)]
        encoded = dict(zip(single, in_threads(encode, single, self._threads), strict=True))
        for name in encoders:
            encode_feature(name, encoders, columns, encoded)
        result = to_frame(pa.table({name: _stored(encoded[name], encoders[name]) for name in encoders}))
        result.index = df.index
        return result

    def column_mapping(self, col_selector: Any) -> dict[str, list[str]]:
        return {name: list(col_selector.names) for name in self._features.names}

    def clear(self) -> None:
        self._features, self.fitted = FittedFeatures(self._spec), False

    def __getstate__(self) -> dict[str, Any]:
        # The training rows are needed only where the fit was started.
        return {**self.__dict__, "_ddf": None}


class EncodeIds(ops.Categorify):
    """NVTabular's Categorify with ids that are the same on every platform.

    Categorify counts the values; a `Vocabulary` assigns the ids, in the same layout. Unlike Categorify, it breaks ties
    by value, uses the same hash for unseen values on pandas and cuDF (`data.encoding.hashing`), and supports columns
    with only nulls, and buckets for lists, where Categorify raises.

    Args:
        oov_buckets: number of ids shared by values unseen in training, per column.
        out_path: folder for Categorify's files, needed until the workflow is fitted.
        are_lists: whether the columns hold lists (multi-hot), none of them null.
        max_ids: maximum cardinality by column (see `Vocabulary.fit`); columns not named have no maximum.
        min_count: minimum number of occurrences for a value to get its own id.

    Attributes:
        vocabularies: fitted `Vocabulary` of each column, by name; empty before the fit.
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
        """Build the vocabularies from the counts that Categorify wrote."""
        super().fit_finalize(categories)
        for name, path in categories.items():
            # Categorify writes no file for a column with only nulls.
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
        encoded = df.copy(deep=False)  # shallow: columns are replaced, not modified
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
        """Return the cardinality and the embedding width by NVTabular's rule of thumb, by column."""
        if not self.vocabularies:
            return super().get_embedding_sizes(columns)
        cardinalities = {name: self.vocabularies[name].cardinality for name in columns}
        return {name: (size, min(512, max(16, round(1.6 * size**0.56)))) for name, size in cardinalities.items()}

    def clear(self) -> None:
        super().clear()
        self.vocabularies = {}


class CountKeys(ops.StatOperator):
    """Adds NAME_count for each column NAME: the number of training rows with the row's value, 0 for unseen and null.

    It replaces NVTabular's JoinGroupby, which raises on CPU for values unseen in training.

    Attributes:
        tables: fitted `KeyTable` of each column, by name; empty before the fit.
    """

    output_dtype = np.float64

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

    def transform(self, col_selector: Any, df: Any) -> Any:
        result = type(df)()
        for name in col_selector.names:
            table = self.tables[name]
            result[f"{name}_count"] = map_distinct(df[name], partial(table.look_up, name), table.default)
        return result

    def column_mapping(self, col_selector: Any) -> dict[str, list[str]]:
        return {f"{name}_count": [name] for name in col_selector.names}

    def clear(self) -> None:
        self.tables = {}


class SumsByFold(ops.StatOperator):
    """Base class of out-of-fold operators: counts rows and sums a target by value and fold.

    Subclasses derive their statistics from the sums in `fit_finalize`.

    Args:
        target: name of the numeric target column.
        fold: name of the column with the fold of each row.
        num_folds: number of folds.
    """

    output_dtype = np.float64

    def __init__(self, target: str, fold: str, num_folds: int) -> None:
        super().__init__()
        self.target, self.fold, self.num_folds = target, fold, num_folds

    @property
    def dependencies(self) -> list[str]:
        """Names of the columns that are read in addition to the selected ones."""
        return [self.target, self.fold]

    def compute_selector(self, input_schema: Any, selector: Any, parents_selector: Any, _: Any) -> Any:
        """Return the selected columns, without the dependencies, so that only they are transformed."""
        self._validate_matching_cols(input_schema, parents_selector, "computing input selector")
        return parents_selector

    def fit(self, col_selector: Any, ddf: Any) -> Any:
        """Return a Dask task for `count` and `sum` of the target, by column name.

        The entry of a column is grouped by value and fold; the entry under the fold's name, by fold alone.
        """
        groups = {name: [name, self.fold] for name in col_selector.names} | {self.fold: [self.fold]}
        return dask.delayed(
            {name: ddf.groupby(keys)[self.target].agg(["count", "sum"]) for name, keys in groups.items()}
        )


def to_frame(table: pa.Table) -> Any:
    """Return a frame of Arrow memory: pandas columns of `pd.ArrowDtype` without a copy, or a cuDF frame on a GPU."""
    return dispatch.cudf.DataFrame.from_arrow(table) if ON_GPU else table.to_pandas(types_mapper=pd.ArrowDtype)


def to_table(frame: Any) -> pa.Table:
    """Return the columns of a pandas or cuDF frame as an Arrow table, without a copy where they are in Arrow memory."""
    if hasattr(frame, "to_arrow"):
        return frame.to_arrow(preserve_index=False)
    columns = {name: as_arrow(frame[name]) for name in frame.columns}
    return pa.table({name: pa.array(frame[name]) if column is None else column for name, column in columns.items()})


def in_threads(function: Callable[[Any], Any], items: Iterable[Any], threads: int) -> list[Any]:
    """Apply a function to items in parallel; Arrow and NumPy let threads run at the same time."""
    if threads == 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, items))


def _fit_task(fitters: dict[str, Fitter], ddf: Any, threads: int) -> Any:
    """Return a Dask task for the states of fitters, by feature name, over all partitions of a frame."""
    # Bound to functions, so that Dask does not look for tasks in the fitters.
    part, merge = partial(_part_states, fitters, threads), partial(_merged_states, fitters, threads)
    states = [dask.delayed(part, pure=False)(partition) for partition in ddf.to_delayed()]
    while len(states) > 1:
        groups = [states[first : first + FAN_IN] for first in range(0, len(states), FAN_IN)]
        states = [dask.delayed(merge, pure=False)(group) for group in groups]
    return states[0]


def _part_states(fitters: Mapping[str, Fitter], threads: int, frame: Any) -> dict[str, Any]:
    table = to_table(frame)
    return dict(zip(fitters, in_threads(lambda name: fitters[name].part(table), fitters, threads), strict=True))


def _merged_states(fitters: Mapping[str, Fitter], threads: int, states: list[dict[str, Any]]) -> dict[str, Any]:
    def merge(name: str) -> Any:
        return fitters[name].merge([state[name] for state in states])

    return dict(zip(fitters, in_threads(merge, fitters, threads), strict=True))


def _finish(fitters: Mapping[str, Fitter], states: Mapping[str, Any], name: str) -> Any:
    return fitters[name].finish(states[name])


def _stored(values: Encoded, encoder: Encoder) -> pa.Array:
    """Return encoded values as they are stored: int32 ids, float32 numbers, or lists of these."""
    item = pa.float32() if isinstance(encoder, NumberEncoder) else pa.int32()
    if isinstance(values, np.ndarray):
        return pa.array(values).cast(item)
    offsets = values.offsets.cast(pa.int32())
    return pa.ListArray.from_arrays(offsets, values.values.cast(item))


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
    return gather(type(series)(numbers), codes + 1, series.index)


def gather(numbers: Any, positions: Any, index: Any) -> Any:
    """Return the numbers at positions, as a series with the given index."""
    taken = numbers.take(positions)
    taken.index = index
    return taken


def to_host(data: Any) -> Any:
    """Return a pandas copy of a cuDF series, index or frame; pandas objects are returned as they are."""
    return data.to_pandas() if hasattr(data, "to_pandas") else data
