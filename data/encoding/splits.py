"""Random splits and orders by hash, so that each row's draw depends only on a seed and the row's keys.

Every draw is hash(row) of `data.encoding.hashing` over (seed, purpose, keys), with the purposes below: NEGATIVE draws
the rows without a positive label that are kept.
"""

from collections.abc import Mapping

import numpy as np

from data.encoding.hashing import hash_rows, mix
from data.encoding.keys import Values, hash_column
from data.errors import DataError
from data.spec.features import TEST, TRAIN, VALID

SPLIT, FOLD, ORDER, NEGATIVE = 0, 1, 2, 3
MAPPINGS = (TRAIN, VALID, TEST)


def draw_mappings(*keys: Values, seed: int, test_fraction: float, validation_fraction: float) -> np.ndarray:
    """Assign each row to TRAIN, VALID or TEST.

    With h = hash(seed, SPLIT, keys) / 2**64, a row is in test if h < test_fraction, in valid if h < test_fraction +
    validation_fraction, else in train. The fractions therefore hold on average.

    Args:
        *keys: columns of [rows] integers or strings that identify a row.
        seed: seed of the split.
        test_fraction: expected fraction of test rows.
        validation_fraction: expected fraction of validation rows.

    Returns:
        [rows] object array of mapping names.

    Raises:
        DataError: if `check_fractions` rejects the fractions.
    """
    check_fractions(test_fraction, validation_fraction)
    hashes = hash_rows(seed, SPLIT, *keys)
    in_test = below(hashes, test_fraction)
    in_valid = below(hashes, test_fraction + validation_fraction)
    return np.where(in_test, TEST, np.where(in_valid, VALID, TRAIN)).astype(object)


def draw(seed: int, purpose: int, key: Mapping[str, Values]) -> np.ndarray:
    """Return hash(seed, purpose, key) of rows, [rows] uint64.

    Args:
        seed: seed of the draws.
        purpose: one of the purposes of this module.
        key: columns of [rows] integers or strings that identify a row, in this order, by name.

    Raises:
        DataError: if a column holds neither integers nor strings.
    """
    hashes = hash_rows(seed, purpose)
    for name, values in key.items():
        hashes = mix(hashes ^ hash_column(name, values))
    return hashes


def below(hashes: np.ndarray, share: float) -> np.ndarray:
    """Return whether hash / 2**64 < share, [rows] bool, for a share in [0, 1]."""
    # Fractions can round up to a sum of 1, and 2**64 would overflow uint64.
    return hashes < np.uint64(min(share, 1 - 2**-53) * 2.0**64)


def ranges(order: np.ndarray, number: int) -> np.ndarray:
    """Return which of `number` equal, ascending ranges of uint64 each sort key is in, [rows] int64.

    Raises:
        ValueError: if `number` is not in [1, 2**32].
    """
    if not 1 <= number <= 2**32:
        raise ValueError(f"{number} ranges; expected 1 to 2**32")
    # order * number / 2**64, from the upper 32 bits so that the product fits 64 bits.
    return (((order >> np.uint64(32)) * np.uint64(number)) >> np.uint64(32)).astype(np.int64)


def check_fractions(test_fraction: float, validation_fraction: float) -> None:
    """Raise a DataError unless 0 < test_fraction, 0 <= validation_fraction, and their sum is below 1."""
    if not 0 < test_fraction < 1:
        raise DataError(f"--test_fraction {test_fraction}: expected a number between 0 and 1, such as 0.2")
    if not 0 <= validation_fraction < 1 - test_fraction:
        raise DataError(
            f"--validation_fraction {validation_fraction}: expected at least 0, and below "
            f"{1 - test_fraction:g} (what --test_fraction {test_fraction} leaves)"
        )


def round_half_up(numbers: np.ndarray) -> np.ndarray:
    """Round non-negative numbers to the nearest integer, halves up: [n] int64."""
    return np.floor(numbers + 0.5).astype(np.int64)
