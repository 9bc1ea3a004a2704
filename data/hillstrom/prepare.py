"""Prepares Hillstrom's e-mail challenge: python -m data.hillstrom.prepare --raw DIR --output DIR.

A funnel over the whole population: visit, conversion given a visit, spend (in dollars, as it is) given a
conversion. Row i of the file (from 0) goes to test, valid or train by hash(seed, 0, i): `draw_mappings` of
`data.encoding.splits`.
"""

import sys
from functools import partial
from pathlib import Path

from data.encoding.splits import TEST, TRAIN, VALID, check_fractions, draw_mappings
from data.encoding.tabular.columns import YES_OR_NO, Category, Columns, Label, Number
from data.encoding.tabular.prepare import Job, prepare_table, require_file, run_prepare, table_parser
from data.encoding.tabular.staging import Source
from data.encoding.text_tables import TextForm

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
    """Writes the dataset; all of it, or nothing.

    Args:
        raw: folder with hillstrom.csv.
        output: folder that holds no dataset yet.
        seed: of the split and of the order of the training rows.
        test_fraction, validation_fraction: shares of the rows, on average.
        oov_buckets: ids for values unseen in training, per categorical feature.

    Raises:
        DataError: wrong input.
    """
    check_fractions(test_fraction, validation_fraction)
    split = partial(draw_mappings, seed=seed, test_fraction=test_fraction, validation_fraction=validation_fraction)
    source = Source(require_file(raw, FILES, "the customers' file", WHERE), FORM, split)
    mappings = (TRAIN, VALID, TEST) if validation_fraction else (TRAIN, TEST)
    prepare_table(Job("hillstrom", [source], COLUMNS, mappings, seed, oov_buckets, {"seed": seed}), output)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code: 0 done, 1 failure, 2 wrong input or arguments."""
    parser = table_parser(
        "hillstrom",
        "Turns the file of the MineThatData e-mail challenge into a parquet dataset of three tasks, visit, conversion "
        "given a visit and spend given a conversion, with its feature specification.",
    )
    add = parser.add_argument
    add("--test_fraction", type=float, default=0.2, help="share of the rows, on average")
    add("--validation_fraction", type=float, default=0.0, help="share of the rows for a mapping `valid`, on average")
    return run_prepare("hillstrom", prepare, parser.parse(argv))


if __name__ == "__main__":
    sys.exit(main())
