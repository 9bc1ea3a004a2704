"""The NVTabular workflow of a text table, which outputs ids, standardized numbers and unencoded columns."""

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

from data.errors import DataError
from data.preprocess.encoders import Encoder, Numerical
from data.preprocess.nvtabular_operators import EncodeIds, Log64
from data.preprocess.nvtabular_setup import Dataset, Workflow, from_map, ops, to_device
from data.preprocess.tabular.columns import Columns, Number
from data.preprocess.tabular.staging import read_raw_values


class Standardize(ops.Normalize):
    """NVTabular's Normalize with numerically stable moments.

    Normalize computes the variance as a difference of sums of squares, so rounding gives a constant column a tiny
    non-zero deviation, which blows up every other value. Here, sums of squared distances to the mean are merged over
    partitions (Chan, Golub, LeVeque 1979), and a constant column has deviation 0.
    """

    def fit(self, col_selector: Any, ddf: Any) -> Any:
        """Return a Dask task for the moments of each partition."""
        parts = [dask.delayed(_moments)(part) for part in ddf[col_selector.names].to_delayed()]
        return dask.delayed(parts)

    def fit_finalize(self, parts: list[pd.DataFrame]) -> None:
        """Merge the moments into means and standard deviations (with n - 1)."""
        total = parts[0]
        for part in parts[1:]:
            total = _merged(total, part)
        is_constant = total["least"] == total["most"]
        # Exact for a constant column, whose computed mean can be off by rounding.
        means = total["mean"].where(~is_constant, total["least"])
        variances = total["squares"] / (total["count"] - 1).clip(lower=1)
        self.means, self.stds = means.to_dict(), (variances.where(~is_constant, 0.0) ** 0.5).to_dict()


class FillExactMedian(ops.FillMedian):
    """NVTabular's FillMedian with exact medians; Dask's estimate over several partitions can be far off.

    Args:
        files: staged files of the training rows; they are read one column at a time.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__()
        self._files = files

    def fit(self, col_selector: Any, ddf: Any) -> Any:
        """Return a Dask task for the median of each column, NaN if all its values are null."""
        return dask.delayed({name: self._median(name) for name in col_selector.names})

    def fit_finalize(self, medians: dict[str, float]) -> None:
        """Store the medians."""
        self.medians = medians

    def _median(self, name: str) -> float:
        parts = [
            pq.read_table(file, columns=[name], page_checksum_verification=True).column(name).drop_null().to_numpy()
            for file in self._files
        ]
        numbers = np.concatenate(parts)
        return float(np.median(numbers)) if len(numbers) else np.nan


class TabularWorkflow:
    """Encodes the raw values of a text table as ids and numbers.

    Args:
        columns: declaration of the columns.
        files: staged files of the training rows.
        oov_buckets: number of ids shared by values unseen in training, per categorical feature.
        folder: existing folder for NVTabular's own files, needed until the fit is done.
    """

    def __init__(self, columns: Columns, files: Sequence[Path], oov_buckets: int, folder: Path) -> None:
        self._columns = columns
        self._files = list(files)
        self._ids = EncodeIds(oov_buckets, str(folder))
        self._fill = FillExactMedian(self._files)
        self._scale = Standardize(out_dtype=np.float32)
        self._workflow = Workflow(self._graph())

    def fit(self) -> "TabularWorkflow":
        """Fit vocabularies, medians and scales on the training rows, file by file; return self.

        Raises:
            DataError: if a numerical feature is null in every training row.
        """
        self._workflow.fit(Dataset(from_map(_read, self._files)))
        for column in self._columns.numerical:
            if np.isnan(self._fill.medians[column.name]):
                raise DataError(f"{column.name}: no training row has a value; leave the column out")
        return self

    def transform(self, values: pd.DataFrame) -> pd.DataFrame:
        """Return the dataset's columns for a frame of raw values, in the same row order, on the host."""
        frame = self._workflow.transform(to_device(values))
        return frame.to_pandas() if hasattr(frame, "to_pandas") else frame

    def encoders(self) -> dict[str, Encoder]:
        """Return the fitted state as plain encoders by feature, in the order of the specification's channels."""
        encoders: dict[str, Encoder] = {}
        for column in self._columns.onehot:
            encoders[column.name] = replace(self._ids.vocabularies[column.name], column=column.source)
        for number in self._columns.numerical:
            encoders[number.name] = self._numerical(number)
        return encoders

    def _graph(self) -> Any:
        """Build the operator graph from raw columns to features, without operators that would have no columns."""
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
    """Return count, mean, sum of squared distances to the mean, minimum and maximum: one row per column."""
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
