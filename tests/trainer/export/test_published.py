"""Exports of models trained on published data: Wide & Deep and MMoE, of MovieLens and of the census."""

import contextlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest

import export
from data.loading.loader import ParquetLoader
from data.spec.feature_spec import FeatureSpec
from tests.data.table_samples import preprocessed
from tests.helpers import ROOT, real_data, run_program
from trainer.export.ports import named_inputs

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Initializing an NVTabular Dataset in CPU mode"),
]
RUN_ALL = ROOT / "tests" / "distributed" / "programs" / "run_all.py"
SMALL = ["--deep_hidden_units", "64", "--expert_hidden_units", "16", "--tower_hidden_units", "8", "--num_experts", "4"]
TRAINING = ["--global_batch_size", "8192", "--num_epochs", "1", "--cpu", "--recipe", "published"]
MODELS = ("wide_deep", "mmoe")


def prepared(name: str, output: Path) -> None:
    if name == "movielens":
        from data.movielens.prepare import prepare as prepare_movielens

        prepare_movielens(real_data("ml-100k"), output, labels=["liked", "rating"])
    else:
        preprocessed("census_group1", real_data("census-income"), output)


@pytest.fixture(scope="module", params=["movielens", "census"])
def trained(request, tmp_path_factory) -> Path:
    """A dataset and a model folder of each model."""
    folder = tmp_path_factory.mktemp(request.param)
    prepared(request.param, folder / "data")
    scenarios = []
    for model in MODELS:
        places = ["--model_dir", str(folder / model), "--results_dir", str(folder / f"{model}_results")]
        scenarios.append(["--dataset_path", str(folder / "data"), *places, "--model", model, *SMALL, *TRAINING])
    (folder / "scenarios.json").write_text(json.dumps(scenarios))
    done = run_program([RUN_ALL, folder / "scenarios.json"], timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.parametrize("model", MODELS)
def test_exports_equal_the_model_on_dataset_rows(trained, model, tmp_path):
    pytest.importorskip("tf2onnx", reason="requirements/export.txt is not installed")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for format in ("savedmodel", "onnx", "triton"):
            places = ["--model_dir", str(trained / model), "--output", str(tmp_path / format)]
            assert export.main([*places, "--format", format, "--dataset_path", str(trained / "data")]) == 0
    found = re.findall(r"(\S+): largest difference from the model (\S+) on [\d,]+ (.*)", printed.getvalue())
    names = {name for name, _, _ in found}
    assert names >= {"serving_default", "serving_raw", "model.onnx", "recommender_python/1/model.onnx"}
    assert all(float(difference) <= 1e-5 for _, difference, _ in found)
    # Models that take raw columns are compared on random ones, since a dataset holds encoded rows.
    compared = {name: rows for name, _, rows in found}
    assert all(
        rows == ("random raw rows" if "raw" in name else "rows of the dataset") for name, rows in compared.items()
    )
    assert any("recommender_raw" in name for name in compared)
    check_by_batches(trained, model, tmp_path)


def check_by_batches(trained: Path, model: str, exported: Path) -> None:
    from trainer.checkpoint.load_model import load_model
    from trainer.export.onnx_file import load_onnx
    from trainer.export.saved_model_folder import load_signatures

    saved = load_model(trained / model / "model")
    ways = [load_signatures(exported / "savedmodel")["serving_default"], load_onnx(exported / "onnx" / "model.onnx")]
    spec = FeatureSpec.read(trained / "data" / "feature_spec.yaml")
    for rows in (1, 64, 4096):
        with contextlib.closing(ParquetLoader(spec, "test", global_batch_size=rows, shuffle=False).epoch(0)) as batches:
            batch = next(batches)
        inputs = saved.layout.model_inputs(batch.ids, batch.numerical, batch.vectors)
        logits = saved.model(*inputs).numpy().astype(np.float64)
        for predict in ways:
            predictions = predict(named_inputs(saved.layout, inputs))
            for place, task in enumerate(saved.tasks):
                wanted = 1 / (1 + np.exp(-logits[:, place])) if task.is_binary else logits[:, place]
                np.testing.assert_allclose(predictions[task.name][:, 0], wanted, rtol=0, atol=1e-5)
