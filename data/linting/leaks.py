"""Input features that give a label away, found on a sample of rows.

Half of the sampled rows, the even ones, give the mean label of every id; the odd ones, the held-out half, show what
these means are worth. An id that is in one row only has told nothing to any other row, so that it scores as chance.

Every feature is compared with every label, so a feature is compared with all labels at once: arrays are [labels, ...],
and its rows are reduced to counts per id (or per bin of numbers) before anything is sorted.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from data.loading.batch import PAD, Batch
from data.specification.feature_spec import Feature, FeatureSpec

LEAK_AUC = 0.99
LEAK_CORRELATION = 0.995
# Positives and negatives that the held-out half needs, or rows of a regression.
FEWEST_HELD_OUT = 10
BINS = 100  # of equally many rows, in which a numerical feature is looked at
PRIOR_ROWS = 10  # rows with the mean label that are added to those of every id
ROUNDING = 1e-6  # by which a measure that is computed for all labels at once may be off
HEADS = 16  # rows with the smallest and with the largest labels that are compared first


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
        codes: [rows, places] as `encode` gives them, of ids or of bins; bins are ordered as the numbers are.
        is_numerical: the numbers have an order.
    """

    name: str
    numbers: np.ndarray | None
    codes: np.ndarray
    is_numerical: bool = False


