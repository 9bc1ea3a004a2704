"""Runs of models with vectors: training, resuming, evaluation, prediction, importance and exports."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import preprocess
from data.loading.loader import ParquetLoader
from data.spec.feature_spec import FeatureSpec
from export import main as export
from tests.data.test_vectors import RAW
from tests.helpers import ROOT, left_to_all, metrics, must, words
from tests.trainer.small_runs import ROWS, SmallRun, probabilities, run, train
from trainer.checkpoint.load_model import load_model
from trainer.export.ports import named_inputs
from trainer.export.saved_model_folder import load_signatures
from trainer.importance import permutation_of
from trainer.importance_file import read_importance

EMBEDDINGS = ("title_embedding", "image_embedding")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> SmallRun:
    spec = ROOT / "feature_specs" / "vector.yaml"
    return train(spec, tmp_path_factory.mktemp("vectors"), "--vector_units", "5")


def test_predictions_are_those_of_the_model(trained, tmp_path):
    found = trained.predicted(tmp_path)
    np.testing.assert_allclose(found, probabilities(trained.saved, trained.inputs), atol=1e-5)
    other = trained.inputs._replace(vectors=trained.inputs.vectors[::-1])
    assert np.abs(probabilities(trained.saved, other) - found).max() > 0.01


def test_a_resumed_run_equals_an_uninterrupted_one(trained, tmp_path):
    whole = {name: weight.numpy() for name, weight in trained.saved.model.weights_by_name.items()}
    assert {name.partition("/")[2] for name in whole if "/vectors/" in name} == {
        *(f"vectors/{name}_{number}" for name in ("gamma", "beta") for number in (1, 2)),
        *(f"vectors/units_{number}/{name}" for name in ("kernel", "bias") for number in (1, 2)),
    }
    resumed = trained.resumed(tmp_path).model.weights_by_name
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name].numpy(), value, err_msg=name)


def test_evaluation_measures_the_model(trained, tmp_path):
    must(run(trained.data, trained.folder, "--evaluate", "--results_dir", str(tmp_path)))
    assert metrics(tmp_path)["loss_val"] == pytest.approx(trained.loss(trained.inputs), abs=1e-5)


def test_vectors_are_known_by_name(trained, tmp_path):
    """In another order of the channel, the model gets its vectors in the order of its training."""
    text = (trained.data / "feature_spec.yaml").read_text()
    assert "vector: [title_embedding, image_embedding]" in text
    other = trained.data / "turned.yaml"
    other.write_text(text.replace("[title_embedding, image_embedding]", "[image_embedding, title_embedding]"))
    must(run(trained.data, trained.folder, "--evaluate", "--fspec_file", "turned.yaml", "--results_dir", str(tmp_path)))
    assert metrics(tmp_path)["loss_val"] == pytest.approx(trained.loss(trained.inputs), abs=1e-5)


def test_other_vectors_than_in_training_are_refused(trained, capsys):
    text = (trained.data / "feature_spec.yaml").read_text()
    changes = {
        "dimension: 16": ("dimension: 17", "feature 'title_embedding' was vector, dimension 16 and is vector, dim"),
        "vector: [title_embedding, image_embedding]": (
            "vector: [image_embedding]",
            "feature 'title_embedding' was vector, dimension 16 and is absent",
        ),
    }
    for old, (new, message) in changes.items():
        other = trained.data / "other.yaml"
        assert old in text
        other.write_text(text.replace(old, new))
        assert run(trained.data, trained.folder, "--evaluate", "--fspec_file", "other.yaml") != 0
        assert message in capsys.readouterr().err


def test_a_vector_is_permuted_as_one(trained, tmp_path):
    out = tmp_path / "importance.json"
    must(run(trained.data, trained.folder, "--importance", str(out), "--seed", "5"))
    [task] = read_importance(out).tasks
    found = {feature.feature: feature.effects["loss_val"].change for feature in task.features}
    assert set(found) == {"user", "price", *EMBEDDINGS}
    for name, columns in zip(EMBEDDINGS, (slice(0, 16), slice(16, 22)), strict=True):
        vectors = trained.inputs.vectors.copy()
        vectors[:, columns] = vectors[permutation_of(name, ROWS, 5), columns]
        change = trained.loss(trained.inputs._replace(vectors=vectors)) - trained.loss(trained.inputs)
        assert found[name] == pytest.approx(change, abs=1e-5)
        assert abs(change) > 1e-4


def test_a_model_with_gates_is_measured(trained, tmp_path):
    """The monitor of its experts gets the vectors of the sampled rows, too."""
    flags = (
        "--model mmoe --expert_hidden_units 8 --tower_hidden_units 4 --num_experts 2 --interaction cross --num_epochs 1"
    )
    must(run(trained.data, tmp_path, *words(flags)))
    saved = load_model(tmp_path / "models" / "model")
    assert metrics(tmp_path / "results")["loss_val"] == pytest.approx(
        replace(trained, saved=saved).loss(trained.inputs), abs=1e-5
    )


def check_export(trained, predict) -> None:
    inputs = named_inputs(trained.saved.layout, trained.inputs)
    assert [inputs[name].shape for name in EMBEDDINGS] == [(ROWS, 16), (ROWS, 6)]
    assert inputs["image_embedding"].dtype == np.float32
    expected = probabilities(trained.saved, trained.inputs)
    np.testing.assert_allclose(predict(inputs)["click"][:, 0], expected, atol=1e-5)
    turned = inputs | {"title_embedding": inputs["title_embedding"][::-1]}
    assert np.abs(predict(turned)["click"][:, 0] - expected).max() > 0.01


def test_exports_predict_what_the_model_predicts(trained, tmp_path, capsys):
    out = tmp_path / "savedmodel"
    rows = ["--dataset_path", str(trained.data)]
    must(export(["--model_dir", str(trained.folder / "models"), "--output", str(out), "--format", "savedmodel", *rows]))
    assert "encoded features only, no signature serving_raw" in capsys.readouterr().out
    check_export(trained, load_signatures(out)["serving_default"])


@pytest.mark.parametrize("kind", left_to_all(["onnx", "triton"], ["onnx"]))
def test_onnx_files_predict_what_the_model_predicts(trained, kind, tmp_path):
    pytest.importorskip("tf2onnx", reason="requirements/export.txt is not installed")
    from trainer.export.onnx_file import load_onnx

    out = tmp_path / kind
    must(export(["--model_dir", str(trained.folder / "models"), "--output", str(out), "--format", kind]))
    file = out / ("model.onnx" if kind == "onnx" else "recommender/1/model.onnx")
    check_export(trained, load_onnx(file))
    if kind == "triton":
        assert 'name: "title_embedding"' in (out / "recommender" / "config.pbtxt").read_text()


def test_raw_rows_are_predicted_with_their_vectors(tmp_path):
    rng = np.random.default_rng(0)
    items, vectors = [f"item {number}" for number in rng.integers(0, 9, 200)], rng.normal(size=(200, 3)).tolist()
    table = pa.table({"click": rng.integers(0, 2, 200) * 1.0, "item": items, "title": pa.array(vectors)})
    pq.write_table(table, tmp_path / "logs.parquet")
    pq.write_table(table.slice(150), tmp_path / "new.parquet")
    (tmp_path / "feature_spec.yaml").write_text(yaml.safe_dump(RAW))
    data, models = tmp_path / "data", tmp_path / "models"
    must(preprocess.main(["--input", str(tmp_path), "--output", str(data)]))
    must(run(data, tmp_path))
    must(run(data, tmp_path, "--raw", str(tmp_path / "new.parquet"), "--predict", str(tmp_path / "p.parquet")))
    saved, spec = load_model(models / "model"), FeatureSpec.read(data / "feature_spec.yaml")
    (batch,) = ParquetLoader(spec, "test", global_batch_size=50, shuffle=False).epoch(0)
    np.testing.assert_allclose(batch.vectors, vectors[150:], rtol=1e-6)
    expected = probabilities(saved, saved.layout.model_inputs(batch.ids, batch.numerical, batch.vectors))
    found = pq.read_table(tmp_path / "p.parquet").column("prediction_click")
    np.testing.assert_allclose(found, expected, atol=1e-5)
