"""The other shell scripts: what they start, and what they say of a mistake."""

import os
import re
import subprocess
import sys
import tarfile
from typing import NamedTuple

import pytest

from tests.fakes import Machine, check_failed
from tests.helpers import ROOT

SCRIPTS = sorted([*ROOT.glob("scripts/*.sh"), ROOT / "scripts/slurm.sbatch", ROOT / ".ci/run", ROOT / "hvd_wrapper.sh"])
BENCHMARK = "--benchmark --benchmark_warmup_steps 500 --benchmark_steps 1000"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_parses_and_stops_at_errors(script):
    posix = script.name == "hvd_wrapper.sh"
    subprocess.run(["sh" if posix else "bash", "-n", str(script)], check=True)
    if script.name != "_launch.sh":
        assert ("\nset -eu\n" if posix else "\nset -euo pipefail\n") in script.read_text()
        assert os.access(script, os.X_OK), f"chmod +x {script}"


@pytest.fixture
def machine(tmp_path):
    """A machine that is set up; its horovodrun prints what it is given, an argument a line."""
    machine = Machine(tmp_path)
    (machine.venv / "bin").mkdir(parents=True)
    machine.write(machine.venv / "bin/horovodrun", "#!/bin/sh\nprintf '<%s>\\n' \"$@\"\n")
    machine.write(machine.venv / "bin/python", "#!/bin/sh\n")
    return machine


def launched(process) -> list[str]:
    """The arguments that horovodrun was given."""
    assert process.returncode == 0, process.stderr
    return [line[1:-1] for line in process.stdout.splitlines() if line.startswith("<")]


@pytest.mark.parametrize(
    ("script", "arguments", "workers", "flags"),
    [
        ("training_full.sh", "", "1", ""),
        ("training_full.sh", "-g 8 -a amp -x xla", "8", "--amp --xla"),
        (
            "training_full.sh",
            "-g 3 --num_epochs 2 --deep_hidden_units 64 32",
            "3",
            "--num_epochs 2 --deep_hidden_units 64 32",
        ),
        ("training_full.sh", "--num_epochs 2 -x xla -g 5", "5", "--num_epochs 2 --xla"),
        ("training_benchmark.sh", "-g 4", "4", BENCHMARK),
        ("training_benchmark.sh", "--benchmark_steps 20", "1", f"{BENCHMARK} --benchmark_steps 20"),
        ("evaluating_benchmark.sh", "-b 4096 -a amp", "1", f"--evaluate {BENCHMARK} --eval_batch_size 4096 --amp"),
        ("training_full.sh", "-g 1 -a -x", "1", "--amp --xla"),
        ("training_full.sh", "--gpu 4 --amp --xla", "4", "--amp --xla"),
        ("training_full.sh", "--gpu=4 -x --num_epochs 2 -a", "4", "--xla --num_epochs 2 --amp"),
        ("training_benchmark.sh", "-a -g 8 -b 65536", "8", f"{BENCHMARK} --amp --global_batch_size 65536"),
        ("evaluating_benchmark.sh", "--bs 4096 -x", "1", f"--evaluate {BENCHMARK} --eval_batch_size 4096 --xla"),
        ("evaluating_benchmark.sh", "--bs=4096", "1", f"--evaluate {BENCHMARK} --eval_batch_size 4096"),
    ],
)
def test_the_options_become_workers_and_flags_of_main(machine, script, arguments, workers, flags):
    root, venv = str(machine.root), str(machine.venv)
    assert launched(machine.run(f"scripts/{script}", *arguments.split())) == [
        "-np", workers, "sh", f"{root}/hvd_wrapper.sh", f"{venv}/bin/python", f"{root}/main.py",
        "--recipe", "published", *flags.split()
    ]  # fmt: skip


def test_arguments_with_blanks_arrive_whole(machine):
    assert launched(machine.run("scripts/training_full.sh", "--dataset_path", "my data", "*"))[-2:] == ["my data", "*"]


