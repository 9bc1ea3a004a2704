"""Training of the table rows of unseen values and of null where the training data has few or none of them.

Nothing would train these rows otherwise, so new users and items would get the noise of their random start.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data.encoding.hashing import mix
from data.loading.batch import Batch
from data.loading.lists import Lists
from data.spec.feature_spec import FeatureSpec
from data.spec.features import Feature

NONE = -1  # no such id
DRAWS_PER_WORD = 4  # 16-bit numbers in a 64-bit hash
DRAW_RANGE = 2**16
NULL_ONE_IN = 8  # of the replaced ids become null's, if null is as unknown as unseen values are: it is the rarer one


def has_reserved_ids(spec: FeatureSpec) -> bool:
    """Return whether a categorical feature states the id of null or of unseen values."""
    return any(feature.null_id is not None or feature.unseen_ids for feature in spec.categorical)


class _Numbers(NamedTuple):
    """A numerical feature that is computed from the same raw column as a one-hot feature.

    Attributes:
        slot: index of its column in `Batch.numerical`.
        feature: number of the one-hot feature in its `_Field`.
        value: its value for unseen values.
    """

    slot: int
    feature: int
    value: float


@dataclass(frozen=True)
class _Field:
    """The features in "onehot" or "id_lists" of a batch that state an id of null or of unseen values.

    Attributes:
        name: name of the field.
        columns: [n] int64 column of each feature in the field.
        first_draws: [n] int64 number of the draw for the first id of a row's list. There is a draw for each id that a
            row can have in the features.
        null_ids: [n] int64 id of null, or NONE.
        unseen_ids: [n] int64 first id of unseen values, or NONE.
        buckets: [n] int64 number of ids of unseen values; 0 without any.
        features: [n] names of the features.
    """

    name: str
    columns: np.ndarray
    first_draws: np.ndarray
    null_ids: np.ndarray
    unseen_ids: np.ndarray
    buckets: np.ndarray
    features: tuple[str, ...]

    @classmethod
    def of(cls, name: str, features: Sequence[Feature]) -> "_Field":
        """Describe a field with the given features."""
        rows, names, draws = [], [], 0
        for column, feature in enumerate(features):
            unseen = feature.unseen_ids
            null = NONE if feature.null_id is None or feature.null_id in unseen else feature.null_id
            if null != NONE or unseen:
                first = NONE if feature.unseen_id is None else feature.unseen_id
                rows.append((column, draws, null, first, len(unseen)))
                names.append(feature.name)
                draws += feature.max_hotness or 1
        columns, first_draws, nulls, firsts, counts = np.array(rows, np.int64).reshape(-1, 5).T
        return cls(name, columns, first_draws, nulls, firsts, counts, tuple(names))

    def is_null(self, ids: np.ndarray, of: np.ndarray) -> np.ndarray:
        """Return which ids [n] are null's, where ids[i] is of the of[i]-th feature."""
        return ids == self.null_ids[of]

    def is_unseen(self, ids: np.ndarray, of: np.ndarray) -> np.ndarray:
        """Return which ids are those of unseen values, likewise."""
        first = self.unseen_ids[of]
        return (ids >= first) & (ids < first + self.buckets[of])

    def ids_in(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """Return a copy of all ids of the features in a batch, [n], and the number of the feature of each one."""
        if self.name == "onehot":
            return batch.onehot[:, self.columns].reshape(-1), np.tile(np.arange(len(self.columns)), len(batch.rows))
        lists = batch.id_lists.select(self.columns.tolist())
        return lists.values, lists.cells() % len(self.columns)


class _Shares(NamedTuple):
    """What is replaced in the features of a field.

    Attributes:
        thresholds: [n] int64 number of DRAW_RANGE draws that replace an id.
        trains_null: [n] bool, whether null's id is among the new ones.
        trains_unseen: [n] bool, whether the ids of unseen values are.
    """

    thresholds: np.ndarray
    trains_null: np.ndarray
    trains_unseen: np.ndarray


class _Hits(NamedTuple):
    """The ids of a batch that the draws of a field are for replacing.

    Attributes:
        places: [hits] where each id is among all ids of the field, in the order of the batch.
        rows: [hits] row of each id.
        features: [hits] number of the feature of each id.
        draws: [hits] number of the draw for each id.
    """

    places: np.ndarray
    rows: np.ndarray
    features: np.ndarray
    draws: np.ndarray

    def keep(self, kept: np.ndarray) -> "_Hits":
        """Return those of the hits for which `kept` [hits] is True."""
        return _Hits(*(array[kept] for array in self))


class UnseenIds:
    """Replaces a small share of the ids of training batches by those of unseen values and of null.

    The model so learns what to predict for a value that it knows nothing about, from rows of all values. An id that
    the training data has by itself needs no help: the share of unseen values (rare ones, which share their ids) counts
    towards that of the replaced ones, and null is left to its own rows if there are any. Which ids are replaced is a
    function of the seed, the epoch, the row's position in the dataset, the feature and the position in its list, so it
    depends neither on the number of workers nor on where a run was resumed. Features that state neither `null_id` nor
    `unseen_id` keep their ids.

    Args:
        spec: specification of the dataset.
        share: share of a feature's ids to replace, in (0, 1).
        seed: seed of the draws, at least 0.
        sample: returns a sample of the training rows, from which the shares of null and of unseen values are estimated;
            called once, before the first batch.
    """

    def __init__(self, spec: FeatureSpec, share: float, seed: int, sample: Callable[[], Batch]):
        self._share, self._seed, self._sample = share, seed, sample
        onehot, lists = _Field.of("onehot", spec.onehot), _Field.of("id_lists", spec.id_lists)
        self._fields = [field for field in (onehot, lists) if len(field.columns)]
        self._numbers = [
            _Numbers(slot, onehot.features.index(feature.unseen_with), feature.unseen_value)
            for slot, feature in enumerate(spec.numerical)
            if feature.unseen_with in onehot.features and feature.unseen_value is not None
        ]
        self._shares: list[_Shares] = []

    def replace(self, batch: Batch, epoch: int) -> None:
        """Replace ids of a batch in place."""
        if not self._shares:
            sample = self._sample()
            self._shares = [self._shares_of(field, sample) for field in self._fields]
        for number, (field, shares) in enumerate(zip(self._fields, self._shares, strict=True)):
            key = mix(mix(np.array([self._seed], np.uint64)) ^ np.array([2 * epoch + number], np.uint64))
            hashes = mix(batch.rows.view(np.uint64) ^ key)  # [batch]
            find = _hits_in_columns if field.name == "onehot" else _hits_in_lists
            hits = find(field, shares.thresholds, batch, hashes)
            ids = batch.onehot.reshape(-1) if field.name == "onehot" else batch.id_lists.values
            old = ids[hits.places]
            hits = hits.keep(~(field.is_null(old, hits.features) | field.is_unseen(old, hits.features)))
            choices = mix(hashes[hits.rows] + hits.draws.astype(np.uint64))
            ids[hits.places] = _new_ids(field, shares, hits.features, choices)
            for numbers in self._numbers if field.name == "onehot" else ():
                batch.numerical[hits.rows[hits.features == numbers.feature], numbers.slot] = numbers.value

    def _shares_of(self, field: _Field, sample: Batch) -> _Shares:
        """Return what to replace in a field, given a sample of the training rows."""
        ids, of = field.ids_in(sample)
        every = np.ones(len(ids), bool)
        given, nulls, unseen = (
            np.bincount(of[which], minlength=len(field.columns))
            for which in (every, field.is_null(ids, of), field.is_unseen(ids, of))
        )
        left = np.maximum(self._share - unseen / np.maximum(given, 1), 0) * (field.buckets > 0)
        trains_null, trains_unseen = (field.null_ids != NONE) & (nulls == 0), left > 0
        share = np.where(trains_null & ~trains_unseen, self._share / NULL_ONE_IN, left)
        return _Shares(np.round(share * DRAW_RANGE).astype(np.int64), trains_null, trains_unseen)


def _hits_in_columns(field: _Field, thresholds: np.ndarray, batch: Batch, hashes: np.ndarray) -> _Hits:
    """Return the one-hot ids to replace, given the threshold of each feature and the hash of each row."""
    words = np.arange(-(-len(thresholds) // DRAWS_PER_WORD), dtype=np.uint64)
    draws = mix(hashes[:, np.newaxis] ^ words).view(np.uint16)[:, : len(thresholds)]  # [batch, n]
    rows, features = np.nonzero(draws < thresholds)
    return _Hits(rows * batch.onehot.shape[1] + field.columns[features], rows, features, features)


def _hits_in_lists(field: _Field, thresholds: np.ndarray, batch: Batch, hashes: np.ndarray) -> _Hits:
    """Return the ids in lists to replace, likewise. The draws are as those of columns, one for each id of a list."""
    lists, first_draws, features = batch.id_lists, field.first_draws, len(field.columns)
    lengths = lists.lengths[:, field.columns]  # [batch, n]
    # A word has several draws. For each list, those words are hashed that have draws of its ids.
    counts = (first_draws + lengths - 1) // DRAWS_PER_WORD - first_draws // DRAWS_PER_WORD + 1
    counts *= (lengths > 0) & (thresholds > 0)
    words = Lists(np.empty(counts.sum(), np.uint64), counts)
    cells = words.cells()
    rows = cells // features
    of = cells - rows * features
    numbers = words.places() + first_draws[of] // DRAWS_PER_WORD
    drawn = mix(hashes[rows] ^ numbers.astype(np.uint64)).view(np.uint16).reshape(-1, DRAWS_PER_WORD)
    found = np.flatnonzero(drawn < thresholds[of, np.newaxis])
    word = found // DRAWS_PER_WORD
    rows, of, draws = rows[word], of[word], found + (numbers[word] - word) * DRAWS_PER_WORD
    places = draws - first_draws[of]  # outside of the list for the neighbors' draws in its first and last word
    hits = _Hits(lists.starts()[rows, field.columns[of]] + places, rows, of, draws)
    return hits.keep((places >= 0) & (places < lengths[rows, of]))


def _new_ids(field: _Field, shares: _Shares, features: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Return the ids that replace those of the given features [n] of the field; the hashes [n] choose among them."""
    buckets = np.maximum(field.buckets[features], 1)
    unseen = field.unseen_ids[features] + (hashes % buckets.astype(np.uint64)).astype(np.int64)
    is_draw = (hashes >> np.uint64(32)) % np.uint64(NULL_ONE_IN) == 0
    is_null = shares.trains_null[features] & (~shares.trains_unseen[features] | is_draw)
    return np.where(is_null, field.null_ids[features], unseen)
