"""Runs of models with vectors that are looked up: from raw logs and a file by raw value to exports."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import preprocess
from data.encoding.encoder_files import load_encoders
from data.loading.loader import ParquetLoader
from data.spec.feature_spec import FeatureSpec
from export import main as export
from tests.helpers import ROOT, left_to_all, metrics, must, run_program
from tests.trainer.small_runs import FLAGS, SmallRun, probabilities, run
from trainer.checkpoint.load_model import load_model
from trainer.export.ports import named_inputs
from trainer.export.saved_model_folder import load_signatures
from trainer.importance import permutation_of
from trainer.importance_file import read_importance

RUN_ALL = ROOT / "tests" / "distributed" / "programs" / "run_all.py"
ROWS, ITEMS, DIMENSION = 4000, 2500, 8  # most items occur once or twice
TEST_ROWS = 1000
RAW = """
feature_spec:
  click: {dtype: float32}
  item: {embedding_dim: 4}
  item_text: {pretrained: item_vectors.parquet, of: item}
  item_style: {pretrained: item_vectors.parquet, of: item, trained: true, dtype: float32}
source_spec:
  logs:
    - {type: parquet, files: [logs.parquet]}
split: {from: logs, last: {test: 0.25}}
channel_spec:
  onehot_categorical: [item]
  vector: [item_text, item_style]
  label: [click]
"""
WITHOUT = """  item_text: {pretrained: item_vectors.parquet, of: item}
  item_style: {pretrained: item_vectors.parquet, of: item, trained: true, dtype: float32}
"""


def item_vectors() -> np.ndarray:
    """The vector of each item, [ITEMS, DIMENSION] float16."""
    return np.random.default_rng(1).normal(size=(ITEMS, DIMENSION)).astype(np.float16)


def write_logs(folder) -> None:
    """Logs whose label is a function of the item's vector, and the file of vectors, in another order."""
    rng = np.random.default_rng(0)
    vectors, items = item_vectors(), rng.integers(0, ITEMS, ROWS)
    score = vectors.astype(float) @ np.resize([1, -1], DIMENSION)
    names = [f"item {number}" for number in items]
    pq.write_table(pa.table({"click": (score[items] > 0).astype(float), "item": names}), folder / "logs.parquet")
    order = rng.permutation(ITEMS)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors[order].reshape(-1)), DIMENSION)
    table = pa.table({"item": [f"item {number}" for number in order], "vector": lists})
    pq.write_table(table, folder / "item_vectors.parquet", row_group_size=700)


def dataset(folder, text: str = RAW):
    write_logs(folder)
    (folder / "feature_spec.yaml").write_text(text)
    must(preprocess.main(["--input", str(folder), "--output", str(folder / "data")]))
    return folder / "data"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> SmallRun:
    folder = tmp_path_factory.mktemp("pretrained")
    data = dataset(folder)
    must(run(data, folder, "--keep_checkpoints", "9", "--num_epochs", "4"))
    read = FeatureSpec.read(data / "feature_spec.yaml")
    # Only a new model needs the files of vectors.
    shutil.move(data / "item_text.vectors.parquet", folder / "kept.parquet")
    (data / "item_style.vectors.parquet").unlink()
    (batch,) = ParquetLoader(read, "test", global_batch_size=TEST_ROWS, shuffle=False).epoch(0)
    assert batch.vectors.shape == (TEST_ROWS, 0)
    saved = load_model(folder / "models" / "model")
    inputs = saved.layout.model_inputs(batch.ids, batch.numerical, batch.vectors)
    return SmallRun(folder, data, saved, inputs, batch.labels[:, 0])


def by_id(trained: SmallRun) -> np.ndarray:
    """The vector of each id of an item, [cardinality, DIMENSION] float16, from the vectors by name and the encoder."""
    encoder = load_encoders(trained.data / "workflow")["item"]
    table, vectors = np.zeros((encoder.cardinality, DIMENSION), np.float16), item_vectors()
    for place, name in enumerate(encoder.values.to_pylist()):
        table[encoder.first_known_id + place] = vectors[int(name.removeprefix("item "))]
    return table


