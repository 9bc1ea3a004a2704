"""Fit the encoders of a raw specification on the training rows, partition by partition.

A `Fitter` turns each partition into a state, merges states, and makes an encoder of the last one. The encoder does not
depend on the partitions or on the order of merging, to the last bit: counts are integers, sums are exact
(`data.encoding.exact_sums`), medians are exact (`data.encoding.order_statistics`), and ties are broken by value.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.encoding.counting import KeyCounts, group_keys
from data.encoding.earlier import Earlier, encoder_name
from data.encoding.encoders import (
    CLIP,
    FILL,
    LOG1P,
    MINMAX,
    NULL_ID,
    SCALE,
    BucketizedIds,
    CrossedIds,
    CrossInput,
    Encoder,
    HashedIds,
    IdentityIds,
    MissingIndicator,
    Numerical,
    Step,
    TimestampIds,
    Vocabulary,
    apply_steps,
    cross_inputs,
)
from data.encoding.exact_sums import LARGEST, GroupSums, Moments
from data.encoding.growth import Growth
from data.encoding.hashing import buckets
from data.encoding.keys import KeyTable, as_arrow, as_numbers, coded_keys, kept_index
from data.encoding.order_statistics import SortedRuns
from data.encoding.splits import FOLD, draw
from data.encoding.staged_columns import ROW, finished
from data.errors import DataError
from data.spec.features import NUMERICAL
from data.spec.raw.spec import (
    BoundariesRule,
    CrossRule,
    HashRule,
    IdentityRule,
    KeepRule,
    LabelMapRule,
    NumberRule,
    NumberStep,
    QuantilesRule,
    RawFeature,
    RawSpec,
    SharedVocabularyRule,
    TargetRule,
    ThresholdRule,
    TimestampRule,
    VocabularyRule,
)

STANDARDIZE, MEDIAN = "standardize", "median"
# A deviation below this share of the mean is the rounding error of equal numbers.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Scratch:
    """Where the state of a fitter goes if it does not fit into memory.

    Attributes:
        folder: existing folder.
        budget: bytes of a state to keep in memory.
    """

    folder: Path
    budget: int = 2**26


class Fitter(ABC):
    """Fits an encoder. States are plain data that can be sent to other processes with the same scratch folder."""

    @abstractmethod
    def part(self, table: pa.Table) -> Any:
        """Return the state of a partition of staged training rows.

        Raises:
            DataError: if a value cannot be encoded.
        """

    @abstractmethod
    def merge(self, states: Sequence[Any]) -> Any:
        """Return the state of several partitions, given the states of at least one."""

    @abstractmethod
    def finish(self, state: Any) -> Any:
        """Return the encoder, given the state of all partitions.

        Raises:
            DataError: if there is nothing to fit on.
        """


class FittedFeatures:
    """The encoders of a specification while they are fitted, in as many passes as crosses of encoded features need.

    Args:
        spec: the raw specification.
        encoders: encoders of an earlier fit, by feature name.
        earlier: encoders of an earlier dataset, which those that are fitted continue, or None.

    Attributes:
        encoders: encoders by feature name, including features that rules add.
        out_of_fold: means for training rows, by the name of the feature with target statistics that were fitted on
            these rows.
    """

    def __init__(
        self, spec: RawSpec, encoders: Mapping[str, Encoder] | None = None, earlier: Earlier | None = None
    ) -> None:
        self._spec, self._earlier = spec, earlier
        self._continued = earlier.continued(spec) if earlier else frozenset[str]()
        self.encoders: dict[str, Encoder] = dict(encoders or {})
        self.out_of_fold: dict[str, OutOfFoldMeans] = {}

    def __getstate__(self) -> dict[str, Any]:
        # The earlier encoders are needed only where the fit was started.
        return {**self.__dict__, "_earlier": None}

    @property
    def names(self) -> list[str]:
        """Names of all features that get an encoder, in the order of the specification."""
        names: list[str] = []
        for name, raw in self._spec.features.items():
            if isinstance(raw.rule, TargetRule):
                names += [output for output in (raw.rule.mean, raw.rule.count) if output is not None]
            elif _has_encoder(raw, self._spec):
                names.append(name)
            if isinstance(raw.rule, NumberRule) and raw.rule.indicator is not None:
                names.append(raw.rule.indicator)
        return names

    @property
    def inputs(self) -> list[str]:
        """Names of the staged columns that fitters and encoders read; labels are read by fitters only."""
        labels = [raw.rule.label for raw in self._spec.features.values() if isinstance(raw.rule, TargetRule)]
        fitted = [] if self.encoders else [finished(label) for label in dict.fromkeys(labels)]
        return [*self._spec.readings, ROW, *fitted]

    def fitters(self, scratch: Scratch) -> dict[str, Fitter]:
        """Return the fitters of features that have no encoder yet and can be fitted in the next pass."""
        found = {}
        for name, raw in self._spec.features.items():
            is_fitted = encoder_name(name, raw) in self.encoders
            fitter = None if is_fitted else fitter_of(raw, self._spec, scratch, self.encoders)
            if fitter is not None:
                if self._earlier is not None and name in self._continued:
                    fitter = continued_fitter(fitter, raw, self._spec, self._earlier)
                found[name] = fitter
        return found

    def add(self, fitted: Mapping[str, Any]) -> None:
        """Add what fitters finished with, and the encoders that follow from it."""
        for name, result in fitted.items():
            rule = self._spec.features[name].rule
            if isinstance(result, FittedTarget) and isinstance(rule, TargetRule):
                self.encoders[rule.mean] = result.mean
                if result.out_of_fold is not None:
                    self.out_of_fold[rule.mean] = result.out_of_fold
                if rule.count is not None and result.count is not None:
                    self.encoders[rule.count] = result.count
                continue
            self.encoders[name] = result
            if isinstance(rule, NumberRule) and rule.indicator is not None:
                self.encoders[rule.indicator] = MissingIndicator(result.column)
        for name, raw in self._spec.features.items():
            if isinstance(raw.rule, SharedVocabularyRule) and raw.rule.feature in self.encoders:
                self.encoders[name] = shared_encoder(raw, self._spec, self.encoders[raw.rule.feature])
        self.encoders = {name: self.encoders[name] for name in self.names if name in self.encoders}


def fitter_of(
    raw: RawFeature, spec: RawSpec, scratch: Scratch, encoders: Mapping[str, Encoder] | None = None
) -> Fitter | None:
    """Return the fitter of a feature's encoder.

    The fitter of a `TargetRule` finishes with a `FittedTarget`, all others with an encoder. A `SharedVocabularyRule`
    has none: its encoder is that of the other feature, on its own column (see `shared_encoder`).

    Args:
        raw: the feature.
        spec: its specification.
        scratch: where states go that do not fit into memory.
        encoders: fitted encoders by feature name. A cross needs those of the features that it crosses; its fitter is
            None without them.

    Returns:
        The fitter, or None for a feature without an encoder, such as a label.
    """
    rule = raw.rule
    if isinstance(rule, CrossRule):
        return _cross_fitter(rule, spec, scratch, encoders or {})
    if raw.reading is None:
        return None
    column, is_list = raw.reading, spec.readings[raw.reading].is_list
    if isinstance(rule, VocabularyRule):
        return VocabularyFitter(column, _also_counted(raw, spec), rule, is_list, scratch)
    if isinstance(rule, QuantilesRule):
        return QuantileFitter(column, _also_counted(raw, spec), rule.number, is_list, scratch)
    if isinstance(rule, NumberRule):
        return NumberFitter(column, rule.steps, is_list, scratch)
    if isinstance(rule, KeepRule) and raw.feature.name in spec.channels.get(NUMERICAL, ()):
        return NumberFitter(column, (), is_list, scratch)
    if isinstance(rule, TargetRule):
        return TargetFitter(column, rule, RowDraws.of(spec), finished(rule.label))
    encoder = _given_encoder(raw, column, is_list)
    return None if encoder is None else GivenFitter(encoder)


def continued_fitter(fitter: Fitter, raw: RawFeature, spec: RawSpec, earlier: Earlier) -> Fitter:
    """Return the fitter of an encoder that continues that of an earlier dataset.

    A vocabulary is extended. The boundaries of quantiles are kept, since their intervals have ids; numbers and target
    statistics are kept unless the scalers are updated. All other encoders are what the specification says.

    Args:
        fitter: the fitter without the earlier dataset.
        raw: the feature, which the earlier dataset has, too (see `Earlier.continued`).
        spec: its specification.
        earlier: the encoders of the earlier dataset.
    """
    name, column = raw.feature.name, raw.reading
    if isinstance(fitter, VocabularyFitter | CrossFitter):
        return replace(fitter, growth=earlier.growth(name, spec))
    if isinstance(fitter, TargetFitter) and isinstance(raw.rule, TargetRule) and not earlier.updates_scalers:
        outputs = [earlier.encoders[output] for output in (raw.rule.mean, raw.rule.count) if output is not None]
        mean, *count = [replace(one, column=fitter.column) for one in outputs if isinstance(one, Numerical)]
        return GivenFitter(FittedTarget(mean, count[0] if count else None))
    kept = earlier.encoders[encoder_name(name, raw)]
    if isinstance(fitter, QuantileFitter):
        return GivenFitter(replace(kept, column=column, is_list=fitter.is_list))  # type: ignore[arg-type]
    if isinstance(fitter, NumberFitter) and isinstance(kept, Numerical) and not earlier.updates_scalers:
        return fitter.keeping(kept)
    return fitter


def _also_counted(raw: RawFeature, spec: RawSpec) -> tuple[str, ...]:
    """Return the columns of other features on whose values the encoder of a feature is fitted, too."""
    columns = dict.fromkeys(
        other.reading
        for other in spec.features.values()
        if other.rule == SharedVocabularyRule(raw.feature.name, is_counted=True)
    )
    return tuple(column for column in columns if column is not None and column != raw.reading)


def shared_encoder(raw: RawFeature, spec: RawSpec, encoder: Encoder) -> Encoder:
    """Return another feature's encoder on the column of a feature with a `SharedVocabularyRule`."""
    if raw.reading is None or isinstance(encoder, CrossedIds | Numerical):
        raise TypeError(f"{type(encoder).__name__} cannot be shared")
    return replace(encoder, column=raw.reading, is_list=spec.readings[raw.reading].is_list)  # type: ignore[arg-type]


