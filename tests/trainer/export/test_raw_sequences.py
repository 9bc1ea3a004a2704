"""Sequences and vectors of raw values: what exports predict is what --predict writes for the same raw rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
import yaml

import preprocess
from data.encoding.encoders import Numerical, Vocabulary
from export import main as export
from tests.data.test_raw_sequences import FEATURES, ROWS, document, histories, raw_rows
from tests.helpers import must
from tests.trainer.small_runs import run
from trainer.export.ports import named_inputs
from trainer.export.raw import RawEncoding
from trainer.export.raw_arrays import write_encoders
from trainer.export.raw_columns import NotFromRaw, RawLayout
from trainer.export.saved_model_folder import load_signatures
from trainer.export.served.raw_encoding import RawEncoder
from trainer.layout import CategoricalInput, InputSchema, ModelInputs, SequenceInput, VectorInput

NEW = 30
# Raw columns of lists, and what pads them.
PADS: dict[str, Any] = {"clicked": b"", "kinds": b"", "ages": np.nan, "offsets": np.nan, "seen": b"", "paid": np.nan}


def make_rows() -> pd.DataFrame:
    """Rows whose steps lack some values, and in which lists are longer than the model's, with a vector each."""
    rows, rng = raw_rows(), np.random.default_rng(5)
    for name in ("kinds", "ages"):
        rows[name] = [[None if rng.random() < 0.2 else value for value in cell] for cell in rows[name]]
    return rows.assign(title=rng.normal(size=(ROWS, 3)).tolist())


def padded(cells: list[list[Any]], null: Any) -> np.ndarray:
    width = max(map(len, cells))
    rows = [[null if value is None or value != value else value for value in cell] for cell in cells]
    rows = [row + [null] * (width - len(row)) for row in rows]
    return np.array([[value.encode() if isinstance(value, str) else value for value in row] for row in rows])


@pytest.fixture(scope="module", params=["newest_last", "newest_first"])
def served(request, tmp_path_factory) -> tuple[Path, dict[str, np.ndarray], np.ndarray]:
    """The folder of a run, raw inputs of new rows, and the probabilities that --predict writes for these rows."""
    folder, rows = tmp_path_factory.mktemp("raw"), make_rows()
    new = rows.iloc[-NEW:].assign(ts=rows.ts.iloc[-NEW:] + ROWS)
    for name, part in (("logs", rows), ("new", new)):
        pq.write_table(pa.Table.from_pandas(part, preserve_index=False), folder / f"{name}.parquet")
    raw = document({"type": "parquet", "files": ["logs.parquet"]}, request.param)
    keys = {name: {key: own for key, own in entry.items() if key != "separator"} for name, entry in FEATURES.items()}
    raw["feature_spec"] = keys | {"title": {"dimension": 3}}
    raw["channel_spec"]["vector"] = ["title"]
    (folder / "feature_spec.yaml").write_text(yaml.safe_dump(raw))
    must(preprocess.main(["--input", str(folder), "--output", str(folder / "data")]))
    must(run(folder / "data", folder))
    out = folder / "p.parquet"
    must(run(folder / "data", folder, "--raw", str(folder / "new.parquet"), "--predict", str(out)))

    seen = histories(pd.concat([rows, new], ignore_index=True))[ROWS:]
    lists = {name: new[name].tolist() for name in ("clicked", "kinds", "ages", "offsets")}
    lists |= {"seen": [one["item"].tolist() for one in seen], "paid": [one.price.tolist() for one in seen]}
    given = {name: padded(cells, PADS[name]) for name, cells in lists.items()}
    given |= {
        name: padded([[value] for value in new[name]], null) for name, null in {"item": b"", "price": np.nan}.items()
    }
    given["title"] = np.array(new.title.tolist(), np.float32)
    return folder, given, pq.read_table(out).column("prediction_click").to_numpy()


def test_the_signature_predicts_what_predict_writes(served, tmp_path):
    folder, given, expected = served
    assert expected.std() > 0.01
    must(export(["--model_dir", str(folder / "models"), "--output", str(tmp_path / "out"), "--format", "savedmodel"]))
    predict = load_signatures(tmp_path / "out")["serving_raw"]
    np.testing.assert_allclose(predict(given)["click"][:, 0], expected, atol=1e-5)
    # More padding changes nothing; neither does a missing age that a 1 replaces.
    wider = {name: np.pad(given[name], ((0, 0), (0, 2)), constant_values=null) for name, null in PADS.items()}
    ages = wider["ages"]
    steps = np.arange(ages.shape[1]) < (wider["clicked"] != b"").sum(axis=1, keepdims=True)
    assert np.isnan(ages[steps]).any()
    wider["ages"] = np.where(steps & np.isnan(ages), 1, ages)
    np.testing.assert_allclose(predict(given | wider)["click"][:, 0], expected, atol=1e-5)
    for name in ("title", "clicked", "paid"):
        turned = given | {other: given[other][::-1] for other in given if other == name}
        assert np.abs(predict(turned)["click"][:, 0] - expected).max() > 1e-4, name
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="seen, paid of a sequence need matrices of the same length"
    ):
        predict(given | {"paid": wider["paid"]})


