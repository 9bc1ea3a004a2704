"""What importing a module does: no command loads a framework before its arguments are checked."""

import json
import subprocess
import sys

import pytest

from tests.helpers import ROOT, environment

FRAMEWORKS = {"tensorflow", "keras", "horovod"}
COMMANDS = sorted(path.stem for path in ROOT.glob("*.py"))


@pytest.fixture(scope="module")
def loaded() -> dict[str, list[str]]:
    """Frameworks that are loaded after each command has been imported, in one process."""
    program = (
        "import importlib, json, sys\n"
        f"print(json.dumps({{name: sorted({FRAMEWORKS!r} & (importlib.import_module(name), set(sys.modules))[1]) "
        f"for name in {COMMANDS!r}}}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("command", COMMANDS)
def test_arguments_are_checked_without_a_framework(loaded, command):
    assert loaded[command] == []


def test_commands_are_found():
    assert {"main", "export", "supervise", "transcode"} <= set(COMMANDS)
