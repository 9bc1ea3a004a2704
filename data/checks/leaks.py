"""Finds input features that leak a label, on a sample of rows.

The mean label of every id is computed on half of the sampled rows (the even ones) and evaluated on the held-out half
(the odd ones). An id that occurs in a single row therefore predicts nothing and scores like chance.

Every feature is compared with every label, so all labels are processed at once: arrays are [labels, ...], and rows are
reduced to counts per id (or per bin of numbers) before anything is sorted.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from data.loading.batch import PAD, Batch
from data.spec.feature_spec import FeatureSpec
from data.spec.features import Feature

LEAK_AUC = 0.99
LEAK_CORRELATION = 0.995
# Minimum number of positives and of negatives (for a regression: of rows) in the held-out half.
MIN_HELD_OUT = 10
BINS = 100  # bins of a numerical feature, of about equally many rows each
PRIOR_ROWS = 10  # pseudo-rows with the overall mean label, added to the rows of every id
ROUNDING = 1e-6  # tolerance for rounding errors in measures computed for all labels at once
HEADS = 16  # rows with the smallest and with the largest labels, which are compared first


@dataclass(frozen=True)
class Leak:
    """A feature that determines, or nearly determines, a label or the sample weight.

    Attributes:
        feature: name of the input feature.
        label: name of the label or of the sample weight.
        measure: "AUC" (see `auc`), "correlation" (Pearson's), or "equal" (the share of rows with the same value).
        value: value of the measure.
        rows: number of sampled rows in which the label counts.
    """

    feature: str
    label: str
    measure: str
    value: float
    rows: int


@dataclass(frozen=True)
class _Candidate:
    """The values of an input feature.

    Attributes:
        name: name of the feature.
        numbers: [rows] values of a numerical feature, or ids of a one-hot feature; None for a multi-hot feature.
        codes: [rows, width] int64 codes of the ids (see `encode`) or of the bins, which are ordered by value; the
            width is that of the longest list of a multi-hot feature, otherwise 1.
        is_numerical: whether the order of the numbers has a meaning.
    """

    name: str
    numbers: np.ndarray | None
    codes: np.ndarray
    is_numerical: bool = False


def find_leaks(
    spec: FeatureSpec, sample: Batch, on_feature: Callable[[int, int], None] = lambda done, of: None
) -> Iterator[Leak]:
    """Yield the features that equal a label or the sample weight, or nearly determine a label, in a sample of rows.

    Every label is considered in its sample space, and every feature on its own. A feature nearly determines a label if,
    on the held-out half,

    - the AUC of a binary label is at least LEAK_AUC (for a multiclass label, the AUC of its most frequent class against
      the others). The scores are the values of a numerical feature, in either direction, and the mean label per bin;
      the mean label per id of a one-hot feature; the mean of these over a list of ids;
    - the Pearson correlation of the same scores with a regression label is at least LEAK_CORRELATION.

    Numbers in lists and vectors are not compared.

    A label with fewer than MIN_HELD_OUT positives or negatives (for a regression: rows) in the held-out half is only
    tested for equality.

    Args:
        spec: specification of the dataset.
        sample: sampled rows.
        on_feature: called after each feature with the number done and the total.
    """
    targets = [target for label in spec.labels if _varies((target := _target(spec, sample, label)).of_known)]
    groups = [group for group in (_Classes(targets), _Amounts(targets)) if group.targets]
    same = _Equality(targets)
    weight = spec.sample_weight if _varies(sample.weights) else None
    features = len(spec.onehot) + len(spec.id_lists) + len(spec.numerical)
    for done, column in enumerate(_columns(spec, sample), start=1):
        found = {target.name: ("equal", 1.0) for target in same.of(column)}
        for group in groups:
            for target, value in group.find(column):
                found.setdefault(target.name, (group.measure, value))
        for target in targets:
            if target.name in found:
                yield Leak(column.name, target.name, *found[target.name], len(target.of_known))
        if weight is not None and _equals(column, sample.weights):
            yield Leak(column.name, weight.name, "equal", 1.0, len(sample.weights))
        on_feature(done, features)


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Return the area under the ROC curve.

    It is the share of pairs of a positive and a negative row in which the positive row has the larger score; a tie
    counts as one half.

    Args:
        scores: [rows] scores.
        positive: [rows] bool, with at least one row of either value.
    """
    return float(auc_of_groups(scores[np.newaxis], positive[np.newaxis] * 1.0, ~positive[np.newaxis] * 1.0)[0])


def auc_of_groups(scores: np.ndarray, positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Return the `auc` of each label, [labels] float64, for groups of rows that share a score.

    Args:
        scores: [labels, groups] score of each group.
        positives: [labels, groups] float64 number of positive rows in each group.
        negatives: [labels, groups] float64 number of negative rows in each group.
    """
    order = np.argsort(scores, axis=1)
    scores, positives, negatives = (np.take_along_axis(part, order, axis=1) for part in (scores, positives, negatives))
    # Groups with equal scores are ties: find where each run of equal scores begins and ends.
    begins = np.ones(scores.shape, bool)
    begins[:, 1:] = scores[:, 1:] != scores[:, :-1]
    # Negatives below each run, and up to its end, spread over the run by running maxima and minima. A pair below counts
    # 1 and a tie 1/2, so each positive of the run counts (below + with_ties) / 2.
    up_to = np.cumsum(negatives, axis=1)
    below = np.maximum.accumulate(np.where(begins, up_to - negatives, 0.0), axis=1)
    ends = np.roll(begins, -1, axis=1)
    with_ties = np.minimum.accumulate(np.where(ends, up_to, np.inf)[:, ::-1], axis=1)[:, ::-1]
    return (positives * (below + with_ties)).sum(axis=1) / 2 / (positives.sum(axis=1) * up_to[:, -1])


def correlation_of_groups(scores: np.ndarray, sums: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the Pearson correlation of scores and centered values, up to a factor per label.

    Args:
        scores: [labels, groups] score of each group.
        sums: [labels, groups] float64 sum of the values of each group's rows; the values of a label sum to 0.
        rows: [labels, groups] float64 number of rows in each group.

    Returns:
        [labels] float64: the dot product of centered scores and values over all rows, divided by the norm of the
        centered scores; 0 if the scores are constant. This is the correlation if the values have norm 1.
    """
    rows = np.broadcast_to(rows, scores.shape)
    used = rows > 0
    # Compared exactly: with rounding errors, the spread of constant scores can exceed 0.
    varies = np.where(used, scores, -np.inf).max(axis=1) > np.where(used, scores, np.inf).min(axis=1)
    centered = scores - (scores * rows).sum(axis=1, keepdims=True) / rows.sum(axis=1, keepdims=True)
    spread = np.sqrt((rows * centered**2).sum(axis=1))
    return np.divide((centered * sums).sum(axis=1), spread, out=np.zeros(len(scores)), where=varies & (spread > 0))


def encode(ids: np.ndarray) -> np.ndarray:
    """Assign codes from 0 to the distinct ids; return [rows, width] int64 codes.

    PAD stays PAD, except at the start of an empty list, so that empty lists get a code of their own.

    Args:
        ids: [rows, width] integer ids, PAD after the end of a list.
    """
    used = ids != PAD
    used[:, 0] |= ~used.any(axis=1)
    codes = np.full(ids.shape, PAD, np.int64)
    codes[used] = np.unique(ids[used], return_inverse=True)[1]
    return codes


def bins_of(numbers: np.ndarray) -> np.ndarray:
    """Sort numbers into BINS bins of about equally many rows; return the bin of each number, [rows, 1] int64.

    Bins are ordered by value. Equal numbers share a bin, and a number that would fill several bins has its own.
    """
    order = np.argsort(numbers)
    ordered = numbers[order].astype(np.float64)
    # Quantiles by linear interpolation. An edge that occurs several times is a number that fills several bins: the
    # additional edge just below it separates it from smaller numbers.
    positions = np.linspace(0, len(ordered) - 1, BINS + 1)[1:-1]
    low, high = np.floor(positions).astype(np.int64), np.ceil(positions).astype(np.int64)
    edges, count = np.unique(ordered[low] + (positions - low) * (ordered[high] - ordered[low]), return_counts=True)
    edges = np.sort(np.concatenate([edges, np.nextafter(edges[count > 1], -np.inf)]))
    ends = np.searchsorted(ordered, edges, side="right")
    codes = np.empty(len(ordered), np.int64)
    codes[order] = np.repeat(np.arange(len(edges) + 1), np.diff(ends, prepend=0, append=len(ordered)))
    return codes[:, np.newaxis]


class Sums:
    """Sums values over the rows that share a code, for many labels at once.

    Args:
        values: [labels, rows] float64. If all labels have the same values, sums are computed once, as [1, codes].
    """

    def __init__(self, values: np.ndarray):
        values = values[:1] if len(values) and (values == values[:1]).all() else values
        self._labels = len(values)
        # Zeros add nothing, and most values of rare labels are zeros: keep the others only.
        self._label, self._row = np.nonzero(values)
        weights = values[self._label, self._row]
        self._weights = None if (weights == 1).all() else weights

    def by_code(self, codes: np.ndarray, count: int) -> np.ndarray:
        """Return the sum of the values per code, [labels, count] float64.

        Args:
            codes: [rows, width] int64 codes below `count`, or PAD.
            count: number of codes.
        """
        sums = np.zeros(self._labels * count)
        for column in codes.T:
            code = column[self._row]
            used = slice(None) if codes.shape[1] == 1 else code != PAD
            weights = None if self._weights is None else self._weights[used]
            sums += np.bincount((self._label * count + code)[used], weights, minlength=len(sums))
        return sums.reshape(self._labels, count)


def code_means(sums: np.ndarray, rows: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Return the mean value per code, [labels, codes], smoothed by PRIOR_ROWS pseudo-rows with the overall mean.

    Args:
        sums: [labels, codes] sum of the values per code.
        rows: [labels, codes] number of rows per code.
        prior: [labels, 1] overall mean.
    """
    return (sums + PRIOR_ROWS * prior) / (rows + PRIOR_ROWS)


def row_means(means: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Average the means of each row's codes; return [labels, rows] float64.

    Args:
        means: [labels, codes] mean per code, from `code_means`.
        codes: [rows, width] int64 codes, from `encode`.
    """
    total = np.zeros((len(means), len(codes)))
    for column in codes.T:
        used = column != PAD
        total[:, used] += means[:, column[used]]
    return total / (codes != PAD).sum(axis=1)


@dataclass(frozen=True)
class _LabelValues:
    """A label that features are compared with.

    Attributes:
        label: specification of the label.
        known: [rows] bool; True in rows of the sample where the label is known and in its sample space.
        values: [rows] float64 values of the label, 0 where `known` is False.
    """

    label: Feature
    known: np.ndarray
    values: np.ndarray

    @property
    def name(self) -> str:
        """Name of the label."""
        return self.label.name

    @property
    def of_known(self) -> np.ndarray:
        """Values of the label in the rows where it is known."""
        return self.values[self.known]


class _Group:
    """A group of labels with the same measure.

    Args:
        targets: labels with enough rows for the measure.
        values: [labels, rows] float64 values to average per code, 0 where a label is not known.
    """

    measure: str
    least: float

    def __init__(self, targets: list[_LabelValues], values: np.ndarray):
        self.targets = targets
        if not targets:
            return
        known = np.stack([target.known for target in targets])
        self._prior = (values[:, ::2].sum(axis=1) / known[:, ::2].sum(axis=1))[:, np.newaxis]
        self._fitted, self._fitted_rows = Sums(values[:, ::2]), Sums(known[:, ::2] * 1.0)
        self.known = known[:, 1::2] * 1.0
        self.held_out = self._prepared(values[:, 1::2])
        self._held_out, self._held_out_rows = Sums(self.held_out), Sums(self.known)

    def find(self, column: _Candidate) -> Iterator[tuple[_LabelValues, float]]:
        """Yield the labels that a feature nearly determines, with the value of the measure."""
        count = int(column.codes.max()) + 1
        fitted, held_out = column.codes[::2], column.codes[1::2]
        rows = self._fitted_rows.by_code(fitted, count)
        scores = code_means(self._fitted.by_code(fitted, count), rows, self._prior)
        # With one code per row, rows of the same code share a score and are grouped. Lists have a score per row.
        if column.codes.shape[1] == 1:
            sums, rows = self._held_out.by_code(held_out, count), self._held_out_rows.by_code(held_out, count)
        else:
            scores, sums, rows = row_means(scores, held_out), self.held_out, self.known
        best = self._measured(scores, sums, rows)
        # Numbers as scores, without bins: slow (AUC sorts all rows), so only for labels that pass a cheap test.
        if column.is_numerical and column.numbers is not None:
            for index in np.flatnonzero(self._may_determine(column, sums, rows)):
                best[index] = max(best[index], self._of_numbers(column.numbers[1::2], index))
        for index in np.flatnonzero(best >= self.least):
            yield self.targets[index], float(best[index])

    def _prepared(self, held_out: np.ndarray) -> np.ndarray:
        """Prepare the values of the held-out rows, [labels, rows], for the measure."""
        return held_out

    def _measured(self, scores: np.ndarray, sums: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the measure of each label, [labels].

        Args:
            scores: [labels, groups] score of each group of rows.
            sums: [labels, groups] sum of the prepared values in each group.
            rows: [labels, groups] number of rows in each group.
        """
        raise NotImplementedError

    def _may_determine(self, column: _Candidate, sums: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return which labels the numbers of a feature may reach the threshold for, [labels] bool.

        False is certain, True is not.
        """
        raise NotImplementedError

    def _of_numbers(self, numbers: np.ndarray, index: int) -> float:
        """Return the measure of a label with a feature's numbers as scores, in the better of both directions."""
        raise NotImplementedError


class _Classes(_Group):
    """Binary labels, and multiclass labels as their most frequent class against the others, measured by AUC."""

    measure, least = "AUC", LEAK_AUC

    def __init__(self, targets: list[_LabelValues]):
        chosen, positives = [], []
        for target in targets:
            if not target.label.is_number:
                wanted = 1 if target.label.is_binary else _most_frequent(target.of_known)
                positive = target.known & (target.values == wanted)
                fewer = min(positive[1::2].sum(), (target.known & ~positive)[1::2].sum())
                if fewer >= MIN_HELD_OUT and target.known[::2].any():
                    chosen.append(target)
                    positives.append(positive)
        super().__init__(chosen, np.array(positives, np.float64))

    def _measured(self, scores: np.ndarray, sums: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return auc_of_groups(scores, sums, rows - sums)

    def _may_determine(self, column: _Candidate, sums: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Bound the AUC from above: pairs within a bin count as correctly ordered, or as ties if it has one number."""
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
    """Regression labels, measured by Pearson correlation."""

    measure, least = "correlation", LEAK_CORRELATION

    def __init__(self, targets: list[_LabelValues]):
        chosen = [
            target
            for target in targets
            if target.label.is_number and target.known[1::2].sum() >= MIN_HELD_OUT and target.known[::2].any()
        ]
        super().__init__(chosen, np.array([target.values for target in chosen]))

    def _prepared(self, held_out: np.ndarray) -> np.ndarray:
        """Center the values of each label over its known rows, and scale them to norm 1."""
        means = held_out.sum(axis=1, keepdims=True) / self.known.sum(axis=1, keepdims=True)
        centered = (held_out - means) * self.known
        spread = np.sqrt((centered**2).sum(axis=1, keepdims=True))
        return np.divide(centered, spread, out=np.zeros(centered.shape), where=spread > 0)

    def _measured(self, scores: np.ndarray, sums: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return correlation_of_groups(scores, sums, rows)

    def _may_determine(self, column: _Candidate, sums: np.ndarray, rows: np.ndarray) -> np.ndarray:
        # The correlation itself, by sums over rows for all labels at once. Centering the numbers first reduces
        # cancellation in the difference of squares.
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
    """Finds labels whose known values equal a feature.

    The rows with the most extreme labels are compared first, which rules out nearly every feature that differs from a
    label.

    Args:
        targets: labels to compare with.
    """

    def __init__(self, targets: list[_LabelValues]):
        self._targets = targets
        heads = [self._heads(target) for target in targets]
        self._rows = np.array(heads, np.int64).reshape(len(targets), 2 * HEADS)
        self._values = np.array([target.values[rows] for target, rows in zip(targets, heads, strict=True)])

    def of(self, column: _Candidate) -> Iterator[_LabelValues]:
        """Yield the labels that a feature equals."""
        if column.numbers is None or not self._targets:
            return
        for index in np.flatnonzero((column.numbers[self._rows] == self._values).all(axis=1)):
            target = self._targets[index]
            if np.array_equal(column.numbers[target.known], target.of_known):
                yield target

    @staticmethod
    def _heads(target: _LabelValues) -> np.ndarray:
        """Return the rows with the HEADS smallest and the HEADS largest labels, repeated if there are fewer."""
        rows = np.flatnonzero(target.known)
        rows = rows[np.argsort(target.values[rows], kind="stable")]
        return np.concatenate([np.resize(rows[:HEADS], HEADS), np.resize(rows[-HEADS:], HEADS)])


def _target(spec: FeatureSpec, sample: Batch, label: Feature) -> _LabelValues:
    columns = {feature.name: values for feature, values in zip(spec.labels, sample.labels.T, strict=True)}
    known = ~np.isnan(columns[label.name])
    if label.given is not None:
        known &= columns[label.given] == 1
    # float64, since sums of float32 values can overflow float32.
    return _LabelValues(label, known, np.where(known, columns[label.name], 0).astype(np.float64))


def _columns(spec: FeatureSpec, sample: Batch) -> Iterator[_Candidate]:
    for ids, feature in zip(sample.onehot.T, spec.onehot, strict=True):
        yield _Candidate(feature.name, ids, encode(ids[:, np.newaxis]))
    for column, feature in enumerate(spec.id_lists):
        lists = sample.id_lists.select([column])
        longest = max(1, int(lists.lengths.max(initial=0)))
        yield _Candidate(feature.name, None, encode(lists.padded([longest], PAD)))
    for numbers, feature in zip(sample.numerical.T, spec.numerical, strict=True):
        yield _Candidate(feature.name, numbers, bins_of(numbers), is_numerical=True)


def _holds_one_number(column: _Candidate) -> np.ndarray:
    """Return whether all rows with a code have the same number, [codes] bool."""
    numbers, codes = np.asarray(column.numbers), column.codes[:, 0]
    one_of = np.zeros(int(codes.max()) + 1, numbers.dtype)
    one_of[codes] = numbers
    return np.bincount(codes, numbers != one_of[codes]) == 0


def _equals(column: _Candidate, values: np.ndarray) -> bool:
    return column.numbers is not None and np.array_equal(column.numbers, values)


def _varies(values: np.ndarray) -> bool:
    return len(values) > 0 and bool((values != values[0]).any())


def _most_frequent(values: np.ndarray) -> float:
    levels, counts = np.unique(values, return_counts=True)
    return float(levels[np.argmax(counts)])
