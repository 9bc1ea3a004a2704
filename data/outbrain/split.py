"""Split, fold and order of rows, as pure functions of seed, display, ad and day, whatever the row order or machine.

With the row hash of `data.preprocess.hashing` and the purposes below, a display is in training if its day (the
timestamp of its event in whole days, 0 to 12 in the published clicks) is at most 10 and hash(seed, SPLIT, display) >=
0.2 * 2**64, else in validation: 80% of the displays of the first eleven days are for training; the other 20% and the
two later days are for validation. The fold of a training row is hash(seed, FOLD, display) mod 10. Training rows are
stored by ascending hash(seed, ORDER, display, ad), validation rows display by display, by hash(seed, ORDER, display).
"""

import numpy as np

from data.outbrain.raw_tables import DAY_MS
from data.preprocess.encoders import NOT_IN_A_FOLD
from data.preprocess.hashing import buckets, hash_rows

SPLIT, FOLD, ORDER = 0, 1, 2
LAST_TRAINING_DAY = 10
VALIDATION_SHARE = 0.2
NUM_FOLDS = 10


def is_training(display_id: np.ndarray, timestamp: np.ndarray, *, seed: int) -> np.ndarray:
    """Return whether displays are for training, [rows] bool.

    Args:
        display_id: [rows] int64 display ids.
        timestamp: [rows] int64 timestamps of the events, in milliseconds since Outbrain's origin.
        seed: seed of the split, any integer.
    """
    held_out = hash_rows(seed, SPLIT, display_id) < np.uint64(VALIDATION_SHARE * 2.0**64)
    return (timestamp // DAY_MS <= LAST_TRAINING_DAY) & ~held_out


def folds(display_id: np.ndarray, training: np.ndarray, *, seed: int) -> np.ndarray:
    """Return the folds of displays, [rows] int64 in [0, NUM_FOLDS), or -1 outside training."""
    return np.where(training, buckets(hash_rows(seed, FOLD, display_id), NUM_FOLDS), NOT_IN_A_FOLD)


def display_order(display_id: np.ndarray, *, seed: int) -> np.ndarray:
    """Return [rows] uint64 sort keys that keep the rows of a display together."""
    return hash_rows(seed, ORDER, display_id)


def row_order(display_id: np.ndarray, ad_id: np.ndarray, *, seed: int) -> np.ndarray:
    """Return [rows] uint64 sort keys that shuffle rows."""
    return hash_rows(seed, ORDER, display_id, ad_id)


def ranges(order: np.ndarray, number: int) -> np.ndarray:
    """Return which of `number` equal, ascending ranges of uint64 each sort key is in, [rows] int64.

    Raises:
        ValueError: if `number` is not in [1, 2**32].
    """
    if not 1 <= number <= 2**32:
        raise ValueError(f"{number} ranges; expected 1 to 2**32")
    # order * number / 2**64, from the upper 32 bits so that the product fits 64 bits.
    return (((order >> np.uint64(32)) * np.uint64(number)) >> np.uint64(32)).astype(np.int64)
