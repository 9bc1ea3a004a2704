import random
import shutil

import pytest

from data.encoding.encoder_files import load_encoders
from data.spec.feature_spec import FeatureSpec
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

SEED, OOV_BUCKETS = 11, 2
# The mean of 39 times 0.0856 is not 0.0856 in floating point.
COUNT = 39
FIELDS = "101 121 122 124 125 126 127 128 129 205 206 207 210 216 508 509 702 853 301 109_14 110_14 127_14 150_14"
FIELD_VALUES = "D109_14 D110_14 D127_14 D150_14 D508 D509 D702 D853"
CATEGORICAL = [f"categorical_{number}" for number in range(1, 17)]
NUMERICAL = [f"numerical_{number}" for number in range(1, 64)]
SETS = {
    "aliccp": {
        "ids": FIELDS.split(),
        "numbers": FIELD_VALUES.split(),
        "header": ["click", "purchase", *FIELDS.split(), *FIELD_VALUES.split()],
        "files": {"train": "ali_ccp_train.csv", "valid": "ali_ccp_val.csv", "test": "ali_ccp_test.csv.gz"},
        "second": "purchase",
        "constant": "D127_14",
    },
    "aliexpress": {
        "ids": CATEGORICAL,
        "numbers": NUMERICAL,
        "header": ["search_id", *CATEGORICAL, *NUMERICAL, "click", "conversion"],
        "files": {"train": "train.csv.gz", "test": "test.csv"},
        "second": "conversion",
        "constant": "numerical_40",
    },
}


