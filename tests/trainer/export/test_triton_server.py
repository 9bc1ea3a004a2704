"""The documented commands: a Triton repository is exported, served unchanged by a real tritonserver, asked over HTTP.

The binary is that of the package nvidia-pytriton, of which nothing is imported. It has the Python backend alone.
"""

import importlib.util
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import export
from tests.documented import bash_blocks
from tests.helpers import ROOT
from tests.trainer.export.models import draw_inputs, predicted, write_large_run, write_run
from tests.trainer.export.test_raw import GIVEN, make_encoders, wanted_features
from trainer.checkpoint.load_model import load_model

EXPORT, SERVE, ASK = (
    shlex.split(line, comments=True) for line in bash_blocks("docs/export.md", "Triton")[0].splitlines()
)
MODEL, RAW = "recommender_python", "recommender_raw"
PATIENCE = 120  # seconds until the server must answer


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
    return folder / "pytriton"


def backends(package: Path, folder: Path) -> Path:
    """A backend directory as tritonserver wants it: the package keeps the interpreters' stubs apart."""
    server = package / "tritonserver"
    shutil.copytree(server / "backends", folder / "backends")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy(server / "python_backend_stubs" / version / "triton_python_backend_stub", folder / "backends/python")
    return folder / "backends"


def interpreter(package: Path, folder: Path) -> Path:
    """An interpreter with the NumPy that the backend was built for, and otherwise with the packages of this one."""
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    for path in package.parent.glob("numpy*"):
        shutil.copytree(path, packages / path.name)
    (packages / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return folder / "bin"


def environment_of_the_server(package: Path, programs: Path) -> dict[str, str]:
    """The stub runs the interpreter that is first on PATH, and needs its shared library."""
    libraries = [sysconfig.get_config_var("LIBDIR"), str(package.parent / "nvidia_pytriton.libs")]
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "LD_LIBRARY_PATH": os.pathsep.join(libraries), "PYTHONDONTWRITEBYTECODE": "1"}


def wait_until_ready(url: str, server: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    pytest.fail(f"tritonserver does not serve:\n{log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The server's folder, to which the repository has been copied, and the model."""
    here, there = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("there")
    model = write_run(here / "outbrain" / "checkpoints", encoders=make_encoders(), model="mmoe")
    with chdir(here):
        assert EXPORT[:2] == ["python", "export.py"] and export.main(EXPORT[2:]) == 0
    shutil.copytree(here / "repository", there / "repository")
    return there, model


@contextmanager
def serving(package: Path, folder: Path, own: Path, programs: Path, models: Sequence[str]) -> Iterator[str]:
    """Serves models of the repository in a folder; yields the URL. `own` is an empty folder for the server's files."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    options = ["--backend-directory", backends(package, own)]
    options += ["--model-control-mode", "explicit", *(word for name in models for word in ("--load-model", name))]
    options += ["--http-address", "127.0.0.1", "--http-port", port, "--allow-grpc", "false", "--allow-metrics", "false"]
    log = own / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [package / "tritonserver" / "bin" / SERVE[0], *SERVE[1:], *options],
            cwd=folder,
            env=environment_of_the_server(package, programs),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", server, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        if server.poll() is None:
            server.terminate()
            try:
                server.wait(40)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)


@pytest.fixture(scope="module", params=["numpy of the backend", "other numpy"])
def url(request, served, package, tmp_path_factory) -> Iterator[str]:
    folder, _ = served
    own = tmp_path_factory.mktemp("server")
    fits = request.param == "numpy of the backend"  # the model of raw columns loads only there
    programs = interpreter(package, own / "python") if fits else Path(sys.executable).parent
    with serving(package, folder, own, programs, [MODEL, RAW] if fits else [MODEL]) as address:
        yield address


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
    with serving(package, tmp_path, own, Path(sys.executable).parent, [MODEL]) as address:
        found = asked(client(tmp_path).predict, address, {"user": ids})["click"]
    logits = load_model(tmp_path / "outbrain" / "checkpoints" / "model").model(ids, np.zeros((64, 0), np.float32))
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-logits.numpy())), rtol=0, atol=1e-5)
    assert found.std() > 0.01
