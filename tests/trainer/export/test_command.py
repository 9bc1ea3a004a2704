"""export.py: what it writes, prints and rejects, where possible before TensorFlow is imported."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
import yaml

import export
from data.encoding.encoders import CrossedIds, CrossInput, HashedIds, Numerical
from data.errors import DataError
from tests.trainer.export.models import draw_inputs, specification, write_run
from tests.trainer.export.test_raw import make_encoders
from trainer.export import raw_encoders, request
from trainer.tasks.binary import BinaryTask

FORMATS = ("savedmodel", "onnx", "triton")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_run(folder, encoders=make_encoders(), model="mmoe")
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Rows of the model's features, without labels."""
    folder = tmp_path_factory.mktemp("dataset")
    inputs = draw_inputs(100)
    columns = {name: values[:, 0] for name, values in inputs.items() if name != "tags"}
    columns["tags"] = pa.array(
        [[one for one in row if one >= 0] for row in inputs["tags"].tolist()], pa.list_(pa.int32())
    )
    pq.write_table(pa.table(columns), folder / "part.parquet")
    (folder / "feature_spec.yaml").write_text(yaml.safe_dump(specification()))
    return folder


def arguments(run: Path, output: Path, *more: str) -> list[str]:
    return ["--model_dir", str(run), "--output", str(output), *more]


def need(format: str) -> None:
    if format != "savedmodel":
        pytest.importorskip("tf2onnx", reason="requirements/export.txt is not installed")


@pytest.mark.parametrize("format", FORMATS)
def test_export_reports_difference_from_the_model(format, run, dataset, tmp_path, capfd):
    need(format)
    code = export.main(arguments(run, tmp_path / "out", "--format", format, "--dataset_path", str(dataset)))
    printed = capfd.readouterr()
    assert code == 0, printed.err
    assert "on 100 rows of the dataset" in printed.out
    assert ("serving_raw: largest difference" in printed.out) == (format == "savedmodel")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    if format == "triton":
        files = sorted(
            str(path.relative_to(tmp_path / "out"))
            for path in (tmp_path / "out").rglob("*")
            if path.is_file() and path.suffix != ".npy"
        )
        versions = [
            f"recommender{name}/{file}" for name in ("", "_python") for file in ("1/model.onnx", "config.pbtxt")
        ]
        raw = [f"recommender_raw/{file}" for file in ("config.pbtxt", "1/model.py", "1/model.onnx")]
        raw += [f"recommender_raw/1/{file}" for file in ("raw_encoding.py", "encoders/layout.json")]
        raw += ["example_raw.json", "export.json"]
        assert files == sorted(["client.py", "example.json", "recommender_python/1/model.py", *versions, *raw])
        assert "recommender_raw/1/model.onnx: largest difference" in printed.out and "random raw rows" in printed.out
        assert {name: len(rows) for name, rows in json.loads((tmp_path / "out/example.json").read_text()).items()} == {
            name: 2 for name in ("user", "day", "tags", "age", "price")
        }


@pytest.mark.parametrize("format", ["savedmodel", "onnx"])
def test_export_with_other_predictions_is_removed(format, run, tmp_path, monkeypatch, capfd):
    need(format)
    monkeypatch.setattr(BinaryTask, "activation", lambda task, logits: tf.math.sigmoid(logits) + 1.5e-5)
    assert export.main(arguments(run, tmp_path / "deep" / "out", "--format", format)) == 1
    assert "differ from the model's by 1.5e-05, over 1e-05" in capfd.readouterr().err
    assert list((tmp_path / "deep").iterdir()) == []


