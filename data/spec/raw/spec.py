"""The raw specification: how raw files become the features of a dataset (see docs/features.md)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data.spec.features import Feature, FeatureSequence

RawType = Literal["string", "timestamp", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "bool"]
Keep = Literal["first", "last"]
TimestampPart = Literal["hour", "weekday", "day"]
Comparison = Literal["==", "!=", "<", "<=", ">", ">="]


@dataclass(frozen=True)
class Reading:
    """How a raw column is read. Two features that read a column alike share a reading.

    Attributes:
        name: name of the staged column: the raw column's, with ":dtype" or ":list of dtype" appended where a column is
            read in several ways.
        column: name of the raw column.
        dtype: type of its cells (of the items, if it is a list).
        is_list: whether a cell holds a list: split at `separator`, or a parquet list.
        separator: separator of the items of a text list; None for a parquet list.
        format: strptime format of a text timestamp.
        unit: unit of a numeric timestamp: s, ms, us or ns.
    """

    name: str
    column: str
    dtype: RawType = "string"
    is_list: bool = False
    separator: str | None = None
    format: str | None = None
    unit: str | None = None


# What `encode:` says, one class per encoding.


@dataclass(frozen=True)
class VocabularyRule:
    """One id per value: `vocabulary: {min_count, max_size, oov_buckets}`.

    Attributes:
        min_count: training occurrences a value needs for an id of its own.
        max_size: maximum number of values with an id of their own, or None.
        oov_buckets: number of ids shared by all other values, by hash.
    """

    min_count: int = 1
    max_size: int | None = None
    oov_buckets: int = 1


@dataclass(frozen=True)
class HashRule:
    """A hash of the value: `hash: BUCKETS`. Ids: 0 padding, 1 null, 2 to BUCKETS + 1."""

    buckets: int


@dataclass(frozen=True)
class IdentityRule:
    """Ids that are stored as they are: `identity`; the feature states its `cardinality`."""


@dataclass(frozen=True)
class BoundariesRule:
    """Ids of the intervals between ascending numbers: `boundaries: [1, 10, 100]`."""

    boundaries: tuple[float, ...]


@dataclass(frozen=True)
class QuantilesRule:
    """Ids of intervals with equally many training values: `quantiles: NUMBER`."""

    number: int


@dataclass(frozen=True)
class TimestampRule:
    """A part of a timestamp (UTC) as an id: `timestamp: hour | weekday | day`."""

    part: TimestampPart


@dataclass(frozen=True)
class CrossRule:
    """Combinations of columns as one id: `{cross: [a, b], hash: BUCKETS}` or `{cross: [a, b], vocabulary: {...}}`.

    Attributes:
        inputs: names of features of the specification (their ids are crossed), or of readings where no feature has that
            name (their raw values are).
        ids: how the combinations become ids.
        list_input: the input that is a list, which makes the cross a list of one id per item; None without one.
    """

    inputs: tuple[str, ...]
    ids: VocabularyRule | HashRule
    list_input: str | None = None


@dataclass(frozen=True)
class SharedVocabularyRule:
    """The encoder of another feature: `vocabulary_of: FEATURE`, or that of the features with the same `table`.

    Attributes:
        feature: name of the feature whose encoder is used, the end of a chain: it has an encoding of ids of its own.
        is_counted: whether the encoder is fitted on the values of this feature, too.
    """

    feature: str
    is_counted: bool = False


@dataclass(frozen=True)
class NumberStep:
    """One step of a number's encoding.

    Attributes:
        kind: "fill", "log1p", "clip", "standardize" or "minmax".
        fill: for "fill": "median", "mean" (of the training rows) or a constant.
        low: for "clip": the smallest value, or None.
        high: for "clip": the largest value, or None.
    """

    kind: Literal["fill", "log1p", "clip", "standardize", "minmax"]
    fill: Literal["median", "mean"] | float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class NumberRule:
    """Steps that a number passes, in order: `[{fill: median}, log1p, standardize]`.

    Attributes:
        steps: the steps.
        indicator: name of a second feature, 1 where the number is missing, or None.
    """

    steps: tuple[NumberStep, ...] = ()
    indicator: str | None = None


@dataclass(frozen=True)
class TargetRule:
    """Statistics of a label per value, out of fold on training rows:
    `target: {label, smoothing, folds, outputs: [MEAN, COUNT]}`.

    Attributes:
        label: name of the label, a feature of this specification.
        smoothing: weight of the overall mean, in rows.
        folds: number of folds, at least 2.
        mean: name of the feature with the smoothed mean.
        count: name of the feature with log1p of the number of training rows, or None.
    """

    label: str
    smoothing: float = 20.0
    folds: int = 5
    mean: str = ""
    count: str | None = None


@dataclass(frozen=True)
class LabelMapRule:
    """Values of a label by its text: `map: {"yes": 1, "no": 0}`."""

    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ThresholdRule:
    """1 where a number passes a comparison, else 0: `threshold: ">= 4"`."""

    comparison: Comparison
    value: float


@dataclass(frozen=True)
class KeepRule:
    """The raw value as it is: numbers, labels, the map feature and columns under `keep`."""


Rule = (
    VocabularyRule
    | HashRule
    | IdentityRule
    | BoundariesRule
    | QuantilesRule
    | TimestampRule
    | CrossRule
    | SharedVocabularyRule
    | NumberRule
    | TargetRule
    | LabelMapRule
    | ThresholdRule
    | KeepRule
)


def added_by(rule: Rule) -> tuple[str, ...]:
    """Return the names of the features that a rule makes: statistics of a label, or an indicator of missing values."""
    if isinstance(rule, TargetRule):
        return tuple(name for name in (rule.mean, rule.count) if name is not None)
    return (rule.indicator,) if isinstance(rule, NumberRule) and rule.indicator is not None else ()


# Columns that are computed from earlier rows of the log.


@dataclass(frozen=True)
class History:
    """A user's earlier items: `history: {of: item, by: user_id, order: ts, where: click, last: 50}`.

    Attributes:
        of, by, order: names of readings; `order` is a timestamp or a number.
        where: rows whose items enter, or None for all.
        last: number of most recent items to keep.
        steps: reading without which a row does not enter; None for `of`. Histories of one sequence have the same, so
            that they are equally long, and their items may be null.
    """

    of: str
    by: str
    order: str
    where: "Condition | None"
    last: int
    steps: str | None = None


@dataclass(frozen=True)
class Count:
    """Point-in-time counts: `count: {of: item, by: user_id, order: ts, window: 7d}`: how many strictly earlier rows of
    the same `by` have the same `of`.

    Attributes:
        of, by, order: names of readings; `of` is None to count all rows of `by`.
        where: rows that are counted, or None for all.
        window: length of the window in units of `order` (microseconds if it is a timestamp), or None for all time.
    """

    of: str | None
    by: str
    order: str
    where: "Condition | None"
    window: int | None


@dataclass(frozen=True)
class Condition:
    """A comparison of a column with a constant, such as `rating >= 4` or `country == "US"`; `where: click` means != 0.

    Attributes:
        reading: name of the reading.
        comparison: the operator.
        value: constant, a string for a column of strings. Null satisfies no condition.
    """

    reading: str
    comparison: Comparison
    value: str | float


@dataclass(frozen=True)
class RawFeature:
    """A feature of the raw specification.

    Attributes:
        feature: name, label keys, role, `embedding_dim`, `max_hotness` and, for identity ids, the cardinality. The
            feature that `weights` names has a `NumberRule` and lists as long as those of this feature, cut with them.
        reading: name of the reading with its raw values; None for a cross. A history or count has a reading of its own,
            named like the feature, which no file holds: it is computed.
        rule: how raw values become values of the dataset.
        keep: which items of a list longer than `max_hotness` are kept: for a sequence the newest ones.
        computed: history or count that the values come from, or None.
        serve: raw value that predictions take, as text, of a feature that is known only in training; None for others.
    """

    feature: Feature
    reading: str | None
    rule: Rule
    keep: Keep = "first"
    computed: History | Count | None = None
    serve: str | None = None


@dataclass(frozen=True)
class RawChunk:
    """Raw files of one format.

    Attributes:
        type: "csv" or "parquet".
        files: paths, globs and folders, relative to the specification's folder.
        columns: names of the columns of a CSV file without a header, in order; empty otherwise.
        has_header: whether the first line of a CSV file names its columns.
        separator: separator of CSV fields.
        quote: quote character of CSV fields, or None.
        null: strings that mean a missing value; an empty cell always does.
        trim: whether white space around the cells of a CSV file is removed; around numbers and timestamps it always is.
    """

    type: Literal["csv", "parquet"]
    files: tuple[str, ...]
    columns: tuple[str, ...] = ()
    has_header: bool = False
    separator: str = ","
    quote: str | None = '"'
    null: tuple[str, ...] = ()
    trim: bool = False


@dataclass(frozen=True)
class TimeSplit:
    """`split: {from: SOURCE, time: COLUMN, valid_from: ..., test_from: ...}`, bounds inclusive.

    Attributes:
        sources: names of sources to split.
        reading: name of the reading of the time.
        valid_from, test_from: first value of the mapping (microseconds for a timestamp); valid_from is None without
            mapping "valid", and test_from is infinite where mapping "test" is a source of its own.
    """

    sources: tuple[str, ...]
    reading: str
    valid_from: float | None
    test_from: float


@dataclass(frozen=True)
class RandomSplit:
    """`split: {from: SOURCE, random: {test: 0.2, valid: 0.1}, by: COLUMN}`.

    With h = hash(seed, SPLIT, key) / 2**64, a row is in the first mapping if h is below its fraction, in the second if
    h is below the sum of both, and so on; in "train" otherwise. If the fractions sum to 1, no row is left for "train",
    which then needs a source of its own.

    Attributes:
        sources: names of sources to split.
        fractions: expected fraction of each mapping except "train", in the order of the YAML.
        by: reading that is the key instead of the row's, so that rows of equal value are in one mapping, or None.
    """

    sources: tuple[str, ...]
    fractions: Mapping[str, float]
    by: str | None = None


@dataclass(frozen=True)
class LastSplit:
    """`split: {from: SOURCE, last: {valid: 0.1, test: 0.2}}`: the last rows of a source, in the order of its files.

    Attributes:
        sources: names of sources to split.
        fractions: fraction of each mapping except "train", in the order of the rows; its number of rows is rounded to
            the nearest integer, halves up.
    """

    sources: tuple[str, ...]
    fractions: Mapping[str, float]


Split = TimeSplit | RandomSplit | LastSplit


@dataclass(frozen=True)
class RawSpec:
    """A raw specification, parsed and validated.

    Attributes:
        folder: folder that paths are relative to.
        readings: {name: reading} of every raw column that is read.
        features: {name: raw feature}, in the order of the file. Features that a rule adds (`indicator`, `outputs`) are
            not among them.
        sources: {name of a source or mapping: its chunks}.
        split: how sources are split into mappings, or None; sources that it does not name are mappings.
        channels: {channel: feature names, including those that rules add}, without `pretrained`.
        sequences: the sequences of the channel `sequence`.
        pretrained: {name: vector that is looked up by a feature's raw value}; they are not among the features, since
            rows do not have them.
        keep: names of readings that are stored unchanged, for `--keep`.
        where: rows to use, or None for all.
        sample_weight: name of the reading that weighs rows, or None. The dataset's column of weights is the feature
            "sample_weight" (role: sample_weight); `keep_negatives` adds it where the specification has none.
        keep_negatives: fraction of the training rows without a positive label to keep, or None for all.
        shuffle: whether training rows are stored in ascending order of hash(seed, ORDER, key).
        seed: seed of all draws: splits, folds, negatives and order (see `data.encoding.splits`).
        row_key: readings that identify a row (`split: {key: [user, movie]}`), on which its draws depend. Empty: an
            integer, the number of its file in its source, in sorted path order, times 2**40 plus its number in the
            file.
        metadata: free-form information, copied to the dataset.
        score: formula of the score, likewise; None for no score.
    """

    folder: Path
    readings: dict[str, Reading]
    features: dict[str, RawFeature]
    sources: dict[str, tuple[RawChunk, ...]]
    split: Split | None
    channels: dict[str, tuple[str, ...]]
    sequences: tuple[FeatureSequence, ...] = ()
    pretrained: Mapping[str, Feature] = field(default_factory=dict)
    keep: tuple[str, ...] = ()
    where: Condition | None = None
    sample_weight: str | None = None
    keep_negatives: float | None = None
    shuffle: bool = False
    seed: int = 0
    row_key: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    score: str | None = None

    def is_list(self, feature: str) -> bool:
        """Return whether a feature has a list per row."""
        raw = self.features[feature]
        if isinstance(raw.rule, CrossRule):
            return raw.rule.list_input is not None
        return raw.reading is not None and self.readings[raw.reading].is_list
