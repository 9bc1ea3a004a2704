"""Prepares Census-Income (KDD): python -m data.census.prepare --raw DIR --output DIR --group {1,2}.

The training rows are the publisher's data file; the test file is halved at random into the mappings `valid` and
`test`: row i (from 0) goes to valid where hash(seed, 0, i) of `data.encoding.hashing` is below 2**63.
Features are all columns but the instance weight (a sampling weight) and those that the group's labels are
made of; a number is a numerical feature and, as NAME_value, a categorical one. The MMoE paper (Ma et al., KDD
2018) also takes education out of group 1: `--exclude education`.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from data.census.columns import COLUMNS, GROUPS, columns_of
from data.encoding.splits import MAPPINGS, TRAIN, draw_halves
from data.encoding.tabular.prepare import Job, prepare_table, require_file, run_prepare, table_parser
from data.encoding.tabular.staging import Source, whole_file
from data.encoding.text_tables import TextForm

DATA_FORM = TextForm("census-income.data", ",", COLUMNS)
TEST_FORM = TextForm("census-income.test", ",", COLUMNS)
WHERE = "Fetch Census-Income (KDD) from the UCI Machine Learning Repository"


def prepare(
    raw: Path, output: Path, *, group: int = 1, exclude: Sequence[str] = (), seed: int = 0, oov_buckets: int = 1
) -> None:
    """Writes the dataset of one of the MMoE paper's task pairs; all of it, or nothing.

    Args:
        raw: folder with census-income.data and census-income.test.
        output: folder that holds no dataset yet.
        group: 1 learns income and never_married, 2 education (associate degree or higher) and never_married.
        exclude: columns to leave out of the features.
        seed: of the halves and of the order of the training rows.
        oov_buckets: ids for values unseen in training, per categorical feature.

    Raises:
        DataError: wrong input.
    """
    columns = columns_of(group, tuple(exclude))
    sources = [
        Source(require_file(raw, [DATA_FORM.file], "the training file", WHERE), DATA_FORM, whole_file(TRAIN)),
        Source(require_file(raw, [TEST_FORM.file], "the test file", WHERE), TEST_FORM, partial(draw_halves, seed=seed)),
    ]
    metadata = {"group": group, "seed": seed}
    prepare_table(Job("census", sources, columns, MAPPINGS, seed, oov_buckets, metadata), output)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code: 0 done, 1 failure, 2 wrong input or arguments."""
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
