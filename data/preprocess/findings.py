"""Finds oddities of a dataset by counting: what is valid, but rarely meant.

- Constant features: nothing can be learned from them.
- Features of whose values in another mapping most are not known from training, such as dates and session ids.
- Ids with nearly as many values as rows, or most of whose training values share the id of rare ones.
- Few positives (or negatives) to evaluate on: the standard error of an AUC (Hanley & McNeil, 1982), for an AUC of 0.7.
- Base rates of a label that differ between mappings by more than chance.
- Groups of the map feature whose rows are spread over the training mapping and another.
- Columns in no channel: no model sees them.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.encoding.encoders import FIRST_OOV_ID, CrossedIds, Encoder, Vocabulary
from data.encoding.hashing import hash_values
from data.errors import listed
from data.spec.columns import as_numbers, is_list
from data.spec.feature_spec import FeatureSpec
from data.spec.features import TRAIN, Feature
from data.spec.raw.spec import CrossRule, RawSpec, SharedVocabularyRule

# Shares of values: of unseen ids, and of distinct values among all.
MOSTLY = NEARLY_ALL_DISTINCT = 0.5
TYPICAL_AUC, LARGE_ERROR = 0.7, 0.02
RATE_RATIO, STANDARD_ERRORS = 1.5, 4.0
# Groups per mapping that are compared with those of another.
SAMPLED_GROUPS = 65_536


@dataclass(frozen=True)
class Oddity:
    """Something unusual in a dataset.

    Attributes:
        what: kind of oddity, the same text for all of a kind.
        location: mapping and column.
        numbers: what was counted.
        advice: what it means, or what to do, the same text for all of a kind.
    """

    what: str
    location: str
    numbers: str
    advice: str


@dataclass
class ValueCounts:
    """Counts of the values of a feature (the items of a list feature) in a mapping.

    Attributes:
        values: number of values that are not null.
        unseen: number of ids of values unseen in training.
        least, most: smallest and largest value.
        shortest, longest: lengths of lists.
    """

    values: int = 0
    unseen: int = 0
    least: float = math.inf
    most: float = -math.inf
    shortest: float = math.inf
    longest: float = -math.inf

    @property
    def is_constant(self) -> bool:
        """Whether all rows hold the same: one value, or as many items of one value."""
        return self.least >= self.most and self.shortest >= self.longest

    def add(self, column: pa.Array | pa.ChunkedArray, unseen_ids: range) -> None:
        """Add the values of consecutive rows; `unseen_ids` are those of values unseen in training."""
        values = as_numbers(pc.list_flatten(column) if is_list(column.type) else column)
        if is_list(column.type):
            lengths = pc.min_max(pc.list_value_length(column))
            self.shortest, self.longest = _extended(self.shortest, self.longest, lengths)
        self.values += len(values) - values.null_count
        self.least, self.most = _extended(self.least, self.most, pc.min_max(values))
        if len(unseen_ids):
            inside = pc.and_(pc.greater_equal(values, unseen_ids.start), pc.less(values, unseen_ids.stop))
            self.unseen += pc.sum(inside).as_py() or 0


@dataclass
class LabelCounts:
    """Counts of a binary label in its sample space in a mapping, and sums over the weights of these rows.

    Attributes:
        positives, negatives: number of rows.
        weights, squares: sum of the weights, and of their squares.
        positive_weights: sum of the weights of the positive rows.
    """

    positives: int = 0
    negatives: int = 0
    weights: float = 0.0
    squares: float = 0.0
    positive_weights: float = 0.0

    @property
    def rate(self) -> float:
        """Weighted share of positive rows; NaN without rows."""
        return self.positive_weights / self.weights if self.weights else math.nan

    def add(self, labels: np.ndarray, weights: np.ndarray) -> None:
        """Add labels, [rows] 0 or 1, and weights, [rows] float64."""
        self.positives += int((labels == 1).sum())
        self.negatives += int((labels == 0).sum())
        self.weights += float(weights.sum())
        self.squares += float((weights**2).sum())
        self.positive_weights += float((weights * labels).sum())


class GroupSample:
    """A sample of the distinct groups of a mapping: those with the smallest hashes.

    Two mappings draw the same groups as far as both have them, so that samples show how many they share.
    """

    def __init__(self) -> None:
        self._hashes: np.ndarray = np.empty(0, np.uint64)  # ascending

    def add(self, groups: pa.Array | pa.ChunkedArray) -> None:
        """Add the groups of rows, integers."""
        hashes = hash_values(np.unique(groups.drop_null().to_numpy(zero_copy_only=False)))
        self._hashes = np.union1d(self._hashes, hashes)[:SAMPLED_GROUPS]

    def share_in(self, other: "GroupSample") -> float:
        """Return an estimate of the share of this mapping's groups that the other has too; exact for small samples."""
        full = [sample._hashes[-1] for sample in (self, other) if len(sample._hashes) == SAMPLED_GROUPS]
        mine = self._hashes[self._hashes <= min(full)] if full else self._hashes
        return float(np.isin(mine, other._hashes).mean()) if len(mine) else 0.0


