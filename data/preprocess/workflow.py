"""The NVTabular workflow of a text table, which outputs ids, standardized numbers and unencoded columns."""

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data.errors import DataError
from data.preprocess.columns import Columns, Number
from data.preprocess.encoders import Encoder, Numerical
from data.preprocess.nvtabular_operators import EncodeIds, FillExactMedian, Log64, Standardize, to_host
from data.preprocess.nvtabular_setup import Dataset, Workflow, from_map, to_device
from data.preprocess.tables import read_raw_values


class TableWorkflow:
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

    def fit(self) -> "TableWorkflow":
        """Fit vocabularies, medians and scales on the training rows, file by file; return self.

        Raises:
            DataError: if a numerical feature is null in every training row.
        """
        self._workflow.fit(Dataset(from_map(_read, self._files)))
        for column in self._columns.numerical:
            if np.isnan(self._fill.medians[column.name]):
                raise DataError(f"{column.name}: no training row has a value; remove the column")
        return self

    def transform(self, values: pd.DataFrame) -> pd.DataFrame:
        """Return the dataset's columns for a frame of raw values, in the same row order, on the host."""
        frame: pd.DataFrame = to_host(self._workflow.transform(to_device(values)))
        return frame

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
        return Numerical.standardized(
            name,
            fill=self._fill.medians[name],
            log=column.log,
            mean=self._scale.means[name],
            std=self._scale.stds[name],
        )


def _read(path: Path) -> Any:
    return to_device(read_raw_values(path))
