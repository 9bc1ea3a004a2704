"""Training of the table rows of unseen values and of null where the training data has few or none of them.

Nothing would train these rows otherwise, so new users and items would get the noise of their random start.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data.encoding.hashing import mix
from data.loading.batch import Batch
from data.spec.feature_spec import FeatureSpec
from data.spec.features import Feature

NONE = -1  # no such id
DRAWS_PER_WORD = 4  # 16-bit numbers in a 64-bit hash
DRAW_RANGE = 2**16
NULL_ONE_IN = 8  # of the replaced ids become null's, if null is as unknown as unseen values are: it is the rarer one


def has_reserved_ids(spec: FeatureSpec) -> bool:
    """Return whether a categorical feature states the id of null or of unseen values."""
    return any(feature.null_id is not None or feature.unseen_ids for feature in spec.onehot + spec.multihot)


class _Numbers(NamedTuple):
    """A numerical feature that is computed from the same raw column as a one-hot feature.

    Attributes:
        slot: index of its column in `Batch.numerical`.
        feature: index of the one-hot feature in `_Field.columns`.
        value: its value for unseen values.
    """

    slot: int
    feature: int
    value: float


@dataclass(frozen=True)
class _Field:
    """The columns of "onehot" or "multihot" in a batch whose features state an id of null or of unseen values.

    Attributes:
        name: name of the field.
        columns: [n] int64 indices of the columns.
        null_ids: [n] int64 id of null, or NONE.
        unseen_ids: [n] int64 first id of unseen values, or NONE.
        buckets: [n] int64 number of ids of unseen values; 0 without any.
        features: [n] names of the features.
    """

    name: str
    columns: np.ndarray
    null_ids: np.ndarray
    unseen_ids: np.ndarray
    buckets: np.ndarray
    features: tuple[str, ...]

    @classmethod
    def of(cls, name: str, widths: Iterable[tuple[Feature, int]]) -> "_Field":
        """Describes a field with the given features, each with its number of columns."""
        rows, names, column = [], [], 0
        for feature, width in widths:
            unseen = feature.unseen_ids
            null = NONE if feature.null_id is None or feature.null_id in unseen else feature.null_id
            if null != NONE or unseen:
                first = NONE if feature.unseen_id is None else feature.unseen_id
                rows += [(index, null, first, len(unseen)) for index in range(column, column + width)]
                names += [feature.name] * width
            column += width
        columns, nulls, firsts, counts = np.array(rows, np.int64).reshape(-1, 4).T
        return cls(name, columns, nulls, firsts, counts, tuple(names))

    def is_null(self, ids: np.ndarray, of: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Returns which ids are null's, where ids[..., i] are of the i-th column in `of`."""
        return ids == self.null_ids[of]

    def is_unseen(self, ids: np.ndarray, of: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Returns which ids are those of unseen values, likewise."""
        first = self.unseen_ids[of]
        return (ids >= first) & (ids < first + self.buckets[of])


class _Shares(NamedTuple):
    """What is replaced in the columns of a field.

    Attributes:
        thresholds: [n] int64 number of DRAW_RANGE draws that replace an id.
        trains_null: [n] bool, whether null's id is among the new ones.
        trains_unseen: [n] bool, whether the ids of unseen values are.
    """

    thresholds: np.ndarray
    trains_null: np.ndarray
    trains_unseen: np.ndarray


class UnseenIds:
    """Replaces a small share of the ids of training batches by those of unseen values and of null.

    The model so learns what to predict for a value that it knows nothing about, from rows of all values. An id that
    the training data has by itself needs no help: the share of unseen values (rare ones, which share their ids) counts
    towards that of the replaced ones, and null is left to its own rows if there are any. Which ids are replaced is a
    function of the seed, the epoch, the row's position in the dataset and the column, so it depends neither on the
    number of workers nor on where a run was resumed. Features that state neither `null_id` nor `unseen_id` keep their
    ids.

    Args:
        spec: specification of the dataset.
        share: share of a feature's ids to replace, in (0, 1).
        seed: seed of the draws, at least 0.
        sample: returns a sample of the training rows, from which the shares of null and of unseen values are estimated;
            called once, before the first batch.
    """

    def __init__(self, spec: FeatureSpec, share: float, seed: int, sample: Callable[[], Batch]):
        self._share, self._seed, self._sample = share, seed, sample
        onehot = _Field.of("onehot", [(feature, 1) for feature in spec.onehot])
        multihot = _Field.of("multihot", [(feature, feature.max_hotness or 1) for feature in spec.multihot])
        self._fields = [field for field in (onehot, multihot) if len(field.columns)]
        self._numbers = [
            _Numbers(slot, onehot.features.index(feature.unseen_with), feature.unseen_value)
            for slot, feature in enumerate(spec.numerical)
            if feature.unseen_with in onehot.features and feature.unseen_value is not None
        ]
        self._shares: list[_Shares] = []

    def replace(self, batch: Batch, epoch: int) -> None:
        """Replaces ids of a batch in place."""
        if not self._shares:
            sample = self._sample()
            self._shares = [self._shares_of(field, sample) for field in self._fields]
        for number, (field, shares) in enumerate(zip(self._fields, self._shares, strict=True)):
            key = mix(mix(np.array([self._seed], np.uint64)) ^ np.array([2 * epoch + number], np.uint64))
            hashes = mix(batch.rows.view(np.uint64) ^ key)  # [batch]
            rows, hits = np.nonzero(_draws(hashes, len(field.columns)) < shares.thresholds)
            ids, columns = getattr(batch, field.name), field.columns[hits]
            old = ids[rows, columns]
            kept = (old < 0) | field.is_null(old, hits) | field.is_unseen(old, hits)  # padding is below 0
            rows, columns, hits = rows[~kept], columns[~kept], hits[~kept]
            ids[rows, columns] = _new_ids(field, shares, hits, mix(hashes[rows] + hits.astype(np.uint64)))
            for numbers in self._numbers if field.name == "onehot" else ():
                batch.numerical[rows[hits == numbers.feature], numbers.slot] = numbers.value

    def _shares_of(self, field: _Field, sample: Batch) -> _Shares:
        """Returns what to replace in a field, given a sample of the training rows."""
        ids = getattr(sample, field.name)[:, field.columns]
        given = np.maximum(_by_feature(field, ids >= 0), 1)
        nulls, unseen = _by_feature(field, field.is_null(ids)), _by_feature(field, field.is_unseen(ids))
        left = np.maximum(self._share - unseen / given, 0) * (field.buckets > 0)
        trains_null, trains_unseen = (field.null_ids != NONE) & (nulls == 0), left > 0
        share = np.where(trains_null & ~trains_unseen, self._share / NULL_ONE_IN, left)
        return _Shares(np.round(share * DRAW_RANGE).astype(np.int64), trains_null, trains_unseen)


def _draws(hashes: np.ndarray, columns: int) -> np.ndarray:
    """Returns uniform numbers [n, columns] uint16 for hashes [n] uint64."""
    words = np.arange(-(-columns // DRAWS_PER_WORD), dtype=np.uint64)
    return mix(hashes[:, np.newaxis] ^ words).view(np.uint16)[:, :columns]


def _new_ids(field: _Field, shares: _Shares, columns: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Returns the ids that replace those in the given columns [n] of the field; the hashes [n] choose among them."""
    buckets = np.maximum(field.buckets[columns], 1)
    unseen = field.unseen_ids[columns] + (hashes % buckets.astype(np.uint64)).astype(np.int64)
    is_draw = (hashes >> np.uint64(32)) % np.uint64(NULL_ONE_IN) == 0
    is_null = shares.trains_null[columns] & (~shares.trains_unseen[columns] | is_draw)
    return np.where(is_null, field.null_ids[columns], unseen)


def _by_feature(field: _Field, flags: np.ndarray) -> np.ndarray:
    """Returns for each column [n] how many flags [rows, n] are set in all columns of its feature."""
    _, features = np.unique(field.features, return_inverse=True)
    return np.bincount(features, flags.sum(axis=0))[features]