class MappingCounts:
    """Counts of a mapping's values.

    Args:
        spec: specification of the dataset.
        unseen_ids: ids of values unseen in training, by feature (see `unseen_ids`).

    Attributes:
        values: counts by input feature.
        labels: counts by binary label.
        groups: groups of the map feature, unless it is an input too.
    """

    def __init__(self, spec: FeatureSpec, unseen_ids: Mapping[str, range]) -> None:
        self._spec, self._unseen_ids = spec, unseen_ids
        self.values = {feature.name: ValueCounts() for feature in spec.inputs}
        self.labels = {label.name: LabelCounts() for label in spec.labels if label.is_binary}
        self.groups = GroupSample()

    def add(self, rows: pa.Table | pa.RecordBatch) -> None:
        """Add consecutive rows. Columns may be missing; weights and `given` labels count where the rows have them."""
        names = set(rows.schema.names)
        for name, counts in self.values.items():
            if name in names:
                counts.add(rows.column(name), self._unseen_ids.get(name, range(0)))
        group = self._spec.map_feature
        # An input such as the user is known from training on purpose.
        if group is not None and group.name in names and group.name not in self.values:
            column = rows.column(group.name)
            if pa.types.is_integer(column.type):
                self.groups.add(column)
        weight = self._spec.sample_weight
        weights = np.ones(rows.num_rows)
        if weight is not None and weight.name in names:
            weights = _numbers(rows.column(weight.name))
        for name, label_counts in self.labels.items():
            if name in names:
                labels = _numbers(rows.column(name))
                counted = np.isin(labels, (0, 1)) & np.isfinite(weights)
                given = self._spec.features[name].given
                if given in names:
                    counted &= _numbers(rows.column(given)) == 1
                label_counts.add(labels[counted], weights[counted])