def test_frozen_vectors_are_those_of_the_file(trained):
    table = trained.saved.model.embeddings.vector_tables()["item_text"].numpy()
    assert table.dtype == np.float16
    np.testing.assert_array_equal(table, by_id(trained))


def test_trained_vectors_begin_with_those_of_the_file(trained):
    table, start = trained.saved.model.embeddings.vector_tables()["item_style"].numpy(), by_id(trained)
    changed = (table != start).any(axis=1)
    assert table.dtype == np.float32 and changed.mean() > 0.5
    assert 0 < np.abs(table - start).max() < 1 and np.corrcoef(table.ravel(), start.ravel())[0, 1] > 0.9


def test_rare_items_are_known_by_their_vectors(trained, tmp_path):
    """Of items that training sees once or twice, an embedding alone says little."""
    data = dataset(tmp_path, RAW.replace(WITHOUT, "").replace("  vector: [item_text, item_style]\n", ""))
    must(run(data, tmp_path, "--num_epochs", "4"))
    ids_alone = metrics(tmp_path / "results")["auc_roc"]
    must(run(trained.data, trained.folder, "--evaluate", "--results_dir", str(tmp_path / "evaluated")))
    found = metrics(tmp_path / "evaluated")
    assert found["loss_val"] == pytest.approx(trained.loss(trained.inputs), abs=1e-5)
    # A third of the test items are unknown, and look a vector of zeros up.
    assert found["auc_roc"] > 0.75 and found["auc_roc"] > ids_alone + 0.1


def test_predictions_are_those_of_the_model(trained, tmp_path):
    must(run(trained.data, trained.folder, "--predict", str(tmp_path / "p.parquet")))
    found = pq.read_table(tmp_path / "p.parquet").column("prediction_click")
    np.testing.assert_allclose(found, probabilities(trained.saved, trained.inputs), atol=1e-5)
    raw = pq.read_table(trained.folder / "logs.parquet").slice(ROWS - TEST_ROWS)
    pq.write_table(raw, tmp_path / "new.parquet")
    again = str(tmp_path / "raw.parquet")
    must(run(trained.data, trained.folder, "--raw", str(tmp_path / "new.parquet"), "--predict", again))
    np.testing.assert_allclose(pq.read_table(again).column("prediction_click"), found, atol=1e-6)


def test_a_resumed_run_equals_an_uninterrupted_one(trained, tmp_path):
    whole = {name: weight.numpy() for name, weight in trained.saved.model.weights_by_name.items()}
    assert {"embeddings/vector.item_text", "embeddings/vector.item_style"} <= set(whole)
    shutil.copytree(trained.folder / "models", tmp_path / "models")
    first = min((tmp_path / "models" / "checkpoints").iterdir(), key=lambda path: int(path.name[5:]))
    must(run(trained.data, tmp_path, "--num_epochs", "4", "--use_checkpoint", "--checkpoint", str(first)))
    resumed = load_model(tmp_path / "models" / "model").model.weights_by_name
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name].numpy(), value, err_msg=name)


def test_permuting_the_feature_permutes_its_vectors(trained, tmp_path):
    out = tmp_path / "importance.json"
    must(run(trained.data, trained.folder, "--importance", str(out), "--seed", "5"))
    [task] = read_importance(out).tasks
    [item] = task.features
    ids = trained.inputs.ids[permutation_of("item", TEST_ROWS, 5)]
    change = trained.loss(trained.inputs._replace(ids=ids)) - trained.loss(trained.inputs)
    assert item.feature == "item" and item.effects["loss_val"].change == pytest.approx(change, abs=1e-5)
    assert change > 0.1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("dimension: 8", "dimension: 9", "feature 'item_text' was vector, dimension 8, of item, dtype float16 and is"),
        ("trained: true", "trained: false", "feature 'item_style' was vector, dimension 8, of item, trained True and"),
        ("dtype: float16", "dtype: float32", "dtype float16 and is vector, dimension 8, of item, dtype float32"),
    ],
)
def test_other_vectors_than_in_training_are_refused(trained, capsys, old, new, message):
    text = (trained.data / "feature_spec.yaml").read_text()
    assert old in text
    (trained.data / "other.yaml").write_text(text.replace(old, new, 1))
    assert run(trained.data, trained.folder, "--evaluate", "--fspec_file", "other.yaml") != 0
    assert message in capsys.readouterr().err


