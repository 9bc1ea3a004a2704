"""The specifications of Adult and Criteo, on the published files."""

import numpy as np
import pandas as pd
import pytest

from tests.data.scalar_hash import scalar_row_hash
from tests.data.table_samples import preprocessed, rows_of
from tests.helpers import real_data

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.filterwarnings("ignore:Initializing an NVTabular Dataset in CPU mode"),
]
ADULT_INCOME, ADULT_GAIN = 14, 10  # columns of the files
CRITEO_C3 = 16


def test_adult(tmp_path):
    raw = real_data("adult")
    out = preprocessed("adult", raw, tmp_path / "out")
    data, test = (
        pd.read_csv(raw / f"adult.{name}.gz", header=None, skipinitialspace=True) for name in ("data", "test")
    )
    is_valid = np.array([scalar_row_hash(0, 0, row) / 2**64 < 0.05 for row in range(len(data))])
    for mapping, expected in (("valid", data[is_valid]), ("test", test)):
        assert rows_of(out, mapping)["income"].tolist() == (expected[ADULT_INCOME] == ">50K").tolist()
    train = rows_of(out, "train")
    assert len(train) + is_valid.sum() == 32_561 and train["income"].sum() > 7000
    fitted, gains = (np.log1p(rows[ADULT_GAIN].to_numpy(np.float64)) for rows in (data[~is_valid], test))
    expected = (gains - fitted.mean()) / fitted.std(ddof=1)
    np.testing.assert_allclose(rows_of(out, "test")["capital_gain"], expected, rtol=1e-5)


def test_criteo(tmp_path):
    raw = real_data("criteo")
    out = preprocessed("criteo", raw, tmp_path / "out")
    parts = {mapping: rows_of(out, mapping) for mapping in ("train", "valid", "test")}
    counts = {mapping: (len(rows), rows["click"].sum()) for mapping, rows in parts.items()}
    assert counts == {"train": (7200, 1549), "valid": (409, 93), "test": (391, 86)}
    texts = pd.read_csv(raw / "train.csv.gz", header=None, sep="\t")[CRITEO_C3]
    ids = parts["train"]["C3"]
    assert (ids == 1).sum() == texts.isna().sum()
    assert (ids == 2).sum() == (texts.value_counts() == 1).sum()
    assert ids[ids > 2].nunique() == (texts.value_counts() > 1).sum()
