"""The NVTabular workflow of MovieLens, fitted on the training ratings."""

import numpy as np
import pandas as pd

from data.errors import DataError
from data.movielens.columns import (
    FOLD,
    LABELS,
    LIKED,
    LIKED_FROM,
    MAP_COLUMN,
    MULTIHOT_COLUMNS,
    NUM_FOLDS,
    NUMERICAL_COLUMNS,
    ONEHOT_COLUMNS,
    RATING,
)
from data.preprocess.encoders import Encoder, Numerical
from data.preprocess.nvtabular_operators import CountKeys, EncodeIds, Log64, OutOfFoldMean
from data.preprocess.nvtabular_setup import Dataset, Workflow, ops

SMOOTHING = 20.0


class MovieLensWorkflow:
    """Transforms ratings into ids, numbers, labels and the map feature.

    `fit` and `transform` take frames from `read_movielens` with an additional column `fold`: in [0, NUM_FOLDS) for
    training ratings, -1 for others.

    Args:
        oov_buckets: number of ids shared by values unseen in training, per column.
        folder: existing folder for NVTabular's own files, needed until the fit is done.
    """

    def __init__(self, oov_buckets: int, folder: str) -> None:
        self._ids = EncodeIds(oov_buckets, folder)
        self._list_ids = EncodeIds(oov_buckets, folder, are_lists=True)
        self._fill = ops.FillMedian()
        self._counts = CountKeys()
        self._means = OutOfFoldMean(LIKED, FOLD, NUM_FOLDS, SMOOTHING)
        self._scale = ops.Normalize(out_dtype=np.float32)
        year = ["movie_year"] >> self._fill
        counts = ["movie", "user"] >> self._counts >> Log64()
        means = ["movie", "user"] >> self._means
        ids = ([*ONEHOT_COLUMNS] >> self._ids) + ([*MULTIHOT_COLUMNS] >> self._list_ids)
        self._workflow = Workflow(ids + (year + counts + means >> self._scale) + [*LABELS, MAP_COLUMN])

    def fit(self, train: pd.DataFrame) -> "MovieLensWorkflow":
        """Fit vocabularies, tables and scales on training ratings; return self.

        Raises:
            DataError: if no movie has a year, or none has a genre.
        """
        if train["movie_year"].isna().all():
            raise DataError("no movie of the training ratings has a year in its title, as in 'Toy Story (1995)'")
        if not train["genres"].map(len).any():
            raise DataError("no movie of the training ratings has a genre")
        self._workflow.fit(Dataset(_with_labels(train)))
        return self

    def transform(self, ratings: pd.DataFrame) -> pd.DataFrame:
        """Return the dataset's columns for ratings, in the same row order, on the host."""
        frame = self._workflow.transform(Dataset(_with_labels(ratings))).to_ddf().compute(scheduler="synchronous")
        return frame.to_pandas() if hasattr(frame, "to_pandas") else frame

    def encoders(self) -> dict[str, Encoder]:
        """Return the fitted state as plain encoders by feature, in the order of the specification's channels."""
        year = "movie_year"
        median, center, std = self._fill.medians[year], self._mean(year), self._std(year)
        numerical = {year: Numerical.standardized(year, fill=median, mean=center, std=std)}
        for key in ("movie", "user"):
            count, mean = f"{key}_count", f"{key}_mean"
            counts, means = self._counts.tables[key], self._means.tables[key]
            center, std = self._mean(count), self._std(count)
            numerical[count] = Numerical.standardized(key, counts, log=True, mean=center, std=std)
            center, std = self._mean(mean), self._std(mean)
            numerical[mean] = Numerical.standardized(key, means, mean=center, std=std)
        encoders = self._ids.vocabularies | self._list_ids.vocabularies | numerical
        return {name: encoders[name] for name in (*ONEHOT_COLUMNS, *MULTIHOT_COLUMNS, *NUMERICAL_COLUMNS)}

    def _mean(self, name: str) -> float:
        return self._scale.means[name]

    def _std(self, name: str) -> float:
        return self._scale.stds[name]


def _with_labels(ratings: pd.DataFrame) -> pd.DataFrame:
    return ratings.assign(**{LIKED: (ratings[RATING] >= LIKED_FROM).astype(np.float64), MAP_COLUMN: ratings["user"]})
