"""export.py: what it writes and says, and what it refuses, before TensorFlow is imported where that can be."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
import yaml

import export
from tests.helpers import ROOT, environment
from tests.trainer.export.models import draw_inputs, specification, write_run
from tests.trainer.export.test_raw import make_encoders
from trainer.export import graph

FORMATS = ("savedmodel", "onnx", "triton")
CALL = "import sys; import export; code = export.main(sys.argv[1:]); print('tensorflow' in sys.modules, code)"


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
def test_an_export_tells_its_difference_from_the_model_on_the_datasets_rows(format, run, dataset, tmp_path, capfd):
    need(format)
    code = export.main(arguments(run, tmp_path / "out", "--format", format, "--dataset_path", str(dataset)))
    printed = capfd.readouterr()
    assert code == 0, printed.err
    assert "on 100 rows of the dataset" in printed.out
    assert ("serving_raw: largest difference" in printed.out) == (format == "savedmodel")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    if format == "triton":
        files = sorted(
            str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()
        )
        versions = [
            f"recommender{name}/{file}" for name in ("", "_python") for file in ("1/model.onnx", "config.pbtxt")
        ]
        assert files == sorted(["client.py", "example.json", "recommender_python/1/model.py", *versions])
        assert {name: len(rows) for name, rows in json.loads((tmp_path / "out/example.json").read_text()).items()} == {
            name: 2 for name in ("user", "day", "tags", "age", "price")
        }


@pytest.mark.parametrize("format", ["savedmodel", "onnx"])
def test_an_export_that_predicts_something_else_is_not_left(format, run, tmp_path, monkeypatch, capfd):
    need(format)
    nearly = dict(graph.ACTIVATIONS, binary=lambda logits: tf.math.sigmoid(logits) + 1.5e-5)
    monkeypatch.setattr(graph, "ACTIVATIONS", nearly)
    assert export.main(arguments(run, tmp_path / "deep" / "out", "--format", format)) == 1
    assert "differ from the model's by 1.5e-05, over 1e-05" in capfd.readouterr().err
    assert list((tmp_path / "deep").iterdir()) == []


def refused(code: int, *words: str) -> str:
    """What is told, without TensorFlow."""
    command = [sys.executable, "-c", CALL, *words]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", str(code)]
    return done.stderr


def test_what_is_wrong_is_told_before_tensorflow_is_imported(run, dataset, tmp_path):
    full = tmp_path / "full"
    (full / "something").mkdir(parents=True)
    savedmodel = ("--format", "savedmodel")
    assert "invalid choice: 'pickle'" in refused(2, *arguments(run, tmp_path / "out", "--format", "pickle"))
    assert "did you mean --model_dir?" in refused(2, *arguments(run, tmp_path / "out", *savedmodel, "--modeldir", "x"))
    assert "exists already" in refused(2, *arguments(run, full, *savedmodel))
    assert "no valid model in" in refused(4, *arguments(tmp_path, tmp_path / "out", *savedmodel))
    document = yaml.safe_load((dataset / "feature_spec.yaml").read_text())
    document["feature_spec"]["user"]["cardinality"] = 501
    (tmp_path / "feature_spec.yaml").write_text(yaml.safe_dump(document))
    other = arguments(run, tmp_path / "out", *savedmodel, "--dataset_path", str(tmp_path))
    assert "has other features than the model" in refused(2, *other)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["full"]