def _has_encoder(raw: RawFeature, spec: RawSpec) -> bool:
    """Return whether a feature without target statistics gets an encoder."""
    if isinstance(raw.rule, KeepRule):
        return raw.feature.name in spec.channels.get(NUMERICAL, ())
    return not isinstance(raw.rule, LabelMapRule | ThresholdRule)


def _given_encoder(raw: RawFeature, column: str, is_list: bool) -> Encoder | None:
    """Return an encoder that the specification describes completely, or None for a feature without one."""
    rule = raw.rule
    if isinstance(rule, HashRule):
        return HashedIds(column, rule.buckets, NULL_ID + 1, is_list)
    if isinstance(rule, IdentityRule):
        return IdentityIds(column, raw.feature.cardinality or 0, is_list)
    if isinstance(rule, BoundariesRule):
        return BucketizedIds(column, rule.boundaries, is_list)
    return TimestampIds(column, rule.part, is_list) if isinstance(rule, TimestampRule) else None


@dataclass(frozen=True)
class GivenFitter(Fitter):
    """The "fitter" of an encoder that needs no training rows: the specification or an earlier dataset gives it.

    Attributes:
        encoder: the encoder, or the encoders of target statistics.
    """

    encoder: "Encoder | FittedTarget"

    def part(self, table: pa.Table) -> None:
        return None

    def merge(self, states: Sequence[None]) -> None:
        return None

    def finish(self, state: None) -> "Encoder | FittedTarget":
        return self.encoder


