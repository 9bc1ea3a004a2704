"""Input features that give a label away, found on a sample of rows.

Half of the sampled rows, the even ones, give the mean label of every id; the odd ones, the held-out half, show what
these means are worth. An id that is in one row only has told nothing to any other row, so that it scores as chance.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from data.loading.batch import PAD, Batch
from data.specification.feature_spec import Feature, FeatureSpec

LEAK_AUC = 0.99
LEAK_CORRELATION = 0.995
# Positives and negatives that the held-out half needs, or rows of a regression.
FEWEST_HELD_OUT = 10
BINS = 100  # of equally many rows, in which a numerical feature is looked at
PRIOR_ROWS = 10  # rows with the mean label that are added to those of every id


@dataclass(frozen=True)
class Leak:
    """A feature that tells a label, or the sample weight.

    Attributes:
        feature: name of the input feature.
        label: name of what it tells.
        measure: "AUC" (see `auc`), "correlation" (Pearson's), or "equal": the share of rows with the same value.
        value: of the measure.
        rows: of the sample that were looked at.
    """

    feature: str
    label: str
    measure: str
    value: float
    rows: int


@dataclass(frozen=True)
class _Column:
    """An input feature's values.

    Attributes:
        name: the feature's.
        numbers: [rows] its numbers, or the ids of a one-hot feature; None of a multi-hot one.
        codes: [rows, places] as `encode` gives them, of ids or of bins.
        is_numerical: the numbers have an order.
    """

    name: str
    numbers: np.ndarray | None
    codes: np.ndarray
    is_numerical: bool = False

    def at(self, rows: np.ndarray) -> "_Column":
        """The same of some rows, [all rows] bool."""
        return replace(self, numbers=None if self.numbers is None else self.numbers[rows], codes=self.codes[rows])

    def equals(self, values: np.ndarray) -> bool:
        """Whether it holds these values, [rows]."""
        return self.numbers is not None and np.array_equal(self.numbers, values)


def find_leaks(spec: FeatureSpec, sample: Batch) -> Iterator[Leak]:
    """Features that equal a label or the sample weight, or nearly determine a label, in a sample of rows.

    A label is looked at in its sample space, a feature by itself. "Nearly" is, on the held-out half,

    - for a binary label an AUC of at least LEAK_AUC; for a multiclass label that of its most frequent class against
      the others. The scores are a numerical feature's values, in either direction, and the mean label in bins of it;
      the mean label of an id; the mean of these over a list;
    - for a regression a Pearson correlation, of the same scores with the label, of at least LEAK_CORRELATION.

    What has fewer than FEWEST_HELD_OUT positives or negatives (rows of a regression) in the held-out half is only
    tried for equality.
    """
    targets = list(_targets(spec, sample))
    weight = spec.sample_weight if _varies(sample.weights) else None
    for column in _columns(spec, sample):
        for label, rows, values in targets:
            if leak := _leak(column.at(rows), label, values):
                yield leak
        if weight is not None and column.equals(sample.weights):
            yield Leak(column.name, weight.name, "equal", 1.0, len(sample.weights))


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Share of the pairs of a positive and a negative row in which the positive has the larger score; a tie is a half.

    Args:
        scores: [rows] numbers.
        positive: [rows] bool; both values are among them.
    """
    levels, level = np.unique(scores, return_inverse=True)
    positives = np.bincount(level[positive], minlength=len(levels)).astype(np.float64)
    negatives = np.bincount(level[~positive], minlength=len(levels)).astype(np.float64)
    below = np.cumsum(negatives) - negatives
    return float(positives @ (below + negatives / 2) / (positives.sum() * negatives.sum()))


def encode(ids: np.ndarray) -> np.ndarray:
    """[rows, places] int64 codes from 0 on, one for each id; PAD stays PAD, but an empty list gets a code of its own.

    Args:
        ids: [rows, places] integers, PAD where there is none.
    """
    used = ids != PAD
    used[:, 0] |= ~used.any(axis=1)
    codes = np.full(ids.shape, PAD, np.int64)
    codes[used] = np.unique(ids[used], return_inverse=True)[1]
    return codes


def bins_of(numbers: np.ndarray) -> np.ndarray:
    """[rows, 1] int64 codes: the bin of each number, BINS of about equally many rows; equal numbers share a bin."""
    edges = np.quantile(numbers.astype(np.float64), np.linspace(0, 1, BINS + 1)[1:-1])
    return np.searchsorted(np.unique(edges), numbers)[:, np.newaxis]


def means_by_code(codes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """[odd rows] float64: the mean over a row's codes of the mean value that the even rows with that code have.

    The mean of a code includes PRIOR_ROWS rows with the mean of all.

    Args:
        codes: [rows, places] int64 as `encode` gives them.
        values: [rows] numbers.
    """
    used = codes != PAD
    fitted, count = codes[::2][used[::2]], int(codes.max()) + 1
    rows_of_code = np.bincount(fitted, minlength=count)
    sums = np.bincount(fitted, np.repeat(values[::2], used[::2].sum(axis=1)), minlength=count)
    means = (sums + PRIOR_ROWS * values[::2].mean()) / (rows_of_code + PRIOR_ROWS)
    held_out = used[1::2]
    return (means[codes[1::2]] * held_out).sum(axis=1) / held_out.sum(axis=1)


def _targets(spec: FeatureSpec, sample: Batch) -> Iterator[tuple[Feature, np.ndarray, np.ndarray]]:
    """Every label with the rows that count for it, [all rows] bool, and its values in them, [rows] float64."""
    columns = {label.name: values for label, values in zip(spec.labels, sample.labels.T, strict=True)}
    for label in spec.labels:
        values = columns[label.name]
        rows = ~np.isnan(values)
        if label.given is not None:
            rows &= columns[label.given] == 1
        # Sums of float32 values can exceed what float32 holds.
        yield label, rows, values[rows].astype(np.float64)


def _columns(spec: FeatureSpec, sample: Batch) -> Iterator[_Column]:
    for ids, feature in zip(sample.onehot.T, spec.onehot, strict=True):
        yield _Column(feature.name, ids, encode(ids[:, np.newaxis]))
    place = 0
    for feature in spec.multihot:
        width = feature.max_hotness or 0
        yield _Column(feature.name, None, encode(sample.multihot[:, place : place + width]))
        place += width
    for numbers, feature in zip(sample.numerical.T, spec.numerical, strict=True):
        yield _Column(feature.name, numbers, bins_of(numbers), is_numerical=True)


def _leak(column: _Column, label: Feature, labels: np.ndarray) -> Leak | None:
    """Of a column and a label over the same rows, all of which count for the label; [rows] float64."""
    if not _varies(labels):
        return None
    if column.equals(labels):
        return Leak(column.name, label.name, "equal", 1.0, len(labels))
    if label.task == "regression":
        measure, least = "correlation", LEAK_CORRELATION
        value = _best(column, labels, _correlation) if len(labels) // 2 >= FEWEST_HELD_OUT else 0.0
    else:
        measure, least = "AUC", LEAK_AUC
        positive = labels == (1 if label.task == "binary" else _most_frequent(labels))
        fewer = min(positive[1::2].sum(), (~positive[1::2]).sum())
        value = _best(column, positive, auc) if fewer >= FEWEST_HELD_OUT else 0.0
    return Leak(column.name, label.name, measure, value, len(labels)) if value >= least else None


def _best(column: _Column, values: np.ndarray, measure: Callable[[np.ndarray, np.ndarray], float]) -> float:
    """The largest measure of a column's scores and the values of the held-out half."""
    scores = [means_by_code(column.codes, values)]
    if column.is_numerical and column.numbers is not None:
        own = column.numbers[1::2]
        scores += [own, -own]
    return max(measure(score, values[1::2]) for score in scores)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's, of [rows] numbers and [rows] float64; 0 where one of them does not vary."""
    if not (_varies(first) and _varies(second)):
        return 0.0
    return float(np.corrcoef(first.astype(np.float64), second)[0, 1])


def _varies(values: np.ndarray) -> bool:
    return len(values) > 0 and bool((values != values[0]).any())


def _most_frequent(values: np.ndarray) -> float:
    levels, counts = np.unique(values, return_counts=True)
    return float(levels[np.argmax(counts)])
