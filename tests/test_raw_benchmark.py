"""benchmarks/raw_preprocessing.py: its file, and a small run without the public programs."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from benchmarks.criteo_like import CARDINALITIES, LABEL, NUMBERS, TEXTS, write_criteo_like
from benchmarks.watched import run_watched
from tests.helpers import ROOT

ROWS = 20_000


def test_file_has_the_declared_form(tmp_path):
    write_criteo_like(tmp_path / "train.csv", ROWS)
    table = pd.read_csv(tmp_path / "train.csv", dtype=dict.fromkeys(TEXTS, str), keep_default_na=False, na_values=[""])
    assert list(table) == [LABEL, *NUMBERS, *TEXTS] and len(table) == ROWS
    assert table[NUMBERS].isna().mean().to_numpy() == pytest.approx(np.full(13, 0.15), abs=0.02)
    assert table[TEXTS].isna().mean().to_numpy() == pytest.approx(np.full(26, 0.03), abs=0.01)
    assert set(table[TEXTS].stack().str.len()) == {8}
    distinct = table[TEXTS].nunique().to_numpy()
    small = np.array(CARDINALITIES) < 1000
    assert (distinct[small] == np.array(CARDINALITIES)[small]).all()


def test_peak_memory_counts_children():
    block = "import time; block = bytearray(200 * 2**20); time.sleep(1)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {block!r}]); print('done')"
    run = run_watched([sys.executable, "-c", parent])
    assert run.output == "done\n" and run.seconds > 1
    assert 200 < run.peak_own_mib <= run.peak_mib < 300


@pytest.mark.slow
def test_small_run_prints_its_lines(tmp_path):
    command = "benchmarks.raw_preprocessing --rows 50000 --turns 1 --peers --memory_limits 1GB --growth 25000 50000"
    done = subprocess.run(
        [sys.executable, "-m", *command.split(), "--folder", tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    side, growth = map(json.loads, done.stdout.splitlines())
    assert (side["variant"], side["rows"]) == ("preprocess.py, 1GB", 50_000)
    assert side["peak_own_mib"] <= 1024
    assert growth["largest_peak_gb"] <= 1
    assert growth["rows"] == [25_000, 50_000] and len(growth["seconds"]) == 2
