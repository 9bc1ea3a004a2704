import gzip
import random
import re

import pandas as pd
import pytest

from data.census.prepare import main, prepare
from data.spec.embedding_sizes import embedding_dims
from data.spec.feature_spec import FeatureSpec
from tests.data.scalar_hash import scalar_row_hash
from tests.data.table_samples import (
    check_features,
    contents,
    in_training_order,
    labels_of,
    refusal,
    rows_of,
    taken,
    write_lines,
)
from tests.helpers import real_data

pytestmark = pytest.mark.filterwarnings("ignore:Initializing an NVTabular Dataset in CPU mode")

SEED, OOV_BUCKETS = 5, 3
# By column index, from shared knowledge of the set, not from the package under test.
NAMES = {
    0: "age", 1: "class_of_worker", 2: "industry_code", 3: "occupation_code", 4: "education", 5: "wage_per_hour",
    6: "enrolled_in_education_last_week", 7: "marital_status", 8: "major_industry", 9: "major_occupation", 10: "race",
    11: "hispanic_origin", 12: "sex", 13: "union_member", 14: "reason_for_unemployment",
    15: "full_or_part_time_employment", 16: "capital_gains", 17: "capital_losses", 18: "dividends",
    19: "tax_filer_status", 20: "region_of_previous_residence", 21: "state_of_previous_residence",
    22: "detailed_household_and_family_status", 23: "household_summary", 24: "instance_weight",
    25: "migration_change_in_msa", 26: "migration_change_in_region", 27: "migration_move_within_region",
    28: "lived_in_this_house_one_year_ago", 29: "migration_from_sunbelt", 30: "persons_worked_for_employer",
    31: "family_members_under_18", 32: "country_of_birth_father", 33: "country_of_birth_mother",
    34: "country_of_birth_self", 35: "citizenship", 36: "own_business_or_self_employed", 37: "veterans_questionnaire",
    38: "veterans_benefits", 39: "weeks_worked_in_year", 40: "year", 41: "income",
}  # fmt: skip
PLAIN, HEAVY_TAILED = (0, 30, 39), (5, 16, 17, 18)
NUMBERS = (*PLAIN, *HEAVY_TAILED)
CODES = (2, 3, 36, 38, 40)
DEGREES = ("Associates", "Bachelors", "Masters", "Prof school", "Doctorate")
POOLS = {
    4: ["Children", "Some college but no degree", "Associates degree-occup /vocational", "Doctorate degree(PhD EdD)",
        "Associates degree-academic program", "Masters degree(MA MS MEng MEd MSW MBA)", "High school graduate",
        "Prof school degree (MD DDS DVM LLB JD)", "Bachelors degree(BA AB BS)"],
    7: ["Never married", "Divorced", "Married-A F spouse present"],
    41: ["- 50000.", "50000+."],
}  # fmt: skip


def make_lines(rows: int, seed: int, *, is_test: bool) -> list[list[str]]:
    """Fields of lines, with unknown and, in the test file, unseen values; column 17 never varies in training."""
    draw = random.Random(seed)
    lines = []
    for row in range(rows):
        fields = []
        for index in range(42):
            if index in POOLS:
                fields.append(draw.choice(POOLS[index]))
            elif index == 24:
                fields.append(f"{draw.uniform(50, 3000):.2f}")
            elif index == 17:
                fields.append("1902" if is_test and row % 2 else "0")
            elif index in HEAVY_TAILED:
                fields.append(str(draw.choice([0, 0, 0, draw.randrange(100000)])))
            elif index in PLAIN:
                fields.append(str(draw.randrange(90)))
            else:
                value = draw.choice([0, 0, 0, 1, 1, 2, 3] + [8, 9, 10] * is_test)
                fields.append(
                    "?" if draw.random() < 0.1 else str(value) if index in CODES else f"Value {value}- of it "
                )
        lines.append(fields)
    return lines


TRAIN_LINES, TEST_LINES = make_lines(60, 1, is_test=False), make_lines(40, 2, is_test=True)


def write_raw(folder, train=TRAIN_LINES, test=TEST_LINES, ending=""):
    for name, lines in (("data", train), ("test", test)):
        write_lines(folder / f"census-income.{name}{ending}", [", ".join(fields) for fields in lines])
    return folder


def raw_columns(lines):
    """Raw values by column, those of numbers also under the name of their categorical feature."""
    columns = {}
    for index, name in NAMES.items():
        texts = [fields[index].strip() for fields in lines]
        is_number = index in (*PLAIN, *HEAVY_TAILED, *CODES)
        columns[name] = [None if text == "?" else int(text) if is_number else text for text in texts if index != 24]
    columns |= {f"{NAMES[index]}_value": columns[NAMES[index]] for index in NUMBERS}
    return {name: values for name, values in columns.items() if values}


def names_of(indices, out=()):
    return [NAMES[index] for index in indices if index not in out]


