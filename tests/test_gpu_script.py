"""The script that measures a GPU: its plan with made-up processes, its tables, and a whole small run on a CPU."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest

from benchmarks import gpu
from benchmarks.gpu import (
    REFERENCE,
    SMALL,
    TRAINING_PARTS,
    VARIANTS,
    Budget,
    jobs,
    largest_difference,
    lines_of,
    run_group,
)
from benchmarks.gpu_parts import Skipped, run_parts
from benchmarks.gpu_preprocessing import largest_difference as difference_of_tables
from benchmarks.gpu_tables import NOT_MEASURED, gpu_section
from benchmarks.harness import read_lines, systems_of
from tests.helpers import ROOT

# Installed by scripts/setup.sh, but not promised to gpu.sh. onnxruntime and what makes its files stay.
NOT_NEEDED = (
    "horovod",
    "matplotlib",
    "nvtabular",
    "merlin",
    "dask",
    "distributed",
    "jinja2",
    "cudf",
)


def test_largest_difference_is_relative():
    assert largest_difference([2.0, 1.1], [2.0, 1.0]) == pytest.approx(0.1)
    assert largest_difference([2.0], [2.0, 1.0]) == math.inf
    assert largest_difference([2.0, math.nan], [2.0, 1.0]) == math.inf
    assert largest_difference([], []) == math.inf


def test_parts_are_printed_with_their_seconds(capsys):
    def skipped():
        raise Skipped("not here")

    def noisy():
        print("a message")
        return {"found": 1}

    with pytest.raises(ZeroDivisionError):
        run_parts({"one": noisy, "two": skipped, "three": lambda: {"found": 1 / 0}}, ["one", "two", "three"])
    one, two = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert one["found"] == 1 and one["part"] == "one" and one["seconds"] > 0
    assert two == {"part": "two", "seconds": two["seconds"], "skipped": "not here"}


class Process:
    """A job whose processes are made up: `fate` of a part says what becomes of the process that measures it."""

    def __init__(self, fate):
        self.parts, self.fate, self.started = tuple(fate), fate, []

    def run(self, parts, seconds):
        self.started.append(list(parts))
        lines = []
        for part in parts:
            if isinstance(self.fate[part], str):
                return lines, self.fate[part]
            lines.append({"part": part, "seconds": 0.0, **self.fate[part]})
        return lines, "exit code 0"


def test_a_part_that_fails_costs_its_own_line_alone():
    process = Process({"a": {"found": 1}, "b": "exit code 1: no memory", "c": {"skipped": "none"}, "d": "stopped"})
    a, b, c, d = lines_of(process, Budget(100), 50)
    assert process.started == [["a", "b", "c", "d"], ["c", "d"]]
    assert a == {"passed": True, "part": "a", "seconds": 0, "found": 1}
    assert b == {"part": "b", "seconds": 0, "error": "exit code 1: no memory", "passed": False}
    assert c == {"part": "c", "seconds": 0, "skipped": "none"}
    assert d["error"] == "stopped" and not d["passed"]


def test_parts_without_time_are_skipped():
    process = Process({"a": {}, "b": {}})
    lines = list(lines_of(process, Budget(gpu.LEAST_SECONDS - 1), 50))
    assert [line["part"] for line in lines] == ["a", "b"] and process.started == []
    assert all(line["skipped"] == "the 9 s of all parts are used up" for line in lines)


def test_part_that_runs_when_the_time_ends_is_skipped(monkeypatch):
    budget = Budget(100)
    process = Process({"a": {}, "b": "stopped after 100 s", "c": {}})
    run = process.run
    monkeypatch.setattr(process, "run", lambda parts, seconds: (setattr(budget, "seconds", 0), run(parts, seconds))[1])
    a, b, c = lines_of(process, budget, 50)
    assert a["passed"] and "used up" in b["skipped"] and "used up" in c["skipped"]


def test_process_that_hangs_keeps_what_it_printed_and_ends_with_its_children():
    line = {"part": "a", "seconds": 1.0}
    program = f"import subprocess, time; print('{json.dumps(line)}', flush=True); subprocess.run(['sleep', '600'])"
    started = time.monotonic()
    ended = run_group([sys.executable, "-c", program], {}, 3)
    assert json.loads(ended.stdout) == line and ended.code is None and ended.how == "stopped after 3 s"
    assert time.monotonic() - started < 300  # `sleep` would hold the pipe


def test_process_that_fails_says_how():
    ended = run_group(
        [sys.executable, "-c", "import os, sys; sys.exit(os.environ['REASON'])"], {"REASON": "no GPU"}, 60
    )
    assert (ended.code, ended.how) == (1, "exit code 1: no GPU")


def test_the_model_of_every_precision_is_the_same(tmp_path):
    plan = list(jobs(tmp_path, tmp_path, SMALL))
    assert [job.variant for job in plan[: len(VARIANTS) + 1]] == [REFERENCE, *VARIANTS]
    for job in plan[1 : len(VARIANTS) + 1]:
        flags = job.arguments[job.arguments.index("--flags") + 1 :]
        assert flags == (*SMALL.flags.split(), *VARIANTS[job.variant].flags)
    assert {job.variant for job in plan if job.environment} == {"float32", "exports"}


def test_tables_of_preprocessing_differ_by_their_largest_number():
    ids, lists = pa.array([1, 2], pa.int64()), pa.array([[1], []], pa.list_(pa.int64()))
    one = pa.table({"id": ids, "list": lists, "number": pa.array([0.5, 100.0], pa.float32())})
    other = one.set_column(2, "number", pa.array([0.5, 101.0], pa.float32()))
    assert difference_of_tables(one, one) == 0
    assert difference_of_tables(other, one) == pytest.approx(0.01)
    assert difference_of_tables(one.set_column(0, "id", pa.array([1, 3], pa.int64())), one) == math.inf
    assert difference_of_tables(one.set_column(2, "number", pa.array([0.5, math.nan], pa.float32())), one) == math.inf
    assert difference_of_tables(one.slice(1), one) == math.inf
    empty = one.set_column(2, "number", pa.array([None, math.nan], pa.float32()))
    assert difference_of_tables(empty, empty) == 0 and difference_of_tables(one, empty) == math.inf


ABOUT = {"benchmark": "gpu", "machine": "a machine, a GPU", "versions": {"tensorflow": "2.21.0"}}
LINES = [
    ABOUT | line
    for line in (
        {"variant": REFERENCE, "part": "losses", "seconds": 30, "losses": [0.7, 0.6], "passed": True},
        {
            **{"variant": "amp", "part": "losses", "seconds": 9, "losses": [0.7, 0.61, 0.5, 0.4, 0.4, 0.4, 0.4, 0.25]},
            **{"loss_difference": 1 / 60, "limit": 0.02, "metrics": {"loss_val": 0.55}, "passed": True},
        },
        {
            "variant": "amp",
            "part": "training",
            "seconds": 4,
            "samples_per_second": 4_000_000,
            "step_ms": 33,
            "passed": True,
        },
        {"variant": "amp", "part": "profile", "seconds": 0, "skipped": "CUPTI is missing"},
        {"variant": "exports", "part": "onnx", "seconds": 5, "error": "exit code 1: a | b", "passed": False},
        {"variant": "mmoe", "part": "step", "seconds": 8, "results": [{"what": "whole", "ratio": 1.1}], "passed": True},
    )
]


def test_tables_of_a_gpu():
    section = gpu_section(
        [{"benchmark": "other", **ABOUT, "machine": "first"} | {"benchmark": "other"}, *LINES],
        [
            ("first", "tensorflow 2.21.0"),
            *systems_of(LINES),
        ],
    )
    rows = section.splitlines()
    assert rows[0] == "Machine 2:"
    assert "| amp | 4,000,000 | 33 |  |  |  |  |  |  |  |" in rows
    assert "| amp | 0.017 | 0.02 | 0.55 |  |" in rows
    curves = rows[rows.index("| step | cpu float32 | amp |") :][:5]
    assert curves[2:] == ["| 1 | 0.700000 | 0.700000 |", "| 2 | 0.600000 | 0.610000 |", "| 8 |  | 0.250000 |"]
    assert "| amp | profile | skipped: CUPTI is missing | 0 |  |" in rows
    assert "| exports | onnx | failed: exit code 1: a \\| b | 5 |  |" in rows
    assert "| mmoe | step | passed | 8 | whole, ratio 1.1 |" in rows


def test_page_without_a_gpu_names_the_command():
    assert gpu_section([], []) == NOT_MEASURED
    assert "`bash benchmarks/gpu.sh --output docs/gpu.jsonl`" in NOT_MEASURED


def test_missing_packages_are_named(tmp_path):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')  # without installed packages
    python.chmod(0o755)
    ended = subprocess.run(
        ["bash", "benchmarks/gpu.sh", "--small"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"VENV": str(tmp_path)},
    )
    assert ended.returncode == 1 and not ended.stdout
    assert (
        f"{python} lacks tensorflow keras numpy pandas pyarrow pydantic ruamel.yaml scipy tqdm psutil: install"
        in ended.stderr
    )


@pytest.mark.slow
def test_small_run_on_a_cpu(tmp_path):
    absent = tmp_path / "absent"
    absent.mkdir()
    (absent / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({NOT_NEEDED!r}))\n")
    output = tmp_path / "gpu.jsonl"
    ended = subprocess.run(
        ["bash", "benchmarks/gpu.sh", "--small", "--seconds", "6000", "--output", str(output)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"VENV": str(Path(sys.executable).parent.parent), "PYTHONPATH": str(absent)},
    )
    lines = read_lines(output)
    assert ended.returncode == 0, [line for line in lines if "error" in line] or ended.stderr
    measured = {(line["variant"], line["part"]): line for line in lines}
    assert len(measured) == len(lines) == 1 + len(VARIANTS) * len(TRAINING_PARTS) + 3 + 4
    assert all(line["seconds"] >= 0 and line["small"] for line in lines)
    skipped = {key for key, line in measured.items() if "skipped" in line}
    without_gpu = {(variant, part) for variant in VARIANTS for part in ("memory", "profile")}
    assert skipped == without_gpu | {("preprocessing", "cudf")}
    assert "cuDF cannot be imported" in measured["preprocessing", "cudf"]["skipped"]
    reference = measured[REFERENCE, "losses"]["losses"]
    assert len(reference) == SMALL.checked and max(reference) > min(reference)
    for variant in VARIANTS:
        losses = measured[variant, "losses"]
        assert len(losses["losses"]) == SMALL.curve and losses["loss_difference"] <= losses["limit"]
        assert all(measured[variant, part]["samples_per_second"] > 0 for part in ("training", "step", "evaluation"))
    assert measured["float32", "losses"]["losses"][: SMALL.checked] == pytest.approx(reference, rel=1e-6)
    assert measured["amp", "losses"]["losses"] != measured["float32", "losses"]["losses"]
    assert all(measured["exports", part]["largest_difference"] <= 1e-5 for part in ("savedmodel", "onnx"))
    growths = [line["growth"] for line in measured["tables x16", "step"]["results"]]
    assert growths == [1, 2] and measured["mmoe", "step"]["results"] and measured["sequence", "step"]["results"]
    assert REFERENCE in gpu_section(lines, systems_of(lines))
