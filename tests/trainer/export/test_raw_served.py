"""The Triton model of raw columns: its encoders beside the plain ones, and requests with a stand-in for the server."""

import importlib.util
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from tests.helpers import ROOT
from tests.trainer.export.raw_samples import make_layout, sample_rows
from trainer.export.raw_arrays import write_encoders
from trainer.export.raw_columns import RawLayout
from trainer.export.rows import raw_inputs
from trainer.export.served.raw_encoding import RawEncoder, TextIndex, Texts, Values, mix

SERVED = ROOT / "trainer" / "export" / "served"


@pytest.fixture(scope="module")
def layout() -> RawLayout:
    return make_layout()


@pytest.fixture(scope="module")
def encoders(layout, tmp_path_factory):
    """A version folder of the model, with its encoders."""
    folder = tmp_path_factory.mktemp("model") / "1" / "encoders"
    folder.mkdir(parents=True)
    write_encoders(folder, layout)
    return folder


@pytest.mark.parametrize("rows", [1, 2, 500])
def test_every_served_encoder_is_the_plain_one(layout, encoders, rows):
    raw, wanted = sample_rows(layout, rows)
    found = RawEncoder(encoders).encode(raw_inputs(layout.columns, raw))
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_strings_with_the_same_hash_differ():
    known = [b"a", b"bc", b"d"]
    keys = np.repeat(mix(np.zeros(1, np.uint64)), 3)
    arrays = {"keys": keys, "ids": np.array([5, 6, 7]), "starts": np.array([0, 1, 3, 4]), "repeats": np.array(3)}
    arrays["bytes"] = np.frombuffer(b"".join(known), np.uint8)
    wanted = np.array([[b"d"], [b"bd"], [b"bc"], [b"a"], [b""]], object)
    texts = Texts(wanted.reshape(-1).tolist())
    texts.hashes = np.zeros(5, np.uint64)
    found = TextIndex(arrays, [0]).find(Values(wanted, np.zeros((5, 1), bool), texts))
    assert found[:, 0].tolist() == [7, -1, 6, 5, -1]


class FakeTensor:
    def __init__(self, name: str, array: np.ndarray):
        self.name, self.array = name, array

    @classmethod
    def from_dlpack(cls, name: str, capsule: np.ndarray) -> "FakeTensor":
        return cls(name, capsule)

    def as_numpy(self) -> np.ndarray:
        return self.array

    to_dlpack = as_numpy


class FakeSession:
    """Predicts the sum of all features."""

    def __init__(self, *_arguments, **_more):
        pass

    def run(self, names: list[str], features: dict[str, np.ndarray]) -> list[np.ndarray]:
        assert names == ["click"]
        return [np.concatenate(list(features.values()), axis=1).sum(axis=1, keepdims=True, dtype=np.float64)]


def fake_utils() -> SimpleNamespace:
    """What Triton's Python backend gives a model to import."""
    return SimpleNamespace(
        Tensor=FakeTensor,
        TritonError=str,
        TritonModelException=RuntimeError,
        InferenceResponse=lambda output_tensors=(), error=None: SimpleNamespace(tensors=output_tensors, error=error),
        get_input_tensor_by_name=lambda request, name: FakeTensor(name, request[name]),
    )


@pytest.fixture
def model(encoders, monkeypatch):
    """raw_model.py, loaded as Triton's Python backend does."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake_utils())
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(InferenceSession=FakeSession))
    monkeypatch.setattr(sys, "path", list(sys.path))
    description = importlib.util.spec_from_file_location("served_raw_model", SERVED / "raw_model.py")
    module = importlib.util.module_from_spec(description)
    description.loader.exec_module(module)
    made = module.TritonPythonModel()
    config = json.dumps({"output": [{"name": "click"}]})
    made.initialize({"model_config": config, "model_repository": str(encoders.parent.parent), "model_version": "1"})
    return made


def test_requests_of_any_list_length_are_one_batch(model, layout):
    requests, wanted = [], []
    for rows in (1, 4, 2, 30):
        raw, features = sample_rows(layout, rows)
        requests.append(raw_inputs(layout.columns, raw))
        wanted.append(np.concatenate(list(features.values()), axis=1).sum(axis=1, dtype=np.float64))
    assert len({request["words"].shape[1] for request in requests}) > 1
    for answer, expected in zip(model.execute(requests), wanted, strict=True):
        np.testing.assert_allclose(answer.tensors[0].array[:, 0], expected, rtol=1e-6)


def test_an_id_out_of_range_fails_its_own_request(model, layout):
    requests = [raw_inputs(layout.columns, sample_rows(layout, rows)[0]) for rows in (3, 2, 5)]
    requests[1]["id"][1] = 60
    first, second, third = model.execute(requests)
    assert second.error == "feature 'identity' has the id 60, out of range [0, 60)"
    assert first.error is None and third.error is None and len(third.tensors[0].array) == 5


def test_a_sequence_of_columns_of_different_lengths_fails_its_own_request(model, layout):
    requests = [raw_inputs(layout.columns, sample_rows(layout, rows)[0]) for rows in (3, 20, 5)]
    requests[0]["ages"] = requests[0]["ages"][:, :1]
    first, second, third = model.execute(requests)
    assert "of a sequence need matrices of the same length" in first.error
    assert second.error is None and third.error is None and len(second.tensors[0].array) == 20
