"""Arrow list arrays: their lengths, and lists cut to a maximum length."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.spec.raw.spec import Keep


def longest(lists: pa.Array) -> int:
    """Return the length of the longest list, 0 if there is none."""
    return int(pc.max(pc.list_value_length(lists)).as_py() or 0)


def keep_items(lists: pa.ListArray, limit: int, keep: Keep) -> pa.ListArray:
    """Cut lists to at most `limit` items: the first or the last ones. Null lists stay null."""
    if longest(lists) <= limit:
        return lists
    offsets = lists.offsets.to_numpy().astype(np.int64)
    lengths = np.diff(offsets)
    kept = np.minimum(lengths, limit)
    starts = offsets[:-1] + (lengths - kept if keep == "last" else 0)
    new_offsets = np.concatenate([[0], np.cumsum(kept)])
    items = np.repeat(starts - new_offsets[:-1], kept) + np.arange(new_offsets[-1])
    values = lists.values.take(pa.array(items))
    nulls = lists.is_null() if lists.null_count else None
    return pa.ListArray.from_arrays(pa.array(new_offsets, pa.int32()), values, mask=nulls)
