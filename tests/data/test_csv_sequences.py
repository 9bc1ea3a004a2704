"""Sequences in CSV files: read, written and drawn."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import check_dataset
import gen_csv
from data.errors import DataError
from data.files.csv import write_csv_chunks
from data.files.random_rows import random_tables
from data.files.transcode import transcode
from data.spec.feature_spec import FeatureSpec
from tests.data.csv_documents import CHANNELS, FEATURES, GOOD_LINE, chunk, document, write_csv_dataset

STEPS: dict[str, dict[str, Any]] = {
    "met": {"cardinality": 50, "table": "user", "max_hotness": 4},
    "met_at": {"dtype": "float64"},
    "gap": {"dtype": "int16"},
}
NAMES = [*FEATURES, *STEPS]
MEETINGS = {"features": ["met", "met_at", "gap"], "target": ["user"]}
LINE = GOOD_LINE + ',"[3, 4]","[-0.5, 1]","[0, -7]"'


def sequential(sources: dict[str, list[dict[str, Any]]] | None = None, **keys: Any) -> dict[str, Any]:
    sources = sources or {name: [chunk(NAMES, [f"{name}.csv"])] for name in ("train", "test")}
    channels = CHANNELS | {"sequence": {"meetings": MEETINGS | keys}}
    return document(sources) | {"feature_spec": FEATURES | STEPS, "channel_spec": channels}


def convert(path: Path, output: Path, lines: list[str] | None = None) -> FeatureSpec:
    return transcode(path, output, rows_per_file=65536, min_files=1, report=([] if lines is None else lines).append)


def dataset(folder: Path, text: str, **keys: Any) -> Path:
    return write_csv_dataset(folder, {"train.csv": text, "test.csv": LINE + "\n"}, sequential(**keys))


def stored(spec: FeatureSpec) -> pa.Table:
    return pa.concat_tables([pq.read_table(file) for file in spec.files("train")])


@given(rows=st.lists(st.lists(st.tuples(st.integers(0, 49), st.floats(-1e38, 1e38), st.integers(-300, 300)))))
@settings(max_examples=30, deadline=None)
def test_sequences_become_parquet_as_they_are_written(rows, tmp_path_factory):
    """Longer lists than max_hotness are kept whole, for the loader to cut."""
    folder, text, rows = tmp_path_factory.mktemp("rows"), io.StringIO(), [*rows, []]
    cells = [[[step[place] for step in row] for place in range(3)] for row in rows]
    for row in cells:
        text.write(",".join([GOOD_LINE, *(f'"{cell}"' for cell in row)]) + "\n")
    spec = convert(dataset(folder, text.getvalue(), order="newest_first"), folder / "out")
    table = stored(spec)
    assert [list(row) for row in zip(*(table.column(name).to_pylist() for name in STEPS), strict=True)] == cells
    assert [table.schema.field(name).type.value_type for name in STEPS] == [pa.int64(), pa.float64(), pa.int16()]
    assert (spec.sequences[0].order, spec.sequences[0].encoder, spec.sequences[0].length) == ("newest_first", "din", 4)


def test_long_lists_are_reported_once(tmp_path):
    lines: list[str] = []
    long = ',"[1, 2, 3, 4, 5]","[1, 2, 3, 4, 5]","[1, 2, 3, 4, 5]"'
    convert(dataset(tmp_path, f"{LINE}\n{GOOD_LINE}{long}\n"), tmp_path / "out", lines)
    assert [line for line in lines if "warning" in line] == [
        f"train: warning: met: list longer than max_hotness 4 in 1 rows (first: {tmp_path}/train.csv, line 2); "
        "the loader cuts them"
    ]


# The cells of the three columns in line 2, the number and the name of the wrong column, and what is wrong with it.
BAD = {
    "no brackets": (["[0]", "0.5", "[1]"], 11, "met_at", "cell that cannot be read: '0.5'"),
    "an empty cell": (["[]", "[]", ""], 12, "gap", "missing value: 'None'"),
    "an id out of range": (["[50]", "[1]", "[1]"], 10, "met", "id out of range: '[50]'"),
    "NaN": (["[0, 1]", "[0.5, nan]", "[0, 1]"], 11, "met_at", "not finite: '[0.5, nan]'"),
    "no integer": (["[0]", "[1]", "[0.5]"], 12, "gap", "cell that cannot be read: '[0.5]'"),
    "a number too few": (["[0, 1]", "[0.5]", "[1, 2]"], 11, "met_at",
                         "more or fewer values than steps: '2 steps, 1 values'"),
    "a number too many": (["[]", "[]", "[3]"], 12, "gap", "more or fewer values than steps: '0 steps, 1 values'"),
}  # fmt: skip


@pytest.mark.parametrize(("cells", "place", "name", "words"), BAD.values(), ids=BAD)
def test_bad_sequences(tmp_path, capsys, cells, place, name, words):
    line = ",".join([GOOD_LINE, *(f'"{cell}"' if cell else "" for cell in cells)])
    path = dataset(tmp_path, f"{LINE}\n{line}\n{LINE}\n")
    with pytest.raises(DataError) as caught:
        convert(path, tmp_path / "out")
    assert f"train.csv, line 2, column {place} ({name}): {words}; expected a " in str(caught.value)
    assert check_dataset.main([str(tmp_path)]) == 1
    what = words.partition(":")[0]
    assert re.search(rf"error: .*train\.csv, {name}: {what}; in 1 lines \(2\); found ", capsys.readouterr().out)


def test_unequal_lists_in_two_chunks(tmp_path, capsys):
    rest = [name for name in NAMES if name != "met"]
    sources = {
        "train": [chunk(["met"], ["a_0.csv", "a_1.csv"]), chunk(rest, ["b.csv"])],
        "test": [chunk(NAMES, ["test.csv"])],
    }
    line = GOOD_LINE + ',"[-0.5, 1]","[0, -7]"\n'
    files = {"a_0.csv": '"[3, 4]"\n' * 2, "a_1.csv": '"[3]"\n', "b.csv": line * 3, "test.csv": LINE}
    path = write_csv_dataset(tmp_path, files, sequential(sources))
    with pytest.raises(DataError) as caught:
        convert(path, tmp_path / "out")
    assert (
        "mapping 'train', line 3 of all its files, column met_at: more or fewer values than steps: "
        "'1 steps, 2 values'; expected a value for each step of 'met'"
    ) in str(caught.value)
    assert check_dataset.main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    for name in ("met_at", "gap"):
        assert f"error: train, {name}: more or fewer values than steps; in 1 rows of the mapping (2)" in out
    (tmp_path / "a_1.csv").write_text('"[3, 4]"\n')
    assert check_dataset.main([str(tmp_path)]) == 0
    assert stored(convert(path, tmp_path / "good")).column("met").to_pylist() == [[3, 4]] * 3


@pytest.mark.parametrize("first", ["met", "met_at", "gap"])
def test_random_sequences_are_aligned_and_survive_csv(tmp_path, first):
    features = [first, *(name for name in STEPS if name != first)]
    made = sequential(features=features)
    spec = FeatureSpec.from_dict(made, tmp_path)
    table = pa.concat_tables(random_tables(spec, "train", 400, signal=2))
    rows = table.to_pylist()
    assert all(len({len(row[name]) for name in STEPS}) == 1 for row in rows)
    assert {len(row["met"]) for row in rows} == {0, 1, 2, 3, 4}
    numbers = [number for row in rows for number in row["met_at"]]
    assert 0 <= min(numbers) < 0.05 and 0.95 < max(numbers) < 1
    assert {gap for row in rows for gap in row["gap"]} == set(range(100))
    write_csv_chunks(spec.chunks("train"), tmp_path, [table], 400)
    write_csv_chunks(spec.chunks("test"), tmp_path, [table], 400)
    write_csv_dataset(tmp_path, {}, made)
    again = stored(convert(tmp_path / "feature_spec.yaml", tmp_path / "out"))
    assert all(again.column(name).to_pylist() == table.column(name).to_pylist() for name in STEPS)


def test_labels_depend_on_the_numbers_of_steps(tmp_path):
    """Without a target, every column of a sequence has an effect, also one of numbers.

    The effects of numbers that all labels have and that each has of its own may cancel out, by the seed.
    """
    spec = FeatureSpec.from_dict(regression(target=[]), tmp_path)
    found = []
    for seed in range(4):
        rows = pa.concat_tables(random_tables(spec, "train", 2000, seed=seed, signal=1000))
        ages = [sum(cell) - len(cell) / 2 for cell in rows.column("met_at").to_pylist()]
        found.append(abs(np.corrcoef(ages, rows.column("clicked").to_numpy())[0, 1]))
    assert max(found) > 0.3


def regression(**keys: Any) -> dict[str, Any]:
    """A specification whose only inputs are a sequence and a user, and whose first label is the latent value."""
    made = sequential(**keys)
    made["channel_spec"] |= {"onehot_categorical": ["user"], "multihot_categorical": [], "numerical": []}
    made["feature_spec"] |= {"clicked": {"task": "regression"}, "bought": {}}
    return made


def similarity(row: dict[str, Any]) -> float:
    """Of the steps with the row's user, the largest 1 - mean of the numbers between 0 and 1."""
    steps = zip(row["met"], row["met_at"], row["gap"], strict=True)
    return max([1 - (at + gap / 100) / 2 for met, at, gap in steps if met == row["user"]], default=0)


