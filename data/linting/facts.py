"""Statistics of the labels of a mapping, over all of its rows."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from data.loading.parquet_reader import ParquetReader
from data.specification.feature_spec import LABEL, Feature, FeatureSpec


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
        classes = {"binary": 2, "regression": 0}.get(label.task, label.cardinality or 0)
        return cls(label, np.zeros(classes, np.int64))

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
        if given is not None and self.label.task == "binary":
            orphans = np.flatnonzero((values == 1) & (given == 0))
            if len(orphans) and not self.orphans:
                self.first_orphan = first_row + int(orphans[0])
            self.orphans += len(orphans)


def read_facts(
    spec: FeatureSpec, reader: ParquetReader, on_unit: Callable[[int, int], None] = lambda done, of: None
) -> list[LabelFacts]:
    """Computes the statistics of every label over all rows, row group by row group.

    Args:
        spec: specification of the dataset.
        reader: reader of a mapping's labels (see `labels_only`).
        on_unit: called after each row group with the number done and the total.

    Raises:
        DataError: A file is damaged, or holds an invalid label.
    """
    facts = {label.name: LabelFacts.of(label) for label in spec.labels}
    first_row = 0
    for unit, rows in enumerate(reader.unit_rows.tolist()):
        batch = reader.allocate(rows)
        reader.decode(unit, 0, rows, batch)
        columns = dict(zip(facts, batch.labels.T, strict=True))  # {label name: [rows]}
        for name, fact in facts.items():
            given = fact.label.given
            fact.add(columns[name], columns[given] if given else None, first_row)
        first_row += rows
        on_unit(unit + 1, len(reader.unit_rows))
    return list(facts.values())


def labels_only(spec: FeatureSpec) -> FeatureSpec:
    """Returns a specification with only the labels, so that no other column is read."""
    return replace(spec, features={label.name: label for label in spec.labels}, channels={LABEL: spec.channels[LABEL]})
