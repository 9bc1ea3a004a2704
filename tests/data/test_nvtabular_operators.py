import pickle

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from data.encoding.encoders import encode_columns
from data.encoding.nvtabular_operators import (
    CountKeys,
    EncodeIds,
    FitFeatures,
    to_frame,
    to_table,
)
from data.encoding.nvtabular_setup import Dataset, Schema, Workflow, from_map, ops
from tests.data.scalar_hash import scalar_hash
from tests.data.test_fitting import SPEC, rows, staged
from tests.data.test_fitting import fitted as fitted_features

pytestmark = pytest.mark.filterwarnings("ignore:Initializing an NVTabular Dataset in CPU mode")


def fitted(selected, train, partitions=1):
    workflow = Workflow(selected)
    workflow.fit(Dataset(train, npartitions=partitions))
    return workflow


def transformed(workflow, frame, partitions=1):
    dataset = Dataset(frame, npartitions=partitions)
    return workflow.transform(dataset).to_ddf().compute(scheduler="synchronous").reset_index(drop=True)


def shops(rows=600, seed=0):
    rng = np.random.default_rng(seed)
    names = np.array(["bäcker", "kiosk", "markt", None], object)
    return pd.DataFrame(
        {
            "shop": rng.choice(names, rows, p=[0.5, 0.3, 0.1, 0.1]),
            "user": rng.zipf(1.5, rows) % 40,
        }
    )


@pytest.mark.parametrize("column", ["shop", "user"])
def test_ids_match_categorify(tmp_path, column):
    train, new = shops(), pd.DataFrame({"shop": ["kiosk", "neu", None], "user": [1, 2, 41]})
    counts = train[column].value_counts()
    train = train[train[column].isna() | train[column].map(counts).isin(counts[~counts.duplicated(keep=False)])]
    theirs = fitted([column] >> ops.Categorify(out_path=str(tmp_path / "theirs")), train)
    ours = fitted([column] >> EncodeIds(1, str(tmp_path / "ours")), train)
    for frame in (train, new):
        assert transformed(ours, frame)[column].tolist() == transformed(theirs, frame)[column].tolist()
    assert ours.output_schema[column].properties["domain"] == theirs.output_schema[column].properties["domain"]


def test_unseen_values_go_to_hash_buckets(tmp_path):
    workflow = fitted(["user"] >> EncodeIds(5, str(tmp_path)), shops())
    new = list(range(1000, 1050))
    encoded = transformed(workflow, pd.DataFrame({"user": new}))
    assert encoded["user"].tolist() == [2 + scalar_hash(user) % 5 for user in new]


def test_ties_are_broken_by_value(tmp_path):
    values = np.random.default_rng(3).permutation(np.repeat(np.arange(500), 3))
    workflow = fitted(["user"] >> EncodeIds(1, str(tmp_path)), pd.DataFrame({"user": values}), partitions=4)
    assert transformed(workflow, pd.DataFrame({"user": np.arange(500)}))["user"].tolist() == list(range(3, 503))


def test_lists_are_encoded_item_by_item_with_buckets_too(tmp_path):
    train = pd.DataFrame({"tags": [["a", "b"], ["a"], [], ["c", "a", "b"]]})
    workflow = fitted(["tags"] >> EncodeIds(3, str(tmp_path), are_lists=True), train)
    new = pd.DataFrame({"tags": [["c"], [], ["z", "a"]]}, index=[7, 3, 9])
    encoded = transformed(workflow, new)["tags"]
    assert [list(ids) for ids in encoded] == [[7], [], [2 + scalar_hash("z") % 3, 5]]
    assert [list(ids) for ids in transformed(workflow, pd.DataFrame({"tags": [[], []]}))["tags"]] == [[], []]


def test_a_frame_of_nothing_but_nulls_is_encoded(tmp_path):
    workflow = fitted(["shop"] >> EncodeIds(1, str(tmp_path)), shops())
    nothing = pd.DataFrame({"shop": np.array([None, None], object)})
    assert transformed(workflow, nothing)["shop"].tolist() == [1, 1]


