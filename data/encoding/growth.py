"""Extend a vocabulary by the values of a new dataset: known values keep their ids."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.encoding.counting import KeyCounts
from data.encoding.encoders import Vocabulary
from data.encoding.keys import KeyIndex
from data.spec.raw.spec import VocabularyRule


@dataclass(frozen=True, eq=False)
class Growth:
    """How a vocabulary is extended.

    Known values keep their ids, also those with fewer than `min_count` occurrences. A value that the training rows of
    `retire_after` datasets in a row do not have is retired: its id becomes free. New values take the free ids, lowest
    first, and then further ids, in the order of descending counts, ties by value, until `max_size` values have an id.
    The number of ids never falls.

    Attributes:
        vocabulary: the vocabulary to extend.
        retire_after: number of datasets in a row without a value after which it is retired, or None to retire none.
        reuses_ids: whether new values take free ids. It must be False if a cross has keys that were made of the ids.
    """

    vocabulary: Vocabulary
    retire_after: int | None
    reuses_ids: bool

    def extended(self, state: KeyCounts, rule: VocabularyRule, column: str, is_list: bool) -> Vocabulary:
        """Return the extended vocabulary.

        Args:
            state: counts of all values in the training rows of the new dataset.
            rule: which values get an id of their own; its `oov_buckets` are those of the vocabulary.
            column: name of the column that the vocabulary encodes.
            is_list: whether it holds lists.

        Raises:
            DataError: if the new dataset has strings where the vocabulary has integers, or vice versa.
        """
        old = self.vocabulary
        seen, new, new_counts = state.split(KeyIndex(column, old.values), rule.min_count, rule.max_size)
        has_value = old.values.is_valid().to_numpy(zero_copy_only=False)
        unseen_for = np.where(has_value & (seen == 0), old.unseen_for + 1, 0)
        if self.retire_after is not None:
            has_value = has_value & (unseen_for < self.retire_after)
        if rule.max_size is not None:
            room = max(0, rule.max_size - int(has_value.sum()))
            new, new_counts = new[:room], new_counts[:room]
        free = np.flatnonzero(~has_value)[: len(new)] if self.reuses_ids else np.empty(0, np.int64)
        added = len(new) - len(free)
        places = np.concatenate([free, len(has_value) + np.arange(added)])
        is_known = np.append(has_value, np.zeros(added, bool))
        counts = np.where(is_known, _padded(old.counts + seen, added), 0)
        counts[places] = new_counts
        # Where each value comes from: the old values, followed by the new ones.
        source = np.arange(len(is_known))
        source[places], is_known[places] = len(has_value) + np.arange(len(new)), True
        values = _joined(old.values, new).take(pa.array(source, mask=~is_known))
        unseen_for = np.where(is_known, _padded(unseen_for, added), 0)
        unseen_for[places] = 0
        return Vocabulary(column, values, counts, old.oov_buckets, is_list, unseen_for)


def growth_line(name: str, old: Vocabulary, new: Vocabulary) -> str:
    """Return a line that says how a vocabulary was extended."""
    size = len(old.values)
    is_known, is_used = _is_valid(old.values), _is_valid(new.values)
    is_same = np.zeros(len(new.values), bool)
    if old.values.type == new.values.type:
        is_same[:size] = pc.equal(old.values, new.values[:size]).fill_null(False).to_numpy(zero_copy_only=False)
    is_new = is_used & ~is_same
    seen = is_same & (new.unseen_for == 0)
    retired = is_known & ~is_same[:size]
    return (
        f"vocabulary of {name}: {is_known.sum():,} known, {seen.sum():,} of them seen again; {is_new.sum():,} new, "
        f"{is_new[:size].sum():,} of them on reused ids; {retired.sum():,} retired; {is_used.sum():,} in all, "
        f"{new.cardinality:,} ids"
    )


def _joined(old: pa.Array, new: pa.Array) -> pa.Array:
    """Return old values followed by new ones. Values that are all null, or none, take the type of the others."""
    kind = new.type if len(new) else old.type
    # Not a cast: texts do not become integers.
    alike = [values if values.type == kind else pa.nulls(len(values), kind) for values in (old, new)]
    return pa.concat_arrays(alike)


def _padded(numbers: np.ndarray, added: int) -> np.ndarray:
    return np.append(numbers, np.zeros(added, np.int64))


def _is_valid(values: pa.Array) -> np.ndarray:
    return values.is_valid().to_numpy(zero_copy_only=False)
