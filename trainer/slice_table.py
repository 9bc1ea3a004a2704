"""The metrics of the slices of an evaluation, as records of the log and as a CSV table."""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from trainer.tasks.evaluation import SliceResult

SLICES_KEY = "slices"  # in the log
SLICE_COLUMNS = ("column", "value", "task", "rows", "positives")  # of the table, before the metrics
ERROR_SUFFIX = "_se"


def as_records(slices: Sequence[SliceResult]) -> list[dict[str, Any]]:
    """Convert slices to their log format: one record per column, value and task, with the fields of SliceResult."""
    return [one._asdict() for one in slices]


def as_csv(slices: Sequence[SliceResult]) -> str:
    """Format slices as a CSV table with a header.

    It has one line per column, value and task, with SLICE_COLUMNS, then each metric followed by its standard error,
    under the metric's name and ERROR_SUFFIX. Numbers read back equal; undefined ones are empty.
    """
    names = list(dict.fromkeys(name for one in slices for name in one.metrics))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*SLICE_COLUMNS, *(column for name in names for column in (name, name + ERROR_SUFFIX))])
    for one in slices:
        pairs = [(one.metrics.get(name, math.nan), one.standard_errors.get(name, math.nan)) for name in names]
        numbers = ["" if math.isnan(value) else repr(value) for pair in pairs for value in pair]
        count = "" if one.positives is None else one.positives
        writer.writerow([one.column, one.value, one.task, one.rows, count, *numbers])
    return text.getvalue()
