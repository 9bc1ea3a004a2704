import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.command_line import run_tool
from data.encoding.encoder_files import load_encoders, save_encoders
from data.encoding.encoders import Numerical, Vocabulary, encode_columns
from data.encoding.keys import KeyTable
from data.errors import DataError
from tests.data.scalar_hash import scalar_hash
from tests.manifests import file_entry, replace_file, rewrite_manifest

COLOURS = Vocabulary.fit("colour", ["red", "blue", "green"], [5, 9, 5])
VALUES = st.one_of(st.lists(st.integers(-50, 50)), st.lists(st.text("abcé", max_size=3)))


def counted(values, oov_buckets):
    counts = Counter(values)
    return Vocabulary.fit("x", list(counts), list(counts.values()), oov_buckets=oov_buckets)


def test_id_layout():
    assert COLOURS.encode(["blue", "green", "red", "pink", None]).tolist() == [3, 4, 5, 2, 1]
    assert COLOURS.cardinality == 6


@settings(deadline=None)
@given(VALUES, VALUES, st.integers(1, 5))
def test_ids_match_the_layout(train, new, oov_buckets):
    vocabulary = counted(train, oov_buckets)
    ranked = sorted(Counter(train).items(), key=lambda entry: (-entry[1], entry[0]))
    known = {value: 2 + oov_buckets + rank for rank, (value, _) in enumerate(ranked)}
    if train and new and type(train[0]) is not type(new[0]):
        with pytest.raises(DataError, match="convert the column"):
            vocabulary.encode(new)
        return
    expected = [known.get(value, 2 + scalar_hash(value) % oov_buckets) for value in new]
    assert vocabulary.encode(new).tolist() == expected
    assert vocabulary.cardinality == 2 + oov_buckets + len(known)


@pytest.mark.parametrize(
    "column",
    [
        pd.Series([7, 8, None]),
        pd.Series([7, 8, None], dtype="Int64"),
        pd.Series([7, 8, None], dtype=object),
        np.array([7.0, 8.0, np.nan]),
        [7, 8, None],
    ],
)
def test_integers_are_found_among_nulls(column):
    assert counted([7, 8, 8], 1).encode(column).tolist() == [4, 3, 1]


def test_a_column_of_nothing_but_nulls_gets_null_ids():
    assert COLOURS.encode([None, None]).tolist() == [1, 1]
    assert COLOURS.encode([]).tolist() == []


def test_vocabulary_fitted_on_nothing():
    empty = Vocabulary.fit("x", [None], [0], oov_buckets=2)
    assert empty.cardinality == 4
    assert empty.encode(["a", None]).tolist() == [2 + scalar_hash("a") % 2, 1]
    assert empty.encode([5]).tolist() == [2 + scalar_hash(5) % 2]
    numbers = Vocabulary.fit("x", np.array([np.nan]), [0], oov_buckets=2)
    assert numbers.encode(["a"]).tolist() == [2 + scalar_hash("a") % 2]


def test_lists_keep_their_lengths_and_a_null_list_is_empty():
    genres = Vocabulary.fit("genres", ["a", "b"], [3, 2], oov_buckets=2, is_list=True)
    encoded = genres.encode([["b", "a"], [], None, ["new", None]])
    assert [ids.tolist() for ids in encoded] == [[5, 4], [], [], [2 + scalar_hash("new") % 2, 1]]
    assert [ids.tolist() for ids in genres.encode([["a"], ["b"]])] == [[4], [5]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([3, 4], "'colour' holds integers such as 3, but it was fitted on strings such as 'blue'"),
        ([1.5], "'colour' holds 1.5; expected integers or strings"),
        (["red", 3], "'colour' holds strings such as 'red' and also 3"),
    ],
)
def test_values_of_another_type_name_the_column(values, message):
    with pytest.raises(DataError, match=message):
        COLOURS.encode(pd.Series(values))


def test_no_bucket_for_unseen_values_is_rejected():
    with pytest.raises(DataError, match="at least 1"):
        Vocabulary.fit("x", ["a"], [1], oov_buckets=0)


def test_number_is_filled_logged_and_standardized():
    age = Numerical.standardized("age", fill=3.0, log=True, mean=1.0, std=2.0)
    assert age.encode([0, None, np.e - 1]) == pytest.approx([-0.5, (np.log(4) - 1) / 2, 0.0], abs=1e-7)
    assert age.encode([0]).dtype == np.float32


def test_number_from_a_table():
    counts = Numerical.standardized("user", KeyTable(np.array([3, 9]), np.array([10.0, 20.0]), default=-1.0))
    assert counts.encode([9, 4, None, 3]).tolist() == [20.0, -1.0, -1.0, 10.0]


@pytest.mark.parametrize("std", [0.0, float("nan")])
def test_without_a_spread_numbers_are_only_centred(std):
    assert Numerical.standardized("x", mean=2.0, std=std).encode([5]).tolist() == [3.0]


def test_text_where_a_number_is_expected_is_rejected():
    with pytest.raises(DataError, match="'x' is numerical and holds 'many'"):
        Numerical.standardized("x").encode(["many"])