def test_raw_signature_that_encodes_wrongly_is_removed(run, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(raw_encoders, "NULL_ID", 2)
    assert export.main(arguments(run, tmp_path / "out", "--format", "savedmodel")) == 1
    printed = capfd.readouterr()
    assert "serving_default: largest difference" in printed.out and "differ from the model's by" in printed.err
    assert list(tmp_path.iterdir()) == []


def test_errors_are_reported_before_tensorflow_loads(run, dataset, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(export, "import_tensorflow", lambda: pytest.fail("too late"))

    def error_of(code: int, model_dir: Path, output: Path, *more: str) -> str:
        try:
            found = export.main(arguments(model_dir, output, *more))
        except SystemExit as stop:
            found = stop.code
        assert found == code
        return capfd.readouterr().err

    out, full = tmp_path / "out", tmp_path / "full"
    (full / "something").mkdir(parents=True)
    savedmodel = ("--format", "savedmodel")
    assert "invalid choice: 'pickle'" in error_of(2, run, out, "--format", "pickle")
    assert "did you mean --model_dir?" in error_of(2, run, out, *savedmodel, "--modeldir", "x")
    assert "already exists" in error_of(2, run, full, *savedmodel)
    assert "no valid model in" in error_of(4, tmp_path, out, *savedmodel)
    assert "--score: at character 1: 'clik' is not in" in error_of(2, run, out, *savedmodel, "--score", "clik")
    assert "--score: the formula ends where" in error_of(2, run, out, *savedmodel, "--score", "click *")
    document = yaml.safe_load((dataset / "feature_spec.yaml").read_text())
    document["feature_spec"]["user"]["cardinality"] = 501
    (tmp_path / "feature_spec.yaml").write_text(yaml.safe_dump(document))
    other = error_of(2, run, out, *savedmodel, "--dataset_path", str(tmp_path))
    assert "feature 'user' was onehot_categorical, cardinality 500 and is onehot_categorical, cardinality 501" in other
    monkeypatch.setattr(request, "find_spec", lambda name: None)
    for format in ("onnx", "triton"):
        message = error_of(2, run, out, "--format", format)
        assert "needs tf2onnx, onnx, onnxruntime, not installed here: uv pip install" in message
        assert "-r requirements/export.txt" in message
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["full"]


@pytest.mark.parametrize("of_model", [None, "click * age"])
def test_an_export_may_have_another_score(of_model, tmp_path):
    write_run(tmp_path / "run", score=of_model)
    words = arguments(tmp_path / "run", tmp_path / "out", "--format", "savedmodel", "--score", "click - 2 * price")
    assert export.main(words) == 0
    predict, inputs = tf.saved_model.load(str(tmp_path / "out")).signatures["serving_default"], draw_inputs(9)  # noqa: TID251
    found = predict(**{name: tf.constant(values) for name, values in inputs.items()})
    assert sorted(found) == ["click", "score", "spend", "topic"]
    np.testing.assert_allclose(found["score"], found["click"].numpy() - 2 * inputs["price"], rtol=1e-6)


def test_the_dataset_may_lie_outside_if_allowed(run, dataset, tmp_path):
    document = yaml.safe_load((dataset / "feature_spec.yaml").read_text())
    for chunks in document["source_spec"].values():
        chunks[0]["files"] = [str(dataset / "part.parquet")]
    (tmp_path / "feature_spec.yaml").write_text(yaml.safe_dump(document))
    words = arguments(run, tmp_path / "out", "--format", "savedmodel", "--dataset_path", str(tmp_path))
    with pytest.raises(DataError, match="or pass --allow_outside_paths"):
        request.read_request(words)
    assert request.read_request([*words, "--allow_outside_paths"]).rows.rows == 100


def test_raw_columns_and_inputs_of_crosses_are_renamed_for_their_tensors(tmp_path, capfd):
    encoders = make_encoders()
    encoders |= {"age": Numerical.standardized("years of age"), "all words": encoders["tags"]}
    cross = CrossInput("all words", True), CrossInput("day", True)
    encoders["tags"] = CrossedIds(cross, HashedIds("", 88, 2), "all words")
    write_run(tmp_path / "run", encoders=encoders, model="mmoe")
    assert export.main(arguments(tmp_path / "run", tmp_path / "out", "--format", "savedmodel")) == 0
    printed = capfd.readouterr().out
    assert "serving_raw: largest difference" in printed and "2 tensors have other names" in printed
    raw = tf.saved_model.load(str(tmp_path / "out")).signatures["serving_raw"]  # noqa: TID251
    assert set(raw.structured_input_signature[1]) == {"who", "weekday", "words", "years_of_age"}
    names = {"years of age": "years_of_age", "all words": "all_words"}
    assert json.loads((tmp_path / "out/tensor_names.json").read_text()) == names
