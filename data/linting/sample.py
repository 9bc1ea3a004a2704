"""Draws a bounded sample of a mapping's rows."""

from collections.abc import Callable

import numpy as np

from data.loading.batch import Batch
from data.loading.batch_arrays import copy_rows, slice_rows
from data.loading.parquet_reader import ParquetReader
from data.specification.feature_spec import FeatureSpec

SAMPLE_ROWS = 100_000
# Every column is compared with every label: with many of both, fewer rows are sampled, so that it takes only seconds.
COMPARISONS, FEWEST_ROWS, FEWEST_COLUMNS = 10**9, 5_000, 250
# Maximum number of values (rows times columns) decoded for the sample: a few seconds of reading.
MOST_VALUES = 2 * 10**8
# Row groups to read: a minimum, since neighboring rows are alike, and a maximum to bound the time.
FEWEST_UNITS, MOST_UNITS = 8, 64


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
    on_unit: Callable[[int, int], None] = lambda done, of: None,
) -> Batch:
    """Samples random rows of evenly spread row groups; deterministic.

    Only the sample and one row group are in memory at a time.

    Args:
        reader: reader of the mapping.
        most_rows: maximum number of rows; a mapping with no more than that, in at most MOST_UNITS row groups, is
            sampled completely if `most_read` allows it.
        most_read: approximate maximum number of rows to decode, or None for no limit.
        on_unit: called after each row group with the number done and the total.

    Returns:
        The sampled rows, row group by row group, in random order within each.

    Raises:
        DataError: A file is damaged, or a value is out of range.
    """
    rng = np.random.default_rng(0)
    units = spread_units(reader.unit_rows, most_rows, most_read)
    shares = share_rows(reader.unit_rows[units], most_rows)
    sample, start = reader.allocate(int(shares.sum())), 0
    for done, (unit, share) in enumerate(zip(units.tolist(), shares.tolist(), strict=True), start=1):
        rows = int(reader.unit_rows[unit])
        decoded = reader.allocate(rows)
        reader.decode(unit, 0, rows, decoded)
        copy_rows(decoded, rng.permutation(rows)[:share], slice_rows(sample, start, start + share))
        start += share
        on_unit(done, len(units))
    return sample


def spread_units(unit_rows: np.ndarray, most_rows: int, most_read: int | None = None) -> np.ndarray:
    """Chooses evenly spread units (row groups), as many as are expected to have enough rows.

    Args:
        unit_rows: [units] int64 rows per unit.
        most_rows: number of rows to sample.
        most_read: maximum expected number of rows in the chosen units; at least one unit is always chosen.

    Returns:
        [chosen] int64 positions of the chosen units.
    """
    units, rows = len(unit_rows), int(unit_rows.sum())
    enough = -(-most_rows * units // rows)
    count = min(units, max(FEWEST_UNITS, min(MOST_UNITS, enough)))
    if most_read is not None:
        count = min(count, max(1, most_read * units // rows))
    return np.linspace(0, len(unit_rows) - 1, count).round().astype(np.int64)


def share_rows(unit_rows: np.ndarray, most_rows: int) -> np.ndarray:
    """Returns the number of rows to take from each unit, [units] int64, at most `most_rows` in total.

    Rows are shared evenly. Units smaller than their share are taken completely and leave the rest to larger ones.
    """
    shares = np.zeros_like(unit_rows)
    left = most_rows
    # Smallest first, so that what they leave is shared among the others.
    for done, unit in enumerate(np.argsort(unit_rows, kind="stable")):
        shares[unit] = min(int(unit_rows[unit]), left // (len(unit_rows) - done))
        left -= int(shares[unit])
    return shares