def find_leaks(
    spec: FeatureSpec, sample: Batch, on_feature: Callable[[int, int], None] = lambda done, of: None
) -> Iterator[Leak]:
    """Features that equal a label or the sample weight, or nearly determine a label, in a sample of rows.

    A label is looked at in its sample space, a feature by itself. "Nearly" is, on the held-out half,

    - for a binary label an AUC of at least LEAK_AUC; for a multiclass label that of its most frequent class against
      the others. The scores are a numerical feature's values, in either direction, and the mean label in bins of it;
      the mean label of an id; the mean of these over a list;
    - for a regression a Pearson correlation, of the same scores with the label, of at least LEAK_CORRELATION.

    What has fewer than FEWEST_HELD_OUT positives or negatives (rows of a regression) in the held-out half is only
    tried for equality.

    Args:
        spec: the specification.
        sample: the rows.
        on_feature: is called with the number of features done and that of all.
    """
    targets = [target for label in spec.labels if _varies((target := _target(spec, sample, label)).of_known)]
    groups = [group for group in (_Classes(targets), _Amounts(targets)) if group.targets]
    same = _Equality(targets)
    weight = spec.sample_weight if _varies(sample.weights) else None
    features = len(spec.onehot) + len(spec.multihot) + len(spec.numerical)
    for done, column in enumerate(_columns(spec, sample), start=1):
        found = {target.name: ("equal", 1.0) for target in same.of(column)}
        for group in groups:
            for target, value in group.told_by(column):
                found.setdefault(target.name, (group.measure, value))
        for target in targets:
            if target.name in found:
                yield Leak(column.name, target.name, *found[target.name], len(target.of_known))
        if weight is not None and _equals(column, sample.weights):
            yield Leak(column.name, weight.name, "equal", 1.0, len(sample.weights))
        on_feature(done, features)


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Share of the pairs of a positive and a negative row in which the positive has the larger score; a tie is a half.

    Args:
        scores: [rows] numbers.
        positive: [rows] bool; both values are among them.
    """
    return float(auc_of_groups(scores[np.newaxis], positive[np.newaxis] * 1.0, ~positive[np.newaxis] * 1.0)[0])


def auc_of_groups(scores: np.ndarray, positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """[labels] `auc` of rows that come in groups with one score each.

    Args:
        scores: [labels, groups] numbers.
        positives, negatives: [labels, groups] float64 rows of each group.
    """
    order = np.argsort(scores, axis=1)
    scores, positives, negatives = (np.take_along_axis(part, order, axis=1) for part in (scores, positives, negatives))
    begins = np.ones(scores.shape, bool)
    begins[:, 1:] = scores[:, 1:] != scores[:, :-1]
    up_to = np.cumsum(negatives, axis=1)
    below = np.maximum.accumulate(np.where(begins, up_to - negatives, 0.0), axis=1)
    ends = np.roll(begins, -1, axis=1)
    with_ties = np.minimum.accumulate(np.where(ends, up_to, np.inf)[:, ::-1], axis=1)[:, ::-1]
    return (positives * (below + with_ties)).sum(axis=1) / 2 / (positives.sum(axis=1) * up_to[:, -1])


def correlation_of_groups(scores: np.ndarray, sums: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """[labels] Pearson's correlation of scores and values, up to a factor of each label that does not depend on them.

    Args:
        scores: [labels, groups] numbers.
        sums: [labels, groups] float64 of the values of each group's rows; the values of a label sum to 0.
        rows: [labels, groups] float64 rows of each group.

    Returns:
        The covariances, times the rows, divided by the standard deviation of the scores, times the root of the rows;
        0 where the scores do not vary.
    """
    rows = np.broadcast_to(rows, scores.shape)
    used = rows > 0
    varies = np.where(used, scores, -np.inf).max(axis=1) > np.where(used, scores, np.inf).min(axis=1)
    centred = scores - (scores * rows).sum(axis=1, keepdims=True) / rows.sum(axis=1, keepdims=True)
    spread = np.sqrt((rows * centred**2).sum(axis=1))
    return np.divide((centred * sums).sum(axis=1), spread, out=np.zeros(len(scores)), where=varies & (spread > 0))


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
    """[rows, 1] int64 codes: the bin of each number, BINS of about equally many rows, in the order of the numbers.

    Equal numbers share a bin, and one that would fill several bins has a bin of its own.
    """
    order = np.argsort(numbers)
    ordered = numbers[order].astype(np.float64)
    places = np.linspace(0, len(ordered) - 1, BINS + 1)[1:-1]
    low, high = np.floor(places).astype(np.int64), np.ceil(places).astype(np.int64)
    edges, count = np.unique(ordered[low] + (places - low) * (ordered[high] - ordered[low]), return_counts=True)
    edges = np.sort(np.concatenate([edges, np.nextafter(edges[count > 1], -np.inf)]))
    ends = np.searchsorted(ordered, edges, side="right")
    codes = np.empty(len(ordered), np.int64)
    codes[order] = np.repeat(np.arange(len(edges) + 1), np.diff(ends, prepend=0, append=len(ordered)))
    return codes[:, np.newaxis]


class Sums:
    """Sums over the rows that share a code, for many labels.

    Args:
        values: [labels, rows] float64. Where all labels have the same, the sums are [1, codes].
    """

    def __init__(self, values: np.ndarray):
        values = values[:1] if len(values) and (values == values[:1]).all() else values
        self._labels = len(values)
        self._label, self._row = np.nonzero(values)
        weights = values[self._label, self._row]
        self._weights = None if (weights == 1).all() else weights

    def by_code(self, codes: np.ndarray, count: int) -> np.ndarray:
        """[labels, count] float64.

        Args:
            codes: [rows, places] int64 below `count`, or PAD.
            count: how many codes there are.
        """
        sums = np.zeros(self._labels * count)
        for place in codes.T:
            code = place[self._row]
            used = slice(None) if codes.shape[1] == 1 else code != PAD
            weights = None if self._weights is None else self._weights[used]
            sums += np.bincount((self._label * count + code)[used], weights, minlength=len(sums))
        return sums.reshape(self._labels, count)


def code_means(sums: np.ndarray, rows: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """[labels, codes] mean value of each code, to which PRIOR_ROWS rows with the mean of all are added.

    Args:
        sums: [labels, codes] of the values.
        rows: [labels, codes] how many they are.
        prior: [labels, 1] the mean of all.
    """
    return (sums + PRIOR_ROWS * prior) / (rows + PRIOR_ROWS)


def row_means(means: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """[labels, rows] the mean over each row's codes of `means`, [labels, codes].

    Args:
        means: of `code_means`.
        codes: [rows, places] int64 as `encode` gives them.
    """
    total = np.zeros((len(means), len(codes)))
    for place in codes.T:
        used = place != PAD
        total[:, used] += means[:, place[used]]
    return total / (codes != PAD).sum(axis=1)


@dataclass(frozen=True)
class _Target:
    """A label that features may tell.

    Attributes:
        label: the label.
        known: [rows] bool of the sample: those in which it counts.
        values: [rows] float64, 0 where it does not count.
    """

    label: Feature
    known: np.ndarray
    values: np.ndarray

    @property
    def name(self) -> str:
        """The label's."""
        return self.label.name

    @property
    def of_known(self) -> np.ndarray:
        """The values that count."""
        return self.values[self.known]


