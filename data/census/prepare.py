"""Prepare Census-Income (KDD): python -m data.census.prepare --raw DIR --output DIR --group {1,2}.

The training rows are the published data file. The test file is split at random into halves, the mappings `valid` and
`test`: row i (from 0) is in valid if hash(seed, 0, i) of `data.preprocess.hashing` is below 2**63. All columns are
features except the instance weight (a sampling weight) and the columns of the group's labels; a number is both a
numerical feature and, as NAME_value, a categorical one. The MMoE paper (Ma et al., KDD 2018) also excludes education
from group 1: `--exclude education`.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from data.census.columns import COLUMNS, GROUPS, columns_of
from data.preprocess.splits import MAPPINGS, TRAIN, draw_halves
from data.preprocess.tabular.prepare import Job, prepare_table, require_file, run_prepare, table_parser
from data.preprocess.tabular.staging import Source, whole_file
from data.preprocess.text_tables import TextForm

DATA_FORM = TextForm("census-income.data", ",", COLUMNS)
TEST_FORM = TextForm("census-income.test", ",", COLUMNS)
WHERE = "Fetch Census-Income (KDD) from the UCI Machine Learning Repository"


def prepare(
    raw: Path, output: Path, *, group: int = 1, exclude: Sequence[str] = (), seed: int = 0, oov_buckets: int = 1
) -> None:
    """Write the dataset of one of the MMoE paper's task pairs, atomically.

    Args:
        raw: folder with census-income.data and census-income.test.
        output: folder for the dataset; must not contain one yet.
        group: task pair: 1 is income and never_married, 2 is education (associate degree or higher) and never_married.
        exclude: columns to exclude from the features.
        seed: seed of the validation/test split and of the order of the training rows.
        oov_buckets: number of ids shared by values unseen in training, per categorical feature.

    Raises:
        DataError: if the input is invalid.
    """
    columns = columns_of(group, tuple(exclude))
    sources = [
        Source(require_file(raw, [DATA_FORM.file], "the training file", WHERE), DATA_FORM, whole_file(TRAIN)),
        Source(require_file(raw, [TEST_FORM.file], "the test file", WHERE), TEST_FORM, partial(draw_halves, seed=seed)),
    ]
    metadata = {"group": group, "seed": seed}
    prepare_table(Job("census", sources, columns, MAPPINGS, seed, oov_buckets, metadata), output)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit code: 0 success, 1 failure, 2 invalid input or arguments."""
    parser = table_parser(
        "census",
        "Turns the files of Census-Income (KDD), as published or gzip-compressed, into a parquet dataset of two binary "
        "tasks with its feature specification. Training rows are the data file; the test file is halved at random.",
    )
    groups = {group: " and ".join(label.name for label in labels) for group, labels in GROUPS.items()}
    meaning = "; ".join(f"{group}: {names}" for group, names in groups.items())
    parser.add_argument("--group", type=int, choices=sorted(GROUPS), default=1, help=f"what is learned: {meaning}")
    parser.add_argument(
        "--exclude", nargs="+", default=[], metavar="COLUMN", help="columns to leave out of the features as well"
    )
    return run_prepare("census", prepare, parser.parse(argv))


if __name__ == "__main__":
    sys.exit(main())
