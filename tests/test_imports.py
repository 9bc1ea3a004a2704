"""What importing a module does: no command loads a framework before its arguments are checked."""

import json
import subprocess
import sys

import pytest

from tests.helpers import ROOT, environment

FRAMEWORKS = {"tensorflow", "keras", "horovod"}
# Takes a second: programs that do nothing with data frames report wrong arguments without it.
WITHOUT_PANDAS = ("main", "supervise", "transcode", "gen_csv", "export")
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


@pytest.mark.parametrize("command", WITHOUT_PANDAS)
def test_pandas_is_not_loaded_needlessly(command):
    program = f"import sys, {command}; sys.exit('pandas' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment(), check=True)


def test_keras_starts_without_packages_that_are_needed_later():
    program = (
        "import sys; from trainer.process.startup import import_tensorflow, quick_imports\n"
        "with quick_imports(): import_tensorflow()\n"
        "print({'matplotlib', 'pandas', 'keras'} & set(sys.modules)); import matplotlib.pyplot, pandas"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "{'keras'}\n"


def test_commands_are_found():
    assert {"main", "export", "supervise", "transcode"} <= set(COMMANDS)
