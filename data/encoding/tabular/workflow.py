"""The NVTabular workflow of a table: ids, standardised numbers, and what stays as it is."""

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from data.encoding.encoders import Encoder, Numerical
from data.encoding.nvtabular_operators import EncodeIds, Log64
from data.encoding.nvtabular_setup import Dataset, Workflow, from_map, ops, to_device
from data.encoding.tabular.columns import Columns, Number
from data.encoding.tabular.staging import read_raw_values
from data.errors import DataError


class Standardize(ops.Normalize):
    """NVTabular's Normalize with moments that hold for any column.

    Normalize takes the variance as a difference of sums of squares: for a column with one value, what rounding
    leaves of it is no longer 0, and every other value becomes huge. Here the squares are those of distances
    to the mean, merged over partitions (Chan, Golub, LeVeque 1979), and one value has the deviation 0.
    """

    def fit(self, col_selector: Any, ddf: Any) -> Any:
        """Moments of each partition; a Dask task."""
        parts = [dask.delayed(_moments)(part) for part in ddf[col_selector.names].to_delayed()]
        return dask.delayed(parts)

    def fit_finalize(self, parts: list[pd.DataFrame]) -> None:
        """Merges the moments: means, and deviations with n - 1."""
        total = parts[0]
        for part in parts[1:]:
            total = _merged(total, part)
        is_constant = total["least"] == total["most"]
        means = total["mean"].where(~is_constant, total["least"])
        variances = total["squares"] / (total["count"] - 1).clip(lower=1)
        self.means, self.stds = means.to_dict(), (variances.where(~is_constant, 0.0) ** 0.5).to_dict()


class FillExactMedian(ops.FillMedian):
    """NVTabular's FillMedian with the median itself: over several partitions, Dask's estimate of it can be far off.

    Args:
        files: of `Staged`, the training rows; one column of them is held at a time.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__()
        self._files = files

    def fit(self, col_selector: Any, ddf: Any) -> Any:
        """The median of each column, NaN where nothing is known; a Dask task."""
        return dask.delayed({name: self._median(name) for name in col_selector.names})

    def fit_finalize(self, medians: dict[str, float]) -> None:
        """Keeps the medians."""
        self.medians = medians

    def _median(self, name: str) -> float:
        parts = [
            pq.read_table(file, columns=[name], page_checksum_verification=True).column(name).drop_null().to_numpy()
            for file in self._files
        ]
        numbers = np.concatenate(parts)
        return float(np.median(numbers)) if len(numbers) else np.nan


class TabularWorkflow:
    """Ids and numbers of a table's raw values.

    Args:
        columns: what there is.
        files: of `Staged`, the training rows.
        oov_buckets: ids for values unseen in training, per categorical feature.
        folder: an existing folder for NVTabular's own files, needed until the fit is done.
    """

    def __init__(self, columns: Columns, files: Sequence[Path], oov_buckets: int, folder: Path) -> None:
        self._columns = columns
        self._files = list(files)
        self._ids = EncodeIds(oov_buckets, str(folder))
        self._fill = FillExactMedian(self._files)
        self._scale = Standardize(out_dtype=np.float32)
        self._workflow = Workflow(self._graph())

    def fit(self) -> "TabularWorkflow":
        """Learns vocabularies, medians and scales, file by file.

        Raises:
            DataError: a numerical feature is unknown in every row.
        """
        self._workflow.fit(Dataset(from_map(_read, self._files)))
        for column in self._columns.numerical:
            if np.isnan(self._fill.medians[column.name]):
                raise DataError(f"{column.name}: no training row has a value; leave the column out")
        return self

    def transform(self, values: pd.DataFrame) -> pd.DataFrame:
        """The dataset's columns for raw values, in the same order, on the host."""
        frame = self._workflow.transform(to_device(values))
        return frame.to_pandas() if hasattr(frame, "to_pandas") else frame

    def encoders(self) -> dict[str, Encoder]:
        """What was learned, as plain encoders by feature, in the order of the specification's channels."""
        encoders: dict[str, Encoder] = {}
        for column in self._columns.onehot:
            encoders[column.name] = replace(self._ids.vocabularies[column.name], column=column.source)
        for number in self._columns.numerical:
            encoders[number.name] = self._numerical(number)
        return encoders

    def _graph(self) -> Any:
        """Raw columns to features; a group of columns that is empty is left out."""
        onehot = [column.name for column in self._columns.onehot]
        plain = [column.name for column in self._columns.numerical if not column.log]
        heavy = [column.name for column in self._columns.numerical if column.log]
        nodes = [onehot >> self._ids] if onehot else []
        if plain or heavy:
            filled = [*plain, *heavy] >> self._fill
            numbers = [filled[plain]] if plain else []
            numbers += [filled[heavy] >> Log64()] if heavy else []
            nodes.append(reduce(add, numbers) >> self._scale)
        return reduce(add, nodes) + list(self._columns.unencoded)

    def _numerical(self, column: Number) -> Numerical:
        name = column.name
        return Numerical(
            name,
            fill=self._fill.medians[name],
            log=column.log,
            mean=self._scale.means[name],
            std=self._scale.stds[name],
        )


def _read(path: Path) -> Any:
    return to_device(read_raw_values(path))


def _moments(part: Any) -> pd.DataFrame:
    """Count, mean, sum of squared distances to the mean, least and most of each column: one row per column."""
    moments = {}
    for name in part.columns:
        values = part[name].astype("float64")
        mean = float(values.mean())
        squares = float(((values - mean) ** 2).sum())
        moments[name] = (float(len(values)), mean, squares, float(values.min()), float(values.max()))
    return pd.DataFrame.from_dict(moments, orient="index", columns=["count", "mean", "squares", "least", "most"])


def _merged(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    count = one["count"] + other["count"]
    distance = other["mean"] - one["mean"]
    return pd.DataFrame(
        {
            "count": count,
            "mean": one["mean"] + distance * other["count"] / count,
            "squares": one["squares"] + other["squares"] + distance**2 * one["count"] * other["count"] / count,
            "least": np.minimum(one["least"], other["least"]),
            "most": np.maximum(one["most"], other["most"]),
        }
    )
