"""Two runs that start at the same moment for one model folder."""

import subprocess
import sys

import pytest

from tests.faults.matrix import record, tries
from tests.helpers import ROOT, environment
from trainer.lifecycle.run_lock import MODEL_DIR

TRIES = tries(2, 10)  # of each kind
# Both wait for one line, so that they start together; the one that wins says so and holds on until its input ends.
RACER = """
import sys
from pathlib import Path
from trainer.lifecycle.run_lock import FolderInUse, RunLock

for line in sys.stdin:
    try:
        with RunLock(Path(line.strip()), print):
            print("won", flush=True)
            sys.stdin.readline()
    except FolderInUse as error:
        print("lost" if "another run is training there: process " in str(error) else error, flush=True)
"""


@pytest.mark.parametrize("exists", [True, False], ids=["folder", "no folder"])
def test_exactly_one_of_two_wins(tmp_path, exists):
    command, pipe = [sys.executable, "-c", RACER], subprocess.PIPE
    racers = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=ROOT, env=environment(), text=True) for _ in range(2)
    ]
    survived = 0
    for number in range(TRIES):
        folder = tmp_path / f"race {number}"
        if exists:
            folder.mkdir()
        for racer in racers:
            racer.stdin.write(f"{folder}\n")
        for racer in racers:
            racer.stdin.flush()
        ends = [racer.stdout.readline().strip() for racer in racers]
        survived += sorted(ends) == ["lost", "won"]
        for racer, end in zip(racers, ends, strict=True):
            if end == "won":
                racer.stdin.write("leave\n")
                racer.stdin.flush()
    for racer in racers:
        racer.communicate()
    record("two jobs race for one model_dir", TRIES, survived)
    assert survived == TRIES
    assert not list(tmp_path.rglob(MODEL_DIR.file))