class CountingFitter(Fitter):
    """Base of the fitters that count keys. States are `KeyCounts`.

    Attributes:
        rule: which keys get an id of their own.
        scratch: where counts go that do not fit into memory.
        growth: the vocabulary to extend, or None to fit a new one.
    """

    rule: VocabularyRule
    scratch: Scratch
    growth: Growth | None

    def merge(self, states: Sequence[KeyCounts]) -> KeyCounts:
        return KeyCounts.merged(states, self.scratch.budget, self.scratch.folder)

    def vocabulary(self, state: KeyCounts, column: str, is_list: bool = False) -> Vocabulary:
        """Return the vocabulary of the counted keys."""
        if self.growth is not None:
            return self.growth.extended(state, self.rule, column, is_list)
        values, counts = state.frequent(self.rule.min_count, self.rule.max_size)
        return Vocabulary(column, values, counts, self.rule.oov_buckets, is_list)


@dataclass(frozen=True)
class VocabularyFitter(CountingFitter):
    """Fits a `Vocabulary`.

    Attributes:
        column: staged column to count.
        others: further columns to count.
        rule: which values get an id of their own.
        is_list: whether the column holds lists, whose items are counted.
        scratch, growth: see `CountingFitter`.
    """

    column: str
    others: tuple[str, ...]
    rule: VocabularyRule
    is_list: bool
    scratch: Scratch
    growth: Growth | None = None

    def part(self, table: pa.Table) -> KeyCounts:
        return KeyCounts.of(self.column, _items(table, self.column, *self.others))

    def finish(self, state: KeyCounts) -> Vocabulary:
        return self.vocabulary(state, self.column, self.is_list)


