"""Runs of models with behavior sequences: training, resuming, evaluation, prediction, importance and exports."""

import numpy as np
import pytest

from export import main as export
from tests.helpers import ROOT, left_to_all, metrics, must, words
from tests.trainer.small_runs import ROWS, SmallRun, probabilities, run, train
from trainer.export.ports import named_inputs
from trainer.export.saved_model_folder import load_signatures
from trainer.importance import permutation_of
from trainer.importance_file import read_importance


@pytest.fixture(scope="module", params=left_to_all(["din", "self_attention"], ["din"]))
def encoder(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def trained(encoder, tmp_path_factory) -> SmallRun:
    folder = tmp_path_factory.mktemp(encoder)
    text = (ROOT / "feature_specs" / "sequence.yaml").read_text()
    spec = folder / "sequence.yaml"
    spec.write_text(text.replace("encoder: din", f"encoder: {encoder}"))
    return train(spec, folder, *words("--attention_hidden_units 8 4 --attention_heads 2"))


def test_predictions_are_those_of_the_model(trained, tmp_path):
    found = trained.predicted(tmp_path)
    np.testing.assert_allclose(found, probabilities(trained.saved, trained.inputs), atol=1e-5)
    assert found.std() > 0.01


def test_a_resumed_run_equals_an_uninterrupted_one(trained, tmp_path):
    whole = {name: weight.numpy() for name, weight in trained.saved.model.weights_by_name.items()}
    resumed = trained.resumed(tmp_path).model.weights_by_name
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name].numpy(), value, err_msg=name)


def test_evaluation_measures_the_model(trained, tmp_path):
    must(run(trained.data, trained.folder, "--evaluate", "--results_dir", str(tmp_path)))
    assert metrics(tmp_path)["loss_val"] == pytest.approx(trained.loss(trained.inputs), abs=1e-5)


def test_other_sequences_than_in_training_are_refused(trained, encoder, tmp_path, capsys):
    text = (trained.data / "feature_spec.yaml").read_text()
    changes = {
        f"encoder: {encoder}": ("encoder: sum", f"encoder {encoder}, order newest_last"),
        "order: newest_first": ("order: newest_last", "encoder mean, order newest_first"),
    }
    if encoder == "din":  # the default, which the written specification omits
        changes = {"order: newest_first": changes["order: newest_first"]}
    for old, (new, message) in changes.items():
        other = tmp_path / "other.yaml"
        assert old in text
        other.write_text(text.replace(old, new))
        assert run(trained.data, trained.folder, "--evaluate", "--fspec_file", str(other), "--allow_outside_paths") != 0
        error = capsys.readouterr().err
        assert "sequence '" in error and message in error, error


def test_shorter_lists_of_training_hold_in_evaluation(trained, tmp_path):
    """A specification with a larger max_hotness is evaluated with the length that the model was trained with."""
    text = (trained.data / "feature_spec.yaml").read_text()
    other = trained.data / "longer.yaml"
    assert "max_hotness: 12" in text
    other.write_text(text.replace("max_hotness: 12", "max_hotness: 20"))
    must(run(trained.data, trained.folder, "--evaluate", "--fspec_file", "longer.yaml", "--results_dir", str(tmp_path)))
    assert metrics(tmp_path)["loss_val"] == pytest.approx(trained.loss(trained.inputs), abs=1e-5)


def test_a_sequence_is_permuted_as_one(trained, tmp_path):
    out = tmp_path / "importance.json"
    must(run(trained.data, trained.folder, "--importance", str(out), "--seed", "5"))
    [task] = read_importance(out).tasks
    found = {feature.feature: feature.effects["loss_val"].change for feature in task.features}
    assert set(found) == {"item", "category", "price", "clicks", "views"}
    layout = trained.saved.layout
    for sequence in layout.sequences:
        order = permutation_of(sequence.name, ROWS, 5)
        ids, numbers = trained.inputs.ids.copy(), trained.inputs.numbers.copy()
        for name in sequence.features:
            columns = layout.named(name)
            ids[:, columns.start : columns.stop] = ids[order, columns.start : columns.stop]
        for name in sequence.numbers:
            numbers[:, layout.sequence_numbers[name]] = numbers[order][:, layout.sequence_numbers[name]]
        changed = trained.inputs._replace(ids=ids, numbers=numbers)
        assert found[sequence.name] == pytest.approx(trained.loss(changed) - trained.loss(trained.inputs), abs=1e-5)
        assert abs(found[sequence.name]) > 1e-4


def test_exports_predict_what_the_model_predicts(trained, tmp_path, capsys):
    """Each export has compared itself with the model; here, on all rows, and with padding that holds other values."""
    out = tmp_path / "savedmodel"
    rows = ["--dataset_path", str(trained.data)]
    must(export(["--model_dir", str(trained.folder / "models"), "--output", str(out), "--format", "savedmodel", *rows]))
    assert "encoded features only, no signature serving_raw" in capsys.readouterr().out
    inputs, expected = named_inputs(trained.saved.layout, trained.inputs), probabilities(trained.saved, trained.inputs)
    assert inputs["clicked_item"].shape == inputs["clicked_age"].shape == (ROWS, 12)
    predict = load_signatures(out)["serving_default"]
    np.testing.assert_allclose(predict(inputs)["click"][:, 0], expected, atol=1e-5)
    padding = inputs["clicked_item"] < 0
    assert padding.any()
    changed = dict(inputs) | {
        "clicked_age": np.where(padding, np.float32(7), inputs["clicked_age"]),
        "clicked_category": np.where(padding, -5, inputs["clicked_category"]).astype(np.int32),
    }
    np.testing.assert_allclose(predict(changed)["click"][:, 0], expected, atol=1e-5)


@pytest.mark.parametrize("kind", left_to_all(["onnx", "triton"], ["onnx"]))
def test_onnx_files_predict_what_the_model_predicts(trained, kind, tmp_path, capsys):
    pytest.importorskip("tf2onnx", reason="requirements/export.txt is not installed")
    from trainer.export.onnx_file import load_onnx

    out = tmp_path / kind
    must(export(["--model_dir", str(trained.folder / "models"), "--output", str(out), "--format", kind]))
    file = out / ("model.onnx" if kind == "onnx" else "recommender/1/model.onnx")
    found = load_onnx(file)(named_inputs(trained.saved.layout, trained.inputs))["click"][:, 0]
    np.testing.assert_allclose(found, probabilities(trained.saved, trained.inputs), atol=1e-5)
