"""Prepare AliExpress: python -m data.aliexpress.prepare --raw DIR --output DIR.

The input is the CSV files of one country in the form used by the multi-task literature: search_id (one result list),
categorical_1 to 16, numerical_1 to 63 (scaled to [0, 1]), click, conversion. An empty cell means unknown. Files are
read in blocks, so they may be larger than memory. MAP is computed over the result lists of the test rows.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from data.preprocess.columns import YES_OR_NO, Category, Columns, Group, Label, Number
from data.preprocess.splits import TEST, TRAIN
from data.preprocess.tables import TableJob, prepare_table, published_files, run_prepare, table_parser
from data.preprocess.text_tables import TextForm

FILES = (
    ("train.csv", "test.csv"),
    ("aliexpress_train.csv", "aliexpress_test.csv"),
    ("aliexpress_train_sample.csv", "aliexpress_test_sample.csv"),
    ("tiny_mtl_train.csv", "tiny_mtl_test.csv"),
)
WHERE = "Fetch the AliExpress Searching System set from Tianchi (data set 74690), one country, in CSV form"
IDS = tuple(f"categorical_{number}" for number in range(1, 17))
VALUES = tuple(f"numerical_{number}" for number in range(1, 64))
FORM = TextForm("train.csv", ",", ("search_id", *IDS, *VALUES, "click", "conversion"), has_header=True)
COLUMNS = Columns(
    (*(Category(name, is_code=True, null="") for name in IDS), *(Number(name, null="") for name in VALUES)),
    (Label("click", "click", YES_OR_NO), Label("conversion", "conversion", YES_OR_NO, given="click")),
    Group("search_id"),
)


def prepare(
    raw: Path, output: Path, *, files: Sequence[str] | None = None, seed: int = 0, oov_buckets: int = 1
) -> None:
    """Write the dataset, atomically.

    Args:
        raw: folder with the two files.
        output: folder for the dataset; must not contain one yet.
        files: names of the training and test file; None looks for the groups in `FILES`.
        seed: seed of the order of the training rows.
        oov_buckets: number of ids shared by values unseen in training, per categorical feature.

    Raises:
        DataError: if the input is invalid, such as a conversion without a click.
    """
    sources = published_files(raw, [tuple(files)] if files else FILES, (TRAIN, TEST), FORM, WHERE)
    prepare_table(TableJob("aliexpress", sources, COLUMNS, (TRAIN, TEST), seed, oov_buckets, {"seed": seed}), output)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit code: 0 success, 1 failure, 2 invalid input or arguments."""
    parser = table_parser(
        "aliexpress",
        "Turns CSV files of the AliExpress Searching System into a parquet dataset of two tasks, click, and conversion "
        "given a click, with its feature specification.",
    )
    names = ("TRAIN", "TEST")
    parser.add_argument("--files", nargs=2, metavar=names, help="names of the files; else known ones are taken")
    return run_prepare("aliexpress", prepare, parser.parse(argv))


if __name__ == "__main__":
    sys.exit(main())