def test_training_needs_the_files(trained, tmp_path, capsys):
    assert run(trained.data, tmp_path) == 2
    assert "item_text.vectors.parquet: no such file; correct `pretrained`" in capsys.readouterr().err


def check_export(trained: SmallRun, predict) -> None:
    inputs = named_inputs(trained.saved.layout, trained.inputs)
    assert list(inputs) == ["item"]
    expected = probabilities(trained.saved, trained.inputs)
    np.testing.assert_allclose(predict(inputs)["click"][:, 0], expected, atol=1e-5)


def test_exports_hold_the_vectors(trained, tmp_path):
    """Neither of their signatures has an input for them."""
    out = tmp_path / "savedmodel"
    must(export(["--model_dir", str(trained.folder / "models"), "--output", str(out), "--format", "savedmodel"]))
    signatures = load_signatures(out)
    check_export(trained, signatures["serving_default"])
    raw = pq.read_table(trained.folder / "logs.parquet").slice(ROWS - TEST_ROWS)
    found = signatures["serving_raw"]({"item": np.array(raw.column("item").to_pylist(), object)[:, np.newaxis]})
    np.testing.assert_allclose(found["click"][:, 0], probabilities(trained.saved, trained.inputs), atol=1e-5)


@pytest.mark.parametrize("kind", left_to_all(["onnx", "triton"], ["onnx"]))
def test_onnx_files_hold_the_vectors(trained, kind, tmp_path):
    pytest.importorskip("tf2onnx", reason="requirements/export.txt is not installed")
    from trainer.export.onnx_file import load_onnx

    out = tmp_path / kind
    must(export(["--model_dir", str(trained.folder / "models"), "--output", str(out), "--format", kind]))
    check_export(trained, load_onnx(out / ("model.onnx" if kind == "onnx" else "recommender/1/model.onnx")))


@pytest.mark.horovod
def test_two_workers_equal_one(tmp_path):
    """Also with sharded tables, of which each worker reads its own rows from the files."""
    text = RAW.replace("item: {embedding_dim: 4}", "item: {embedding_dim: 4, encode: {hash: 5000}}")
    data, more = dataset(tmp_path, text), ["--num_epochs", "1", "--deep_dropout", "0"]
    must(run(data, tmp_path / "one", *more))
    scenarios = []
    for name, flag in (("two", "off"), ("shards", "on")):
        places = {"--dataset_path": data, "--model_dir": tmp_path / name / "models"}
        places["--results_dir"] = tmp_path / name / "results"
        arguments = [str(part) for place in places.items() for part in place]
        scenarios.append([*arguments, *FLAGS, *more, "--shard_embeddings", flag])
    (tmp_path / "scenarios.json").write_text(json.dumps(scenarios))
    done = run_program([RUN_ALL, tmp_path / "scenarios.json"], workers=2, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "4 of 4 tables are sharded over 2 worker(s)" in done.stdout
    one = load_model(tmp_path / "one" / "models" / "model").model.weights_by_name
    for name in ("two", "shards"):
        two = load_model(tmp_path / name / "models" / "model").model.weights_by_name
        frozen = "embeddings/vector.item_text"
        np.testing.assert_array_equal(one[frozen].numpy(), two[frozen].numpy())
        for weight, value in one.items():
            np.testing.assert_allclose(two[weight].numpy(), value.numpy(), atol=1e-3, err_msg=f"{name}: {weight}")
