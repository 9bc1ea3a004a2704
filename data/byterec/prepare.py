"""Prepare the ICME 2019 short-video challenge: python -m data.byterec.prepare --raw DIR --output DIR.

By default, the first 80% of the rows in file order are the training rows and the others the test rows, as in the
published examples on this sample. `-1` means unknown. The column `time` is not used.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data.preprocess.columns import YES_OR_NO, Category, Columns, Label, Number
from data.preprocess.splits import TEST, TRAIN, check_fractions, round_half_up
from data.preprocess.tables import Source, TableJob, prepare_table, require_file, run_prepare, table_parser
from data.preprocess.text_tables import TextForm, count_lines

FILES = ("final_track2_train.txt", "final_track1_train.txt", "byterec_sample.txt")
FIELDS = ("uid", "user_city", "item_id", "author_id", "item_city", "channel")
FORM = TextForm(FILES[0], "\t", (*FIELDS, "finish", "like", "music_id", "device", "time", "duration_time"))
WHERE = "Fetch the interactions of the ICME 2019 Short Video Understanding Challenge"
UNKNOWN = "-1"
COLUMNS = Columns(
    (
        *(Category(name, is_code=True, null=UNKNOWN) for name in (*FIELDS, "music_id", "device")),
        Number("duration_time", log=True, null=UNKNOWN),
    ),
    (Label("finish", "finish", YES_OR_NO), Label("like", "like", YES_OR_NO)),
)


def prepare(raw: Path, output: Path, *, seed: int = 0, test_fraction: float = 0.2, oov_buckets: int = 1) -> None:
    """Write the dataset, atomically.

    Args:
        raw: folder with the file of interactions, one of `FILES`.
        output: folder for the dataset; must not contain one yet.
        seed: seed of the order of the training rows.
        test_fraction: fraction of the rows, at the end of the file, that are test rows.
        oov_buckets: number of ids shared by values unseen in training, per categorical feature.

    Raises:
        DataError: if the input is invalid.
    """
    check_fractions(test_fraction, 0.0)
    path = require_file(raw, FILES, "the interactions' file", WHERE)
    source = Source(path, FORM, last_rows_are_test(count_lines(path, FORM), test_fraction))
    prepare_table(TableJob("byterec", [source], COLUMNS, (TRAIN, TEST), seed, oov_buckets, {"seed": seed}), output)


def last_rows_are_test(rows: int, test_fraction: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return a `mapping_of` that assigns the last round(rows * test_fraction) rows (halves up) to test."""
    first_test = rows - int(round_half_up(np.array(rows * test_fraction)))
    return lambda row: np.where(row < first_test, TRAIN, TEST).astype(object)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit code: 0 success, 1 failure, 2 invalid input or arguments."""
    parser = table_parser(
        "byterec",
        "Turns the interactions of the ICME 2019 Short Video Understanding Challenge into a parquet dataset of two "
        "binary tasks, finish and like, with its feature specification.",
    )
    parser.add_argument("--test_fraction", type=float, default=0.2, help="share of the rows, the last of the file")
    return run_prepare("byterec", prepare, parser.parse(argv))


if __name__ == "__main__":
    sys.exit(main())
