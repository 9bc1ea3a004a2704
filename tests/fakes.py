"""A machine to run the shell scripts on, with fakes for everything that is slow or needs the network."""

import shutil
import subprocess
from pathlib import Path

from tests.helpers import ROOT

TOOLS = (
    "awk bash basename cat chmod cp cut date df dirname env find flock grep head ls mkdir mktemp mv nproc realpath "
    "readlink rm sed sh sha256sum sleep sort tail tee timeout touch tr uname wc"
)

# Answers setup.sh as Python 3.x.y would, and logs every request in $STATE/log.
PYTHON = """#!/bin/sh
case "$*" in
  *version_info*) echo VERSION ;;
  "-m venv "*) mkdir -p "$3/bin" "$3/lib"; cp "$0" "$3/bin/python"; cp "$STATE/uv" "$3/bin/uv" ;;
  "-m pip config list") cat "$STATE/pip-config" 2>/dev/null ;;
  "-m pip install"*)
    echo "pip $*" >>"$STATE/log"
    [ ! -e "$STATE/offline" ] || { echo "pip: no route to the index" >&2; exit 1; } ;;
  "-m compileall "*) echo "$*" >>"$STATE/log" ;;
  "- "*) [ ! -e "$STATE/unloadable" ] || { rm "$STATE/unloadable"; echo "undefined symbol" >&2; exit 1; } ;;
esac
"""
UV = """#!/bin/sh
echo "uv $* UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-} SSL_CERT_FILE=${SSL_CERT_FILE:-}" >>"$STATE/log"
[ ! -e "$STATE/full" ] || { echo "uv: No space left on device" >&2; exit 1; }
"""
BUILD = """#!/bin/sh
[ "$1" != --check ] || exit 0
echo "build $3" >>"$STATE/log"
sleep 0.3
[ ! -e "$STATE/broken-build" ] || exit 1
echo compiled >"$2/horovod-0.28.1-cp312-cp312-linux_x86_64.whl"
"""


class Machine:
    """A checkout in a folder with a space in its name, on a machine whose PATH has little more than coreutils."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "my recipe"
        self.state = folder / "state"
        self.path = folder / "bin"
        for made in (self.root, self.state, self.path):
            made.mkdir()
        shutil.copytree(ROOT / "scripts", self.root / "scripts")
        shutil.copytree(ROOT / "requirements", self.root / "requirements")
        shutil.copy(ROOT / "hvd_wrapper.sh", self.root)
        self.write(self.root / "scripts/build_horovod.sh", BUILD)
        self.write(self.state / "uv", UV)
        for tool in TOOLS.split(" "):
            (self.path / tool).symlink_to(str(shutil.which(tool)))
        self.venv = self.root / ".venv"
        self.stamp = self.venv / "setup-stamp"

    def write(self, path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    def tool(self, name: str, text: str) -> None:
        (self.path / name).unlink(missing_ok=True)
        self.write(self.path / name, text)

    def python(self, name: str, version: str) -> None:
        self.tool(name, PYTHON.replace("VERSION", version))

    def environment(self, **variables: str) -> dict[str, str]:
        return {"PATH": str(self.path), "STATE": str(self.state), "HOME": str(self.state), **variables}

    def run(self, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(self.root / script), *arguments],
            env=self.environment(**variables),
            cwd=self.state,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )

    def setup(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.run("scripts/setup.sh", *arguments, **variables)

    def log(self) -> str:
        log = self.state / "log"
        return log.read_text() if log.exists() else ""


def check_failed(process, *words: str) -> None:
    assert process.returncode == 1, process.stdout + process.stderr
    for word in words:
        assert word in process.stderr