@dataclass(frozen=True)
class CrossFitter(CountingFitter):
    """Fits the vocabulary of the keys of a cross; with a list, those of all items are counted.

    Attributes:
        cross: the cross with an empty vocabulary.
        encoders: fitted encoders by feature name, with those of the features that it crosses.
        rule: which combinations get an id of their own.
        scratch, growth: see `CountingFitter`.
    """

    cross: CrossedIds
    encoders: Mapping[str, Encoder]
    rule: VocabularyRule
    scratch: Scratch
    growth: Growth | None = None

    def part(self, table: pa.Table) -> KeyCounts:
        columns = dict(zip(table.column_names, table.columns, strict=True))
        inputs = cross_inputs(self.cross, self.encoders, columns, {})
        return KeyCounts.of(self.cross.column, self.cross.keys(inputs))

    def finish(self, state: KeyCounts) -> CrossedIds:
        return replace(self.cross, encoder=self.vocabulary(state, self.cross.column))


def _cross_fitter(rule: CrossRule, spec: RawSpec, scratch: Scratch, encoders: Mapping[str, Encoder]) -> Fitter | None:
    inputs = tuple(CrossInput(name, name in spec.features) for name in rule.inputs)
    column = " x ".join(rule.inputs)
    if isinstance(rule.ids, HashRule):
        return GivenFitter(CrossedIds(inputs, HashedIds(column, rule.ids.buckets, NULL_ID + 1), rule.list_input))
    if any(entry.is_feature and entry.name not in encoders for entry in inputs):
        return None
    empty = Vocabulary(column, pa.array([], pa.int64()), np.empty(0, np.int64), rule.ids.oov_buckets)
    return CrossFitter(CrossedIds(inputs, empty, rule.list_input), encoders, rule.ids, scratch)