def expected_rows():
    """The rows of each mapping, as row numbers in their file, in the order of the dataset."""
    halves = [scalar_row_hash(SEED, 0, row) < 2**63 for row in range(len(TEST_LINES))]
    return {
        "train": in_training_order(range(len(TRAIN_LINES)), SEED),
        "valid": [row for row, is_valid in enumerate(halves) if is_valid],
        "test": [row for row, is_valid in enumerate(halves) if not is_valid],
    }


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """The small sample, prepared for both groups; group 2 from compressed files, without sex and income."""
    folder = tmp_path_factory.mktemp("census")
    shared = {"seed": SEED, "oov_buckets": OOV_BUCKETS}
    prepare(write_raw(folder / "raw"), folder / "1", group=1, **shared)
    zipped = write_raw(folder / "zipped", ending=".gz")
    prepare(zipped, folder / "2", group=2, exclude=["sex", "income"], **shared)
    return {1: folder / "1", 2: folder / "2"}


@pytest.mark.parametrize("mapping", ["train", "valid", "test"])
@pytest.mark.parametrize(("group", "left_out"), [(1, {7, 24, 41}), (2, {4, 7, 12, 24, 41})])
def test_every_feature_is_what_its_definition_says(datasets, group, left_out, mapping):
    lines = TRAIN_LINES if mapping == "train" else TEST_LINES
    onehot = set(NAMES) - set(PLAIN) - set(HEAVY_TAILED)
    check_features(
        datasets[group],
        mapping,
        raw_columns(TRAIN_LINES),
        taken(raw_columns(lines), expected_rows()[mapping]),
        onehot=[*names_of(sorted(onehot), left_out), *(f"{name}_value" for name in names_of(NUMBERS))],
        numerical=names_of(PLAIN),
        heavy_tailed=names_of(HEAVY_TAILED),
        oov_buckets=OOV_BUCKETS,
    )


@pytest.mark.parametrize("mapping", ["train", "valid", "test"])
def test_the_labels_are_those_of_the_groups(datasets, mapping):
    lines = TRAIN_LINES if mapping == "train" else TEST_LINES
    chosen = [lines[row] for row in expected_rows()[mapping]]
    first, second = rows_of(datasets[1], mapping), rows_of(datasets[2], mapping)
    assert first["income"].tolist() == [float(fields[41] == "50000+.") for fields in chosen]
    assert first["never_married"].tolist() == [float(fields[7] == "Never married") for fields in chosen]
    assert second["education"].tolist() == [float(fields[4].startswith(DEGREES)) for fields in chosen]
    assert second["never_married"].tolist() == first["never_married"].tolist()
    assert labels_of(datasets[1]) == [("income", "binary", None), ("never_married", "binary", None)]
    assert labels_of(datasets[2]) == [("education", "binary", None), ("never_married", "binary", None)]


def test_the_small_sample_has_every_hard_case(datasets):
    test = rows_of(datasets[1], "test")
    for name in ("race", "year"):
        assert (test[name] == 1).any(), f"an unknown {name}"
        assert test[name].isin(range(2, 2 + OOV_BUCKETS)).any(), f"a {name} unseen in training"
    assert sorted(set(test["capital_losses"])) == pytest.approx([0.0, 7.5512], abs=1e-4), "log(1903), undivided"


def test_every_id_has_a_width_that_fits_it(datasets):
    spec = FeatureSpec.read(datasets[1] / "feature_spec.yaml")
    widths = embedding_dims(spec)
    assert set(widths) == {feature.name for feature in spec.onehot}
    assert all(1 < widths[feature.name] <= min(32, feature.cardinality) for feature in spec.onehot)


def test_bytes_depend_on_the_seed_only(datasets, tmp_path):
    flags = ["--group", "1", "--oov_buckets", str(OOV_BUCKETS)]
    raw = write_raw(tmp_path / "raw", ending=".gz")
    for seed, output in ((SEED, "same"), (SEED + 1, "other")):
        assert main(["--raw", str(raw), "--output", str(tmp_path / output), "--seed", str(seed), *flags]) == 0
    assert contents(tmp_path / "same") == contents(datasets[1])
    same, other = (rows_of(tmp_path / output, "train") for output in ("same", "other"))
    by = list(same.columns)
    assert (
        not same.equals(other) and same.sort_values(by).to_numpy().tolist() == other.sort_values(by).to_numpy().tolist()
    )
    assert len(rows_of(tmp_path / "other", "valid")) == sum(
        scalar_row_hash(SEED + 1, 0, row) < 2**63 for row in range(40)
    )


def change(lines, row, index, text):
    changed = [list(fields) for fields in lines]
    changed[row][index] = text
    return changed