def test_column_of_nulls_has_no_vocabulary(tmp_path):
    train = pd.DataFrame({"shop": np.array([None, None], object), "user": [1, 2]})
    workflow = fitted(["shop"] >> EncodeIds(1, str(tmp_path)), train)
    assert transformed(workflow, pd.DataFrame({"shop": ["a", None]}))["shop"].tolist() == [2, 1]


def test_count_keys():
    train = shops()
    workflow = fitted(["shop", "user"] >> CountKeys(), train, partitions=3)
    new = pd.DataFrame({"shop": ["kiosk", None, "neu"], "user": [1, 77, 2]})
    encoded = transformed(workflow, new)
    kiosk, one, two = (train["shop"] == "kiosk").sum(), (train["user"] == 1).sum(), (train["user"] == 2).sum()
    assert encoded["shop_count"].tolist() == [kiosk, 0, 0] and encoded["user_count"].tolist() == [one, 0, two]


@pytest.mark.parametrize("partitions", [1, 3, 10])
def test_features_are_fitted_in_a_workflow(tmp_path, partitions):
    train = staged(rows(300, 4))
    operator = FitFeatures(SPEC, tmp_path, memory=0, threads=2)
    workflow = Workflow(operator.inputs >> operator)
    bounds = np.linspace(0, train.num_rows, partitions + 1).astype(int)
    parts = [train.slice(first, last - first) for first, last in zip(bounds[:-1], bounds[1:], strict=True)]
    workflow.fit(Dataset(from_map(to_frame, parts)))
    expected = fitted_features([train], tmp_path)
    assert list(operator.encoders) == list(expected.encoders)
    columns = dict(zip(train.column_names, train.columns, strict=True))
    wanted = encode_columns(expected.encoders, columns)
    restored = pickle.loads(pickle.dumps(workflow))
    for fitted_workflow in (workflow, restored):
        table = to_table(fitted_workflow.transform(to_frame(train)))
        assert table.column_names == list(wanted)
        for name, column in wanted.items():
            stored = table.column(name)
            item = stored.type.value_type if pa.types.is_list(stored.type) else stored.type
            values = pa.array(column) if isinstance(column, np.ndarray) else column.values
            assert item == (pa.float32() if values.type == pa.float32() else pa.int32())
            assert stored.to_pylist() == (column.tolist() if isinstance(column, np.ndarray) else column.to_pylist())
    operator.is_training = True
    table = to_table(workflow.transform(to_frame(train)))
    assert table.column("rate").to_numpy().tolist() == expected.out_of_fold["rate"].encode(train).tolist()
    assert table.drop_columns(["rate"]).equals(to_table(restored.transform(to_frame(train))).drop_columns(["rate"]))


def test_fitted_features_need_no_labels(tmp_path):
    train = staged(rows(100, 4))
    encoders = fitted_features([train], tmp_path).encoders
    operator = FitFeatures(SPEC, tmp_path, encoders)
    new = train.select(operator.inputs)
    assert "//=bought" not in new.column_names
    workflow = Workflow(operator.inputs >> operator)
    workflow.fit_schema(Schema(operator.inputs))
    table = to_table(workflow.transform(to_frame(new)))
    columns = dict(zip(new.column_names, new.columns, strict=True))
    assert table.column("rate").to_numpy().tolist() == encode_columns(encoders, columns)["rate"].tolist()


def test_frames_share_the_memory_of_tables():
    table = staged(rows(50, 1))
    again = to_table(to_frame(table))
    assert again.equals(table)
    for name in table.column_names:
        before, after = (column.column(name).chunk(0).buffers() for column in (table, again))
        assert [buffer and buffer.address for buffer in before] == [buffer and buffer.address for buffer in after]


def test_tables_of_plain_frames():
    frame = pd.DataFrame({"x": [1, 2], "y": ["a", None], "z": [0.5, np.nan]}, index=[7, 3])
    assert to_table(frame).to_pydict() == {"x": [1, 2], "y": ["a", None], "z": [0.5, None]}
