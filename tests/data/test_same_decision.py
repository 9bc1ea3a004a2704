"""check_dataset.py and the loader of main.py accept and reject the same files."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.checks.dataset import MappingSummary, check_mapping
from data.errors import DataError
from data.loading.parquet import ParquetReader
from data.spec.feature_spec import FeatureSpec
from tests.data.sample_data import decoded, nested

FEATURES: dict[str, dict] = {
    "user": {"cardinality": 100},
    "tags": {"cardinality": 100, "max_hotness": 2},
    "seen": {"cardinality": 100, "max_hotness": 2},
    "age": {},
    "title": {"dimension": 2},
    "price": {},
    "click": {},
    "kind": {"task": "multiclass", "cardinality": 3},
    "stars": {"task": "regression"},
    "bought": {"missing": "ignore"},
    "rated": {"task": "regression", "missing": "ignore"},
    "spend": {"task": "tweedie", "missing": "ignore"},
    "importance": {"role": "sample_weight"},
    "session": {},
    "note": {},
}
CHANNELS = {
    "onehot_categorical": ["user"],
    "multihot_categorical": ["tags"],
    "numerical": ["price"],
    "sequence": {"views": {"features": ["seen", "age"]}},
    "vector": ["title"],
    "label": ["click", "kind", "stars", "bought", "rated", "spend"],
    "map": ["session"],
}
GOOD = {
    "user": pa.array([0, 5, 99]),
    "tags": pa.array([[0], [], [99, 1]]),
    "seen": pa.array([[0], [], [99, 1]]),
    "age": pa.array([[0.5], [], [-1.0, 3.0]]),
    "title": pa.array([[0.5, 1.0], [-2.0, 0.0], [-1.0, 3.0]]),
    "price": pa.array([0.5, -1.0, 2.0]),
    "click": pa.array([0, 1, 0]),
    "kind": pa.array([0, 1, 2]),
    "stars": pa.array([0.5, 5.0, 1.0]),
    "bought": pa.array([None, 1.0, 0.0]),
    "rated": pa.array([None, 3.5, 1.0]),
    "spend": pa.array([None, 3.5, 0.0]),
    "importance": pa.array([1.0, 0.0, 2.0]),
    "session": pa.array([-1, 7, 7]),
    "note": pa.array(["a", None, "c"]),
}
NAN, INF = float("nan"), float("inf")
LARGEST = float(np.finfo(np.float32).max)
DICTIONARY = pa.array([1, 2, 1]).dictionary_encode()
HALF_LISTS = pa.ListArray.from_arrays(pa.array([0, 1, 1, 3], pa.int32()), pa.array(np.array([0.5, -1, 2], np.float16)))


def lists(values: list, item: pa.DataType) -> pa.Array:
    return pa.array(values, pa.list_(item))


# Column, what it holds instead, and whether training can use it.
COLUMNS: dict[str, tuple[str, pa.Array | None, bool]] = {
    "as it should be": ("user", GOOD["user"], True),
    "uint8 ids": ("user", pa.array([0, 1, 99], pa.uint8()), True),
    "uint64 ids": ("user", pa.array([0, 1, 99], pa.uint64()), True),
    "a uint64 id of 2**63": ("user", pa.array([0, 1, 2**63], pa.uint64()), False),
    "an id of the cardinality": ("user", pa.array([0, 1, 100]), False),
    "an id of -1": ("user", pa.array([0, 1, -1]), False),
    "a missing id": ("user", pa.array([0, 1, None]), False),
    "whole doubles as ids": ("user", pa.array([0.0, 1.0, 99.0]), True),
    "whole half floats as ids": ("user", pa.array(np.array([0, 1, 99], np.float16)), True),
    "a double of one half as id": ("user", pa.array([0.0, 0.5, 99.0]), False),
    "NaN as id": ("user", pa.array([0.0, 1.0, NAN]), False),
    "infinity as id": ("user", pa.array([0.0, 1.0, INF]), False),
    "a double id of the cardinality": ("user", pa.array([0.0, 1.0, 100.0]), False),
    "a missing double id": ("user", pa.array([0.0, 1.0, None]), False),
    "texts as ids": ("user", pa.array(["0", "1", "2"]), False),
    "truth values as ids": ("user", pa.array([True, False, True]), False),
    "days as ids": ("user", pa.array([0, 1, 2], pa.date32()), False),
    "times as ids": ("user", pa.array([0, 1, 2], pa.timestamp("us")), False),
    "durations as ids": ("user", pa.array([0, 1, 2], pa.duration("us")), False),
    "decimals as ids": ("user", pa.array([0, 1, 2], pa.decimal128(9, 0)), False),
    "ids that were a dictionary in memory": ("user", DICTIONARY, True),
    "lists in place of ids": ("user", pa.array([[0], [1], [2]]), False),
    "nothing but nulls as ids": ("user", pa.nulls(3), False),
    "no ids": ("user", None, False),
    "lists of uint8": ("tags", lists([[0], [1], []], pa.uint8()), True),
    "large lists": ("tags", pa.array([[0], [1], []], pa.large_list(pa.int64())), True),
    "lists of fixed size": ("tags", pa.array([[0, 1], [1, 2], [2, 3]], pa.list_(pa.int32(), 2)), True),
    "lists of whole doubles": ("tags", lists([[0.0], [1.0, 2.0], []], pa.float64()), True),
    "large lists of whole floats": ("tags", pa.array([[0.0], [1.0], []], pa.large_list(pa.float32())), True),
    "a list with one half": ("tags", lists([[0.0], [1.5], []], pa.float64()), False),
    "a list with NaN": ("tags", lists([[0.0], [NAN], []], pa.float64()), False),
    "a list with a null": ("tags", lists([[0], [None], []], pa.int64()), False),
    "a list of doubles with a null": ("tags", lists([[0.0], [None], []], pa.float64()), False),
    "a missing list": ("tags", lists([[0], None, []], pa.int64()), False),
    "a list with an id of the cardinality": ("tags", lists([[0], [100], []], pa.int64()), False),
    "a list with an id of 2**63": ("tags", lists([[0], [2**63], []], pa.uint64()), False),
    "a list that is too long": ("tags", lists([[0], [1, 2, 3, 4], []], pa.int64()), True),
    "lists without an id": ("tags", lists([[], [], []], pa.int64()), True),
    "lists of nulls": ("tags", pa.array([[], [], []], pa.list_(pa.null())), False),
    "lists of lists": ("tags", pa.array([[[0]], [[1]], []], pa.list_(pa.list_(pa.int64()))), False),
    "lists of texts": ("tags", lists([["0"], [], []], pa.string()), False),
    "ids in place of lists": ("tags", pa.array([0, 1, 2]), False),
    "steps of whole doubles": ("seen", lists([[0.0], [], [99.0, 1.0]], pa.float64()), True),
    "a step of one half": ("seen", lists([[0.5], [], [99.0, 1.0]], pa.float64()), False),
    "a step of the cardinality": ("seen", lists([[0], [], [100, 1]], pa.int64()), False),
    "a step too few": ("seen", lists([[0], [], [99]], pa.int64()), False),
    "no list of steps": ("seen", lists([[0], None, [99, 1]], pa.int64()), False),
    "steps without lists": ("seen", pa.array([0, 1, 2]), False),
    "no steps": ("seen", None, False),
    "large lists of integer numbers": ("age", pa.array([[-1], [], [2**62, 0]], pa.large_list(pa.int64())), True),
    "lists of float16 numbers": ("age", HALF_LISTS, True),
    "lists of uint64 numbers": ("age", lists([[1], [], [2**64 - 1, 0]], pa.uint64()), True),
    "the largest numbers of steps": ("age", lists([[-LARGEST], [], [LARGEST, 0]], pa.float64()), True),
    "a number of a step beyond float32": ("age", lists([[1e39], [], [0, 0]], pa.float64()), False),
    "NaN in a step": ("age", lists([[NAN], [], [0, 0]], pa.float64()), False),
    "infinity in a step": ("age", lists([[1.0], [], [0, INF]], pa.float32()), False),
    "a missing number of a step": ("age", lists([[None], [], [0, 0]], pa.float64()), False),
    "a missing list of numbers": ("age", lists([[1.0], None, [0, 0]], pa.float64()), False),
    "a number too many": ("age", lists([[1.0], [2.0], [0, 0]], pa.float64()), False),
    "truth values in steps": ("age", lists([[True], [], [True, False]], pa.bool_()), False),
    "texts in steps": ("age", lists([["1"], [], ["0", "0"]], pa.string()), False),
    "vectors of integers": ("title", lists([[1, 2], [-3, 2**62], [0, 0]], pa.int64()), True),
    "vectors of fixed size": ("title", pa.array([[1, 2], [-3, 4], [0, 0]], pa.list_(pa.float32(), 2)), True),
    "vectors of another fixed size": ("title", pa.array([[1], [-3], [0]], pa.list_(pa.float32(), 1)), False),
    "large lists as vectors": ("title", pa.array([[1, 2], [-3, 4], [0, 0]], pa.large_list(pa.float64())), True),
    "the largest numbers of a vector": ("title", lists([[1, 2], [-LARGEST, LARGEST], [0, 0]], pa.float64()), True),
    "a number of a vector beyond float32": ("title", lists([[1, 2], [1e39, 4], [0, 0]], pa.float64()), False),
    "NaN in a vector": ("title", lists([[1, 2], [3, 4], [0, NAN]], pa.float32()), False),
    "a missing number of a vector": ("title", lists([[1, 2], [3, None], [0, 0]], pa.float32()), False),
    "a missing vector": ("title", lists([[1, 2], None, [0, 0]], pa.float32()), False),
    "vectors of other lengths, of the same sum": ("title", lists([[1], [3, 4, 5], [0, 0]], pa.float32()), False),
    "truth values in vectors": ("title", lists([[True, True]] * 3, pa.bool_()), False),
    "numbers in place of vectors": ("title", pa.array([0.5, 1.0, 2.0]), False),
    "float16 numbers": ("price", pa.array(np.array([0.5, 1, 65504], np.float16)), True),
    "a float16 NaN": ("price", pa.array(np.array([0.5, 1, NAN], np.float16)), False),
    "int64 numbers": ("price", pa.array([1, 2, 2**63 - 1]), True),
    "uint64 numbers": ("price", pa.array([1, 2, 2**64 - 1], pa.uint64()), True),
    "the largest number": ("price", pa.array([0.5, -LARGEST, LARGEST]), True),
    "a number beyond float32": ("price", pa.array([0.5, 1.0, 1e39]), False),
    "a negative number beyond float32": ("price", pa.array([0.5, 1.0, -1e39]), False),
    "a subnormal number": ("price", pa.array([0.5, 1.0, 1e-320]), True),
    "NaN": ("price", pa.array([0.5, 1.0, NAN]), False),
    "infinity": ("price", pa.array([0.5, INF, 1.0]), False),
    "a missing number": ("price", pa.array([0.5, None, 1.0]), False),
    "texts as numbers": ("price", pa.array(["1", "2", "3"]), False),
    "truth values as numbers": ("price", pa.array([True, False, True]), False),
    "decimals as numbers": ("price", pa.array([0, 1, 2], pa.decimal128(9, 2)), False),
    "truth values as labels": ("click", pa.array([True, False, True]), True),
    "a missing truth value": ("click", pa.array([True, None, True]), False),
    "doubles as labels": ("click", pa.array([0.0, 1.0, 1.0]), True),
    "a label of 2": ("click", pa.array([0, 1, 2]), False),
    "a label of one half": ("click", pa.array([0, 0.5, 1]), False),
    "a label of NaN": ("click", pa.array([0, NAN, 1]), False),
    "a missing label": ("click", pa.array([0, None, 1]), False),
    "texts as labels": ("click", pa.array(["0", "1", "1"]), False),
    "missing truth values that may miss": ("bought", pa.array([None, True, False]), True),
    "labels that may miss": ("bought", pa.array([None, NAN, 1.0]), True),
    "integer labels that may miss": ("bought", pa.array([None, 0, 1]), True),
    "a label of 2 among missing ones": ("bought", pa.array([None, 2.0, 1.0]), False),
    "infinity among missing labels": ("rated", pa.array([None, INF, 1.0]), False),
    "regression labels that may miss": ("rated", pa.array([None, NAN, -1e38]), True),
    "a class of the cardinality": ("kind", pa.array([0, 1, 3]), False),
    "a class of -1": ("kind", pa.array([0, 1, -1]), False),
    "a class of one half": ("kind", pa.array([0, 0.5, 1]), False),
    "truth values as classes": ("kind", pa.array([True, False, True]), False),
    "a regression beyond float32": ("stars", pa.array([0.0, 1e39, 1.0]), False),
    "amounts that may miss": ("spend", pa.array([None, NAN, LARGEST]), True),
    "integer amounts": ("spend", pa.array([0, 7, None]), True),
    "a negative amount": ("spend", pa.array([None, 0.0, -0.5]), False),
    "an infinite amount": ("spend", pa.array([INF, 0.0, 1.0]), False),
    "a regression of NaN": ("stars", pa.array([0.0, NAN, 1.0]), False),
    "a negative weight": ("importance", pa.array([1.0, -1.0, 1.0]), False),
    "a weight beyond float32": ("importance", pa.array([1.0, 1e39, 1.0]), False),
    "a weight of infinity": ("importance", pa.array([1.0, INF, 1.0]), False),
    "a missing weight": ("importance", pa.array([1.0, None, 1.0]), False),
    "integer weights": ("importance", pa.array([1, 0, 1]), True),
    "truth values as weights": ("importance", pa.array([True, False, True]), False),
    "uint64 groups": ("session", pa.array([0, 1, 2**63 - 1], pa.uint64()), True),
    "a group of 2**63": ("session", pa.array([0, 1, 2**63], pa.uint64()), False),
    "doubles as groups": ("session", pa.array([0.0, 1.0, 2.0]), False),
    "a missing group": ("session", pa.array([0, None, 1]), False),
    "texts as groups": ("session", pa.array(["a", "b", "c"]), False),
    "another column of any kind": ("note", pa.array([{"a": 1}, None, {"a": 2}]), True),
    "no other column": ("note", None, True),
}


def write(folder: Path, tables: list[pa.Table]) -> FeatureSpec:
    files = [f"part_{number}.parquet" for number in range(len(tables))]
    for file, table in zip(files, tables, strict=True):
        pq.write_table(table, folder / file)
    chunk = {"type": "parquet", "features": list(FEATURES), "files": files}
    document = {
        "feature_spec": FEATURES,
        "source_spec": {"train": [chunk], "test": [chunk]},
        "channel_spec": CHANNELS,
    }
    return FeatureSpec.from_dict(document, folder)


def checker_accepts(spec: FeatureSpec) -> bool:
    return all(finding.is_warning for finding in check_mapping(spec, "test", MappingSummary()))


def loader_accepts(spec: FeatureSpec) -> bool:
    try:
        reader = ParquetReader(spec, "test", with_group=True)
        for unit, rows in enumerate(reader.row_group_rows.tolist()):
            reader.decode(unit, 0, rows, reader.allocate(rows))
    except DataError:
        return False
    return True


@pytest.mark.parametrize(("name", "values", "is_usable"), COLUMNS.values(), ids=COLUMNS)
def test_both_decide_alike_about_a_column(name: str, values: pa.Array | None, is_usable: bool, tmp_path: Path) -> None:
    table = pa.table({key: array for key, array in (GOOD | {name: values}).items() if array is not None})
    spec = write(tmp_path, [table])
    assert (checker_accepts(spec), loader_accepts(spec)) == (is_usable, is_usable)


def test_both_decide_alike_about_files(tmp_path: Path) -> None:
    table = pa.table(GOOD)
    twice = pa.Table.from_arrays([*table.columns, table.column("user")], names=[*table.column_names, "user"])
    # Whether an empty part has a wrong type is seen by both, too.
    wrong = table.slice(0, 0).set_column(0, "user", pa.array([], pa.string()))
    for number, (tables, is_usable) in enumerate(
        [
            ([table, table.slice(0, 0), table], True),
            ([table.slice(0, 0), table], True),
            ([table, wrong], False),
            ([table.slice(0, 0)], False),
            ([table, twice], False),
            ([table, table.drop_columns(["price"])], False),
            ([table, table.select(table.column_names[::-1])], True),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        spec = write(folder, tables)
        assert (number, checker_accepts(spec), loader_accepts(spec)) == (number, is_usable, is_usable)


def test_both_decide_alike_about_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = write(tmp_path, [pa.table(GOOD)])
    for most, is_usable in ((3, True), (2, False)):
        monkeypatch.setattr("data.loading.parquet.MOST_ROWS", most)
        assert (checker_accepts(spec), loader_accepts(spec)) == (is_usable, is_usable)


@pytest.mark.parametrize(("dtype", "cardinality"), [(np.float16, 2**11), (np.float32, 2**24)])
def test_floats_that_cannot_hold_every_id_are_rejected(dtype: type, cardinality: int, tmp_path: Path) -> None:
    table = pa.table(GOOD | {"user": pa.array(np.array([0, 1, 2], dtype))})
    for limit, is_usable in ((cardinality + 1, True), (cardinality + 2, False)):
        spec = write(tmp_path, [table])
        document = spec.to_dict()
        document["feature_spec"]["user"]["cardinality"] = limit
        spec = FeatureSpec.from_dict(document, tmp_path)
        assert (checker_accepts(spec), loader_accepts(spec)) == (is_usable, is_usable)


def test_odd_types_arrive_as_the_numbers_they_are(tmp_path: Path) -> None:
    odd = {
        "user": pa.array([3.0, 5.0, 99.0]),
        "tags": pa.array([[7.0], [], [1.0, 2.0]]),
        "click": pa.array([True, False, True]),
        "bought": pa.array([True, None, False]),
    }
    reader = ParquetReader(write(tmp_path, [pa.table(GOOD | odd)]), "train")
    batch = decoded(reader, 0, 0, 3)
    assert batch.onehot.tolist() == [[3], [5], [99]]
    assert nested(batch.id_lists) == [[[7], [0]], [[], []], [[1, 2], [99, 1]]]
    assert batch.labels[:, 0].tolist() == [1, 0, 1]
    np.testing.assert_array_equal(batch.labels[:, 3], [1, np.nan, 0])


def test_clip_replaces_whole_doubles_and_no_fractions(tmp_path: Path) -> None:
    def decoded(values: list[float]) -> list[int]:
        table = pa.table(GOOD | {"user": pa.array(values)})
        reader = ParquetReader(write(tmp_path, [table]), "train", oov_policy="clip")
        batch = reader.allocate(3)
        reader.decode(0, 0, 3, batch)
        return batch.onehot[:, 0].tolist()

    assert decoded([-7.0, 5.0, 1e300]) == [0, 5, 99]
    for value in (0.5, NAN, INF, 100.5):
        with pytest.raises(DataError, match="1 unusable values, the first .* in row 1 of the file") as caught:
            decoded([1000.0, value, 1.0])
        assert "--oov_policy" not in str(caught.value)
