"""Prepares AliExpress: python -m data.aliexpress.prepare --raw DIR --output DIR.

Reads the CSV files of one country as they were prepared for the multi-task literature: search_id (one result list),
categorical_1 to 16, numerical_1 to 63 (scaled to 0 to 1), click, conversion. An empty cell means unknown. Files are
read in blocks, so they may be larger than memory. MAP is taken over the result lists of the test rows.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from data.encoding.splits import TEST, TRAIN
from data.encoding.tabular.columns import YES_OR_NO, Category, Columns, Group, Label, Number
from data.encoding.tabular.prepare import Job, prepare_table, published_files, run_prepare, table_parser
from data.encoding.text_tables import TextForm

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
    """Writes the dataset; all of it, or nothing.

    Args:
        raw: folder with the two files.
        output: folder that holds no dataset yet.
        files: names of the training and test file; None looks for the known ones.
        seed: of the order of the training rows.
        oov_buckets: ids for values unseen in training, per categorical feature.

    Raises:
        DataError: wrong input, such as a conversion without a click.
    """
    sources = published_files(raw, [tuple(files)] if files else FILES, (TRAIN, TEST), FORM, WHERE)
    prepare_table(Job("aliexpress", sources, COLUMNS, (TRAIN, TEST), seed, oov_buckets, {"seed": seed}), output)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code: 0 done, 1 failure, 2 wrong input or arguments."""
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
