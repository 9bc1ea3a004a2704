"""From counted views and clicks to encoders. What is counted are integers, so nothing depends on the order of rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.encoding.encoders import NOT_IN_A_FOLD, Numerical
from data.encoding.keys import KeyIndex, KeyTable, Values

# Deviations below this share of the mean are rounding.
ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class FoldCounts:
    """Views and clicks of the values of a column over the training rows, by fold.

    Attributes:
        column: its name.
        keys: [size] int64, ascending: the values that occur.
        views: [size + 1, folds] int64; the last row is of nulls.
        clicks: as `views`.
    """

    column: str
    keys: np.ndarray
    views: np.ndarray
    clicks: np.ndarray


@dataclass(frozen=True, eq=False)
class OutOfFoldRates:
    """Click rates of training rows, each over the other folds, so that a row's own click is not in its rate.

    Attributes:
        column: that holds the keys.
        keys: [size] int64, ascending.
        rates: [size + 1, folds] float32, standardised; the last row is of nulls.
    """

    column: str
    keys: np.ndarray
    rates: np.ndarray

    def encode(self, values: Values, fold: np.ndarray) -> np.ndarray:
        """Rates of rows, [n] float32.

        Args:
            values: [n] keys, all of them fitted on, or null.
            fold: [n] int64.

        Raises:
            ValueError: a row is in no fold; rows to predict take the encoder of all folds.
        """
        if (fold == NOT_IN_A_FOLD).any():
            raise ValueError("rows in no fold have no rate out of fold")
        codes, _, positions = KeyIndex(self.column, self.keys).find(values)
        return self.rates[np.append(positions, -1)[codes], fold]


def save_out_of_fold(rates: Mapping[str, OutOfFoldRates], folder: Path) -> None:
    """Writes rates by feature into an existing folder, for `load_out_of_fold`."""
    for feature, entry in rates.items():
        np.savez(folder / f"{feature}.npz", column=np.array(entry.column), keys=entry.keys, rates=entry.rates)


def load_out_of_fold(folder: Path) -> dict[str, OutOfFoldRates]:
    """Reads what `save_out_of_fold` wrote."""
    loaded = {}
    for path in sorted(folder.glob("*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            loaded[path.stem] = OutOfFoldRates(str(arrays["column"]), arrays["keys"], arrays["rates"])
    return loaded


def published_rate(counts: FoldCounts, least_views: int) -> Numerical:
    """clicks / views of a key; 0 below `least_views` views, for unseen keys and for null. Not standardised."""
    views, clicks = counts.views[:-1].sum(axis=1), counts.clicks[:-1].sum(axis=1)
    rates = np.where(views >= least_views, clicks / np.maximum(views, 1), 0.0)
    return Numerical(counts.column, KeyTable(counts.keys, rates, 0.0))


def log_views(counts: FoldCounts) -> Numerical:
    """ln(1 + views) of a key, standardised over the training rows; unseen keys and null have 0 views."""
    views = counts.views[:-1].sum(axis=1)
    weights = np.append(views, counts.views[-1].sum())
    mean, std = moments(np.log1p(np.append(views, 0)), weights)
    return Numerical(counts.column, KeyTable(counts.keys, views.astype(np.float64), 0.0), log=True, mean=mean, std=std)


def smoothed_rates(counts: FoldCounts, smoothing: float) -> tuple[Numerical, OutOfFoldRates]:
    """(clicks + smoothing * prior) / (views + smoothing) of a key, standardised.

    The prior is the click rate of all rows, which unseen keys and null have. Both views and prior are taken over
    all folds for rows to predict, and over the folds other than its own for a training row; mean and deviation
    are those of the latter.

    Args:
        counts: by fold.
        smoothing: weight of the prior, in views.
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
    """ln(1 + days), the training median where days are missing.

    Args:
        column: of whole days.
        days: how many training rows have each number of days, nulls not counted.
        standardised: whether to subtract the mean and divide by the deviation of the rows that have days.
    """
    counts = days.numbers.astype(np.int64)
    median = weighted_median(days.keys, counts)
    if not standardised:
        return Numerical(column, fill=median, log=True)
    mean, std = moments(np.log1p(days.keys), counts)
    return Numerical(column, fill=median, log=True, mean=mean, std=std)


def weighted_median(ascending: np.ndarray, counts: np.ndarray) -> float:
    """Exact median of values that occur so many times; 0 of nothing."""
    ends = np.cumsum(counts)
    if not len(ends) or not ends[-1]:
        return 0.0
    middle = [(ends[-1] - 1) // 2, ends[-1] // 2]
    return float(np.mean(ascending[np.searchsorted(ends, middle, side="right")]))


def moments(numbers: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Mean, and deviation with n - 1, of numbers that occur so many times.

    Without numbers the mean is 0. The deviation is 0 where there are too few numbers for one, or where it is no more
    than the rounding of numbers that are all the same.
    """
    total = int(counts.sum())
    mean = float((numbers * counts).sum() / total) if total else 0.0
    std = float(np.sqrt((counts * (numbers - mean) ** 2).sum() / (total - 1))) if total > 1 else 0.0
    return mean, std if std > ROUNDING * abs(mean) else 0.0


def _without_each_fold(counts: np.ndarray) -> np.ndarray:
    """[n, folds] to [n, folds + 1]: all but fold 0, all but fold 1, ..., all."""
    everything = counts.sum(axis=1, keepdims=True)
    return np.hstack([everything - counts, everything])
