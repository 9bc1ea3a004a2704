"""Which rating goes where: a pure function of (seed, user, movie), whatever the order of the rows.

Every rating has the hash hash(row) of `data.encoding.hashing` over (seed, purpose, user, movie), with the
purposes of `data.encoding.splits`. Of a user's n ratings, those with the smallest split hashes go to test, round(n *
test_fraction) of them (halves up), the next round(n * validation_fraction) to valid, the others to
train. A training rating's fold is the bucket of its fold hash, and training rows are stored by
ascending order hash.
"""

import numpy as np

from data.encoding.hashing import buckets, hash_rows
from data.encoding.splits import FOLD, SPLIT, TEST, TRAIN, VALID, check_fractions, draw_order, round_half_up

NUM_FOLDS = 10


def assign_mappings(
    user: np.ndarray, movie: np.ndarray, *, seed: int, test_fraction: float, validation_fraction: float
) -> np.ndarray:
    """The mapping of each rating, [rows] texts: TRAIN, VALID or TEST.

    Args:
        user, movie: [rows] int64, no pair twice.
        seed: any integer.
        test_fraction, validation_fraction: shares of each user's ratings; together below 1.

    Raises:
        DataError: fractions outside [0, 1) or too large together.
    """
    check_fractions(test_fraction, validation_fraction)
    hashes = hash_rows(seed, SPLIT, user, movie)
    order = np.lexsort((movie, hashes, user))
    _, first, counts = np.unique(user[order], return_index=True, return_counts=True)
    rank = np.arange(len(user)) - np.repeat(first, counts)
    num_test = np.repeat(round_half_up(counts * test_fraction), counts)
    num_valid = np.repeat(round_half_up(counts * validation_fraction), counts)
    mappings = np.empty(len(user), object)
    mappings[order] = np.where(rank < num_test, TEST, np.where(rank < num_test + num_valid, VALID, TRAIN))
    return mappings


def assign_folds(user: np.ndarray, movie: np.ndarray, *, seed: int) -> np.ndarray:
    """The fold of each rating, [rows] int64 in [0, NUM_FOLDS)."""
    return buckets(hash_rows(seed, FOLD, user, movie), NUM_FOLDS)


def shuffled_order(user: np.ndarray, movie: np.ndarray, *, seed: int) -> np.ndarray:
    """Row numbers in a random order that depends on nothing but the seed and the ratings, [rows] int64."""
    return np.lexsort((movie, user, draw_order(user, movie, seed=seed)))