class DatasetCounts:
    """Counts of the values of a dataset, from which `oddities` are found.

    Args:
        spec: specification of the dataset; its sources do not matter.
        encoders: the encoders of its features, if there are any. Columns without an encoder are then in no channel
            on purpose.
        on_purpose: other columns that are in no channel on purpose (see `used_columns`).
    """

    def __init__(
        self, spec: FeatureSpec, encoders: Mapping[str, Encoder] | None = None, on_purpose: Collection[str] = ()
    ) -> None:
        self._spec, self._encoders = spec, encoders or {}
        self._on_purpose = {*on_purpose, *_crossed(self._encoders)}
        self._unseen_ids = unseen_ids(spec, self._encoders)
        self.mappings: dict[str, MappingCounts] = {}

    def mapping(self, name: str) -> MappingCounts:
        """Return the counts of a mapping, zero at first."""
        return self.mappings.setdefault(name, MappingCounts(self._spec, self._unseen_ids))

    def add(self, mapping: str, rows: pa.Table | pa.RecordBatch) -> None:
        """Add consecutive rows of a mapping."""
        self.mapping(mapping).add(rows)

    def oddities(self) -> Iterator[Oddity]:
        """Yield what is unusual."""
        yield from self._unused()
        train = self.mappings.get(TRAIN)
        if train is not None:
            for name, counts in train.values.items():
                yield from self._in_training(self._spec.features[name], counts)
        for mapping, counted in self.mappings.items():
            if mapping != TRAIN:
                yield from self._unseen(mapping, counted)
                if train is not None:
                    yield from self._spread(mapping, counted, train)
                for name, label_counts in counted.labels.items():
                    yield from _few(f"{mapping}, {name}", label_counts)
                    if train is not None:
                        yield from _rates(mapping, name, train.labels[name], label_counts)

    def texts(self) -> list[str]:
        """Return the oddities as a line of text per kind, which lists the columns."""
        kinds: dict[tuple[str, str], list[str]] = {}
        for oddity in self.oddities():
            kinds.setdefault((oddity.what, oddity.advice), []).append(f"{oddity.location} ({oddity.numbers})")
        return [f"{what}: {listed(found, len(found))}; {advice}" for (what, advice), found in kinds.items()]

    def _unused(self) -> Iterator[Oddity]:
        for name, feature in self._spec.features.items():
            is_kept = name in self._on_purpose or (self._encoders and name not in self._encoders)
            is_kept = is_kept or name in self._spec.ids_of_weights
            if name not in self._spec.channel_of and feature.role is None and not is_kept:
                yield Oddity(
                    "column in no channel", name, feature.dtype or "no dtype", "no model sees it; see channel_spec"
                )

    def _in_training(self, feature: Feature, counts: ValueCounts) -> Iterator[Oddity]:
        location = f"{TRAIN}, {feature.name}"
        if counts.is_constant:
            always = f"always {counts.least:g}" if counts.values else "no value"
            yield Oddity("constant feature", location, always, "nothing can be learned from it; leave it out")
            return
        ids = self._unseen_ids.get(feature.name, range(0))
        if not counts.values or not len(ids):
            return
        distinct = (feature.cardinality or 0) - ids.stop
        if counts.unseen > MOSTLY * counts.values:
            yield Oddity(
                "feature whose training values are mostly rare",
                location,
                f"{_percent(counts.unseen, counts.values)} share the id of unseen values",
                "lower min_count or raise max_size, or leave it out",
            )
        elif distinct > NEARLY_ALL_DISTINCT * counts.values:
            yield Oddity(
                "nearly as many ids as values",
                location,
                f"{distinct:,} ids for {counts.values:,} values",
                "most occur once or twice, too rarely to learn from; encode it with a min_count, or leave it out",
            )

    def _unseen(self, mapping: str, counted: MappingCounts) -> Iterator[Oddity]:
        for name, counts in counted.values.items():
            if counts.unseen > MOSTLY * counts.values:
                yield Oddity(
                    "feature whose values were mostly unseen in training",
                    f"{mapping}, {name}",
                    f"{_percent(counts.unseen, counts.values)} of {counts.values:,}",
                    "it looks like a date or a session id, from which nothing can be learned; leave it out",
                )

    def _spread(self, mapping: str, counted: MappingCounts, train: MappingCounts) -> Iterator[Oddity]:
        share, group = counted.groups.share_in(train.groups), self._spec.map_feature
        if share and group is not None:
            yield Oddity(
                "groups with rows in several mappings",
                f"{TRAIN} and {mapping}, {group.name}",
                f"{100 * share:.3g}% of the groups of {mapping}",
                "metrics and losses within groups see only a part of their rows; split by the group (`key`), unless it "
                "is meant to have rows before and after the split, as a user has",
            )