class _Group:
    """Labels that are measured in the same way.

    Args:
        targets: the labels that have enough rows for it.
        values: [labels, rows] float64 what is averaged per code, 0 where a label does not count.
    """

    measure: str
    least: float

    def __init__(self, targets: list[_Target], values: np.ndarray):
        self.targets = targets
        if not targets:
            return
        known = np.stack([target.known for target in targets])
        self._prior = (values[:, ::2].sum(axis=1) / known[:, ::2].sum(axis=1))[:, np.newaxis]
        self._fitted, self._fitted_rows = Sums(values[:, ::2]), Sums(known[:, ::2] * 1.0)
        self.known = known[:, 1::2] * 1.0
        self.held_out = self._prepared(values[:, 1::2])
        self._held_out, self._held_out_rows = Sums(self.held_out), Sums(self.known)

    def told_by(self, column: _Column) -> Iterator[tuple[_Target, float]]:
        """The labels that a feature tells, with the measure."""
        count = int(column.codes.max()) + 1
        fitted, held_out = column.codes[::2], column.codes[1::2]
        rows = self._fitted_rows.by_code(fitted, count)
        scores = code_means(self._fitted.by_code(fitted, count), rows, self._prior)
        if column.codes.shape[1] == 1:
            sums, rows = self._held_out.by_code(held_out, count), self._held_out_rows.by_code(held_out, count)
        else:
            scores, sums, rows = row_means(scores, held_out), self.held_out, self.known
        best = self._measured(scores, sums, rows)
        if column.is_numerical and column.numbers is not None:
            for index in np.flatnonzero(self._may_tell(column, sums, rows)):
                best[index] = max(best[index], self._of_numbers(column.numbers[1::2], index))
        for index in np.flatnonzero(best >= self.least):
            yield self.targets[index], float(best[index])

    def _prepared(self, held_out: np.ndarray) -> np.ndarray:
        """[labels, held-out rows] what the measure is taken of."""
        return held_out

    def _measured(self, scores: np.ndarray, sums: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """[labels] the measure of [labels, groups] scores and the sums and numbers of each group's rows."""
        raise NotImplementedError

    def _may_tell(self, column: _Column, sums: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """[labels] bool: which labels the numbers of a feature may tell; no other."""
        raise NotImplementedError

    def _of_numbers(self, numbers: np.ndarray, index: int) -> float:
        """The measure of a label with the numbers of a feature, in the better direction."""
        raise NotImplementedError


class _Classes(_Group):
    """Binary labels, and multiclass labels as their most frequent class against the others."""

    measure, least = "AUC", LEAK_AUC

    def __init__(self, targets: list[_Target]):
        chosen, positives = [], []
        for target in targets:
            if target.label.task != "regression":
                wanted = 1 if target.label.task == "binary" else _most_frequent(target.of_known)
                positive = target.known & (target.values == wanted)
                fewer = min(positive[1::2].sum(), (target.known & ~positive)[1::2].sum())
                if fewer >= FEWEST_HELD_OUT and target.known[::2].any():
                    chosen.append(target)
                    positives.append(positive)
        super().__init__(chosen, np.array(positives, np.float64))

    def _measured(self, scores: np.ndarray, sums: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return auc_of_groups(scores, sums, rows - sums)

    def _may_tell(self, column: _Column, sums: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Takes the pairs within a bin as they would be best, unless the bin holds one number only."""
        negatives = rows - sums
        below = np.cumsum(negatives, axis=1) - negatives
        ties = np.where(_holds_one_number(column), negatives / 2, negatives)
        pairs = sums.sum(axis=1) * negatives.sum(axis=1)
        rising = (sums * (below + ties)).sum(axis=1) / pairs
        falling = 1 - (sums * (below + negatives - ties)).sum(axis=1) / pairs
        return np.maximum(rising, falling) >= self.least - ROUNDING

    def _of_numbers(self, numbers: np.ndarray, index: int) -> float:
        known = self.known[index] > 0
        rising = auc(numbers[known], self.held_out[index][known] > 0)
        return max(rising, 1 - rising)


class _Amounts(_Group):
    """Regressions."""

    measure, least = "correlation", LEAK_CORRELATION

    def __init__(self, targets: list[_Target]):
        chosen = [
            target
            for target in targets
            if target.label.task == "regression"
            and target.known[1::2].sum() >= FEWEST_HELD_OUT
            and target.known[::2].any()
        ]
        super().__init__(chosen, np.array([target.values for target in chosen]))

    def _prepared(self, held_out: np.ndarray) -> np.ndarray:
        """Values of mean 0 and variance 1, of all rows together."""
        means = held_out.sum(axis=1, keepdims=True) / self.known.sum(axis=1, keepdims=True)
        centred = (held_out - means) * self.known
        spread = np.sqrt((centred**2).sum(axis=1, keepdims=True))
        return np.divide(centred, spread, out=np.zeros(centred.shape), where=spread > 0)

    def _measured(self, scores: np.ndarray, sums: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return correlation_of_groups(scores, sums, rows)

    def _may_tell(self, column: _Column, sums: np.ndarray, rows: np.ndarray) -> np.ndarray:
        numbers = np.asarray(column.numbers)[1::2].astype(np.float64)
        numbers = numbers - numbers.mean()
        rows_known, first, second = (self.known @ part for part in (np.ones(len(numbers)), numbers, numbers**2))
        spread = np.sqrt(np.maximum(second - first**2 / rows_known, 0))
        return np.abs(self.held_out @ numbers) >= (self.least - ROUNDING) * spread

    def _of_numbers(self, numbers: np.ndarray, index: int) -> float:
        known = self.known[index] > 0
        scores = numbers[known].astype(np.float64)[np.newaxis]
        rising = correlation_of_groups(scores, self.held_out[index][known][np.newaxis], np.ones(scores.shape))
        return abs(float(rising[0]))


class _Equality:
    """Finds labels whose known values a feature equals.

    Those rows are compared first in which labels differ most: hardly a feature equals a label there and is another.

    Args:
        targets: the labels.
    """

    def __init__(self, targets: list[_Target]):
        self._targets = targets
        heads = [self._heads(target) for target in targets]
        self._rows = np.array(heads, np.int64).reshape(len(targets), 2 * HEADS)
        self._values = np.array([target.values[rows] for target, rows in zip(targets, heads, strict=True)])

    def of(self, column: _Column) -> Iterator[_Target]:
        """The labels that a feature equals."""
        if column.numbers is None or not self._targets:
            return
        for index in np.flatnonzero((column.numbers[self._rows] == self._values).all(axis=1)):
            target = self._targets[index]
            if np.array_equal(column.numbers[target.known], target.of_known):
                yield target

    @staticmethod
    def _heads(target: _Target) -> np.ndarray:
        rows = np.flatnonzero(target.known)
        rows = rows[np.argsort(target.values[rows], kind="stable")]
        return np.concatenate([np.resize(rows[:HEADS], HEADS), np.resize(rows[-HEADS:], HEADS)])


def _target(spec: FeatureSpec, sample: Batch, label: Feature) -> _Target:
    columns = {feature.name: values for feature, values in zip(spec.labels, sample.labels.T, strict=True)}
    known = ~np.isnan(columns[label.name])
    if label.given is not None:
        known &= columns[label.given] == 1
    # Sums of float32 values can exceed what float32 holds.
    return _Target(label, known, np.where(known, columns[label.name], 0).astype(np.float64))


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


def _holds_one_number(column: _Column) -> np.ndarray:
    """[codes] bool: whether all rows with a code have the same number."""
    numbers, codes = np.asarray(column.numbers), column.codes[:, 0]
    one_of = np.zeros(int(codes.max()) + 1, numbers.dtype)
    one_of[codes] = numbers
    return np.bincount(codes, numbers != one_of[codes]) == 0


def _equals(column: _Column, values: np.ndarray) -> bool:
    return column.numbers is not None and np.array_equal(column.numbers, values)


def _varies(values: np.ndarray) -> bool:
    return len(values) > 0 and bool((values != values[0]).any())


def _most_frequent(values: np.ndarray) -> float:
    levels, counts = np.unique(values, return_counts=True)
    return float(levels[np.argmax(counts)])
