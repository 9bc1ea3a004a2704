"""A tritonserver of the package nvidia-pytriton, of which nothing is imported. It has the Python backend alone.

pip install --no-deps --require-hashes --target FOLDER -r requirements/tritonserver.txt
"""

import os
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PATIENCE = 120  # seconds until the server must answer


@contextmanager
def serving(
    packages: Path, folder: Path, repository: Path, models: Sequence[str], *, fits: bool = True
) -> Iterator[str]:
    """Yield the URL of a server that ends afterwards.

    Args:
        packages: folder of the installed packages.
        folder: an empty folder for what the server needs, and its log.
        repository: the model repository.
        models: names of the models that are loaded.
        fits: whether the models' interpreter has the NumPy that the Python backend was built for, or that of this one.

    Raises:
        RuntimeError: if the server does not get ready; the message has the end of its log.
    """
    server = packages / "pytriton" / "tritonserver"
    programs = _interpreter(packages, folder / "python") if fits else Path(sys.executable).parent
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command: list[str | Path] = [server / "bin" / "tritonserver", "--model-repository", repository]
    command += ["--backend-directory", _backends(server, folder), "--model-control-mode", "explicit"]
    command += [word for model in models for word in ("--load-model", model)]
    command += ["--http-address", "127.0.0.1", "--http-port", port, "--allow-grpc", "false", "--allow-metrics", "false"]
    log = folder / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            env=_environment(packages, programs),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_ready(f"http://127.0.0.1:{port}", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def _backends(server: Path, folder: Path) -> Path:
    """Return a backend directory as tritonserver wants it: the package keeps the interpreters' stubs apart."""
    shutil.copytree(server / "backends", folder / "backends")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy(server / "python_backend_stubs" / version / "triton_python_backend_stub", folder / "backends/python")
    return folder / "backends"


def _interpreter(packages: Path, folder: Path) -> Path:
    """Return programs of an interpreter with the packages' NumPy, and otherwise with the packages of this one."""
    venv.create(folder, with_pip=False)
    (own,) = folder.glob("lib/python*/site-packages")
    for path in packages.glob("numpy*"):
        shutil.copytree(path, own / path.name)
    (own / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return folder / "bin"


def _environment(packages: Path, programs: Path) -> dict[str, str]:
    """Return the server's environment: its stub runs the first interpreter on PATH, and needs its shared library."""
    libraries = [sysconfig.get_config_var("LIBDIR"), str(packages / "nvidia_pytriton.libs")]
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "LD_LIBRARY_PATH": os.pathsep.join(libraries), "PYTHONDONTWRITEBYTECODE": "1"}


def _wait_until_ready(url: str, server: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"tritonserver does not serve:\n{log.read_text()[-3000:]}")
