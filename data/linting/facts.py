"""What the labels of a mapping hold, counted over all of its rows."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from data.loading.parquet_reader import ParquetReader
from data.specification.feature_spec import LABEL, Feature, FeatureSpec


@dataclass
class LabelFacts:
    """What is known of one label after `add` has seen all rows.

    Only rows in the label's sample space (those in which its `given` label is 1) whose value is known are counted;
    sample weights are not looked at.

    Attributes:
        label: the label.
        counts: [classes] int64 rows of each class: negatives and positives of a binary label; empty for a regression.
        rows: counted, of all classes.
        least, most: smallest and largest value.
        orphans: positives of a binary label in rows in which its `given` label is 0, which therefore cannot be.
        first_orphan: the first of these rows in the dataset, -1 without one.
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
        """Facts of no row."""
        classes = {"binary": 2, "regression": 0}.get(label.task, label.cardinality or 0)
        return cls(label, np.zeros(classes, np.int64))

    def add(self, values: np.ndarray, given: np.ndarray | None, first_row: int) -> None:
        """Counts consecutive rows.

        Args:
            values: [rows] float32 of the label, NaN where it is missing.
            given: [rows] float32 of its `given` label, None without one.
            first_row: position of the first row in the dataset.
        """
        known = values[~np.isnan(values) if given is None else ~np.isnan(values) & (given == 1)]
        if len(known):
            self.rows += len(known)
            self.least = min(self.least, float(known.min()))
            self.most = max(self.most, float(known.max()))
            if len(self.counts):
                self.counts += np.bincount(known.astype(np.int64), minlength=len(self.counts))
        if given is not None and self.label.task == "binary":
            orphans = np.flatnonzero((values == 1) & (given == 0))
            if len(orphans) and not self.orphans:
                self.first_orphan = first_row + int(orphans[0])
            self.orphans += len(orphans)


def read_facts(
    spec: FeatureSpec, reader: ParquetReader, on_unit: Callable[[int, int], None] = lambda done, of: None
) -> list[LabelFacts]:
    """Facts of every label over all rows that a reader of the labels has, row group by row group.

    Args:
        spec: the specification.
        reader: of the labels.
        on_unit: is called with the number of row groups done and that of all.

    Raises:
        DataError: a file is damaged, or holds a label that cannot be used.
    """
    facts = {label.name: LabelFacts.of(label) for label in spec.labels}
    first_row = 0
    for unit, rows in enumerate(reader.unit_rows.tolist()):
        batch = reader.allocate(rows)
        reader.decode(unit, 0, rows, batch)
        columns = dict(zip(facts, batch.labels.T, strict=True))
        for name, fact in facts.items():
            given = fact.label.given
            fact.add(columns[name], columns[given] if given else None, first_row)
        first_row += rows
        on_unit(unit + 1, len(reader.unit_rows))
    return list(facts.values())


def labels_only(spec: FeatureSpec) -> FeatureSpec:
    """A specification of the labels alone, for reading nothing else."""
    return replace(spec, features={label.name: label for label in spec.labels}, channels={LABEL: spec.channels[LABEL]})
