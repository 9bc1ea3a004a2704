"""Prepare Ali-CCP: python -m data.aliccp.prepare --raw DIR --output DIR.

The input is CSV files with a header and one row per impression, as in community releases of the Tianchi data set:
click, purchase, then fields named by their published ids (101 user, 205 item, 109_14 a behavior history, ...), and the
values of fields in columns prefixed with D. An empty cell means unknown. Files are read in blocks, so they may be
larger than memory.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from data.preprocess.columns import YES_OR_NO, Category, Columns, Label, Number
from data.preprocess.splits import MAPPINGS
from data.preprocess.tables import TableJob, prepare_table, published_files, run_prepare, table_parser
from data.preprocess.text_tables import TextForm

FILES = (
    ("ali_ccp_train.csv", "ali_ccp_val.csv", "ali_ccp_test.csv"),
    ("ali_ccp_train_sample.csv", "ali_ccp_val_sample.csv", "ali_ccp_test_sample.csv"),
)
WHERE = "Fetch Ali-CCP from Tianchi (data set 408), in CSV form"
USER = ("101", "121", "122", "124", "125", "126", "127", "128", "129")
ITEM = ("205", "206", "207", "210", "216")
COMBINED_AND_CONTEXT = ("508", "509", "702", "853", "301")
HISTORIES = ("109_14", "110_14", "127_14", "150_14")
IDS = (*USER, *ITEM, *COMBINED_AND_CONTEXT, *HISTORIES)
VALUES = tuple(f"D{field}" for field in (*HISTORIES, "508", "509", "702", "853"))
FORM = TextForm("ali_ccp_train.csv", ",", ("click", "purchase", *IDS, *VALUES), has_header=True)
COLUMNS = Columns(
    (*(Category(name, is_code=True, null="") for name in IDS), *(Number(name, null="") for name in VALUES)),
    (Label("click", "click", YES_OR_NO), Label("purchase", "purchase", YES_OR_NO, given="click")),
)


def prepare(
    raw: Path, output: Path, *, files: Sequence[str] | None = None, seed: int = 0, oov_buckets: int = 1
) -> None:
    """Write the dataset, atomically.

    Args:
        raw: folder with the three files.
        output: folder for the dataset; must not contain one yet.
        files: names of the training, validation and test file; None looks for the groups in `FILES`.
        seed: seed of the order of the training rows.
        oov_buckets: number of ids shared by values unseen in training, per categorical feature.

    Raises:
        DataError: if the input is invalid, such as a purchase without a click.
    """
    sources = published_files(raw, [tuple(files)] if files else FILES, MAPPINGS, FORM, WHERE)
    prepare_table(TableJob("aliccp", sources, COLUMNS, MAPPINGS, seed, oov_buckets, {"seed": seed}), output)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit code: 0 success, 1 failure, 2 invalid input or arguments."""
    parser = table_parser(
        "aliccp",
        "Turns CSV files of Alibaba Click and Conversion Prediction into a parquet dataset of two tasks, click, and "
        "purchase given a click, with its feature specification.",
    )
    names = ("TRAIN", "VALID", "TEST")
    parser.add_argument("--files", nargs=3, metavar=names, help="names of the files; else known ones are taken")
    return run_prepare("aliccp", prepare, parser.parse(argv))


if __name__ == "__main__":
    sys.exit(main())
