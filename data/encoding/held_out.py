"""Draw the training rows that are held out where a dataset has no validation mapping."""

from collections.abc import Callable

import numpy as np

from data.encoding.hashing import hash_rows
from data.errors import DataError
from data.loading.parquet import ParquetReader, StoredColumns
from data.spec.feature_spec import FeatureSpec
from data.spec.features import ONEHOT

LEAST_ROWS = 200  # held out of a small mapping, but at most MOST_SHARE of it
MOST_SHARE = 0.2
BLOCK_ROWS = 2**20  # rows hashed at a time; a multiple of 8, so that blocks pack into whole bytes


def draw_held_out(spec: FeatureSpec, mapping: str, share: float, seed: int) -> np.ndarray:
    """Draw rows of a mapping by a hash of their positions, the same on every worker.

    Where the mapping has the map feature, whole groups are drawn, since metrics over parts of groups mean little,
    unless it is also an input, such as the user: training would then never see the ids of the rows drawn.

    Args:
        spec: specification of the dataset.
        mapping: name of the mapping.
        share: share of its rows to draw; more of a small mapping.
        seed: seed of the draw, at least 0.

    Returns:
        A bit per row, set for those that are drawn, packed into bytes (see `numpy.packbits`).

    Raises:
        DataError: if nothing would be left to train on, or to evaluate.
    """
    rows = ParquetReader(spec, mapping, needs_labels=False).rows
    share = max(share, min(MOST_SHARE, LEAST_ROWS / rows))
    limit, keys_of = np.uint64(int(share * 2.0**64)), _keys(spec, mapping)
    blocks = [
        np.packbits(hash_rows(seed, keys_of(begin, min(begin + BLOCK_ROWS, rows))) < limit)
        for begin in range(0, rows, BLOCK_ROWS)
    ]
    packed = np.concatenate(blocks)
    drawn = int(np.bitwise_count(packed).sum())
    if drawn in (0, rows):
        raise DataError(
            f"mapping {mapping!r}: {drawn:,} of its {rows:,} rows would be held out for validation; add a `valid` "
            "mapping, or name the mapping to evaluate with --eval_mapping"
        )
    return packed


def _keys(spec: FeatureSpec, mapping: str) -> Callable[[int, int], np.ndarray]:
    """Return a function of a range of rows that returns what decides about each: its group, or its position."""
    group, stored = spec.map_feature, [name for chunk in spec.chunks(mapping) for name in chunk.features]
    if group is None or group.name not in stored or group in spec.channel(ONEHOT):
        return lambda begin, end: np.arange(begin, end)
    stream = StoredColumns(spec, mapping, [group.name]).stream()
    return lambda begin, end: stream.take(end - begin)[0].to_numpy()
