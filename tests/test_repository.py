"""No file of the repository may contain package-index addresses or paths of one machine."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.helpers import ROOT

# A package index, a file of one, or an option with an address; a folder of one person or one machine.
FOREIGN = re.compile(
    r"""://[^\s"'+]*/simple\b | files\.pythonhosted | index-url[\s=]+\S*:// | find-links[\s=]+\S*/ | file:/{2,3}\w
    | (?<![\w.~$}:/-])/(?:work|root|home|Users|farm)/\w""",
    re.VERBOSE,
)


def text_files() -> list[Path]:
    """Returns the text files that are in the repository or about to be."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout, so that the files of the repository are unknown")
    paths = [ROOT / line for line in listing.stdout.splitlines()]
    return [path for path in paths if path.is_file() and b"\0" not in path.read_bytes()]


@pytest.mark.parametrize(
    ("line", "foreign"),
    [
        ("pip install --index-url" + " https://packages.example.org six", True),
        ("https://packages.example.org" + "/simple", True),
        ("--find-links" + " /opt/wheels", True),
        ("see /" + "work/main/data", True),
        ("cd /" + "home/somebody", True),
        ("pip config set global.index-url ADDRESS", False),
        ("https://www.apache.org/work/licences", False),
        ("--dataset_path /outbrain/data", False),
        ("$HOME/work/data", False),
    ],
)
def test_foreign_addresses_are_recognized(line, foreign):
    assert bool(FOREIGN.search(line)) == foreign


def test_no_file_holds_a_foreign_address():
    offenders = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in text_files()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if FOREIGN.search(line)
    ]
    assert not offenders, offenders
