import random

import pytest

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

SEED, OOV_BUCKETS, COUNT = 9, 4, 43
FIRST = ["uid", "user_city", "item_id", "author_id", "item_city", "channel"]
NAMES = [*FIRST, "finish", "like", "music_id", "device", "time", "duration_time"]
IDS = [*FIRST, "music_id", "device"]


def make_lines(seed: int) -> list[list[str]]:
    draw = random.Random(seed)
    lines = []
    for row in range(COUNT):
        cells = {name: draw.choice([3, 5, 5, 8]) + 100 * (row > 35) for name in IDS}
        for name in ("user_city", "item_city", "music_id"):
            cells[name] = draw.choice([-1, cells[name]])
        cells |= {"finish": draw.randrange(2), "like": draw.randrange(2), "time": 53085738314 + row}
        cells["duration_time"] = draw.choice([-1, 0, 2, 9, 10, 10, 42])
        lines.append([str(cells[name]) for name in NAMES])
    return lines


LINES = make_lines(6)


def write_raw(folder, lines=LINES, name="byterec_sample.txt"):
    return write_lines(folder / name, ["\t".join(fields) for fields in lines])


def raw_columns():
    columns = zip(*LINES, strict=True)
    return {
        name: [None if cell == "-1" else int(cell) for cell in cells]
        for name, cells in zip(NAMES, columns, strict=True)
    }


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("byterec")
    raw = write_raw(folder / "raw")
    return preprocessed("byterec", raw, folder / "out", seed=SEED, oov_buckets=OOV_BUCKETS)


@pytest.mark.parametrize("mapping", ["train", "test"])
def test_features_and_labels_match_their_definition(dataset, mapping):
    split = {"train": in_training_order(range(34), SEED), "test": range(34, COUNT)}
    expected = taken(raw_columns(), split[mapping])
    check_features(
        dataset,
        mapping,
        taken(raw_columns(), split["train"]),
        expected,
        onehot=IDS,
        numerical=[],
        heavy_tailed=["duration_time"],
        oov_buckets=OOV_BUCKETS,
    )
    rows = rows_of(dataset, mapping)
    assert rows["finish"].tolist() == expected["finish"] and rows["like"].tolist() == expected["like"]
    assert "time" not in rows


def test_the_small_sample_has_every_hard_case(dataset):
    test, train = rows_of(dataset, "test"), rows_of(dataset, "train")
    assert (test["user_city"] == 1).any() and (train["music_id"] == 1).any()
    assert test["uid"].isin(range(2, 2 + OOV_BUCKETS)).any()
    assert None in raw_columns()["duration_time"][:34]
    assert labels_of(dataset) == [("finish", "binary", None), ("like", "binary", None)]


def test_the_published_file_name_and_another_share(tmp_path):
    raw = write_raw(tmp_path / "raw", name="final_track2_train.txt.gz")
    out = preprocessed("byterec", raw, tmp_path / "out", split={"from": "interactions", "last": {"test": 0.5}})
    # 21.5 test rows, halves up.
    assert rows_of(out, "test")["finish"].tolist() == raw_columns()["finish"][21:]
    assert len(rows_of(out, "train")) == 21


@pytest.mark.parametrize(
    ("name", "cell", "message"),
    [
        ("like", "-1", "byterec_sample.txt, line 11: the label like is missing"),
        ("uid", "5a", "byterec_sample.txt, line 11: column 'uid' is '5a'; expected a whole number"),
        ("duration_time", "-2", "column 'duration_time' holds -2; expected a number above -1"),
    ],
)
def test_a_wrong_cell_is_named(tmp_path, capsys, name, cell, message):
    lines = [list(fields) for fields in LINES]
    lines[10][NAMES.index(name)] = cell
    assert message in refusal("byterec", write_raw(tmp_path / "raw", lines), tmp_path / "out", capsys)


def test_number_without_values_and_empty_split(tmp_path, capsys):
    unknown = write_raw(tmp_path / "unknown", [[*fields[:11], "-1"] for fields in LINES])
    assert "duration_time: no training row has a value" in refusal("byterec", unknown, tmp_path / "out", capsys)
    raw, split = write_raw(tmp_path / "raw"), {"from": "interactions", "last": {"test": 0.01}}
    assert "mapping test has no rows" in refusal("byterec", raw, tmp_path / "out", capsys, split=split)


@pytest.mark.real_data
def test_the_published_sample_has_the_published_counts(tmp_path):
    preprocessed("byterec", real_data("byterec"), tmp_path / "out")
    train, test = rows_of(tmp_path / "out", "train"), rows_of(tmp_path / "out", "test")
    assert (len(train), len(test)) == (160, 40)
    assert train["finish"].sum() + test["finish"].sum() == 76 and train["like"].sum() + test["like"].sum() == 7
