"""Which row of an embedding table belongs to a value in two encodings: matched by raw value. Imports no TensorFlow."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from data.encoding.encoders import (
    NULL_ID,
    PAD_ID,
    CrossedIds,
    Encoder,
    HashedIds,
    HashedRanks,
    IdentityIds,
    TimestampIds,
    Vocabulary,
)
from data.errors import DataError
from data.spec.features import Feature

Encoders = Mapping[str, Encoder]


@dataclass(frozen=True)
class RowMap:
    """Where the rows of a table come from.

    Attributes:
        sources: [rows] int64, the row of the old table that each row takes its values from; -1 for initial values.
        is_known: [rows] bool, whether that row had the same value. Others are new: copies of the row of unseen values.
        old_rows: number of rows of the old table.
        free, old_free: number of rows of both tables that are of no value, because their ids wait to be used again.
    """

    sources: np.ndarray
    is_known: np.ndarray
    old_rows: int
    free: int = 0
    old_free: int = 0

    @property
    def known(self) -> int:
        """Number of rows whose value was known."""
        return int(self.is_known.sum())

    @property
    def new(self) -> int:
        """Number of rows whose value is new."""
        return len(self.sources) - self.known - self.free

    @property
    def gone(self) -> int:
        """Number of rows of the old table whose value is gone."""
        return self.old_rows - self.known - self.old_free


class NoMatch(Exception):
    """Two encodings have nothing in common; the message says why."""


def map_rows(new: Feature, old: Feature, encoders: Encoders, old_encoders: Encoders) -> RowMap:
    """Match the ids of a feature in two datasets.

    Args:
        new, old: the feature in both specifications, with its cardinality.
        encoders, old_encoders: the encoders of both, by feature; empty if there are none.

    Raises:
        NoMatch: the ids have different meanings.
    """
    rows, old_rows = new.cardinality or 0, old.cardinality or 0
    encoder, old_encoder = encoders.get(new.name), old_encoders.get(old.name)
    if encoder is None or old_encoder is None:
        return by_id(rows, old_rows, new)
    if type(encoder) is not type(old_encoder):
        raise NoMatch(f"its encoder was {type(old_encoder).__name__} and is {type(encoder).__name__}")
    if isinstance(encoder, CrossedIds) and isinstance(old_encoder, CrossedIds):
        if encoder.inputs != old_encoder.inputs and [*map(vars, encoder.inputs)] != [*map(vars, old_encoder.inputs)]:
            raise NoMatch("it crosses other columns than before")
        for entry in encoder.inputs:
            if entry.is_feature and not _is_extended(encoders[entry.name], old_encoders[entry.name]):
                raise NoMatch(f"it crosses {entry.name}, whose ids have changed")
        encoder, old_encoder = encoder.encoder, old_encoder.encoder
        if type(encoder) is not type(old_encoder):
            raise NoMatch("the encoder of its combinations is of another kind")
    if isinstance(encoder, Vocabulary) and isinstance(old_encoder, Vocabulary):
        return _by_value(encoder, old_encoder, rows, old_rows)
    if reason := _changed(encoder, old_encoder):
        raise NoMatch(reason)
    return by_id(rows, old_rows, new)


def by_id(rows: int, old_rows: int, feature: Feature) -> RowMap:
    """Match ids with themselves: rows beyond the old table are copies of that of unseen values, if there is one."""
    sources = np.arange(rows, dtype=np.int64)
    is_known = sources < old_rows
    unseen = feature.unseen_id
    sources[~is_known] = -1 if unseen is None or unseen >= old_rows else unseen
    return RowMap(sources, is_known, old_rows)


def _by_value(encoder: Vocabulary, old: Vocabulary, rows: int, old_rows: int) -> RowMap:
    try:
        ids, old_ids = encoder.known_ids, old.encode_flat(encoder.known_values)
    except DataError as error:
        raise NoMatch(f"its values are of another kind than before ({error})") from error
    # An id without a value, such as one that waits to be used again, starts like an unseen value.
    sources = np.full(rows, encoder.unseen_id, np.int64)
    is_known = np.zeros(rows, bool)
    sources[ids], is_known[ids] = old_ids, old_ids >= old.first_known_id
    for own in (PAD_ID, NULL_ID):
        sources[own], is_known[own] = own, True
    buckets = np.arange(encoder.oov_buckets)
    first = encoder.unseen_id
    # Of more buckets than before, values go to these by the remainder of their hash.
    sources[first + buckets] = first + buckets % old.oov_buckets
    is_known[first + buckets] = buckets < old.oov_buckets
    return RowMap(sources, is_known, old_rows, encoder.values.null_count, old.values.null_count)


def _changed(encoder: Encoder, old: Encoder) -> str:
    """Return why the same id has another meaning than before; "" if it has the same."""
    if isinstance(encoder, HashedIds) and isinstance(old, HashedIds):
        same = (encoder.num_buckets, encoder.first_id) == (old.num_buckets, old.first_id)
        return "" if same else f"it has {encoder.num_buckets:,} buckets of hashes and had {old.num_buckets:,}"
    if isinstance(encoder, HashedRanks) and isinstance(old, HashedRanks):
        same = encoder.num_buckets == old.num_buckets and encoder.values.equals(old.values)
        return "" if same else "its ids are hashes of ranks, and the ranks of its values have changed"
    if isinstance(encoder, TimestampIds) and isinstance(old, TimestampIds):
        return "" if encoder.part == old.part else f"it is the {encoder.part} and was the {old.part}"
    if isinstance(encoder, IdentityIds) or getattr(encoder, "cardinality", 0) == getattr(old, "cardinality", 0):
        return ""
    return f"it has {getattr(encoder, 'cardinality', 0):,} ids and had {getattr(old, 'cardinality', 0):,}"


def _is_extended(encoder: Encoder, old: Encoder) -> bool:
    """Return whether every value that had an id of its own still has it, and new values have other ids."""
    if isinstance(encoder, Vocabulary) and isinstance(old, Vocabulary):
        try:
            ids, old_ids = encoder.known_ids, old.encode_flat(encoder.known_values)
        except DataError:
            return False
        known = old_ids >= old.first_known_id
        moved = (ids[known] != old_ids[known]).any() or (ids[~known] < old.cardinality).any()
        return encoder.oov_buckets == old.oov_buckets and not moved
    if type(encoder) is not type(old) or isinstance(encoder, CrossedIds):
        return False
    plain = {name: value for name, value in vars(encoder).items() if not name.startswith("_")}
    return all(_equal(value, vars(old).get(name)) for name, value in plain.items())


def _equal(value: object, other: object) -> bool:
    equals = getattr(value, "equals", None)  # Arrow arrays
    return bool(equals(other)) if callable(equals) else value == other
