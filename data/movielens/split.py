"""Split ratings into mappings and folds, as a pure function of (seed, user, movie) that ignores the row order.

Draws are hash(row) of `data.preprocess.hashing` over (seed, purpose, user, movie), with the purposes of
`data.preprocess.splits`. Of a user's n ratings, the round(n * test_fraction) with the smallest split hashes (halves
round up) go to test, the next round(n * validation_fraction) to valid, and the others to train. The fold of a training
rating is the bucket of its fold hash, and training rows are stored in ascending order of their order hash.
"""

import numpy as np

from data.preprocess.hashing import buckets, hash_rows
from data.preprocess.splits import FOLD, SPLIT, TEST, TRAIN, VALID, check_fractions, draw_order, round_half_up

NUM_FOLDS = 10


def assign_mappings(
    user: np.ndarray, movie: np.ndarray, *, seed: int, test_fraction: float, validation_fraction: float
) -> np.ndarray:
    """Assign each rating to TRAIN, VALID or TEST.

    Args:
        user, movie: [rows] int64 ids; pairs are distinct.
        seed: seed of the split, any integer.
        test_fraction, validation_fraction: fractions of each user's ratings; their sum is below 1.

    Returns:
        [rows] object array of mapping names.

    Raises:
        DataError: if `check_fractions` rejects the fractions.
    """
    check_fractions(test_fraction, validation_fraction)
    hashes = hash_rows(seed, SPLIT, user, movie)
    order = np.lexsort((movie, hashes, user))
    _, first, counts = np.unique(user[order], return_index=True, return_counts=True)
    # Rank of each rating among its user's, in the sorted order.
    rank = np.arange(len(user)) - np.repeat(first, counts)
    num_test = np.repeat(round_half_up(counts * test_fraction), counts)
    num_valid = np.repeat(round_half_up(counts * validation_fraction), counts)
    mappings = np.empty(len(user), object)
    mappings[order] = np.where(rank < num_test, TEST, np.where(rank < num_test + num_valid, VALID, TRAIN))
    return mappings


def assign_folds(user: np.ndarray, movie: np.ndarray, *, seed: int) -> np.ndarray:
    """Return the fold of each rating, [rows] int64 in [0, NUM_FOLDS)."""
    return buckets(hash_rows(seed, FOLD, user, movie), NUM_FOLDS)


def shuffled_order(user: np.ndarray, movie: np.ndarray, *, seed: int) -> np.ndarray:
    """Return [rows] int64 row numbers in a random order that depends only on the seed and the ratings."""
    return np.lexsort((movie, user, draw_order(user, movie, seed=seed)))