def test_labels_depend_on_the_step_most_similar_to_the_target(tmp_path):
    """Without noise, labels are a number per user plus the similarity, times the same factor in all mappings."""
    spec, factors = FeatureSpec.from_dict(regression(), tmp_path), []
    for mapping in ("train", "test"):
        rows = pa.concat_tables(random_tables(spec, mapping, 5000, signal=1e6, block_rows=2000))
        labels = rows.column("clicked").to_numpy() / 1e6
        users, similar = rows.column("user").to_numpy(), np.array([similarity(row) for row in rows.to_pylist()])
        design = np.column_stack([users[:, np.newaxis] == np.arange(50), similar])
        weights, *_ = np.linalg.lstsq(design, labels, rcond=None)
        np.testing.assert_allclose(design @ weights, labels, atol=1e-3)
        factors.append(weights[-1])
        # Three of four inputs belong to the sequence.
        assert 0.65 < (factors[-1] * similar).var() < 0.85 and abs(labels.std() - 1) < 0.15
    assert abs(factors[0] - factors[1]) < 1e-3


def test_a_sequence_without_numbers_has_a_signal(tmp_path):
    made = regression(features=["met"])
    made["feature_spec"] |= {"met_at": {}, "gap": {}}
    rows = pa.concat_tables(random_tables(FeatureSpec.from_dict(made, tmp_path), "train", 2000, signal=100))
    has_met = np.array([row["user"] in row["met"] for row in rows.to_pylist()])
    labels = rows.column("clicked").to_numpy()
    assert labels[has_met].mean() > labels[~has_met].mean() + 50


def test_sequences_need_memory(tmp_path, monkeypatch):
    asked: list[int] = []
    monkeypatch.setattr(gen_csv, "check_fits", lambda size, *_: asked.append(size))
    gen_csv._check_sizes(FeatureSpec.from_dict(sequential(), tmp_path), tmp_path, 100)
    assert asked == [100 * 3 // 2 * 8, 3 * (100 * 4 // 2 * 8)]
