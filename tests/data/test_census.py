import gzip
import random
import shutil

import pandas as pd
import pytest

from data.spec.embedding_sizes import embedding_dims
from data.spec.feature_spec import FeatureSpec
from tests.data.scalar_hash import scalar_row_hash
from tests.data.table_samples import (
    check_features,
    in_training_order,
    labels_of,
    preprocessed,
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
    for name in names_of(NUMBERS):
        # The feature NAME_value, and the names of the two ways in which the column is read.
        columns |= dict.fromkeys((f"{name}_value", f"{name}:int64", f"{name}:float64"), columns[name])
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
    """The small sample by every specification; group 2 from compressed files."""
    folder = tmp_path_factory.mktemp("census")
    plain, zipped = write_raw(folder / "raw"), write_raw(folder / "zipped", ending=".gz")
    shared = {"oov_buckets": OOV_BUCKETS, "seed": SEED}
    sources = {"group1": plain, "group1_without_education": plain, "group2": zipped}
    return {name: preprocessed(f"census_{name}", raw, folder / name, **shared) for name, raw in sources.items()}


@pytest.mark.parametrize("mapping", ["train", "valid", "test"])
@pytest.mark.parametrize(
    ("name", "left_out"),
    [("group1", {7, 24, 41}), ("group1_without_education", {4, 7, 24, 41}), ("group2", {4, 7, 24})],
)
def test_every_feature_is_what_its_definition_says(datasets, name, left_out, mapping):
    lines = TRAIN_LINES if mapping == "train" else TEST_LINES
    onehot = set(NAMES) - set(PLAIN) - set(HEAVY_TAILED)
    check_features(
        datasets[name],
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
    first, second = rows_of(datasets["group1"], mapping), rows_of(datasets["group2"], mapping)
    assert first["income"].tolist() == [float(fields[41] == "50000+.") for fields in chosen]
    assert first["never_married"].tolist() == [float(fields[7] == "Never married") for fields in chosen]
    assert second["education"].tolist() == [float(fields[4].startswith(DEGREES)) for fields in chosen]
    assert second["never_married"].tolist() == first["never_married"].tolist()
    assert labels_of(datasets["group1"]) == [("income", "binary", None), ("never_married", "binary", None)]
    assert labels_of(datasets["group2"]) == [("education", "binary", None), ("never_married", "binary", None)]


def test_the_small_sample_has_every_hard_case(datasets):
    test = rows_of(datasets["group1"], "test")
    for name in ("race", "year"):
        assert (test[name] == 1).any(), f"an unknown {name}"
        assert test[name].isin(range(2, 2 + OOV_BUCKETS)).any(), f"a {name} unseen in training"
    assert sorted(set(test["capital_losses"])) == pytest.approx([0.0, 7.5512], abs=1e-4), "log(1903), undivided"


def test_every_id_has_a_width_that_fits_it(datasets):
    spec = FeatureSpec.read(datasets["group1"] / "feature_spec.yaml")
    widths = embedding_dims(spec)
    assert set(widths) == {feature.name for feature in spec.onehot}
    assert {feature.name: widths[feature.name] for feature in spec.onehot if feature.embedding_dim} == {
        "wage_per_hour_value": 32,
        "dividends_value": 32,
    }


def change(lines, row, index, text):
    changed = [list(fields) for fields in lines]
    changed[row][index] = text
    return changed


MISTAKES = {
    "income": (41, "60000.", "census-income.test, line 8: the label income is '60000.'"),
    "income unknown": (41, "?", "census-income.test, line 8: the label income is missing"),
    "marital status": (7, "Single", "census-income.test, line 8: the label never_married is 'Single'; expected one of"),
    "code": (2, "3a", "census-income.test, line 8: column 'industry_code' is '3a'; expected a whole number"),
    "not finite": (0, "1e999", "census-income.test, line 8: column 'age' is '1e999'; expected a whole number"),
    "negative": (16, "-1", "holds -1, which does not fit float32 after standardization; expected a number above -1"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_cell_is_named(tmp_path, capsys, mistake):
    index, text, message = MISTAKES[mistake]
    raw = write_raw(tmp_path / "raw", test=change(TEST_LINES, 7, index, text))
    assert message in refusal("census_group1", raw, tmp_path / "out", capsys)


def test_unknown_degree_matters_to_its_label_only(tmp_path, capsys):
    raw = write_raw(tmp_path / "raw", train=change(TRAIN_LINES, 3, 4, "PhD"))
    stderr = refusal("census_group2", raw, tmp_path / "out", capsys)
    assert "census-income.data" in stderr and "'PhD'" in stderr
    preprocessed("census_group1", raw, tmp_path / "out")


@pytest.mark.real_data
def test_the_published_files_have_the_published_counts(tmp_path):
    preprocessed("census_group1", real_data("census-income"), tmp_path / "out")
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
    shutil.copy(folder / "census-income.test.gz", tmp_path / "raw")
    preprocessed("census_group2", tmp_path / "raw", tmp_path / "out")
    tests = pd.concat([rows_of(tmp_path / "out", mapping) for mapping in ("valid", "test")])
    assert len(tests) == 99_762 and round(100 * tests["education"].mean(), 1) == 19.5
