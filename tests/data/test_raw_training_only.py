"""Raw features that are known only in training: their constants are encoded, and new rows do not have the columns."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

import preprocess
from data.encoding.encoder_files import load_encoders
from data.encoding.encoders import Numerical, Vocabulary
from data.loading.loader import ParquetLoader
from data.spec.feature_spec import FeatureSpec
from main import main
from tests.data.raw_spec_samples import raw_problems, sequential_raw
from tests.data.sample_specs import changed, check_only_problem
from tests.helpers import must, words

ROWS = 300
FEATURES: dict[str, dict[str, Any]] = {
    "click": {"dtype": "float32"},
    "item": {},
    "position": {"serve": 2},
    "hour": {"encode": "identity", "cardinality": 24, "serve": 7},
    "pages": {"encode": ["log1p", "standardize"], "serve": 3},
}
CHANNELS = {"onehot_categorical": ["item", "position", "hour"], "numerical": ["pages"], "label": ["click"]}


def raw_rows() -> pd.DataFrame:
    random = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "click": random.integers(0, 2, ROWS),
            "item": [f"i{number}" for number in random.integers(0, 9, ROWS)],
            "position": random.integers(0, 5, ROWS),
            "hour": random.integers(0, 24, ROWS),
            "pages": random.integers(1, 30, ROWS),
        }
    )


def write_raw(folder: Path, **changes: dict[str, Any]) -> Path:
    folder.mkdir()
    raw_rows().to_csv(folder / "logs.csv", index=False)
    document = {
        "feature_spec": {name: keys | changes.get(name, {}) for name, keys in FEATURES.items()},
        "source_spec": {"logs": [{"type": "csv", "header": True, "files": ["logs.csv"]}]},
        "split": {"from": "logs", "random": {"test": 0.2}},
        "channel_spec": CHANNELS,
    }
    (folder / "feature_spec.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    must(preprocess.main(["--input", str(write_raw(folder / "raw")), "--output", str(folder / "data")]))
    return folder / "data"


def test_constants_are_encoded_like_the_values_of_rows(data):
    spec, encoders = FeatureSpec.read(data / "feature_spec.yaml"), load_encoders(data / "workflow")
    position, pages = encoders["position"], encoders["pages"]
    assert isinstance(position, Vocabulary) and isinstance(pages, Numerical)
    assert spec.features["position"].serve == position.first_known_id + position.values.index("2").as_py()
    assert spec.features["hour"].serve == 7
    logs = np.log1p(pd.read_csv(data.parent / "raw" / "logs.csv")["pages"])
    assert spec.features["pages"].serve == pytest.approx((np.log1p(3) - logs.mean()) / logs.std(), abs=0.1)
    (batch,) = ParquetLoader(spec, "test", global_batch_size=ROWS, shuffle=False).epoch(0)
    assert [feature.name for feature in spec.training_only] == ["position", "hour", "pages"]
    assert len(np.unique(batch.training_only[batch.rows >= 0, 1])) > 5


def test_new_raw_rows_do_not_have_the_columns(data, tmp_path):
    places = ["--dataset_path", str(data), "--model_dir", str(tmp_path / "model"), "--results_dir", str(tmp_path / "r")]
    must(main([*places, *words("--deep_hidden_units 8 --global_batch_size 64 --num_epochs 1 --cpu")]))
    raw_rows()[["item"]].to_csv(tmp_path / "new.csv", index=False)
    raw = ["--predict", str(tmp_path / "raw.csv"), "--raw", str(tmp_path / "new.csv"), "--keep", "item"]
    must(main([*raw, *places[2:4], "--results_dir", str(tmp_path / "of_raw")]))
    must(main(["--predict", str(tmp_path / "encoded.csv"), *places]))
    of_raw = pd.read_csv(tmp_path / "raw.csv").groupby("item")["prediction_click"]
    assert of_raw.nunique().max() == 1
    known = set(pd.read_csv(tmp_path / "encoded.csv")["prediction_click"].round(5))
    assert known <= set(of_raw.first().round(5))


@pytest.mark.parametrize(
    ("changes", "words_of_message"),
    [
        ({"position": {"serve": "first"}}, "feature_spec.position.serve: 'first' is no value of the training rows"),
        ({"pages": {"serve": "first"}}, "feature_spec.pages.serve"),
    ],
)
def test_a_constant_that_no_encoder_knows(changes, words_of_message, tmp_path, capsys):
    raw = write_raw(tmp_path / "raw", **changes)
    assert preprocess.main(["--input", str(raw), "--output", str(tmp_path / "data")]) == 2
    assert words_of_message in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("path", "value", "words_of_message"),
    [
        ("feature_spec.clicked.serve", "a", "is only for onehot_categorical and numerical, and the feature is in"),
        ("feature_spec.seen.serve", "a", "is only for onehot_categorical and numerical, and the feature is in"),
        ("feature_spec.site_by_hour.serve", "a", "is for one feature that is read from a column"),
        ("feature_spec.item.serve", True, "is the boolean True; write a value of the raw column"),
    ],
)
def test_misplaced_constants(path, value, words_of_message, tmp_path):
    check_only_problem(raw_problems(changed({path: value}, sequential_raw()), tmp_path), path, words_of_message)
