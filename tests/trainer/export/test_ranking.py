"""Ranking requests in exports: the predictions of whole rows, and errors that name an input."""

import importlib.util
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from tests.trainer.export.models import draw_inputs, predicted, write_run
from tests.trainer.export.raw_samples import encoded_rows, make_layout, make_raw_spec
from tests.trainer.export.test_raw import make_encoders
from tests.trainer.export.test_raw_served import SERVED, fake_utils
from trainer.export.comparison import Check, largest_difference
from trainer.export.ports import inputs_of, named_inputs
from trainer.export.ranking import RawSides, can_rank, rank_function
from trainer.export.raw import RawEncoding
from trainer.export.raw_arrays import write_encoders
from trainer.export.raw_columns import NotFromRaw
from trainer.export.rows import ComparedRows, random_raw, raw_inputs
from trainer.export.run import with_tensor_names
from trainer.export.saved_model_folder import load_signatures, write
from trainer.export.served.raw_encoding import RequestEncoder
from trainer.layout import ModelInputs

CANDIDATES = ("day", "tags")  # "price" is read from the same column as "user"
ROWS = 30


def request_and_rows(rows: int = ROWS) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A ranking request, and its candidates as whole rows."""
    drawn = draw_inputs(rows)
    request = {name: values if name in CANDIDATES else values[:1] for name, values in drawn.items()}
    return request, {name: np.repeat(own, rows // len(own), axis=0) for name, own in request.items()}


def compared(saved, rows: int = ROWS) -> ComparedRows:
    inputs = draw_inputs(rows)
    numerical = np.concatenate([inputs[name] for name in saved.layout.numerical], axis=1)
    return ComparedRows(inputs, predicted(saved, inputs), "rows", saved.score, numerical)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"), encoders=make_encoders(), candidates=CANDIDATES, model="mmoe")


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory) -> tuple[Path, dict[str, np.ndarray], dict[str, np.ndarray], list[Check]]:
    """A SavedModel, a request, what it has to predict, and the comparisons that the export makes."""
    folder = tmp_path_factory.mktemp("saved_model")
    request, rows = request_and_rows()
    wanted = predicted(run, rows)
    checks = list(write(folder, run, compared(run)))  # the model has no weights from here on
    return folder, request, wanted, checks


def test_saved_model_ranks_what_rows_predict(exported):
    folder, request, wanted, checks = exported
    signatures = load_signatures(folder)
    assert sorted(signatures) == ["serving_default", "serving_rank", "serving_rank_raw", "serving_raw"]
    found = signatures["serving_rank"](request)
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-6, atol=1e-6)
        assert wanted[name].std(axis=0).min() > 0.01
    names = {check.name: check for check in checks}
    assert all(largest_difference(check) < 2e-6 for check in checks)
    raw = names["signature serving_rank_raw"].inputs
    assert {name: len(own) for name, own in raw.items()} == {"who": 1, "years": 1, "weekday": ROWS, "words": ROWS}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"day": np.zeros((2, 1), np.int32)}, r"the input.*tags.*has.*30.*rows; expected.*2.*as in.*day"),
        ({"tags": np.zeros((31, 3), np.int32)}, r"the input.*tags.*has.*31.*rows; expected.*30.*as in.*day"),
        ({"age": np.zeros((2, 1), np.float32)}, r"the input.*age.*has.*2.*rows; expected.*1"),
        (
            {"day": np.zeros((ROWS, 1), np.float32)},
            r"input #1\(zero-based\) was expected to be a int32",
        ),  # TensorFlow's own message
        ({"user": None}, r"user"),
    ],
)
def test_saved_model_names_the_wrong_input(exported, change, words):
    folder, request, wanted, _ = exported
    predict = load_signatures(folder)["serving_rank"]
    with pytest.raises(Exception, match=words):
        predict({name: own for name, own in (request | change).items() if own is not None})
    np.testing.assert_allclose(predict(request)["click"], wanted["click"], rtol=0, atol=1e-6)


def test_candidates_may_have_numbers_alone(tmp_path):
    saved, rows = write_run(tmp_path, candidates=("price",), model="wide_deep"), draw_inputs(9)
    rows = {name: own if name == "price" else np.repeat(own[:1], 9, axis=0) for name, own in rows.items()}
    found = rank_function(saved)({name: own if name == "price" else own[:1] for name, own in rows.items()})
    for name, wanted in predicted(saved, rows).items():
        np.testing.assert_allclose(found[name], wanted, rtol=1e-6, atol=1e-6)


def test_scores_read_numbers_of_both_sides(tmp_path):
    """`age`, the candidate's, comes before the request's `price` in the model, and after it in a request."""
    saved, rows = write_run(tmp_path, candidates=("day", "age"), score="click * age - price / 2"), draw_inputs(9)
    found = rank_function(saved)({name: own if name in ("day", "age") else own[:1] for name, own in rows.items()})
    wanted = found["click"].numpy() * rows["age"] - rows["price"][:1] / 2
    np.testing.assert_allclose(found["score"], wanted, rtol=1e-6, atol=1e-6)
    checks = list(write(tmp_path, saved, compared(saved)))
    assert "score" in checks[1].wanted(checks[1].predict(checks[1].inputs), slice(None))
    assert [check.name for check in checks] == ["signature serving_default", "signature serving_rank"]
    assert all(largest_difference(check) < 2e-6 for check in checks)


def test_without_sides_nothing_is_ranked(tmp_path):
    for candidates in ((), ("user", "day", "tags", "age", "price")):
        assert not can_rank(write_run(tmp_path / str(len(candidates)), candidates=candidates, model="mmoe").layout)


def test_renamed_features_keep_their_side(run):
    layout = replace(run.layout, candidates=frozenset({"day", "tags"}))
    named = replace(layout.categorical[1], name="a day")
    layout = replace(layout, categorical=(layout.categorical[0], named, layout.categorical[2]))
    layout = replace(layout, candidates=frozenset({"a day", "tags"}))
    renamed, _ = with_tensor_names(replace(run, layout=layout, encoders={}))
    assert [port.name for port in inputs_of(renamed.layout.sides[1])] == ["a_day", "tags"]


# Raw columns of both sides, with crosses of the candidates that read the request's.

OF_CANDIDATES = frozenset(
    {"identity", "hashed", "parts", "ids", "weights_of_ids", "title", "title_again", "name_by_hour", "text_by_code"}
    | {"ids_by_day", "cross_of_cross"}
)
CROSSED = {"name", "moment", "text", "code"}


@pytest.fixture(scope="module")
def both_sides():
    whole = make_layout()
    saved = SimpleNamespace(
        layout=replace(whole.model, candidates=OF_CANDIDATES), encoders=whole.encoders, raw_spec=make_raw_spec()
    )
    return whole, RawSides.of(saved, whole)


def raw_request(whole, sides, rows: int = 9) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Random raw columns of a request, and what encoders make of whole rows."""
    raw = random_raw(whole, rows, seed=5)
    for name in sides.request.columns:
        raw[name] = np.array([*[raw[name][0]] * rows, None], object)[:-1]
    request = {
        name: own[:1] if name in sides.request.columns else own for name, own in raw_inputs(whole.columns, raw).items()
    }
    return request, encoded_rows(whole, raw)