def unseen_ids(spec: FeatureSpec, encoders: Mapping[str, Encoder] | None = None) -> dict[str, range]:
    """Return the ids of values unseen in training, by feature: those that the specification states, else the encoders'.

    Features without such ids are left out.
    """
    found = {}
    for feature in spec.categorical:
        name = feature.name
        encoder = (encoders or {}).get(name)
        ids = encoder.encoder if isinstance(encoder, CrossedIds) else encoder
        if feature.unseen_id is not None:
            found[name] = feature.unseen_ids
        elif isinstance(ids, Vocabulary):
            found[name] = range(FIRST_OOV_ID, FIRST_OOV_ID + ids.oov_buckets)
    return found


def used_columns(spec: RawSpec) -> set[str]:
    """Return the names of features that need no channel: kept columns, inputs of crosses and shared vocabularies."""
    names = set(spec.keep)
    for raw in spec.features.values():
        if isinstance(raw.rule, CrossRule):
            names.update(raw.rule.inputs)
        elif isinstance(raw.rule, SharedVocabularyRule):
            names.add(raw.rule.feature)
    return names


def auc_standard_error(auc: float, positives: int, negatives: int) -> float:
    """Return the standard error of an AUC (Hanley & McNeil, 1982): how much it varies between samples of rows.

    Args:
        auc: the AUC.
        positives, negatives: number of rows, at least 1.
    """
    of_positives, of_negatives = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (positives - 1) * (of_positives - auc**2) + (negatives - 1) * (of_negatives - auc**2)
    return math.sqrt(variance / (positives * negatives))


def _crossed(encoders: Mapping[str, Encoder]) -> set[str]:
    crosses = [encoder for encoder in encoders.values() if isinstance(encoder, CrossedIds)]
    return {entry.name for encoder in crosses for entry in encoder.inputs}


def _few(location: str, counts: LabelCounts) -> Iterator[Oddity]:
    """Yield a label that is too rarely positive or negative to evaluate; one with a single class is no oddity."""
    if not counts.positives or not counts.negatives:
        return
    error = auc_standard_error(TYPICAL_AUC, counts.positives, counts.negatives)
    if error > LARGE_ERROR:
        rows = counts.positives + counts.negatives
        yield Oddity(
            "few rows to evaluate on",
            location,
            f"{counts.positives:,} positives of {rows:,}; standard error of an AUC of {TYPICAL_AUC}: {error:.3f}",
            "smaller differences between models mean nothing; evaluate on more rows",
        )


def _rates(mapping: str, name: str, train: LabelCounts, other: LabelCounts) -> Iterator[Oddity]:
    """Yield a label whose rate differs from that of the training rows: by a factor, and by more than chance.

    The difference is compared with its standard error if both rates were equal (weighted rows: the variance of a
    weighted mean).
    """
    if not train.weights or not other.weights:
        return
    low, high = sorted((train.rate, other.rate))
    rate = (train.positive_weights + other.positive_weights) / (train.weights + other.weights)
    spread = train.squares / train.weights**2 + other.squares / other.weights**2
    error = math.sqrt(rate * (1 - rate) * spread)
    if high > RATE_RATIO * low and high - low > STANDARD_ERRORS * error:
        rates = f"{100 * train.rate:.3g}% and {100 * other.rate:.3g}% positive"
        yield Oddity(
            "base rate that differs between mappings",
            f"{name}, {TRAIN} and {mapping}",
            f"{rates}, {(high - low) / error:.0f} standard errors",
            "probabilities will not be calibrated; check the split, `where` and sample weights",
        )


def _extended(least: float, most: float, ends: pa.StructScalar) -> tuple[float, float]:
    """Return a range that includes the result of min_max, which is null without values."""
    if ends["min"].is_valid:
        return min(least, ends["min"].as_py()), max(most, ends["max"].as_py())
    return least, most


def _numbers(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return [rows] float64, NaN for null."""
    return np.asarray(as_numbers(column).cast(pa.float64(), safe=False).fill_null(math.nan), np.float64)


def _percent(part: int, total: int) -> str:
    return f"{100 * part / total:.1f}%"
