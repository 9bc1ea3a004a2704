"""Prepare Hillstrom's e-mail challenge: python -m data.hillstrom.prepare --raw DIR --output DIR.

The labels form a funnel over all customers: visit, conversion given a visit, and spend (in dollars, unscaled) given a
conversion. Row i of the file (from 0) is assigned to test, valid or train by hash(seed, 0, i); see `draw_mappings` of
`data.preprocess.splits`.
"""

import sys
from functools import partial
from pathlib import Path

from data.preprocess.columns import YES_OR_NO, Category, Columns, Label, Number
from data.preprocess.splits import TEST, TRAIN, VALID, check_fractions, draw_mappings
from data.preprocess.tables import Source, TableJob, prepare_table, require_file, run_prepare, table_parser
from data.preprocess.text_tables import TextForm

FILES = ("hillstrom.csv", "Kevin_Hillstrom_MineThatData_E-MailAnalytics_DataMiningChallenge_2008.03.20.csv")
FIELDS = ("recency", "history_segment", "history", "mens", "womens", "zip_code", "newbie", "channel", "segment")
FORM = TextForm(FILES[0], ",", (*FIELDS, "visit", "conversion", "spend"), has_header=True, is_quoted=True)
WHERE = "Fetch it from https://blog.minethatdata.com (the MineThatData E-Mail Analytics And Data Mining Challenge)"
COLUMNS = Columns(
    (
        Category("history_segment"),
        Category("mens", is_code=True),
        Category("womens", is_code=True),
        Category("zip_code"),
        Category("newbie", is_code=True),
        Category("channel"),
        Category("segment"),
        Number("recency"),
        Number("history", log=True),
    ),
    (
        Label("visit", "visit", YES_OR_NO),
        Label("conversion", "conversion", YES_OR_NO, given="visit"),
        Label("spend", "spend", given="conversion"),
    ),
)


def prepare(
    raw: Path,
    output: Path,
    *,
    seed: int = 0,
    test_fraction: float = 0.2,
    validation_fraction: float = 0.0,
    oov_buckets: int = 1,
) -> None:
    """Write the dataset, atomically.

    Args:
        raw: folder with one of `FILES`.
        output: folder for the dataset; must not contain one yet.
        seed: seed of the split and of the order of the training rows.
        test_fraction, validation_fraction: expected fractions of the rows.
        oov_buckets: number of ids shared by values unseen in training, per categorical feature.

    Raises:
        DataError: if the input is invalid.
    """
    check_fractions(test_fraction, validation_fraction)
    split = partial(draw_mappings, seed=seed, test_fraction=test_fraction, validation_fraction=validation_fraction)
    source = Source(require_file(raw, FILES, "the customers' file", WHERE), FORM, split)
    mappings = (TRAIN, VALID, TEST) if validation_fraction else (TRAIN, TEST)
    prepare_table(TableJob("hillstrom", [source], COLUMNS, mappings, seed, oov_buckets, {"seed": seed}), output)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit code: 0 success, 1 failure, 2 invalid input or arguments."""
    parser = table_parser(
        "hillstrom",
        "Turns the file of the MineThatData e-mail challenge into a parquet dataset of three tasks, visit, conversion "
        "given a visit and spend given a conversion, with its feature specification.",
    )
    add = parser.add_argument
    add("--test_fraction", type=float, default=0.2, help="expected fraction of the rows")
    add("--validation_fraction", type=float, default=0.0, help="expected fraction of the rows for a mapping `valid`")
    return run_prepare("hillstrom", prepare, parser.parse(argv))


if __name__ == "__main__":
    sys.exit(main())
