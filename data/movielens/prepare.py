"""Prepare MovieLens for training: python -m data.movielens.prepare --raw DIR --output DIR.

Joins the published files, splits the ratings, and encodes them as feature_specs/movielens_raw.yaml says.

Mappings, folds and the order of training rows are functions of (seed, user, movie), whatever the order of the files.
Draws are hash(row) of `data.encoding.hashing` over (seed, purpose, user, movie), with the purposes of
`data.encoding.splits`. Of a user's n ratings, the round(n * test_fraction) with the smallest split hashes (halves
round up) go to test, the next round(n * validation_fraction) to valid, and the others to train.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from data.command_line import Parser, whole_number
from data.encoding.hashing import hash_rows
from data.encoding.splits import SPLIT, check_fractions, round_half_up
from data.errors import DataError
from data.movielens.raw import read_movielens
from data.preprocess.engine import Resources, preprocess
from data.preprocess.prepared import StageLog, run_prepare
from data.spec.features import LABEL, MULTIHOT, ONEHOT, TEST, TRAIN, VALID
from data.spec.raw.reader import raw_spec_from_dict
from data.spec.yaml_reader import read_yaml

SPECIFICATION = Path(__file__).parents[2] / "feature_specs" / "movielens_raw.yaml"
LIKED, RATING = LABELS = ("liked", "rating")


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
    """Write parquet files, specification and encoders, atomically.

    Args:
        raw: folder with the published files.
        output: folder for the dataset; must not contain one yet.
        seed: seed of the split, the folds and the order of the training rows.
        test_fraction, validation_fraction: fractions of each user's ratings.
        oov_buckets: number of ids shared by values unseen in training, per categorical feature.
        labels: names of the labels to learn, a subset of `LABELS` with "liked".

    Raises:
        DataError: if the input is invalid.
    """
    check_fractions(test_fraction, validation_fraction)
    if LIKED not in labels:
        raise DataError(f"--labels {' '.join(labels)}: the statistics are means of {LIKED}; add {LIKED} to the labels")
    log = StageLog("movielens")
    ratings = read_movielens(raw)
    users, movies = ratings["user"].nunique(), ratings["movie"].nunique()
    log.write(f"read {len(ratings):,} ratings of {movies:,} movies by {users:,} users")
    parts = _split(ratings, seed, test_fraction, validation_fraction)
    document = _document(parts, seed, oov_buckets, labels)
    with tempfile.TemporaryDirectory() as scratch:
        for mapping, part in parts.items():
            pq.write_table(_table(part), Path(scratch) / f"{mapping}.parquet", write_page_checksum=True)
        spec = raw_spec_from_dict(document, Path(scratch), str(SPECIFICATION))
        preprocess(spec, document, output, Resources(), log)


def _split(
    ratings: pd.DataFrame, seed: int, test_fraction: float, validation_fraction: float
) -> dict[str, pd.DataFrame]:
    """Return the ratings of each mapping, in their order."""
    user, movie = ratings["user"].to_numpy(), ratings["movie"].to_numpy()
    mappings = assign_mappings(
        user, movie, seed=seed, test_fraction=test_fraction, validation_fraction=validation_fraction
    )
    names = (TRAIN, VALID, TEST) if validation_fraction else (TRAIN, TEST)
    parts = {mapping: ratings[mappings == mapping] for mapping in names}
    for mapping, part in parts.items():
        if not len(part):
            raise DataError(f"{mapping}: no user has enough ratings; choose other fractions")
    if not parts[TRAIN]["genres"].map(len).any():
        raise DataError("no movie of the training ratings has a genre")
    return parts


def _table(ratings: pd.DataFrame) -> pa.Table:
    """Return ratings with the columns of the specification; null where a value is unknown."""
    table = pa.Table.from_pandas(ratings, preserve_index=False)
    return table.set_column(table.column_names.index("age"), "age", table.column("age").cast(pa.int64()))


def _document(parts: Mapping[str, Any], seed: int, oov_buckets: int, labels: Sequence[str]) -> dict[str, Any]:
    """Return the raw specification for these files and settings."""
    document: dict[str, Any] = read_yaml(SPECIFICATION)
    document["seed"] = seed
    document["source_spec"] = {name: [{"type": "parquet", "files": [f"{name}.parquet"]}] for name in parts}
    channels, features = document["channel_spec"], document["feature_spec"]
    channels[LABEL] = list(labels)
    if RATING not in labels:
        del features[RATING]
    for name in (*channels[ONEHOT], *channels[MULTIHOT]):
        features[name]["encode"] = {"vocabulary": {"oov_buckets": oov_buckets}}
    return document


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
