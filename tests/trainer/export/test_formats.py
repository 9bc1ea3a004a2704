"""SavedModel and ONNX against the live model: the same predictions and errors at every batch size."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data.errors import DataError
from tests.trainer.export.models import draw_inputs, predicted, write_run
from trainer.checkpoint.load_model import LoadedModel
from trainer.recommender.scorer import Scorer

BATCHES = (1, 64, 4096)
MODELS = {
    "wide_deep": {"model": "wide_deep"},
    "mmoe": {"model": "mmoe"},
    "wide_deep_mean": {"model": "wide_deep", "combiner": "mean", "activation": "tanh"},
    "ple_normalised": {"model": "ple", "wide_part": True, "batch_norm": True},
}


def as_saved_model(folder: Path, saved: LoadedModel) -> Callable:
    from trainer.export.saved_model_folder import load_signatures, write_saved_model

    folder.mkdir()
    write_saved_model(folder, saved, None)
    signatures = load_signatures(folder)
    assert list(signatures) == ["serving_default"]
    return signatures["serving_default"]


def as_onnx(folder: Path, saved: LoadedModel) -> Callable:
    pytest.importorskip("tf2onnx", reason="requirements/export.txt is not installed")
    from trainer.export.onnx_file import load_onnx, write_onnx

    folder.mkdir()
    write_onnx(folder / "model.onnx", saved)
    return load_onnx(folder / "model.onnx")


FORMATS = [pytest.param(as_saved_model, id="savedmodel"), pytest.param(as_onnx, id="onnx")]


@pytest.mark.parametrize("make", FORMATS)
@pytest.mark.parametrize("model", MODELS)
def test_export_predicts_what_the_model_predicts(model, make, tmp_path):
    saved = write_run(tmp_path / "run", **MODELS[model])
    predict = make(tmp_path / "export", saved)
    for rows in BATCHES:
        inputs = draw_inputs(rows)
        found, wanted = predict(inputs), predicted(saved, inputs)
        assert {name: values.shape for name, values in found.items()} == {
            "click": (rows, 1),
            "spend": (rows, 1),
            "topic": (rows, 3),
        }
        for name in wanted:
            np.testing.assert_allclose(found[name], wanted[name], rtol=0, atol=1e-5)
    assert all(wanted[name].std() > 0.01 for name in wanted)


@pytest.mark.parametrize("make", FORMATS)
@pytest.mark.parametrize("without", [("user", "day", "tags"), ("age", "price")])
def test_a_model_may_have_no_ids_or_no_numbers(without, make, tmp_path):
    saved = write_run(tmp_path / "run", without=without, model="wide_deep")
    inputs = draw_inputs(9, without)
    found, wanted = make(tmp_path / "export", saved)(inputs), predicted(saved, inputs)
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", FORMATS)
@pytest.mark.parametrize("combiner", ["sum", "mean"])
def test_ids_in_lists_may_have_weights(combiner, make, tmp_path):
    saved = write_run(tmp_path / "run", weighted=True, model="wide_deep", combiner=combiner)
    predict = make(tmp_path / "export", saved)
    inputs = draw_inputs(50, weighted=True)
    found, wanted = predict(inputs), predicted(saved, inputs)
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=0, atol=1e-5)
    # Those of padding have no effect, all others have.
    padded = inputs["tags"] < 0
    changed = {where: np.where(padded == where, 5, inputs["tag_share"]).astype(np.float32) for where in (True, False)}
    others = {where: predict(inputs | {"tag_share": own})["spend"] for where, own in changed.items()}
    np.testing.assert_array_equal(others[True], found["spend"])
    np.testing.assert_array_equal((others[False] != found["spend"])[:, 0], ~padded.all(axis=1))


def test_encoded_rows_need_a_weight_for_each_id(tmp_path):
    scorer = Scorer(write_run(tmp_path / "run", weighted=True, model="wide_deep"))
    inputs = scorer.matrices({"tags": [[3, 5], []], "tag_share": [[0.5, 2.0], []]}, 2)
    assert inputs.weights.tolist() == [[0.5, 2, 0], [0, 0, 0]]
    with pytest.raises(DataError, match="'tag_share' has 1 items in row 1, and 'tags' has 2; each id has one weight"):
        scorer.matrices({"tags": [[3], [5, 7]], "tag_share": [[0.5], [2.0]]}, 2)


@pytest.mark.parametrize("make", FORMATS)
def test_id_out_of_range_is_rejected_and_pads_are_not(make, tmp_path):
    saved = write_run(tmp_path / "run", model="mmoe")
    predict = make(tmp_path / "export", saved)
    for name, wrong in (("user", 500), ("user", -1), ("day", 7), ("tags", 90)):
        inputs = draw_inputs(8)
        inputs[name][5, -1] = wrong
        with pytest.raises(Exception, match=r"(?i)out of.*bounds|is not in \[0"):
            predict(inputs)
    inputs = draw_inputs(8)
    inputs["tags"][:] = -1
    np.testing.assert_allclose(predict(inputs)["click"], predicted(saved, inputs)["click"], rtol=0, atol=1e-5)
