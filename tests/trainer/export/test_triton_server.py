"""The documented commands: a Triton repository is exported, served unchanged by a real tritonserver, asked over HTTP.

The server is that of `benchmarks.triton_server`.
"""

import importlib.util
import json
import shlex
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import export
from benchmarks.triton_server import serving
from tests.documented import bash_blocks
from tests.helpers import ROOT
from tests.trainer.export.models import draw_inputs, predicted, write_large_run, write_run
from tests.trainer.export.test_ranking import CANDIDATES, request_and_rows
from tests.trainer.export.test_raw import GIVEN, make_encoders, wanted_features
from trainer.checkpoint.load_model import load_model

EXPORT, SERVE, ASK = (
    shlex.split(line, comments=True) for line in bash_blocks("docs/export.md", "Triton")[0].splitlines()
)
MODEL, RAW = "recommender_python", "recommender_raw"
RANK, RANK_RAW = "recommender_rank", "recommender_rank_raw"


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """nvidia-pytriton, fetched for these tests alone; skips them where that fails."""
    folder = tmp_path_factory.mktemp("tritonserver")
    wanted = ROOT / "requirements" / "tritonserver.txt"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
    command += ["--target", folder, "-r", wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nvidia-pytriton cannot be installed: {done.stderr.strip()[-300:]}")
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The server's folder, to which the repository has been copied, and the model."""
    here, there = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("there")
    flags = {"encoders": make_encoders(), "candidates": CANDIDATES, "model": "mmoe"}
    model = write_run(here / "outbrain" / "checkpoints", **flags)
    with chdir(here):
        assert EXPORT[:2] == ["python", "export.py"] and export.main(EXPORT[2:]) == 0
    shutil.copytree(here / "repository", there / "repository")
    return there, model


@pytest.fixture(scope="module", params=["numpy of the backend", "other numpy"])
def url(request, served, package, tmp_path_factory) -> Iterator[str]:
    folder, _ = served
    fits = request.param == "numpy of the backend"  # the models of raw columns load only there
    assert SERVE == ["tritonserver", "--model-repository", "repository"]
    models = [MODEL, RANK, *([RAW, RANK_RAW] if fits else [])]
    own = tmp_path_factory.mktemp("server")
    with serving(package, own, folder / SERVE[2], models, fits=fits) as url:
        yield url


def client(folder: Path) -> ModuleType:
    """The client as it was exported."""
    description = importlib.util.spec_from_file_location("exported_client", folder / "repository" / "client.py")
    module = importlib.util.module_from_spec(description)
    description.loader.exec_module(module)
    return module


def asked(ask: Callable, url: str, inputs: dict[str, np.ndarray], model: str = MODEL) -> dict[str, np.ndarray]:
    found = ask(url, model, {name: values.tolist() for name, values in inputs.items()})
    return {name: np.array(rows) for name, rows in found.items()}


@pytest.mark.slow
def test_triton_serves_what_the_model_predicts(served, url):
    folder, model = served
    ask = client(folder).predict
    for rows in (1, 64, 4096):
        inputs = draw_inputs(rows)
        found, wanted = asked(ask, url, inputs), predicted(model, inputs)
        for task in wanted:
            np.testing.assert_allclose(found[task], wanted[task], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_batched_requests_get_their_own_rows(served, url):
    folder, model = served
    module = client(folder)
    requests = [draw_inputs(rows) for rows in range(1, 41)]
    wrong = {5, 17}
    for number in wrong:
        requests[number]["user"][0] = 500

    def answer(number: int) -> dict[str, np.ndarray] | str:
        try:
            return asked(module.predict, url, requests[number])
        except RuntimeError as error:
            return str(error)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(answer, range(len(requests))))
    for number, found in enumerate(answers):
        if number in wrong:
            assert isinstance(found, str) and "out of data bounds" in found
        else:
            wanted = predicted(model, requests[number])
            np.testing.assert_allclose(found["topic"], wanted["topic"], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("url", ["numpy of the backend"], indirect=True)
def test_triton_serves_raw_columns(served, url):
    folder, model = served
    given = {name: values.copy() for name, values in GIVEN.items() if name != "years"}
    given |= {name: np.array([[text.decode() for text in row] for row in GIVEN[name]]) for name in ("who", "words")}
    given["years"] = np.nan_to_num(GIVEN["years"], nan=4.0)  # JSON has no NaN; 4 replaces null
    found = asked(client(folder).predict, url, given, RAW)
    for task, wanted in predicted(model, wanted_features()).items():
        np.testing.assert_allclose(found[task], wanted, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_triton_ranks_candidates_and_names_what_is_wrong(served, url):
    folder, model = served
    ask = client(folder).predict
    for rows in (1, 300):
        request, whole = request_and_rows(rows)
        found, wanted = asked(ask, url, request, RANK), predicted(model, whole)
        for task in wanted:
            np.testing.assert_allclose(found[task], wanted[task], rtol=1e-6, atol=1e-6)
    for change, words in (
        ({"day": request["day"][:7]}, "tags has 300 rows, and day 7"),  # ragged lists of candidates
        ({"age": np.zeros((2, 1), np.float32)}, "age"),  # two rows of the request
        ({"user": np.full((1, 1), 500, np.int32)}, "out of data bounds"),
    ):
        with pytest.raises(RuntimeError, match=words):
            asked(ask, url, request | change, RANK)
    for wrong, words in (
        (lambda inputs: [one for one in inputs if one["name"] != "user"], "user"),
        (lambda inputs: [one | {"datatype": "FP64"} for one in inputs], "FP64"),
    ):
        with pytest.raises(urllib.error.HTTPError) as answer:
            urllib.request.urlopen(f"{url}/v2/models/{RANK}/infer", body_of(request, wrong))
        assert answer.value.code == 400 and words in answer.value.read().decode()
    assert asked(ask, url, request, RANK)["click"].shape == (300, 1)  # the server lives


def body_of(request: dict[str, np.ndarray], change: Callable) -> bytes:
    types = {"int32": "INT32", "float32": "FP32"}
    inputs = [
        {"name": name, "datatype": types[str(own.dtype)], "shape": own.shape, "data": own.tolist()}
        for name, own in request.items()
    ]
    return json.dumps({"inputs": change(inputs)}).encode()


@pytest.mark.slow
@pytest.mark.parametrize("url", ["numpy of the backend"], indirect=True)
def test_triton_ranks_raw_columns(served, url):
    folder, model = served
    rows = json.loads((folder / "repository" / "example_rank_raw.json").read_text())
    assert {name: len(values) for name, values in rows.items()} == {"who": 1, "years": 1, "weekday": 2, "words": 2}
    found = client(folder).predict(url, RANK_RAW, rows)
    whole = {name: values * (2 // len(values)) for name, values in rows.items()}
    wanted = client(folder).predict(url, RAW, whole)
    for task in wanted:
        np.testing.assert_allclose(found[task], wanted[task], rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_client_can_be_run_as_a_program(served, url):
    folder, _ = served
    command = [sys.executable, "-S", *ASK[1:], "--url", url, "--model", MODEL]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    rows = json.loads((folder / "repository" / "example.json").read_text())
    assert json.loads(done.stdout) == client(folder).predict(url, MODEL, rows)


@pytest.mark.slow
def test_triton_serves_tables_of_3_gibibytes(package, tmp_path):
    rows, width = 6 * 2**20, 128
    write_large_run(tmp_path / "outbrain" / "checkpoints", rows, width)
    with chdir(tmp_path):
        assert export.main(EXPORT[2:]) == 0
    files = [tmp_path / "repository" / name / "1" / "model.onnx" for name in ("recommender", MODEL)]
    assert files[0].stat().st_size < 2**20
    tables = [file.with_name("model.onnx.data").stat() for file in files]
    assert tables[0].st_size >= 4 * rows * width and tables[0].st_ino == tables[1].st_ino  # on the disk once
    own = tmp_path / "server"
    own.mkdir()
    ids = np.linspace(0, rows - 1, 64).astype(np.int32)[:, np.newaxis]
    with serving(package, own, tmp_path / "repository", [MODEL], fits=False) as address:
        found = asked(client(tmp_path).predict, address, {"user": ids})["click"]
    logits = load_model(tmp_path / "outbrain" / "checkpoints" / "model").model(ids, np.zeros((64, 0), np.float32))
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-logits.numpy())), rtol=0, atol=1e-5)
    assert found.std() > 0.01