@dataclass(frozen=True)
class QuantileFitter(Fitter):
    """Fits `BucketizedIds` with about equally many training values in each interval.

    The boundaries are the values of rank floor(i * n / number) of n values, without repetitions and without the
    smallest value.

    Attributes:
        column: staged column of numbers.
        others: further columns whose values count.
        number: number of intervals.
        is_list: whether the column holds lists.
        scratch: where values go that do not fit into memory.
    """

    column: str
    others: tuple[str, ...]
    number: int
    is_list: bool
    scratch: Scratch

    def part(self, table: pa.Table) -> SortedRuns:
        numbers = as_numbers(self.column, _items(table, self.column, *self.others))
        return SortedRuns.of(numbers[~np.isnan(numbers)])

    def merge(self, states: Sequence[SortedRuns]) -> SortedRuns:
        return SortedRuns.merged(states, self.scratch.budget, self.scratch.folder)

    def finish(self, state: SortedRuns) -> BucketizedIds:
        _require_values(self.column, state.count)
        ranks = [index * state.count // self.number for index in range(self.number)]
        smallest, *others = state.at(ranks).tolist()
        boundaries = dict.fromkeys(value for value in others if value > smallest)
        return BucketizedIds(self.column, tuple(boundaries), self.is_list)


@dataclass(frozen=True)
class NumberState:
    """State of a `NumberFitter`.

    Attributes:
        nulls: number of missing values.
        moments: moments of the values that the scaling step sees, without missing ones; of the values that the mean
            is taken of if there is none.
        unfilled: values that the fill step sees, if their median replaces missing ones.
        mean: moments of these values, if their mean does.
    """

    count: int
    nulls: int
    moments: Moments
    unfilled: SortedRuns | Moments | None


class NumberFitter(Fitter):
    """Fits `Numerical`: the statistics of its steps, in one pass.

    Missing values enter the statistics of later steps as the value that replaces them, times their number.

    Args:
        column: staged column of numbers.
        steps: steps of the encoding; at most one fill, and one of standardize and minmax.
        is_list: whether the column holds lists.
        scratch: where values go that do not fit into memory.

    Raises:
        DataError: if the mean or median that replaces missing values would be taken of standardized values.
    """

    def __init__(self, column: str, steps: Sequence[NumberStep], is_list: bool, scratch: Scratch) -> None:
        self._column, self._is_list, self._scratch = column, is_list, scratch
        self._steps = tuple(steps)
        # Positions of the fill and of the scaling step, -1 for none.
        kinds = [step.kind for step in self._steps]
        self._fill = kinds.index(FILL) if FILL in kinds else -1
        self._scale = next((index for index, kind in enumerate(kinds) if kind in (STANDARDIZE, MINMAX)), -1)
        self._statistic = self._steps[self._fill].fill if FILL in kinds else None
        self._kept: Numerical | None = None
        if isinstance(self._statistic, str) and 0 <= self._scale < self._fill:
            kind = kinds[self._scale]
            raise DataError(f"column {column!r}: fill: {self._statistic} after {kind}; write it before {kind}")

    def keeping(self, encoder: Numerical) -> "NumberFitter":
        """Return a fitter with the same checks of the rows that finishes with the numbers of a fitted encoder."""
        fitter = NumberFitter(self._column, self._steps, self._is_list, self._scratch)
        fitter._kept = replace(encoder, column=self._column, is_list=self._is_list)
        return fitter

    def part(self, table: pa.Table) -> NumberState:
        numbers = as_numbers(self._column, _items(table, self._column))
        is_null = np.isnan(numbers)
        nulls = int(is_null.sum())
        known = numbers[~is_null] if nulls else numbers
        moments = Moments()
        unfilled: SortedRuns | Moments | None = None
        if isinstance(self._statistic, str):
            values = self._before(self._fill, known)
            unfilled = SortedRuns.of(values) if self._statistic == MEDIAN else Moments.of(values)
        if self._scale >= 0:
            values = self._before(self._scale, known)
            is_standardized = self._steps[self._scale].kind == STANDARDIZE
            moments = Moments.of(values) if is_standardized else _extremes(values)
        return NumberState(len(known), nulls, moments, unfilled)

    def merge(self, states: Sequence[NumberState]) -> NumberState:
        count, nulls = sum(state.count for state in states), sum(state.nulls for state in states)
        moments = reduce(add, (state.moments for state in states))
        unfilled: Any = [state.unfilled for state in states]
        if self._statistic == MEDIAN:
            unfilled = SortedRuns.merged(unfilled, self._scratch.budget, self._scratch.folder)
        else:
            unfilled = reduce(add, unfilled) if isinstance(self._statistic, str) else None
        return NumberState(count, nulls, moments, unfilled)

    def finish(self, state: NumberState) -> Numerical:
        if self._kept is None:
            _require_values(self._column, state.count)
        if state.nulls and self._fill < 0:
            raise DataError(
                f"column {self._column!r} is null in {state.nulls:,} of the training rows; say what replaces null, as "
                "with {fill: median}"
            )
        if self._kept is not None:
            return self._kept
        moments, steps = state.moments, list[Step]()
        for index, step in enumerate(self._steps):
            if index == self._fill:
                steps.append((FILL, self._filled(state)))
            elif index == self._scale:
                if 0 <= self._fill < index:
                    filled = apply_steps(steps[self._fill :], np.array([np.nan]))
                    moments += Moments.repeated(float(filled[0]), state.nulls)
                steps.append(_scaling(step, moments))
            else:
                steps.append(plain_step(step))
        return Numerical(self._column, None, tuple(steps), self._is_list)

    def _filled(self, state: NumberState) -> float:
        if isinstance(state.unfilled, SortedRuns):
            return state.unfilled.median()
        if isinstance(state.unfilled, Moments):
            return state.unfilled.mean
        return float(self._statistic or 0)

    def _before(self, index: int, known: np.ndarray) -> np.ndarray:
        """Return values, none missing, as step `index` sees them."""
        steps = [plain_step(step) for step in self._steps[:index] if step.kind != FILL]
        with np.errstate(all="ignore"):  # checked below
            values = apply_steps(steps, known)
        fits = np.abs(values) <= LARGEST
        if not fits.all():
            wrong = known[~fits][0]
            expected = "a number above -1" if (LOG1P,) in steps and wrong <= -1 else "a smaller number"
            raise DataError(f"column {self._column!r} holds {wrong:g}; expected {expected}, or null")
        return values


def plain_step(step: NumberStep) -> Step:
    """Return a step without fitted numbers, log1p or clip, as the encoder applies it."""
    return (LOG1P,) if step.kind == LOG1P else (CLIP, step.low, step.high)


def _scaling(step: NumberStep, moments: Moments) -> Step:
    if step.kind == STANDARDIZE:
        return SCALE, moments.mean, moments.std
    return MINMAX, moments.least, moments.most


def _extremes(values: np.ndarray) -> Moments:
    if not len(values):
        return Moments()
    return Moments(len(values), least=float(values.min()), most=float(values.max()))


@dataclass(frozen=True)
class RowDraws:
    """Random draws of rows, which do not depend on how rows are divided into partitions.

    Attributes:
        seed: seed of the draws.
        columns: staged columns that identify a row.
    """

    seed: int
    columns: tuple[str, ...]

    @classmethod
    def of(cls, spec: RawSpec) -> "RowDraws":
        """Return the draws of a specification."""
        return cls(spec.seed, spec.row_key or (ROW,))

    def folds(self, table: pa.Table, number: int) -> np.ndarray:
        """Return the fold of each row, [rows] int64: the bucket of hash(seed, FOLD, key)."""
        return buckets(draw(self.seed, FOLD, {column: table.column(column) for column in self.columns}), number)


@dataclass(frozen=True, eq=False)
class TargetCounts:
    """Training rows and sums of a label by key and fold.

    Attributes:
        keys: [size] distinct keys.
        rows: [size + 1, folds] int64 rows with a label; the last row is for null.
        sums: sums of the label in the groups key * folds + fold.
    """

    keys: pa.Array
    rows: np.ndarray
    sums: GroupSums


@dataclass(frozen=True, eq=False)
class OutOfFoldMeans:
    """Means of a label by key that leave out one fold, so that a training row's own label does not enter its feature.

    Attributes:
        column: staged column of keys.
        keys: [size] keys, ascending.
        means: [size + 1, folds] float32 standardized means; the last row is for null.
        draws: draws of the folds.
    """

    column: str
    keys: pa.Array
    means: np.ndarray
    draws: RowDraws

    def encode(self, table: pa.Table) -> np.ndarray:
        """Return the means of training rows that the encoders were fitted on, [rows] float32."""
        folds = self.draws.folds(table, self.means.shape[1])
        codes, _, positions = kept_index(self, self.column, self.keys).find(table.column(self.column))
        return self.means[np.append(positions, -1)[codes], folds]


@dataclass(frozen=True, eq=False)
class FittedTarget:
    """The encoders of target statistics.

    Attributes:
        mean: encoder of the smoothed mean over all training rows, for rows that are not training rows.
        count: encoder of the logarithm of 1 + the number of training rows, or None.
        out_of_fold: smoothed means for training rows; None if the statistics are those of earlier rows, which hold for
            training rows as for all others.
    """

    mean: Numerical
    count: Numerical | None = None
    out_of_fold: OutOfFoldMeans | None = None


@dataclass(frozen=True)
class TargetFitter(Fitter):
    """Fits target statistics: (sum + smoothing * prior) / (rows + smoothing) of a label per key, standardized.

    The prior is the mean label of all rows, which null and unseen keys get. Statistics of a training row leave out its
    fold, prior included. Rows without a label are ignored.

    Attributes:
        column: staged column of keys.
        rule: label, smoothing and number of folds.
        draws: draws of the folds.
        label: staged column of the label, without lists.
    """

    column: str
    rule: TargetRule
    draws: RowDraws
    label: str

    def part(self, table: pa.Table) -> TargetCounts:
        labels = as_numbers(self.rule.label, table.column(self.label))
        codes, found = coded_keys(self.column, table.column(self.column))
        groups = group_keys(found)
        size, folds = len(groups.keys), self.rule.folds
        rows = np.append(groups.codes, size)[codes] * folds + self.draws.folds(table, folds)
        known = ~np.isnan(labels)
        rows, labels = rows[known], labels[known]
        count = np.bincount(rows, minlength=(size + 1) * folds).reshape(-1, folds)
        return TargetCounts(groups.keys, count, GroupSums.of(rows, labels, (size + 1) * folds))

    def merge(self, states: Sequence[TargetCounts]) -> TargetCounts:
        used = [state.keys for state in states if len(state.keys)] or [states[0].keys]
        groups = group_keys(pa.concat_arrays(used))
        size, folds = len(groups.keys), self.rule.folds
        total, sums, start = np.zeros((size + 1, folds), np.int64), GroupSums({}), 0
        for state in states:
            rows = np.append(groups.codes[start : start + len(state.keys)], size)
            start += len(state.keys)
            total[rows] += state.rows
            sums += state.sums.moved((rows[:, None] * folds + np.arange(folds)).reshape(-1), (size + 1) * folds)
        return TargetCounts(groups.keys, total, sums)

    def finish(self, state: TargetCounts) -> FittedTarget:
        if not state.rows.sum():
            raise DataError(
                f"label {self.rule.label!r}: no training row has a value; remove the target of {self.column}"
            )
        order = pc.sort_indices(state.keys).to_numpy().astype(np.int64)
        keys, order = state.keys.take(pa.array(order)), np.append(order, len(order))
        rows = state.rows[order]
        sums = state.sums.sums(state.rows.size).reshape(state.rows.shape)[order]
        means = self._means(rows, sums)
        center, scale = weighted_moments(means[:, :-1], rows)
        scaled = ((means[:, :-1] - center) / (scale if scale > 0 else 1.0)).astype(np.float32)
        table = KeyTable(keys, means[:-1, -1], float(means[-1, -1]))
        counts = rows.sum(axis=1).astype(np.float64)
        counts[-1] = 0.0
        log_moments = weighted_moments(np.log(counts + 1), rows.sum(axis=1))
        return FittedTarget(
            Numerical(self.column, table, ((SCALE, center, scale),)),
            Numerical(self.column, KeyTable(keys, counts[:-1], 0.0), ((LOG1P,), (SCALE, *log_moments))),
            OutOfFoldMeans(self.column, keys, scaled, self.draws),
        )

    def _means(self, rows: np.ndarray, sums: np.ndarray) -> np.ndarray:
        """Return smoothed means, [size + 1, folds + 1]: column i leaves out fold i, the last one leaves out none."""
        smoothing = self.rule.smoothing
        all_rows, all_sums = (_without_each_fold(part.sum(axis=0, keepdims=True)) for part in (rows, sums))
        priors = all_sums / np.maximum(all_rows, 1)
        weights = _without_each_fold(rows) + smoothing
        totals = _without_each_fold(sums) + smoothing * priors
        means = np.where(weights > 0, totals / np.where(weights > 0, weights, 1), priors)
        means[-1] = priors
        return means


def weighted_moments(numbers: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Return the mean and the standard deviation (with n - 1) of numbers that occur `counts` times.

    The deviation is 0 if there are fewer than two numbers, or if it is within the rounding error of equal numbers.
    """
    total = int(counts.sum())
    mean = float((numbers * counts).sum() / total)
    std = float(np.sqrt((counts * (numbers - mean) ** 2).sum() / (total - 1))) if total > 1 else 0.0
    return mean, std if std > ROUNDING * abs(mean) else 0.0


def _without_each_fold(parts: np.ndarray) -> np.ndarray:
    """Return sums over all folds but one, [n, folds] to [n, folds + 1]; the last column sums all folds."""
    everything = parts.sum(axis=1, keepdims=True)
    return np.hstack([everything - parts, everything])


def _items(table: pa.Table, *columns: str) -> pa.Array:
    """Return the values of columns, or the items of their lists, one column after the other."""
    found: list[Any] = []
    for column in columns:
        values: Any = as_arrow(table.column(column))
        found.append(values.flatten() if pa.types.is_nested(values.type) else values)
    return found[0] if len(found) == 1 else pa.concat_arrays([values.cast(found[0].type) for values in found])


def _require_values(column: str, count: int) -> None:
    if not count:
        raise DataError(f"{column}: no training row has a value; remove the column")