def test_triton_predicts_what_predict_writes(served, tmp_path):
    pytest.importorskip("tf2onnx", reason="requirements/export.txt is not installed")
    from trainer.export.onnx_file import load_onnx

    folder, given, expected = served
    must(export(["--model_dir", str(folder / "models"), "--output", str(tmp_path / "out"), "--format", "triton"]))
    model = tmp_path / "out" / "recommender_raw"
    text = (model / "config.pbtxt").read_text()
    assert 'name: "title", data_type: TYPE_FP32, dims: [ 3 ]' in text
    assert 'name: "paid", data_type: TYPE_FP64, dims: [ -1 ]' in text
    encoded = RawEncoder(model / "1" / "encoders").encode(given)
    np.testing.assert_allclose(load_onnx(model / "1" / "model.onnx")(encoded)["click"][:, 0], expected, atol=1e-5)


# The end of a row.

KNOWN = Vocabulary("item", np.array(["a", "b"], object), np.ones(2, np.int64), is_list=True)
STEPS = {"item": KNOWN, "age": Numerical("age", None, (("fill", 9.0),), is_list=True)}


def small_layout(length: int, *, newest_first: bool) -> RawLayout:
    columns = CategoricalInput("item", 0, length, True, 5, 3, sequence="clicks")
    sequence = SequenceInput("clicks", length, "sum", ("item",), ("age",), newest_first=newest_first)
    return RawLayout.of(InputSchema((columns,), (), (sequence,)), STEPS)


def both(layout: RawLayout, raw: dict[str, np.ndarray], folder: Path) -> list[dict[str, np.ndarray]]:
    """What a graph and Triton's model make of raw columns."""
    folder.mkdir()
    write_encoders(folder, layout)
    inputs = RawEncoding(layout).matrices({name: tf.constant(values) for name, values in raw.items()})
    of_graph = named_inputs(layout.model, ModelInputs(*(matrix.numpy() for matrix in inputs)))
    return [of_graph, RawEncoder(folder).encode(raw)]


def test_a_row_ends_with_the_last_step_that_has_a_value(tmp_path):
    nan = np.nan
    raw = {
        "item": np.array([[b"a", b"", b""], [b"", b"", b"b"], [b"", b"", b""], [b"b", b"new", b""]]),
        "age": np.array([[1, nan, 5], [nan, 2, nan], [nan, nan, nan], [nan, nan, nan]]),
    }
    # a is 3, b is 4, unseen is 2 and null 1; a missing age is 9.
    steps = [[(3, 1), (1, 9), (1, 5)], [(1, 9), (1, 2), (4, 9)], [], [(4, 9), (2, 9)]]
    for number, (length, newest_first) in enumerate([(3, False), (2, False), (2, True), (5, True)]):
        kept = [row[:length] if newest_first else row[-length:] for row in steps]
        filled = [row + [(-1, 0)] * (length - len(row)) for row in kept]
        layout = small_layout(length, newest_first=newest_first)
        for found in both(layout, raw, tmp_path / str(number)):
            assert found["item"].tolist() == [[item for item, _ in row] for row in filled]
            assert found["age"].tolist() == [[age for _, age in row] for row in filled]


def test_rows_without_any_step(tmp_path):
    empty = {"item": np.empty((2, 0), "S1"), "age": np.empty((2, 0))}
    for found in both(small_layout(2, newest_first=False), empty, tmp_path / "empty"):
        assert found["item"].tolist() == [[-1, -1]] * 2 and found["age"].tolist() == [[0, 0]] * 2


def test_columns_of_a_sequence_have_one_length(tmp_path):
    write_encoders(tmp_path, small_layout(2, newest_first=False))
    raw = {"item": np.array([[b"a"]]), "age": np.ones((1, 2))}
    with pytest.raises(ValueError, match=r"item, age of a sequence need matrices of the same length, not of \[1, 2\]"):
        RawEncoder(tmp_path).encode(raw)


# Vectors.

TITLE = InputSchema((), ("price",), vectors=(VectorInput("title", 2),))


@pytest.mark.parametrize(
    ("encoders", "reason"),
    [
        ({"title": Numerical("title", None, (("log1p",),), is_list=True)}, "title does not produce the model's inputs"),
        ({"title": Numerical("title")}, "title does not produce the model's inputs"),
        ({"title": Numerical("cost", is_list=True)}, "raw column cost is read as a vector and as other values"),
        ({}, "no encoder for title"),
    ],
)
def test_vectors_that_cannot_be_taken(encoders, reason):
    with pytest.raises(NotFromRaw, match=reason):
        RawLayout.of(TITLE, {"price": Numerical("cost")} | encoders)


def test_a_missing_number_without_a_fill_is_not_a_number(tmp_path):
    """As in features of one value: the prediction is NaN, and not that of some other number."""
    layout = small_layout(2, newest_first=False)
    layout.encoders["age"] = Numerical("age", None, (("log1p",),), is_list=True)
    raw = {"item": np.array([[b"a", b"b"]]), "age": np.array([[np.nan, 0]])}
    for found in both(layout, raw, tmp_path / "nan"):
        assert np.isnan(found["age"][0, 0]) and found["age"][0, 1] == 0