@pytest.mark.parametrize(
    ("gpus", "listed", "workers"), [(0, None, "1"), (4, None, "4"), (4, "0,2", "2"), (4, "", "1"), (4, "-1", "1")]
)
def test_one_worker_per_gpu_by_default(machine, gpus, listed, workers):
    lines = "".join(f"GPU {number}: NVIDIA H200 (UUID: GPU-{number})\n" for number in range(gpus))
    machine.tool("nvidia-smi", f"#!/bin/sh\ncat <<X\n{lines}X\n")
    variables = {} if listed is None else {"CUDA_VISIBLE_DEVICES": listed}
    assert launched(machine.run("scripts/training_full.sh", **variables))[1] == workers


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("training_full.sh", ["-g", "0"], "'0'"),
        ("training_full.sh", ["-g", "many"], "'many'"),
        ("training_full.sh", ["-g"], "needs a value"),
        ("training_full.sh", ["--gpu=-1"], "--gpu takes a number of workers, not '-1'"),
        ("evaluating_benchmark.sh", ["-a", "--bs"], "--bs needs a value"),
    ],
)
def test_wrong_option_is_a_one_line_error(machine, script, arguments, message):
    process = machine.run(f"scripts/{script}", *arguments)
    assert process.returncode == 2
    assert message in process.stderr
    assert len(process.stderr.splitlines()) == 1


@pytest.mark.parametrize("script", ["training_full.sh", "training_benchmark.sh", "evaluating_benchmark.sh"])
def test_help_names_the_script_and_its_options(machine, script):
    process = machine.run(f"scripts/{script}", "-h")
    assert process.returncode == 0
    assert f"usage: {script}" in process.stdout
    batch = "--eval_batch_size" if script == "evaluating_benchmark.sh" else "--global_batch_size"
    assert f"all workers together: {batch}\n" in process.stdout


def test_missing_setup_is_reported_with_its_command(machine):
    (machine.venv / "bin/horovodrun").unlink()
    check_failed(machine.run("scripts/training_full.sh"), "scripts/setup.sh")
    (machine.venv / "setup-stamp").write_text("unfinished\n")
    check_failed(machine.run("scripts/training_full.sh"), "did not finish")


@pytest.fixture
def checks(machine):
    """A machine whose set-up, ruff, mypy and pytest note that they ran and with what."""
    variables = "faults=${RECIPE_FAULTS:-quick} data=${RECIPE_TEST_DATA:-none}"
    note = f'#!/bin/sh\necho "$(basename "$0") $* {variables}" >>"$STATE/log"\n'
    machine.write(machine.root / "scripts/setup.sh", note)
    for tool in ("ruff", "lint-imports", "mypy", "python"):
        machine.write(machine.venv / "bin" / tool, note + f'[ ! -e "$STATE/{tool} fails" ] || exit 3\n')
    return machine


def test_everything_is_checked_and_arguments_go_to_pytest(checks):
    process = checks.run("scripts/test.sh", "-k", "two words")
    assert process.returncode == 0, process.stderr
    assert [line.split(" data=")[0].split(" ")[0] for line in checks.log().splitlines()] == [
        "setup.sh", "ruff", "ruff", "lint-imports", "mypy", "python"
    ]  # fmt: skip
    assert "-m not slow" in checks.log()
    assert "-k two words" in checks.log() and "faults=quick" in checks.log()


def test_all_adds_slow_tests_and_every_fault(checks):
    checks.run("scripts/test.sh", "--all")
    assert "-m pytest" in checks.log() and "faults=whole" in checks.log()
    assert "not slow" not in checks.log() and "benchmarks.reliability" not in checks.log()


def test_faults_option_regenerates_the_table(checks):
    recorded = 'case "$*" in *pytest*) echo "a line" >"$RECIPE_FAULTS_LOG"; exit 0;; esac; cat "$3" >>"$STATE/log"\n'
    python = checks.venv / "bin/python"
    checks.write(python, python.read_text() + recorded)
    assert checks.run("scripts/test.sh", "--faults", "-k", "two words").returncode == 0
    setup, pytest_line, table, lines = checks.log().splitlines()
    assert setup.startswith("setup.sh")
    assert "-m pytest tests/faults" in pytest_line and "-k two words faults=whole" in pytest_line
    assert "-m benchmarks.reliability /" in table and lines == "a line"


def test_failed_fault_tests_are_in_the_table_too(checks):
    (checks.state / "python fails").touch()
    check_failed(checks.run("scripts/test.sh", "--faults"), "failed")
    assert "-m benchmarks.reliability" in checks.log()


@pytest.mark.parametrize("tool", ["ruff", "lint-imports", "mypy", "python"])
def test_one_failed_check_fails_the_script(checks, tool):
    (checks.state / f"{tool} fails").touch()
    check_failed(checks.run("scripts/test.sh"), "failed")


def test_real_data_folder_is_found(checks):
    checks.run("scripts/test.sh")
    assert "data=none" in checks.log()
    beside = checks.root.parent / "shared/data"
    beside.mkdir(parents=True)
    checks.run("scripts/test.sh")
    assert f"data={beside}" in checks.log()
    checks.run("scripts/test.sh", RECIPE_TEST_DATA="/elsewhere")
    assert "data=/elsewhere" in checks.log()