def make_rows(kind: str, mapping: str, count: int = COUNT) -> list[dict[str, str]]:
    """Rows with unknown cells, ids that only the later files have, and a column of one awkward number."""
    about, draw = SETS[kind], random.Random(f"{kind} {mapping}")
    rows = []
    for number in range(count):
        cells = {name: str(draw.choice([0, 1, 1, 7] + [30, 31] * (mapping != "train"))) for name in about["ids"]}
        cells |= {name: repr(draw.random()) for name in about["numbers"]}
        for name in draw.sample(about["ids"] + about["numbers"], 3):
            cells[name] = ""
        cells[about["constant"]] = "0.0856"
        click = draw.random() < 0.5
        cells |= {"click": str(int(click)), about["second"]: str(int(click and draw.random() < 0.5))}
        cells["search_id"] = str(number // 3)
        rows.append({name: cells[name] for name in about["header"]})
    return rows


ROWS = {kind: {mapping: make_rows(kind, mapping) for mapping in about["files"]} for kind, about in SETS.items()}


def write_raw(folder, kind, rows=None, files=None):
    about = SETS[kind]
    for mapping, name in (files or about["files"]).items():
        lines = [",".join(row.values()) for row in (rows or ROWS[kind])[mapping]]
        write_lines(folder / name, [",".join(about["header"]), *lines])
    return folder


def raw_columns(kind, mapping):
    about, rows = SETS[kind], ROWS[kind][mapping]
    numbers = {name: [float(row[name]) if row[name] else None for row in rows] for name in about["numbers"]}
    return {name: [int(row[name]) if row[name] else None for row in rows] for name in about["ids"]} | numbers


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ali")
    shared = {"seed": SEED, "oov_buckets": OOV_BUCKETS}
    return {kind: preprocessed(kind, write_raw(folder / kind, kind), folder / f"{kind}-out", **shared) for kind in SETS}


PARTS = [(kind, mapping) for kind, about in SETS.items() for mapping in about["files"]]


@pytest.mark.parametrize(("kind", "mapping"), PARTS)
def test_features_and_labels_match_their_definition(datasets, kind, mapping):
    about = SETS[kind]
    order = in_training_order(range(COUNT), SEED) if mapping == "train" else range(COUNT)
    check_features(
        datasets[kind],
        mapping,
        raw_columns(kind, "train"),
        taken(raw_columns(kind, mapping), order),
        onehot=about["ids"],
        numerical=about["numbers"],
        heavy_tailed=[],
        oov_buckets=OOV_BUCKETS,
    )
    rows = rows_of(datasets[kind], mapping)
    for label in ("click", about["second"]):
        assert rows[label].tolist() == [float(ROWS[kind][mapping][row][label]) for row in order], label


@pytest.mark.parametrize("kind", SETS)
def test_second_label_is_given_a_click(datasets, kind):
    second = SETS[kind]["second"]
    assert labels_of(datasets[kind]) == [("click", "binary", None), (second, "binary", "click")]
    rows = rows_of(datasets[kind], "train")
    assert {(0, 0), (1, 0), (1, 1)} == set(zip(rows["click"], rows[second], strict=True))


def test_constant_column_is_0(datasets):
    for kind, about in SETS.items():
        assert set(rows_of(datasets[kind], "train")[about["constant"]]) == {0.0}
        constant = load_encoders(datasets[kind] / "workflow")[about["constant"]]
        assert constant.encode([0.0856, 1.0856, None]).tolist() == pytest.approx([0, 1, 0])


def test_result_lists_group_aliexpress_test_rows(datasets):
    spec = FeatureSpec.read(datasets["aliexpress"] / "feature_spec.yaml")
    assert spec.map_feature.name == "search_id" and "search_id" not in rows_of(datasets["aliexpress"], "train")
    assert rows_of(datasets["aliexpress"], "test")["search_id"].tolist() == [row // 3 for row in range(COUNT)]
    assert FeatureSpec.read(datasets["aliccp"] / "feature_spec.yaml").map_feature is None


@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize("mistake", ["no click", "text", "no number", "label"])
def test_a_wrong_cell_is_named(tmp_path, capsys, kind, mistake):
    about = SETS[kind]
    second, code, number = about["second"], about["ids"][3], about["numbers"][2]
    cells, message = {
        "no click": ({"click": "0", second: "1"}, f"line 22: {second} is 1, expected 0 where click is 0"),
        "text": ({code: "x"}, f"line 22: column '{code}' is 'x'; expected a whole number"),
        "no number": ({number: "x"}, f"line 22: column '{number}' is 'x'; expected a number"),
        "label": ({"click": ""}, "line 22: the label click is missing"),
    }[mistake]
    test = ROWS[kind]["test"]
    raw = write_raw(tmp_path / "raw", kind, ROWS[kind] | {"test": [*test[:20], test[20] | cells, *test[21:]]})
    assert f"{about['files']['test']}, {message}" in refusal(kind, raw, tmp_path / "out", capsys)


def test_missing_files_are_named_with_what_was_looked_for(tmp_path, capsys):
    raw = write_raw(tmp_path / "raw", "aliccp")
    (raw / "ali_ccp_val.csv").unlink()
    assert "ali_ccp_val*.csv*" in refusal("aliccp", raw, tmp_path / "out", capsys)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("kind", "folder", "names", "counts"),
    [
        ("aliccp", "ali-ccp", "ali_ccp_{}_sample.csv", {"train": (100, 7, 1), "valid": (50, 3, 1), "test": (50, 2, 1)}),
        ("aliexpress", "aliexpress", "aliexpress_{}_sample.csv", {"train": (100, 60, 2), "test": (20, 10, 2)}),
        ("aliexpress", "aliexpress", "tiny_mtl_{}.csv", {"train": (100, 3, 2), "test": (100, 6, 1)}),
    ],
)
def test_the_published_samples_have_the_published_counts(tmp_path, kind, folder, names, counts):
    # Under the names of the complete files.
    for mapping in counts:
        name = SETS[kind]["files"][mapping].removesuffix(".gz")
        shutil.copy(real_data(folder) / names.format("val" if mapping == "valid" else mapping), tmp_path / name)
    out = preprocessed(kind, tmp_path, tmp_path / "out")
    for mapping, (count, clicks, seconds) in counts.items():
        rows = rows_of(out, mapping)
        assert (len(rows), rows["click"].sum(), rows[SETS[kind]["second"]].sum()) == (count, clicks, seconds)
