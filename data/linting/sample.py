"""A bounded sample of a mapping's rows."""

import numpy as np

from data.loading.batch import Batch
from data.loading.batch_arrays import copy_rows, slice_rows
from data.loading.parquet_reader import ParquetReader

SAMPLE_ROWS = 100_000
# Row groups to read: at least so many, where there are, since neighbouring rows are alike; at most so many, for time.
FEWEST_UNITS, MOST_UNITS = 8, 64


def draw_sample(reader: ParquetReader, most_rows: int = SAMPLE_ROWS) -> Batch:
    """Rows of evenly spread row groups, in random order within each; the same ones every time.

    In memory are the sample and one row group.

    Args:
        reader: of the mapping.
        most_rows: a mapping that has no more, in at most MOST_UNITS row groups, is taken whole.

    Raises:
        DataError: a file is damaged, or a value is out of range.
    """
    rng = np.random.default_rng(0)
    units = spread_units(reader.unit_rows, most_rows)
    shares = share_rows(reader.unit_rows[units], most_rows)
    sample, start = reader.allocate(int(shares.sum())), 0
    for unit, share in zip(units.tolist(), shares.tolist(), strict=True):
        rows = int(reader.unit_rows[unit])
        decoded = reader.allocate(rows)
        reader.decode(unit, 0, rows, decoded)
        copy_rows(decoded, rng.permutation(rows)[:share], slice_rows(sample, start, start + share))
        start += share
    return sample


def spread_units(unit_rows: np.ndarray, most_rows: int) -> np.ndarray:
    """Positions [chosen] int64 of evenly spread units, as many as are likely to have enough rows."""
    enough = -(-most_rows * len(unit_rows) // int(unit_rows.sum()))
    count = min(len(unit_rows), max(FEWEST_UNITS, min(MOST_UNITS, enough)))
    return np.linspace(0, len(unit_rows) - 1, count).round().astype(np.int64)


def share_rows(unit_rows: np.ndarray, most_rows: int) -> np.ndarray:
    """[units] int64 rows to take of each, in all at most `most_rows`; small units are taken whole."""
    shares = np.zeros_like(unit_rows)
    left = most_rows
    for done, unit in enumerate(np.argsort(unit_rows, kind="stable")):
        shares[unit] = min(int(unit_rows[unit]), left // (len(unit_rows) - done))
        left -= int(shares[unit])
    return shares
