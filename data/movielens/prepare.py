"""Prepare MovieLens for training: python -m data.movielens.prepare --raw DIR --output DIR."""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from data.command_line import Parser, run_tool, whole_number
from data.errors import DataError
from data.files.new_dataset import new_dataset
from data.movielens.columns import LABELS, MAP_COLUMN, MULTIHOT_COLUMNS, NUMERICAL_COLUMNS, ONEHOT_COLUMNS
from data.movielens.raw import read_movielens
from data.movielens.split import assign_folds, assign_mappings, shuffled_order
from data.preprocess.encoders import NOT_IN_A_FOLD, Encoder
from data.preprocess.prepared import Progress, encoded_features, write_prepared
from data.preprocess.splits import TEST, TRAIN, VALID, check_fractions
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
    progress = Progress("movielens")
    with new_dataset(output) as draft:
        ratings = read_movielens(raw)
        users, movies = ratings["user"].nunique(), ratings["movie"].nunique()
        progress.tell(f"read {len(ratings):,} ratings of {movies:,} movies by {users:,} users")
        parts = _split(ratings, seed, test_fraction, validation_fraction)
        workflow = _fit(parts[TRAIN], oov_buckets, draft)
        progress.tell(f"fitted the NVTabular workflow on {len(parts[TRAIN]):,} training ratings")
        encoders = workflow.encoders()
        spec = _specification(encoders, int(ratings["genres"].map(len).max()), labels, draft)
        mappings = {mapping: _transformed(workflow, mapping, part, progress) for mapping, part in parts.items()}
        write_prepared(draft, spec, mappings, encoders, EMBEDDING_SIZES)
    progress.tell(f"done: {output}")


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
            raise DataError(f"{mapping}: no user has ratings enough for a share of it; choose other fractions")
    return {mapping: ratings.iloc[chosen].reset_index(drop=True) for mapping, chosen in rows.items()}


def _fit(train: pd.DataFrame, oov_buckets: int, draft: Path) -> "MovieLensWorkflow":
    # Imported late, since it takes seconds: mistakes in arguments and raw files are reported first.
    from data.movielens.workflow import MovieLensWorkflow

    with tempfile.TemporaryDirectory(dir=draft) as folder:
        return MovieLensWorkflow(oov_buckets, folder).fit(train)


def _transformed(
    workflow: "MovieLensWorkflow", mapping: str, ratings: pd.DataFrame, progress: Progress
) -> Iterator[pd.DataFrame]:
    for start in range(0, len(ratings), ROWS_PER_BLOCK):
        yield workflow.transform(ratings.iloc[start : start + ROWS_PER_BLOCK].reset_index(drop=True))
        progress.tell(f"{mapping}: {min(start + ROWS_PER_BLOCK, len(ratings)):,} of {len(ratings):,} rows")


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
    args = _parse(argv)

    def job() -> int:
        prepare(**vars(args))
        return 0

    return run_tool("movielens", job)


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
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the dataset, made if missing")
    add("--seed", type=whole_number(0), default=0, help="of the split, the folds and the order of training rows")
    add("--test_fraction", type=float, default=0.2, help="share of each user's ratings")
    add("--validation_fraction", type=float, default=0.0, help="share of each user's ratings for a mapping `valid`")
    add("--oov_buckets", type=whole_number(1), default=1, help="ids for values unseen in training, per feature")
    add("--labels", nargs="+", choices=sorted(LABELS), default=["liked"], help="rating >= 4, and the rating itself")
    args = parser.parse(argv)
    if len(set(args.labels)) < len(args.labels):
        parser.error(f"--labels {' '.join(args.labels)}: each at most once")
    return args


if __name__ == "__main__":
    sys.exit(main())
