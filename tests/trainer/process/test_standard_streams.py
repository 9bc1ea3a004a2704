"""Standard streams that are closed or broken. Each test runs in its own process, which the streams belong to."""

import subprocess
import sys

import pytest

from tests.helpers import ROOT, environment

PROGRAM = """
import os, sys
from trainer.process.startup import robust_stdio
robust_stdio()
print("out é\\udcc3")
print("x" * 100_000, flush=True)
sys.stderr.write("error é")
sys.stdout.flush()
with open(sys.argv[1], "w") as file:
    file.write(f"{file.fileno() > 2} {sys.stdout.isatty()} {os.get_inheritable(1)}")
"""


def run(tmp_path, redirection: str, **variables: str) -> subprocess.CompletedProcess:
    """Runs the program under a redirection of bash; its output as bytes."""
    command = f'"$0" -c "$1" "$2" {redirection}'
    result = tmp_path / "result"
    done = subprocess.run(
        ["bash", "-c", command, sys.executable, PROGRAM, str(result)],
        cwd=ROOT,
        env=environment(**variables),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert result.read_text() == "True False True"
    return done


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&- <&-", "> >(exec true)", ">/dev/full 2>&1"])
def test_unwritable_stream_changes_nothing(tmp_path, redirection):
    done = run(tmp_path, redirection)
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    if "2>" not in redirection:
        assert done.stderr.decode() == "error é"


@pytest.mark.parametrize(
    ("encoding", "out", "error"),
    [("utf-8", "out é\\udcc3".encode(), "error é".encode()), ("ascii", b"out \\xe9\\udcc3", b"error \\xe9")],
)
def test_unencodable_character_is_escaped(tmp_path, encoding, out, error):
    done = run(tmp_path, "", PYTHONIOENCODING=encoding)
    assert done.stdout == out + b"\n" + b"x" * 100_000 + b"\n"
    assert done.stderr == error


def test_vanished_reader_does_not_end_the_process(tmp_path):
    assert run(tmp_path, "| head -c 10; exit ${PIPESTATUS[0]}").returncode == 0
