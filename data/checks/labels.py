"""Label checks: reports what makes training on a mapping useless or its results misleading."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from data.checks.leaks import Leak, find_leaks
from data.loading.batch import Batch, copy_rows, slice_rows
from data.loading.decode import OovPolicy
from data.loading.parquet import ParquetReader
from data.spec.feature_spec import FeatureSpec
from data.spec.features import LABEL, Feature

SAMPLE_ROWS = 100_000
# Every column is compared with every label: with many of both, fewer rows are sampled, so that it takes only seconds.
COMPARISONS, FEWEST_ROWS, FEWEST_COLUMNS = 10**9, 5_000, 250
# Maximum number of values (rows times columns) decoded for the sample: a few seconds of reading.
MOST_VALUES = 2 * 10**8
# Row groups to read: a minimum, since neighboring rows are alike, and a maximum to bound the time.
MIN_ROW_GROUPS, MAX_ROW_GROUPS = 8, 64


def sample_rows(spec: FeatureSpec) -> int:
    """Returns the number of rows to sample: SAMPLE_ROWS, or fewer for many columns and labels."""
    columns = max(FEWEST_COLUMNS, _columns(spec))
    return min(SAMPLE_ROWS, max(FEWEST_ROWS, COMPARISONS // (columns * len(spec.labels))))


def most_read(spec: FeatureSpec) -> int:
    """Returns the maximum number of rows to decode for the sample."""
    return MOST_VALUES // (_columns(spec) + len(spec.labels))


def _columns(spec: FeatureSpec) -> int:
    """Returns the number of input columns of a batch."""
    return len(spec.onehot) + len(spec.numerical) + sum(feature.max_hotness or 0 for feature in spec.multihot)


def draw_sample(
    reader: ParquetReader,
    most_rows: int = SAMPLE_ROWS,
    most_read: int | None = None,
    on_row_group: Callable[[int, int], None] = lambda done, of: None,
) -> Batch:
    """Samples random rows of evenly spread row groups; deterministic.

    Only the sample and one row group are in memory at a time.

    Args:
        reader: reader of the mapping.
        most_rows: maximum number of rows; a mapping with no more than that, in at most MAX_ROW_GROUPS row groups, is
            sampled completely if `most_read` allows it.
        most_read: approximate maximum number of rows to decode, or None for no limit.
        on_row_group: called after each row group with the number done and the total.

    Returns:
        The sampled rows, row group by row group, in random order within each.

    Raises:
        DataError: A file is damaged, or a value is out of range.
    """
    rng = np.random.default_rng(0)
    row_groups = spread_row_groups(reader.row_group_rows, most_rows, most_read)
    shares = share_rows(reader.row_group_rows[row_groups], most_rows)
    sample, start = reader.allocate(int(shares.sum())), 0
    for done, (row_group, share) in enumerate(zip(row_groups.tolist(), shares.tolist(), strict=True), start=1):
        rows = int(reader.row_group_rows[row_group])
        decoded = reader.allocate(rows)
        reader.decode(row_group, 0, rows, decoded)
        copy_rows(decoded, rng.permutation(rows)[:share], slice_rows(sample, start, start + share))
        start += share
        on_row_group(done, len(row_groups))
    return sample


def spread_row_groups(row_group_rows: np.ndarray, most_rows: int, most_read: int | None = None) -> np.ndarray:
    """Chooses evenly spread row groups, as many as are expected to have enough rows.

    Args:
        row_group_rows: [row_groups] int64 rows per row group.
        most_rows: number of rows to sample.
        most_read: maximum expected number of rows in the chosen row groups; at least one is always chosen.

    Returns:
        [chosen] int64 indices of the chosen row groups.
    """
    row_groups, rows = len(row_group_rows), int(row_group_rows.sum())
    enough = -(-most_rows * row_groups // rows)
    count = min(row_groups, max(MIN_ROW_GROUPS, min(MAX_ROW_GROUPS, enough)))
    if most_read is not None:
        count = min(count, max(1, most_read * row_groups // rows))
    return np.linspace(0, len(row_group_rows) - 1, count).round().astype(np.int64)


def share_rows(row_group_rows: np.ndarray, most_rows: int) -> np.ndarray:
    """Returns the number of rows to take from each row group, [row_groups] int64, at most `most_rows` in total.

    Rows are shared evenly. Units smaller than their share are taken completely and leave the rest to larger ones.
    """
    shares = np.zeros_like(row_group_rows)
    left = most_rows
    # Smallest first, so that what they leave is shared among the others.
    for done, row_group in enumerate(np.argsort(row_group_rows, kind="stable")):
        shares[row_group] = min(int(row_group_rows[row_group]), left // (len(row_group_rows) - done))
        left -= int(shares[row_group])
    return shares


@dataclass
class LabelFacts:
    """Statistics of one label, complete once `add` has seen all rows.

    Only rows in the label's sample space (where its `given` label is 1) with a known value are counted. Sample weights
    are ignored.

    Attributes:
        label: specification of the label.
        counts: [classes] int64 rows per class: negatives and positives of a binary label; empty for a regression.
        rows: number of counted rows.
        least: smallest value.
        most: largest value.
        orphans: number of rows in which a binary label is 1 although its `given` label is 0, a contradiction.
        first_orphan: position of the first of these rows in the dataset, or -1 if there is none.
    """

    label: Feature
    counts: np.ndarray
    rows: int = 0
    least: float = np.inf
    most: float = -np.inf
    orphans: int = 0
    first_orphan: int = -1

    @classmethod
    def of(cls, label: Feature) -> "LabelFacts":
        """Creates empty statistics for a label."""
        return cls(label, np.zeros(label.num_classes, np.int64))

    def add(self, values: np.ndarray, given: np.ndarray | None, first_row: int) -> None:
        """Adds consecutive rows.

        Args:
            values: [rows] float32 values of the label, NaN where missing.
            given: [rows] float32 values of its `given` label, or None if it has none.
            first_row: position of the first row in the dataset.
        """
        known = values[~np.isnan(values) if given is None else ~np.isnan(values) & (given == 1)]
        if len(known):
            self.rows += len(known)
            self.least = min(self.least, float(known.min()))
            self.most = max(self.most, float(known.max()))
            if len(self.counts):
                self.counts += np.bincount(known.astype(np.int64), minlength=len(self.counts))
        if given is not None and self.label.is_binary:
            orphans = np.flatnonzero((values == 1) & (given == 0))
            if len(orphans) and not self.orphans:
                self.first_orphan = first_row + int(orphans[0])
            self.orphans += len(orphans)


def read_facts(
    spec: FeatureSpec, reader: ParquetReader, on_row_group: Callable[[int, int], None] = lambda done, of: None
) -> list[LabelFacts]:
    """Computes the statistics of every label over all rows, row group by row group.

    Args:
        spec: specification of the dataset.
        reader: reader of a mapping's labels (see `labels_only`).
        on_row_group: called after each row group with the number done and the total.

    Raises:
        DataError: A file is damaged, or holds an invalid label.
    """
    facts = {label.name: LabelFacts.of(label) for label in spec.labels}
    first_row = 0
    for row_group, rows in enumerate(reader.row_group_rows.tolist()):
        batch = reader.allocate(rows)
        reader.decode(row_group, 0, rows, batch)
        columns = dict(zip(facts, batch.labels.T, strict=True))  # {label name: [rows]}
        for name, fact in facts.items():
            given = fact.label.given
            fact.add(columns[name], columns[given] if given else None, first_row)
        first_row += rows
        on_row_group(row_group + 1, len(reader.row_group_rows))
    return list(facts.values())


def labels_only(spec: FeatureSpec) -> FeatureSpec:
    """Returns a specification with only the labels, so that no other column is read."""
    return replace(spec, features={label.name: label for label in spec.labels}, channels={LABEL: spec.channels[LABEL]})


CLASSES_SHOWN = 10


@dataclass(frozen=True)
class LabelLint:
    """The findings about the labels of a mapping, one text each, with the label, its location and a fix.

    Attributes:
        problems: findings that make training pointless: constant or contradictory labels.
        warnings: findings that may make the result worth less than it seems: absent classes and leaking features.
    """

    problems: tuple[str, ...]
    warnings: tuple[str, ...]


def lint_labels(
    spec: FeatureSpec,
    mapping: str,
    oov_policy: OovPolicy = "error",
    on_progress: Callable[[str, int, int], None] = lambda what, done, of: None,
) -> LabelLint:
    """Checks the labels of a mapping before training.

    Label statistics (`data.checks.labels`) cover all rows. Features that leak a label (`data.checks.leaks`) are looked
    for in a sample of rows (`data.checks.labels`), which is read with the out-of-vocabulary policy of the training.

    Args:
        spec: specification of the dataset.
        mapping: name of the mapping to check.
        oov_policy: the training's policy for ids out of range.
        on_progress: called with what is being processed, the number done and the total.

    Raises:
        DataError: A file is missing or damaged, or holds invalid values.
    """
    reader = ParquetReader(labels_only(spec), mapping)
    facts = read_facts(spec, reader, partial(on_progress, "row groups of labels"))
    problems = [text for fact in facts for text in (_one_sided(fact, reader, mapping), _orphans(fact, reader)) if text]
    warnings = [text for fact in facts if (text := _absent_classes(fact, mapping))]
    sample = draw_sample(
        ParquetReader(spec, mapping, oov_policy=oov_policy),
        sample_rows(spec),
        most_read(spec),
        partial(on_progress, "row groups of a sample"),
    )
    warnings += [_told(leak) for leak in find_leaks(spec, sample, partial(on_progress, "features"))]
    return LabelLint(tuple(problems), tuple(warnings))


def _one_sided(fact: LabelFacts, reader: ParquetReader, mapping: str) -> str | None:
    """Describes a label from which nothing can be learned: without known values, or with the same one in all rows."""
    label = fact.label
    if fact.least < fact.most:
        return None
    where = f"among {fact.rows:,} rows" if label.given is None else f"among {fact.rows:,} rows with {label.given} = 1"
    if not fact.rows:
        what = f"is known in no row {'' if label.given is None else f'with {label.given} = 1 '}"
    elif label.is_binary:
        what = f"has no {'negative' if fact.least else 'positive'} {where} "
    else:
        what = f"is always {fact.least:g} {where} "
    return (
        f"{label.name}: {what}of mapping {mapping!r} ({reader.location(label.name, 0).path}, ...); "
        "check how it was made, or take it out of channel_spec.label"
    )


def _orphans(fact: LabelFacts, reader: ParquetReader) -> str | None:
    """Describes positives outside of a label's sample space, such as conversions without a click."""
    label = fact.label
    if not fact.orphans:
        return None
    location = reader.location(label.name, fact.first_orphan)
    return (
        f"{label.name}: is 1 in {fact.orphans:,} rows in which {label.given} is 0, the first in row "
        f"{location.first_row} of {location.path}; `given: {label.given}` says that there are none; "
        "correct the rows, or remove `given`"
    )


def _absent_classes(fact: LabelFacts, mapping: str) -> str | None:
    absent = [str(number) for number, count in enumerate(fact.counts.tolist()) if not count]
    if not fact.label.is_class or not absent or fact.least == fact.most:
        return None
    shown = ", ".join(absent[:CLASSES_SHOWN]) + (", ..." if len(absent) > CLASSES_SHOWN else "")
    return (
        f"{fact.label.name}: {len(absent):,} of {len(fact.counts):,} classes are in no row of mapping {mapping!r} "
        f"({shown}); they cannot be learned. Renumber the classes, or add rows."
    )


def _told(leak: Leak) -> str:
    if leak.measure == "equal":
        what = f"equals {leak.label} in all {leak.rows:,} sampled rows"
    else:
        what = f"alone tells {leak.label} with {leak.measure} {leak.value:.4f} in {leak.rows:,} sampled rows"
    return f"{leak.feature}: {what}; if it is not known before the label is, take it out of channel_spec"
