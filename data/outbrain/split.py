"""Which row goes where: a pure function of seed, display, ad and day, whatever the order of rows or the machine.

With the row hash of `data.encoding.hashing` and the purposes below, a display goes to training if its day (the
event's timestamp in whole days, 0 to 12 in the published clicks) is at most 10 and hash(seed, SPLIT, display) >=
0.2 * 2**64, else to validation: 80 % of the displays of the first eleven days to training; the other 20 % and
two later days to validation. A training row is in the fold hash(seed, FOLD, display) mod 10. Training rows are
stored by ascending hash(seed, ORDER, display, ad), validation rows display by display, by hash(seed, ORDER, display).
"""

import numpy as np

from data.encoding.encoders import NOT_IN_A_FOLD
from data.encoding.hashing import buckets, hash_rows
from data.outbrain.tables import DAY_MS

SPLIT, FOLD, ORDER = 0, 1, 2
LAST_TRAINING_DAY = 10
VALIDATION_SHARE = 0.2
NUM_FOLDS = 10


def is_training(display_id: np.ndarray, timestamp: np.ndarray, *, seed: int) -> np.ndarray:
    """Whether displays are for training, [rows] bool.

    Args:
        display_id: [rows] int64.
        timestamp: [rows] int64, of the displays' events.
        seed: any integer.
    """
    held_out = hash_rows(seed, SPLIT, display_id) < np.uint64(VALIDATION_SHARE * 2.0**64)
    return (timestamp // DAY_MS <= LAST_TRAINING_DAY) & ~held_out


def folds(display_id: np.ndarray, training: np.ndarray, *, seed: int) -> np.ndarray:
    """The folds of displays, [rows] int64 in [0, NUM_FOLDS), or -1 outside training."""
    return np.where(training, buckets(hash_rows(seed, FOLD, display_id), NUM_FOLDS), NOT_IN_A_FOLD)


def display_order(display_id: np.ndarray, *, seed: int) -> np.ndarray:
    """Sort keys that keep displays together, [rows] uint64."""
    return hash_rows(seed, ORDER, display_id)


def row_order(display_id: np.ndarray, ad_id: np.ndarray, *, seed: int) -> np.ndarray:
    """Sort keys that shuffle rows, [rows] uint64."""
    return hash_rows(seed, ORDER, display_id, ad_id)


def ranges(order: np.ndarray, number: int) -> np.ndarray:
    """Which of `number` equal, ascending ranges of the 64-bit numbers each sort key lies in, [rows] int64.

    Raises:
        ValueError: more than 2**32 ranges.
    """
    if not 1 <= number <= 2**32:
        raise ValueError(f"{number} ranges; expected 1 to 2**32")
    return (((order >> np.uint64(32)) * np.uint64(number)) >> np.uint64(32)).astype(np.int64)
