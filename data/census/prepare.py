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

from data.errors import DataError
from data.preprocess.columns import Category, Columns, Label, Number
from data.preprocess.splits import MAPPINGS, TRAIN, draw_halves
from data.preprocess.tables import Source, TableJob, prepare_table, require_file, run_prepare, table_parser, whole_file
from data.preprocess.text_tables import TextForm

UNKNOWN = "?"
CODES = ("industry_code", "occupation_code", "own_business_or_self_employed", "veterans_benefits", "year")
PLAIN_NUMBERS = ("age", "persons_worked_for_employer", "weeks_worked_in_year")
HEAVY_TAILED_NUMBERS = ("wage_per_hour", "capital_gains", "capital_losses", "dividends")
WEIGHT = "instance_weight"
VALUE = "_value"
# In file order, which is also that of census-income.names except for the weight.
COLUMNS = (
    "age",
    "class_of_worker",
    "industry_code",
    "occupation_code",
    "education",
    "wage_per_hour",
    "enrolled_in_education_last_week",
    "marital_status",
    "major_industry",
    "major_occupation",
    "race",
    "hispanic_origin",
    "sex",
    "union_member",
    "reason_for_unemployment",
    "full_or_part_time_employment",
    "capital_gains",
    "capital_losses",
    "dividends",
    "tax_filer_status",
    "region_of_previous_residence",
    "state_of_previous_residence",
    "detailed_household_and_family_status",
    "household_summary",
    WEIGHT,
    "migration_change_in_msa",
    "migration_change_in_region",
    "migration_move_within_region",
    "lived_in_this_house_one_year_ago",
    "migration_from_sunbelt",
    "persons_worked_for_employer",
    "family_members_under_18",
    "country_of_birth_father",
    "country_of_birth_mother",
    "country_of_birth_self",
    "citizenship",
    "own_business_or_self_employed",
    "veterans_questionnaire",
    "veterans_benefits",
    "weeks_worked_in_year",
    "year",
    "income",
)

INCOMES = {"- 50000.": 0.0, "50000+.": 1.0}
MARITAL_STATUSES = {
    "Never married": 1.0,
    "Married-civilian spouse present": 0.0,
    "Married-A F spouse present": 0.0,
    "Married-spouse absent": 0.0,
    "Separated": 0.0,
    "Divorced": 0.0,
    "Widowed": 0.0,
}
EDUCATIONS = {
    "Children": 0.0,
    "Less than 1st grade": 0.0,
    "1st 2nd 3rd or 4th grade": 0.0,
    "5th or 6th grade": 0.0,
    "7th and 8th grade": 0.0,
    "9th grade": 0.0,
    "10th grade": 0.0,
    "11th grade": 0.0,
    "12th grade no diploma": 0.0,
    "High school graduate": 0.0,
    "Some college but no degree": 0.0,
    "Associates degree-occup /vocational": 1.0,
    "Associates degree-academic program": 1.0,
    "Bachelors degree(BA AB BS)": 1.0,
    "Masters degree(MA MS MEng MEd MSW MBA)": 1.0,
    "Prof school degree (MD DDS DVM LLB JD)": 1.0,
    "Doctorate degree(PhD EdD)": 1.0,
}
INCOME = Label("income", "income", INCOMES)
NEVER_MARRIED = Label("never_married", "marital_status", MARITAL_STATUSES)
EDUCATION = Label("education", "education", EDUCATIONS)
# The task pairs of the MMoE paper (Ma et al., KDD 2018, section 5).
GROUPS = {1: (INCOME, NEVER_MARRIED), 2: (EDUCATION, NEVER_MARRIED)}
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
    prepare_table(TableJob("census", sources, columns, MAPPINGS, seed, oov_buckets, metadata), output)


def columns_of(group: int, exclude: tuple[str, ...] = ()) -> Columns:
    """Return the features and labels of a task pair.

    Args:
        group: index into `GROUPS`, 1 or 2.
        exclude: columns to exclude, in addition to the instance weight and the columns of the labels.

    Raises:
        DataError: if an excluded column is not a feature of the group, or no feature is left.
    """
    labels = GROUPS[group]
    names = [name for name in COLUMNS if name not in {WEIGHT, *(label.column for label in labels)}]
    for name in exclude:
        if name not in names:
            raise DataError(f"--exclude {name}: is not a feature of group {group}; its features are {', '.join(names)}")
    kept = [name for name in names if name not in exclude]
    if not kept:
        raise DataError("--exclude: no features are left; exclude fewer columns")
    return Columns(tuple(feature for name in kept for feature in _features(name)), labels)


def _features(name: str) -> tuple[Category | Number, ...]:
    """Return the features of a raw column. A number is also a category, to capture effects of single values."""
    if name in PLAIN_NUMBERS + HEAVY_TAILED_NUMBERS:
        number = Number(name, log=name in HEAVY_TAILED_NUMBERS)
        return number, Category(f"{name}{VALUE}", is_code=True, column=name)
    return (Category(name, is_code=name in CODES, null=UNKNOWN),)


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