@pytest.mark.parametrize(("data_is_there", "code"), [(True, 1), (False, 0)])
def test_ci_fails_if_a_test_skips_available_data(checks, data_is_there, code):
    skip = "SKIPPED [1] tests/data/test_x.py:3: no real data: x is absent (RECIPE_TEST_DATA names another folder)"
    checks.write(checks.root / "scripts/test.sh", f"#!/bin/sh\necho '{skip}'\necho '1 passed, 1 skipped in 0.1s'\n")
    (checks.root / ".ci").mkdir()
    checks.write(checks.root / ".ci/run", (ROOT / ".ci/run").read_text())
    if data_is_there:
        (checks.root.parent / "shared/data").mkdir(parents=True)
    process = checks.run(".ci/run")
    assert process.returncode == code
    assert "1 passed, 1 skipped" in process.stdout
    assert skip in process.stdout


def test_the_ci_fails_when_the_tests_do(checks):
    checks.write(checks.root / "scripts/test.sh", "#!/bin/sh\necho '1 failed in 0.1s'\nexit 1\n")
    (checks.root / ".ci").mkdir()
    checks.write(checks.root / ".ci/run", (ROOT / ".ci/run").read_text())
    process = checks.run(".ci/run")
    assert (process.returncode, process.stdout) == (1, "1 failed in 0.1s\n")


# tritonserver is locked for an environment of its own.
SHARED_LISTS = ("cpu", "gpu", "export", "dev", "uv")
LISTS = (*SHARED_LISTS, "tritonserver")


class Locked(NamedTuple):
    """A requirement of a locked list."""

    package: str
    version: str
    marker: str
    hashes: list[str]


def locked(name: str) -> list[Locked]:
    """The requirements of a list; fails the test where it holds anything else."""
    found = []
    for line in (ROOT / f"requirements/{name}.txt").read_text().replace("\\\n", "").splitlines()[1:]:
        requirement, *hashes = line.split("--hash=")
        parsed = re.fullmatch(r"([a-z0-9-]+)==([0-9][^ /@]*)(?: ; (python_full_version [^/@]*))?", requirement.strip())
        assert parsed, f"{name}.txt: {line}"
        found.append(Locked(parsed[1], parsed[2], parsed[3] or "", [text.strip() for text in hashes]))
    assert found, name
    return found


@pytest.mark.parametrize("name", LISTS)
def test_locked_lists_hold_exact_versions_with_hashes(name):
    for requirement in locked(name):
        assert requirement.hashes, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", text) for text in requirement.hashes), requirement


def test_the_lists_agree_on_what_they_share():
    versions: dict[str, set[str]] = {}
    for name in SHARED_LISTS:
        for requirement in locked(name):
            if not requirement.marker:
                versions.setdefault(requirement.package, set()).add(requirement.version)
    differing = {package for package, found in versions.items() if len(found) > 1}
    assert differing <= {"numba", "llvmlite"}, "only numba differs between CPU and GPU (requirements/README.md)"


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_what_builds_need_is_locked_too(name):
    assert {"setuptools", "wheel"} <= {requirement.package for requirement in locked(name)}


def test_altered_source_of_horovod_is_not_run(tmp_path):
    """Served by an index in place of the published one."""
    ran, source = tmp_path / "ran", tmp_path / "horovod-0.28.1"
    source.mkdir()
    (source / "setup.py").write_text(f"open({str(ran)!r}, 'w'); raise SystemExit(1)\n")
    with tarfile.open(tmp_path / "horovod-0.28.1.tar.gz", "w:gz") as file:
        file.add(source, source.name)
    done = subprocess.run(
        ["bash", str(ROOT / "scripts/build_horovod.sh"), sys.executable, str(tmp_path / "wheels")],
        env=os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_EXTRA_INDEX_URL": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    if "lacks:" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 1 and "DO NOT MATCH THE HASHES" in done.stderr
    assert not ran.exists() and os.listdir(tmp_path / "wheels") == []


def test_lock_rejects_lists_with_an_address(machine):
    uv = '#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho "six @ https://example.org/six.whl" >"$2"\n'
    machine.write(machine.venv / "bin/uv", uv)
    before = (machine.root / "requirements/cpu.txt").read_text()
    check_failed(machine.run("scripts/lock.sh"), "nothing is changed")
    assert (machine.root / "requirements/cpu.txt").read_text() == before
    assert not list(machine.root.glob("requirements/.lock*"))
