import pickle

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from data.encoding.encoders import encode_columns
from data.encoding.nvtabular_operators import FitFeatures, to_frame, to_table
from data.encoding.nvtabular_setup import Dataset, Schema, Workflow, from_map
from tests.data.test_fitting import SPEC, rows, staged
from tests.data.test_fitting import fitted as fitted_features

pytestmark = pytest.mark.filterwarnings("ignore:Initializing an NVTabular Dataset in CPU mode")


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
