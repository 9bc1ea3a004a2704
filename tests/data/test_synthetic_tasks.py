import json
from math import sin, sqrt

import numpy as np
import pandas as pd
import pytest

from data.encoding.encoder_files import load_encoders
from data.encoding.encoders import encode_columns
from data.spec.feature_spec import FeatureSpec
from data.synthetic_tasks.prepare import draw_rows, draw_tasks, main, prepare
from tests.data.table_samples import contents, labels_of, rows_of

INPUTS = [f"x_{number}" for number in range(100)]
ROWS, CORRELATION, SEED = 12_000, 0.3, 4


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic") / "out"
    prepare(folder, correlation=CORRELATION, rows=ROWS, seed=SEED)
    return folder


def tasks_of(folder):
    return json.loads((folder / "tasks.json").read_text())


def test_specification(dataset):
    spec = FeatureSpec.read(dataset / "feature_spec.yaml")
    assert [feature.name for feature in spec.inputs] == INPUTS == [feature.name for feature in spec.numerical]
    assert {feature.dtype for feature in spec.numerical} == {"float32"}
    assert labels_of(dataset) == [("y1", "regression", None), ("y2", "regression", None)]
    assert (len(rows_of(dataset, "train")), len(rows_of(dataset, "test"))) == (ROWS, ROWS // 10)


def test_labels_are_the_papers_sums_plus_noise(dataset):
    tasks = tasks_of(dataset)
    assert len(tasks["alpha"]) == len(tasks["beta"]) == 10
    for mapping in ("train", "test"):
        rows = rows_of(dataset, mapping).head(1000)
        for label, weights in zip(("y1", "y2"), tasks["weights"], strict=True):
            noise = []
            for row in rows.to_dict("records"):
                product = sum(weight * row[name] for weight, name in zip(weights, INPUTS, strict=True))
                waves = sum(sin(a * product + b) for a, b in zip(tasks["alpha"], tasks["beta"], strict=True))
                noise.append(row[label] - product - waves)
            # Six standard errors of a thousand draws with deviation 0.1.
            assert np.mean(noise) == pytest.approx(0, abs=0.019) and np.std(noise) == pytest.approx(0.1, abs=0.014)
            assert max(map(abs, noise)) < 0.6


def test_inputs_are_standard_normal(dataset):
    train, test = rows_of(dataset, "train")[INPUTS], rows_of(dataset, "test")[INPUTS]
    assert train.mean().abs().max() < 6 / sqrt(ROWS) and (train.std() - 1).abs().max() < 6 / sqrt(2 * ROWS)
    assert train.corr().where(~np.eye(100, dtype=bool)).abs().max().max() < 6 / sqrt(ROWS)
    assert not np.isin(test["x_0"], train["x_0"][:1200]).all()
    assert abs(np.corrcoef(test["x_0"], train["x_0"][:1200])[0, 1]) < 6 / sqrt(1200)


@pytest.mark.parametrize("correlation", [-1.0, 0.0, 0.3, 0.9, 1.0])
def test_the_weights_have_length_1_and_the_asked_cosine(correlation):
    first, second = draw_tasks(correlation, seed=8).weights
    assert [first @ first, second @ second, first @ second] == pytest.approx([1, 1, correlation], abs=1e-12)


def test_the_labels_grow_alike_with_the_correlation():
    pearson = []
    for correlation in (0.0, 0.5, 0.9, 1.0):
        _, labels = next(draw_rows(draw_tasks(correlation, SEED), 0, 20_000, SEED))
        pearson.append(np.corrcoef(labels.T)[0, 1])
    assert pearson == sorted(pearson) and abs(pearson[0]) < 0.05 and pearson[3] > 0.98


def test_bytes_depend_on_the_arguments(dataset, tmp_path):
    flags = ["--rows", str(ROWS), "--correlation", str(CORRELATION)]
    assert main(["--output", str(tmp_path / "same"), *flags, "--seed", str(SEED)]) == 0
    assert contents(tmp_path / "same") == contents(dataset)
    assert main(["--output", str(tmp_path / "other"), "--rows", "50", "--seed", str(SEED + 1)]) == 0
    assert not np.isin(rows_of(tmp_path / "other", "train")["x_0"], rows_of(dataset, "train")["x_0"]).any()
    assert len(rows_of(tmp_path / "other", "test")) == 1000, "test has a thousand rows at least"
    assert tasks_of(tmp_path / "other")["weights"][0] != tasks_of(dataset)["weights"][0]


def test_fewer_rows_are_a_prefix():
    tasks = draw_tasks(CORRELATION, SEED)
    whole = [np.concatenate(parts) for parts in zip(*draw_rows(tasks, 0, 100, SEED), strict=True)]
    pieces = list(draw_rows(tasks, 0, 70, SEED, rows_per_block=16))
    assert [len(inputs) for inputs, _ in pieces] == [16, 16, 16, 16, 6]
    for part in (0, 1):
        joined = np.concatenate([piece[part] for piece in pieces])
        # The product of a block may be added up in another order.
        np.testing.assert_allclose(joined, whole[part][:70], rtol=1e-6)
    other, _ = next(draw_rows(draw_tasks(0.9, SEED), 0, 100, SEED))
    assert (other == whole[0]).all()


def test_the_stored_encoders_leave_the_inputs_as_they_are(dataset):
    raw = pd.DataFrame({name: [0.5, -1.25] for name in INPUTS})
    encoded = encode_columns(load_encoders(dataset / "workflow"), raw)
    assert list(encoded) == INPUTS and all(column.tolist() == [0.5, -1.25] for column in encoded.values())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--correlation", "1.5"], "--correlation 1.5: expected a number from -1 to 1"),
        (["--correlation", "nan"], "--correlation nan: expected a number from -1 to 1"),
        (["--rows", "0"], "expected a whole number from 1"),
        (["--seed", "-1"], "expected a whole number from 0"),
    ],
)
def test_arguments_that_cannot_work_are_rejected(tmp_path, capsys, flags, message):
    try:
        code = main(["--output", str(tmp_path / "out"), *flags])
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
