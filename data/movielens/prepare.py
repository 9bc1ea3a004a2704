"""Prepare MovieLens for training: python -m data.movielens.prepare --raw DIR --output DIR.

Mappings and folds are a pure function of (seed, user, movie) that ignores the row order. Draws are hash(row) of
`data.preprocess.hashing` over (seed, purpose, user, movie), with the purposes of `data.preprocess.splits`. Of a user's
n ratings, the round(n * test_fraction) with the smallest split hashes (halves round up) go to test, the next
round(n * validation_fraction) to valid, and the others to train. The fold of a training rating is the bucket of its
fold hash, and training rows are stored in ascending order of their order hash.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from data.command_line import Parser, whole_number
from data.errors import DataError
from data.files.new_dataset import new_dataset
from data.movielens.columns import LABELS, MAP_COLUMN, MULTIHOT_COLUMNS, NUM_FOLDS, NUMERICAL_COLUMNS, ONEHOT_COLUMNS
from data.movielens.raw import read_movielens
from data.preprocess.encoders import NOT_IN_A_FOLD, Encoder
from data.preprocess.hashing import buckets, hash_rows
from data.preprocess.prepared import StageLog, encoded_features, write_prepared
from data.preprocess.splits import FOLD, SPLIT, TEST, TRAIN, VALID, check_fractions, draw_order, round_half_up
from data.preprocess.tables import run_prepare
from data.spec.feature_spec import FeatureSpec
from data.spec.features import LABEL, MAP, MULTIHOT, NUMERICAL, ONEHOT, Feature

if TYPE_CHECKING:
    from data.movielens.workflow import MovieLensWorkflow

EMBEDDING_SIZES = {
    "user": 32,
    "movie": 32,
    "gender": 4,
    "age": 8,
    "occupation": 8,
    "zip_prefix": 16,
    "genres": 16,
}
ROWS_PER_BLOCK = 262_144


def prepare(
    raw: Path,
    output: Path,
    *,
    seed: int = 0,
    test_fraction: float = 0.2,
    validation_fraction: float = 0.0,
    oov_buckets: int = 1,
    labels: Sequence[str] = ("liked",),
) -> None:
    """Write parquet files, specification, embedding sizes and encoders, atomically.

    Args:
        raw: folder with the published files.
        output: folder for the dataset; must not contain one yet.
        seed: seed of the split, the folds and the order of the training rows.
        test_fraction, validation_fraction: fractions of each user's ratings.
        oov_buckets: number of ids shared by values unseen in training, per categorical feature.
        labels: names of the labels to learn, a subset of `LABELS`.

    Raises:
        DataError: if the input is invalid.
    """
    check_fractions(test_fraction, validation_fraction)
    log = StageLog("movielens")
    with new_dataset(output) as draft:
        ratings = read_movielens(raw)
        users, movies = ratings["user"].nunique(), ratings["movie"].nunique()
        log.write(f"read {len(ratings):,} ratings of {movies:,} movies by {users:,} users")
        parts = _split(ratings, seed, test_fraction, validation_fraction)
        workflow = _fit(parts[TRAIN], oov_buckets, draft)
        log.write(f"fitted the NVTabular workflow on {len(parts[TRAIN]):,} training ratings")
        encoders = workflow.encoders()
        spec = _specification(encoders, int(ratings["genres"].map(len).max()), labels, draft)
        mappings = {mapping: _transformed(workflow, mapping, part, log) for mapping, part in parts.items()}
        write_prepared(draft, spec, mappings, encoders, EMBEDDING_SIZES)
    log.write(f"done: {output}")


def _split(
    ratings: pd.DataFrame, seed: int, test_fraction: float, validation_fraction: float
) -> dict[str, pd.DataFrame]:
    """Return the ratings of each mapping with their folds: training rows shuffled, others by user and movie."""
    user, movie = ratings["user"].to_numpy(), ratings["movie"].to_numpy()
    mappings = assign_mappings(
        user, movie, seed=seed, test_fraction=test_fraction, validation_fraction=validation_fraction
    )
    folds = assign_folds(user, movie, seed=seed)
    ratings = ratings.assign(fold=np.where(mappings == TRAIN, folds, NOT_IN_A_FOLD))
    shuffled = shuffled_order(user, movie, seed=seed)
    rows = {TRAIN: shuffled[mappings[shuffled] == TRAIN], TEST: np.flatnonzero(mappings == TEST)}
    if validation_fraction:
        rows[VALID] = np.flatnonzero(mappings == VALID)
    for mapping, chosen in rows.items():
        if not len(chosen):
            raise DataError(f"{mapping}: no user has enough ratings; choose other fractions")
    return {mapping: ratings.iloc[chosen].reset_index(drop=True) for mapping, chosen in rows.items()}


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


def _fit(train: pd.DataFrame, oov_buckets: int, draft: Path) -> "MovieLensWorkflow":
    # Imported late, since it takes seconds: mistakes in arguments and raw files are reported first.
    from data.movielens.workflow import MovieLensWorkflow

    with tempfile.TemporaryDirectory(dir=draft) as folder:
        return MovieLensWorkflow(oov_buckets, folder).fit(train)


def _transformed(
    workflow: "MovieLensWorkflow", mapping: str, ratings: pd.DataFrame, log: StageLog
) -> Iterator[pd.DataFrame]:
    for start in range(0, len(ratings), ROWS_PER_BLOCK):
        yield workflow.transform(ratings.iloc[start : start + ROWS_PER_BLOCK].reset_index(drop=True))
        log.write(f"{mapping}: {min(start + ROWS_PER_BLOCK, len(ratings)):,} of {len(ratings):,} rows")


def _specification(
    encoders: Mapping[str, Encoder], max_hotness: int, labels: Sequence[str], folder: Path
) -> FeatureSpec:
    features = encoded_features(encoders, {name: max_hotness for name in MULTIHOT_COLUMNS})
    features |= {name: Feature(name=name, dtype="float32", task=LABELS[name]) for name in labels}
    features[MAP_COLUMN] = Feature(name=MAP_COLUMN, dtype="int64")
    channels = {
        ONEHOT: ONEHOT_COLUMNS,
        MULTIHOT: MULTIHOT_COLUMNS,
        NUMERICAL: NUMERICAL_COLUMNS,
        LABEL: tuple(labels),
        MAP: (MAP_COLUMN,),
    }
    return FeatureSpec(folder, features, {}, channels, {"dataset": "movielens"})


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit code: 0 success, 1 failure, 2 invalid input or arguments."""
    return run_prepare("movielens", prepare, _parse(argv))


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m data.movielens.prepare",
        description=(
            "Turns the files of MovieLens-1M or MovieLens-100K, as published or gzip-compressed, into a parquet "
            "dataset with its feature specification. Each user's ratings are split at random; vocabularies, counts, "
            "means and scales are fitted on the training part."
        ),
    )
    add = parser.add_argument
    add("--raw", type=Path, required=True, metavar="DIR", help="folder of ratings.dat (or ratings.csv, u.data) etc.")
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the dataset, created if missing")
    add("--seed", type=whole_number(0), default=0, help="seed of the split, the folds and the order of training rows")
    add("--test_fraction", type=float, default=0.2, help="fraction of each user's ratings")
    add("--validation_fraction", type=float, default=0.0, help="fraction of each user's ratings for a mapping `valid`")
    add("--oov_buckets", type=whole_number(1), default=1, help="ids for values unseen in training, per feature")
    add("--labels", nargs="+", choices=sorted(LABELS), default=["liked"], help="rating >= 4, and the rating itself")
    args = parser.parse(argv)
    if len(set(args.labels)) < len(args.labels):
        parser.error(f"--labels {' '.join(args.labels)}: each at most once")
    return args


if __name__ == "__main__":
    sys.exit(main())
