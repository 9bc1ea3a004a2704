import numpy as np
import pandas as pd
import pytest

from data.preprocess.nvtabular_operators import CountKeys, EncodeIds
from data.preprocess.nvtabular_setup import Dataset, Workflow, ops
from tests.data.scalar_hash import scalar_hash

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
