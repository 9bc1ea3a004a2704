"""Names that a specification accepts go through training, checkpoints, evaluation, predictions and every export."""

import csv
import html
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
import yaml

import export
import main
from tests.helpers import metrics, must
from trainer.export.ports import tensor_names
from trainer.report.page import page
from trainer.report.runs import read_run

ONEHOT = ["Age", "age", "cat_0.bin", "größe", "self", "f" * 200]
MULTIHOT = ["a b", "cat_0", "class", 'q"uote', "大" * 66]
NUMERICAL = ["1x", "tags:0", "back\\slash", "<b>", "e\u0301", "\u00e9", "age_2", "-flag"]
LABELS = ["Click", "click", "lab.el", "shared", "l" * 200]
MAP = "session id"
ROWS = 60
ASKED = ["--ranking_metrics", "ndcg@3", "--slice", MAP, "größe", "1x", "--slice_values", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A dataset with these names, and the models that two epochs give."""
    folder = tmp_path_factory.mktemp("names")
    rng = np.random.default_rng(0)
    columns: dict = {name: rng.integers(0, 10, ROWS) for name in ONEHOT}
    columns |= {name: pa.array(rng.integers(0, 10, (ROWS, 2)).tolist()) for name in MULTIHOT}
    columns |= {name: rng.normal(size=ROWS).astype(np.float32) for name in NUMERICAL}
    columns |= {name: np.arange(ROWS) % (2 + place) == 0 for place, name in enumerate(LABELS)}
    columns[MAP] = np.arange(ROWS) // 5
    pq.write_table(pa.table(columns), folder / "part.parquet")
    features = {name: {"cardinality": 10} for name in ONEHOT}
    features |= {name: {"cardinality": 10, "max_hotness": 2} for name in MULTIHOT}
    features |= {name: {} for name in [*NUMERICAL, *LABELS, MAP]}
    chunk = [{"type": "parquet", "features": list(columns), "files": ["part.parquet"]}]
    channels = {"onehot_categorical": ONEHOT, "multihot_categorical": MULTIHOT, "numerical": NUMERICAL}
    document = {
        "feature_spec": features,
        "source_spec": {"train": chunk, "test": chunk},
        "channel_spec": channels | {"label": LABELS, "map": [MAP]},
    }
    (folder / "feature_spec.yaml").write_text(yaml.safe_dump(document, allow_unicode=True), encoding="utf-8")
    model = ["--model", "ple", "--ple_levels", "2", "--expert_hidden_units", "4", "--tower_hidden_units", "4"]
    model += ["--num_epochs", "1", "--tensorboard_dir", str(folder / "board")]
    must(main.main([*places(folder, "train"), *model, *ASKED]))
    return folder


def places(folder: Path, run: str) -> list[str]:
    sizes = ["--global_batch_size", "20", "--eval_batch_size", "20", "--cpu", "--recipe", "published"]
    return ["--dataset_path", str(folder), "--model_dir", str(folder), "--results_dir", str(folder / run), *sizes]


def test_a_checkpoint_evaluates_and_predicts(folder):
    kept = ["--keep", ONEHOT[-1], "大" * 66]
    file = folder / "predictions.parquet"
    must(main.main([*places(folder, "evaluate"), "--evaluate", "--predictions_file", str(file), *kept, *ASKED]))
    trained, evaluated = metrics(folder / "train"), metrics(folder / "evaluate")
    assert {f"auc_roc/{name}" for name in LABELS} < set(evaluated)
    assert evaluated == pytest.approx({key: trained[key] for key in evaluated}, abs=1e-6)
    assert {f"ndcg@3/{name}" for name in [*LABELS, "mean"]} < set(evaluated)
    names = pq.read_schema(file).names
    written = [f"{part}_{name}" for name in LABELS for part in ("label", "prediction")]
    assert names == ["row", *written, MAP, *kept[1:]]


def test_slices_are_in_the_table_the_log_and_the_report(folder):
    must(main.main([*places(folder, "sliced"), "--evaluate", *ASKED]))
    lines = list(csv.DictReader(io.StringIO((folder / "sliced/slices.csv").read_text(encoding="utf-8"))))
    assert len(lines) == 3 * 3 * len(LABELS)  # two values and the others of each column
    assert sum(int(line["rows"]) for line in lines) == 3 * ROWS * len(LABELS)
    run = read_run(folder / "sliced", "run")
    assert [(one["column"], one["value"], one["task"]) for one in run.slices] == [
        (line["column"], line["value"], line["task"]) for line in lines
    ]
    words = html.unescape(page([run]))
    assert all(f"{column}, {task}" in words for column in (MAP, "größe", "1x") for task in LABELS)


def test_a_task_called_shared_keeps_its_gate(folder):
    lines = [line.removeprefix("DLLL ") for line in (folder / "train/log.json").read_text().splitlines()]
    keys = {key for line in lines for key in json.loads(line).get("data", {})}
    gates = {key.split("/")[2] for key in keys if key.startswith("gate_entropy/level_1/")}
    assert gates == {*LABELS, "shared_"}


@pytest.mark.parametrize("format", ["savedmodel", "onnx", pytest.param("triton", marks=pytest.mark.slow)])
def test_every_name_goes_through_every_export(folder, format, capfd):
    if format != "savedmodel":
        pytest.importorskip("tf2onnx", reason="requirements/export.txt is not installed")
    output = folder / format
    code = export.main(["--model_dir", str(folder), "--output", str(output), "--format", format])
    assert code == 0, capfd.readouterr().err
    names = json.loads((output / "tensor_names.json").read_text(encoding="utf-8"))
    expected = tensor_names([*ONEHOT, *MULTIHOT, *NUMERICAL, *LABELS])
    assert names == {name: tensor for name, tensor in expected.items() if name != tensor}
    if format == "savedmodel":
        signature = tf.saved_model.load(str(output)).signatures["serving_default"]  # noqa: TID251
        assert set(signature.structured_input_signature[1]) == {
            expected[name] for name in [*ONEHOT, *MULTIHOT, *NUMERICAL]
        }
        assert set(signature.structured_outputs) == {expected[name] for name in LABELS}


def test_tensor_names_are_unique():
    names = ["Age", "age", "age_2", "größe", "gr__e", "1", "class", "class_2", "self", "大", "小", "Age"]
    found = tensor_names(names)
    assert found == {
        "Age": "Age",
        "age": "age_3",
        "age_2": "age_2",
        "größe": "gr__e_2",
        "gr__e": "gr__e",
        "1": "tensor_1",
        "class": "class_3",
        "class_2": "class_2",
        "self": "self_2",
        "大": "tensor__",
        "小": "tensor___2",
    }
    rng = np.random.default_rng(0)
    alphabet = list("aAbB_1.é")
    drawn = {"".join(rng.choice(alphabet, rng.integers(1, 4))) for _ in range(300)}
    tensors = tensor_names(drawn).values()
    assert len({tensor.lower() for tensor in tensors}) == len(drawn)
    assert all(tensor.isidentifier() and tensor.isascii() and tensor[0] != "_" for tensor in tensors)
