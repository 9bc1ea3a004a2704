"""A bounded sample of a mapping's rows."""

from collections.abc import Callable

import numpy as np

from data.loading.batch import Batch
from data.loading.batch_arrays import copy_rows, slice_rows
from data.loading.parquet_reader import ParquetReader
from data.specification.feature_spec import FeatureSpec

SAMPLE_ROWS = 100_000
# Every column is compared with every label: of many, fewer rows are looked at, so that it takes seconds.
COMPARISONS, FEWEST_ROWS, FEWEST_COLUMNS = 10**9, 5_000, 250
# Values of the row groups that are decoded for the sample: a few seconds of reading.
MOST_VALUES = 2 * 10**8
# Row groups to read: at least so many, where there are, since neighbouring rows are alike; at most so many, for time.
FEWEST_UNITS, MOST_UNITS = 8, 64


def sample_rows(spec: FeatureSpec) -> int:
    """How many rows of a mapping are looked at: SAMPLE_ROWS, and fewer where many columns meet many labels."""
    columns = max(FEWEST_COLUMNS, _columns(spec))
    return min(SAMPLE_ROWS, max(FEWEST_ROWS, COMPARISONS // (columns * len(spec.labels))))


def most_read(spec: FeatureSpec) -> int:
    """Rows of row groups that may be decoded for the sample."""
    return MOST_VALUES // (_columns(spec) + len(spec.labels))


def _columns(spec: FeatureSpec) -> int:
    """Of a batch, besides the labels."""
    return len(spec.onehot) + len(spec.numerical) + sum(feature.max_hotness or 0 for feature in spec.multihot)


def draw_sample(
    reader: ParquetReader,
    most_rows: int = SAMPLE_ROWS,
    most_read: int | None = None,
    on_unit: Callable[[int, int], None] = lambda done, of: None,
) -> Batch:
    """Rows of evenly spread row groups, in random order within each; the same ones every time.

    In memory are the sample and one row group.

    Args:
        reader: of the mapping.
        most_rows: a mapping that has no more, in at most MOST_UNITS row groups, is taken whole.
        most_read: rows of the row groups that are decoded for it; None for any number.
        on_unit: is called with the number of row groups done and that of all.

    Raises:
        DataError: a file is damaged, or a value is out of range.
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
    """Positions [chosen] int64 of evenly spread units, as many as are likely to have enough rows.

    Args:
        unit_rows: [units] int64 rows of each.
        most_rows: of the sample.
        most_read: rows that all chosen units are likely to have at most, where more than one unit is chosen.
    """
    units, rows = len(unit_rows), int(unit_rows.sum())
    enough = -(-most_rows * units // rows)
    count = min(units, max(FEWEST_UNITS, min(MOST_UNITS, enough)))
    if most_read is not None:
        count = min(count, max(1, most_read * units // rows))
    return np.linspace(0, len(unit_rows) - 1, count).round().astype(np.int64)


def share_rows(unit_rows: np.ndarray, most_rows: int) -> np.ndarray:
    """[units] int64 rows to take of each, in all at most `most_rows`; small units are taken whole."""
    shares = np.zeros_like(unit_rows)
    left = most_rows
    for done, unit in enumerate(np.argsort(unit_rows, kind="stable")):
        shares[unit] = min(int(unit_rows[unit]), left // (len(unit_rows) - done))
        left -= int(shares[unit])
    return shares
