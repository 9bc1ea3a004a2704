"""The script that measures a GPU runs whole on a CPU."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import SMALL, VARIANTS, largest_difference
from tests.helpers import ROOT


def test_largest_difference_is_relative():
    assert largest_difference([2.0, 1.1], [2.0, 1.0]) == pytest.approx(0.1)
    assert largest_difference([2.0], [2.0, 1.0]) == math.inf
    assert largest_difference([2.0, None], [2.0, 1.0]) == math.inf


@pytest.mark.slow
def test_small_run_on_a_cpu(tmp_path):
    output = tmp_path / "gpu.jsonl"
    ended = subprocess.run(
        ["bash", "benchmarks/gpu.sh", "--small", "--output", str(output)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"VENV": str(Path(sys.executable).parent.parent)},
    )
    assert ended.returncode == 0, ended.stderr
    reference, *variants = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["variant"] for line in variants] == list(VARIANTS)
    assert all(len(line["losses"]) == SMALL.steps for line in (reference, *variants))
    assert all(line["passed"] and line["train_samplesps"] > 0 and line["evaluation_samplesps"] > 0 for line in variants)
    assert variants[0]["losses"] == pytest.approx(reference["losses"], rel=1e-6)
    assert max(reference["losses"]) > min(reference["losses"])
