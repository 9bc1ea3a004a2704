"""Tables that an export stores as float16 or int8: the stored rows, the formats that read them, the measured change."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
import yaml

import export
from data.errors import DataError
from data.loading.loader import ParquetLoader
from data.storage import arrays
from tests.trainer.export.models import draw_inputs, predicted, specification, write_run
from tests.trainer.export.test_raw import make_encoders
from trainer.checkpoint.load_model import load_model
from trainer.embeddings.tables import EmbeddingTables
from trainer.export import onnx_file, request
from trainer.export.saved_model_folder import load_signatures, write_saved_model
from trainer.export.table_dtype import store_tables, tables_of
from trainer.layout import CategoricalInput, InputSchema
from trainer.models.ranking import RankingModel

# Rows of all tables of the test model together.
ROWS = 500 + 7 + 90


def model_of(rows: np.ndarray) -> RankingModel:
    """Stands for a model with one feature of these rows, the first two numbers of which are its wide weights."""
    layout = InputSchema((CategoricalInput("user", 0, 1, False, *rows.shape),), ())
    embeddings = EmbeddingTables(layout, outputs=2, combiner="sum", seed=0)
    embeddings.deep_variables[0].assign(rows)
    embeddings.wide_variables[0].assign(rows[:, :2])
    return SimpleNamespace(embeddings=embeddings, variables=embeddings.variables)


@pytest.mark.parametrize("magnitude", [1e-30, 1e-7, 1.0, 1e7, 1e30])
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_stored_rows_are_close_to_the_rows_whatever_their_magnitude(dtype, magnitude, monkeypatch):
    monkeypatch.setattr(arrays, "BLOCK_BYTES", 600)  # several blocks, the last one shorter
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(101, 6)) * 10.0 ** rng.uniform(-6, 0, (101, 1)) * magnitude
    rows[7] = 0
    rows = rows.astype(np.float32)
    model = model_of(rows)
    store_tables(model, dtype)
    deep, wide = ([array.dtype.name for array in table.arrays] for table in tables_of(model).values())
    assert (deep, wide) == ({"float16": ["float16"], "int8": ["int8", "float16"]}[dtype], ["float16"])
    # The memory of the variables is free.
    values = [tf.raw_ops.ReadVariableOp(resource=own.value.handle, dtype="float32") for own in model.variables]
    assert [len(value) for value in values] == [0, 0]
    ids = rng.permutation(101)[:, np.newaxis]
    found = model.embeddings.pool_padded(tf.constant(ids))
    wanted, peaks = rows[ids], np.abs(rows[ids]).max(axis=2, keepdims=True)  # [101, 1, 6] and [101, 1, 1]
    of_float16 = np.abs(wanted) * 2.0**-11 + peaks.max() * 2.0**-39
    # Half a step; the rounding of its scale makes a step larger by at most 2**-11, or cuts a value off by as little.
    allowed = peaks / 127 * 0.5005 if dtype == "int8" else of_float16
    assert (np.abs(found.deep[0] - wanted) <= allowed * (1 + 1e-6)).all()
    assert (np.abs(found.wide[0] - wanted[:, 0, :2]) <= of_float16[:, 0, :2] * (1 + 1e-6)).all()


def test_rows_without_finite_numbers_are_rejected():
    rows = np.ones((5, 4), np.float32)
    for wrong in (np.nan, np.inf):
        rows[3, 2] = wrong
        with pytest.raises(DataError, match="deep.4.small: has values that are NaN or infinite.*use "):
            store_tables(model_of(rows), "int8")


def stored_in(folder: Path) -> set[tuple[str, tuple[int, ...]]]:
    """Types and shapes of the variables in a SavedModel."""
    checkpoint = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
    shapes, dtypes = checkpoint.get_variable_to_shape_map(), checkpoint.get_variable_to_dtype_map()
    return {(dtypes[name].name, tuple(shape)) for name, shape in shapes.items()}


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_saved_model_holds_and_reads_stored_rows(dtype, tmp_path):
    saved = write_run(tmp_path / "run", model="wide_deep", combiner="mean")
    inputs = draw_inputs(64)
    before = predicted(saved, inputs)
    store_tables(saved.model, dtype)
    after = predicted(saved, inputs)
    assert 0 < max(np.abs(after[name] - before[name]).max() for name in after) < 0.05
    (tmp_path / "export").mkdir()
    write_saved_model(tmp_path / "export", saved, None)
    found = load_signatures(tmp_path / "export")["serving_default"](inputs)
    for name, wanted in after.items():
        np.testing.assert_allclose(found[name], wanted, rtol=0, atol=1e-5)
    # A row has 4 numbers in the deep part, and 5 in the wide part: one per logit.
    of_tables = {entry for entry in stored_in(tmp_path / "export") if entry[1][:1] == (ROWS,)}
    scales = {("float16", (ROWS, 1))} if dtype == "int8" else set()
    assert of_tables == {(dtype, (ROWS, 4)), (dtype, (ROWS, 5))} | scales


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("is_large", [False, True])
def test_an_onnx_file_holds_and_reads_stored_rows(dtype, is_large, tmp_path, monkeypatch):
    onnx = pytest.importorskip("onnx", reason="requirements/export.txt is not installed")
    if is_large:
        monkeypatch.setattr(onnx_file, "MAX_EMBEDDED_BYTES", 0)
    saved = write_run(tmp_path / "run", model="wide_deep", combiner="mean")
    store_tables(saved.model, dtype)
    (tmp_path / "export").mkdir()
    path = tmp_path / "export" / "model.onnx"
    onnx_file.write_onnx(path, saved)
    predict = onnx_file.load_onnx(path)
    for rows in (1, 64):
        inputs = draw_inputs(rows)
        found = predict(inputs)
        for name, wanted in predicted(saved, inputs).items():
            np.testing.assert_allclose(found[name], wanted, rtol=0, atol=1e-5)
    inputs["user"][1] = 500
    with pytest.raises(Exception, match="out of data bounds"):
        predict(inputs)
    graph = onnx.load(path, load_external_data=False).graph
    of_tables = [entry for entry in graph.initializer if list(entry.dims[:1]) == [ROWS]]
    kinds = {(onnx.helper.tensor_dtype_to_np_dtype(entry.data_type).name, entry.dims[1]) for entry in of_tables}
    assert kinds == {(dtype, 4), (dtype, 5)} | ({("float16", 1)} if dtype == "int8" else set())
    outside = [{item.key: item.value for item in entry.external_data} for entry in of_tables]
    assert all(entry.HasField("raw_data") is not is_large for entry in of_tables)
    assert [file.name for file in sorted(path.parent.iterdir())] == ["model.onnx", "model.onnx.data"][: 1 + is_large]
    if is_large:
        assert all(place["location"] == "model.onnx.data" and int(place["offset"]) % 2**16 == 0 for place in outside)
        assert len({place["offset"] for place in outside}) == len(outside)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_run(folder, encoders=make_encoders(), model="wide_deep")
    return folder


INPUTS = draw_inputs(300)
CLICKS = np.random.default_rng(3).integers(0, 2, 300).astype(np.float32)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """300 rows with labels, in the mapping test."""
    folder, rng = tmp_path_factory.mktemp("dataset"), np.random.default_rng(4)
    columns = {name: values[:, 0] for name, values in INPUTS.items() if name != "tags"}
    tags = [[one for one in row if one >= 0] for row in INPUTS["tags"].tolist()]
    columns |= {"tags": pa.array(tags, pa.list_(pa.int32())), "click": CLICKS}
    columns |= {"spend": rng.normal(size=300).astype(np.float32), "topic": rng.integers(0, 3, 300, np.int32)}
    pq.write_table(pa.table(columns), folder / "part.parquet")
    document = specification()
    document["source_spec"]["test"] = document["source_spec"]["train"]
    (folder / "feature_spec.yaml").write_text(yaml.safe_dump(document))
    return folder


def test_the_change_is_measured_on_all_rows_and_stored(run, dataset, tmp_path, capfd, monkeypatch):
    def in_batches(*arguments: object, **named: object) -> ParquetLoader:
        return ParquetLoader(*arguments, **named | {"global_batch_size": 128})

    monkeypatch.setattr(request, "ParquetLoader", in_batches)  # several batches, the last one shorter
    places = ["--model_dir", str(run), "--output", str(tmp_path / "out"), "--dataset_path", str(dataset)]
    assert export.main([*places, "--format", "savedmodel", "--export_dtype", "int8", "--max_change", "0.2"]) == 0
    printed = capfd.readouterr().out
    report = json.loads((tmp_path / "out" / "export.json").read_text())
    assert (report["format"], report["export_dtype"], report["rows"]) == ("savedmodel", "int8", 300)
    # Deep rows of 4 numbers and wide rows of 5, with a scale of 2 bytes each.
    assert report["table_bytes"] == {"before": ROWS * 9 * 4, "after": ROWS * (9 + 2 * 2)}
    before = predicted(load_model(run / "model"), INPUTS)
    after = load_signatures(tmp_path / "out")["serving_default"](INPUTS)
    for name, wanted in before.items():
        change = np.max(np.abs(after[name] - wanted) / np.maximum(1, np.abs(wanted)))
        assert report["largest_change"][name] == pytest.approx(change, abs=2e-6) and change > 1e-4
        assert f"largest change of a prediction of {name} {report['largest_change'][name]:.2g} on 300 rows" in printed
    for when, of_model in (("before", before), ("after", after)):
        click = of_model["click"][:, 0].astype(np.float64)
        pairs = np.sign(click[CLICKS == 1][:, np.newaxis] - click[CLICKS == 0])
        assert report["metrics"]["auc_roc/click"][when] == pytest.approx((1 + pairs.mean()) / 2, abs=1e-4)
        loss = -np.mean(np.where(CLICKS == 1, np.log(click), np.log(1 - click)))
        assert report["metrics"]["loss_val/click"][when] == pytest.approx(loss, abs=1e-6)
    assert "serving_raw: largest difference from the model" in printed


def test_a_triton_repository_stores_large_tables_once(run, tmp_path, monkeypatch):
    pytest.importorskip("onnx", reason="requirements/export.txt is not installed")
    monkeypatch.setattr(onnx_file, "MAX_EMBEDDED_BYTES", 0)
    flags = ["--model_dir", str(run), "--output", str(tmp_path / "out"), "--format", "triton"]
    assert export.main([*flags, "--export_dtype", "float16"]) == 0
    report = json.loads((tmp_path / "out" / "export.json").read_text())
    assert (report["kind_of_rows"], report["rows"], report["metrics"]) == ("random rows", 4096, {})
    assert 0 < max(report["largest_change"].values()) <= report["max_change"] == request.MAX_CHANGE
    folders = [tmp_path / "out" / name / "1" for name in ("recommender", "recommender_python", "recommender_raw")]
    assert len({(folder / "model.onnx.data").stat().st_ino for folder in folders}) == 1
    assert all((folder / "model.onnx").is_file() for folder in folders)


def test_a_change_that_is_too_large_is_refused(run, tmp_path, capfd):
    flags = ["--model_dir", str(run), "--output", str(tmp_path / "deep" / "out"), "--format", "savedmodel"]
    assert export.main([*flags, "--export_dtype", "int8", "--max_change", "1e-6"]) == 1
    [line] = capfd.readouterr().err.splitlines()
    assert "--export_dtype int8 changes a prediction of '" in line and "over --max_change 1e-06" in line
    assert "nothing was written. Use --export_dtype float16 or float32, or allow it with a larger --max_change" in line
    change = float(line.partition("' by ")[2].partition(",")[0])
    assert 1e-4 < change < 1
    assert list(tmp_path.rglob("*")) in ([], [tmp_path / "deep"])


@pytest.mark.parametrize("wrong", ["0", "-1", "nan", "inf", "much"])
def test_max_change_is_a_number_above_0(wrong, run, tmp_path, capfd):
    words = ["--model_dir", str(run), "--output", str(tmp_path / "out"), "--format", "onnx", "--max_change", wrong]
    with pytest.raises(SystemExit, match="2"):
        request.read_request(words)
    assert f"expected a number above 0, got {wrong!r}" in capfd.readouterr().err


def test_only_weights_besides_tables_are_limited(run, tmp_path, monkeypatch):
    words = ["--model_dir", str(run), "--output", str(tmp_path / "out"), "--format", "onnx"]
    arrays_of = request.read_request(words).model.arrays
    dense = sum(4 * math.prod(shape) for name, (shape, _) in arrays_of.items() if not name.startswith("embeddings/"))
    entry = request.FORMATS["onnx"]
    monkeypatch.setitem(request.FORMATS, "onnx", type(entry)(entry.module, entry.packages, dense))
    request.read_request(words)
    monkeypatch.setitem(request.FORMATS, "onnx", type(entry)(entry.module, entry.packages, dense - 1))
    with pytest.raises(DataError, match=f"{dense:,} bytes of weights besides its embedding tables"):
        request.read_request(words)
