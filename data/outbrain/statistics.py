"""Fit encoders from counted views and clicks. Counts are integers, so results do not depend on the order of rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.preprocess.encoders import NOT_IN_A_FOLD, Numerical
from data.preprocess.keys import KeyIndex, KeyTable, Values

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
    return Numerical(counts.column, KeyTable(counts.keys, rates, 0.0))


def log_views(counts: FoldCounts) -> Numerical:
    """Fit ln(1 + views) of a key, standardized over the training rows; unseen keys and null have 0 views."""
    views = counts.views[:-1].sum(axis=1)
    weights = np.append(views, counts.views[-1].sum())
    mean, std = moments(np.log1p(np.append(views, 0)), weights)
    return Numerical(counts.column, KeyTable(counts.keys, views.astype(np.float64), 0.0), log=True, mean=mean, std=std)


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
    encoder = Numerical(counts.column, KeyTable(counts.keys, rates[:-1, -1], float(rates[-1, -1])), mean=mean, std=std)
    scaled = ((rates[:, :-1] - mean) / (std if std > 0 else 1.0)).astype(np.float32)
    return encoder, OutOfFoldRates(counts.column, counts.keys, scaled)


def days_encoder(column: str, days: KeyTable, *, standardised: bool) -> Numerical:
    """Fit ln(1 + days), with the training median for missing days.

    Args:
        column: name of the column with whole days.
        days: number of training rows by number of days, without nulls.
        standardised: whether to standardize with the moments of the training rows that have days.
    """
    counts = days.numbers.astype(np.int64)
    median = weighted_median(days.keys, counts)
    if not standardised:
        return Numerical(column, fill=median, log=True)
    mean, std = moments(np.log1p(days.keys), counts)
    return Numerical(column, fill=median, log=True, mean=mean, std=std)


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