def encoders():
    table = KeyTable(np.array(["a", "b"], object), np.array([0.1, 1 / 3]), default=0.25)
    return {
        "colour": COLOURS,
        "user": Vocabulary.fit("user", [5, -7], [1, 1], oov_buckets=3),
        "tags": Vocabulary.fit("tags", ["x"], [4], is_list=True),
        "nothing": Vocabulary.fit("nothing", [], []),
        "age": Numerical.standardized("age", fill=1 / 7, log=True, mean=0.1 + 0.2, std=1e-17),
        "rate": Numerical.standardized("shop", table, mean=0.5, std=2.0),
    }


RAW = {
    "colour": ["red", None, "pink"],
    "user": [5, 6, -7],
    "tags": [["x", "y"], [], None],
    "nothing": ["a", None, "b"],
    "age": [1.0, None, 3.0],
    "shop": ["b", "c", None],
}


def test_saved_encoders_give_the_same_to_the_last_bit(tmp_path):
    save_encoders(encoders(), tmp_path / "workflow")
    loaded = load_encoders(tmp_path / "workflow")
    assert list(loaded) == list(encoders())
    before, after = encode_columns(encoders(), RAW), encode_columns(loaded, RAW)
    for name in before:
        assert [np.asarray(row).tobytes() for row in before[name]] == [np.asarray(row).tobytes() for row in after[name]]
    assert loaded["user"].cardinality == 7


def test_saving_is_reproducible(tmp_path):
    for name in ("one", "two"):
        save_encoders(encoders(), tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert {name.rsplit(".")[-1] for name in files} == {"json", "parquet"}
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in files)


def test_a_vocabulary_file_can_be_read_without_this_program(tmp_path):
    save_encoders({"colour": COLOURS}, tmp_path / "workflow")
    table = pd.read_parquet(tmp_path / "workflow" / "vocabulary.colour.parquet")
    columns = {"value": ["blue", "green", "red"], "count": [9, 5, 5], "id": [3, 4, 5], "unseen_for": [0, 0, 0]}
    assert table.to_dict("list") == columns


@pytest.mark.parametrize("file", ["encoders.json", "vocabulary.colour.parquet", "table.rate.parquet"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_file_is_named(tmp_path, file, damage):
    save_encoders(encoders(), tmp_path / "workflow")
    path = tmp_path / "workflow" / file
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        content[40] ^= 1
        path.write_bytes(content if damage == "flip" else content[:-1])
    with pytest.raises(DataError, match=file):
        load_encoders(tmp_path / "workflow")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest.update(version=1), "version 1, this program reads version 2"),
        (lambda manifest: manifest["files"].update({"../colour": file_entry(b"")}), "not a file of this folder"),
        (lambda manifest: manifest["files"].pop("encoders.json"), "does not list encoders.json"),
        (lambda manifest: manifest.pop("files"), "files is missing"),
    ],
)
def test_foreign_manifest_is_rejected(tmp_path, change, message):
    save_encoders(encoders(), tmp_path / "workflow")
    rewrite_manifest(tmp_path / "workflow", change)
    with pytest.raises(DataError, match=message):
        load_encoders(tmp_path / "workflow")


def test_another_hash_is_rejected(tmp_path):
    save_encoders({"age": Numerical.standardized("age")}, tmp_path / "workflow")
    settings = json.loads((tmp_path / "workflow" / "encoders.json").read_text())
    settings["hash"] = "md5"
    replace_file(tmp_path / "workflow", "encoders.json", json.dumps(settings).encode())
    with pytest.raises(DataError, match="'md5'"):
        load_encoders(tmp_path / "workflow")


def test_an_existing_folder_is_left_alone(tmp_path):
    (tmp_path / "workflow").mkdir()
    with pytest.raises(DataError, match="already exists; choose a new folder"):
        save_encoders(encoders(), tmp_path / "workflow")
    assert not list((tmp_path / "workflow").iterdir())


def test_a_missing_column_is_named():
    with pytest.raises(DataError, match=r"\['shop', 'tags'\] are missing"):
        encode_columns(encoders(), {name: RAW[name] for name in RAW if name not in ("shop", "tags")})


@pytest.mark.parametrize("name", ["a/b", ".hidden", "..", "x" * 201, "大" * 67])
def test_names_follow_the_rule_of_specifications(name, tmp_path):
    with pytest.raises(DataError, match="name.*; rename the feature"):
        save_encoders({name: Numerical.standardized("x")}, tmp_path / "workflow")
    save_encoders(
        {name: Numerical.standardized("x") for name in ("Age", "age", "größe in m²", "x" * 200)}, tmp_path / "workflow"
    )


def test_full_disk_is_one_line(tmp_path, monkeypatch, capsys):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("data.storage.checksummed_dir._fill", full)
    assert run_tool("prepare", lambda: save_encoders(encoders(), tmp_path / "workflow")) == 1
    assert capsys.readouterr().err.startswith(f"prepare: cannot save {tmp_path / 'workflow'}: No space left on device.")
    assert not list(tmp_path.iterdir())
