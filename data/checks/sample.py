"""Draws a sample of a mapping's rows, for checks that compare every column with every label."""

from collections.abc import Callable

import numpy as np

from data.loading.batch import Batch, copy_rows, slice_rows, vector_columns
from data.loading.lists import join_rows, stack_columns
from data.loading.parquet import ParquetReader
from data.spec.feature_spec import FeatureSpec

SAMPLE_ROWS = 100_000
# Every column is compared with every label: with many of both, fewer rows are sampled, so that it takes only seconds.
COMPARISONS, MIN_ROWS, MIN_COLUMNS = 10**9, 5_000, 250
# Maximum number of values (rows times columns) decoded for the sample: a few seconds of reading.
MAX_VALUES = 2 * 10**8
# Row groups to read: a minimum, since neighboring rows are alike, and a maximum to bound the time.
MIN_ROW_GROUPS, MAX_ROW_GROUPS = 8, 64


def sample_rows(spec: FeatureSpec) -> int:
    """Return the number of rows to sample: SAMPLE_ROWS, or fewer for many columns and labels."""
    columns = max(MIN_COLUMNS, _columns(spec))
    return min(SAMPLE_ROWS, max(MIN_ROWS, COMPARISONS // (columns * len(spec.labels))))


def max_read(spec: FeatureSpec) -> int:
    """Return the maximum number of rows to decode for the sample."""
    return MAX_VALUES // (_columns(spec) + len(spec.labels))


def _columns(spec: FeatureSpec) -> int:
    """Return the number of input columns of a batch."""
    lists = sum(feature.max_hotness or 0 for feature in spec.multihot + spec.weighted)
    lists += sum(sequence.length * len(sequence.features) for sequence in spec.sequences)
    return len(spec.onehot) + len(spec.numerical) + vector_columns(spec) + lists


def draw_sample(
    reader: ParquetReader,
    max_rows: int = SAMPLE_ROWS,
    max_read: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> Batch:
    """Sample random rows of evenly spread row groups; deterministic.

    Only the sample and one row group are in memory at a time.

    Args:
        reader: reader of the mapping.
        max_rows: maximum number of rows; a mapping with no more than that, in at most MAX_ROW_GROUPS row groups, is
            sampled completely if `max_read` allows it.
        max_read: approximate maximum number of rows to decode, or None for no limit.
        on_progress: called after each row group with the number done and the total.

    Returns:
        The sampled rows, row group by row group, in random order within each.

    Raises:
        DataError: A file is damaged, or a value is out of range.
    """
    rng = np.random.default_rng(0)
    row_groups = spread_row_groups(reader.row_group_rows, max_rows, max_read)
    quotas = quotas_of(reader.row_group_rows[row_groups], max_rows)
    sample, start, lists, weights = reader.allocate_batch(int(quotas.sum())), 0, [], []
    for done, (row_group, quota) in enumerate(zip(row_groups.tolist(), quotas.tolist(), strict=True), start=1):
        rows = int(reader.row_group_rows[row_group])
        buffer = reader.allocate(rows)
        positions = rng.permutation(rows)[:quota]
        decoded = reader.decode(row_group, 0, rows, buffer)
        lists.append(stack_columns([decoded.id_lists], np.int32).take(positions))
        weights.append(stack_columns([decoded.number_lists], np.float32).take(positions))
        copy_rows(buffer, positions, slice_rows(sample, start, start + quota))
        start += quota
        on_progress(done, len(row_groups))
    return sample._replace(id_lists=join_rows(lists), number_lists=join_rows(weights))


def spread_row_groups(row_group_rows: np.ndarray, max_rows: int, max_read: int | None = None) -> np.ndarray:
    """Choose evenly spread row groups, as many as are expected to have enough rows.

    Args:
        row_group_rows: [row_groups] int64 rows per row group.
        max_rows: number of rows to sample.
        max_read: maximum expected number of rows in the chosen row groups; at least one is always chosen.

    Returns:
        [chosen] int64 indices of the chosen row groups.
    """
    row_groups, rows = len(row_group_rows), int(row_group_rows.sum())
    enough = -(-max_rows * row_groups // rows)
    count = min(row_groups, max(MIN_ROW_GROUPS, min(MAX_ROW_GROUPS, enough)))
    if max_read is not None:
        count = min(count, max(1, max_read * row_groups // rows))
    return np.linspace(0, len(row_group_rows) - 1, count).round().astype(np.int64)


def quotas_of(row_group_rows: np.ndarray, max_rows: int) -> np.ndarray:
    """Return the number of rows to take from each row group, [row_groups] int64, at most `max_rows` in total.

    Rows are shared evenly. Row groups smaller than their share are taken completely and leave the rest to larger ones.
    """
    quotas = np.zeros_like(row_group_rows)
    left = max_rows
    # Smallest first, so that what they leave is shared among the others.
    for done, row_group in enumerate(np.argsort(row_group_rows, kind="stable")):
        quotas[row_group] = min(int(row_group_rows[row_group]), left // (len(row_group_rows) - done))
        left -= int(quotas[row_group])
    return quotas
