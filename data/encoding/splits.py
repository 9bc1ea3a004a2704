"""Which row goes where, drawn by hash: a pure function of a seed and the row's keys, whatever else there is.

Every draw is hash(row) of `data.encoding.hashing` over (seed, purpose, keys), with the purposes below.
"""

import numpy as np

from data.encoding.hashing import Values, hash_rows
from data.errors import DataError

SPLIT, FOLD, ORDER = 0, 1, 2
TRAIN, VALID, TEST = "train", "valid", "test"
MAPPINGS = (TRAIN, VALID, TEST)


def draw_mappings(*keys: Values, seed: int, test_fraction: float, validation_fraction: float) -> np.ndarray:
    """The mapping of each row, [rows] texts: TRAIN, VALID or TEST.

    A row is in test where hash(seed, SPLIT, keys) / 2**64 < test_fraction, else in valid where that is
    < test_fraction + validation_fraction, else in train: the shares hold on average.

    Raises:
        DataError: fractions outside [0, 1) or too large together.
    """
    check_fractions(test_fraction, validation_fraction)
    hashes = hash_rows(seed, SPLIT, *keys)
    in_test = hashes < _threshold(test_fraction)
    in_valid = hashes < _threshold(test_fraction + validation_fraction)
    return np.where(in_test, TEST, np.where(in_valid, VALID, TRAIN)).astype(object)


def draw_halves(*keys: Values, seed: int) -> np.ndarray:
    """VALID or TEST for each row, [rows] texts: valid where hash(seed, SPLIT, keys) < 2**63."""
    return np.where(hash_rows(seed, SPLIT, *keys) < _threshold(0.5), VALID, TEST).astype(object)


def draw_order(*keys: Values, seed: int) -> np.ndarray:
    """Sort keys that put rows in a random order, [rows] uint64."""
    return hash_rows(seed, ORDER, *keys)


def check_fractions(test_fraction: float, validation_fraction: float) -> None:
    """Raises a DataError for shares that leave nothing to test or to train on."""
    if not 0 < test_fraction < 1:
        raise DataError(f"--test_fraction {test_fraction}: expected a number between 0 and 1, such as 0.2")
    if not 0 <= validation_fraction < 1 - test_fraction:
        raise DataError(
            f"--validation_fraction {validation_fraction}: expected at least 0, and below "
            f"{1 - test_fraction:g} (what --test_fraction {test_fraction} leaves)"
        )


def round_half_up(numbers: np.ndarray) -> np.ndarray:
    """Nearest whole numbers of numbers from 0 on, [n] int64."""
    return np.floor(numbers + 0.5).astype(np.int64)


def _threshold(share: float) -> np.uint64:
    # Shares may add up to 1 in rounding, and 2**64 is no 64-bit number.
    return np.uint64(min(share, 1 - 2**-53) * 2.0**64)
