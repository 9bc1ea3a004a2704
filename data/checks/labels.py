"""Checks the labels of a mapping: what makes training pointless, or its results misleading."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import numpy as np

from data.checks.leaks import Leak, find_leaks
from data.checks.sample import draw_sample, max_read, sample_rows
from data.loading.decode import OovPolicy
from data.loading.parquet import ParquetReader
from data.spec.feature_spec import FeatureSpec
from data.spec.features import LABEL, Feature

CLASSES_SHOWN = 10


@dataclass
class LabelStatistics:
    """Statistics of the known, valid values of one label. Sample weights are ignored.

    Attributes:
        label: specification of the label.
        rows: number of values.
        total: sum of the values; the number of positives of a binary label.
        least: smallest value.
        most: largest value.
        class_rows: {class: rows} of a multiclass label; empty for other tasks.
        orphans: number of rows in which a binary label is 1 although its `given` label is 0, a contradiction.
        first_orphan: index of the first of these rows in the dataset, or -1 if there is none.
    """

    label: Feature
    rows: int = 0
    total: float = 0.0
    least: float = np.inf
    most: float = -np.inf
    class_rows: Counter[float] = field(default_factory=Counter)
    orphans: int = 0
    first_orphan: int = -1

    @property
    def is_constant(self) -> bool:
        """Whether there are values, and all of them are the same."""
        return self.rows > 0 and self.least == self.most

    def add(self, values: np.ndarray) -> None:
        """Add valid values, [count] of any float dtype without NaN."""
        if not len(values):
            return
        self.rows += len(values)
        self.total += float(values.sum(dtype=np.float64))
        self.least = min(self.least, float(values.min()))
        self.most = max(self.most, float(values.max()))
        if self.label.is_class:
            classes, rows = np.unique(values, return_counts=True)
            self.class_rows.update(dict(zip(classes.tolist(), rows.tolist(), strict=True)))

    def add_rows(self, values: np.ndarray, given: np.ndarray | None, first_row: int) -> None:
        """Add the known values in the label's sample space (where its `given` label is 1) of consecutive rows.

        Args:
            values: [rows] float32 values of the label, NaN where missing.
            given: [rows] float32 values of its `given` label, or None if it has none.
            first_row: index of the first row in the dataset.
        """
        self.add(values[~np.isnan(values) if given is None else ~np.isnan(values) & (given == 1)])
        if given is not None and self.label.is_binary:
            orphans = np.flatnonzero((values == 1) & (given == 0))
            if len(orphans) and not self.orphans:
                self.first_orphan = first_row + int(orphans[0])
            self.orphans += len(orphans)

    def describe(self) -> str:
        """Describe the rate of positives, the most and least frequent class, or the range and mean, by task."""
        name, rows = self.label.name, self.rows
        if not rows:
            return f"{name}: no value"
        if self.label.is_binary:
            return f"{name}: {100 * self.total / rows:.4g}% positive of {rows:,}"
        if self.label.is_class:
            ranked = self.class_rows.most_common()
            most, least = (f"{value:g} ({100 * count / rows:.4g}%)" for value, count in (ranked[0], ranked[-1]))
            seen = f"{len(ranked)} of {self.label.cardinality} classes"
            return f"{name}: {seen}, most often {most}, least often {least}, of {rows:,}"
        return f"{name}: {self.least:g} to {self.most:g}, mean {self.total / rows:.6g}, of {rows:,}"


@dataclass(frozen=True)
class LabelReport:
    """The findings about the labels of a mapping, one text each, with the label, its location and a fix.

    Attributes:
        problems: findings that make training pointless: constant or contradictory labels.
        warnings: findings that may make the result worth less than it seems: absent classes and leaking features.
    """

    problems: tuple[str, ...]
    warnings: tuple[str, ...]


def inspect_labels(
    spec: FeatureSpec,
    mapping: str,
    oov_policy: OovPolicy = "error",
    on_progress: Callable[[str, int, int], None] = lambda what, done, of: None,
) -> LabelReport:
    """Check the labels of a mapping before training.

    Label statistics cover all rows. Features that leak a label (`data.checks.leaks`) are looked for in a sample of
    rows, which is read with the out-of-vocabulary policy of the training.

    Args:
        spec: specification of the dataset.
        mapping: name of the mapping to check.
        oov_policy: the training's policy for ids out of range.
        on_progress: called with what is being processed, the number done and the total.

    Raises:
        DataError: A file is missing or damaged, or holds invalid values.
    """
    reader = ParquetReader(spec.only(LABEL), mapping)
    labels = read_statistics(spec, reader, partial(on_progress, "row groups of labels"))
    problems = [
        text for found in labels for text in (_constant(found, reader, mapping), _orphans(found, reader)) if text
    ]
    warnings = [text for found in labels if (text := _absent_classes(found, mapping))]
    sample = draw_sample(
        ParquetReader(spec, mapping, oov_policy=oov_policy),
        sample_rows(spec),
        max_read(spec),
        partial(on_progress, "row groups of a sample"),
    )
    warnings += [_describe_leak(leak) for leak in find_leaks(spec, sample, partial(on_progress, "features"))]
    return LabelReport(tuple(problems), tuple(warnings))


def read_statistics(
    spec: FeatureSpec,
    reader: ParquetReader,
    on_row_group: Callable[[int, int], None] = lambda done, of: None,
    part: np.ndarray | None = None,
) -> list[LabelStatistics]:
    """Compute the statistics of every label over all rows of its sample space, row group by row group.

    Args:
        spec: specification of the dataset.
        reader: reader of a mapping's labels.
        on_row_group: called after each row group with the number done and the total.
        part: [rows] bool, the rows of the mapping that count; None for all.

    Raises:
        DataError: A file is damaged, or holds an invalid label.
    """
    labels = {label.name: LabelStatistics(label) for label in spec.labels}
    first_row = 0
    for row_group, rows in enumerate(reader.row_group_rows.tolist()):
        batch = reader.allocate(rows)
        reader.decode(row_group, 0, rows, batch)
        counted = batch.labels if part is None else batch.labels[part[first_row : first_row + rows]]
        columns = dict(zip(labels, counted.T, strict=True))  # {label name: [rows]}
        for name, statistics in labels.items():
            given = statistics.label.given
            statistics.add_rows(columns[name], columns[given] if given else None, first_row)
        first_row += rows
        on_row_group(row_group + 1, len(reader.row_group_rows))
    return list(labels.values())


def _constant(statistics: LabelStatistics, reader: ParquetReader, mapping: str) -> str | None:
    """Describe a label from which nothing can be learned: without known values, or with the same one in all rows."""
    label = statistics.label
    if statistics.least < statistics.most:
        return None
    where = (
        f"among {statistics.rows:,} rows"
        if label.given is None
        else f"among {statistics.rows:,} rows with {label.given} = 1"
    )
    if not statistics.rows:
        what = f"is known in no row {'' if label.given is None else f'with {label.given} = 1 '}"
    elif label.is_binary:
        what = f"has no {'negative' if statistics.least else 'positive'} {where} "
    else:
        what = f"is always {statistics.least:g} {where} "
    return (
        f"{label.name}: {what}of mapping {mapping!r} ({reader.location(label.name, 0).path}, ...); "
        "check how it was computed, or remove it from channel_spec.label"
    )


def _orphans(statistics: LabelStatistics, reader: ParquetReader) -> str | None:
    """Describe positives outside of a label's sample space, such as conversions without a click."""
    label = statistics.label
    if not statistics.orphans:
        return None
    location = reader.location(label.name, statistics.first_orphan)
    return (
        f"{label.name}: is 1 in {statistics.orphans:,} rows in which {label.given} is 0, the first in row "
        f"{location.first_row} of {location.path}; `given: {label.given}` says that there are none; "
        "correct the rows, or remove `given`"
    )


def _absent_classes(statistics: LabelStatistics, mapping: str) -> str | None:
    label, seen = statistics.label, statistics.class_rows
    classes = label.cardinality or 0
    count = classes - len(seen)
    if not label.is_class or not count or statistics.least == statistics.most:
        return None
    first = list(islice((str(number) for number in range(classes) if number not in seen), CLASSES_SHOWN))
    shown = ", ".join(first) + (", ..." if count > CLASSES_SHOWN else "")
    return (
        f"{label.name}: {count:,} of {classes:,} classes are in no row of mapping {mapping!r} ({shown}); they cannot "
        "be learned. Renumber the classes, or add rows."
    )


def _describe_leak(leak: Leak) -> str:
    if leak.measure == "equal":
        what = f"equals {leak.label} in all {leak.rows:,} sampled rows"
    else:
        what = f"alone predicts {leak.label} with {leak.measure} {leak.value:.4f} in {leak.rows:,} sampled rows"
    return f"{leak.feature}: {what}; if it is not known before the label is, remove it from channel_spec"