def test_each_side_reads_its_columns(both_sides):
    whole, sides = both_sides
    assert set(sides.of_candidates) == {"id", "free", "parts", "ids", "weights_of_ids", "title"}
    assert sides.candidates.columns.keys() - sides.of_candidates.keys() == CROSSED
    assert sides.request.columns.keys() | sides.of_candidates.keys() == whole.columns.keys()


def test_both_sides_are_encoded_like_rows(both_sides, tmp_path):
    whole, sides = both_sides
    request, wanted = raw_request(whole, sides)
    for name, side in (("request", sides.request), ("candidates", sides.candidates)):
        (tmp_path / name).mkdir()
        write_encoders(tmp_path / name, side)
    served = RequestEncoder(tmp_path).encode(request)
    assert served.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_array_equal(served[name], values if name in OF_CANDIDATES else values[:1], err_msg=name)
    tables = RawEncoding(whole).tables
    rows = len(wanted["identity"])
    for side in (sides.request, sides.candidates):
        count = rows if side is sides.candidates else 1
        raw = {name: tf.constant(np.repeat(request[name], count // len(request[name]), 0)) for name in side.columns}
        found = RawEncoding(side, tables).matrices(raw)
        for name, values in named_inputs(side.model, ModelInputs(*(matrix.numpy() for matrix in found))).items():
            np.testing.assert_allclose(values, wanted[name][:count], rtol=1e-6, err_msg=name)


def test_a_column_of_both_sides_is_reported(both_sides):
    whole, _ = both_sides
    layout = replace(whole.model, candidates=frozenset({"price"}))
    saved = SimpleNamespace(layout=layout, encoders=whole.encoders, raw_spec=make_raw_spec())
    with pytest.raises(NotFromRaw, match="the column price is read for price, which is the candidate's, and for feat"):
        RawSides.of(saved, whole)


# Triton

ENTRY = r'name: "(\w+)", data_type: \w+, dims: \[ ([-\d, ]+) \]'


@pytest.fixture(scope="module")
def repository(run, tmp_path_factory) -> tuple[Path, list[Check]]:
    pytest.importorskip("tf2onnx", reason="requirements/export.txt is not installed")
    from trainer.export.triton_repository import write as write_repository

    folder = tmp_path_factory.mktemp("repository")
    # Loaded again: the SavedModel has taken the weights of the other one.
    own = write_run(folder / "run", encoders=make_encoders(), candidates=CANDIDATES, model="mmoe")
    (folder / "models").mkdir()
    return folder / "models", list(write_repository(folder / "models", own, compared(own)))


def served(folder: Path, monkeypatch):
    """rank_model.py of a model's folder, loaded as Triton's Python backend does."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake_utils())
    monkeypatch.setattr(sys, "path", list(sys.path))
    description = importlib.util.spec_from_file_location("served_rank_model", folder / "1" / "model.py")
    module = importlib.util.module_from_spec(description)
    description.loader.exec_module(module)
    assert (SERVED / "rank_model.py").read_bytes() == (folder / "1" / "model.py").read_bytes()
    made = module.TritonPythonModel()
    parts = (folder / "config.pbtxt").read_text().split("output [")
    ports = {
        kind: [{"name": name, "dims": dims.split(", ")} for name, dims in re.findall(ENTRY, part)]
        for kind, part in zip(("input", "output"), parts, strict=True)
    }
    made.initialize({"model_config": json.dumps(ports), "model_repository": str(folder), "model_version": "1"})
    return made


@pytest.mark.parametrize("name", ["recommender_rank", "recommender_rank_raw"])
def test_triton_ranks_what_rows_predict(repository, name, monkeypatch):
    folder, checks = repository
    [check] = [one for one in checks if one.name == f"{name}/1/rank.onnx"]
    assert largest_difference(check) < 2e-6
    model = served(folder / name, monkeypatch)
    day = "weekday" if name.endswith("raw") else "day"
    ragged = check.inputs | {day: check.inputs[day][:4]}
    first, second, third = model.execute([check.inputs, ragged, check.inputs])
    assert re.fullmatch(rf"the input \w+ has \d+ rows, and {day} 4; .*|the input {day} has 4 rows, .*", second.error)
    for answer in (first, third):
        for tensor in answer.tensors:
            np.testing.assert_allclose(tensor.array, check.expected[tensor.name], rtol=2e-6, atol=2e-6)
    if name == "recommender_rank":
        wrong = check.inputs | {"user": np.full((1, 1), 500, np.int32)}
        failed, answered = model.execute([wrong, check.inputs])
        assert "out of data bounds" in failed.error and answered.error is None
