"""Operators that count, against pandas and NVTabular's Categorify."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data.encoding.nvtabular_setup import Dataset, Workflow, ops
from data.outbrain.operators import CountIds, CountKeys

pytestmark = pytest.mark.filterwarnings("ignore:Initializing an NVTabular Dataset in CPU mode")


def fit(columns: list[str], operator: ops.Operator, train: pd.DataFrame, partitions: int = 3) -> Workflow:
    workflow = Workflow(columns >> operator)
    workflow.fit(Dataset(train, npartitions=partitions))
    return workflow


def shops() -> pd.DataFrame:
    random = np.random.default_rng(0)
    names = np.array(["bäcker", "kiosk", "markt", None], object)
    shop = random.choice(names, 600, p=[0.5, 0.3, 0.1, 0.1])
    return pd.DataFrame({"shop": shop, "user": random.zipf(1.5, 600) % 40})


@pytest.mark.parametrize("column", ["shop", "user"])
def test_ids_match_categorify(column: str, tmp_path: Path) -> None:
    train, new = shops(), {"shop": ["kiosk", "neu", None], "user": [1, 2, 41]}
    counts = train[column].value_counts()
    # Categorify breaks ties in no particular order.
    train = train[train[column].isna() | train[column].map(counts).isin(counts[~counts.duplicated(keep=False)])]
    ours = CountIds(str(tmp_path / "ours"), {})
    fit([column], ours, train)
    theirs = fit([column], ops.Categorify(out_path=str(tmp_path / "theirs")), train)
    for frame in (train, pd.DataFrame(new)):
        expected = theirs.transform(Dataset(frame)).to_ddf().compute(scheduler="synchronous")[column]
        assert ours.vocabularies[column].encode(frame[column]).tolist() == expected.tolist()


def test_ties_are_broken_by_value(tmp_path: Path) -> None:
    values = np.random.default_rng(3).permutation(np.repeat(np.arange(500), 3))
    ids = CountIds(str(tmp_path), {"user": 53})
    fit(["user"], ids, pd.DataFrame({"user": values}))
    # A tenth of the ids is for the values beyond the maximum.
    assert ids.vocabularies["user"].values.to_pylist() == list(range(53 - 2 - 5))


def test_a_column_of_nulls_has_an_empty_vocabulary(tmp_path: Path) -> None:
    ids = CountIds(str(tmp_path), {})
    fit(["shop"], ids, pd.DataFrame({"shop": np.array([None, None], object), "user": [1, 2]}), partitions=1)
    assert ids.vocabularies["shop"].encode(["a", None]).tolist() == [2, 1]


def test_keys_are_counted() -> None:
    train, keys = shops(), CountKeys()
    workflow = fit(["shop", "user"], keys, train)
    for name, new in {"shop": ["kiosk", None, "neu"], "user": [1, 77, 2]}.items():
        expected = [(train[name] == value).sum() for value in new]
        assert keys.tables[name].look_up(name, new).tolist() == expected
    unchanged = workflow.transform(Dataset(train)).to_ddf().compute(scheduler="synchronous")
    pd.testing.assert_frame_equal(unchanged, train)