MISTAKES = {
    "income": (41, "60000.", "income is ' 60000.', expected one of '- 50000.', '50000\\+.'"),
    "income unknown": (41, "?", "income is ' \\?', expected one of"),
    "marital status": (7, "Single", "marital_status is ' Single', expected one of 'Never married', "),
    "code": (2, "3a", "industry_code is ' 3a', expected a whole number of at most 15 digits, or '\\?' if unknown"),
    "large code": (40, "1234567890123456", "year is .*, expected a whole number of at most 15 digits"),
    "number": (0, "?", "age is '\\?', expected a number"),
    "not finite": (0, "1e999", "age is '1e999', expected a number"),
    "negative": (16, "-1", "capital_gains is ' -1', expected a number of at least 0"),
    "empty": (10, "", "race is ' ', expected a string, or '\\?' if unknown"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_cell_is_named_with_its_line(tmp_path, capsys, mistake):
    index, text, message = MISTAKES[mistake]
    raw = write_raw(tmp_path / "raw", test=change(TEST_LINES, 7, index, text))
    stderr = refusal(main, raw, tmp_path / "out", capsys)
    assert re.search(rf"census-income\.test, line 8: {message}", stderr), stderr
    assert stderr.splitlines()[-1].startswith("census: ")


def test_unknown_degree(tmp_path, capsys):
    raw = write_raw(tmp_path / "raw", train=change(TRAIN_LINES, 3, 4, "PhD"))
    stderr = refusal(main, raw, tmp_path / "out", capsys, "--group", "2")
    assert re.search(r"census-income\.data, line 4: education is ' PhD', expected one of 'Children'", stderr)
    assert main(["--raw", str(raw), "--output", str(tmp_path / "out"), "--group", "1"]) == 0


def test_a_cut_line_a_cut_file_and_a_missing_one_are_named(tmp_path, capsys):
    raw = write_raw(tmp_path / "short", train=[*TRAIN_LINES[:9], TRAIN_LINES[9][:40], *TRAIN_LINES[10:]])
    stderr = refusal(main, raw, tmp_path / "out", capsys)
    assert re.search(r"census-income\.data, line 10: 40 fields, expected 42", stderr)
    raw = write_raw(tmp_path / "cut", ending=".gz")
    path = raw / "census-income.test.gz"
    path.write_bytes(path.read_bytes()[:-30])
    assert "census-income.test.gz: is not a complete gzip file" in refusal(main, raw, tmp_path / "out", capsys)
    path.unlink()
    stderr = refusal(main, raw, tmp_path / "out", capsys)
    assert "the test file is missing; looked for census-income.test, each also with .gz" in stderr
    assert "nowhere: is not a folder" in refusal(main, tmp_path / "nowhere", tmp_path / "out", capsys)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--group", "3"], "invalid choice: 3"),
        (
            ["--exclude", "salary"],
            "--exclude salary: is not a feature of group 1; its features are age, class_of_w",
        ),
        (["--exclude", "income"], "--exclude income: is not a feature of group 1"),
        (["--exclude", "instance_weight"], "--exclude instance_weight: is not a feature"),
        (["--exclude", *names_of(NAMES, {7, 24, 41})], "--exclude: no features are left"),
        (["--oov_buckets", "0"], "expected a whole number from 1"),
    ],
)
def test_arguments_that_cannot_work_are_rejected(tmp_path, capsys, flags, message):
    assert message in refusal(main, write_raw(tmp_path / "raw"), tmp_path / "out", capsys, *flags)


@pytest.mark.real_data
def test_the_published_files_have_the_published_counts(tmp_path):
    folder = real_data("census-income")
    prepare(folder, tmp_path / "out")
    train = rows_of(tmp_path / "out", "train")
    tests = pd.concat([rows_of(tmp_path / "out", mapping) for mapping in ("valid", "test")])
    assert (len(train), len(tests)) == (199_523, 99_762)
    assert (train["income"].sum(), tests["income"].sum()) == (12_382, 6_186)
    assert round(100 * train["never_married"].mean(), 2) == 43.35
    assert round(100 * tests["never_married"].mean(), 2) == 43.25
    assert 49_000 < len(rows_of(tmp_path / "out", "valid")) < 50_700
    spec = FeatureSpec.read(tmp_path / "out" / "feature_spec.yaml")
    # 0, null, unseen, and the distinct known values that the publisher counts.
    sizes = {"industry_code": 52, "occupation_code": 47, "education": 17, "race": 5, "country_of_birth_self": 42}
    assert {name: spec.features[name].cardinality - 3 for name in sizes} == sizes
    assert (len(spec.onehot), len(spec.numerical)) == (39, 7)
    assert (train["migration_from_sunbelt"] == 1).sum() == 99_696, "unknown in every row of year 95"
    for feature in spec.numerical:
        assert train[feature.name].mean() == pytest.approx(0, abs=1e-4)
        assert train[feature.name].std() == pytest.approx(1, abs=1e-4)


@pytest.mark.real_data
def test_a_fifth_of_the_published_test_file_has_a_degree(tmp_path):
    """Group 2 over the test file and the first thousand lines of the data file."""
    folder = real_data("census-income")
    with gzip.open(folder / "census-income.data.gz", "rt") as file:
        write_lines(tmp_path / "raw" / "census-income.data", [next(file).rstrip() for _ in range(1000)])
    (tmp_path / "raw" / "census-income.test.gz").symlink_to(folder / "census-income.test.gz")
    prepare(tmp_path / "raw", tmp_path / "out", group=2)
    tests = pd.concat([rows_of(tmp_path / "out", mapping) for mapping in ("valid", "test")])
    assert len(tests) == 99_762 and round(100 * tests["education"].mean(), 1) == 19.5
